"""The benchmarks measure what they say, at sizes that take no time."""

import json

import pytest

from benchmarks import speed
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


@pytest.mark.parametrize("task", speed.TASKS)
@pytest.mark.parametrize("method", speed.METHODS)
def test_every_method_can_be_measured(method, task):
    result = speed.measure((method, task, "fp32", "channels_last", "cpu", TINY[method], 1, 0))
    assert 0 < result["min_s"] <= result["median_s"] <= result["max_s"] and result["repeats"] == 1
    assert result["gflop"] > 0 and result["items"] == (2 if method in ("memae", "riad") else 1)
    assert result["share_of_peak"] == pytest.approx(result["gflop"] / result["median_s"])
    assert result["memory_gib"] > 0.05


def test_operations_are_those_of_the_network():
    """A training step costs about three times the forward pass."""
    scoring, step = (
        speed.measure(("crrn", task, "fp32", "contiguous", "cpu", TINY["crrn"], 1, 0))["gflop"]
        for task in ("scoring", "step")
    )
    assert 2.5 < step / scoring < 3.5


def test_table_and_file(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(speed, "alone", lambda case: speed.measure((*case[:5], TINY["riad"], 1, 0)))
    argv = ["--only", "riad", "--precisions", "fp32", "--output", str(tmp_path / "speed.json"), "--device", "cpu"]
    assert speed.main(argv) == 0
    output = capsys.readouterr().out
    assert output.count("| riad | step | fp32 |") == 2 and output.count("| riad | scoring | fp32 |") == 2
    assert len(json.loads((tmp_path / "speed.json").read_text())["cases"]) == 4

    refused(capsys, speed.main, ["--repeats", "4"], "--repeats")
    refused(capsys, speed.main, ["--precisions", "fp16", "--device", "cpu"], "fp16")
    refused(capsys, speed.main, ["--only", "nothing"], "--only")


def test_what_is_complete_stays_until_its_successor_is(tmp_path, monkeypatch):
    calls = iter(["a case"])

    def stopped(case):
        for found in calls:
            return found
        raise KeyboardInterrupt

    monkeypatch.setattr(speed, "alone", stopped)
    monkeypatch.setattr(speed, "line", str)
    (tmp_path / "speed.json").write_text("complete")
    assert speed.main(["--only", "memae", "--device", "cpu", "--output", str(tmp_path / "speed.json")]) == 130
    assert (tmp_path / "speed.json").read_text() == "complete"
