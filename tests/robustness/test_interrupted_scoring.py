"""Scoring that is interrupted keeps what was scored; the same command resumes and ends with the same files."""

import shutil
import signal

import pytest

from common.files import locked
from tests.robustness.methods import assert_same
from tests.robustness.processes import Script, full_disk, stop_at_append


@pytest.fixture
def scored(trained):
    """A trained network with new items, which were scored without an interruption into `scored`."""
    if not (trained.place / "scored").exists():
        trained.method.make_items(trained.place)
        script = start(trained)
        assert script.end() == 0, script.errors
        (trained.place / "out").rename(trained.place / "scored")
    return trained


def start(training, *preparations) -> Script:
    argv = training.method.scoring.format(place=training.place).split()
    return Script(training.method.scorer, argv, training.run, *preparations)


def test_interrupted_scoring_resumes(scored):
    kept, out = 0, scored.place / "out"
    for number in (signal.SIGINT, signal.SIGKILL):
        script = start(scored, (stop_at_append, (2, number)))
        assert script.end() == (130 if number == signal.SIGINT else -number), script.errors
        assert "Traceback" not in script.errors
        if number == signal.SIGINT:
            assert "the same command" in script.output
        (file,) = out.glob(scored.method.growing)
        assert file.stat().st_size > max(kept, 75)  # more than a header; nothing is scored twice
        kept = file.stat().st_size
    with locked(file.parent):
        second = start(scored)
        assert second.end() == 2 and "another run is writing to" in second.errors, second.errors
    last = start(scored)
    assert last.end() == 0, last.errors
    assert "resuming" in last.output, last.output
    assert_same(out, scored.place / "scored")
    shutil.rmtree(out)


def test_full_disk_keeps_what_is_scored(scored):
    script = start(scored, (full_disk, 0))
    assert script.end() == 2
    assert script.errors.startswith("error: cannot write") and script.errors.count("\n") == 1, script.errors
    shutil.rmtree(scored.place / "out")
