"""A report as a browser shows it: on a phone and on a desk, light and dark."""

import numpy as np
import pytest
from PIL import Image

from common.report import Section, write_image_report, write_report
from tests import browser


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """With what could go wrong: wide pictures and tables, long words, pages within a page."""
    folder = tmp_path_factory.mktemp("report")
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (6, 64, 64, 3), np.uint8)
    write_image_report(
        folder / "one.html", "A method", {"data": "/a/" + "very_long_folder_name/" * 12}, [], images,
        np.arange(6) % 2, np.linspace(0, 1, 6), lambda i: (images[i], random.random((8, 8)), f"image {i}", None),
        more=[("a metric " * 20, 0.5)],
    )  # fmt: skip
    Image.fromarray(images[0]).resize((3000, 50)).save(folder / "wide.png")
    row = [f"a column {number}" for number in range(20)]
    overview = Section("Overview", (), row, [row] * 3, [(folder / "wide.png", "x" * 300)])
    write_report(folder / "report.html", "All methods", [overview], [folder / "one.html"])
    return folder / "report.html"


@pytest.fixture(scope="module")
def tab():
    if browser.program() is None:
        pytest.skip("no Chromium on this machine (apt-get install chromium)")
    with browser.browser() as page:
        yield page


@pytest.mark.slow
@pytest.mark.parametrize("scheme", browser.SCHEMES)
@pytest.mark.parametrize("view", browser.VIEWS)
def test_report_in_a_browser(report, tab, tmp_path, view, scheme):
    found = tab.show(report, view, scheme)
    assert found["images"] == 7 and found["missing"] == 0
    assert found["overflow"] <= 0 and found["wide"] == []
    assert found["problems"] == [] and found["requests"] == []
    assert found["dark"] == (scheme == "dark")
    tab.screenshot(tmp_path / "shot.png")
    with Image.open(tmp_path / "shot.png") as shot:
        assert shot.size == browser.VIEWS[view]
        corner = np.asarray(shot.convert("L"))[:8, :8].mean()
    text = float(np.mean([int(part) for part in found["colour"].strip("rgb()").split(",")]))
    assert (corner < 60 and text > 180) if scheme == "dark" else (corner > 240 and text < 80)


@pytest.mark.slow
def test_a_bad_page_is_seen(tab, tmp_path):
    (tmp_path / "bad.html").write_text(
        "<!doctype html><p>text<div style='width: 3000px'>wide</div><img src='none.png'><script>nothing()</script>"
    )
    found = tab.show(tmp_path / "bad.html", "desktop", "light")
    assert found["missing"] == 1 and found["overflow"] > 1000 and len(found["wide"]) == 1
    assert found["requests"] == [(tmp_path / "none.png").as_uri()]
    assert {event["method"] for event in found["problems"]} >= {"Runtime.exceptionThrown", "Network.loadingFailed"}
