"""The check of GPUs, on the CPU: it computes what it says, and sees what differs."""

import json

import pytest

from benchmarks import gpu_check, speed


@pytest.fixture
def check(tmp_path, monkeypatch):
    """Run checks in this process; returns the exit status and what was found."""
    monkeypatch.setattr(speed, "peak", lambda *_: 1e9)
    monkeypatch.setattr(speed, "alone", lambda function, *arguments: function(*arguments))
    file = tmp_path / "gpu_check.json"

    def run(*argv):
        status = gpu_check.main([*argv, "--device", "cpu", "--output", str(file)])
        return status, json.loads(file.read_text())["checks"]

    return run


def test_steps_and_their_times(check, capsys):
    status, found = check("--only", "crrn", "memae", "--checks", "step", "speed")
    assert status == 0 and len(found) == 8 and {one["precision"] for one in found} == {"fp32", "bf16"}
    assert "8 of 8 checks passed" in capsys.readouterr().out


@pytest.mark.parametrize("method", [pytest.param(m, marks=pytest.mark.slow) for m in ("csflow", "crn", "riad")])
def test_steps_of_the_others(check, method):
    assert check("--only", method, "--checks", "step")[0] == 0


def test_what_differs_is_seen(check, monkeypatch, capsys):
    monkeypatch.setitem(gpu_check.BOUNDS, "bf16", 1e-5)
    status, found = check("--only", "crrn", "--checks", "step", "--precisions", "bf16")
    assert status == 1 and found[0]["result"] == "FAILED" and "more than 1e-05" in found[0]["found"]
    monkeypatch.setattr(gpu_check, "difference", lambda *_: [float("nan"), 0.0])
    assert check("--only", "crrn", "--checks", "step", "--precisions", "fp32")[0] == 1

    def broken(*_):
        raise RuntimeError("CUDA error:\nan illegal memory access")

    monkeypatch.setattr(gpu_check, "difference", broken)
    assert check("--only", "crrn", "--checks", "step", "--precisions", "fp32")[0] == 1
    assert "FAILED, RuntimeError: CUDA error: an illegal memory access" in capsys.readouterr().out


@pytest.mark.slow  # starts each of the method's scripts
@pytest.mark.parametrize("method", list(gpu_check.PROGRAMS))
def test_scripts(check, method):
    argv = ("--only", method, "--precisions", "bf16", "--checks", "resume", "scoring", "export", "torchrun")
    status, found = check(*argv)
    assert status == 0 and len(found) == 5, found
