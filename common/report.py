"""Reports: one HTML file that holds everything it shows, texts, tables and pictures, and needs no network and no other
file. `write_report` writes any, `write_image_report` that of a method which scores images."""

import base64
import io
import re
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from common.cli import say
from common.figures import image_row, map_sheet, roc_figure, score_histogram
from common.files import UserError, atomic_write, first_process, reason

_WIDE = 700  # px; pictures that are wider are not shrunk to a phone's width, but scroll
_STYLE = """
:root { color-scheme: light dark; --line: #ccc; }
@media (prefers-color-scheme: dark) { :root { --line: #555; } }
body { font: 16px/1.5 system-ui, sans-serif; margin: 0; overflow-wrap: anywhere; }
main { max-width: 70rem; margin: auto; padding: 1rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; }
th, td { padding: .25rem .75rem .25rem 0; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
th, td { min-width: 4rem; overflow-wrap: normal; }
figure { margin: 1rem 0; }
figcaption { font-size: .9rem; }
img { display: block; max-width: 100%; height: auto; background: white; border-radius: .25rem; }
@media (max-width: 44rem) {
  th, td { font-size: .8rem; padding-right: .5rem; min-width: 0; }
  .wide img { max-width: 36rem; }
  .wide figcaption::after { content: " (Swipe the picture to see all of it.)"; opacity: .7; }
}
"""

Column = tuple[np.ndarray, np.ndarray, str, np.ndarray | None]  # image, anomaly map, name, mask


@dataclass
class Section:
    """A part of a report: paragraphs, then a table, then pictures."""

    title: str
    paragraphs: Sequence[str] = ()
    header: Sequence[str] = ()  # of the table
    rows: Sequence[Sequence[Any]] = ()  # numbers are shown with four digits
    pictures: Sequence[tuple[Path, str]] = field(default_factory=tuple)  # PNG or JPEG file, caption


def write_report(path: str | Path, title: str, sections: Sequence[Section], pages: Sequence[Path] = ()) -> None:
    """Write the page, and say where it is.

    pages: reports written earlier, which follow the sections whole. Raises UserError where a picture or a page cannot
    be read or the page not be written. Processes other than the first one of a run write nothing.
    """
    if not first_process():
        return
    inner = [_nested(page) for page in pages]
    links = "".join(f'<li><a href="#part{n}">{name}</a></li>\n' for n, (name, _) in enumerate(inner))
    parts = [_section(section) for section in sections]
    parts += [f"<nav><ul>\n{links}</ul></nav>"] if inner else []
    parts += [f'<section id="part{n}">\n{text}</section>' for n, (_, text) in enumerate(inner)]
    body = "\n".join(parts)
    page = (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{escape(title)}</title>\n'
        f"<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n<h1>{escape(title)}</h1>\n{body}\n</main>\n</body>\n</html>\n"
    )
    with atomic_write(path, "w") as file:
        file.write(page)
    say(f"report: {path}")


def write_image_report(
    path: str | Path,
    title: str,
    about: Sequence[str],
    numbers: Sequence[tuple[str, Any]],
    normal: Sequence[np.ndarray],
    labels: np.ndarray,
    scores: np.ndarray,
    column: Callable[[int], Column],
    threshold: float | None = None,
    score_name: str = "anomaly score",
) -> None:
    """Write the report of a method that scores test images.

    about: paragraphs on data, training and choice of the model; numbers: (metric, value); normal: some of the good
    images (H, W, 3) uint8; labels: (N,), 0 is good; scores: (N,); column(i): image i (H, W, 3) uint8, its
    anomaly map (h, w), its name, and its mask (h', w') or None.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        image_row(folder / "normal.jpg", normal)
        sections = [
            Section("Results", about, ("metric", "value"), numbers),
            Section("Normal data", pictures=[(folder / "normal.jpg", "Some of the good images given for training.")]),
        ]
        if len(labels):
            score_histogram(folder / "histogram.png", labels, scores, title, threshold, score_name=score_name)
            roc_figure(folder / "roc.png", {"all defects": (labels, scores)}, title)
            curves = [
                (folder / "histogram.png", "How the scores are distributed."),
                (folder / "roc.png", "ROC: what share of the defective images is found at which false-positive rate."),
            ]
            sections.append(Section("Scores", pictures=curves))
            sections.append(case_section(folder, cases(labels, scores), labels, scores, column))
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
    folder: Path, chosen: dict[str, list[int]], labels: np.ndarray, scores: np.ndarray, column: Callable[[int], Column]
) -> Section:
    """A sheet of image, map and overlay, drawn in `folder`, for each entry of `chosen`, {name: numbers of images}.

    labels, scores, column: as `write_image_report` takes them. All maps share one colour scale, from the median of
    those of normal images to the highest values.
    """
    columns = {i: column(i) for i in sorted({i for rows in chosen.values() for i in rows})}
    normal = [columns[i][1] for i in columns if not labels[i]] or [shown[1] for shown in columns.values()]
    vmin = float(np.median(np.concatenate([np.ravel(values) for values in normal])))
    vmax = float(np.quantile(np.concatenate([np.ravel(shown[1]) for shown in columns.values()]), 0.999))
    sheets = []
    for number, (name, rows) in enumerate(chosen.items()):
        shown = [(*columns[i][:2], f"{columns[i][2]}\nscore {scores[i]:.4g}") for i in rows]
        masks = [columns[i][3] for i in rows]
        map_sheet(folder / f"{number}.jpg", shown, name, masks, vmin=vmin, vmax=max(vmin, vmax))
        sheets.append((folder / f"{number}.jpg", f"{name[0].upper()}{name[1:]}."))
    return Section("Image, anomaly map, and both", pictures=sheets)


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


def pictures_of(path: Path, caption: str) -> list[Image.Image]:
    """The pictures of a report whose captions begin with `caption`. UserError where it cannot be read."""
    found = re.findall(r';base64,([^"]*)"[^>]* alt="([^"]*)"', _title_and_body(path)[1])
    return [Image.open(io.BytesIO(base64.b64decode(data))) for data, text in found if text.startswith(escape(caption))]


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


def _nested(path: Path) -> tuple[str, str]:
    """Title and body of a report, its headings one level lower."""
    title, body = _title_and_body(path)
    return title, re.sub(r"<(/?)h([1-5])>", lambda tag: f"<{tag[1]}h{int(tag[2]) + 1}>", body)


def _section(section: Section) -> str:
    parts = [f"<h2>{escape(section.title)}</h2>"]
    parts += [f"<p>{escape(text)}</p>" for text in section.paragraphs]
    if section.rows:
        head = "".join(f"<th>{escape(str(name))}</th>" for name in section.header)
        rows = "".join(f"<tr>{''.join(f'<td>{_cell(value)}</td>' for value in row)}</tr>\n" for row in section.rows)
        parts.append(f'<div class="scroll"><table>\n<tr>{head}</tr>\n{rows}</table></div>')
    parts += [_picture(Path(path), caption) for path, caption in section.pictures]
    return "\n".join(parts)


def _cell(value: Any) -> str:
    if value is None or value != value:  # nan
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else escape(str(value))


def _picture(path: Path, caption: str) -> str:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {reason(error)}") from error
    try:
        with Image.open(io.BytesIO(data), formats=("PNG", "JPEG")) as image:
            kind, (width, height) = image.format, image.size
    except OSError as error:
        raise UserError(f"{path} is no picture that a report can hold: PNG or JPEG") from error
    text, wide = escape(caption), ' class="wide"' if width > _WIDE else ""
    source = f"data:image/{kind.lower()};base64,{base64.b64encode(data).decode('ascii')}"
    image = f'<img src="{source}" width="{width}" height="{height}" alt="{text}">'
    return f'<figure{wide}><div class="scroll">{image}</div><figcaption>{text}</figcaption></figure>'
