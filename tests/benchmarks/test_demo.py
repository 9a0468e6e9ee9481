"""The demo's table and page, from methods that are done at once; and each of its commands has options that exist."""

import json

import numpy as np
import pytest
from PIL import Image

from benchmarks import demo
from common.files import UserError
from common.report import Section, write_report
from tests.benchmarks.test_accuracy import check_commands
from tests.helpers import Report, refused


def method(title, epochs):
    """One that has two commands, "train" and "test"."""
    lines = f"train {epochs} {{folder}}", f"test {epochs} {{folder}}"
    results = [(title, "results.json", "one", 0), ("a baseline", "results.json", "baseline")]
    return demo.Method(title, "some data", 60, lines, "image AUROC", results, "report.html")


@pytest.fixture
def ran(tmp_path, monkeypatch):
    """The commands that were run, of two methods whose code is in tmp_path/repo."""
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "p.png")
    calls = []

    def run(program, epochs, folder):
        folder = demo.Path(folder)
        calls.append((program, folder.name.split("_")[0]))
        if program == "test":
            pictures = [(tmp_path / "p.png", "Best found: p"), (tmp_path / "p.png", "Worst missed: p")]
            write_report(folder / "report.html", f"Page of {folder.name}", [Section("About", pictures=pictures)])
            (folder / "results.json").write_text('{"one": [0.98765], "baseline": 0.5}')

    for name in ("train", "test", "one/model.py", "other/model.py", "common/files.py"):
        (tmp_path / "repo" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "repo" / name).write_text("1")
    monkeypatch.setattr(demo, "ROOT", tmp_path / "repo")
    monkeypatch.setattr(demo, "run", run)
    monkeypatch.setattr(demo, "METHODS", {"one": method("One", 1), "other": method("Other", 2)})
    return calls


def test_table_and_page(tmp_path, ran, capsys):
    assert demo.main(["--output", str(tmp_path / "out")]) == 0
    assert ran == [("train", "one"), ("test", "one"), ("train", "other"), ("test", "other")]
    lines = capsys.readouterr().out.splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("method"))
    assert lines[first].split() == ["method", "data", "metric", "value", "time"]
    assert [line.split()[0] for line in lines[first + 1 : first + 5]] == ["One", "a", "Other", "a"]
    assert lines[first + 1].endswith("0.9877  0 s") and lines[first + 2].endswith("0.5000")
    page = Report(tmp_path / "out/report.html")
    assert len(page.captions) == 4 and page.texts.count("some data") == 4 and "0.9877" in page.texts
    assert [row["value"] for row in json.loads((tmp_path / "out/demo.json").read_text())] == [0.98765, 0.5] * 2
    overview = np.asarray(Image.open(tmp_path / "out/overview.jpg").convert("L"))
    assert overview.shape[1] > 300 and (overview < 30).mean() > 0.2  # the pictures are black
    refused(capsys, demo.main, ["--only", "nothing"], "--only")


def test_what_is_finished_is_not_run_again(tmp_path, ran, monkeypatch, capsys):
    argv, whole = ["--output", str(tmp_path / "out")], demo.run

    def stopped(program, epochs, folder):
        if (program, epochs) == ("test", "2"):
            raise KeyboardInterrupt
        whole(program, epochs, folder)
        if (program, epochs) == ("test", "1"):
            raise KeyboardInterrupt(0)  # asked for as it came to its end all the same

    monkeypatch.setattr(demo, "run", stopped)
    for done in ([("train", "one"), ("test", "one")], [("train", "other")]):
        ran.clear()
        assert demo.main(argv) == 130 and ran == done
    assert "run the same command to resume" in capsys.readouterr().out and not (tmp_path / "out/report.html").exists()

    monkeypatch.setattr(demo, "run", whole)
    ran.clear()
    assert demo.main(argv) == 0 and ran == [("test", "other")]
    told = [line for line in capsys.readouterr().out.splitlines() if "taken over" in line]
    assert len(told) == 2 and "2 of 2 steps" in told[0] and "1 of 2 steps" in told[1]
    ran.clear()
    assert demo.main(argv) == 0 and ran == []
    # Other options, and other code, are other results, in folders of their own.
    monkeypatch.setitem(demo.METHODS, "one", method("One", 3))
    assert demo.main(argv) == 0 and ran == [("train", "one"), ("test", "one")]
    for file, again in (("one/model.py", {"one"}), ("common/files.py", {"one", "other"}), ("test", {"one", "other"})):
        (tmp_path / "repo" / file).write_text("2")
        ran.clear()
        assert demo.main(argv) == 0 and {name for _, name in ran} == again
    assert len(list((tmp_path / "out").glob("one_*"))) == 5


@pytest.mark.parametrize("name", demo.METHODS)
def test_the_scripts_know_the_options(name, tmp_path, capsys):
    check_commands(capsys, demo.commands(demo.METHODS[name].lines, folder=tmp_path))
    with pytest.raises(UserError):  # nothing was computed: its results are missing
        demo.numbers_of(demo.METHODS[name], tmp_path)
