"""Pictures of CRRN: volumes over time, the pads' layout, precision-recall curves, error histograms, board maps."""

import textwrap
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from common.cli import printable
from common.report import COLOURS, save_figure
from crrn.boards import Boards
from crrn.utils import make_colormaps

BLUE, RED = COLOURS[:2]
LINE = {"color": "#999999", "linewidth": 0.8}


@contextmanager
def _axes(path: Path, size: tuple[float, float], **labels: Any) -> Iterator[Any]:
    """Axes to draw on; labels: as `Axes.set` takes them. The picture is written when the block ends."""
    figure = Figure(size, layout="constrained")
    axes = figure.subplots()
    yield axes
    axes.set(**labels)
    save_figure(figure, path)


def draw_preprocessing(folder: Path, boards: Boards, cycle: int) -> None:
    """The six pictures of the measured volumes, into `folder`."""
    raw = boards.volume  # (N, P)
    normalised = (raw - raw.mean(axis=0)) / np.where(np.ptp(raw, axis=0) > 0, raw.std(axis=0), 1)
    shown = np.unique(np.linspace(0, raw.shape[1] - 1, 3).astype(int))  # three pads, or as many as there are
    names = [f"pad {boards.pad_ids[p]}" for p in shown]
    _volumes(folder / "vol.pdf", raw[:, shown], names, "volume", cycle)
    _volumes(folder / "norm_vol.pdf", normalised[:, shown], names, "normalised volume", cycle)
    _mean_and_spread(folder / "norm_all_vol.pdf", normalised, "board, in print order", cycle)
    by_age = normalised.reshape(-1, cycle, raw.shape[1]).transpose(1, 0, 2).reshape(cycle, -1)
    _mean_and_spread(folder / "norm_norm_vol.pdf", by_age, "age: boards since the last cleaning", cycle)
    _autocorrelation(folder / "auto.png", normalised, cycle)
    _layout(folder / "group.png", boards)


def _cleanings(axes: Any, boards: int, cycle: int) -> None:
    for start in range(0, boards, cycle):
        axes.axvline(start, linestyle=":", **LINE)


def _volumes(path: Path, volume: np.ndarray, names: list[str], label: str, cycle: int) -> None:
    figure = Figure((9, 2.2 * len(names) + 0.6), layout="constrained")
    axes = figure.subplots(len(names), 2, squeeze=False, width_ratios=(4, 1), sharey="row")
    for (left, right), values, name, colour in zip(axes, volume.T, names, COLOURS):
        _cleanings(left, len(values), cycle)
        left.plot(values, color=colour, linewidth=1)
        left.set_title(name, loc="left", fontsize=10)
        left.set_ylabel(label)
        right.hist(values, bins=20, orientation="horizontal", color=colour)
    axes[-1, 0].set_xlabel("board, in print order (dotted: the stencil was cleaned)")
    axes[-1, 1].set_xlabel("boards")
    save_figure(figure, path)


def _mean_and_spread(path: Path, values: np.ndarray, label: str, cycle: int) -> None:
    mean, std, number = values.mean(axis=1), values.std(axis=1), np.arange(len(values))
    with _axes(path, (8, 3.2), xlabel=label, ylabel="normalised volume") as axes:
        _cleanings(axes, len(mean), cycle)
        axes.fill_between(number, mean - std, mean + std, color=BLUE, alpha=0.25, linewidth=0, label="± std. deviation")
        axes.plot(number, mean, color=BLUE, marker="." if len(mean) < 60 else None, label="mean of all pads")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.legend(loc="upper right", ncols=2, fontsize=9)
        axes.set_ylim(top=axes.get_ylim()[1] + 0.6)  # room for the legend


def _autocorrelation(path: Path, normalised: np.ndarray, cycle: int) -> None:
    lags = np.arange(min(3 * cycle, len(normalised) - 1) + 1)
    board = normalised.mean(axis=1, keepdims=True)
    with _axes(path, (8, 3.4), xlabel="lag in boards (dotted: whole cycles)", ylabel="autocorrelation") as axes:
        _cleanings(axes, len(lags), cycle)
        axes.axhline(0, **LINE)
        for name, values, colour in (("mean of all pads", board, RED), ("each pad, averaged", normalised, BLUE)):
            centred = values - values.mean(axis=0)
            power = (centred**2).sum(axis=0)
            power[power == 0] = 1  # constant pads
            sums = [(centred[lag:] * centred[: len(centred) - lag]).sum(axis=0) / power for lag in lags]
            axes.plot(lags, np.mean(sums, axis=1), color=colour, marker=".", label=name)
        axes.legend(fontsize=9)


def _layout(path: Path, boards: Boards) -> None:
    height, width = boards.layout.height, boards.layout.width
    counts = Counter(boards.groups)
    kinds = sorted(counts, key=str)
    spread = colormaps["turbo"](np.linspace(0, 1, len(kinds)))
    colours = dict(zip(kinds, COLOURS if len(kinds) <= len(COLOURS) else spread))
    scale = 7 / max(width, height)  # inches per mm
    limits = {"xlim": (0, width), "ylim": (height, 0), "xlabel": "X in mm", "ylabel": "Y in mm", "aspect": "equal"}
    with _axes(path, (width * scale + 2.6, height * scale + 0.9), **limits) as axes:
        axes.scatter(boards.x[0], boards.y[0], s=14, marker="s", color=[colours[group] for group in boards.groups])
        for kind in kinds[:20]:  # of very many shapes, the legend names the first ones
            axes.scatter([], [], s=14, marker="s", color=colours[kind], label=_text(f"{kind} ({counts[kind]})"))
        axes.legend(title="shape (pads)", loc="upper left", bbox_to_anchor=(1.01, 1), fontsize=9)


def _text(name: str) -> str:
    """A user's name as it can be drawn; mathematics would stand between $."""
    return printable(name).replace("$", r"\$")


def draw_precision_recall(path: Path, curves: Mapping[str, Any], baseline: Mapping[str, Any], title: str) -> None:
    """Precision over recall, one solid line for each entry of `curves`, dashed for the entry of `baseline` of the same
    name; each entry: {"Precision": [...], "Recall": [...]}."""
    labels = {"xlim": (0, 1.01), "ylim": (0, 1.01), "xlabel": "recall", "ylabel": "precision", "title": _text(title)}
    with _axes(path, (6.4, 4.6), **labels) as axes:
        for (name, curve), colour in zip(curves.items(), COLOURS):
            axes.plot(curve["Recall"], curve["Precision"], color=colour, label=name)
            axes.plot(baseline[name]["Recall"], baseline[name]["Precision"], color=colour, linestyle="--", linewidth=1)
        axes.plot([], [], color="black", linestyle="--", linewidth=1, label="z-score alone")
        axes.grid(alpha=0.3)
        axes.legend(title="anomaly rate", fontsize=9, loc="upper left", bbox_to_anchor=(1.01, 1))


def draw_errors(path: Path, errors: Mapping[str, np.ndarray], title: str) -> None:
    """Histograms of signed errors, as shares; errors: {"fine": (n,), "excessive": (n,), "insufficient": (n,)}."""
    labels = {"xlabel": "signed error (beyond ±6: in the last bin)", "ylabel": "share of the pads (%)"}
    edges = np.linspace(-6, 6, 97)
    with _axes(path, (6.4, 3.4), title=_text(title), **labels) as axes:
        for (name, values), colour in zip(errors.items(), ("#000000", RED, BLUE)):
            if len(values):
                share = 100 * np.histogram(values.clip(-6, 6), edges)[0] / len(values)
                axes.stairs(share, edges, fill=True, alpha=0.35, color=colour)
                axes.stairs(share, edges, color=colour, label=f"{name} ({len(values)})")
        axes.legend(fontsize=9)


def draw_boards(
    path: Path, rows: Mapping[str, np.ndarray], titles: Sequence[str], mask: np.ndarray, title: str, limit: float,
    columns: int = 10**9, marks: Sequence[Sequence[tuple[int, int]]] = (),
) -> None:  # fmt: skip
    """Signed maps of boards from blue (-limit) to red (limit), pads without error white, the ground grey.

    rows: name -> (n, H, W), a line of maps for each entry, broken after `columns` of them; titles: of the n boards;
    mask: (H, W) bool, the pads; marks: of each board the pixels (row, column) that get a frame.
    """
    columns = min(columns, len(titles))
    lines = len(rows) * -(-len(titles) // columns)
    size = 2.4 * columns + 1.4, (2.4 * mask.shape[0] / mask.shape[1] + 0.35) * lines + 0.6
    figure = Figure(size, layout="constrained", dpi=110)
    axes = figure.subplots(lines, columns, squeeze=False)
    cells = iter(axes.flat)
    for name, maps in rows.items():
        boards = np.where(mask[..., None], make_colormaps(maps, limit).transpose(0, 2, 3, 1), 0.75)  # (n, H, W, 3)
        for n, (board, caption, ax) in enumerate(zip(boards, titles, cells)):
            ax.imshow(board)
            ax.set(xticks=[], yticks=[], ylabel="" if n % columns else name)
            ax.set_title(caption, fontsize=9)
            for y, x in marks[n] if marks else ():
                ax.add_patch(Rectangle((x - 1, y - 1), 2, 2, fill=False, edgecolor="black", linewidth=0.8))
    for ax in cells:
        ax.set_axis_off()
    bar = figure.colorbar(ScalarMappable(Normalize(-limit, limit), "bwr"), ax=axes, shrink=0.8, aspect=30, pad=0.01)
    bar.set_label("standard deviations of the pad")
    figure.suptitle("\n".join(textwrap.wrap(_text(title), int(9 * size[0]))), fontsize=10)
    save_figure(figure, path)
