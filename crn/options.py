"""Every option of CRN's programs, with its default. A default path lies in this folder wherever a program is started; a
path on the command line is relative to where you stand."""

import math
import sys
from argparse import ArgumentTypeError, Namespace
from pathlib import Path
from typing import Any

from common.cli import MAX_PIXELS, MAX_VALUE, PRECISIONS, REPORT_HELP, YES_NO, ArgumentParser, say
from common.files import UserError
from crn.training.dataset import DATASETS
from crn.training.networks import OPTIMIZERS, SCHEDULERS
from crn.training.skipnetworks import NORMS

HERE = Path(__file__).resolve().parent
SCORES = ("inference", "validation")
# What the original accepts and never uses.
UNUSED = ("pipeline", "generator_network_depth", "wandb_hyperparameter_sweep")
LARGEST = {
    "training_steps": 10**9, "batch_size": 65536, "num_competitive_units": 1000, "imsize": 4096,
    "max_network_depth": 30, "ngf": 1024, "image_output_interval": 10**9, "validation_interval": 10**9,
}  # fmt: skip
# --demo: these, where the command line does not say otherwise, and at most so many images of each part.
DEMO = {"batch_size": 2, "max_network_depth": 3, "imsize": 32, "num_competitive_units": 3}
DEMO_BATCHES = 50
DEMO_IMAGES = 50
DEMO_FOLDERS = {"MVTec": "datasets/mvtec/brick", "Panorama": "datasets/panorama", "RoadImages": "datasets/roadimages"}


def scheduler_name(text: str) -> str:
    """The scheduler, "" for none; argparse's error for others."""
    name = text.lower()
    if name in ("", "none", "null"):
        return ""
    if name in SCHEDULERS:
        return name
    raise ArgumentTypeError(f"{text!r}: expected {', '.join(SCHEDULERS)} or none")


def _path(text: str) -> Path | None:
    return Path(text) if text else None


def build_parser() -> ArgumentParser:
    """The parser of train.py."""
    parser = ArgumentParser(
        description="Train CRN or DAGAN, or score a data set with a trained model.",
        example="python crn/train.py --mode train --dataset MVTec --dataset-path my_data/bottle --checkpoint-path ck",
    )

    add = parser.add_argument_group("what to do").add_argument
    add("--mode", choices=("train", "inference"), required=True, help="train a model, or score a data set with one")
    add("--model", choices=("crn", "dagan"), default="crn", help="CRN, or its baseline")
    add("--dataset", choices=DATASETS, required=True, help="the data set's kind, which tells its folders")
    add("--dataset-path", type=_path, help="the data set's folder; unset, with --demo: in crn/datasets")
    add("--max-value", "--max_value", **MAX_VALUE)
    add("--max-pixels", "--max_pixels", **MAX_PIXELS)
    add("--model-input", type=_path, help="checkpoint; inference: the model, train: initial weights; unset: none")
    add("--experiment", default="crn", help="name of the run")
    add("--auto-set-name", **YES_NO, default=False, help="name the run after model, data set and category")
    add("--demo", **YES_NO, default=False, help="small settings; where there is no data set, stand-in data")

    add = parser.add_argument_group("training").add_argument
    add("--training-steps", type=int, default=20000, help="optimizer steps; a batch takes two, one for each network")
    add("--epochs", type=int, help="at most so many; unset: training-steps / (images / batch-size) + 1")
    add("--batch-size", type=int, default=64, help="images per batch")
    add("--seed", type=int, default=0, help="of the initial weights, batches, pairs and the held-out share")
    add("--optimizer", choices=OPTIMIZERS, default="adam", help="one for each network")
    add("--lr", type=float, default=1e-4, help="learning rate")
    add(
        "--lr-scheduler",
        type=scheduler_name,
        nargs="?",
        const="",
        default="",
        help="step, exponential, cosine; unset: none",
    )
    add("--lr-factor", type=float, default=0.1, help="of the step and exponential schedulers")
    add("--lr-steps", type=int, nargs="*", default=[30, 60, 90], help="epochs at which the step scheduler acts")
    add("--momentum", type=float, default=0.9, help="of rmsprop and sgd")
    add(
        "--precision",
        choices=tuple(PRECISIONS),
        default="fp32",
        help="of the training's networks; tf32, fp16: GPUs",
    )
    add("--calibration-share", type=float, default=0.1, help="share of the training images held out for the threshold")
    add("--validation-interval", type=int, default=1, help="epochs between validations")

    add = parser.add_argument_group("networks").add_argument
    add("--num-competitive-units", type=int, default=12, help="CRN's units")
    add("--imsize", type=int, default=128, help="side of the images for the network, in pixels")
    add("--antialias", **YES_NO, default=False, help="smooth images when making them smaller (the original does not)")
    add("--max-network-depth", type=int, default=8, help="most levels of a CRN unit (there are at least 5)")
    add("--ngf", type=int, default=64, help="channels of the outermost level")
    add("--improved", **YES_NO, default=True, help="CRN: upsampling and convolution instead of transposed convolutions")
    add("--use-dropout", **YES_NO, default=False, help="dropout in the middle levels, if there are more than 5")
    add("--norm", choices=NORMS, default="batch", help="normalisation; image: by each image alone, also when scoring")

    add = parser.add_argument_group("losses").add_argument
    add("--reconstruction-weight", type=float, default=0.5, help="CRN: of |x - G(x)|")
    add("--feedback-weight", type=float, default=1.0, help="CRN: of |G(x) - D(G(x))| for the generator")
    add("--discrimination-weight", type=float, default=2.0, help="CRN: of |G(x) - D(G(x))| for the discriminator")
    add("--adversarial-loss-weight", type=float, default=1.0, help="DAGAN: of mse(G(x), D(G(x))) in both losses")
    add("--contextual-loss-weight", type=float, default=40.0, help="DAGAN: of mse(x, G(x))")
    add("--discriminator-reconstruction-loss-weight", type=float, default=1.0, help="DAGAN: of mse(D(x), x)")

    add = parser.add_argument_group("output").add_argument
    add("--checkpoint-path", type=_path, help="folder of last.ckpt and best.ckpt; unset: the log's version_N")
    add("--save", **YES_NO, default=True, help="write checkpoints")
    add("--save-every", type=float, default=300, help="seconds between them; they are of an epoch's end")
    add("--resume", **YES_NO, default=True, help="continue the training in --checkpoint-path; no: anew in its place")
    add("--log-dir", type=_path, default=HERE / "logged_metrics", help="folder of version_N/metrics.csv")
    add("--image-output-path", type=_path, default=HERE / "output_images", help="folder for pictures")
    add("--image-output-interval", type=int, default=10, help="batches between training pictures")
    add("--anomaly-score-file", type=_path, default=HERE / "anomaly_scores.csv", help="inference: table of the scores")
    add("--fpr", type=float, default=0.05, help="inference: share of good images that may be called defective")
    add("--report", **YES_NO, default=False, help=f"inference: {REPORT_HELP}")
    add("--wandb", **YES_NO, default=False, help="log to Weights & Biases too (WANDB_MODE=offline: without an account)")
    add("--log-level", choices=("debug", "info", "warning", "error"), default="info", help="what goes to the log file")
    add("--log-file", type=_path, default=HERE / "log.log", help="file that messages are appended to")
    add("--log-stdout", **YES_NO, default=False, help="all that goes to the log file to the terminal too")

    add = parser.add_argument_group("machine").add_argument
    add("--num-workers", type=int, default=0, help="threads that read the next batch ahead; 0: none ahead")
    add("--cpu", **YES_NO, default=False, help="use the CPU even where there is a GPU")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1 or mps")
    add("--deterministic", **YES_NO, default=False, help="training on a GPU: the same numbers every time, more slowly")
    add("--sync-bn", "--sync_bn", **YES_NO, default=False, help="torchrun on GPUs: batch norms over all processes")

    add = parser.add_argument_group("as in the original, without effect").add_argument
    for name in UNUSED:
        add(f"--{name.replace('_', '-')}", nargs="?", const="", help="accepted, unused")
    return parser


def parse(argv: list[str] | None = None) -> Namespace:
    """Settings from the command line (`sys.argv` unless given), and `given`, the names of those that are on it.

    Raises UserError for what makes no sense.
    """
    opt = build_parser().parse_args(argv)
    words = sys.argv[1:] if argv is None else argv
    opt.given = {word[2:].split("=")[0].replace("-", "_") for word in words if word.startswith("--")}
    for name in sorted(opt.given & set(UNUSED)):
        say(f"--{name.replace('_', '-')} is accepted and has no effect, as in the original")
    if opt.demo:
        for name, value in DEMO.items():
            if name not in opt.given:
                setattr(opt, name, value)
        if "training_steps" not in opt.given:
            networks = 2 if opt.model == "dagan" else min(opt.num_competitive_units, 2)
            opt.training_steps = DEMO_BATCHES * networks
        opt.dataset_path = opt.dataset_path or HERE / DEMO_FOLDERS[opt.dataset]
    if opt.dataset_path is None:
        raise UserError("--dataset-path is missing: give the data set's folder, or --demo for stand-in data")
    for name in ("dataset_path", "log_dir", "image_output_path", "anomaly_score_file", "log_file"):
        require(opt, name, getattr(opt, name) is not None, "a path")
    if opt.mode == "inference" and opt.model_input is None:
        raise UserError(
            "--model-input is missing: give the checkpoint to score with, such as model_checkpoints/last.ckpt"
        )

    for name, highest in LARGEST.items():
        require(opt, name, 1 <= getattr(opt, name) <= highest, f"from 1 to {highest}")
    require(opt, "epochs", opt.epochs is None or 1 <= opt.epochs <= 10**9, "at least 1")
    require(opt, "num_workers", 0 <= opt.num_workers <= 256, "from 0 to 256")
    require(opt, "seed", 0 <= opt.seed < 2**32, "from 0 to 2^32 - 1")
    for name in ("lr", "lr_factor"):
        require(opt, name, 0 < getattr(opt, name) < math.inf, "a finite number above 0")
    require(opt, "lr_steps", min(opt.lr_steps, default=0) >= 0, "epochs from 0 up")
    require(opt, "momentum", 0 <= opt.momentum < 1, "from 0 to below 1")
    require(opt, "save_every", opt.save_every >= 0, "at least 0")
    require(opt, "calibration_share", 0 <= opt.calibration_share < 1, "from 0 to below 1")
    require(opt, "fpr", 0 < opt.fpr < 1, "between 0 and 1")
    free = opt.anomaly_score_file.suffix not in (".json", ".html")
    require(opt, "anomaly_score_file", free, "another ending: those of the results (.json) and the report (.html)")
    for name in (name for name in vars(opt) if name.endswith("_weight")):
        require(opt, name, 0 <= getattr(opt, name) < math.inf, "a finite number from 0 up")
    if opt.auto_set_name:
        category = f"_{opt.dataset_path.resolve().name}" if opt.dataset == "MVTec" else ""
        opt.experiment = f"{opt.model}_{opt.dataset}{category}"
    return opt


def require(opt: Namespace, name: str, fits: bool, expected: str) -> None:
    """Raise UserError that names the option unless its value fits."""
    if not fits:
        raise UserError(f"--{name.replace('_', '-')} {getattr(opt, name)}: expected {expected}")


def plain(opt: Namespace) -> dict[str, Any]:
    """All settings as plain values, for checkpoints and results."""
    values = {name: value for name, value in vars(opt).items() if name != "given"}
    return {name: str(value) if isinstance(value, Path) else value for name, value in values.items()}
