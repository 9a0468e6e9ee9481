"""How time and memory of training grow with what users enlarge: python benchmarks/growth.py

Each quantity at three sizes, everything else as in speed.py: the median of 5 steps and the process's peak memory. Then
each method's own script on a growing number of small training images, frames or boards, with the smallest networks: the
CPU time of one epoch, start included, and the peak memory. Writes tables and <output>.json.
"""

import math
import os
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.load import CASES, start
from benchmarks.speed import METHODS, alone
from common.checkpoint import versions
from common.files import UserError, require_writable, write_json
from common.runtime import ArgumentParser, pick_device, say, script
from crn.training.dataset import TRAINED_SHARE
from crrn.demo_boards import make_boards

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
DATA = (300, 1000, 3000)  # images, frames or boards to train on
TRAINING_FOLDERS = {
    "csflow": "data/brick/train/good",
    "crn": "data/good_ones",
    "riad": "data/brick/train/good",
    "memae": "data/noise/Train/video",
}


def train_on(method: str, count: int, place: Path) -> dict[str, object]:
    """Train on about `count` images for an epoch, in the empty folder `place`: CPU seconds and peak memory.

    UserError where the script fails.
    """
    if method == "crrn":
        make_boards(place / "data", boards=count)
    else:
        CASES[method].make(place, 1)
        folder = place / TRAINING_FOLDERS[method]
        sources = sorted(folder.iterdir())
        files = math.ceil(count / TRAINED_SHARE) if method == "crn" else count  # CRN tests on the rest
        for number in range(len(sources), files):
            source = sources[number % len(sources)]
            os.link(source, folder / f"{number + 1:05d}{source.suffix}")
        for mark in (place / "data").rglob("SYNTHETIC"):
            mark.unlink()  # it vouches for the files that were drawn
    process = start(place, CASES[method].trainer, CASES[method].training)
    _, status, used = os.wait4(process.pid, 0)
    if status:
        raise UserError((place / "said").read_text(errors="replace").splitlines()[-1].removeprefix("error: "))
    return {
        "method": method,
        "items": count,
        "cpu_s": used.ru_utime + used.ru_stime,
        "memory_gib": used.ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20),  # in bytes, in KiB
    }


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
    say("| method | quantity | sizes | time of a step | peak memory |")
    say("|---|---|---|---|---|")
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
    say("| method | trained on | CPU time of an epoch | peak memory |")
    say("|---|---|---|---|")
    for method in options.only:
        results = []
        for count in DATA:
            with tempfile.TemporaryDirectory() as place:
                results.append(train_on(method, count, Path(place)))
        rows += results
        times = ", ".join(f"{result['cpu_s']:.0f}" for result in results)
        memory = ", ".join(f"{result['memory_gib']:.2f}" for result in results)
        say(f"| {method} | {', '.join(map(str, DATA))} | {times} s | {memory} GiB |")
        write_json(options.output, {"versions": versions(), "cases": rows})
    say(f"results: {options.output}")


if __name__ == "__main__":
    sys.exit(main())
