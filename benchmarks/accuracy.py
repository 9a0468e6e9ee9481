"""Every number of the READMEs' result tables again, beside the published ones: python benchmarks/accuracy.py --list

    python benchmarks/accuracy.py --data mtd=FOLDER mvtec=FOLDER --only csflow riad --seeds 0 1 2

runs the EXPERIMENTS below for whose data a folder is given, through the methods' own scripts, and writes after each run
<output>/accuracy.{md,json}: mean and standard deviation over the seeds, of all runs that lie in <output>. What is done
is not done again, whatever has changed in the code since; an interrupted run goes on. The sizes are the papers' or the
READMEs': most want a GPU.
"""

import csv
import io
import statistics
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from PIL import Image

from benchmarks.scripts import ROOT, key_of, mean_and_spread, read_record, run
from common.checkpoint import versions
from common.cli import ArgumentParser, complain, goes_on, say, script
from common.files import (
    UserError,
    atomic_write,
    locked,
    read_json,
    read_mat,
    read_text,
    reason,
    require_writable,
    write_json,
)
from common.images import files_below, fingerprint, image_size, read_mask, visible

Command = tuple[str | int | float, ...]  # a program and its options
Key = tuple[str | int, ...]  # where a number stands in a results file


@dataclass(frozen=True)
class Experiment:
    """One line of a README or a paper, or several that one training gives.

    In commands and file, {data} stands for the category's folder, {parent} and {name} for the folder's parts, {seed}
    for the seed, {place} for the run's folder, {shared} for the folder of what all runs of the data share, and {cpu}
    for the option that keeps off the GPU, if --cpu was given.
    """

    name: str  # begins with the method
    data: str
    commands: tuple[Command, ...]  # for each category and seed
    file: str  # of the results; a pattern, of which one file is there
    numbers: Mapping[str, Key]
    published: Mapping[str, tuple[float, str]] = field(default_factory=dict)  # value and source, of all categories
    prepare: tuple[Command, ...] = ()  # once for each category
    seeds: tuple[int, ...] = (0, 1, 2)  # unless others are asked for


# --- CS-Flow and the nearest neighbour on its features

FLOW = {"image AUROC (std)": ("image_auroc_std",), "image AUROC (mean)": ("image_auroc_mean",)}
PIXELS = {"pixel AUROC": ("pixel_auroc",), "AUPRO": ("aupro",)}


def flow(name: str, data: str, options: str, published: dict, numbers: Mapping[str, Key] | None = None) -> Experiment:
    """A training of CS-Flow on all training images."""
    shared = "--dataset_path {parent} --class_name {name} --output_path {place} --modelname run --seed {seed} {cpu}"
    words = f"csflow/main.py {shared} --calibration_share 0 --map_every 1000000 {options}"
    side, extractor = (words.split(f"{option} ")[1].split()[0] for option in ("--img_size", "--extractor"))
    words += f" --feature_path {{shared}}/features_{extractor}_{side}"
    file = "{place}/results/run/results.json"
    return Experiment(name, data, (tuple(words.split()),), file, numbers or {**FLOW, **PIXELS}, published)


SMALL_FLOW = "--extractor lite0 --img_size 256 --n_coupling_blocks 4 --meta_epochs 3"
PAPER_FLOW = (
    "--extractor effnetB5 --img_size 768 --n_coupling_blocks 4 --fc_internal 1024 --meta_epochs 4 --sub_epochs 60 "
    "--score mean"
)
AUTHORS = "the authors' code, same settings in float32 (csflow/README.md)"
CSFLOW = [
    flow(
        "csflow, 256 px, 12 epochs", "mtd", f"{SMALL_FLOW} --sub_epochs 4",
        {"image AUROC (std)": (0.833, AUTHORS), "image AUROC (mean)": (0.808, AUTHORS)},
    ),
    flow(
        "csflow, 256 px, 36 epochs, bf16", "mtd", f"{SMALL_FLOW} --sub_epochs 12 --precision bf16", {},
        {
            **{
                f"image AUROC ({score}) after {epochs} epochs": ("history", i, f"auroc_{score}")
                for i, epochs in enumerate((12, 24, 36)) for score in ("std", "mean")
            },
            **PIXELS,
        },
    ),
    flow(
        "csflow, 512 px, 12 epochs, bf16", "mtd",
        "--extractor lite0 --img_size 512 --n_coupling_blocks 1 --meta_epochs 1 --sub_epochs 12 --precision bf16",
        {"image AUROC (std)": (0.760, AUTHORS), "image AUROC (mean)": (0.750, AUTHORS)},
    ),
    *(
        flow(f"csflow, as the paper, on {data}", data, PAPER_FLOW, published)
        for data, published in {
            "mtd": {"image AUROC (mean)": (0.993, "CS-Flow's paper")},
            "mvtec": {"image AUROC (mean)": (0.987, "CS-Flow's paper, mean of 15")},
            "visa": {},
            "btad": {},
        }.items()
    ),
    *(
        Experiment(
            f"nearest neighbour on {data}, {extractor}, {side} px", data,
            (
                (
                    "benchmarks/nearest_neighbour.py", "--dataset_path", "{parent}", "--class_name", "{name}",
                    "--extractor", extractor, "--img_size", side, "--calibration_share", 0, "--seed", "{seed}", "{cpu}",
                    "--feature_path", f"{{shared}}/features_{extractor}_{side}", "--output", "{place}",
                ),
            ),
            "{place}/results.json",
            {
                "image AUROC (mean distance)": ("image_auroc_mean",), "image AUROC (largest)": ("image_auroc_max",),
                **PIXELS,
            },
            seeds=(0,),  # nothing is drawn
        )
        for data, extractor, side in (
            ("mtd", "lite0", 256), ("mtd", "effnetB5", 768), ("mvtec", "effnetB5", 768), ("visa", "effnetB5", 768),
            ("btad", "effnetB5", 768),
        )
    ),
]  # fmt: skip

# --- RIAD

INPAINTED = {"image AUROC": ("auroc",), "image AUROC, last epoch": ("models", "model_0_finepoch.pth", "auroc")}


def inpainting(
    name: str, data: str, options: str, published: dict, seeds: tuple[int, ...] = (0, 1, 2), path: str = "{data}"
) -> Experiment:
    """A training of RIAD; the pictures are left out."""
    words = f"riad/run.py --data_path {path} --seed {{seed}} --output {{place}} --figures_every 0 {{cpu}} {options}"
    numbers = INPAINTED if data == "mnist" else {**INPAINTED, **PIXELS}
    prepare = (("common/demo_data.py", "--output", "{shared}/textures"),) if data == "textures" else ()
    return Experiment(name, data, (tuple(words.split()),), "{place}/result.json", numbers, published, prepare, seeds)


PAPER_RIAD = "--algorithm paper --dataset mvtec --img_size 256"
RIAD = [
    inpainting(
        "riad, 8 epochs", "mnist",
        "--dataset mnist --mode_optim adam --lr 1e-3 --epochs 8 --eval_images 1000 --precision bf16", {},
    ),
    *(
        inpainting(
            f"riad, digit {digit}, 2 epochs", "mnist",
            f"--dataset mnist --mode_optim adam --lr 1e-3 --epochs 2 --eval_images 1000 --precision bf16 "
            f"--select_norm {digit}", {}, (0,),
        )
        for digit in (0, 2, 3, 4, 5, 6, 7, 8, 9)
    ),
    *(
        inpainting(
            f"riad, 128 px, small, 60 epochs, {texture}", "textures",
            "--algorithm paper --dataset mvtec --img_size 128 --filters 16 32 64 128 128 --lr 1e-3 --precision bf16 "
            "--epochs 60", {}, path=f"{{shared}}/textures/{texture}",
        )
        for texture in ("brick", "grass", "gravel")
    ),
    inpainting(
        "riad, as the seed, 300 epochs", "mnist", "--dataset mnist --mode_optim adam --lr 1e-3",
        {"image AUROC": (0.9975, "the seed document, 6,742 training images, chosen on the test half")},
    ),
    inpainting(
        "riad, 128 px, small, 12 epochs", "mtd",
        "--algorithm paper --dataset mvtec --img_size 128 --filters 16 32 64 128 128 --lr 1e-3 --precision bf16 "
        "--epochs 12", {},
    ),
    *(
        inpainting(f"riad, as the paper, on {data}", data, PAPER_RIAD, published)
        for data, published in {
            "mtd": {},
            "mvtec": {
                "image AUROC": (0.917, "RIAD's paper, mean of 15"), "pixel AUROC": (0.942, "RIAD's paper, mean of 15"),
            },
            "visa": {},
            "btad": {},
        }.items()
    ),
]  # fmt: skip

# --- CRN and DAGAN

COMPETED = {"image AUROC (inference)": ("image_auroc",), "image AUROC (validation)": ("image_auroc_validation",)}


def competition(model: str, data: str) -> Experiment:
    """A training of the published length and size with its inference, by the last checkpoint."""
    shared = f"--model {model} --dataset MVTec --dataset-path {{data}} --log-file {{place}}/log --image-output-path"
    shared += " {place}/pictures {cpu}"
    train = f"crn/train.py --mode train {shared} --seed {{seed}} --calibration-share 0 --image-output-interval 1000000"
    train += " --checkpoint-path {place} --log-dir {place}/logs"
    test = f"crn/train.py --mode inference {shared} --model-input {{place}}/last.ckpt"
    test += " --anomaly-score-file {place}/scores.csv"
    return Experiment(
        f"{'crn' if model == 'crn' else 'crn (dagan)'}, as published, on {data}", data,
        (tuple(train.split()), tuple(test.split())), "{place}/scores.json", {**COMPETED, **PIXELS},
    )  # fmt: skip


def short(name: str, data: str, options: str) -> Experiment:
    """A short training of small networks: crn/README.md's results."""
    place = {
        "mtd": "MVTec --dataset-path {data}",
        "bricks": "MVTec --dataset-path {shared}/textures/brick",
        "roads": "RoadImages --dataset-path {shared}/roads",
    }[data]
    prepare = {
        "mtd": (),
        "bricks": ("common/demo_data.py --output {shared}/textures --train 400 --good 60 --defective 12",),
        "roads": ("crn/demo_data.py --dataset RoadImages --output {shared}/roads --good 800 --bad 160",),
    }[data]
    shared = f"--dataset {place} --log-file {{place}}/log --image-output-path {{place}}/pictures {{cpu}}"
    shared += f" --batch-size 16 --imsize {options}"
    train = f"crn/train.py --mode train {shared} --seed {{seed}} --ngf 16 --image-output-interval 1000000"
    train += " --validation-interval 5 --checkpoint-path {place} --log-dir {place}/logs"
    test = f"crn/train.py --mode inference {shared} --model-input {{place}}/last.ckpt"
    test += " --anomaly-score-file {place}/scores.csv"
    numbers = COMPETED if data == "roads" else {**COMPETED, **PIXELS}
    return Experiment(
        name, data, (tuple(train.split()), tuple(test.split())), "{place}/scores.json", numbers,
        prepare=tuple(tuple(words.split()) for words in prepare),
    )  # fmt: skip


PAIR = "--num-competitive-units 2 --training-steps 1200"
WEAK = "--reconstruction-weight 2 --feedback-weight 0.25 --discrimination-weight 0.1"
MIDDLE = "--reconstruction-weight 2 --feedback-weight 0.5 --discrimination-weight 0.5 --norm image"
CRN = [
    *(competition(model, data) for data in ("mtd", "mvtec", "visa", "btad") for model in ("crn", "dagan")),
    short("crn, published weights, 128 px", "mtd", f"128 {PAIR} --lr 1e-3"),
    short("crn, weights 2, 0.5, 0.5, 128 px", "mtd", f"128 {PAIR} --lr 1e-3 {MIDDLE}"),
    short("crn, weights 2, 0.25, 0.1, 64 px", "mtd", f"64 {PAIR} --lr 2e-4 {WEAK}"),
    short("crn (dagan), 128 px", "mtd", "128 --model dagan --training-steps 300 --lr 1e-3 --precision bf16"),
    *(
        short(f"crn, {about}, 64 px, {data}", data, f"64 {options}")
        for data in ("bricks", "roads")
        for about, options in (
            ("published weights", f"{PAIR} --lr 5e-4"),
            ("weights 2, 0.5, 0.5", f"{PAIR} --lr 5e-4 {MIDDLE}"),
            ("weights 2, 0.25, 0.1", f"{PAIR} --lr 2e-4 {WEAK}"),
            ("dagan", "--model dagan --training-steps 600 --lr 2e-4"),
        )
    ),
]  # fmt: skip

# --- MemAE

FRAMES = {
    "frame AUC": ("auc",), "frame AUC, raw errors": ("auc_raw",),
    "frame difference": ("baseline_auc",), "frame difference, raw": ("baseline_auc_raw",),
}  # fmt: skip


def video(data: str, model: str, prepare: str, published: dict) -> Experiment:
    """Training, testing and evaluation of MemAE or AE with the paper's settings; what is prepared is shared."""
    setting = {"MemAE": "Conv3DSpar", "AE": "Conv3D"}[model]
    shared = f"--DataRoot {{shared}}/videos --Dataset {data}_256"
    of_all = (
        f"{shared} --ModelName {model} --ModelSetting {setting} --Seed {{seed}} --ModelRoot {{place}}/models {{cpu}}"
    )
    commands = [f"memae/script_training.py {of_all} --BatchSize 10"]
    commands.append(f"memae/script_testing.py {of_all} --BatchSize 8 --OutRoot {{place}}")
    commands.append(f"memae/script_eval_video.py {of_all} --OutRoot {{place}}")
    return Experiment(
        f"memae ({model}), as the paper, on {data}", data, tuple(tuple(command.split()) for command in commands),
        "{place}/res_*/results.json", FRAMES, published,
        (tuple(f"memae/script_img_prep.py {shared} --Size 256 {prepare}".split()),), (1, 2, 3),
    )  # fmt: skip


MEMAE = [
    video(data, model, prepare, published)
    for data, prepare, auc in (
        ("ped2", "--Input {data}", 0.941),
        ("avenue", "--Train {data}/training_videos --Test {data}/testing_videos --Labels {data}/labels.txt", 0.833),
    )
    for model, published in (("MemAE", {"frame AUC": (auc, "MemAE's paper")}), ("AE", {}))
]

# --- CRRN, on generated boards: the paper's are not published


def boards(name: str, count: int, models: str, protocols: tuple[str, ...]) -> Experiment:
    """crrn/compare.py with one seed: best F1 of each model at each rate, and of the z-score."""
    folder = f"{{shared}}/boards{count}"
    compare = f"crrn/compare.py --num_epochs 3 --num_instance 400 --lr 1e-3 --data {folder} --cycle 20 --seeds {{seed}}"
    compare += f" --models {models} --protocols {' '.join(protocols)} {{cpu}}"
    numbers: dict[str, Key] = {}
    for protocol in protocols:
        for model in models.split():
            key = model + ("_measured" if protocol == "measured" else "")
            for kind in ("excessive", "insufficient"):
                for rate in ("0.1", "0.2", "0.3", "0.4", "0.5"):
                    place = f"{kind}, rate {rate}"
                    numbers[f"best F1, {protocol}, {model}, {place}"] = (key, kind, rate, "best_f1", "mean")
                    numbers[f"best F1, {protocol}, z-score, {place}"] = (key, kind, rate, "z_score_best_f1", "mean")
    make = ("crrn/demo_boards.py", "--output", folder, "--boards", count)
    return Experiment(name, "boards", (tuple(compare.split()),), f"{folder}/compare/compare.json", numbers, {}, (make,))


CRRN = [
    boards("crrn, 200 boards", 200, "ConvConjLSTM ConvLSTM", ("measured", "drawn")),
    boards("crrn, textbook gates", 200, "ConvConjLSTM_textbook", ("measured",)),
    boards("crrn, 1000 boards", 1000, "ConvConjLSTM ConvLSTM", ("measured",)),
]

EXPERIMENTS = [*CSFLOW, *RIAD, *CRN, *MEMAE, *CRRN]
CATEGORIES = {"mvtec": 15}  # that published means are over; 1 of other data sets


# --- data sets: what --data NAME=FOLDER has to be, and how it becomes categories {name: folder}


def categories(folder: Path, output: Path) -> dict[str, Path]:
    """Folders in MVTec AD's layout, `folder` itself or those in it."""
    if (folder / "train/good").is_dir():
        return {folder.name: folder}
    found = {path.name: path for path in visible(folder) if (path / "train/good").is_dir()}
    if not found:
        raise UserError(f"there is no train/good in {folder}, nor in a folder in it")
    return found


def link(target: Path, source: Path) -> None:
    """Make `target` a symbolic link to `source`, which has to be there."""
    if not source.exists():
        raise UserError(f"there is no {source}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        target.symlink_to(source.resolve())
    except OSError as error:
        raise UserError(f"cannot link {target} to {source}: {reason(error)}") from error


def below(folder: Path, name: str | None, table: Path) -> Path:
    """What a table names, below `folder`. UserError where that is no path, or leads out of the folder."""
    path = Path(name or "")
    if not path.parts or path.is_absolute() or ".." in path.parts or "\0" in str(name):
        raise UserError(f"{table}: {name!r} is no path below {folder}")
    return folder / path


def visa(folder: Path, output: Path) -> dict[str, Path]:
    """VisA's 12 objects (Zou et al., ECCV 2022) in MVTec AD's layout: links, by the published split split_csv/1cls.csv.

    Its columns are object, split (train, test), label (normal, anomaly), image and mask, both relative to `folder`.
    Masks hold the number of the kind of defect; here, all kinds are 255.
    """
    table = folder / "split_csv/1cls.csv"
    if not table.exists():
        raise UserError(f"there is no {table}, VisA's published split")
    try:
        rows = list(csv.DictReader(io.StringIO(read_text(table), newline="")))
    except csv.Error as error:
        raise UserError(f"{table} is not VisA's split: {error}") from error
    if not rows or not {"object", "split", "label", "image", "mask"} <= rows[0].keys():
        raise UserError(f"{table} is not VisA's split: its columns are object, split, label, image and mask")
    for row in rows:
        if row["split"] not in ("train", "test") or row["label"] not in ("normal", "anomaly"):
            raise UserError(f"{table}: {row['split']!r} and {row['label']!r} are no split and label of VisA's")
        root, image = below(output, row["object"], table), below(folder, row["image"], table)
        kind = "good" if row["label"] == "normal" else "bad"
        link(root / row["split"] / kind / image.name, image)
        if row["mask"] and kind == "bad":
            mask = read_mask(below(folder, row["mask"], table), image_size(image))
            with atomic_write(root / "ground_truth/bad" / f"{image.stem}_mask.png") as file:
                Image.fromarray(mask).save(file, "PNG")
    return categories(output, output)


def btad(folder: Path, output: Path) -> dict[str, Path]:
    """BTAD's products (Mishra et al. 2021), <nn>/{train,test}/ok, test/ko and ground_truth/ko, as links to folders."""
    products = [path for path in visible(folder) if (path / "train/ok").is_dir()]
    if not products:
        raise UserError(f"there is no <nn>/train/ok in {folder}: expected BTAD's folders 01, 02 and 03")
    names = {
        "train/good": "train/ok",
        "test/good": "test/ok",
        "test/ko": "test/ko",
        "ground_truth/ko": "ground_truth/ko",
    }
    for product in products:
        for ours, theirs in names.items():
            link(output / product.name / ours, product / theirs)
    return categories(output, output)


def avenue(folder: Path, output: Path) -> dict[str, Path]:
    """CUHK Avenue (Lu et al., ICCV 2013): links to training_videos and testing_videos, and their labels as intervals.

    A frame is abnormal where its mask in testing_label_mask/<n>_label.mat (volLabel, one mask for each frame), anywhere
    below `folder`, is not empty.
    """
    for name in ("training_videos", "testing_videos"):
        link(output / name, folder / name)
    files = list(folder.rglob("testing_label_mask/*_label.mat"))
    if not files or not all(path.stem.split("_")[0].isdecimal() for path in files):
        raise UserError(
            f"there is no testing_label_mask/<n>_label.mat below {folder}, or others: Avenue's ground truth"
        )
    files.sort(key=lambda path: int(path.stem.split("_")[0]))
    with atomic_write(output / "labels.txt", "w") as file:
        for path in files:
            masks = read_mat(path, "volLabel", kinds={"cell"})[0].ravel()  # of a publisher who is trusted
            if masks.dtype != object or not all(np.asarray(mask).dtype.kind in "buif" for mask in masks):
                raise UserError(f"{path}: volLabel holds something else than a mask for each frame")
            abnormal = np.flatnonzero(
                np.diff([0, *(int(np.any(mask)) for mask in masks), 0])
            )  # first and past the last
            spans = ", ".join(f"{first + 1}-{end}" for first, end in abnormal.reshape(-1, 2))
            file.write(f"{int(path.stem.split('_')[0]):02d}: {spans}\n")
    return {"avenue": output}


def whole(name: str, *needed: str) -> Callable[[Path, Path], dict[str, Path]]:
    """A data set that is one folder, in which `needed` must be."""

    def found(folder: Path, output: Path) -> dict[str, Path]:
        for part in needed:
            if not (folder / part).exists():
                raise UserError(f"there is no {folder / part}")
        return {name: folder}

    return found


DATA = {
    "mvtec": ("MVTec AD: 15 folders with train/good, test/<kind>, ground_truth/<kind>", categories),
    "visa": ("VisA: split_csv/1cls.csv and what it lists", visa),
    "btad": ("BTAD: 01, 02, 03 with train/ok, test/ok, test/ko, ground_truth/ko", btad),
    "mtd": ("magnetic tiles in MVTec AD's layout", categories),
    "mnist": ("MNIST: folder with MNIST/raw", whole("mnist", "MNIST/raw")),
    "ped2": ("UCSD Ped2: Train and Test as published", whole("ped2", "Train", "Test")),
    "avenue": ("Avenue: training_videos, testing_videos, testing_label_mask (needs PyAV)", avenue),
    "boards": ("generated boards, no folder needed", None),
    "textures": ("generated defects on textures, no folder needed", None),
    "bricks": ("generated defects on bricks, no folder needed", None),
    "roads": ("generated roads, no folder needed", None),
}


def run_once(
    experiment: Experiment, name: str, folder: Path | None, seed: int, options: Namespace
) -> dict[str, float | None]:
    """The numbers of one run on the category `name`, from its record where it is done already."""
    method = experiment.name.split(",")[0].split(" ")[0]

    def filled(words: Command, place: Path) -> list[str]:
        values = {
            "{data}": folder, "{parent}": folder and folder.parent, "{name}": folder and folder.name, "{seed}": seed,
            "{place}": place, "{shared}": options.output / "shared" / experiment.data,
        }  # fmt: skip
        result = []
        for word in map(str, words):
            if word == "{cpu}":
                result += ["--cpu"] * options.cpu
                continue
            for token, value in values.items():
                word = word.replace(token, str(value))
            result.append(word)
        return result

    about = [filled(words, Path("place")) for words in (*experiment.prepare, *experiment.commands)]
    place = options.output / "runs" / f"{method}_{experiment.data}_{name}_seed{seed}_{key_of(about)}"
    record = place / "run.json"
    if not record.exists():
        require_writable(place)
        started = time.monotonic()
        for words in experiment.prepare:
            once(filled(words, place), options.output / "shared" / experiment.data)
        commands = [filled(words, place) for words in experiment.commands]
        for program, *words in commands:
            run(program, *words)
        file = experiment.file.removeprefix("{place}/")
        files = sorted(place.glob(file)) if file != experiment.file else [Path(*filled((file,), place))]
        if len(files) != 1:
            raise UserError(f"{len(files)} files are like {place / file}: expected one")
        results = read_json(files[0])
        numbers = {label: number(results, key) for label, key in experiment.numbers.items()}
        more = {"seconds": time.monotonic() - started, "versions": versions(), "commands": commands}
        more |= {"data": options.folders.get(experiment.data), "data_fingerprint": options.marks.get(experiment.data)}
        more["settings"] = settings_of(experiment)
        write_json(record, {"experiment": experiment.name, "category": name, "seed": seed, "numbers": numbers, **more})
    return numbers_of(read_record(record, numbers=dict), experiment, record)


def numbers_of(run: Mapping[str, Any], experiment: Experiment, record: Path) -> dict[str, float | None]:
    """The experiment's numbers in the record of a run. UserError where they are none."""
    numbers = {label: run["numbers"].get(label) for label in experiment.numbers}
    if not all(value is None or isinstance(value, (int, float)) for value in numbers.values()):
        raise UserError(f"{record} is damaged, its numbers are none: remove {record.parent} to run it again")
    return numbers


def settings_of(experiment: Experiment) -> str:
    """What tells whether an earlier run of this name was the same experiment."""
    return key_of([experiment.prepare, experiment.commands, experiment.numbers])


def earlier(options: Namespace) -> dict[str, dict[tuple[str, int], dict[str, float | None]]]:
    """The numbers of all runs in options.output, by experiment, then by (category, seed). UserError where they are of
    another folder than is given now, or of what it held before: one table tells of one."""
    found: dict[str, dict] = {one.name: {} for one in EXPERIMENTS}
    by_name = {one.name: one for one in EXPERIMENTS}
    for path in sorted((options.output / "runs").glob("*/run.json"), key=lambda path: path.stat().st_mtime):
        run = read_record(path, experiment=str, category=str, seed=int, numbers=dict)
        one = by_name.get(run["experiment"])
        given, mark = (of.get(one.data) if one else None for of in (options.folders, options.marks))
        if given and (run.get("data") != str(given) or run.get("data_fingerprint", mark) != mark):
            changed = ", which has changed since" if run.get("data") == str(given) else ""
            words = f"has results of {run.get('data')}{changed}: choose another --output for {given}"
            raise UserError(f"{path} {words}")
        if one is None or run.get("settings") != settings_of(one):
            continue  # of another version of this program
        numbers = numbers_of(run, one, path)
        found[one.name][run["category"], run["seed"]] = numbers
    return found


def once(words: list[str], folder: Path) -> None:
    """Run a command unless `folder` tells that it has been run to its end."""
    marker = folder / f".done_{key_of(words)}.json"
    if not marker.exists():
        run(*words)
        write_json(marker, words)


def number(results: Any, key: Key) -> float | None:
    """The number at `key`; None where there is none, such as pixel metrics without masks."""
    for part in key:
        try:
            results = results[part]
        except (KeyError, IndexError, TypeError):
            return None
    return results


def entries(experiment: Experiment, found: Mapping[tuple[str, int], Mapping[str, float | None]]) -> list[dict]:
    """Lines of the table: for each number, one for each category, and one for the mean of several; from the numbers of
    runs by (category, seed). The mean is over seeds with which all categories are done; a published mean stands beside
    that of all its categories only."""
    names = list(dict.fromkeys(name for name, _ in found))
    lines = []
    for label in experiment.numbers:
        by_name = {
            name: {seed: one[label] for (of, seed), one in found.items() if of == name and one[label] is not None}
            for name in names
        }
        whole_seeds = [seed for seed in dict.fromkeys(s for _, s in found) if all(seed in by_name[n] for n in names)]
        if len(names) > 1:
            means = {seed: statistics.fmean(by_name[name][seed] for name in names) for seed in whole_seeds}
            by_name[f"mean of {len(names)}"] = means
        for name, values in by_name.items():
            of_all = len(names) == CATEGORIES.get(experiment.data, 1) and (len(names) == 1 or name not in names)
            value, source = experiment.published.get(label, (None, "")) if of_all else (None, "")
            lines.append(
                {
                    "experiment": experiment.name, "data": experiment.data, "category": name, "number": label,
                    "values": list(values.values()), "seeds": list(values), "published": value, "source": source,
                }
            )  # fmt: skip
    return lines


def write(output: Path, lines: list[dict]) -> list[str]:
    """Write accuracy.json and accuracy.md; returns the lines of the latter."""
    text = ["| experiment | data | number | ours | seeds | published | source |", "|---" * 7 + "|"]
    for line in lines:
        data = line["data"] if line["category"] == line["data"] else f"{line['data']}: {line['category']}"
        ours, seeds = mean_and_spread(line["values"]), ", ".join(map(str, line["seeds"]))
        published = "" if line["published"] is None else line["published"]
        cells = [line["experiment"], data, line["number"], ours, seeds, published, line["source"]]
        text.append(f"| {' | '.join(map(str, cells))} |")
    write_json(output / "accuracy.json", {"versions": versions(), "results": lines})
    with atomic_write(output / "accuracy.md", "w") as file:
        file.writelines(f"{line}\n" for line in text)
    return text


def folders_of(words: list[str]) -> dict[str, Path]:
    """--data's NAME=FOLDER; UserError for unknown names and missing folders."""
    folders = {}
    for word in words:
        name, equals, folder = word.partition("=")
        if name not in DATA or DATA[name][1] is None or not equals:
            known = ", ".join(key for key, (_, convert) in DATA.items() if convert)
            raise UserError(f"--data {word}: expected NAME=FOLDER, NAME being one of {known}")
        if not Path(folder).is_dir():
            raise UserError(f"--data {word}: there is no folder {folder}")
        folders[name] = Path(folder).resolve()
    return folders


@script
def main(argv: list[str] | None = None) -> int:
    """Run what is missing, seed by seed; exit status 1 where a run failed."""
    parser = ArgumentParser(
        description="Rerun the READMEs' results, and the papers', on given data.",
        example="python benchmarks/accuracy.py --data mtd=my_data/mtd --only csflow riad --seeds 0 1 2",
    )
    add = parser.add_argument_group("experiments").add_argument
    add("--data", nargs="+", default=[], metavar="NAME=FOLDER", help="data sets, see --list; unset: none")
    add("--only", nargs="+", help="experiments whose name contains one of these; unset: all")
    add("--seeds", type=int, nargs="+", help="one run of each experiment with each; unset: the READMEs', see --list")
    add("--list", action="store_true", help="name experiments and data sets, run nothing")

    add = parser.add_argument_group("machine and files").add_argument
    add("--cpu", action="store_true", help="use the CPU even where there is a GPU")
    add("--output", type=Path, default=ROOT / "benchmarks/results/accuracy", help="folder of it all")
    options = parser.parse_args(argv)
    if options.seeds and not all(0 <= seed < 2**32 for seed in options.seeds):
        raise UserError(f"--seeds {' '.join(map(str, options.seeds))}: expected numbers from 0 to 2^32 - 1")
    options.output = options.output.resolve()
    folders = options.folders = folders_of(options.data)
    chosen = [one for one in EXPERIMENTS if any(part in one.name for part in options.only or [""])]
    if not chosen:
        raise UserError(f"--only {' '.join(options.only)}: no experiment is called so, --list names them")
    if options.list:
        for name, (about, convert) in DATA.items():
            say(f"--data {name}={folders.get(name, 'FOLDER')}: {about}" if convert else f"{name}: {about}")
        for one in chosen:
            given = "" if DATA[one.data][1] is None or one.data in folders else ", which is not given"
            say(f"{one.name}: on {one.data}{given}, seeds {' '.join(map(str, options.seeds or one.seeds))}")
        return 0
    able = [one for one in chosen if DATA[one.data][1] is None or one.data in folders]
    if not able:
        missing = ", ".join(dict.fromkeys(one.data for one in chosen))
        raise UserError(f"no data for these experiments: give --data NAME=FOLDER for one of {missing}")
    for one in chosen:
        if one not in able:
            say(f"left out, no --data {one.data}=FOLDER: {one.name}")
    options.marks = {name: fingerprint(files_below(folder), folder) for name, folder in folders.items()}
    with locked(options.output), goes_on(options.output):
        return run_all(able, options)


def run_all(able: list[Experiment], options: Namespace) -> int:
    """Run what is not done yet and write the table; returns the exit status."""
    units: dict[str, dict[str, Path | None]] = {}
    found = earlier(options)
    for name in dict.fromkeys(one.data for one in able):
        convert = DATA[name][1]
        units[name] = convert(options.folders[name], options.output / "data" / name) if convert else {name: None}
    failures, text = [], []
    seeds = {one.name: options.seeds or one.seeds for one in able}
    todo = [
        (seed, one, name)
        for seed in dict.fromkeys(seed for one in able for seed in seeds[one.name])
        for one in able if seed in seeds[one.name]
        for name in units[one.data]
    ]  # fmt: skip
    for count, (seed, one, name) in enumerate(todo, start=1):
        say(f"--- {count} of {len(todo)}: {one.name}, {name}, seed {seed}")
        try:
            found[one.name][name, seed] = run_once(one, name, units[one.data][name], seed, options)
        except UserError as error:  # the other experiments need not wait for this one
            failures.append(f"{one.name}, {name}, seed {seed}: {error}")
            complain(f"error: {failures[-1]}")
            continue
        lines = [entries(e, dict(sorted(found[e.name].items()))) for e in EXPERIMENTS]
        text = write(options.output, [line for of_one in lines for line in of_one])
    for line in text:
        say(line)
    say(f"table: {options.output / 'accuracy.md'}")
    for failure in failures:
        complain(f"failed: {failure}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
