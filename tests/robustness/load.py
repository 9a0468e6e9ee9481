"""Does scoring a lot keep its memory flat and what it has done? python tests/robustness/load.py --share 0.1

10,000 images through CS-Flow's score.py (128 px), CRN's (32 px) and RIAD's (28 px), 90,000 frames of 32 px through
MemAE's script_testing.py, 1,000 boards through CRRN's 3_score_boards.py, with small networks, on drawn data in --folder
(a temporary one). Each script is stopped twice, by Ctrl-C after a tenth and by SIGKILL after a fifth, and started
again. While the last process works, its memory (RSS) is sampled: the table tells it at a fifth of its items and the
highest one after that. Exit status 1 where that grew by more than --bound MiB, or where something was scored twice.
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import numpy as np
from PIL import Image

from common.cli import ArgumentParser, say, script
from common.demo_data import make_textures
from common.files import UserError, require_writable, write_json
from crn.demo_data import ensure_data
from crrn.demo_boards import make_boards

# A script in a folder of its own: its arguments are that folder, the script's module and its options. What a shell runs
# in the background ignores Ctrl-C, and so would its processes.
PROGRAM = """
import importlib, pathlib, signal, sys, csflow.config
signal.signal(signal.SIGINT, signal.default_int_handler)
csflow.config.HERE = pathlib.Path(sys.argv[1])
sys.exit(importlib.import_module(sys.argv[2]).main(sys.argv[3:]))
"""


@dataclass
class Case:
    """What is scored: `count` items by the module `scorer`, with a network that the module `trainer` makes first."""

    count: int
    trainer: str
    training: str  # its options; {0} is the folder
    scorer: str
    scoring: str  # its options
    make: Callable[[Path, int], None]  # data to train on and items to score
    scored: Callable[[Path], int] = lambda place: _lines(place / "out/progress.jsonl")  # how many items so far


def _lines(path: Path) -> int:
    """Lines of a table below its header."""
    return max(path.read_bytes().count(b"\n") - 1, 0) if path.exists() else 0


def _clips(place: Path) -> int:
    if list(place.glob("out/*/video.npy")):
        return len(np.load(next(place.glob("out/*/video.npy")), allow_pickle=False))
    return sum(path.stat().st_size // 16 for path in place.glob("out/*/unfinished/video.scoring"))


def _boards_scored(place: Path) -> int:
    return 20 * _lines(place / "out/progress.jsonl")  # a cycle each


def _many(sources: list[Path], folder: Path, count: int, name: str = "{:05d}") -> None:
    """`count` links to these files."""
    folder.mkdir(parents=True)
    for number in range(count):
        source = sources[number % len(sources)]
        os.link(source, folder / f"{name.format(number + 1)}{source.suffix}")


def _noise(folder: Path, size: int, mode: str = "RGB", kind: str = ".png") -> list[Path]:
    """20 images."""
    folder.mkdir(parents=True)
    random, shape = np.random.default_rng(0), (size, size, 3) if mode == "RGB" else (size, size)
    paths = [folder / f"{number}{kind}" for number in range(20)]
    for path in paths:
        Image.fromarray(random.integers(0, 256, shape, np.uint8)).save(path)
    return paths


def _images(place: Path, count: int, size: int) -> None:
    make_textures(place / "data", size=max(size, 64), n_train=8, n_good=3, n_defect=1)
    _many(_noise(place / "few", size), place / "images", count)


def _panorama(place: Path, count: int) -> None:
    ensure_data("Panorama", place / "data")
    _many(_noise(place / "few", 32), place / "images", count)


def _video(place: Path, count: int) -> None:
    frames = _noise(place / "few", 32, "L", ".jpg")
    for part, number in (("Train", 24), ("Test", count + 15)):
        _many(frames, place / "data/noise" / part / "video", number)


def _boards(place: Path, count: int) -> None:
    make_boards(place / "data", boards=100)
    make_boards(place / "images", boards=count, run=1)


MEMAE = "--DataRoot {0}/data --Dataset noise --ModelRoot {0}/models --MemDim 1 --UseCUDA no"
CASES = {
    "csflow": Case(
        10_000,
        "csflow.main",
        "--dataset_path {0}/data --class_name brick --feature_path {0}/features --modelname m --img_size 128 "
        "--n_scales 1 --fc_internal 1 --kernel_sizes 1 --extractor lite0 --meta_epochs 1 --sub_epochs 1 --cpu",
        "csflow.score",
        "--modelname m --images {0}/images --output {0}/out --cpu",
        lambda place, count: _images(place, count, 128),
    ),
    "crn": Case(
        10_000,
        "crn.train",
        "--mode train --dataset Panorama --dataset-path {0}/data --imsize 32 --max-network-depth 3 --batch-size 2 "
        "--ngf 1 --num-competitive-units 1 --epochs 1 "
        "--log-dir {0}/log --log-file {0}/log.log --image-output-path {0}/pictures --checkpoint-path {0}/model --cpu",
        "crn.score",
        "--images {0}/images --model-input {0}/model/last.ckpt --output {0}/out --cpu",
        _panorama,
    ),
    "riad": Case(
        10_000,
        "riad.run",
        "--dataset mvtec --data_path {0}/data/brick --img_size 28 --filters 1 1 1 1 --epochs 1 --figures_every 0 "
        "--output {0}/model --cpu",
        "riad.score",
        "--images {0}/images --checkpoint {0}/model/Checkpoint/model_0_finepoch.pth --output {0}/out --cpu",
        lambda place, count: _images(place, count, 28),
    ),
    "memae": Case(
        90_000,
        "memae.script_training",
        MEMAE + " --EpochNum 1",
        "memae.script_testing",
        MEMAE + " --OutRoot {0}/out --BatchSize 16",
        _video,
        _clips,
    ),
    "crrn": Case(
        1000,
        "crrn.1_train",
        "--data {0}/data --result {0}/model --cpu --n_layers 1 --num_instance 1 --batch_size 1 --num_epochs 1",
        "crrn.3_score_boards",
        "--data {0}/data --result {0}/model --cpu --n_layers 1 --boards {0}/images --output {0}/out",
        _boards,
        _boards_scored,
    ),
}  # fmt: skip


def start(place: Path, module: str, options: str) -> subprocess.Popen:
    """The module's main in a process; what it says is added to the file `said`."""
    with (place / "said").open("ab") as said:
        command = [sys.executable, "-c", PROGRAM, str(place), module, *options.format(place).split()]
        return subprocess.Popen(command, cwd=ROOT, stdout=said, stderr=said)


def memory(process: subprocess.Popen) -> float:
    """Resident memory in MiB; 0 where the process has ended. Linux only."""
    try:
        pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
    except (OSError, IndexError):
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def score(case: Case, place: Path, count: int, until: float, stop: int | None, statuses: set[int]) -> list[tuple]:
    """Start scoring; at the share `until` of the items, send the signal. Returns (seconds, items, MiB) in the course.

    UserError where the process ends otherwise than with one of the statuses.
    """
    started, curve = time.monotonic(), []
    process = start(place, case.scorer, case.scoring)
    while process.poll() is None:
        items = case.scored(place)
        curve.append((time.monotonic() - started, items, memory(process)))
        if stop is not None and items >= until * count:
            process.send_signal(stop)
            process.wait(timeout=600)
        time.sleep(0.2)
    if process.returncode not in statuses:
        last = (place / "said").read_text(errors="replace").splitlines()[-1:]
        raise UserError(f"{case.scorer} ended with status {process.returncode}: {' '.join(last)}")
    return [point for point in curve if point[2]]


def measure(case: Case, place: Path, count: int) -> dict[str, float]:
    """Make the data, train, score with two interruptions; what the last process of three needed."""
    case.make(place, count)
    if start(place, case.trainer, case.training).wait():
        raise UserError((place / "said").read_text(errors="replace").splitlines()[-1])
    kept = []
    for until, stop in ((0.1, signal.SIGINT), (0.2, signal.SIGKILL)):
        score(case, place, count, until, stop, {130, -stop})
        kept.append(case.scored(place))
    curve = score(case, place, count, 1, None, {0})
    if not 0 < kept[0] <= kept[1] or min(items for _, items, _ in curve) < kept[1]:
        raise UserError(f"{case.scorer} has lost what was scored before an interruption: {kept}, then {curve[0][1]}")
    if case.scored(place) != count:
        raise UserError(f"{case.scorer} has scored {case.scored(place)} of {count}")
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
    add("--share", type=float, default=1.0, help="of the items")
    add("--bound", type=float, default=50.0, help="MiB by which the memory may grow")

    add = parser.add_argument_group("files").add_argument
    add("--folder", type=Path, help="for data and results, which stay there; unset: a temporary one")
    output = ROOT / "benchmarks/results/load.json"
    add("--output", type=Path, default=output, help="file of the results")
    options = parser.parse_args(argv)
    if not 0 < options.share <= 1 or not Path("/proc/self/statm").exists():
        raise UserError(f"--share {options.share}: expected a number above 0, up to 1; and Linux, for /proc")
    if not options.bound >= 0:
        raise UserError(f"--bound {options.bound}: expected a number of MiB from 0 on")
    if options.output.is_dir():
        raise UserError(f"--output {options.output} is a folder: give a file")
    require_writable(options.output.parent)
    for name in options.only if options.folder else ():
        if (options.folder / name).exists():
            raise UserError(f"{options.folder / name} exists already: choose another --folder")
    say("| method | items | per second | memory at a fifth | highest after that |")
    say("|---|---|---|---|---|")
    results, grown = {}, False
    for name in options.only:
        with tempfile.TemporaryDirectory() as temporary:
            place = (options.folder or Path(temporary)).resolve() / name
            place.mkdir(parents=True)
            found = measure(CASES[name], place, round(CASES[name].count * options.share))
        results[name] = found
        grown |= found["mib_highest_later"] - found["mib_at_a_fifth"] > options.bound
        say(
            f"| {name} | {found['items']} | {found['per_second']:.1f} | {found['mib_at_a_fifth']:.0f} MiB "
            f"| {found['mib_highest_later']:.0f} MiB |"
        )
    write_json(options.output, results)
    return int(grown)


if __name__ == "__main__":
    sys.exit(main())
