"""What the tests of several papers' scripts share."""

import base64
import io
import os
import re
import textwrap
from collections.abc import Callable, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from PIL import Image


def refused(capsys: Any, call: Callable, argv: Sequence, *words: Any, keeps: Path | None = None) -> None:
    """The call ends with status 2 and one line on stderr that holds all `words`.

    keeps: a folder whose files, but for logs, have to stay as they are, and in which no malicious pickle may have run.
    """
    before = _state(keeps)
    capsys.readouterr()
    assert call([str(part) for part in argv]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1, error
    for word in words:
        assert str(word) in error, error
    after = _state(keeps)
    assert not (changed := [path for path in before if after.get(path) != before[path]]), changed
    assert not any(path.name == RAN for path in after), "code in a file was run"


def run_readme(paper: str, *replacements: tuple[str, str]) -> dict[str, Any]:
    """Run the lines of Python in a paper's README, with its paths replaced; returns their names."""
    text = (Path(__file__).parents[1] / paper / "README.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"In Python, .*:\n\n((?:    .*\n|\n)+)", text)
    code = textwrap.dedent(block)
    for old, new in replacements:
        assert old in code
        code = code.replace(old, new)
    names: dict[str, Any] = {}
    exec(code, names)
    return names


RAN = "a-pickle-was-run"  # what the malicious pickles of tests/bad_input make


def _state(folder: Path | None) -> dict[Path, tuple[int, ...]]:
    """What tells whether the files below a folder were written: inode, time and size."""
    found = {}
    for parent, _, names in os.walk(folder) if folder else ():
        for path in (Path(parent, name) for name in names):
            # A training that is finished writes its summary again, the same.
            if path.suffix != ".log" and path.name != "training.json":
                status = path.lstat()
                found[path] = status.st_ino, status.st_mtime_ns, status.st_size
    return found


class Report(HTMLParser):
    """A report that was read: its tags are closed in order, its pictures are inside it and sound.

    texts: all texts; captions: of the pictures, in order; sizes: the pictures' (width, height) in pixels.
    """

    def __init__(self, path: Path):
        super().__init__()
        self.open: list[str] = []
        self.texts: list[str] = []
        self.captions: list[str] = []
        self.sizes: list[tuple[int, int]] = []
        text = path.read_text(encoding="utf-8")
        assert not re.findall(r"(?:src|href)=\"(?!data:|#)", text) and "://" not in text
        assert "viewport" in text and "prefers-color-scheme: dark" in text
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list) -> None:
        if tag == "img":
            found = dict(attrs)
            with Image.open(io.BytesIO(base64.b64decode(found["src"].split("base64,")[1]))) as image:
                image.load()
                assert image.size == (int(found["width"]), int(found["height"]))
                self.sizes.append(image.size)
            self.captions.append(found["alt"])
        elif tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)
