"""All five methods on embedded data, in minutes on two cores: python benchmarks/demo.py (make demo)

Runs each method's own scripts as a user would, into --output, and ends with a table, <output>/report.html, which holds
the methods' own reports (--report), and overview.jpg. What is finished is not computed again, so that an interrupted
demo resumes with the same command; after a change of the code it is, in a folder of its own. The data are generated or
small stand-ins: the demo shows that and how the methods work, not how well they do on real data.
"""

import base64
import io
import re
import shlex
import sys
import time
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.scripts import ROOT, commands, key_of, number_at, read_record, run, table
from common.cli import ArgumentParser, answer_early, in_hours, resumable, say, script
from common.files import UserError, digest, locked, read_json, require_writable, write_json


class Method(NamedTuple):
    """In `lines`, commands as typed, {folder} stands for the folder of the results, in which the other files lie."""

    title: str
    data: str
    seconds: int  # about what the commands take on two quiet cores, by their CPU time
    lines: Sequence[str]
    metric: str
    results: Sequence[tuple]  # who (the method, then plain baselines), file and the value's keys in it
    report: str


BRICKS = "--dataset_path {folder}/textures --class_name brick --extractor lite0 --img_size 256"
BOARDS = "--cycle 20 --protocol measured"
WALKERS = "--DataRoot {folder}/dataset --Dataset Walkers_64 --ModelRoot {folder}/models --MemDim 200"
WALKED = "results/res_MemAE_Conv3DSpar_Walkers_64_MemDim200_EntW0.0002_ShrThres0.0025_Seed1_Non"
SMALL = "--dataset MVTec --dataset-path {folder}/textures/brick --imsize 64 --batch-size 8 --log-file {folder}/log.log"
METHODS = {
    # EfficientNet-Lite0's features; the nearest neighbour among them is the baseline.
    "csflow": Method(
        "CS-Flow", "bricks, painted defects", 50,
        [
            "common/demo_data.py --output {folder}/textures",
            f"csflow/main.py {BRICKS} --feature_path {{folder}}/features --fc_internal 128 --batch_size 8 "
            "--lr_init 0.001 --meta_epochs 5 --sub_epochs 12 --output_path {folder} --modelname demo --report",
            f"benchmarks/nearest_neighbour.py {BRICKS} --feature_path {{folder}}/features --output {{folder}}/nearest",
        ],
        "image AUROC",
        [
            ("CS-Flow", "results/demo/results.json", "image_auroc"),
            ("nearest neighbour", "nearest/results.json", "image_auroc"),
        ],
        "results/demo/report.html",
    ),
    # 35 cycles to train on, 15 to test on, where one pad in ten is anomalous.
    "crrn": Method(
        "CRRN", "generated boards", 130,
        [
            "crrn/demo_boards.py --output {folder}/boards --boards 1000",
            f"crrn/1_train.py --data {{folder}}/boards {BOARDS} --num_epochs 3 --num_instance 400 --lr 0.001",
            f"crrn/2_test_model.py --data {{folder}}/boards {BOARDS} --report",
        ],
        "best F1, excessive paste",
        [
            (who, "boards/result/ConvConjLSTM_measured/results.json", "excessive", "0.1", *keys)
            for who, *keys in (("CRRN", "best_f1"), ("z-score", "z_score", "best_f1"))
        ],
        "boards/result/ConvConjLSTM_measured/report.html",
    ),
    # A vehicle, a runner and a thrown object are abnormal; errors are scaled per video, as published.
    "memae": Method(
        "MemAE", "generated walkers", 150,
        [
            f"memae/script_training.py {WALKERS} --BatchSize 6 --EpochNum 10 --LR 0.0003",
            f"memae/script_testing.py {WALKERS} --OutRoot {{folder}}/results --BatchSize 6",
            f"memae/script_eval_video.py {WALKERS} --OutRoot {{folder}}/results --BatchSize 6 --report",
        ],
        "frame AUC",
        [("MemAE", f"{WALKED}/results.json", "auc"), ("frame difference", f"{WALKED}/results.json", "baseline_auc")],
        f"{WALKED}/report.html",
    ),
    # With the published weights nothing is found in so few steps: see crn/README.md, "Results". Both of its scores; the
    # first one, of inference, is the published one for testing.
    "crn": Method(
        "CRN", "bricks, painted defects", 40,
        [
            "common/demo_data.py --output {folder}/textures",
            f"crn/train.py --mode train {SMALL} --image-output-path {{folder}}/pictures --num-competitive-units 2 "
            "--ngf 16 --training-steps 600 --lr 0.0002 --reconstruction-weight 2 --feedback-weight 0.25 "
            "--discrimination-weight 0.1 --validation-interval 10 --image-output-interval 1000000 "
            "--checkpoint-path {folder} --log-dir {folder}",
            f"crn/train.py --mode inference {SMALL} --image-output-path {{folder}}/pictures --model-input "
            "{folder}/last.ckpt --anomaly-score-file {folder}/anomaly_scores.csv --report",
        ],
        "image AUROC",
        [
            ("CRN", "anomaly_scores.json", "image_auroc"),
            ("CRN, validation score", "anomaly_scores.json", "image_auroc_validation"),
        ],
        "anomaly_scores.html",
    ),
    # scikit-learn's digits, 1 being normal; the epoch is chosen on other images.
    "riad": Method(
        "RIAD", "handwritten digits", 60,
        [
            "riad/run.py --dataset digits --mode_optim adam --lr 0.001 --epochs 24 --eval_images 150 --filters 16 32 "
            "64 128 --figures_every 0 --output {folder} --report",
        ],
        "image AUROC",
        [("RIAD", "result.json", "auroc")],
        "report.html",
    ),
}  # fmt: skip
HEADER = ("method", "data", "metric", "value", "time")
ABOUT = (
    "Generated and embedded data: this page shows that and how the methods work, not how well they do on real data. "
    "Rows without a time are plain baselines on the same data, or another score of the same method. Where a baseline "
    "wins, it wins."
)


def parse(argv: list[str] | None = None) -> Namespace:
    """The options."""
    parser = ArgumentParser(
        description="Train and test all five methods on embedded data, and report.",
        example="python benchmarks/demo.py --only csflow riad",
    )
    add = parser.add_argument_group("demo").add_argument
    add("--only", nargs="+", choices=METHODS, default=list(METHODS), help="methods")
    add("--output", type=Path, default=ROOT / "benchmarks/results/demo", help="folder for everything")
    return parser.parse_args(argv)


answer_early(__name__, parse)

from matplotlib.figure import Figure
from PIL import Image

from common.checkpoint import versions
from common.report import Section, save_figure, write_report


def folder_of(name: str, output: Path) -> Path:
    """The method's folder in `output`: another one for other commands, code (the method's, common's and the commands'
    own) or packages, so that their results are never mixed."""
    words = commands(METHODS[name].lines, folder="folder")
    files = {ROOT / program for program, *_ in words}
    files = files.union(*(ROOT.glob(f"{part}/**/*.py") for part in (name, "common")))
    code = {str(path.relative_to(ROOT)): digest(path) for path in sorted(files)}
    return output / f"{name}_{key_of([words, code, versions()])}"


def run_method(name: str, folder: Path) -> float:
    """Run those of a method's commands that are not finished yet; returns the seconds of all."""
    record, todo = folder / "demo.json", commands(METHODS[name].lines, folder=folder)
    state = {"finished": 0, "seconds": 0.0}
    if record.exists():
        state = read_record(record, finished=int, seconds=(int, float))
    if state["finished"]:
        say(f"{state['finished']} of {len(todo)} steps are done: taken over from {folder}, made by the same code")
    for command in todo[state["finished"] :]:
        say(f"$ python {shlex.join(command)}")
        started = time.monotonic()
        try:
            run(*command)
            state["finished"] += 1
        except KeyboardInterrupt as stopped:
            state["finished"] += stopped.args == (0,)
            raise
        finally:
            state["seconds"] += time.monotonic() - started
            write_json(record, state)
    return state["seconds"]


def numbers_of(method: Method, folder: Path) -> list[tuple[str, float]]:
    """What the method and the baselines have reached, from the scripts' results. UserError where one is missing."""
    numbers = [(who, number_at(read_json(folder / file), *keys)) for who, file, *keys in method.results]
    if missing := [who for who, value in numbers if value is None]:
        raise UserError(f"{folder} holds no result of {missing[0]}")
    return numbers


@script
def main(argv: list[str] | None = None) -> None:
    """Run the methods one after the other."""
    options = parse(argv)
    output, names = options.output.resolve(), list(dict.fromkeys(options.only))
    require_writable(output)
    rows, folders, numbers = [], {}, {}
    taken = expected = 0.0  # seconds so far, and what they should have been
    with locked(output), resumable(output):
        for count, name in enumerate(names, start=1):
            method, folder = METHODS[name], folder_of(name, output)
            left = sum(METHODS[other].seconds for other in names[count - 1 :]) * (taken / expected if expected else 1)
            pace = "at the pace so far" if expected else "on two quiet cores"
            say(f"--- {count} of {len(names)}: {method.title} on {method.data}")
            say(f"about {in_hours(left)} left in all, {pace}")
            seconds = run_method(name, folder)
            taken, expected = taken + seconds, expected + method.seconds
            folders[name], numbers[name] = folder, numbers_of(method, folder)
            for who, value in numbers[name]:
                rows.append([who, method.data, method.metric, value, in_hours(seconds) if who == method.title else ""])
        for line in table(HEADER, rows):
            say(line)
        write_json(output / "demo.json", [dict(zip(HEADER, row)) for row in rows])
        pages = [folder / METHODS[name].report for name, folder in folders.items()]
        write_report(
            output / "report.html", "Five methods, one page", [Section("Overview", [ABOUT], HEADER, rows)], pages
        )
        draw_overview(output / "overview.jpg", [METHODS[name] for name in names], list(numbers.values()), pages)


def draw_overview(path: Path, methods: Sequence[Method], numbers: Sequence, pages: Sequence[Path]) -> None:
    """What each method found best, two beside each other: the pictures of their reports."""
    columns, lines = 2, -(-len(methods) // 2)
    figure = Figure((4.8 * columns, 5.3 * lines), dpi=100)
    grid = figure.subplots(lines, columns, squeeze=False).ravel()
    for axes in grid:
        axes.axis("off")
    for axes, method, values, page in zip(grid, methods, numbers, pages):
        picture = re.search(r';base64,([^"]*)"[^>]*\salt="Best found', page.read_text(encoding="utf-8"))
        axes.imshow(Image.open(io.BytesIO(base64.b64decode(picture[1]))))
        axes.set_title(f"{method.title}: {method.data}", fontsize=13)
        text = f"{method.metric}: {', '.join(f'{who} {value:.3f}' for who, value in values)}"
        axes.text(0.5, -0.02, text, fontsize=11, ha="center", va="top", transform=axes.transAxes)
    figure.subplots_adjust(left=0.01, right=0.99, bottom=0.04, top=0.95, wspace=0.03, hspace=0.12)
    save_figure(figure, path)


if __name__ == "__main__":
    sys.exit(main())
