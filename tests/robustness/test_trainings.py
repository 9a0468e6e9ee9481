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
from tests.robustness.methods import METHODS, Method, assert_same, content_of, files_of
from tests.robustness.processes import (
    Script,
    continuing_command,
    die_at_rename,
    full_disk,
    out_of_memory,
    without_privileges,
)

EPOCHS = 4


class Training:
    """One method's training in `run`, and an undisturbed one in `whole`."""

    def __init__(self, method: Method, place: Path, epochs: int):
        self.method, self.place, self.epochs = method, place, epochs
        self.run, self.whole = place / "run", place / "whole"
        method.make_data(place)
        self.finish()
        self.run.rename(self.whole)

    def start(self, *preparations, epochs: int | None = None) -> Script:
        argv = self.method.argv(self.place, epochs or self.epochs)
        return Script(self.method.module, argv, self.run, *preparations)

    def finish(self) -> str:
        """Run the command to its end; returns what it says."""
        script = self.start()
        assert script.end() == 0, script.errors
        return script.output

    @property
    def state(self) -> Path:
        return self.run / self.method.state

    def wait_for_saves(self, script: Script, count: int) -> None:
        """Until the state has been written `count` times, or the training has ended."""
        deadline = time.monotonic() + 60
        before = self.state.stat().st_mtime_ns if self.state.exists() else 0
        while count and script.running():
            assert time.monotonic() < deadline
            now = self.state.stat().st_mtime_ns if self.state.exists() else 0
            count, before = count - (now != before), now
            time.sleep(0.001)


@pytest.fixture(scope="module", params=METHODS, ids=lambda method: method.name)
def method(request):
    return request.param


@pytest.fixture(scope="module")
def undisturbed(method, tmp_path_factory):
    return Training(method, tmp_path_factory.mktemp(method.name), EPOCHS)


@pytest.fixture
def training(undisturbed):
    shutil.rmtree(undisturbed.run, ignore_errors=True)
    return undisturbed


@pytest.fixture
def trained(training):
    """As above, with a finished training in `run`."""
    shutil.copytree(training.whole, training.run)
    return training


def kill(training: Training, chance: random.Random, saves: int) -> bool:
    """Start the training and kill it at a random moment after so many saves; False where it has ended before."""
    script = training.start()
    training.wait_for_saves(script, saves)
    time.sleep(chance.uniform(0, 0.15 if saves else 0.6))
    status = script.end(signal.SIGKILL)
    assert status in (0, -signal.SIGKILL) and "Traceback" not in script.errors, script.errors
    for path in files_of(training.run).values() if training.state.exists() else ():
        content_of(path)  # is whole
    return status != 0


def killed_at_rename(training: Training, number: int, after: bool) -> bool:
    script = training.start((die_at_rename, (number, after)))
    status = script.end()
    assert status in (0, -signal.SIGKILL), script.errors
    for path in files_of(training.run).values() if training.state.exists() else ():
        content_of(path)
    return status != 0


def test_killed_trainings_end_with_the_same_numbers(training):
    for number, after in ((1, True), (2, False)):
        assert killed_at_rename(training, number, after)
    while not kill(training, random.Random(0), saves=1):  # on a busy machine, it may come too late
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
            killed = killed_at_rename(training, *moments.pop(0))
        else:
            killed = kill(training, chance, chance.choice((0, 1, 1, 2)))
        kills += killed
        if not killed:  # it has come to its end before: the next one begins anew
            assert_same(training.run, training.whole)
            shutil.rmtree(training.run)
    training.finish()
    assert_same(training.run, training.whole)


def test_a_second_run_is_refused_and_ctrl_c_tells_how_to_continue(training):
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
    argv = continuing_command(first.output)
    last = Script(training.method.module, argv, training.run)
    assert last.end() == 0, last.errors
    assert "continuing" in last.output or "already" in last.output
    assert_same(training.run, training.whole)


def refused(trained: Training, *preparations) -> str:
    """The one line with which more epochs are refused; what is saved stays."""
    before = trained.state.read_bytes()
    script = trained.start(*preparations, epochs=EPOCHS + 1)
    assert script.end() == 2
    assert script.errors.startswith("error: ") and script.errors.count("\n") == 1, script.errors
    assert trained.state.read_bytes() == before
    assert not list(trained.run.rglob(".writing-*"))
    return script.errors


@pytest.mark.parametrize("size", [0, 3000])
def test_full_disk_keeps_what_is_saved(trained, size):
    assert "cannot write" in refused(trained, (full_disk, size))


def test_read_only_folders_are_named_before_the_training(trained):
    before = {name: path.read_bytes() for name, path in files_of(trained.run).items()}
    folders = [trained.run, *(path for path in trained.run.rglob("*") if path.is_dir())]
    for folder in folders:
        folder.chmod(0o555)
    try:
        error = refused(trained, (without_privileges, None))
    finally:
        for folder in folders:
            folder.chmod(0o755)
    assert "cannot write in " in error and "permission denied" in error
    assert {name: path.read_bytes() for name, path in files_of(trained.run).items()} == before


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
