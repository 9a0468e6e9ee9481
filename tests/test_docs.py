"""The pictures in docs: small enough for a README, and what their program draws."""

import re
from pathlib import Path

import pytest

from docs import draw

DOCS = Path(__file__).parents[1] / "docs"
PAPERS = ["crn", "crrn", "csflow", "memae", "riad"]


def test_pictures_are_small():
    pictures = [path for paper in PAPERS for path in DOCS.glob(f"{paper}*.*")]
    assert len(pictures) >= 2 * len(PAPERS)  # of the method, and of what it finds
    assert {path.name: path.stat().st_size for path in pictures if path.stat().st_size >= 60_000} == {}


def test_drawn_again_they_are_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(draw, "HERE", tmp_path)
    draw.main([])
    assert sorted(path.stem for path in tmp_path.iterdir()) == PAPERS
    for path in tmp_path.iterdir():
        assert path.read_bytes() == (DOCS / path.name).read_bytes(), f"{path.name}: run python docs/draw.py"


@pytest.mark.parametrize("paper", PAPERS)
def test_the_code_that_a_picture_shows_is_there(paper):
    folder = None
    for file in re.findall(r"[\w/]+\.py", getattr(draw, paper).__doc__):  # without a folder: in that of the one before
        path = DOCS.parent / file if "/" in file else folder / file
        assert path.exists(), file
        folder = path.parent
    assert folder
