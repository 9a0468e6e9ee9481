"""Every option of run.py, with its default, and what makes no sense among them."""

import math
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.cli import MAX_PIXELS, MAX_VALUE, PRECISIONS, REPORT_HELP, YES_NO, ArgumentParser, words_of
from common.files import UserError
from riad.neuralnet import unet
from riad.source import connector
from riad.source.masks import require_cells

HERE = Path(__file__).resolve().parents[1]

# What the two algorithms do unless an option says otherwise; "-" marks an option that only the other one has.
DEFAULTS = {
    "repo": {
        "nn": 2000, "ksize": 3, "list_k": [4, 7], "filters": [64, 128, 256, 512], "smooth": "-",
        "mode_optim": "sgd", "lr": 5e-4, "mode_lr": 0, "weight_decay": 0.0, "batch": 16, "batch_score": 32,
    },
    "paper": {
        "nn": "-", "ksize": "-", "list_k": [2, 4, 8, 16], "filters": [64, 128, 256, 512, 512], "smooth": 21,
        "mode_optim": "adam", "lr": 1e-4, "mode_lr": 3, "weight_decay": 1e-5, "batch": 4, "batch_score": 8,
    },
}  # fmt: skip
SIDES = {("repo", "mnist"): 28, ("paper", "mnist"): 32}  # of mvtec's images: 256
LARGEST = {
    "disjoint_n": 10**6, "batch": 65536, "batch_score": 65536, "epochs": 10**6, "train_images": 10**9,
    "eval_images": 10**9, "figures_every": 10**6, "smooth": 1001, "img_size": 4096, "ksize": 31, "ngpu": 1024,
}  # fmt: skip
# What must agree for a training to be continued.
TRAINING = (
    "algorithm", "dataset", "select_norm", "train_images", "img_size", "masking_mode", "disjoint_n", "list_k", "nn",
    "ksize", "filters", "weights", "mode_optim", "lr", "mode_lr", "weight_decay", "batch", "validation_share",
    "eval_images", "precision", "seed", "max_value",
)  # fmt: skip


def add_machine_options(parser: ArgumentParser) -> None:
    """What belongs to the machine, not to a training."""
    add = parser.add_argument_group("machine").add_argument
    add("--gpu", help="GPU to use; torchrun: one for each process, such as 2,3; unset: 0")
    add("--ngpu", type=int, default=1, help="0: the CPU; more than 1: accepted, unused (torchrun takes several)")
    add("--cpu", action="store_true", help="use the CPU even where there is a GPU")
    add("--max_pixels", **MAX_PIXELS)
    add("--batch_score", type=int, help=_both("batch_score", "images scored at once"))


def _both(name: str, help: str) -> str:
    """The help of an option whose default depends on --algorithm."""
    shown = []
    for algorithm, defaults in DEFAULTS.items():
        value = defaults[name]
        if value != "-":
            shown.append(f"{algorithm}: {' '.join(map(str, value)) if isinstance(value, list) else value}")
    return f"{help} ({'; '.join(shown)})"


def build_parser() -> ArgumentParser:
    """The parser of run.py. Options without a default depend on --algorithm."""
    parser = ArgumentParser(
        description="Train RIAD on good images, test it, write result.json and pictures.",
        example="python riad/run.py --algorithm paper --dataset mvtec --data_path my_data/bottle --output bottle",
    )
    add = parser.add_argument_group("data").add_argument
    add("--algorithm", choices=tuple(DEFAULTS), default="repo", help="the published code's variant, or the paper's")
    add("--dataset", choices=("mnist", "digits", "mvtec"), help="unset: mnist, or digits where it cannot be had")
    add("--data_path", type=Path, help=f"MNIST's folder, or mvtec's category folder; unset, of MNIST: {HERE / 'data'}")
    add("--select_norm", type=int, default=1, help="the digit that is normal (not for mvtec)")
    add("--train_images", type=int, default=0, help="use the first so many normal images to train; 0: all")
    add("--eval_images", type=int, default=0, help="use the first so many of the labelled validation images; 0: all")
    add("--validation_share", type=float, default=0.2, help="of the good images, where labels choose no epoch")
    add("--max_value", **MAX_VALUE)
    add("--img_size", type=int, help="side in pixels; unset: mnist 28 (paper: 32), mvtec 256")

    add = parser.add_argument_group("masks").add_argument
    add("--masking_mode", choices=("disjoint_mask",), default="disjoint_mask", help="how cells are hidden")
    add("--disjoint_n", type=int, default=3, help="masks per cell size: each hides one n-th of the cells")
    add("--list_k", type=int, nargs="+", help=_both("list_k", "cell sizes in pixels"))

    add = parser.add_argument_group("network").add_argument
    add("--nn", type=int, choices=tuple(connector.NUMBERS), help=_both("nn", "2000: U-Net, 1000: without skips"))
    add("--ksize", type=int, help=_both("ksize", "kernel size, odd"))
    add("--filters", type=int, nargs="+", help=_both("filters", "channels of the stages"))

    add = parser.add_argument_group("training").add_argument
    add("--weights", type=float, nargs=3, default=[1.0, 1.0, 1.0], help="of the losses L2, MSGMS and SSIM")
    add("--mode_optim", choices=("sgd", "rms", "rmsprop", "adam"), help=_both("mode_optim", "optimizer"))
    add("--lr", type=float, help=_both("lr", "learning rate"))
    steps = "0: constant; 1: warm-up; 2: warm-up, cosine restarts, a tenth from epoch 250; 3: constant, then that tenth"
    add("--mode_lr", type=int, choices=(0, 1, 2, 3), help=_both("mode_lr", steps))
    add("--weight_decay", type=float, help=_both("weight_decay", "weight decay"))
    add("--batch", type=int, help=_both("batch", "images per batch"))
    add("--epochs", type=int, default=300, help="passes over the training images")
    add("--precision", choices=PRECISIONS, default="fp32", help="of the network's passes")
    add("--deterministic", action="store_true", help="on a GPU: the same numbers every time, more slowly")
    add("--sync_bn", action="store_true", help="torchrun on GPUs: batch norms over all processes")
    add("--seed", type=int, default=0, help="of weights, batches, masks and the validation share")
    add("--save_every", type=float, default=60.0, help="seconds between saves for resuming")
    add("--resume", **YES_NO, default=True, help="continue an interrupted training; no: anew in its place")

    add = parser.add_argument_group("scores and verdicts").add_argument
    add("--smooth", type=int, help=_both("smooth", "side of the mean filter over anomaly maps, pixels, odd"))
    add("--fpr", type=float, default=0.05, help="share of good images that the threshold may call defective")

    add = parser.add_argument_group("output").add_argument
    add("--output", type=Path, default=HERE, help="folder for Checkpoint, results_tr, results_te and result.json")
    add("--figures_every", type=int, default=1, help="epochs between pictures; 0: none")
    add("--report", action="store_true", help=REPORT_HELP)
    add_machine_options(parser)
    return parser


def parse(argv: list[str] | None) -> Namespace:
    """The options of run.py, complete but for img_size and dataset, which the data decide (`complete`)."""
    settings = build_parser().parse_args(argv)
    defaults, other = DEFAULTS[settings.algorithm], {"repo": "paper", "paper": "repo"}[settings.algorithm]
    for name, value in defaults.items():
        if value == "-" and getattr(settings, name) is not None:
            raise UserError(f"--{name} belongs to --algorithm {other}, not to {settings.algorithm}: leave it out")
        if getattr(settings, name) is None:
            setattr(settings, name, None if value == "-" else value)
    if settings.mode_optim == "rmsprop":
        settings.mode_optim = "rms"
    check(settings)
    return settings


def from_stored(stored: Mapping[str, Any], path: Path) -> Namespace:
    """The settings beside a trained network; UserError where they make no sense as options."""
    try:
        settings = parse(words_of({name: stored[name] for name in (*TRAINING, "smooth", "fpr")}))
        if settings.img_size is None or settings.max_value == "auto":
            raise UserError("no --img_size, or --max_value auto")
        check_size(settings)
    except UserError as error:
        raise UserError(f"{path} is damaged: its settings make no sense ({error})") from error
    return settings


def check(settings: Namespace) -> None:
    """UserError for values out of range."""

    def require(name: str, fits: bool, expected: str) -> None:
        if not fits:
            value = getattr(settings, name)
            shown = " ".join(map(str, value)) if isinstance(value, list) else value
            raise UserError(f"--{name} {shown}: expected {expected}")

    zero = ("train_images", "eval_images", "figures_every", "ngpu")
    for name, highest in LARGEST.items():
        lowest = 0 if name in zero else 1
        value = getattr(settings, name)
        require(name, value is None or lowest <= value <= highest, f"from {lowest} to {highest}")
    for name in ("ksize", "smooth"):
        require(name, getattr(settings, name) is None or getattr(settings, name) % 2 == 1, "an odd number")
    require("select_norm", 0 <= settings.select_norm <= 9, "a digit, 0 to 9")
    require("validation_share", 0 < settings.validation_share < 1, "between 0 and 1")
    require("fpr", 0 < settings.fpr < 1, "between 0 and 1")
    require("lr", 0 < settings.lr < math.inf, "a finite number above 0")
    require("weight_decay", 0 <= settings.weight_decay < math.inf, "a finite number, at least 0")
    require("save_every", settings.save_every >= 0, "at least 0")
    require("seed", 0 <= settings.seed < 2**32, "from 0 to 2^32 - 1")
    weights = settings.weights
    require("weights", all(0 <= w < math.inf for w in weights) and sum(weights) > 0, "finite, not all of them 0")
    require("list_k", all(1 <= k <= 4096 for k in settings.list_k), "cell sizes of 1 to 4096 pixels")
    levels = connector.architecture(settings).LEVELS
    sound = len(settings.filters) == levels and all(1 <= f <= 65536 for f in settings.filters)
    require("filters", sound, f"{levels} numbers of channels, 1 to 65536")


def check_size(settings: Namespace) -> None:
    """UserError where the network or the masks have no use for images of --img_size."""
    size, network = settings.img_size, connector.architecture(settings)
    if size < network.SMALLEST:
        raise UserError(
            f"--img_size {size}: images of less than {network.SMALLEST} pixels are too small for the network"
        )
    if network is unet and size % unet.MULTIPLE:
        raise UserError(f"--img_size {size}: the paper's U-Net needs a multiple of {unet.MULTIPLE}")
    for k in settings.list_k:
        require_cells((size, size), k, settings.disjoint_n)


def require_same_training(settings: Namespace, stored: Mapping[str, Any], path: Path) -> None:
    """UserError unless a training with the `stored` settings can be continued with these."""
    ours = vars(settings)
    differing = [f"{name} {stored.get(name)}, not {ours[name]}" for name in TRAINING if stored.get(name) != ours[name]]
    if differing:
        raise UserError(
            f"{path} was trained with other settings: {'; '.join(differing)}. Use these, or another --output, or "
            "--resume False to train anew in its place"
        )


def plain(settings: Namespace) -> dict[str, Any]:
    """All settings as plain values, as they are stored."""
    return {name: str(value) if isinstance(value, Path) else value for name, value in vars(settings).items()}
