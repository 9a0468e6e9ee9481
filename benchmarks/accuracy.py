"""Every number of the READMEs' result tables again, beside the published ones: python benchmarks/accuracy.py --list

    python benchmarks/accuracy.py --data mtd=FOLDER mvtec=FOLDER --only csflow riad --seeds 0 1 2

runs the EXPERIMENTS below for whose data a folder is given, through the methods' own scripts, and writes after each run
<output>/accuracy.{md,json}: mean and standard deviation over the seeds, of all runs that lie in <output>. What is done
is not done again, whatever has changed in the code since; an interrupted run resumes. The sizes are the papers' or the
READMEs': most want a GPU.
"""

import glob
import itertools
import statistics
import sys
import time
from argparse import ArgumentTypeError, Namespace
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.scripts import ROOT, commands, key_of, mean_and_spread, number_at, read_record, run
from common.cli import ArgumentParser, answer_early, complain, resumable, say, script, whole
from common.files import (
    UserError,
    atomic_write,
    locked,
    read_csv,
    read_json,
    reason,
    require_writable,
    write_json,
)

DATA = {  # what --data NAME=FOLDER has to be; no folder is needed for what is generated
    "mvtec": "MVTec AD: 15 folders with train/good, test/<kind>, ground_truth/<kind>",
    "visa": "VisA: split_csv/1cls.csv and what it lists",
    "btad": "BTAD: 01, 02, 03 with train/ok, test/ok, test/ko, ground_truth/ko",
    "mtd": "magnetic tiles in MVTec AD's layout",
    "mnist": "MNIST: folder with MNIST/raw",
    "ped2": "UCSD Ped2: Train and Test as published",
    "avenue": "Avenue: training_videos, testing_videos, testing_label_mask (needs PyAV)",
}
GENERATED = {
    "boards": "generated boards",
    "textures": "generated defects on textures",
    "bricks": "generated defects on bricks",
    "roads": "generated roads",
}


def data_folder(text: str) -> tuple[str, Path]:
    """Type of an option: NAME=FOLDER, a data set and where it is."""
    name, _, folder = text.partition("=")
    if name not in DATA or not folder:
        raise ArgumentTypeError(f"{text!r}: expected NAME=FOLDER, NAME being one of {', '.join(DATA)}")
    return name, Path(folder).resolve()


def parse(argv: list[str] | None = None) -> Namespace:
    """The options."""
    parser = ArgumentParser(
        description="Rerun the READMEs' results, and the papers', on given data.",
        example="python benchmarks/accuracy.py --data mtd=my_data/mtd --only csflow riad --seeds 0 1 2",
    )
    add = parser.add_argument_group("experiments").add_argument
    data = "data sets, see --list; unset: none"
    add("--data", nargs="+", type=data_folder, default=[], metavar="NAME=FOLDER", help=data)
    add("--only", nargs="+", default=[""], help="experiments whose name contains one of these; unset: all")
    seeds = "one run of each experiment with each; unset: the READMEs', see --list"
    add("--seeds", type=whole(0, 2**32 - 1), nargs="+", help=seeds)
    add("--list", action="store_true", help="name experiments and data sets, run nothing")

    add = parser.add_argument_group("machine and files").add_argument
    add("--cpu", action="store_true", help="use the CPU even where there is a GPU")
    add("--output", type=Path, default=ROOT / "benchmarks/results/accuracy", help="folder of it all")
    return parser.parse_args(argv)


answer_early(__name__, parse)

import numpy as np
from PIL import Image

from common.checkpoint import versions
from common.images import files_below, fingerprint, image_size, read_mask, visible

Key = tuple[str | int, ...]  # where a number stands in a results file


class Experiment(NamedTuple):
    """One line of a README or a paper, or several that one training gives.

    In commands and file, {data} stands for the category's folder, {parent} and {name} for the folder's parts, {seed}
    for the seed, {place} for the run's folder, {shared} for the folder of what all runs of the data share, and {cpu}
    for the option that keeps off the GPU, if --cpu was given.
    """

    name: str  # begins with the method
    data: str
    commands: tuple[str, ...]  # for each category and seed
    file: str  # of the results; a pattern, of which one file is there
    numbers: Mapping[str, Key]
    published: Mapping[str, tuple[float, str]] = {}  # value and source, of all categories
    prepare: tuple[str, ...] = ()  # once for each category
    seeds: Sequence[int] = (0, 1, 2)  # unless others are asked for


PIXELS = {"pixel AUROC": ("pixel_auroc",), "AUPRO": ("aupro",)}

# --- CS-Flow and the nearest neighbour on its features

FLOW = {"image AUROC (std)": ("image_auroc_std",), "image AUROC (mean)": ("image_auroc_mean",), **PIXELS}
NEAREST = {
    "image AUROC (largest)": ("image_auroc",),
    "image AUROC (mean distance)": ("image_auroc_of_mean_distance",),
}
AUTHORS = "the authors' code, same settings in float32 (csflow/README.md)"
CATEGORY = "--dataset_path {parent} --class_name {name}"


def flow(name: str, data: str, size: tuple[str, int], options: str, published: Any, numbers: Any = FLOW) -> Experiment:
    """A training of CS-Flow on all training images; size: extractor and side of the images."""
    extractor, side = size
    command = (
        f"csflow/main.py {CATEGORY} --output_path {{place}} --modelname run --seed {{seed}} {{cpu}} "
        f"--calibration_share 0 --map_every 1000000 --extractor {extractor} --img_size {side} {options} "
        f"--feature_path {{shared}}/features_{extractor}_{side}"
    )
    return Experiment(name, data, (command,), "{place}/results/run/results.json", numbers, published)


def nearest(data: str, extractor: str, side: int) -> Experiment:
    """The baseline, for which nothing is drawn."""
    command = (
        f"benchmarks/nearest_neighbour.py {CATEGORY} --extractor {extractor} --img_size {side} --calibration_share 0 "
        f"--seed {{seed}} {{cpu}} --feature_path {{shared}}/features_{extractor}_{side} --output {{place}}"
    )
    name = f"nearest neighbour on {data}, {extractor}, {side} px"
    return Experiment(name, data, (command,), "{place}/results.json", {**NEAREST, **PIXELS}, seeds=(0,))


LITE, PAPER = ("lite0", 256), ("effnetB5", 768)
PAPER_FLOW = "--n_coupling_blocks 4 --fc_internal 1024 --meta_epochs 4 --sub_epochs 60 --score mean"
BY_EPOCHS = {
    f"image AUROC ({score}) after {12 * (i + 1)} epochs": ("history", i, f"auroc_{score}")
    for i in range(3)
    for score in ("std", "mean")
}
CSFLOW = [
    flow(
        "csflow, 256 px, 12 epochs", "mtd", LITE, "--n_coupling_blocks 4 --meta_epochs 3 --sub_epochs 4",
        {"image AUROC (std)": (0.833, AUTHORS), "image AUROC (mean)": (0.808, AUTHORS)},
    ),
    flow(
        "csflow, 256 px, 36 epochs, bf16", "mtd", LITE,
        "--n_coupling_blocks 4 --meta_epochs 3 --sub_epochs 12 --precision bf16", {}, {**BY_EPOCHS, **PIXELS},
    ),
    flow(
        "csflow, 512 px, 12 epochs, bf16", "mtd", ("lite0", 512),
        "--n_coupling_blocks 1 --meta_epochs 1 --sub_epochs 12 --precision bf16",
        {"image AUROC (std)": (0.760, AUTHORS), "image AUROC (mean)": (0.750, AUTHORS)},
    ),
    *(
        flow(f"csflow, as the paper, on {data}", data, PAPER, PAPER_FLOW, published)
        for data, published in {
            "mtd": {"image AUROC (mean)": (0.993, "CS-Flow's paper")},
            "mvtec": {"image AUROC (mean)": (0.987, "CS-Flow's paper, mean of 15")},
            "visa": {},
            "btad": {},
        }.items()
    ),
    nearest("mtd", *LITE),
    *(nearest(data, *PAPER) for data in ("mtd", "mvtec", "visa", "btad")),
]  # fmt: skip

# --- RIAD

INPAINTED = {"image AUROC": ("auroc",), "image AUROC, last epoch": ("models", "model_0_finepoch.pth", "auroc")}


def inpainting(name: str, data: str, options: str, published: Any, path: str = "{data}", **more: Any) -> Experiment:
    """A training of RIAD; the pictures are left out."""
    command = f"riad/run.py --data_path {path} --seed {{seed}} --output {{place}} --figures_every 0 {{cpu}} {options}"
    numbers = INPAINTED if data == "mnist" else {**INPAINTED, **PIXELS}
    return Experiment(name, data, (command,), "{place}/result.json", numbers, published, **more)


DIGITS = "--dataset mnist --mode_optim adam --lr 1e-3"
SMALL_RIAD = "--algorithm paper --dataset mvtec --img_size 128 --filters 16 32 64 128 128 --lr 1e-3 --precision bf16"
PUBLISHED = "RIAD's paper, mean of 15"
RIAD = [
    inpainting("riad, 8 epochs", "mnist", f"{DIGITS} --epochs 8 --eval_images 1000 --precision bf16", {}),
    *(
        inpainting(
            f"riad, digit {digit}, 2 epochs", "mnist",
            f"{DIGITS} --epochs 2 --eval_images 1000 --precision bf16 --select_norm {digit}", {}, seeds=(0,),
        )
        for digit in (0, 2, 3, 4, 5, 6, 7, 8, 9)
    ),
    *(
        inpainting(
            f"riad, 128 px, small, 60 epochs, {texture}", "textures", f"{SMALL_RIAD} --epochs 60", {},
            f"{{shared}}/textures/{texture}", prepare=("common/demo_data.py --output {shared}/textures",),
        )
        for texture in ("brick", "grass", "gravel")
    ),
    inpainting(
        "riad, as the seed, 300 epochs", "mnist", DIGITS,
        {"image AUROC": (0.9975, "the seed document, 6,742 training images, chosen on the test half")},
    ),
    inpainting("riad, 128 px, small, 12 epochs", "mtd", f"{SMALL_RIAD} --epochs 12", {}),
    *(
        inpainting(
            f"riad, as the paper, on {data}", data, "--algorithm paper --dataset mvtec --img_size 256",
            {"image AUROC": (0.917, PUBLISHED), "pixel AUROC": (0.942, PUBLISHED)} if data == "mvtec" else {},
        )
        for data in ("mtd", "mvtec", "visa", "btad")
    ),
]  # fmt: skip

# --- CRN and DAGAN

COMPETED = {"image AUROC (inference)": ("image_auroc",), "image AUROC (validation)": ("image_auroc_validation",)}


def competition(
    name: str, data: str, dataset: str, shared: str, train: str, numbers: Any, prepare: tuple[str, ...] = ()
) -> Experiment:
    """A training of CRN or DAGAN and its inference, by the last checkpoint; shared: options of both."""
    shared = f"{dataset} --log-file {{place}}/log --image-output-path {{place}}/pictures {{cpu}} {shared}"
    train += " --checkpoint-path {place} --log-dir {place}/logs"
    test = "--model-input {place}/last.ckpt --anomaly-score-file {place}/scores.csv"
    lines = (
        f"crn/train.py --mode train {shared} --seed {{seed}} {train}",
        f"crn/train.py --mode inference {shared} {test}",
    )
    return Experiment(name, data, lines, "{place}/scores.json", numbers, {}, prepare)


def short(name: str, data: str, options: str) -> Experiment:
    """A short training of small networks: crn/README.md's results."""
    dataset, *prepare = {
        "mtd": ("MVTec --dataset-path {data}",),
        "bricks": (
            "MVTec --dataset-path {shared}/textures/brick",
            "common/demo_data.py --output {shared}/textures --train 400 --good 60 --defective 12",
        ),
        "roads": (
            "RoadImages --dataset-path {shared}/roads",
            "crn/demo_data.py --dataset RoadImages --output {shared}/roads --good 800 --bad 160",
        ),
    }[data]
    train = "--ngf 16 --image-output-interval 1000000 --validation-interval 5"
    numbers = COMPETED if data == "roads" else {**COMPETED, **PIXELS}
    shared = f"--batch-size 16 --imsize {options}"
    return competition(name, data, f"--dataset {dataset}", shared, train, numbers, tuple(prepare))


PAIR = "--num-competitive-units 2 --training-steps 1200"
WEAK = "--reconstruction-weight 2 --feedback-weight 0.25 --discrimination-weight 0.1"
MIDDLE = "--reconstruction-weight 2 --feedback-weight 0.5 --discrimination-weight 0.5 --norm image"
CRN = [
    *(
        competition(
            f"{name}, as published, on {data}", data, f"--model {model} --dataset MVTec --dataset-path {{data}}", "",
            "--calibration-share 0 --image-output-interval 1000000", {**COMPETED, **PIXELS},
        )
        for data in ("mtd", "mvtec", "visa", "btad")
        for name, model in (("crn", "crn"), ("crn (dagan)", "dagan"))
    ),
    short("crn, published weights, 128 px", "mtd", f"128 {PAIR} --lr 1e-3"),
    short("crn, weights 2, 0.5, 0.5, 128 px", "mtd", f"128 {PAIR} --lr 1e-3 {MIDDLE}"),
    short("crn, weights 2, 0.25, 0.1, 64 px", "mtd", f"64 {PAIR} --lr 2e-4 {WEAK}"),
    short("crn (dagan), 128 px", "mtd", "128 --model dagan --training-steps 300 --lr 1e-3 --precision bf16"),
    *(
        short(f"crn, {what}, 64 px, {data}", data, f"64 {options}")
        for data in ("bricks", "roads")
        for what, options in (
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


def video(data: str, model: str, setting: str, prepare: str, published: Any) -> Experiment:
    """Training, testing and evaluation with the paper's settings; what is prepared is shared."""
    shared = f"--DataRoot {{shared}}/videos --Dataset {data}_256"
    of_all = (
        f"{shared} --ModelName {model} --ModelSetting {setting} --Seed {{seed}} --ModelRoot {{place}}/models {{cpu}}"
    )
    return Experiment(
        f"memae ({model}), as the paper, on {data}", data,
        (
            f"memae/script_training.py {of_all} --BatchSize 10",
            f"memae/script_testing.py {of_all} --BatchSize 8 --OutRoot {{place}}",
            f"memae/script_eval_video.py {of_all} --OutRoot {{place}}",
        ),
        "{place}/res_*/results.json", FRAMES, published, (f"memae/script_img_prep.py {shared} --Size 256 {prepare}",),
        (1, 2, 3),
    )  # fmt: skip


AVENUE = "--Train {data}/training_videos --Test {data}/testing_videos --Labels {data}/labels.txt"
MEMAE = [
    video(data, model, setting, prepare, {"frame AUC": (auc, "MemAE's paper")} if model == "MemAE" else {})
    for data, prepare, auc in (("ped2", "--Input {data}", 0.941), ("avenue", AVENUE, 0.833))
    for model, setting in (("MemAE", "Conv3DSpar"), ("AE", "Conv3D"))
]

# --- CRRN, on generated boards: the paper's are not published


def boards(name: str, count: int, models: str, protocols: str) -> Experiment:
    """crrn/compare.py with one seed: best F1 of each model at each rate, and of the z-score."""
    folder = f"{{shared}}/boards{count}"
    compare = (
        f"crrn/compare.py --num_epochs 3 --num_instance 400 --lr 1e-3 --data {folder} --cycle 20 --seeds {{seed}} "
        f"--models {models} --protocols {protocols} {{cpu}}"
    )
    numbers: dict[str, Key] = {}
    for protocol, model in itertools.product(protocols.split(), models.split()):
        key = model + ("_measured" if protocol == "measured" else "")
        for kind, rate in itertools.product(("excessive", "insufficient"), ("0.1", "0.2", "0.3", "0.4", "0.5")):
            for who, metric in ((model, "best_f1"), ("z-score", "z_score_best_f1")):
                numbers[f"best F1, {protocol}, {who}, {kind}, rate {rate}"] = (key, kind, rate, metric, "mean")
    prepare = (f"crrn/demo_boards.py --output {folder} --boards {count}",)
    return Experiment(name, "boards", (compare,), f"{folder}/compare/compare.json", numbers, {}, prepare)


CRRN = [
    boards("crrn, 200 boards", 200, "ConvConjLSTM ConvLSTM", "measured drawn"),
    boards("crrn, textbook gates", 200, "ConvConjLSTM_textbook", "measured"),
    boards("crrn, 1000 boards", 1000, "ConvConjLSTM ConvLSTM", "measured"),
]

EXPERIMENTS = [*CSFLOW, *RIAD, *CRN, *MEMAE, *CRRN]
CATEGORIES = {"mvtec": 15}  # that published means are over; 1 of other data sets


# --- data sets: how the folder of --data becomes categories {name: folder}


def categories(folder: Path, output: Path) -> dict[str, Path]:
    """Folders in MVTec AD's layout, `folder` itself or those in it."""
    if (folder / "train/good").is_dir():
        return {folder.name: folder}
    inside = {path.name: path for path in visible(folder) if (path / "train/good").is_dir()}
    if not inside:
        raise UserError(f"there is no train/good in {folder}, nor in a folder in it")
    return inside


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
    rows = read_csv(table)
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
    for product in products:
        for theirs in ("train/ok", "test/ok", "test/ko", "ground_truth/ko"):
            link(output / product.name / theirs.replace("ok", "good"), product / theirs)
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
        raise UserError(f"there is no testing_label_mask/<n>_label.mat below {folder}, or others: Avenue's labels")
    with atomic_write(output / "labels.txt", "w") as file:
        for number, path in sorted((int(path.stem.split("_")[0]), path) for path in files):
            from memae.data.matlab import read_mat  # with SciPy, slow to import

            masks = read_mat(path, "volLabel", kinds={"cell"})[0].ravel()  # of a publisher who is trusted
            if masks.dtype != object or not all(np.asarray(mask).dtype.kind in "buif" for mask in masks):
                raise UserError(f"{path}: volLabel holds something else than a mask for each frame")
            abnormal = [0, *(int(np.any(mask)) for mask in masks), 0]
            spans = np.flatnonzero(np.diff(abnormal)).reshape(-1, 2)  # first and past the last, from 0
            file.write(f"{number:02d}: {', '.join(f'{first + 1}-{end}' for first, end in spans)}\n")
    return {"avenue": output}


def holding(name: str, *parts: str) -> Callable[[Path, Path], dict[str, Path]]:
    """A data set that is one folder, in which `parts` must be."""

    def convert(folder: Path, output: Path) -> dict[str, Path]:
        for part in parts:
            if not (folder / part).exists():
                raise UserError(f"there is no {folder / part}")
        return {name: folder}

    return convert


CONVERT = {
    "mvtec": categories, "mtd": categories, "visa": visa, "btad": btad, "avenue": avenue,
    "mnist": holding("mnist", "MNIST/raw"), "ped2": holding("ped2", "Train", "Test"),
}  # fmt: skip


# --- runs and the table of their numbers


class Given(NamedTuple):
    """What the user has given: folders of data sets with fingerprints of their files, by name."""

    output: Path
    cpu: bool
    folders: Mapping[str, Path]
    fingerprints: Mapping[str, str]


Numbers = dict[str, float | None]


def run_once(experiment: Experiment, name: str, folder: Path | None, seed: int, given: Given) -> Numbers:
    """Run the experiment on the category `name` in `folder`, and record its numbers, unless that is done already."""
    shared = given.output / "shared" / experiment.data
    values = {
        "data": folder, "parent": folder and folder.parent, "name": folder and folder.name, "seed": seed,
        "shared": shared, "cpu": ["--cpu"] * given.cpu,
    }  # fmt: skip
    method = experiment.name.split(",")[0].split(" ")[0]
    key = key_of(commands((*experiment.prepare, *experiment.commands), place="place", **values))
    place = given.output / "runs" / f"{method}_{experiment.data}_{name}_seed{seed}_{key}"
    if not (place / "run.json").exists():
        require_writable(place)
        started = time.monotonic()
        for words in commands(experiment.prepare, **values):
            done = shared / f".done_{key_of(words)}.json"
            if not done.exists():
                run(*words)
                write_json(done, words)
        todo = commands(experiment.commands, place=place, **values)
        for words in todo:
            run(*words)
        pattern = experiment.file.format(place=glob.escape(str(place)), shared=glob.escape(str(shared)))
        files = glob.glob(pattern)  # noqa: PTH207
        if len(files) != 1:
            raise UserError(f"{len(files)} files are like {pattern}: expected one")
        results = read_json(files[0])
        content = {
            "experiment": experiment.name, "category": name, "seed": seed, "settings": settings_of(experiment),
            "numbers": {label: number_at(results, *key) for label, key in experiment.numbers.items()},
            "data": given.folders.get(experiment.data), "data_fingerprint": given.fingerprints.get(experiment.data),
            "seconds": time.monotonic() - started, "versions": versions(), "commands": todo,
        }  # fmt: skip
        write_json(place / "run.json", content)
    return numbers_of(experiment, place / "run.json")


def numbers_of(experiment: Experiment, record: Path) -> Numbers:
    """The experiment's numbers in the record of a run. UserError where they are none."""
    numbers = {label: read_record(record, numbers=dict)["numbers"].get(label) for label in experiment.numbers}
    if not all(value is None or isinstance(value, (int, float)) for value in numbers.values()):
        raise UserError(f"{record} is damaged: remove {record.parent} to run it again")
    return numbers


def settings_of(experiment: Experiment) -> str:
    """What tells whether an earlier run of this name was the same experiment."""
    lines = [[line.split() for line in part] for part in (experiment.prepare, experiment.commands)]
    return key_of([*lines, experiment.numbers])


def earlier(given: Given) -> dict[str, dict[tuple[str, int], Numbers]]:
    """The numbers of all runs in the output, by experiment, then by (category, seed). UserError where they are of
    another folder than is given now, or of what it held before: one table tells of one."""
    runs: dict[str, dict] = {one.name: {} for one in EXPERIMENTS}
    by_name = {one.name: one for one in EXPERIMENTS}
    for path in sorted((given.output / "runs").glob("*/run.json"), key=lambda path: path.stat().st_mtime):
        run = read_record(path, experiment=str, category=str, seed=int, numbers=dict)
        if not (experiment := by_name.get(run["experiment"])):
            continue
        if folder := given.folders.get(experiment.data):
            mark, same = given.fingerprints[experiment.data], run.get("data") == str(folder)
            if not same or run.get("data_fingerprint", mark) != mark:
                words = f"has results of {run.get('data')}{', which has changed since' if same else ''}"
                raise UserError(f"{path} {words}: choose another --output for {folder}")
        if run.get("settings") == settings_of(experiment):  # else of another version of this program
            runs[experiment.name][run["category"], run["seed"]] = numbers_of(experiment, path)
    return runs


def entries(experiment: Experiment, runs: Mapping[tuple[str, int], Mapping[str, float | None]]) -> list[dict]:
    """Lines of the table: for each number, one for each category, and one for the mean of several; from the numbers of
    runs by (category, seed). The mean is over seeds with which all categories are done; a published mean stands beside
    that of all its categories only."""
    names, seeds = (list(dict.fromkeys(key[i] for key in runs)) for i in range(2))
    lines = []
    for label in experiment.numbers:
        by_name = {
            name: {seed: one[label] for (of, seed), one in runs.items() if of == name and one[label] is not None}
            for name in names
        }
        if len(names) > 1:
            complete = [seed for seed in seeds if all(seed in by_name[name] for name in names)]
            means = {seed: statistics.fmean(by_name[name][seed] for name in names) for seed in complete}
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
        cells = line["experiment"], data, line["number"], ours, seeds, published, line["source"]
        text.append(f"| {' | '.join(map(str, cells))} |")
    write_json(output / "accuracy.json", {"versions": versions(), "results": lines})
    with atomic_write(output / "accuracy.md", "w") as file:
        file.write("\n".join([*text, ""]))
    return text


@script
def main(argv: list[str] | None = None) -> int:
    """Run what is missing, seed by seed; exit status 1 where a run failed."""
    options = parse(argv)
    folders, output = dict(options.data), options.output.resolve()
    for name, folder in folders.items():
        if not folder.is_dir():
            raise UserError(f"--data {name}: there is no folder {folder}")
    chosen = [one for one in EXPERIMENTS if any(part in one.name for part in options.only)]
    if not chosen:
        raise UserError(f"--only {' '.join(options.only)}: no experiment is called so, --list names them")
    able = [one for one in chosen if one.data in GENERATED or one.data in folders]
    if options.list:
        for name, what in DATA.items():
            say(f"--data {name}={folders.get(name, 'FOLDER')}: {what}")
        for name, what in GENERATED.items():
            say(f"{name}: {what}, no folder needed")
        for one in chosen:
            given = "" if one in able else ", which is not given"
            say(f"{one.name}: on {one.data}{given}, seeds {' '.join(map(str, options.seeds or one.seeds))}")
        return 0
    if not able:
        missing = ", ".join(dict.fromkeys(one.data for one in chosen))
        raise UserError(f"no data for these experiments: give --data NAME=FOLDER for one of {missing}")
    for one in chosen:
        if one not in able:
            say(f"left out, no --data {one.data}=FOLDER: {one.name}")
    fingerprints = {name: fingerprint(files_below(folder), folder) for name, folder in folders.items()}
    with locked(output), resumable(output):
        return run_all(able, options.seeds, Given(output, options.cpu, folders, fingerprints))


def run_all(able: list[Experiment], seeds: list[int] | None, given: Given) -> int:
    """Run what is not done yet, with the seeds or each experiment's own, and write the table; the exit status."""
    runs, units = earlier(given), {}
    for name in dict.fromkeys(one.data for one in able):
        folder = given.folders.get(name)
        units[name] = CONVERT[name](folder, given.output / "data" / name) if folder else {name: None}
    failures, text = [], []
    todo = [
        (seed, one, name)
        for seed in dict.fromkeys(seed for one in able for seed in seeds or one.seeds)
        for one in able if seed in (seeds or one.seeds)
        for name in units[one.data]
    ]  # fmt: skip
    for count, (seed, one, name) in enumerate(todo, start=1):
        say(f"--- {count} of {len(todo)}: {one.name}, {name}, seed {seed}")
        try:
            runs[one.name][name, seed] = run_once(one, name, units[one.data][name], seed, given)
        except UserError as error:  # the other experiments need not wait for this one
            failures.append(f"{one.name}, {name}, seed {seed}: {error}")
            complain(f"error: {failures[-1]}")
            continue
        lines = [entries(each, dict(sorted(runs[each.name].items()))) for each in EXPERIMENTS]
        text = write(given.output, [line for of_one in lines for line in of_one])
    for line in text:
        say(line)
    say(f"table: {given.output / 'accuracy.md'}")
    for failure in failures:
        complain(f"failed: {failure}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
