"""The benchmarks measure what they say, at sizes that take no time."""

import json
import os

import pytest

from benchmarks import speed
from common.files import UserError
from tests.helpers import refused

TINY = {
    "csflow": {"image": 128, "hidden": 4, "batch": 1},
    "crrn": {"height": 13, "width": 17, "boards": 2, "batch": 1},
    "memae": {"image": 16, "frames": 8, "items": 5, "batch": 2},
    "crn": {"image": 32, "batch": 1, "depth": 3},
    "riad": {"batch": 1, "scored": 2},
}


@pytest.fixture(autouse=True)
def known_peak(monkeypatch):
    monkeypatch.setattr(speed, "peak", lambda *_: 1e9)


def measured(method, task):
    return speed.measure((method, task, "fp32", "channels_last", "cpu", TINY[method], 1, 0))


@pytest.mark.parametrize(
    "method", [pytest.param(m, marks=pytest.mark.slow if m in ("crn", "riad") else ()) for m in speed.METHODS]
)
def test_every_method_can_be_measured(method):
    step, scoring = (measured(method, task) for task in speed.TASKS)
    for result in (step, scoring):
        assert 0 < result["min_s"] <= result["median_s"] <= result["max_s"] and result["repeats"] == 1
        assert result["gflop"] > 0 and result["items"] == (2 if method in ("memae", "riad") else 1)
        assert result["share_of_peak"] == pytest.approx(result["gflop"] / result["median_s"])
        assert result["memory_gib"] > 0.05
    assert method != "crrn" or 2.5 < step["gflop"] / scoring["gflop"] < 3.5  # a step is about three forward passes


def test_table_and_file(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(speed, "alone", lambda measure, case: measure((*case[:5], TINY["crrn"], 1, 0)))
    argv = ["--only", "crrn", "--precisions", "fp32", "--output", str(tmp_path / "speed.json"), "--device", "cpu"]
    assert speed.main(argv) == 0
    output = capsys.readouterr().out
    assert output.count("| crrn | step | fp32 |") == 2 and output.count("| crrn | scoring | fp32 |") == 2
    assert len(json.loads((tmp_path / "speed.json").read_text())["cases"]) == 4

    # What is complete stays until its successor is.
    def stopped(*_):
        raise KeyboardInterrupt

    before = (tmp_path / "speed.json").read_text()
    monkeypatch.setattr(speed, "alone", stopped)
    assert speed.main(argv) == 130 and (tmp_path / "speed.json").read_text() == before
    refused(capsys, speed.main, ["--repeats", "4"], "--repeats")
    refused(capsys, speed.main, ["--precisions", "fp16", "--device", "cpu"], "fp16")
    refused(capsys, speed.main, ["--only", "nothing"], "--only")


def test_a_process_that_dies_is_reported():
    with pytest.raises(UserError, match="the process that measures died"):
        speed.alone(os._exit, 9)
