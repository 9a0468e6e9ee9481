"""What happens to long trainings on shared machines: kills, Ctrl-C, a second run, full disks, read-only folders.

After each of them the same command ends as if nothing had happened.
"""

import os
import pickle
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch

from common import checkpoint
from tests.robustness.methods import Training, assert_same, content_of, files_of
from tests.robustness.processes import continuing_command, die_at_rename, full_disk, out_of_memory, read_only


def killed(training: Training, *preparations, saves: int | None = None, delay: float = 0.0) -> bool:
    """Start the training, and kill it a while after so many saves, if given; False where it has ended before."""
    script = training.start(*preparations)
    if saves is not None:
        training.wait_for_saves(script, saves)
        time.sleep(delay)
    status = script.end(None if saves is None else signal.SIGKILL)
    assert status in (0, -signal.SIGKILL) and "Traceback" not in script.errors, script.errors
    for path in files_of(training.run).values() if training.state.exists() else ():
        content_of(path)  # is whole
    return status != 0


def test_killed_trainings_end_with_the_same_numbers(training):
    for moment in ((1, True), (2, False)):
        assert killed(training, (die_at_rename, moment))
    while not killed(training, saves=1):  # on a busy machine, it may come too late
        shutil.rmtree(training.run)
    assert training.state.exists()
    training.finish()
    assert_same(training.run, training.whole)


@pytest.mark.slow
def test_twenty_kills_at_random_moments_and_some_in_the_midst_of_saving(method, tmp_path):
    training, chance, kills = Training(method, tmp_path, 12), random.Random(method.name), 0
    moments = [(number, after) for number in range(1, 6) for after in (False, True)]
    while kills < 30:
        if moments:
            died = killed(training, (die_at_rename, moments.pop(0)))
        else:
            saves = chance.choice((0, 1, 1, 2))
            died = killed(training, saves=saves, delay=chance.uniform(0, 0.15 if saves else 0.6))
        kills += died
        if not died:  # it has come to its end before: the next one begins anew
            assert_same(training.run, training.whole)
            shutil.rmtree(training.run)
    training.finish()
    assert_same(training.run, training.whole)


def test_a_second_run_is_refused_and_ctrl_c_tells_how_to_resume(training):
    first = training.start()
    training.wait_for_saves(first, 2)  # RIAD's first state precedes the training
    os.kill(first.process.pid, signal.SIGSTOP)  # or it has ended before the second one has begun
    second = training.start()
    assert second.end() == 2 and "another run is writing to" in second.errors, second.errors
    assert second.errors.count("\n") == 1
    for number in (signal.SIGINT, signal.SIGCONT):
        os.kill(first.process.pid, number)
    assert first.end() == 130, first.errors
    assert "Traceback" not in first.errors and "stopping after this step" in first.errors
    said = training.finish(continuing_command(first.output, training.argv))
    assert "resuming" in said or "already" in said
    assert_same(training.run, training.whole)


def refused(trained: Training, *preparations) -> str:
    """The one line with which more epochs are refused; what is saved stays."""
    tables = [path for path in trained.run.rglob("*.csv") if path.name != "log.csv"]  # MemAE's, cut when it resumes
    before = {path: path.read_bytes() for path in [trained.state, *tables]}
    script = trained.start(*preparations, more=1)
    status = script.end()
    for folder in [trained.run, *(path for path in trained.run.rglob("*") if path.is_dir())]:
        folder.chmod(0o755)
    assert status == 2 and script.errors.startswith("error: ") and script.errors.count("\n") == 1, script.errors
    assert before == {path: path.read_bytes() for path in before} and not list(trained.run.rglob(".writing-*"))
    return script.errors


@pytest.mark.parametrize("size", [0, 3000])
def test_full_disk_keeps_what_is_saved(trained, size):
    assert "cannot write" in refused(trained, (full_disk, size))


def test_read_only_folders_are_named_before_the_training(trained):
    error = refused(trained, (read_only, trained.run))
    assert "cannot write in " in error and "permission denied" in error


def test_memory_that_is_short_names_the_option_that_needs_less(trained):
    error = refused(trained, (out_of_memory, None))
    assert "not enough memory on the GPU" in error and f"a smaller {trained.method.lower}" in error


class Malicious:
    """Writes the file `trace` when it is unpickled."""

    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce__(self):
        return Path.touch, (self.trace,)


def test_checkpoints_with_code_and_of_newer_versions_are_refused(trained, tmp_path):
    content = torch.load(trained.state, weights_only=True)
    torch.save({**content, "format": checkpoint.FORMAT + 1}, trained.state)
    assert "newer version" in refused(trained)
    torch.save({**content, "settings": Malicious(tmp_path / "trace")}, trained.state)
    assert "is refused" in refused(trained)
    trained.state.write_bytes(pickle.dumps(Malicious(tmp_path / "trace")))
    assert "is refused" in refused(trained)
    assert not (tmp_path / "trace").exists()
    pickle.loads(trained.state.read_bytes())
    assert (tmp_path / "trace").exists()  # it would have run
