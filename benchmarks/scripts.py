"""What the benchmarks share that run the methods' own scripts: demo.py, compare.py and accuracy.py."""

import hashlib
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.cli import run_script
from common.files import UserError, read_json

ROOT = Path(__file__).resolve().parents[1]


def run(program: str, *options: Any) -> None:
    """Run a script of this repository, as `common.cli.run_script` does."""
    run_script(ROOT / program, *options)


def commands(lines: Sequence[str], **values: Any) -> list[list[str]]:
    """A command for each line: a script, relative to ROOT, and its options, with {name} replaced by the value of that
    name, a list by its items."""

    def filled(word: str) -> list[str]:
        value = values.get(word[1:-1]) if word.startswith("{") and word.endswith("}") else None
        return list(map(str, value)) if isinstance(value, list) else [word.format(**values)]

    return [[part for word in line.split() for part in filled(word)] for line in lines]


def number_at(results: Any, *key: str | int) -> float | None:
    """The number at this place of a results file; None where there is none, such as pixel metrics without masks."""
    for part in key:
        try:
            results = results[part]
        except (KeyError, IndexError, TypeError):
            return None
    return results


def read_record(path: Path, **kinds: type | tuple[type, ...]) -> dict[str, Any]:
    """What `write_json` has stored of a run. UserError where one of these entries is of another type, or missing."""
    record = read_json(path)
    if not isinstance(record, dict) or not all(isinstance(record.get(name), kind) for name, kind in kinds.items()):
        raise UserError(f"{path} is damaged: remove {path.parent} to run it again")
    return record


def key_of(content: Any) -> str:
    """10 hexadecimal digits that tell runs of other commands apart, for the names of their folders."""
    return hashlib.sha256(json.dumps(content, default=str).encode()).hexdigest()[:10]


def mean_and_spread(values: Sequence[float | None]) -> str:
    """Mean ± standard deviation, or the one value; nothing where there is none, or where one is missing."""
    if not values or None in values:
        return ""
    return f"{statistics.fmean(values):.3f}" + (f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else "")


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    """Lines of text in columns."""
    texts = [[f"{value:.4f}" if isinstance(value, float) else str(value) for value in row] for row in [header, *rows]]
    widths = [max(map(len, column)) for column in zip(*texts)]
    return ["  ".join(text.ljust(width) for text, width in zip(row, widths)).rstrip() for row in texts]
