"""One HTML file that holds everything it shows: texts, tables and pictures. It needs no network and no other file."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

from common.files import UserError, atomic_write, reason

_KINDS = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg"}
_STYLE = """
:root { color-scheme: light dark; --line: #ccc; }
@media (prefers-color-scheme: dark) { :root { --line: #555; } }
body { font: 16px/1.5 system-ui, sans-serif; margin: 0; }
main { max-width: 70rem; margin: auto; padding: 1rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; }
th, td { padding: .25rem .75rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
figure { margin: 1rem 0; }
figcaption { font-size: .9rem; }
img { max-width: 100%; height: auto; background: white; border-radius: .25rem; }
"""


@dataclass
class Section:
    """A part of a report: paragraphs, then a table, then pictures."""

    title: str
    paragraphs: Sequence[str] = ()
    header: Sequence[str] = ()  # of the table
    rows: Sequence[Sequence[Any]] = ()  # numbers are shown with four digits
    pictures: Sequence[tuple[Path, str]] = field(default_factory=tuple)  # PNG or JPEG file, caption


def write_report(path: str | Path, title: str, sections: Sequence[Section]) -> None:
    """Write the page. Raises UserError where a picture cannot be read or the page not be written."""
    body = "\n".join(_section(section) for section in sections)
    page = (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{escape(title)}</title>\n'
        f"<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n<h1>{escape(title)}</h1>\n{body}\n</main>\n</body>\n</html>\n"
    )
    with atomic_write(path, "w") as file:
        file.write(page)


def _section(section: Section) -> str:
    parts = [f"<h2>{escape(section.title)}</h2>"]
    parts += [f"<p>{escape(text)}</p>" for text in section.paragraphs]
    if section.rows:
        head = "".join(f"<th>{escape(str(name))}</th>" for name in section.header)
        rows = "".join(f"<tr>{''.join(f'<td>{_cell(value)}</td>' for value in row)}</tr>\n" for row in section.rows)
        parts.append(f'<div class="wide"><table>\n<tr>{head}</tr>\n{rows}</table></div>')
    parts += [_picture(Path(path), caption) for path, caption in section.pictures]
    return "\n".join(parts)


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else escape(str(value))


def _picture(path: Path, caption: str) -> str:
    kind = _KINDS.get(path.suffix.lower())
    if kind is None:
        raise UserError(f"{path} is no picture that a report can hold: PNG or JPEG")
    try:
        data = base64.b64encode(path.read_bytes()).decode("ascii")
    except OSError as error:
        raise UserError(f"cannot read {path}: {reason(error)}") from error
    text = escape(caption)
    return f'<figure><img src="data:image/{kind};base64,{data}" alt="{text}"><figcaption>{text}</figcaption></figure>'
