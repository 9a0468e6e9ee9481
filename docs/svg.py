"""The shapes that docs/draw.py puts together: each function returns SVG.

In a line of text, _{...} is a subscript and ^{...} a superscript. A picture is a list of sections, one below the other,
with lengths in pixels of a picture WIDTH wide, each from its own left upper corner. Colours follow the reader's light
or dark scheme.
"""

import re
from collections.abc import Sequence
from html import escape
from pathlib import Path

WIDTH = 880
# Fill and line in the light and in the dark scheme: data, trained networks, fixed operations, losses, what is found ...
COLOURS = {
    "data": "#ddf4ff #0969da #0d2d57 #4493f8", "net": "#fff1e5 #bc4c00 #4a1f04 #f0883e",
    "fixed": "#eaeef2 #59636e #262c36 #9198a1", "loss": "#ffebe9 #cf222e #55110f #f85149",
    "found": "#fbefff #8250df #371b63 #ab7df8", "paper": "#ffffff #d0d7de #0d1117 #3d444d",
    "ink": "#1f2328 #1f2328 #f0f6fc #f0f6fc", "soft": "#59636e #59636e #9198a1 #9198a1",
    "brick": "#c9b8a8 #c9b8a8 #8d7a68 #8d7a68", "hole": "#1f2328 #1f2328 #c9d1d9 #c9d1d9",
    "blank": "#ffffff #ffffff #0d1117 #0d1117", "frame": "none #59636e none #9198a1",
}  # fmt: skip


Section = tuple[str, int, list[str]]  # title, height, parts


def write(path: Path, title: str, sections: Sequence[Section]) -> None:
    """The picture, on a panel of its own: its colours fit each other, whatever the page behind it has."""
    top, body = 0, ""
    for name, height, parts in sections:
        head = text(24, 34, name, size=24, anchor="start").replace("<text", '<text font-weight="bold"')
        body += f'<g transform="translate(0 {top})">' + "\n".join([head, *parts]) + "</g>\n"
        top += height
    marks = "".join(
        f'<marker id="{kind}" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="13" markerHeight="13" '
        f'markerUnits="userSpaceOnUse" orient="auto"><path d="M0 0L10 5L0 10z" class="{kind}-t"/></marker>'
        for kind in ("ink", "net", "data", "found")
    )
    picture = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {top + 8}" width="{WIDTH}" height="{top + 8}" '
        f'role="img" font-family="Helvetica, Arial, sans-serif" stroke-width="2">\n<title>{escape(title)}</title>\n'
        f"<style>{style(0)}.halo{{stroke-width:7px;stroke-linejoin:round;paint-order:stroke}}\n"
        f"@media (prefers-color-scheme: dark){{{style(2)}}}</style>\n<defs>{marks}</defs>\n"
        f"{rect(1, 1, WIDTH - 2, top + 6, 'paper', 10)}\n{body}</svg>\n"
    )
    path.write_bytes(picture.encode())


def style(first: int) -> str:
    """Classes of shapes, lines and texts of each kind, from the colours number `first` and the next."""
    colours = {kind: four.split()[first : first + 2] for kind, four in COLOURS.items()}
    rules = (
        f".{kind}{{fill:{fill};stroke:{line}}}.{kind}-l{{stroke:{line};fill:none}}.{kind}-t{{fill:{line};stroke:none}}"
        for kind, (fill, line) in colours.items()
    )
    return "".join(rules) + f".halo{{stroke:{colours['paper'][0]}}}"


def text(
    x: float, y: float, line: str, kind: str = "ink", size: int = 20, anchor: str = "middle", halo: bool = False
) -> str:
    """One line around the height y; a halo keeps it readable on top of an arrow."""
    spans, shift = "", 0.0
    for mark, small, plain in re.findall(r"([_^])\{(.*?)\}|((?:(?![_^]\{).)+)", line):
        to = {"_": 0.25, "^": -0.4, "": 0.0}[mark] * size
        smaller = f' font-size="{round(0.72 * size)}"' if mark else ""
        spans += f'<tspan dy="{to - shift:g}"{smaller}>{escape(small or plain)}</tspan>'
        shift = to
    return (
        f'<text x="{x:g}" y="{y + 0.35 * size:g}" font-size="{size}" text-anchor="{anchor}" '
        f'class="{kind}-t{" halo" * halo}">{spans}</text>'
    )


def rect(x: float, y: float, w: float, h: float, kind: str, radius: int = 0) -> str:
    """A rectangle from its left upper corner (x, y)."""
    return f'<rect x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}" rx="{radius}" class="{kind}"/>'


def box(x: float, y: float, w: float, h: float, *lines: str, kind: str = "net", radius: int = 8) -> str:
    """A rectangle from its left upper corner (x, y), with lines of text in its middle."""
    first = y + h / 2 - (len(lines) - 1) * 13
    texts = [text(x + w / 2, first + 26 * i, line) for i, line in enumerate(lines)]
    return rect(x, y, w, h, kind, radius) + "".join(texts)


def circle(x: float, y: float, sign: str, kind: str = "fixed") -> str:
    """An operation on what meets at (x, y)."""
    return f'<circle cx="{x:g}" cy="{y:g}" r="17" class="{kind}"/>' + text(x, y, sign)


def arrow(*points: float, kind: str = "ink", head: bool = True, dash: bool = False) -> str:
    """A line through the points x, y, x, y, ..., with a head at the last one."""
    path = " ".join(f"{value:g}" for value in points)
    ends = (f' marker-end="url(#{kind})"' if head else "") + (' stroke-dasharray="7 5"' if dash else "")
    return f'<path d="M{path}" class="{kind}-l"{ends}/>'


def across(y: float, *ends: float) -> str:
    """Arrows at the height y, from the first of `ends` to the second, from the third to the fourth, ..."""
    return "".join(arrow(start, y, end, y) for start, end in zip(ends[::2], ends[1::2]))


def stack(x: float, y: float, side: float, label: str) -> str:
    """Feature maps around the point (x, y), each side x side, one behind the other."""
    left, top = x - side / 2, y - side / 2
    return "".join(rect(left + d, top - d, side, side, "data", 2) for d in (12, 6)) + box(
        left, top, side, side, label, kind="data", radius=2
    )


def funnel(x: float, y: float, w: float, left: float, right: float, *lines: str) -> str:
    """An encoder or decoder around the height y: a trapezoid from the height `left` to `right`."""
    points = f"{x:g},{y - left / 2:g} {x + w:g},{y - right / 2:g} {x + w:g},{y + right / 2:g} {x:g},{y + left / 2:g}"
    texts = [text(x + w / 2, y - (len(lines) - 1) * 13 + 26 * i, line) for i, line in enumerate(lines)]
    return f'<polygon points="{points}" class="net"/>' + "".join(texts)


def table(y: float, lefts: Sequence[float], rows: Sequence[str]) -> str:
    """Rows of texts, cells separated by |, each beginning at its column's left end; the first row names the columns."""
    kinds = ["soft"] + ["ink"] * (len(rows) - 1)
    return arrow(24, y + 18, WIDTH - 24, y + 18, kind="soft", head=False) + "".join(
        text(x, y + 36 * i, cell.strip(), kinds[i], anchor="start")
        for i, row in enumerate(rows)
        for x, cell in zip(lefts, row.split("|"))
    )
