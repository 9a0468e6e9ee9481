"""Which image method finds the defects in my images? python benchmarks/compare.py --data FOLDER --minutes 10

Tests a nearest-neighbour search, which trains nothing, then CS-Flow, CRN and RIAD, trained for --minutes each, on
FOLDER/train/good and FOLDER/test, through each method's own scripts; FOLDER, in MVTec AD's layout (common/images.py),
is one category or holds several. Ends with a table, the commands that score new images with each method, the best
first, <output>/compare.json and <output>/report.html. Interrupted, the same command resumes.

What is alike: the time of training, images (--img_size, square, bilinear with antialiasing), the good images held out
(--held_out, drawn by the seed; they set thresholds, RIAD chooses its epoch by them), and metrics. Epochs are a result.
"""

import math
import shlex
import shutil
import statistics
import sys
from argparse import ArgumentTypeError, Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.scripts import ROOT, commands, key_of, mean_and_spread, read_record, run, table
from common import cli
from common.cli import MAX_PIXELS, answer_early, notes, resumable, say, script
from common.files import UserError, digest, locked, read_csv, read_json, require_writable, write_json

TITLES = {"csflow": "CS-Flow", "crn": "CRN", "riad": "RIAD", "nearest": "nearest neighbour"}
EVERY = 4  # epochs between validations
FEATURES = (
    "--dataset_path {parent} --class_name {name} --feature_path {features} --img_size {size} --extractor {extractor} "
    "--calibration_share {held_out} --seed {seed} {weights}"
)
LINES = {  # of one run
    "nearest": [f"benchmarks/nearest_neighbour.py {FEATURES} {{machine}} --output {{place}}"],
    "csflow": [
        f"csflow/main.py {FEATURES} --output_path {{place}} --modelname compare --map_every 1000000000 --precision "
        "{precision} --minutes {minutes} --epochs 1000000000 --sub_epochs {every} {network} {machine} {more}"
    ],
    "crn": [
        "crn/train.py --mode train --dataset MVTec --dataset-path {root} --log-file {place}/log.log {machine} "
        "--imsize {size} --antialias yes --seed {seed} --max-network-depth {levels} --calibration-share {held_out} "
        "--checkpoint-path {place}/checkpoints --log-dir {place}/logs --save-every 60 "
        "--image-output-path {place}/pictures --image-output-interval 1000000000 --precision {precision} "
        "--minutes {minutes} --epochs 1000000000 --training-steps 1000000000 --validation-interval {every} "
        "{network} {more} --batch-size {batch}",
        "crn/train.py --mode inference --dataset MVTec --dataset-path {root} --log-file {place}/log.log {machine} "
        "--model-input {place}/checkpoints/last.ckpt --image-output-path {place}/pictures "
        "--anomaly-score-file {place}/anomaly_scores.csv",
    ],
    "riad": [
        "riad/run.py --dataset mvtec --data_path {root} --img_size {size} --seed {seed} --validation_share {held_out} "
        "--precision {precision} --minutes {minutes} --epochs 1000000000 --figures_every 0 --output {place} "
        "{network} {machine} {more}"
    ],
}
# The networks. "small": what two CPU cores can train, as far as the READMEs tell; "paper": the papers', for a GPU.
# CRN's batch is made smaller where there are fewer images.
NETWORKS = {
    "small": {
        "csflow": "--n_coupling_blocks 4",
        "crn": "--num-competitive-units 4 --ngf 32 --batch-size 16 --lr 1e-3",
        "riad": "--algorithm paper --filters 16 32 64 128 128 --lr 1e-3",
    },
    "paper": {
        "csflow": "--n_coupling_blocks 4 --fc_internal 1024 --score mean",
        "crn": "--batch-size 64",
        "riad": "--algorithm paper",
    },
}
# What is the same for all methods, or this program's own affair: not to be changed for one of them.
FIXED = {
    "img_size", "imsize", "antialias", "seed", "calibration_share", "validation_share", "train_images", "precision",
    "extractor", "extractor_weights", "dataset", "dataset_path", "data", "data_path", "class_name", "feature_path",
    "mode", "model", "modelname", "output", "output_path", "checkpoint_path", "log_dir", "image_output_path", "cpu",
    "device", "resume", "max_value", "max_pixels",
}  # fmt: skip


def method_options(text: str) -> list[str]:
    """Type of an option: more options for a method's training, in one string."""
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise ArgumentTypeError(f"{text!r}: {error}") from None
    for word in words:
        if word.startswith("--") and word[2:].split("=")[0].replace("-", "_") in FIXED:
            raise ArgumentTypeError(f"{word} is the same for all methods, or this program's affair")
    return words


def parse(argv: list[str] | None = None) -> Namespace:
    """The options."""
    parser = cli.ArgumentParser(
        description="Compare CS-Flow, CRN, RIAD and a nearest-neighbour search on your images.",
        example="python benchmarks/compare.py --data my_data --seeds 0 1 2",
    )
    add = parser.add_argument_group("what to compare").add_argument
    add("--data", type=Path, required=True, help="a category in MVTec AD's layout, or a folder of several")
    add("--only", "--methods", nargs="+", choices=TITLES, default=list(TITLES), help="methods")
    seeds = "of weights, batches and the images held out"
    add("--seeds", type=cli.whole(0, 2**32 - 1), nargs="+", default=[0, 1, 2], help=seeds)

    add = parser.add_argument_group("alike for all").add_argument
    size = "side of the images for the networks, a multiple of 128"
    add("--img_size", type=cli.multiple_of(128, 2**16), default=256, help=size)
    add("--max_value", **cli.MAX_VALUE)
    add("--max_pixels", **MAX_PIXELS)
    add("--minutes", type=cli.positive, default=10.0, help="of each training, one for each method and seed")
    add("--networks", choices=NETWORKS, default="small", help="small: for a CPU; paper: the papers', for a GPU")
    add("--held_out", type=cli.share, default=0.1, help="share of the good images that is not trained on")
    add("--precision", choices=cli.PRECISIONS, default="fp32", help="of the training steps")

    add = parser.add_argument_group("of one method").add_argument
    of_both = "of the features of CS-Flow and the nearest neighbour; auto: effnetB5, else lite0"
    add("--extractor", choices=("auto", "effnetB5", "lite0"), default="auto", help=of_both)
    add("--extractor_weights", type=Path, help="file with EfficientNet-B5's weights; unset: downloaded")
    for method in ("csflow", "crn", "riad"):
        more = "more options for its training, in one string, which win; unset: none"
        add(f"--{method}_options", type=method_options, default=[], help=more)

    add = parser.add_argument_group("machine and files").add_argument
    add("--cpu", action="store_true", help="use the CPU even where there is a GPU")
    add("--output", type=Path, default=ROOT / "benchmarks/results/compare", help="folder for the results")
    options = vars(parser.parse_args(argv))
    once = {name: list(dict.fromkeys(options[name])) for name in ("seeds", "only")}
    paths = {name: options[name] and options[name].resolve() for name in ("data", "output", "extractor_weights")}
    return Namespace(**{**options, **once, **paths})


answer_early(__name__, parse)

import numpy as np
from PIL import Image

import crn.options
import csflow.config
import riad.options
from common import report
from common.checkpoint import versions
from common.images import Sample, fingerprint, mvtec_dataset, read_image, read_mask, set_max_pixels, visible
from common.report import Section, map_sheet, roc_figure, score_histogram, write_report

SHOWN, TIMED = 6, 24  # images whose maps the report shows, and images that are scored to learn how long it takes
FALSE_ALARMS = 0.05
TYPED = "In the repository's root:"  # as the READMEs' commands
MISSED = 0.75  # below this AUROC, a kind of defect is called missed
RECOMMENDED = {"csflow": 15, "crn": 60, "riad": 120}  # minutes on two CPU cores, by the READMEs


class Category(NamedTuple):
    """A folder in MVTec AD's layout."""

    root: Path
    train: list[Sample]
    test: list[Sample]
    synthetic: bool
    fingerprint: str
    max_value: int


def categories_of(folder: Path, max_value: int | str = 65535) -> list[Category]:
    """`folder` itself or the categories in it; UserError, which says what is needed, where there is none."""
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}")
    roots = [folder] if (folder / "train").is_dir() else [p for p in visible(folder) if (p / "train").is_dir()]
    if not roots:
        raise UserError(
            f"{folder} is no category and holds none: needed are {folder}/train/good/*.png, {folder}/test/good/*.png "
            f"and {folder}/test/<kind of defect>/*.png, or the same in folders below it"
        )
    return [_category(root, max_value) for root in roots]


def _category(root: Path, max_value: int | str) -> Category:
    data = mvtec_dataset(root, max_value)
    if len({sample.label > 0 for sample in data.test}) < 2:
        raise UserError(
            f"{root / 'test'} lacks good or defective images: methods are compared by "
            f"labelled test images, put good ones into {root / 'test/good'} and defective ones into "
            f"{root / 'test'}/<kind of defect>/ (a single folder such as test/defective will do)"
        )
    if len(data.train) < 2:
        raise UserError(f"{root / 'train/good'} has one image: two are needed, since one is held out")
    return Category(root, data.train, data.test, data.synthetic, fingerprint(data.paths, root), data.max_value)


def held_out(category: Category, share: float) -> int:
    """How many good images all methods hold out."""
    count = len(category.train)
    return min(max(round(share * count), 1), count - 1)


def plan(method: str, category: Category, options: Namespace, seed: int, place: Path) -> list[list[str]]:
    """The commands (program, its options) of one run; place: folder of its results.

    Options that the user adds come last, so that they win.
    """
    root, size = category.root, options.img_size
    network, more = NETWORKS[options.networks].get(method, "").split(), getattr(options, f"{method}_options", [])
    weights = ["--extractor_weights", options.extractor_weights] if options.extractor_weights else []
    batch = 0
    if method == "crn":  # all images to train on where these are fewer than a batch
        argv = ["--mode", "train", "--dataset", "MVTec", "--dataset-path", ".", *network, *more]
        batch = min(crn.options.parse(argv).batch_size, len(category.train) - held_out(category, options.held_out))
    return commands(
        LINES[method], root=root, parent=root.parent, name=root.name, place=place, size=size, seed=seed, batch=batch,
        features=options.output / "features" / f"{options.extractor}_{size}", extractor=options.extractor,
        weights=weights, held_out=options.held_out, precision=options.precision, minutes=options.minutes, every=EVERY,
        network=network, more=more,
        levels=min(8, int(math.log2(size & -size))),  # so often can the side be halved
        machine=machine(options, reads_data=True),
    )  # fmt: skip


def machine(options: Namespace, reads_data: bool = False) -> list[Any]:
    """The options of all scripts that are not the defaults: as in runs of older versions, whose names tell them."""
    words = ["--cpu"] if options.cpu else []
    words += ["--max_pixels", options.max_pixels] if options.max_pixels != MAX_PIXELS["default"] else []
    return words + (["--max_value", options.max_value] if reads_data and options.max_value != 65535 else [])


def check(options: Namespace, category: Category) -> None:
    """UserError for what a method would refuse hours later."""
    parsers = {"csflow": csflow.config.parse, "crn": crn.options.parse, "riad": riad.options.parse}
    for method in options.only:
        if method in parsers:
            parsers[method](plan(method, category, options, 0, Path("run"))[0][1:])


def finish(method: str, place: Path, rows: int) -> dict[str, Any]:
    """A finished run's numbers, from the files that its scripts wrote, and what the method was given; rows: of images
    to train on."""
    folder, column, batch, batches, improving = place, "score", 0, None, False
    if method == "csflow":
        folder, file = place / "results/compare", place / "models/tmp/compare"
    results = read_json(folder / "results.json")
    scored, epochs, seconds = folder / "scores.csv", results.get("epochs_trained"), results.get("training_seconds")
    if method == "csflow":
        batch = results["settings"]["batch_size"]
        improving = rising([entry[f"auroc_{results['score']}"] for entry in results["history"]])
    elif method == "crn":
        file, scored, column = place / "checkpoints/last.ckpt", place / "anomaly_scores.csv", "anomaly_score"
        logs = max((place / "logs").glob("*/results.json"), key=lambda path: path.stat().st_mtime)
        training = read_json(logs)
        batches, seconds, batch = training["batches"], training["training_seconds"], training["settings"]["batch_size"]
        improving = rising([float(row["metrics/inference_roc_auc"]) for row in read_csv(logs.with_name("metrics.csv"))])
    elif method == "riad":
        results |= read_json(place / "result.json")
        file = place / "Checkpoint" / results["name_best"]
        scored, epochs = place / f"results_te/test_{file.stem}.csv", len(results["history"])
        seconds, batch = results["history"][-1]["time"], results["settings"]["batch"]
        improving = results["models"][results["name_best"]]["epoch"] > 0.9 * epochs
    else:
        file, seconds = place, results["seconds"]
    if batch:
        per_epoch = -(-rows // batch)
        batches, epochs = (batches, batches / per_epoch) if batches else (epochs * per_epoch, epochs)
    table = [row for row in read_csv(scored) if row.get("part", "test") == "test"]
    labels, scores = [int(row["label"] != "0") for row in table], [float(row[column]) for row in table]
    names = ("image_auroc", "pixel_auroc", "aupro", "by_defect", "threshold", "extractor")
    return {
        **{name: results.get(name) for name in names}, "found": found_at(labels, scores, FALSE_ALARMS),
        "epochs": epochs, "batches": batches, "seconds": seconds, "improving": improving,
        "extraction_seconds": results.get("extraction_seconds"), "device": results.get("device", "cpu"),
        "file": str(file), "labels": labels, "scores": scores,
    }  # fmt: skip


def found_at(labels: Sequence[int], scores: Sequence[float], rate: float) -> float:
    """The share of defective images above a threshold that at most a share `rate` of the good test images exceed."""
    good = sorted((score for label, score in zip(labels, scores) if not label), reverse=True)
    bad = [score for label, score in zip(labels, scores) if label]
    return sum(score > good[math.floor(rate * len(good))] for score in bad) / len(bad)


def rising(curve: Sequence[float]) -> bool:
    """Whether a learning curve has not levelled off: its last third is above the third before, or it is too short."""
    third = len(curve) // 3
    return third < 2 or statistics.fmean(curve[-third:]) > statistics.fmean(curve[-2 * third : -third]) + 0.01


def place_of(method: str, category: Category, options: Namespace, seed: int) -> Path:
    """The folder of a run; its name tells all options, images, masks and given weights apart."""
    masks = fingerprint([path for sample in category.test for path in sample.mask], category.root)
    key = [plan(method, category, options, seed, Path("run")), category.fingerprint, masks, str(category.root)]
    key += [digest(options.extractor_weights)] if options.extractor_weights else []
    return options.output / category.root.name / f"{method}_seed{seed}_{key_of(key)}"


def run_once(method: str, category: Category, options: Namespace, seed: int) -> tuple[dict[str, Any], Path]:
    """Train and test a method with one seed, unless that is done already; its numbers and the folder they are in."""
    place = place_of(method, category, options, seed)
    if not (place / "run.json").exists():
        require_writable(place)
        todo = plan(method, category, options, seed, place)
        for words in todo:
            run(*words)
        numbers = finish(method, place, len(category.train) - held_out(category, options.held_out))
        write_json(place / "run.json", {**numbers, "commands": todo, "versions": versions()})
    return read_record(place / "run.json", image_auroc=float, labels=list, scores=list, file=str), place


def score_command(method: str, category: Category, numbers: dict[str, Any], options: Namespace) -> list[Any]:
    """The script and options with which the model of a run with the first seed scores images, but for --images."""
    if method == "nearest":
        (command,) = plan(method, category, options, options.seeds[0], Path(numbers["file"]))
        return command
    return [f"{method}/score.py", "--checkpoint", numbers["file"], *machine(options)]


def printed_command(method: str, category: Category, numbers: dict[str, Any], place: Path, options: Namespace) -> str:
    """`score_command` to be typed in the repository's root, into a folder of this run."""
    words = list(map(str, score_command(method, category, numbers, options)))
    if method == "nearest":
        at = words.index("--dataset_path")
        words[at : at + 4] = ["--data", str(category.root)]
    elif method in ("crn", "csflow"):  # whose own choice is called after the checkpoint, the same for all categories
        words += ["--output", str(place / "scored/my_new_images")]
    words = [word.removeprefix(f"{ROOT}/") for word in words]
    return f"python {shlex.join(words)} --images my_new_images"


def shown_maps(
    method: str, category: Category, chosen: list[Sample], numbers: dict[str, Any], place: Path, options: Namespace
) -> tuple[list[np.ndarray], float]:
    """The method's anomaly maps (h, w) of the first SHOWN of these images, from its own scoring, and the seconds that
    each image takes."""
    images = place / "shown"
    names = [f"{number}{sample.path.suffix}" for number, sample in enumerate(chosen)]
    images.mkdir(parents=True, exist_ok=True)
    for name, sample in zip(names, chosen):
        shutil.copyfile(sample.path, images / name)
    output = place / "scored/shown"
    where = [] if method == "nearest" else ["--output", output]  # which is its own choice
    run(*score_command(method, category, numbers, options), "--images", images, *where)
    maps = [np.asarray(Image.open(output / "maps" / f"{name}.tiff")) for name in names[:SHOWN]]
    return maps, read_json(output / "results.json")["seconds_per_image"]


def pictures(
    category: Category, runs: dict[str, tuple[dict, Path]], options: Namespace
) -> tuple[list[tuple[Path, str]], dict[str, float]]:
    """ROC curves, distributions and maps of one seed's runs, drawn into the output's folder of the category, and the
    seconds that each method takes to score an image."""
    folder, drawn, seconds = options.output / category.root.name, [], {}
    scores = {TITLES[method]: (numbers["labels"], numbers["scores"]) for method, (numbers, _) in runs.items()}
    roc_figure(folder / "roc.png", scores, f"{category.root.name}, seed {options.seeds[0]}")
    drawn.append((folder / "roc.png", f"ROC of the images' scores, seed {options.seeds[0]}"))
    # The first image of each kind: nothing is chosen by how well it is found.
    kinds = {sample.class_name: sample for sample in reversed(category.test)}
    chosen = list(reversed(kinds.values()))[:SHOWN]
    timed = chosen + [sample for sample in report.spread(category.test, TIMED) if sample not in chosen]
    columns, masks = [], []
    for sample in chosen:  # reduced at once: images may be of hundreds of megapixels
        image = np.asarray(read_image(sample.path, category.max_value))
        columns.append(report.drawn(image))
        mask = read_mask(sample.mask, image.shape[:2]) if sample.mask else None
        masks.append(report.drawn_mask(mask, columns[-1].shape[:2]))
    for method, (numbers, place) in runs.items():
        path, threshold = folder / f"{method}.png", numbers["threshold"] or {}
        score_histogram(path, numbers["labels"], numbers["scores"], TITLES[method], threshold.get("image"))
        drawn.append((path, f"scores of {TITLES[method]}"))
        maps, seconds[method] = shown_maps(method, category, timed, numbers, place, options)
        captions = [f"{sample.class_name}\n{sample.path.name}" for sample in chosen]
        path, (vmin, vmax, limit, words) = folder / f"{method}_maps.jpg", report.colour_range(maps, maps, threshold)
        title = f"{TITLES[method]} on {category.root.name}"
        map_sheet(path, list(zip(columns, maps, captions)), title, masks, vmax, vmin, limit)
        drawn.append((path, f"{TITLES[method]}: the first test image of each kind. {words}"))
    return drawn, seconds


METRICS, GIVEN = ("image_auroc", "found", "pixel_auroc", "aupro"), ("epochs", "batches", "seconds")


def summary(runs: dict[tuple[str, str, int], dict[str, Any]]) -> list[dict[str, Any]]:
    """One entry for each category and method, the best of a category first, from runs by (category, method, seed), and,
    for several categories, their means; metrics as lists, one value for each seed."""
    seeds: dict[tuple[str, str], list[dict]] = {}
    for (category, method, _), one in runs.items():
        seeds.setdefault((category, method), []).append(one)
    entries = []
    for (category, method), same in seeds.items():
        entry = {"category": category, "method": TITLES[method], "improving": any(one["improving"] for one in same)}
        entry |= {key: [one[key] for one in same] for key in METRICS}
        entry |= {key: _mean([one[key] for one in same]) for key in GIVEN}
        entry["seconds"] += max(one["extraction_seconds"] or 0 for one in same)  # once for all seeds
        entries.append(entry)
    if (count := len({category for category, _ in seeds})) > 1:
        for name in dict.fromkeys(entry["method"] for entry in entries):
            same = [entry for entry in entries if entry["method"] == name]
            entry = {"category": f"mean of {count}", "method": name, "improving": any(one["improving"] for one in same)}
            entry |= {key: [_mean(values) for values in zip(*(one[key] for one in same))] for key in METRICS}
            entries.append(entry | {key: _mean([one[key] for one in same]) for key in GIVEN})
    order = list(dict.fromkeys(entry["category"] for entry in entries))
    return sorted(entries, key=lambda entry: (order.index(entry["category"]), -statistics.fmean(entry["image_auroc"])))


def _mean(values: Sequence[float | None]) -> float | None:
    return None if None in values else statistics.fmean(values)


def verdict(entries: Sequence[dict[str, Any]], options: Namespace) -> list[str]:
    """Which method is best in a category, in sentences, and how sure that is; entries: of the category, best first."""
    best, *others = entries
    where = f" ({best['category']} categories)" if best["category"].startswith("mean of") else ""
    lines = [f"Best{where}: {best['method']}, image AUROC {mean_and_spread(best['image_auroc'])}."]
    alike = [entry["method"] for entry in others if not _better(best["image_auroc"], entry["image_auroc"])]
    if alike and len(options.seeds) > 1:
        lines.append(f"Not told apart from it, within the spread of the seeds: {', '.join(alike)}.")
    if others and len(options.seeds) == 1:
        lines.append("One seed: small differences may be chance.")
    for entry in entries:
        method = next(name for name, title in TITLES.items() if title == entry["method"])
        if entry["improving"] and method in RECOMMENDED and options.minutes < RECOMMENDED[method]:
            longer = f"try --minutes {RECOMMENDED[method]} or more before you decide"
            lines.append(f"{entry['method']} was still improving after {entry['seconds'] / 60:.1f} minutes: {longer}.")
    return lines


def _better(first: Sequence[float], second: Sequence[float]) -> bool:
    """Whether the means differ by more than the spread of both."""
    spread = math.hypot(*(statistics.stdev(values) if len(values) > 1 else 0 for values in (first, second)))
    return statistics.fmean(first) - statistics.fmean(second) > spread


HEADER = [
    "category", "method", "image AUROC", "found at 5 % false alarms", "pixel AUROC", "AUPRO", "epochs", "minutes",
    "ms per image",
]  # fmt: skip


def row(entry: dict[str, Any]) -> list[str]:
    """A line of the table."""
    metrics = [mean_and_spread(entry[key]) for key in METRICS]
    epochs = "" if entry["epochs"] is None else f"{entry['epochs']:.0f}" + " (improving)" * entry["improving"]
    pace = entry.get("seconds_per_image")
    pace = "" if pace is None else f"{1000 * pace:.0f}"
    return [entry["category"], entry["method"], *metrics, epochs, f"{entry['seconds'] / 60:.1f}", pace]


def kinds_table(runs: dict[str, list[dict[str, Any]]]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the AUROC per kind of defect, mean over seeds; runs: of one category, by method."""
    kinds = dict.fromkeys(kind for of_seeds in runs.values() for one in of_seeds for kind in one["by_defect"])
    rows = []
    for kind in kinds:
        means = [_mean([one["by_defect"][kind]["image_auroc"] for one in of_seeds]) for of_seeds in runs.values()]
        rows.append([kind, *(f"{mean:.3f}" + " (missed)" * (mean < MISSED) for mean in means)])
    return ["kind of defect", *(TITLES[method] for method in runs)], rows


def conditions(options: Namespace, categories: list[Category], runs: Sequence[dict[str, Any]]) -> list[str]:
    """What the numbers of the runs mean, in sentences."""
    devices, extractors = (
        ", ".join(sorted({one[key] for one in runs if one.get(key)})) for key in ("device", "extractor")
    )
    networks = "; ".join(
        f"{TITLES[method]} {' '.join([NETWORKS[options.networks][method], *getattr(options, f'{method}_options')])}"
        for method in options.only
        if method in NETWORKS[options.networks]
    )
    synthetic = [category.root.name for category in categories if category.synthetic]
    seeds = ", ".join(map(str, options.seeds))
    spread = f"Mean ± standard deviation over seeds {seeds}, of weights, batches and the images held out."
    lines = [
        f"Each training ends after {options.minutes:g} minutes, in the midst of an epoch, on {devices}. The nearest "
        "neighbour trains nothing: its minutes are of its search and of the features that it shares with CS-Flow.",
        f"All images are resized to {options.img_size} x {options.img_size} pixels (bilinear, antialiased). "
        f"A share of {options.held_out:g} of train/good is held out, the same images for all methods: thresholds come "
        "from them, and RIAD chooses its epoch by them. Nothing is chosen on test images.",
        spread if len(options.seeds) > 1 else f"One seed, {seeds}: there is no spread.",
        "Image AUROC: the chance that a defective image scores higher than a good one. Found at 5 % false alarms: the "
        "share of defective test images above the threshold that 5 % of the good test images exceed. Pixel AUROC and "
        "AUPRO (up to a false-positive rate of 0.3): of the maps at the images' own size, where there are masks. "
        f"Missed: an AUROC below {MISSED}. Milliseconds per image: scoring with maps and overlays, first seed.",
        f"Networks ({options.networks}): {networks}; precision of the training {options.precision}"
        + (f"; pretrained features of CS-Flow and the nearest neighbour: {extractors}" if extractors else "")
        + ". These settings were not tuned for this data: a longer training or a larger network may change who wins.",
    ]
    return [*lines, *([f"Generated stand-ins, not real data: {', '.join(synthetic)}."] if synthetic else [])]


@script
def main(argv: list[str] | None = None) -> None:
    """Train, test, compare; seed by seed."""
    options = parse(argv)
    set_max_pixels(options.max_pixels)
    categories = categories_of(options.data, options.max_value)
    for category in categories:
        check(options, category)
    with locked(options.output), resumable(options.output):
        compare(options, categories)


def compare(options: Namespace, categories: list[Category]) -> None:
    """Run what is not done yet, and write compare.json, the report and the table."""
    runs: dict[tuple[str, str, int], tuple[dict[str, Any], Path]] = {}
    methods = sorted(options.only, key=lambda method: method != "nearest")  # first what has an answer in seconds
    todo = [(s, c, m) for m in methods if m == "nearest" for s in options.seeds for c in categories]
    todo += [(s, c, m) for s in options.seeds for c in categories for m in methods if m != "nearest"]
    trained = [place_of(m, c, options, s) / "run.json" for s, c, m in todo if m != "nearest"]
    trainings = sum(not path.exists() for path in trained)
    if trainings:
        hours = cli.in_hours(60 * options.minutes * trainings)
        say(f"{trainings} trainings of {options.minutes:g} minutes: {hours} in all, and what testing takes")
    for count, (seed, category, method) in enumerate(todo, start=1):
        say(f"--- {count} of {len(todo)}: {category.root.name}, {TITLES[method]}, seed {seed}")
        runs[category.root.name, method, seed] = run_once(method, category, options, seed)
    numbers = {key: one for key, (one, _) in runs.items()}
    entries, text = summary(numbers), conditions(options, categories, list(numbers.values()))
    sections = []
    for category in categories:
        name = category.root.name
        drawn, seconds = pictures(category, {m: runs[name, m, options.seeds[0]] for m in methods}, options)
        of_category = [entry for entry in entries if entry["category"] == name]
        for entry in of_category:
            method = next(method for method in methods if TITLES[method] == entry["method"])
            entry["seconds_per_image"] = seconds[method]
            entry["command"] = printed_command(method, category, *runs[name, method, options.seeds[0]], options)
        held = held_out(category, options.held_out)
        told = f"{len(category.train) - held} good images to train on, {held} held out, {len(category.test)} to test."
        header, rows = kinds_table({m: [numbers[name, m, seed] for seed in options.seeds] for m in methods})
        best = verdict(of_category, options) if len(categories) > 1 else []  # of one, the first section tells
        sections.append(Section(name, [*best, told], header, rows))
        commands_of = [[entry["method"], entry["command"]] for entry in of_category]
        sections.append(Section("To score new images", [TYPED], ["method", "command"], commands_of))
        sections.append(Section("Curves and maps", pictures=drawn))
    rows = [row(entry) for entry in entries]
    first = verdict([entry for entry in entries if entry["category"] == entries[-1]["category"]], options)
    sections.insert(0, Section("All in one table", first, HEADER, rows))
    sections.append(Section("What the numbers mean", text))
    write_report(options.output / "report.html", f"Methods compared on {options.data.name}", sections)
    content = {"conditions": text, "seeds": options.seeds, "results": entries, "notes": notes(), "versions": versions()}
    write_json(options.output / "compare.json", content)
    for line in [*table(HEADER, rows), *first, f"To score new images, the best method first. {TYPED}"]:
        say(line)
    for entry in entries:
        if "command" in entry:
            say(f"  {entry['command']}" + f"  # {entry['category']}" * (len(categories) > 1))
    say(f"numbers: {options.output / 'compare.json'}")


if __name__ == "__main__":
    sys.exit(main())
