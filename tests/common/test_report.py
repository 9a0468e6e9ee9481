"""A report is one sound page that needs nothing else."""

import math

import numpy as np
import pytest
from PIL import Image

from common.files import UserError
from common.report import Section, cases, write_image_report, write_report
from tests.helpers import Report

RESULTS = {"data": "synthetic", "image_auroc": 0.5, "threshold": {"image": 1.1, "promised_fpr": 0.05}}


@pytest.fixture
def pictures(tmp_path):
    pixels = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    for name in ("a.png", "b.jpg"):
        Image.fromarray(pixels).save(tmp_path / name)
    return [(tmp_path / "a.png", 'first "one"'), (tmp_path / "b.jpg", "second")]


def test_report(tmp_path, pictures, capsys):
    sections = [
        Section("Data <& co>", ["Two lines.", 'A "quote".']),
        Section("Numbers", (), ["name", "value"], [["AUROC", 0.123456], ["none", None], ["<b>", 3], ["?", np.nan]]),
        Section("Pictures", pictures=pictures),
    ]
    write_report(tmp_path / "new/report.html", "A <title>", sections)
    assert capsys.readouterr().out == f"report: {tmp_path / 'new/report.html'}\n"
    page = Report(tmp_path / "new/report.html")
    for wanted in ("A <title>", "Data <& co>", 'A "quote".', "0.1235", "–", "<b>", "3"):
        assert wanted in page.texts
    assert page.texts.count("–") == 2
    assert page.captions == ['first "one"', "second"] and page.sizes == [(4, 4)] * 2


def test_pages_of_others_are_taken_in(tmp_path, pictures):
    for name in ("one", "other"):
        write_report(tmp_path / f"{name}.html", f"<{name}>", [Section("Inner", pictures=pictures)])
    pages = [tmp_path / "one.html", tmp_path / "other.html"]
    write_report(tmp_path / "all.html", "All", [Section("Overview", ["Both."])], pages)
    page = Report(tmp_path / "all.html")
    assert len(page.captions) == 4
    text = (tmp_path / "all.html").read_text(encoding="utf-8")
    assert text.count("<h1>") == 1 and "<h2>&lt;other&gt;</h2>" in text and text.count("<h3>Inner</h3>") == 2
    for number, name in enumerate(("one", "other")):
        assert f'<a href="#part{number}">&lt;{name}&gt;</a>' in text and f'<section id="part{number}">' in text
    (tmp_path / "other.html").write_text("<p>something</p>")
    for path in (tmp_path / "other.html", tmp_path / "none.html"):
        with pytest.raises(UserError, match=path.name):
            write_report(tmp_path / "new.html", "All", [], [path])


def test_pictures_that_cannot_be_shown(tmp_path):
    (tmp_path / "text.svg").write_text("<svg/>")
    Image.new("RGB", (4, 4)).save(tmp_path / "picture.bmp")
    for name in ("none.png", "text.svg", "picture.bmp"):
        with pytest.raises(UserError, match=name):
            write_report(tmp_path / "r.html", "t", [Section("s", pictures=[(tmp_path / name, "c")])])
    assert not (tmp_path / "r.html").exists()


def test_cases():
    labels, scores = np.array([0, 1, 0, 2, 1]), np.array([0.5, 0.9, 0.1, 0.2, 0.7])
    best, missed, alarms = cases(labels, scores, count=2).values()
    assert (best, missed, alarms) == ([1, 4], [3, 4], [0, 2])
    assert list(map(len, cases(labels, scores, None).values())) == [3, 3, 2]
    assert len(cases(labels[labels > 0], scores[labels > 0])) == 2 and cases(labels[:0], scores[:0]) == {}


def test_image_report(tmp_path):
    asked = []

    def column(i):
        asked.append(i)
        mask = np.eye(8, dtype=bool) if i % 2 else None
        return np.full((16, 12, 3), 9 * i, np.uint8), np.full((4, 3), i, np.float32), f"image {i}", mask

    labels, scores = np.arange(9) % 2, np.arange(9) / 4
    write_image_report(
        tmp_path / "report.html", "A method", RESULTS, ["Trained for 3 epochs."],
        [np.zeros((16, 12, 3), np.uint8)] * 3, labels, scores, column, more=[("a loss", 0.25)],
    )  # fmt: skip
    assert sorted(asked) == [1, 3, 4, 5, 6, 7, 8]  # each once: three good, and the four defective images
    page = Report(tmp_path / "report.html")
    assert len(page.captions) == 6 and "synthetic" in " ".join(page.texts)
    for name, value in (("image AUROC", "0.5"), ("a loss", "0.25"), ("threshold: promised FPR", "0.05")):
        assert page.texts[page.texts.index(name) :][:2] == [name, value]
    assert "pixel AUROC" not in page.texts
    assert [name.split(":")[0] for name in page.captions[3:]] == [
        "Best found", "Worst missed", "Nearest to a false alarm",
    ]  # fmt: skip
    assert list(tmp_path.iterdir()) == [tmp_path / "report.html"]


def test_a_report_without_test_images(tmp_path):
    """Says so, and shows no table of dashes."""
    results = {
        "data": "own",
        "image_auroc": None,
        "threshold": {"image": 2.5, "promised_fpr": 0.2, "detection_rate": math.nan},
    }
    none, good = np.empty(0), [np.zeros((8, 8, 3), np.uint8)]
    write_image_report(tmp_path / "report.html", "Own", results, [], good, none, none, None)
    page = Report(tmp_path / "report.html")
    assert "–" not in page.texts and "2.5" in page.texts and any("nothing is measured" in text for text in page.texts)
