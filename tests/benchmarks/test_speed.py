"""The benchmarks measure what they say, at sizes that take no time."""

import json
import os

import pytest

from benchmarks import speed
from benchmarks.scripts import PROGRAMS
from common.files import UserError
from tests.helpers import refused


@pytest.fixture(autouse=True)
def known_peak(monkeypatch):
    monkeypatch.setattr(speed, "peak", lambda *_: 1e9)


def measured(method, task):
    return speed.measure((method, task, "fp32", "channels_last", "cpu", speed.TINY[method], 1, 0))


@pytest.mark.parametrize(
    "method", [pytest.param(m, marks=pytest.mark.slow if m in ("crn", "riad") else ()) for m in speed.METHODS]
)
def test_every_method_can_be_measured(method):
    step, scoring = (measured(method, task) for task in speed.NETWORK)
    for result in (step, scoring):
        assert 0 < result["min_s"] <= result["median_s"] <= result["max_s"] and result["repeats"] == 1
        assert result["gflop"] > 0 and result["items"] == (2 if method in ("memae", "riad") else 1)
        assert result["share_of_peak"] == pytest.approx(result["gflop"] / result["median_s"])
        assert result["memory_gib"] > 0.05
    assert method != "crrn" or 2.5 < step["gflop"] / scoring["gflop"] < 3.5  # a step is about three forward passes


def test_table_and_file(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(speed, "alone", lambda measure, case: measure((*case[:5], speed.TINY["crrn"], 1, 0)))
    argv = ["--only", "crrn", "--precisions", "fp32", "--output", str(tmp_path / "speed.json"), "--device", "cpu"]
    argv += ["--tasks", "step", "scoring"]
    assert speed.main(argv) == 0
    output = capsys.readouterr().out
    assert output.count("| crrn | step | fp32 |") == 2 and output.count("| crrn | scoring | fp32 |") == 2
    assert output.count(" * |") == 2 and " x) |" not in output  # the best layout of each; nothing was recorded before
    cases = json.loads((tmp_path / "speed.json").read_text())["cases"]
    assert len(cases) == 4
    assert speed.main(argv) == 0 and capsys.readouterr().out.count(" x) |") == 4
    (tmp_path / "other.json").write_text('{"cases": 1}')
    refused(capsys, speed.main, [*argv, "--before", str(tmp_path / "other.json")], "other.json")
    refused(capsys, speed.main, [*argv, "--before", str(tmp_path / "none.json")], "none.json")

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


def test_features_and_help(monkeypatch):
    sizes = {"image": 128, "batch": 2}
    found = speed.measure(("csflow", "features", "fp32", "own", "cpu", sizes, 1, 0))
    assert found["items"] == 2 and found["gflop"] > 0
    monkeypatch.setattr(speed, "run_quietly", lambda *command, **_: 0.5 if "--help" in command else 1)
    assert "| help |  |  | 0.500 s |" in speed.row(speed.help_text(2), [])


@pytest.mark.slow  # seconds for each start of a program
def test_a_scoring_program():
    plain, drawn = speed.programs("riad", "cpu", PROGRAMS["riad"].tiny, 2, 1, 1)
    assert (plain["task"], drawn["task"]) == ("program, pictures none", "program, pictures all")
    assert plain["items"] == 2 and plain["start_s"] > 0.5 and plain["threads"] == 1


def test_a_program_that_fails_is_named():
    with pytest.raises(UserError, match=r"riad/run.py ended with status 2: error: .*--nothing"):
        speed.run_quietly("riad/run.py", "--nothing")
