"""Record what the tiny runs come to now, into tests/net/<case>.json: python -m tests.net.record [CASE ...]

Only where a number is meant to change: say why in test_net.py. --into writes elsewhere, to compare.
"""

import argparse
import json
import tempfile
from pathlib import Path

import torch

from tests.net import runs


def main() -> None:
    """Record the cases given, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of {', '.join(runs.CASES)}; none: all")
    parser.add_argument("--into", type=Path, default=runs.HERE, help="folder for the files")
    parser.add_argument("--threads", type=int, default=1, help="1, but to see what the number of threads changes")
    options = parser.parse_args()
    for name in options.cases or runs.CASES:
        with tempfile.TemporaryDirectory() as folder, runs.without_pictures():
            torch.set_num_threads(options.threads)
            data = runs.trained(runs.CASES[name], Path(folder))
            found = runs.measured(runs.CASES[name], Path(folder), data)
        lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in found.items()]
        options.into.mkdir(exist_ok=True)
        (options.into / f"{name}.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")
        print(f"recorded {name}")


if __name__ == "__main__":
    main()
