"""Pictures of MemAE: losses over epochs, errors over frames."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from common.report import COLOURS, DEFECTIVE, save_figure

LINES = [colour for colour in COLOURS if colour != DEFECTIVE]  # that of the spans


def curve_figure(
    path: Path,
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    title: str,
    x_name: str,
    y_name: str,
    spans: Sequence[tuple[float, float]] = (),
    span_name: str = "",
) -> None:
    """Draw values over time or epochs: one line for each entry {name: (x, y)}, x and y of N finite numbers each.

    spans: stretches (first, last) of x to shade, such as abnormal frames, listed as `span_name`.
    Raises ValueError where x and y are of unlike lengths, UserError where the file cannot be written.
    """
    figure = Figure((10.5, 4.4), layout="constrained")
    axes = figure.subplots()
    for number, (first, last) in enumerate(spans):
        label = None if number else span_name
        axes.axvspan(first - 0.5, last + 0.5, color=DEFECTIVE, alpha=0.2, linewidth=0, label=label)
    for number, (name, (x, y)) in enumerate(curves.items()):
        marker = "o" if len(x) == 1 else None  # a line through one point shows nothing
        axes.plot(x, y, marker=marker, linewidth=1.5, color=LINES[number % len(LINES)], label=name)
    axes.set(xlabel=x_name, ylabel=y_name)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), borderaxespad=0, fontsize=9)
    title = title.encode("utf-8", "backslashreplace").decode()  # a folder's name need not be text that can be drawn
    axes.set_title("\n".join(textwrap.wrap(title, 90)), parse_math=False)
    save_figure(figure, path)
