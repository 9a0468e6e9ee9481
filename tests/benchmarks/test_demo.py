"""The demo's table and page, from methods that are done at once; and each of its commands has options that exist."""

import importlib
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import demo
from common.report import Section
from common.runtime import UserError
from tests.helpers import refused


def test_table_and_page(tmp_path, monkeypatch, capsys):
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "p.png")

    def method(output):
        return (
            "some data",
            "image AUROC",
            0.98765,
            Section("A method", ["About it."], pictures=[(tmp_path / "p.png", "p")]),
        )

    monkeypatch.setattr(demo, "METHODS", {"one": method, "other": method})
    assert demo.main(["--output", str(tmp_path / "out")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].split() == ["method", "data", "metric", "value", "time"] and "0.9877" in lines[3]
    page = (tmp_path / "out/report.html").read_text()
    assert page.count("<img ") == 2 and page.count("some data") == 2 and "0.9877" in page
    assert [row["value"] for row in json.loads((tmp_path / "out/demo.json").read_text())] == [0.98765] * 2
    refused(capsys, demo.main, ["--only", "nothing"], "--only")


def test_a_script_that_fails_or_is_stopped(monkeypatch):
    class Ended:
        returncode = 2

    monkeypatch.setattr(demo.subprocess, "run", lambda *_, **__: Ended)
    with pytest.raises(UserError, match="status 2"):
        demo.run("csflow/main.py")
    Ended.returncode = 130
    with pytest.raises(KeyboardInterrupt):
        demo.run("csflow/main.py")


@pytest.mark.parametrize("name", demo.METHODS)
def test_the_scripts_know_the_options(name, tmp_path, monkeypatch, capsys):
    """Every command is given to its script's own main with an option more that it does not know: it names that one."""
    called = []

    def run(program, *options):
        path = Path(program)
        module = importlib.import_module(f"{path.parent}.{path.stem}")
        # The first thing that a parser complains about is what it does not know.
        refused(capsys, module.main, [*map(str, options), "--no_such_option"], "--no_such_option")
        called.append(program)

    monkeypatch.setattr(demo, "run", run)
    # Nothing was computed: its results are missing.
    with pytest.raises((UserError, OSError, ValueError)):
        demo.METHODS[name](tmp_path)
    assert called and all((demo.ROOT / program).exists() for program in called)
