"""Two gloo processes, started as a user starts them, against one."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from common import distributed

PROGRAM = Path(__file__).with_name("distributed_program.py")


def test_two_processes(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", PROGRAM, tmp_path]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("said once") == 1 and ended.stderr.count("not shown by the others: 1/2") == 1
    one, two = (json.loads((tmp_path / f"result_{rank}.json").read_text()) for rank in range(2))
    assert one["found"] == ["met_by_0"] and two["found"] == ["met_by_0", "met_by_1"]
    assert json.loads((tmp_path / "shared.json").read_text()) == 0
    assert (one["few"], two["few"]) == (2.0, 0.0)
    for result in (one, two):
        assert result["size"] == 2
        assert result["loss"][0] == pytest.approx(result["loss"][1], rel=1e-6)
        assert result["by_wrapper"] < 1e-6
        assert result["anywhere"] == [True, False]
        assert result["gathered"] == [[0, 1, 2, 3, 4], [0]]
        assert "--sync_bn" in result["refusal"]


@pytest.mark.slow
def test_one_process_that_fails_ends_all():
    """At once, not after the day for which processes wait for one another."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", PROGRAM, "fails"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ended.returncode and "error: the disk is full\n" in ended.stderr


def test_one_process_needs_nothing():
    device = torch.device("cpu")
    assert distributed.join(device) is device and (distributed.rank(), distributed.size()) == (0, 1)
    assert distributed.weighted_share([1, 2, 3]) == ([1, 2, 3], 1.0)
    assert distributed.mean_of(2.5, device) == 2.5 and distributed.anywhere(True, device)
    model = torch.nn.Linear(1, 1)
    assert distributed.parallel(model) is model
    with distributed.first_alone():
        pass
