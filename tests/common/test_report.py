"""A report is one sound page that needs nothing else."""

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from common.files import UserError
from common.report import Section, write_report


class Page(HTMLParser):
    """Checks that tags are closed in order; keeps texts and pictures."""

    def __init__(self, text):
        super().__init__()
        self.open, self.images, self.texts = [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        if tag == "img":
            self.images.append(dict(attributes))
        elif tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def test_report(tmp_path):
    pixels = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    for name in ("a.png", "b.jpg"):
        Image.fromarray(pixels).save(tmp_path / name)
    sections = [
        Section("Data <& co>", ["Two lines.", 'A "quote".']),
        Section("Numbers", (), ["name", "value"], [["AUROC", 0.123456], ["none", None], ["<b>", 3]]),
        Section("Pictures", pictures=[(tmp_path / "a.png", 'first "one"'), (tmp_path / "b.jpg", "second")]),
    ]
    write_report(tmp_path / "new/report.html", "A <title>", sections)
    text = (tmp_path / "new/report.html").read_text(encoding="utf-8")
    page = Page(text)
    for wanted in ("A <title>", "Data <& co>", 'A "quote".', "0.1235", "–", "<b>", "3"):
        assert wanted in page.texts
    assert not re.findall(r"(?:src|href)=\"(?!data:)", text) and "http" not in text
    assert "viewport" in text and "prefers-color-scheme: dark" in text
    assert [image["alt"] for image in page.images] == ['first "one"', "second"]
    for image in page.images:
        data = base64.b64decode(image["src"].split("base64,")[1])
        assert Image.open(io.BytesIO(data)).size == (4, 4)


def test_pictures_that_cannot_be_shown(tmp_path):
    for name in ("none.png", "text.svg"):
        with pytest.raises(UserError, match=name):
            write_report(tmp_path / "r.html", "t", [Section("s", pictures=[(tmp_path / name, "c")])])
    assert not (tmp_path / "r.html").exists()
