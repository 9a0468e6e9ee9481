"""All five methods on embedded data, in minutes on two cores: python benchmarks/demo.py (make demo)

Runs each method's own scripts as a user would, into --output, and ends with a table, <output>/report.html, which holds
the methods' own reports (--report), and overview.jpg. What is finished is not computed again, so that an interrupted
demo goes on with the same command; after a change of the code it is, in a folder of its own. The data are generated or
small stand-ins: the demo shows that and how the methods work, not how well they do on real data.
"""

import shlex
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from matplotlib.figure import Figure

from benchmarks.scripts import ROOT, Command, key_of, read_record, run, table
from common.checkpoint import versions
from common.cli import ArgumentParser, say, script
from common.figures import save_figure
from common.files import digest, locked, read_json, require_writable, write_json
from common.report import Section, pictures_of, write_report

HEADER = ("method", "data", "metric", "value", "time")


@dataclass
class Found:
    """What a method's scripts left: (who, metric, value), the method first, then plain baselines; and its report."""

    numbers: Sequence[tuple[str, str, float]]
    report: Path


@dataclass
class Method:
    """seconds: about what the commands take on two quiet cores, by their CPU time."""

    title: str
    data: str
    seconds: int
    commands: Callable[[Path], list[Command]]  # what to run, with all results in the folder given
    found: Callable[[Path], Found]


def csflow(folder: Path) -> list[Command]:
    """EfficientNet-Lite0's features of bricks; the nearest neighbour among them is the baseline."""
    textures = folder / "textures"
    data = ["--dataset_path", textures, "--class_name", "brick", "--extractor", "lite0", "--img_size", 256]
    data += ["--feature_path", folder / "features"]
    training = ["--fc_internal", 128, "--batch_size", 8, "--lr_init", 1e-3, "--meta_epochs", 5, "--sub_epochs", 12]
    return [
        ["common/demo_data.py", "--output", textures],
        ["csflow/main.py", *data, *training, "--output_path", folder, "--modelname", "demo", "--report"],
        ["benchmarks/nearest_neighbour.py", *data, "--output", folder / "nearest"],
    ]


def csflow_found(folder: Path) -> Found:
    """Of results.json and the baseline's."""
    results = read_json(folder / "results/demo/results.json")
    baseline = read_json(folder / "nearest/results.json")
    numbers = [
        ("CS-Flow", "image AUROC", results["image_auroc"]),
        ("nearest neighbour", "image AUROC", baseline["image_auroc_mean"]),
    ]
    return Found(numbers, folder / "results/demo/report.html")


def crrn(folder: Path) -> list[Command]:
    """35 cycles of generated boards to train on, 15 to test on."""
    boards = folder / "boards"
    shared = ["--data", boards, "--cycle", 20, "--protocol", "measured"]
    return [
        ["crrn/demo_boards.py", "--output", boards, "--boards", 1000],
        ["crrn/1_train.py", *shared, "--num_epochs", 3, "--num_instance", 400, "--lr", 1e-3],
        ["crrn/2_test_model.py", *shared, "--report"],
    ]


def crrn_found(folder: Path) -> Found:
    """Where one pad in ten is anomalous."""
    folder = folder / "boards/result/ConvConjLSTM_measured"
    results = read_json(folder / "results.json")["excessive"]["0.1"]
    metric = "best F1, excessive paste"
    numbers = [("CRRN", metric, results["best_f1"]), ("z-score", metric, results["z_score"]["best_f1"])]
    return Found(numbers, folder / "report.html")


def memae(folder: Path) -> list[Command]:
    """Generated videos of walkers; a vehicle, a runner and a thrown object are abnormal."""
    shared = ["--DataRoot", folder / "dataset", "--Dataset", "Walkers_64", "--ModelRoot", folder / "models"]
    shared += ["--MemDim", 200]
    test = [*shared, "--OutRoot", folder / "results", "--BatchSize", 6]
    return [
        ["memae/script_training.py", *shared, "--BatchSize", 6, "--EpochNum", 10, "--LR", 3e-4],
        ["memae/script_testing.py", *test],
        ["memae/script_eval_video.py", *test, "--report"],
    ]


def memae_found(folder: Path) -> Found:
    """Errors scaled per video, as published."""
    folder = folder / "results/res_MemAE_Conv3DSpar_Walkers_64_MemDim200_EntW0.0002_ShrThres0.0025_Seed1_Non"
    results = read_json(folder / "results.json")
    numbers = [("MemAE", "frame AUC", results["auc"]), ("frame difference", "frame AUC", results["baseline_auc"])]
    return Found(numbers, folder / "report.html")


def crn(folder: Path) -> list[Command]:
    """The same bricks, at 64 x 64 pixels."""
    textures = folder / "textures"
    shared = ["--dataset", "MVTec", "--dataset-path", textures / "brick", "--imsize", 64, "--batch-size", 8]
    shared += ["--log-file", folder / "log.log", "--image-output-path", folder / "pictures"]
    training = ["--num-competitive-units", 2, "--ngf", 16, "--training-steps", 600, "--lr", 2e-4]
    # With the published weights nothing is found in so few steps: see crn/README.md, "Results".
    training += ["--reconstruction-weight", 2, "--feedback-weight", 0.25, "--discrimination-weight", 0.1]
    training += ["--validation-interval", 10]
    training += ["--image-output-interval", 10**6, "--checkpoint-path", folder, "--log-dir", folder]
    scores = ["--model-input", folder / "last.ckpt", "--anomaly-score-file", folder / "anomaly_scores.csv"]
    return [
        ["common/demo_data.py", "--output", textures],
        ["crn/train.py", "--mode", "train", *shared, *training],
        ["crn/train.py", "--mode", "inference", *shared, *scores, "--report"],
    ]


def crn_found(folder: Path) -> Found:
    """Both scores; the inference score is the published one for testing."""
    results = read_json(folder / "anomaly_scores.json")
    numbers = [
        ("CRN", "image AUROC", results["image_auroc"]),
        ("CRN, validation score", "image AUROC", results["image_auroc_validation"]),
    ]
    return Found(numbers, folder / "anomaly_scores.html")


def riad(folder: Path) -> list[Command]:
    """scikit-learn's digits, 1 being normal."""
    return [
        [
            "riad/run.py", "--dataset", "digits", "--mode_optim", "adam", "--lr", 1e-3, "--epochs", 24,
            "--eval_images", 150, "--filters", 16, 32, 64, 128, "--figures_every", 0, "--output", folder, "--report",
        ]
    ]  # fmt: skip


def riad_found(folder: Path) -> Found:
    """The epoch was chosen on other images."""
    return Found([("RIAD", "image AUROC", read_json(folder / "result.json")["auroc"])], folder / "report.html")


METHODS = {
    "csflow": Method("CS-Flow", "bricks, painted defects", 50, csflow, csflow_found),
    "crrn": Method("CRRN", "generated boards", 130, crrn, crrn_found),
    "memae": Method("MemAE", "generated walkers", 150, memae, memae_found),
    "crn": Method("CRN", "bricks, painted defects", 40, crn, crn_found),
    "riad": Method("RIAD", "handwritten digits", 60, riad, riad_found),
}


def folder_of(name: str, output: Path) -> Path:
    """The method's folder in `output`: another one for other commands, code (the method's, common's and the commands'
    own) or packages, so that their results are never mixed."""
    commands = METHODS[name].commands(Path("folder"))
    files = {ROOT / program for program, *_ in commands}.union(
        *(ROOT.glob(f"{part}/**/*.py") for part in (name, "common"))
    )
    code = {str(path.relative_to(ROOT)): digest(path) for path in sorted(files)}
    return output / f"{name}_{key_of([commands, code, versions()])}"


def run_method(name: str, folder: Path) -> float:
    """Run those of a method's commands that are not finished yet; returns the seconds of all."""
    record, commands = folder / "demo.json", METHODS[name].commands(folder)
    state = {"finished": 0, "seconds": 0.0}
    if record.exists():
        state = read_record(record, finished=int, seconds=(int, float))
    if state["finished"]:
        say(f"{state['finished']} of {len(commands)} steps are done: taken over from {folder}, made by the same code")
    for command in commands[state["finished"] :]:
        say(f"$ python {shlex.join(map(str, command))}")
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


def duration(seconds: float) -> str:
    """In words."""
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.1f} min"


@script
def main(argv: list[str] | None = None) -> None:
    """Run the methods one after the other."""
    parser = ArgumentParser(
        description="Train and test all five methods on embedded data, and report.",
        example="python benchmarks/demo.py --only csflow riad",
    )
    add = parser.add_argument_group("demo").add_argument
    add("--only", nargs="+", choices=METHODS, default=list(METHODS), help="methods")
    add("--output", type=Path, default=ROOT / "benchmarks/results/demo", help="folder for everything")
    options = parser.parse_args(argv)
    output, names = options.output.resolve(), list(dict.fromkeys(options.only))
    require_writable(output)
    rows, founds = [], []
    taken = expected = 0.0  # seconds so far, and what they should have been
    with locked(output):
        for number, name in enumerate(names):
            method, folder = METHODS[name], folder_of(name, output)
            left = sum(METHODS[other].seconds for other in names[number:]) * (taken / expected if expected else 1)
            pace = "at the pace so far" if expected else "on two quiet cores"
            say(f"--- {number + 1} of {len(names)}: {method.title} on {method.data}")
            say(f"about {duration(left)} left in all, {pace}")
            try:
                seconds = run_method(name, folder)
            except KeyboardInterrupt:
                say("stopped; the same command goes on from here")
                raise
            taken, expected = taken + seconds, expected + method.seconds
            founds.append(method.found(folder))
            for who, metric, value in founds[-1].numbers:
                rows.append([who, method.data, metric, value, duration(seconds) if who == method.title else ""])
        for line in table(HEADER, rows):
            say(line)
        write_json(output / "demo.json", [dict(zip(HEADER, row)) for row in rows])
        about = (
            "Generated and embedded data: this page shows that and how the methods work, not how well they do on real "
            "data. Rows without a time are plain baselines on the same data, or another score of the same method. "
            "Where a baseline wins, it wins."
        )
        pages = [found.report for found in founds]
        write_report(
            output / "report.html", "Five methods, one page", [Section("Overview", [about], HEADER, rows)], pages
        )
        draw_overview(output / "overview.jpg", [METHODS[name] for name in names], founds)


def draw_overview(path: Path, methods: Sequence[Method], founds: Sequence[Found]) -> None:
    """What each method found best, three beside each other: the pictures of their reports."""
    columns, lines = 3, -(-len(founds) // 3)
    figure = Figure((3.2 * columns, 3.7 * lines), dpi=100)
    grid = figure.subplots(lines, columns, squeeze=False).ravel()
    for axes in grid:
        axes.axis("off")
    for axes, method, found in zip(grid, methods, founds):
        axes.imshow(pictures_of(found.report, "Best found")[0])
        axes.set_title(f"{method.title}: {method.data}", fontsize=10)
        numbers = [f"{who} {value:.3f}" for who, _, value in found.numbers]
        axes.text(0.5, -0.02, f"{found.numbers[0][1]}: {', '.join(numbers)}", fontsize=8, ha="center", va="top",
                  transform=axes.transAxes)  # fmt: skip
    figure.subplots_adjust(left=0.01, right=0.99, bottom=0.04, top=0.95, wspace=0.03, hspace=0.12)
    save_figure(figure, path)


if __name__ == "__main__":
    sys.exit(main())
