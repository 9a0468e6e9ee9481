"""How time and memory of a training step grow with what users enlarge: python benchmarks/growth.py

Each quantity at three sizes, everything else as in speed.py: the median of 5 steps and the process's peak memory.
Writes a table and <output>.json.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.speed import METHODS, alone
from common.checkpoint import versions
from common.files import UserError, require_writable, write_json
from common.runtime import ArgumentParser, pick_device, say, script

GROWTH = [
    ("csflow", "image", (256, 512, 768)),
    ("csflow", "blocks", (1, 2, 4)),
    ("crrn", "boards", (10, 20, 40)),
    ("crrn", "width", (37, 77, 157)),
    ("memae", "image", (64, 128, 192)),
    ("memae", "frames", (8, 16, 32)),
    ("memae", "items", (500, 2000, 8000)),
    ("crn", "image", (128, 256, 384)),
    ("crn", "units", (2, 6, 12)),
    ("riad", "image", (28, 56, 112)),
]


@script
def main(argv: list[str] | None = None) -> None:
    """Measure all of GROWTH, one process after the other."""
    parser = ArgumentParser(
        description="Time and memory of training steps at growing sizes.",
        example="python benchmarks/growth.py --only memae",
    )
    add = parser.add_argument_group("what to time, where").add_argument
    add("--only", nargs="+", choices=METHODS, default=list(METHODS), help="methods")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:1")
    add("--output", type=Path, default=Path(__file__).parent / "results/growth.json", help="file of the results")
    options = parser.parse_args(argv)
    if options.output.is_dir():
        raise UserError(f"--output {options.output} is a folder: give a file")
    require_writable(options.output.parent)
    device = pick_device(options.device)
    say("| method | quantity | sizes | time of a step | peak memory |\n|---|---|---|---|---|")
    rows = []
    for method, quantity, sizes in GROWTH:
        if method not in options.only:
            continue
        cases = [(method, "step", "fp32", "channels_last", str(device), {quantity: size}, 5, 0) for size in sizes]
        results = [alone(case) for case in cases]
        rows += results
        times = ", ".join(f"{result['median_s']:.2f}" for result in results)
        memory = ", ".join(f"{result['memory_gib']:.1f}" for result in results)
        say(f"| {method} | {quantity} | {', '.join(map(str, sizes))} | {times} s | {memory} GiB |")
        write_json(options.output, {"versions": versions(), "cases": rows})
    say(f"results: {options.output}")


if __name__ == "__main__":
    sys.exit(main())
