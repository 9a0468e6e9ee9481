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
Command = Sequence[Any]  # a script of this repository, relative to ROOT, and its options


def run(program: str, *options: Any) -> None:
    """Run a script of this repository, as `common.runtime.run_script` does."""
    run_script(ROOT / program, *options)


def read_record(path: Path, **kinds: type | tuple[type, ...]) -> dict[str, Any]:
    """What `write_json` has stored of a run. UserError where one of these entries is of another type, or missing."""
    record = read_json(path)
    if not isinstance(record, dict) or not all(isinstance(record.get(name), kind) for name, kind in kinds.items()):
        raise UserError(f"{path} is damaged: remove {path.parent} to run it again")
    return record


def key_of(about: Any) -> str:
    """10 hexadecimal digits that tell runs of other commands apart, for the names of their folders."""
    return hashlib.sha256(json.dumps(about, default=str).encode()).hexdigest()[:10]


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
