"""All five methods on embedded data, in minutes on two cores: python benchmarks/demo.py (make demo)

Runs each method's own scripts as a user would, into --output, and ends with a table and <output>/report.html. What is
there already is not computed again, so that an interrupted demo goes on. The data are generated or small stand-ins:
the demo shows that and how the methods work, not how well they do on real data.
"""

import csv
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common.files import read_json, require_writable, write_json
from common.report import Section, write_report
from common.runtime import ArgumentParser, UserError, say, script, stop_on_request

ROOT = Path(__file__).resolve().parents[1]
Found = tuple[str, str, float, Section]  # data, metric, its value, and the section of the report


def run(program: str, *options: Any) -> None:
    """Run a script of this repository. UserError where it fails, KeyboardInterrupt where it was stopped."""
    command = [sys.executable, str(ROOT / program), *map(str, options)]
    with stop_on_request() as stop:  # Ctrl-C reaches the script too, which is given the time to save
        status = subprocess.run(command, check=False).returncode
    if status == 130 or stop():
        raise KeyboardInterrupt
    if status:
        raise UserError(f"{program} ended with status {status} (see above)")


def textures(output: Path) -> Path:
    """Bricks with painted defects, made where they are not there yet."""
    run("common/demo_data.py", "--output", output / "textures")
    return output / "textures"


def csflow(output: Path) -> Found:
    """CS-Flow on bricks, with EfficientNet-Lite0's features."""
    data = textures(output)
    run(
        "csflow/main.py", "--dataset_path", data, "--class_name", "brick", "--modelname", "demo",
        "--extractor", "lite0", "--feature_path", output / "features", "--img_size", 256,
        "--meta_epochs", 4, "--sub_epochs", 15, "--map_every", 1, "--report",
    )  # fmt: skip
    folder = ROOT / "csflow"
    results = read_json(folder / "results/demo/results.json")
    pictures = [
        (folder / "viz/scores/demo/score_histogram.png", "distribution of the image scores"),
        (folder / "viz/scores/demo/all.png", "ROC of the image scores"),
        (folder / "viz/maps/demo/best_found.jpg", "best found"),
        (folder / "viz/maps/demo/worst_missed.jpg", "worst missed"),
    ]
    text = f"40 good images to train on; pixel AUROC {results['pixel_auroc']:.3f}, AUPRO {results['aupro']:.3f}."
    return (
        "bricks, painted defects",
        "image AUROC",
        results["image_auroc"],
        Section("CS-Flow", [text], pictures=pictures),
    )


def crrn(output: Path) -> Found:
    """CRRN on generated boards, trained on measured cycles."""
    boards = output / "boards"
    if not boards.exists():
        run("crrn/demo_boards.py", "--output", boards, "--boards", 1000)
    shared = ["--data", boards, "--cycle", 20, "--protocol", "measured", "--gpu_ids", 0]
    run("crrn/1_train.py", *shared, "--num_epochs", 2, "--num_instance", 400, "--lr", 1e-3)
    run("crrn/2_test_model.py", *shared)
    folder = boards / "result/ConvConjLSTM_measured"
    results = read_json(folder / "results.json")["excessive"]["0.1"]
    text = (
        f"Boards of 160 pads, one in ten anomalous; best F1 of the z-score alone: {results['z_score']['best_f1']:.3f}. "
        "With more anomalous pads, the z-score wins: see crrn/README.md."
    )
    pictures = [
        (boards / "group.png", "pads by shape"),
        (folder / "boards.png", "injected shift, input and error"),
        (folder / "precision_recall_excessive.png", "precision and recall, excessive paste"),
    ]
    return "generated boards", "best F1, excessive", results["best_f1"], Section("CRRN", [text], pictures=pictures)


def memae(output: Path) -> Found:
    """MemAE on generated videos."""
    options = ["--ModelRoot", output / "memae/models", "--MemDim", 200]
    run("memae/script_training.py", *options, "--BatchSize", 6, "--precision", "bf16", "--EpochNum", 10)
    test = [*options, "--OutRoot", output / "memae/results"]
    run("memae/script_testing.py", *test, "--BatchSize", 6)
    run("memae/script_eval_video.py", *test)
    (folder,) = (output / "memae/results").glob("res_*")
    results = read_json(folder / "results.json")
    worst = min(results["auc_per_video"], key=lambda name: results["auc_per_video"][name] or 0)
    best = max(results["auc_per_video"], key=lambda name: results["auc_per_video"][name] or 0)
    pictures = [
        (folder / kind / f"{video}.{suffix}", f"{about}: {video}")
        for video in dict.fromkeys((best, worst))
        for kind, suffix, about in (("plots", "png", "error over time"), ("maps", "jpg", "worst frames"))
    ]
    text = f"Frame difference, a plain baseline: {results['baseline_auc']:.3f}."
    return "generated walkers", "frame AUC", results["auc"], Section("MemAE", [text], pictures=pictures)


def crn(output: Path) -> Found:
    """CRN on bricks."""
    data, folder = textures(output) / "brick", output / "crn"
    shared = [
        "--dataset",
        "MVTec",
        "--dataset-path",
        data,
        "--imsize",
        64,
        "--batch-size",
        8,
        "--log-file",
        folder / "log",
    ]
    shared += ["--image-output-path", folder / "pictures"]
    run(
        "crn/train.py", "--mode", "train", *shared, "--num-competitive-units", 3, "--ngf", 16, "--training-steps", 800,
        "--checkpoint-path", folder, "--log-dir", folder / "logs", "--image-output-interval", 10**6, "--lr", 1e-3,
    )  # fmt: skip
    table = folder / "anomaly_scores.csv"
    run(
        "crn/train.py",
        "--mode",
        "inference",
        *shared,
        "--model-input",
        folder / "last.ckpt",
        "--anomaly-score-file",
        table,
    )
    results = read_json(table.with_suffix(".json"))
    with table.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["part"] == "test" and row["label"] != "0"]
    rows.sort(key=lambda row: -float(row["anomaly_score"]))
    pictures = [
        (
            folder / f"pictures/inference/{row['file_name']}.png",
            f"{about}: image, D(G(image)), difference; {row['file_name']}",
        )
        for about, chosen in (("best found", rows[:2]), ("worst missed", rows[-2:]))
        for row in chosen
    ]
    text = f"Validation score: image AUROC {results['image_auroc_validation']:.3f}."
    return "bricks, painted defects", "image AUROC", results["image_auroc"], Section("CRN", [text], pictures=pictures)


def riad(output: Path) -> Found:
    """RIAD on scikit-learn's handwritten digits, 1 being normal."""
    folder = output / "riad"
    run(
        "riad/run.py", "--dataset", "digits", "--mode_optim", "adam", "--lr", 1e-3, "--epochs", 8,
        "--filters", 16, 32, 64, 128, "--figures_every", 0, "--output", folder,
    )  # fmt: skip
    results = read_json(folder / "result.json")
    name = Path(results["name_best"]).stem
    pictures = [
        (folder / f"results_te/auroc_{name}.png", "scores of normal and other digits"),
        (folder / f"results_te/generation_{name}.png", "image, inpainting, anomaly map, overlay"),
        (folder / "results_tr/history.png", "losses in training"),
    ]
    text = f"The epoch was chosen on other images: {results['models'][results['name_best']]['chosen_by']}."
    return "handwritten digits", "image AUROC", results["auroc"], Section("RIAD", [text], pictures=pictures)


METHODS = {"csflow": csflow, "crrn": crrn, "memae": memae, "crn": crn, "riad": riad}


@script
def main(argv: list[str] | None = None) -> None:
    """Run the methods one after the other."""
    parser = ArgumentParser(description="Train and test all five methods on embedded data, and report.")
    parser.add_argument("--only", nargs="+", choices=METHODS, default=list(METHODS), help="methods")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks/results/demo", help="folder for everything")
    options = parser.parse_args(argv)
    output = options.output.resolve()
    require_writable(output)
    rows, sections = [], []
    for name in options.only:
        say(f"--- {name}")
        started = time.monotonic()
        data, metric, value, section = METHODS[name](output)
        rows.append([section.title, data, metric, value, f"{time.monotonic() - started:.0f} s"])
        sections.append(section)
    header = ["method", "data", "metric", "value", "time"]
    for line in table(header, rows):
        say(line)
    about = "Generated and embedded data: this page shows that and how the methods work, not how well on real data."
    write_json(output / "demo.json", [dict(zip(header, row)) for row in rows])
    write_report(
        output / "report.html", "Five methods, one page", [Section("Overview", [about], header, rows), *sections]
    )
    say(f"report: {output / 'report.html'}")


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    """Lines of text in columns."""
    texts = [[f"{value:.4f}" if isinstance(value, float) else str(value) for value in row] for row in [header, *rows]]
    widths = [max(map(len, column)) for column in zip(*texts)]
    return ["  ".join(text.ljust(width) for text, width in zip(row, widths)).rstrip() for row in texts]


if __name__ == "__main__":
    sys.exit(main())
