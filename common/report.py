"""Figures, each drawn into one file (png, jpg, pdf, svg) without a display, and reports, each one HTML file that holds
everything it shows: `write_report` writes any, `write_image_report` that of a method which scores images."""

import base64
import io
import math
import re
import tempfile
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment
from markupsafe import Markup
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from numpy.typing import ArrayLike
from PIL import Image
from scipy import ndimage
from sklearn.metrics import roc_curve

from common.cli import say
from common.files import UserError, atomic_write, first_process, reason
from common.metrics import as_arrays, image_auroc

_DPI = 100
# Okabe & Ito's colours, which people with any kind of colour blindness can tell apart; without the pale yellow.
GOOD, DEFECTIVE = "#0072B2", "#D55E00"
COLOURS = [GOOD, DEFECTIVE, "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000"]
_HEAT = colormaps["inferno"]  # grows evenly in lightness, from black over red to yellow


def score_histogram(
    path: str | Path,
    labels: ArrayLike,
    scores: ArrayLike,
    title: str,
    threshold: float | None = None,
    bins: int = 64,
    score_name: str = "anomaly score",
) -> None:
    """Draw how the scores of good and defective images are distributed, each as a share of its class.

    labels, scores: as in `common.metrics.as_arrays`, at least one; threshold: drawn as a line unless None or nan.
    Both classes have the same `bins` bins. The axis is logarithmic where few outliers would squeeze all others into one
    bin: all scores above 0, the largest more than 50 times the median.
    Raises ValueError for unsound or no scores, UserError where the file cannot be written.
    """
    labels, scores = as_arrays(labels, scores)
    if not len(scores):
        raise ValueError("no scores to draw")
    low, high = scores.min(), scores.max()
    logarithmic = low > 0 and high > 50 * np.median(scores)
    if high - low <= 1e-9 * abs(high):  # all alike: room on both sides
        room = abs(high) / 10 or 1
        low, high = low - room, high + room
    edges = np.geomspace(low, high, bins + 1) if logarithmic else np.linspace(low, high, bins + 1)

    figure, axes = _figure(title, (5.5, 3.4), right=2.3, bottom=0.6)
    for name, colour, chosen in (("good", GOOD, ~labels), ("defective", DEFECTIVE, labels)):
        if not chosen.any():
            continue
        share = 100 * np.histogram(scores[chosen], edges)[0] / chosen.sum()
        axes.stairs(share, edges, fill=True, color=colour, alpha=0.35)
        axes.stairs(share, edges, color=colour, linewidth=1.5, label=f"{name} ({chosen.sum()})")
    if logarithmic:
        axes.set_xscale("log")
    if threshold is not None and math.isfinite(threshold) and (threshold > 0 or not logarithmic):
        axes.axvline(threshold, color="black", linestyle="--", label=f"threshold {threshold:.4g}")
    axes.set_xlabel(_short(score_name, 60), parse_math=False)
    axes.set_ylabel("share of the class (%)")
    _legend(axes)
    save_figure(figure, path)


def roc_figure(path: str | Path, curves: dict[str, tuple[ArrayLike, ArrayLike]], title: str) -> None:
    """Draw one ROC curve for each entry {name: (labels, scores)}, with its AUROC in the legend.

    labels, scores: as in `common.metrics.as_arrays`. An entry of one class only has no curve; its AUROC is
    listed as undefined.
    Raises ValueError for unsound scores, UserError where the file cannot be written.
    """
    size = 4.6
    # Each line of the legend takes 0.21 inches; a long one reaches below the axes.
    figure, axes = _figure(title, (size, size), right=3.8, bottom=max(0.6, 0.21 * (len(curves) + 3) - size))
    axes.plot([0, 1], [0, 1], color="gray", linestyle=":", label="0.500  chance")
    for number, (name, (labels, scores)) in enumerate(curves.items()):
        labels, scores = as_arrays(labels, scores)
        if labels.any() and not labels.all():
            fpr, tpr, _ = roc_curve(labels, scores)
            # The line's style tells apart curves whose colour comes again.
            style = ["-", "--", "-."][number // len(COLOURS) % 3]
            label = f"{image_auroc(labels, scores):.3f}  {_short(name, 32)}"
            axes.plot(fpr, tpr, style, color=COLOURS[number % len(COLOURS)], label=label, clip_on=False)
        else:
            axes.plot([], [], " ", label=f"undefined  {_short(name, 28)}")
    axes.set(xlim=(0, 1), ylim=(0, 1))
    axes.set_xlabel("false-positive rate")
    axes.set_ylabel("true-positive rate")
    _legend(axes, title="AUROC")
    save_figure(figure, path)


def map_sheet(
    path: str | Path,
    columns: list[tuple[np.ndarray, np.ndarray, str]],
    title: str,
    masks: list[np.ndarray | None] | None = None,
    vmax: float | None = None,
    vmin: float | None = None,
    limit: float | None = None,
) -> None:
    """Draw images, their anomaly maps and both on top of each other, one column for each image, over a legend.

    columns: at least one of (image (H, W, 3) uint8, finite anomaly map (h, w) that covers the same view, caption), of
    any sizes; masks: (h', w') true for defective pixels, or None, for each column: outlined on the image; limit: the
    threshold of pixels: where the map is above it is outlined on the overlay. All maps share one colour scale, so that
    a good image looks cold: from `vmin` to `vmax`, else from the lowest to the highest value of the sheet. Raises
    ValueError for maps that are not finite, UserError where the file cannot be written.
    """
    ends = np.array([[np.min(anomaly_map), np.max(anomaly_map)] for _, anomaly_map, _ in columns])
    if not np.isfinite(ends).all():
        raise ValueError("anomaly map with values that are nan or infinite")
    low, high = ends.min() if vmin is None else vmin, ends.max() if vmax is None else vmax
    scale = Normalize(low, high + (abs(low) or 1) if high == low else high, clip=True)  # constant maps look cold

    # Sizes in inches. A cell is as large as the widest and the highest image need it, and the texts beside them.
    images = [drawn(image) for image, _, _ in columns]
    width = max(1.5, *(image.shape[1] / _DPI for image in images))
    height = max(1.3, *(image.shape[0] / _DPI for image in images))
    gap, left, right, top, bottom = 0.08, 0.55, 1.25, 0.85, 0.4
    sheet = left + len(columns) * (width + gap) + right, top + 3 * (height + gap) + bottom
    figure = Figure(sheet, dpi=_DPI)

    def place(x: float, y: float, w: float, h: float) -> Axes:
        return figure.add_axes((x / sheet[0], y / sheet[1], w / sheet[0], h / sheet[1]))

    marked = masks is not None and any(mask is not None for mask in masks)
    for row, name in enumerate(["image", "anomaly map", "overlay"]):
        y = bottom + (2 - row) * (height + gap)
        figure.text(
            0.28 / sheet[0], (y + height / 2) / sheet[1], name, rotation=90, fontsize=9, ha="center", va="center"
        )
        for column, ((_, anomaly_map, caption), image) in enumerate(zip(columns, images)):
            axes = place(left + column * (width + gap), y, width, height)
            if row == 0:
                axes.imshow(image)
                axes.set_title(_two_lines(caption, int(width * 14)), fontsize=8, family="monospace", parse_math=False)
                if marked and masks[column] is not None:
                    _outline(axes, masks[column], image.shape[:2])
            elif row == 1:
                axes.imshow(_resized(anomaly_map, image.shape[:2]), cmap=_HEAT, norm=scale)
            else:
                blended = overlay(image, anomaly_map, scale.vmin, scale.vmax, alpha=0.7)
                if limit is not None:
                    blended = outlined(blended, _resized(anomaly_map, image.shape[:2]) > limit)
                axes.imshow(blended)
            axes.axis("off")
            axes.set_anchor("N")  # captions side by side at one height
    bar = place(sheet[0] - right + 0.1, bottom, 0.15, 2 * height + gap)
    figure.colorbar(ScalarMappable(scale, _HEAT), cax=bar).set_label("anomaly score")
    figure.suptitle(_two_lines(title, int(sheet[0] * 9)), y=1 - 0.1 / sheet[1], va="top", parse_math=False)
    words = ["cyan outline: marked as defective by hand"] * marked
    words += [] if limit is None else [f"white outline: above the pixel threshold {limit:.3g}"]
    words += [f"brightest colour: {high:.3g} and more"] * bool(high < ends.max())
    legend = _two_lines("; ".join(words), int(sheet[0] * 13))
    figure.text(left / sheet[0], 0.2 / sheet[1], legend, fontsize=8, va="center")
    save_figure(figure, path)


def image_row(path: str | Path, images: Sequence[np.ndarray]) -> None:
    """Write images (H, W, 3) uint8, at least one, side by side, each fitted into 160 x 160 pixels."""
    side, gap = 160, 8
    row = Image.new("RGB", (len(images) * (side + gap) - gap, side), "white")
    for number, image in enumerate(images):
        factor = side / max(image.shape[:2])
        size = [max(1, round(length * factor)) for length in image.shape[1::-1]]
        row.paste(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR), (number * (side + gap), 0))
    with atomic_write(path) as file:
        row.save(file, "PNG" if Path(path).suffix.lower() == ".png" else "JPEG", quality=85)


def overlay(image: np.ndarray, anomaly_map: np.ndarray, vmin: float, vmax: float, alpha: float = 0.5) -> np.ndarray:
    """Blend heat over `image` (H, W, 3) uint8: a new image of the same kind.

    anomaly_map: (h, w) finite, resized to (H, W) bilinearly. The heat's opacity grows from 0 at `vmin` and below, where
    the image stays as it is, to `alpha` at `vmax` and above. Raises ValueError for vmin > vmax.
    """
    if vmin > vmax:
        raise ValueError(f"vmin {vmin} is above vmax {vmax}")
    anomaly_map = _resized(anomaly_map, image.shape[:2])
    colours = np.float32(255) * _HEAT(np.arange(256))[:, :3].astype(np.float32)
    blended, step = np.empty_like(image), max(1, 2**18 // image.shape[1])
    for top in range(0, len(image), step):  # in strips: at once, a large image would take gigabytes
        rows = slice(top, top + step)
        heat = ((anomaly_map[rows] - vmin) / ((vmax - vmin) or 1)).clip(0, 1)
        opacity = np.float32(alpha) * heat[..., None]
        index = np.minimum((256 * heat).astype(np.int16), 255)  # as matplotlib counts
        blended[rows] = np.rint(image[rows] * (1 - opacity) + colours[index] * opacity)
    return blended


def outlined(image: np.ndarray, region: np.ndarray, colour: tuple[int, int, int] = (255, 255, 255)) -> np.ndarray:
    """`image` (H, W, 3) uint8 with an outline around each part of `region` (H, W), bool: `colour` beside black, so that
    one of both is seen on any image."""
    image, width = image.copy(), max(1, round(max(region.shape) / 250))
    if region.any():
        ring = ndimage.binary_dilation(region, iterations=width)
        image[ndimage.binary_dilation(ring, iterations=width) & ~ring] = 0
        image[ring & ~region] = colour
    return image


def _figure(title: str, size: tuple[float, float], right: float, bottom: float) -> tuple[Figure, Axes]:
    """Figure with a title and axes of `size`, with room to their right and below; all in inches."""
    left, top = 0.75, 0.7
    width, height = left + size[0] + right, top + size[1] + bottom
    figure = Figure((width, height), dpi=_DPI)
    figure.suptitle(_two_lines(title, int(width * 9)), y=1 - 0.1 / height, va="top", parse_math=False)
    axes = figure.add_axes((left / width, bottom / height, size[0] / width, size[1] / height))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _legend(axes: Axes, title: str | None = None) -> None:
    legend = axes.legend(
        loc="upper left", bbox_to_anchor=(1.04, 1), borderaxespad=0, fontsize=9, title=title, alignment="left"
    )
    for text in legend.get_texts():
        text.set_parse_math(False)  # names may hold $


def save_figure(figure: Figure, path: str | Path) -> None:
    """Draw `figure` into the file `path`, whole or not at all; UserError where the file cannot be written."""
    kind = Path(path).suffix[1:].lower()
    known = FigureCanvasAgg(figure).get_supported_filetypes()
    if kind not in known:
        raise UserError(f"cannot draw {path}: end its name in one of {', '.join(known)}")
    with atomic_write(path) as file:
        # JPEG would halve the resolution of colours, and so grey the thin outlines, without subsampling=0.
        options = {"pil_kwargs": {"quality": 85, "subsampling": 0}} if kind in ("jpg", "jpeg") else {}
        figure.savefig(file, format=kind, **options)


def drawn(image: np.ndarray) -> np.ndarray:
    """An image (H, W, 3) uint8 at the size that `map_sheet` draws it: its long side scaled to 256 pixels."""
    factor = 256 / max(image.shape[:2])
    size = [max(1, round(side * factor)) for side in image.shape[1::-1]]
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))


def drawn_mask(mask: np.ndarray | None, shape: tuple[int, int]) -> np.ndarray | None:
    """A mask (h', w') reduced to `shape` where it is larger: a pixel is marked where any of those it stands for is, so
    that small defects do not get lost."""
    for axis, side in enumerate(shape if mask is not None else ()):
        if (length := mask.shape[axis]) > side:
            mask = np.logical_or.reduceat(mask, np.arange(side) * length // side, axis=axis)
    return mask


def _resized(anomaly_map: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Bilinear, (h, w) to `shape`; float32."""
    anomaly_map = np.asarray(anomaly_map, np.float32)
    if anomaly_map.shape == shape:
        return anomaly_map
    return np.asarray(Image.fromarray(anomaly_map).resize(shape[::-1], Image.Resampling.BILINEAR))


def _outline(axes: Axes, mask: np.ndarray, shape: tuple[int, int]) -> None:
    """Outline `mask` (h', w') over an image of `shape`."""
    mask = drawn_mask(np.asarray(mask), shape)
    if not np.any(mask):
        return
    padded = np.pad(np.asarray(mask, float), 1)  # closes outlines at the border
    y, x = ((np.arange(-1, n + 1) + 0.5) * side / n - 0.5 for n, side in zip(np.shape(mask), shape))
    # Light on dark, so that one of both is seen on any image.
    axes.contour(x, y, padded, [0.5], colors="black", linewidths=2.5)
    axes.contour(x, y, padded, [0.5], colors="#00FFFF", linewidths=1)
    axes.set(xlim=(-0.5, shape[1] - 0.5), ylim=(shape[0] - 0.5, -0.5))


def _short(text: str, length: int) -> str:
    """`text` in at most `length` characters, the middle left out."""
    text = text.encode("utf-8", "backslashreplace").decode()  # a file's name need not be text that can be drawn
    return text if len(text) <= length else text[: (length - 1) // 2] + "…" + text[len(text) - length // 2 :]


def _two_lines(text: str, length: int) -> str:
    """`text` in at most two lines of at most `length` characters: its own lines, or broken where it is too long."""
    first, *rest = [" ".join(line.split()) for line in text.splitlines()] or [""]
    if not rest and len(first) > length:
        whole, first = first, textwrap.wrap(first, length)[0]
        rest = [whole[len(first) :].lstrip()]
    return "\n".join(_short(line, length) for line in (first, " ".join(rest)) if line)


PAGE = Path(__file__).with_suffix(".html")  # jinja2's template
METRICS = ("image_auroc", "image_ap", "image_best_f1", "pixel_auroc", "aupro", "pixel_best_f1")
RATES = ("promised_fpr", "fpr_on_test_good", "detection_rate")
Column = tuple[np.ndarray, np.ndarray, str, np.ndarray | None]  # image, anomaly map, name, mask


@dataclass
class Section:
    """A part of a report: paragraphs, then a table, then pictures."""

    title: str
    paragraphs: Sequence[str] = ()
    header: Sequence[str] = ()  # of the table
    rows: Sequence[Sequence[Any]] = ()  # numbers are shown with four digits
    pictures: Sequence[tuple[Path, str]] = ()  # PNG or JPEG file, caption


def write_report(path: str | Path, title: str, sections: Sequence[Section], pages: Sequence[Path] = ()) -> None:
    """Write the page, and say where it is.

    pages: reports written earlier, which follow the sections whole. Raises UserError where a picture or a page cannot
    be read or the page not be written. Processes other than the first one of a run write nothing.
    """
    if not first_process():
        return
    environment = Environment(autoescape=True)
    environment.filters |= {"cell": _cell, "picture": _picture}
    template = environment.from_string(PAGE.read_text(encoding="utf-8"))
    with atomic_write(path, "w") as file:
        file.write(template.render(title=title, sections=sections, pages=[*map(_nested, pages)]) + "\n")
    say(f"report: {path}")


def write_image_report(
    path: str | Path,
    title: str,
    results: Mapping[str, Any],
    paragraphs: Sequence[str],
    normal: Sequence[np.ndarray],
    labels: np.ndarray,
    scores: np.ndarray,
    column: Callable[[int], Column],
    score_name: str = "anomaly score",
    more: Sequence[tuple[str, Any]] = (),
) -> None:
    """Write the report of a method that scores test images.

    results: as `metrics.evaluate` gives them, and "data", see `data_sentence`; paragraphs: on data, training and choice
    of the model; normal: some of the good images (H, W, 3) uint8; labels: (N,), 0 is good; scores: (N,); column(i):
    image i (H, W, 3) uint8, its anomaly map (h, w), its name, and its mask (h', w') or None; more: (metric, value).
    """
    threshold = results.get("threshold") or {}
    rows = [(metric_name(name), results[name]) for name in METRICS if name in results]
    rows += [*more, *((f"threshold: {metric_name(name)}", threshold[name]) for name in RATES if name in threshold)]
    if not len(labels):  # nothing is measured: no table of dashes
        rows = [(name, value) for name, value in rows if value is not None and value == value]
        rows += [("threshold of images", threshold["image"])] if threshold else []
        said = "No labelled test images: nothing is measured. Scoring new images gives verdicts, maps and overlays."
        paragraphs = [said, *paragraphs]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        image_row(folder / "normal.jpg", normal)
        sections = [
            Section("Results", [data_sentence(results["data"]), *paragraphs], ("metric", "value"), rows),
            Section("Normal data", pictures=[(folder / "normal.jpg", "Some of the good images given for training.")]),
        ]
        if kinds := results.get("by_defect"):
            words = "AUROC: of the kind against all good images. Found: the share called defective by the threshold."
            table = [(kind, *one.values()) for kind, one in kinds.items()]
            sections.insert(1, Section("Kinds of defect", [words], ("kind", "images", "AUROC", "found"), table))
        if len(labels):
            score_histogram(
                folder / "histogram.png", labels, scores, title, threshold.get("image"), score_name=score_name
            )
            roc_figure(folder / "roc.png", {"all defects": (labels, scores)}, title)
            curves = [
                (folder / "histogram.png", "How the scores are distributed."),
                (folder / "roc.png", "ROC: what share of the defective images is found at which false-positive rate."),
            ]
            sections.append(Section("Scores", pictures=curves))
            sections.append(case_section(folder, cases(labels, scores), labels, scores, column, threshold))
        write_report(path, title, sections)


def cases(labels: np.ndarray, scores: np.ndarray, count: int | None = 3) -> dict[str, list[int]]:
    """Up to `count` numbers of images (or frames) of each kind, most telling first; labels: (N,), 0 is normal; scores:
    (N,). Kinds without any are left out."""
    order = np.argsort(scores, kind="stable")
    bad, good = order[labels[order] > 0].tolist(), order[labels[order] == 0].tolist()
    found = {
        "best found: anomalies of the highest scores": bad[::-1][:count],
        "worst missed: anomalies of the lowest scores": bad[:count],
        "nearest to a false alarm: normal ones of the highest scores": good[::-1][:count],
    }
    return {name: rows for name, rows in found.items() if rows}


def case_section(
    folder: Path,
    chosen: dict[str, list[int]],
    labels: np.ndarray,
    scores: np.ndarray,
    column: Callable[[int], Column],
    threshold: Mapping[str, Any] | None = None,
) -> Section:
    """A sheet of image, map and overlay, drawn in `folder`, for each entry of `chosen`, {name: numbers of images}.

    labels, scores, column: as `write_image_report` takes them; threshold: as `metrics.thresholds` gives it. All maps
    share the colours of `colour_range`.
    """
    columns = {i: column(i) for i in sorted({i for rows in chosen.values() for i in rows})}
    normal = [columns[i][1] for i in columns if not labels[i]] or [shown[1] for shown in columns.values()]
    vmin, vmax, limit, words = colour_range([shown[1] for shown in columns.values()], normal, threshold)
    sheets = []
    for number, (name, rows) in enumerate(chosen.items()):
        shown = [(*columns[i][:2], f"{columns[i][2]}\nscore {scores[i]:.4g}") for i in rows]
        masks = [columns[i][3] for i in rows]
        map_sheet(folder / f"{number}.jpg", shown, name, masks, vmax, vmin, limit)
        sheets.append((folder / f"{number}.jpg", f"{name[0].upper()}{name[1:]}."))
    return Section("Image, anomaly map, and both", [words], pictures=sheets)


def colour_range(
    maps: Sequence[np.ndarray], normal: Sequence[np.ndarray], threshold: Mapping[str, Any] | None
) -> tuple[float, float, float | None, str]:
    """Where the colours of maps begin and end, the threshold of pixels or None, and a sentence on all that.

    They begin at the median of good images (of `threshold`, else of the maps `normal`), and end at the threshold of
    pixels, else at the highest hundredth of the values of `maps`.
    """
    threshold = threshold or {}
    usual, limit = threshold.get("usual"), threshold.get("pixel")
    vmin = float(np.median(np.concatenate([np.ravel(values) for values in normal]))) if usual is None else usual
    if limit is not None and limit > vmin:
        end = f"the pixel threshold {limit:.4g}, which is exceeded within the white outlines"
        return vmin, limit, limit, f"Colours begin at the median of good images and end at {end}."
    vmax = max(vmin, float(np.quantile(np.concatenate([np.ravel(values) for values in maps]), 0.99)))
    return vmin, vmax, limit, "Colours begin at the median of good images and end where 99 % of the values are lower."


def spread(items: Sequence[Any], count: int = 6) -> list[Any]:
    """Up to `count` of the items, evenly spread over all."""
    return [items[i] for i in np.unique(np.linspace(0, len(items) - 1, min(count, len(items))).round().astype(int))]


def metric_name(key: str) -> str:
    """A key of results.json in words: image_auroc is "image AUROC"."""
    words = key.split("_")
    return " ".join(word.upper() if word in ("auroc", "aupro", "ap", "f1", "fpr") else word for word in words)


def data_sentence(data: Any) -> str:
    """What a report says of its data; data: "synthetic", or the data set's name or folder."""
    if data == "synthetic":
        return (
            "The data are synthetic, made by our own programs: they show that and how the method works, not how well "
            "it does on real data."
        )
    return f"Data: {data}."


def _title_and_body(path: Path) -> tuple[str, str]:
    """Title and body of a report."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {reason(error) if isinstance(error, OSError) else error}") from error
    match = re.search(r"<main>\n(<h1>(.*?)</h1>.*)</main>", text, re.DOTALL)
    if match is None:
        raise UserError(f"{path} is no report of ours")
    return match[2], match[1]


def _nested(path: Path) -> tuple[Markup, Markup]:
    """Title and body of a report, its headings one level lower."""
    title, body = _title_and_body(path)
    return Markup(title), Markup(re.sub(r"<(/?)h([1-5])>", lambda tag: f"<{tag[1]}h{int(tag[2]) + 1}>", body))


def _cell(value: Any) -> Any:
    """A value as the table shows it; – for none and nan."""
    if value is None or value != value:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else value


def _picture(path: Path) -> tuple[str, int, int, str]:
    """Kind, width, height and base64 of a picture's file."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {reason(error)}") from error
    try:
        with Image.open(io.BytesIO(data), formats=("PNG", "JPEG")) as image:
            return image.format.lower(), *image.size, base64.b64encode(data).decode("ascii")
    except OSError as error:
        raise UserError(f"{path} is no picture that a report can hold: PNG or JPEG") from error
