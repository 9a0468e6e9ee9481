"""Curves over time with shaded spans: readable files, whatever the names and numbers of points."""

import numpy as np
import pytest
from PIL import Image

from common.files import UserError
from memae.pictures import curve_figure

SHADE = (245, 222, 206)  # the spans' colour on white, about


def shaded(path) -> int:
    """Pixels in the spans' colour."""
    pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
    return int((np.abs(pixels - SHADE).max(axis=2) < 12).sum())


def test_spans_are_shaded_in_proportion(tmp_path):
    curves = {"a": (range(100), np.linspace(0, 1, 100)), "b": ([0, 50], [1, 0])}
    for name, spans in (("none", []), ("one", [(20, 29)]), ("two", [(20, 29), (50, 59)])):
        curve_figure(tmp_path / f"{name}.png", curves, "title", "frame", "error", spans, "abnormal")
    none, one, two = (shaded(tmp_path / f"{name}.png") for name in ("none", "one", "two"))
    assert none == 0 and one > 5000 and 1.6 * one < two < 2.1 * one


def test_one_point_is_visible(tmp_path):
    curve_figure(tmp_path / "point.png", {"a": ([3], [4])}, "t", "x", "y")
    curve_figure(tmp_path / "empty.png", {"a": ([], [])}, "t", "x", "y")
    point, empty = (np.asarray(Image.open(tmp_path / f"{name}.png").convert("L")) for name in ("point", "empty"))
    assert (point < 200).sum() > (empty < 200).sum() + 10


@pytest.mark.parametrize("title", ["t", "$\\x_" * 100, "a name that is not UTF-8: \udcff"])
def test_all_names_are_whole(tmp_path, title):
    """Beside long numbers, too: nothing is drawn right at the border."""
    curve_figure(tmp_path / "a.png", {"a": ([0, 1], [0.000251, 0.000263])}, title, "x", "error, scaled")
    picture = np.asarray(Image.open(tmp_path / "a.png").convert("L"))
    assert all((edge > 200).all() for edge in (picture[:3], picture[-3:], picture[:, :3], picture[:, -3:]))
    assert (picture[:, :40] < 100).any()


def test_bad_curves(tmp_path):
    with pytest.raises(ValueError, match="shape"):
        curve_figure(tmp_path / "a.png", {"a": ([1, 2], [3])}, "t", "x", "y")
    with pytest.raises(UserError, match="end its name"):
        curve_figure(tmp_path / "a.txt", {"a": ([1], [3])}, "t", "x", "y")
