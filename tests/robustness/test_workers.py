"""Whoever works for a program and fails, a thread or a process, ends it with a reason: nobody waits forever."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from common.files import UserError, read_tensors
from crn.training.dataset import Images, Item
from memae.data.video_datasets import load_batches
from tests.robustness.methods import METHODS
from tests.robustness.processes import ROOT


@pytest.mark.parametrize("threads", [0, 2])
def test_images_that_vanish_are_named_by_the_threads_that_miss_them(tmp_path, threads):
    images = Images([Item("a.png", tmp_path / "a.png")], "MVTec", 32, threads=threads)
    with pytest.raises(UserError, match=r"a\.png: no such file"):
        list(images.batches([[0]] * 5))


@pytest.mark.parametrize("threads", [0, 2])
def test_threads_that_assemble_clips_pass_on_what_ends_them(threads):
    class Broken:
        def batch(self, indices):
            if indices == [3]:
                raise MemoryError
            return indices

    batches = load_batches(Broken(), [[k] for k in range(5)], threads)
    assert [next(batches) for _ in range(3)] == [[0], [1], [2]]
    with pytest.raises(MemoryError):
        next(batches)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "rank", "script"), [("riad", 1, "riad/run.py"), ("crrn", 0, "crrn/1_train.py")])
def test_a_killed_process_of_several_ends_the_training_and_it_can_be_continued(name, rank, script, tmp_path):
    """torchrun with two processes, one of which is killed; one process then goes on alone."""
    method = next(method for method in METHODS if method.name == name)
    method.make_data(tmp_path)
    argv, state = [str(ROOT / script), *method.argv(tmp_path, 200)], tmp_path / "run" / method.state
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", *argv]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 300
    while not (state.exists() and epoch_of(state) > 0):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    one = f"\0LOCAL_RANK={rank}\0".encode()
    victim = next(child for child in children if one in Path(f"/proc/{child}/environ").read_bytes())
    os.kill(int(victim), signal.SIGKILL)
    errors = process.communicate(timeout=60)[1]
    assert process.returncode != 0 and "Signal 9 (SIGKILL)" in errors
    assert "error: another process of this run has ended; run the same command to resume" in errors
    assert not any(Path(f"/proc/{child}").exists() for child in children)
    epoch = epoch_of(state)
    alone = subprocess.run(
        [sys.executable, argv[0], *method.argv(tmp_path, epoch + 2)], cwd=tmp_path, capture_output=True, text=True,
        timeout=300,
    )  # fmt: skip
    assert alone.returncode == 0 and "resuming" in alone.stdout, alone.stderr
    assert epoch_of(state) > epoch


def epoch_of(state: Path) -> int:
    return read_tensors(state)["epoch"]
