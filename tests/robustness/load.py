"""Does scoring a lot keep its memory flat and what it has done? python tests/robustness/load.py --share 0.1

10,000 images through CS-Flow's score.py (128 px), CRN's (32 px) and RIAD's (28 px), 90,000 frames of 16 px through
MemAE's script_testing.py, 1,000 boards through CRRN's 3_score_boards.py, with small networks, on drawn data in --folder
(a temporary one). Each script is stopped twice, by Ctrl-C after a tenth and by SIGKILL after a fifth, and started
again. While the last process works, its memory (RSS) is sampled: the table tells it at a fifth of its items and the
highest one after that. Exit status 1 where that grew by more than --bound MiB, or where something was scored twice.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import numpy as np

from common.cli import ArgumentParser, number, say, script
from common.files import UserError, read_marked_lines, require_writable, write_json
from tests.robustness.methods import CYCLE, METHODS, Method


def _rows(place: Path) -> int:
    """Lines of the progress below its header."""
    path = place / "out/progress.jsonl"
    return max(path.read_bytes().count(b"\n") - 1, 0) if path.exists() else 0


def _clips(place: Path) -> int:
    for path in place.glob("out/*/long.npy"):
        return len(np.load(path, allow_pickle=False))
    rows = [row for path in place.glob("out/*/progress.jsonl") for row in read_marked_lines(path)[1:]]
    return sum(len(row[3]) for row in rows if row)


class Case(NamedTuple):
    """Of a method: how many items are scored, what its training's and its scoring's options are followed by, the folder
    of the items, how many of them are scored so far in a place, and how many more files it needs (a clip has 16)."""

    count: int
    training: str
    scoring: str = ""
    items: str = "images"
    scored: Callable[[Path], int] = _rows
    more: int = 0


CASES = {
    "csflow": Case(10_000, "--img_size 128 --n_scales 1 --fc_internal 1 --kernel_sizes 1"),
    "crn": Case(10_000, "--imsize 32 --max-network-depth 3 --ngf 1 --num-competitive-units 1"),
    "riad": Case(10_000, "--img_size 28 --filters 1 1 1 1", "--batch_score 32"),
    "memae": Case(90_000, "--MemDim 1", "--MemDim 1 --BatchSize 16", "data/stripes/Test/long", _clips, 15),
    "crrn": Case(1000, "--num_instance 1 --batch_size 1", scored=lambda place: CYCLE * _rows(place)),
}


def multiply(folder: Path, count: int) -> None:
    """Put `count` links to the files of each folder in the files' place, numbered from the first one's number on."""
    for parent, _, names in list(os.walk(folder)):
        if len(names) > 1:
            few = Path(parent).rename(folder.with_name("few"))
            files, numbers = sorted(few.iterdir()), re.compile(r"\d+$")
            first, start = files[0].stem, numbers.search(files[0].stem)[0]
            Path(parent).mkdir()
            for index in range(count):
                name = numbers.sub(f"{int(start) + index:0{len(start)}d}", first)
                os.link(files[index % len(files)], Path(parent, name + files[0].suffix))
            shutil.rmtree(few)


def start(place: Path, module: str, options: list[str]) -> subprocess.Popen:
    """The script in a process; what it says is added to the file `said`."""
    (place / "run").mkdir(exist_ok=True)
    with (place / "said").open("ab") as said:
        command = [sys.executable, str(ROOT / f"{module.replace('.', '/')}.py"), *options]
        return subprocess.Popen(command, cwd=place / "run", stdout=said, stderr=said)


def memory(process: subprocess.Popen) -> float:
    """Resident memory in MiB; 0 where the process has ended. Linux only."""
    try:
        pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
    except (OSError, IndexError):
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def score(method: Method, case: Case, place: Path, until: float, stop: int | None) -> list[tuple[float, int, float]]:
    """Start scoring; with `until` items, send the signal, if any. Returns (seconds, items, MiB) in the course.

    UserError where the process ends otherwise.
    """
    started, curve = time.monotonic(), []
    process = start(place, method.scorer, [*method.scoring.format(place=place).split(), *case.scoring.split()])
    while process.poll() is None:
        items = case.scored(place)
        curve.append((time.monotonic() - started, items, memory(process)))
        if stop is not None and items >= until:
            process.send_signal(stop)
            process.wait(timeout=600)
        time.sleep(0.2)
    if process.returncode not in ((0,) if stop is None else (130, -stop)):
        last = (place / "said").read_text(errors="replace").splitlines()[-1:]
        raise UserError(f"{method.scorer} ended with status {process.returncode}: {' '.join(last)}")
    return [point for point in curve if point[2]]


def measure(method: Method, case: Case, place: Path, count: int) -> dict[str, float]:
    """Make the data, train, score with two interruptions; what the last process of three needed."""
    method.make_data(place)
    if start(place, method.module, [*method.argv(place, 1), *case.training.split()]).wait():
        raise UserError((place / "said").read_text(errors="replace").splitlines()[-1])
    method.make_items(place)
    multiply(place / case.items, count + case.more)
    kept = []
    for until, stop in ((0.1, signal.SIGINT), (0.2, signal.SIGKILL)):
        score(method, case, place, until * count, stop)
        kept.append(case.scored(place))
    curve = score(method, case, place, count, None)
    if not 0 < kept[0] <= kept[1] or min(items for _, items, _ in curve) < kept[1]:
        raise UserError(f"{method.name} has lost what was scored before an interruption: {kept}, then {curve[0][1]}")
    if (scored := case.scored(place)) < count:
        raise UserError(f"{method.name} has scored {scored} of {count}")
    first = kept[1] + (count - kept[1]) / 5
    # Not at its end: what unloads the libraries touches pages that nothing has needed before.
    later = [mib for _, items, mib in curve if first <= items < count] or [curve[-1][2]]
    begun = next(seconds for seconds, items, _ in curve if items > kept[1])
    return {
        "items": count,
        "kept": kept,
        "seconds": curve[-1][0],
        "per_second": (count - kept[1]) / max(curve[-1][0] - begun, 1e-3),
        "mib_at_a_fifth": later[0],
        "mib_highest_later": max(later),
        "curve": curve[:: max(len(curve) // 200, 1)],
    }


@script
def main(argv: list[str] | None = None) -> int:
    """Measure the cases, one after the other; exit status 1 where memory grew."""
    parser = ArgumentParser(
        description="Score a lot, with interruptions, and watch the memory.",
        example="python tests/robustness/load.py --only memae --share 0.1",
    )
    add = parser.add_argument_group("load").add_argument
    add("--only", nargs="+", choices=CASES, default=list(CASES), help="methods")
    add("--share", type=number(0, 1, above=True), default=1.0, help="of the items")
    add("--bound", type=number(0), default=50.0, help="MiB by which the memory may grow")

    add = parser.add_argument_group("files").add_argument
    add("--folder", type=Path, help="for data and results, which stay there; unset: a temporary one")
    add("--output", type=Path, default=ROOT / "benchmarks/results/load.json", help="file of the results")
    options = parser.parse_args(argv)
    if not Path("/proc/self/statm").exists():
        raise UserError("memory is read from Linux's /proc, which is not here")
    require_writable(options.output.parent)
    for name in options.only if options.folder else ():
        if (options.folder / name).exists():
            raise UserError(f"{options.folder / name} exists already: choose another --folder")
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background jobs ignore, and their own
    say("| method | items | per second | memory at a fifth | highest after that |")
    say("|---|---|---|---|---|")
    results = {}
    for method in (method for method in METHODS if method.name in options.only):
        case = CASES[method.name]
        with tempfile.TemporaryDirectory() as temporary:
            place = (options.folder or Path(temporary)).resolve() / method.name
            place.mkdir(parents=True)
            results[method.name] = measured = measure(method, case, place, round(case.count * options.share))
        say(
            f"| {method.name} | {measured['items']} | {measured['per_second']:.1f} | "
            f"{measured['mib_at_a_fifth']:.0f} MiB | {measured['mib_highest_later']:.0f} MiB |"
        )
    write_json(options.output, results)
    return int(any(one["mib_highest_later"] - one["mib_at_a_fifth"] > options.bound for one in results.values()))


if __name__ == "__main__":
    sys.exit(main())
