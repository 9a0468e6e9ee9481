"""Figures show what they are given, whatever its size and length; the file's name decides their format."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image

from common import report
from common.files import UserError
from common.report import colour_range, map_sheet, outlined, overlay, roc_figure, score_histogram, spread

LABELS = np.repeat([0, 1], [30, 50])
SCORES = np.random.default_rng(0).normal(1, 0.3, 80) + LABELS


@pytest.fixture
def drawn(monkeypatch):
    """The matplotlib figures that were drawn, in order; they are saved all the same."""
    kept, save = [], report.save_figure

    def keep(figure, path):
        save(figure, path)
        kept.append(figure)

    monkeypatch.setattr(report, "save_figure", keep)
    return kept


def has_colour(path, colour):
    """Whether some pixels show `colour`, give or take blending with their neighbours and a JPEG's losses."""
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB"), int)
    return (abs(pixels - 255 * np.array(to_rgb(colour))).max(axis=2) < 50).sum() > 20


def texts(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()]


def inside(figure):
    """Whether all texts of the figure lie within it, and no two of them overlap."""
    shown = list(figure.texts)
    for axes in figure.axes:
        shown += [axes.title, *(axes.get_legend().get_texts() if axes.get_legend() else [])]
        for axis in (axes.xaxis, axes.yaxis) if axes.axison else ():
            low, high = axis.get_view_interval()
            shown += [axis.label, axis.get_offset_text()]
            shown += [text for at, text in zip(axis.get_ticklocs(), axis.get_ticklabels()) if low <= at <= high]
    boxes = [text.get_window_extent() for text in shown if text.get_text()]
    assert len(boxes) > 5
    overlapping = any(a.overlaps(b) for number, a in enumerate(boxes) for b in boxes[:number])
    width, height = figure.bbox.size
    return not overlapping and all(min(b.x0, b.y0) >= 0 and b.x1 <= width and b.y1 <= height for b in boxes)


def photo(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 1), np.uint8).repeat(3, axis=2)


def test_histogram_shows_both_classes_and_the_threshold(tmp_path, drawn):
    score_histogram(tmp_path / "new" / "h.png", LABELS, SCORES, "title", threshold=1.5, score_name="distance")
    (axes,) = drawn[0].axes
    assert texts(axes) == ["good (30)", "defective (50)", "threshold 1.5"] and axes.get_xscale() == "linear"
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("distance", "share of the class (%)")
    good, _, defective, _ = [patch.get_data() for patch in axes.patches]
    assert np.array_equal(good.edges, defective.edges) and len(good.edges) == 65
    assert good.values.sum() == pytest.approx(100) and defective.values.sum() == pytest.approx(100)
    assert has_colour(tmp_path / "new/h.png", report.GOOD) and has_colour(tmp_path / "new/h.png", report.DEFECTIVE)
    assert inside(drawn[0])
    score_histogram(tmp_path / "h.png", LABELS[:30], SCORES[:30], "title", threshold=float("nan"))
    assert texts(drawn[1].axes[0]) == ["good (30)"] and not has_colour(tmp_path / "h.png", report.DEFECTIVE)
    for scores in ([], [1.0, np.nan]):
        with pytest.raises(ValueError, match="scores"):
            score_histogram(tmp_path / "none.png", [0, 1][: len(scores)], scores, "title")
    assert not (tmp_path / "none.png").exists()


@pytest.mark.parametrize("value", [0, -1, 1e-30, 1e30])
def test_histogram_of_constant_scores(tmp_path, drawn, value):
    score_histogram(tmp_path / "h.png", LABELS, np.full(80, float(value)), "title")
    (axes,) = drawn[0].axes
    for patch in axes.patches:
        assert patch.get_data().values.max() == pytest.approx(100)
        assert (np.diff(patch.get_data().edges) > 0).all()  # bins that can be seen
    low, high = axes.get_xlim()
    assert low < value < high


def test_histogram_of_heavy_tails_is_logarithmic(tmp_path, drawn):
    tails = np.exp(6 * SCORES)
    score_histogram(tmp_path / "h.png", LABELS, tails, "title", threshold=100)
    score_histogram(tmp_path / "h.png", LABELS, tails - tails.min(), "title")  # 0 has no logarithm
    score_histogram(tmp_path / "h.png", LABELS, tails, "title", threshold=-1)
    assert [figure.axes[0].get_xscale() for figure in drawn] == ["log", "linear", "log"]
    assert texts(drawn[0].axes[0])[2:] == ["threshold 100"] and texts(drawn[2].axes[0])[2:] == []
    for patch in drawn[0].axes[0].patches:
        assert patch.get_data().values.sum() == pytest.approx(100)  # the extreme scores are counted too
        steps = np.diff(np.log(patch.get_data().edges))
        assert steps == pytest.approx(steps[0])


def test_roc_lists_each_curve_with_its_auroc(tmp_path, drawn):
    curves = {
        "perfect": ([0, 0, 1], [1, 2, 3]), "_inverted": ([0, 0, 1], [2, 3, 1]), "$half_$": ([0, 1, 0], [1, 2, 3]),
        "only good": ([0, 0], [1, 2]), "an exceedingly long name of a class with its end": ([0, 1], [1, 2]),
    }  # fmt: skip
    roc_figure(tmp_path / "r.png", curves, "$not_mathematics_$")
    (axes,) = drawn[0].axes
    assert texts(axes) == [
        "0.500  chance", "1.000  perfect", "0.000  _inverted", "0.500  $half_$", "undefined  only good",
        "1.000  an exceedingly …ass with its end",
    ]  # fmt: skip
    _, perfect, inverted, _, nothing, _ = axes.lines
    assert np.trapezoid(perfect.get_ydata(), perfect.get_xdata()) == 1
    assert np.trapezoid(inverted.get_ydata(), inverted.get_xdata()) == 0 == len(nothing.get_xdata())
    assert axes.bbox.width == pytest.approx(axes.bbox.height) and has_colour(tmp_path / "r.png", report.COLOURS[0])
    # Many curves: the legend stays inside, and the curves are distinct.
    many = {f"class {i} {'of a long name' * 4}": (LABELS, SCORES) for i in range(40)}
    roc_figure(tmp_path / "r.png", many, "x" * 500)
    (axes,) = drawn[1].axes
    legend = axes.get_legend().get_window_extent()
    assert legend.y0 > 0 and legend.x1 < drawn[1].bbox.width and legend.x0 > axes.bbox.x1
    assert len({(line.get_color(), line.get_linestyle()) for line in axes.lines[1:22]}) == 21


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_sheet_of_unlike_sizes(tmp_path, drawn, suffix):
    shapes = [(64, 64), (300, 100), (20, 500), (700, 900)]
    columns = [
        (photo(*shape, seed), np.random.default_rng(seed).random((9, 7)), f"good/{seed:03d}.png\nscore 0.5")
        for seed, shape in enumerate(shapes)
    ]
    masks = [None, np.zeros((300, 100), bool), np.ones((20, 500), bool), np.eye(30, dtype=bool)]
    map_sheet(tmp_path / f"s{suffix}", columns, "title", masks)
    assert has_colour(tmp_path / f"s{suffix}", "#00FFFF") and inside(drawn[0])
    *cells, bar = drawn[0].axes
    assert len(cells) == 12 and bar.get_ylabel() == "anomaly score"
    for axes in cells:
        assert max(axes.images[0].get_array().shape[:2]) == 256
        assert axes.get_position().width * drawn[0].bbox.width <= 257
    for axes, (image, _, _) in zip(cells, columns):
        height, width = axes.images[0].get_array().shape[:2]
        assert width / height == pytest.approx(image.shape[1] / image.shape[0], rel=0.05)
        assert len(axes.get_title().splitlines()) == 2
    assert [len(axes.collections) for axes in cells[:4]] == [0, 0, 2, 2]


def test_sheet_shortens_long_texts_and_holds_flat_images(tmp_path, drawn):
    name = "test/$some_$very_long_" + "name" * 30
    columns = [(photo(30, 40), np.eye(3), f"{name}{number}.png") for number in range(3)]
    map_sheet(tmp_path / "s.png", columns, "$title_$ of very many words " * 20)
    map_sheet(tmp_path / "s.png", [(photo(10, 200), np.eye(3), "flat")], "title", [np.eye(10)])
    assert all(map(inside, drawn))
    for number, axes in enumerate(drawn[0].axes[:3]):
        first, second = axes.get_title().splitlines()
        assert first.startswith("test/$some_$very") and "…" in second and second.endswith(f"{number}.png")
    first, second = drawn[0].get_suptitle().splitlines()
    assert first.startswith("$title_$ of very many words $title_$") and not second.startswith(" ")


def test_sheet_of_a_constant_map_looks_cold(tmp_path, drawn):
    map_sheet(tmp_path / "s.png", [(photo(50, 40), np.zeros((50, 40)), "")], "a title much wider than the column " * 4)
    assert not has_colour(tmp_path / "s.png", "#00FFFF") and inside(drawn[0])
    image, heat, blend, _ = drawn[0].axes
    assert not np.asarray(heat.images[0].norm(heat.images[0].get_array())).any()
    assert np.array_equal(blend.images[0].get_array(), image.images[0].get_array())
    for value in (np.nan, np.inf):
        with pytest.raises(ValueError, match="nan or infinite"):
            map_sheet(tmp_path / "s.png", [(photo(8, 8), np.array([[0, value]]), "")], "title")


def test_sheet_has_one_colour_scale_for_all_maps(tmp_path, drawn):
    columns = [(photo(32, 32), np.full((32, 32), 0.25), "cold"), (photo(32, 32), np.linspace(-1, 3, 16)[None], "hot")]
    map_sheet(tmp_path / "s.png", columns, "title")
    map_sheet(tmp_path / "s.png", columns, "title", vmin=0, vmax=10)
    for figure, limits in zip(drawn, [(-1, 3), (0, 10)]):
        assert [axes.images[0].get_clim() for axes in figure.axes[2:4]] == [limits, limits]
        assert figure.axes[-1].get_ylim() == limits


def test_outline_lies_on_the_masks_edge_whatever_its_size(tmp_path, drawn):
    mask = np.zeros((8, 4), bool)
    mask[2:4, 3] = True  # of 8 x 4: rows 1/4 to 1/2, columns 3/4 to the border
    map_sheet(tmp_path / "s.png", [(photo(512, 256), np.ones((2, 2)), "")], "title", [mask])
    axes = drawn[0].axes[0]
    path = axes.collections[0].get_paths()[0].vertices  # drawn with 256 x 128 pixels, the first one's centre is 0
    assert path.min(axis=0) == pytest.approx([3 / 4 * 128 - 0.5, 1 / 4 * 256 - 0.5], abs=0.01)
    assert path.max(axis=0) == pytest.approx([128 - 0.5, 1 / 2 * 256 - 0.5], abs=0.01)
    assert axes.get_xlim() == (-0.5, 127.5) and axes.get_ylim() == (255.5, -0.5)


def test_overlay_leaves_the_image_where_the_map_is_low():
    image = photo(30, 40)
    before = image.copy()
    anomaly_map = np.repeat([0, 5, -5], 10)[:, None] * np.ones((30, 40))
    result = overlay(image, anomaly_map, vmin=0, vmax=5)
    assert (result.dtype, result.shape) == (np.uint8, image.shape) and np.array_equal(image, before)
    assert np.array_equal(result[:10], image[:10]) and np.array_equal(result[20:], image[20:])
    assert np.allclose(result[10:20], (image[10:20] + 255 * np.array(report._HEAT(1.0)[:3])) / 2, atol=0.51)
    assert np.array_equal(overlay(image, np.full((3, 3), 2.0), 2, 2), image)  # of a constant map
    with pytest.raises(ValueError, match="vmin"):
        overlay(image, np.zeros((6, 6)), 2, 1)


def test_overlay_is_bilinear_and_stops_at_vmax():
    # Two pixels over four: 0, 1/4, 3/4 and 1 of the way, by the distance of the pixels' centres.
    result = overlay(np.zeros((1, 4, 3), np.uint8), np.array([[0.0, 1.0]]), 0, 1, alpha=1)
    assert np.array_equal(result[0], [np.rint(255 * t * np.array(report._HEAT(t)[:3])) for t in (0.0, 0.25, 0.75, 1.0)])
    result = overlay(np.full((1, 3, 3), 255, np.uint8), np.array([[1, 4, 9]]), 0, 4, alpha=1)
    assert (result[0, 0] < 255).any() and np.array_equal(result[0, 1], result[0, 2])


@pytest.mark.parametrize(
    ("suffix", "start"), [("png", b"\x89PNG"), ("JPG", b"\xff\xd8"), ("pdf", b"%PDF"), ("svg", b"<?xml")]
)
def test_suffix_decides_the_format(tmp_path, suffix, start):
    before = "matplotlib.pyplot" in sys.modules
    roc_figure(tmp_path / f"r.{suffix}", {"a": (LABELS, SCORES)}, "title")
    assert (tmp_path / f"r.{suffix}").read_bytes().startswith(start)
    assert ("matplotlib.pyplot" in sys.modules) == before  # no global state
    with pytest.raises(UserError, match=r"end its name in one of .*png"):
        roc_figure(tmp_path / "r.xyz", {"a": (LABELS, SCORES)}, "title")
    with pytest.raises(UserError, match="cannot write"):
        score_histogram(tmp_path / f"r.{suffix}/figure.png", LABELS, SCORES, "title")


LARGE = """
import resource, sys
import numpy as np
from pathlib import Path
from common.report import map_sheet
from common.scoring import _Pictures
image, mask = np.zeros((4000, 5000, 3), np.uint8), np.zeros((4000, 5000), bool)
mask[::50, ::50] = True
small, full = np.ones((64, 64), np.float32), np.ones((4000, 5000), np.float32)
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
start = peak()
_Pictures(Path(sys.argv[1]), "all", False, {"image": 0, "pixel": 0.5}).draw("a", image[:1000], small, 1.0)
scored = peak()
map_sheet(Path(sys.argv[1], "sheet.jpg"), [(image, full, "a")], "title", [mask])
print(scored - start, peak() - start)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="getrusage counts KiB there")
def test_memory_of_large_images(tmp_path):
    """A sheet of one image of 20 megapixels took 1.1 GiB, an overlay of 5 megapixels 0.5 GiB."""
    command = [sys.executable, "-c", LARGE, str(tmp_path)]
    output = subprocess.run(command, cwd=Path(__file__).parents[2], check=True, capture_output=True, text=True).stdout
    scored, sheet = map(float, output.split())  # MiB
    assert scored < 150 and sheet < 400


def test_outline_lies_around_the_region():
    image, region = np.full((9, 9, 3), 200, np.uint8), np.zeros((9, 9), bool)
    region[4, 4] = True
    result = outlined(image, region, (255, 0, 0))
    assert (image == 200).all() and (result[4, 4] == 200).all() and (result[0] == 200).all()
    assert (result[3, 4] == (255, 0, 0)).all() and (result[2, 4] == 0).all()
    assert (outlined(image, region & False) == image).all()


def test_colours_end_at_the_threshold():
    maps, normal = [np.arange(100.0)], [np.arange(10.0)]
    assert colour_range(maps, normal, None)[:3] == (4.5, pytest.approx(98.01), None)
    assert colour_range(maps, normal, {"pixel": 30.0, "usual": None})[:3] == (4.5, 30.0, 30.0)
    vmin, vmax, limit, words = colour_range(maps, normal, {"pixel": 30.0, "usual": 2.0})
    assert (vmin, vmax, limit) == (2.0, 30.0, 30.0) and "30" in words
    assert colour_range(maps, normal, {"pixel": 1.0, "usual": 2.0})[:3] == (2.0, pytest.approx(98.01), 1.0)


def test_spread():
    assert spread(range(11), 3) == [0, 5, 10] and spread([1, 2], 6) == [1, 2] and spread([]) == []
