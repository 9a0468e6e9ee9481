"""The load test (load.py) stops scoring twice, sees whether anything is lost, and samples the memory."""

import json

import pytest

from common.files import UserError
from tests.helpers import refused
from tests.robustness import load


def test_bad_options(tmp_path, capsys):
    refused(capsys, load.main, ["--share", "0"], "--share")
    (tmp_path / "riad").mkdir()
    refused(capsys, load.main, ["--only", "riad", "--folder", tmp_path], tmp_path / "riad", "exists already")


def test_what_is_scored_twice_is_noticed(tmp_path, monkeypatch):
    """A scorer that starts anew after each interruption."""
    scored = iter([3, 6, 2, 2])
    monkeypatch.setattr(load, "start", lambda *_: type("Done", (), {"wait": lambda self: 0})())
    monkeypatch.setattr(load, "score", lambda *_: [(0.0, 2, 100.0)])
    case = load.CASES["riad"]._replace(scored=lambda place: next(scored))
    with pytest.raises(UserError, match=r"has lost what was scored before an interruption: \[3, 6\], then 2"):
        load.measure(load.METHODS[-1], case, tmp_path, 10)


@pytest.mark.slow
def test_memory_stays_flat(tmp_path):
    assert load.main(["--only", "riad", "--share", "0.02", "--output", str(tmp_path / "load.json")]) == 0
    found = json.loads((tmp_path / "load.json").read_text())["riad"]
    assert found["items"] == 200 and 0 < found["kept"][0] <= found["kept"][1] < 200
    assert 100 < found["mib_at_a_fifth"] <= found["mib_highest_later"] < found["mib_at_a_fifth"] + 50
