"""Every option of run.py and score.py, with its default, and what makes no sense among them. Imports no torch."""

from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common import cli
from common.cli import MINUTES, ArgumentParser, number, positive, share, whole
from common.files import UserError, require_like, using

HERE = Path(__file__).resolve().parent

# What the two algorithms do unless an option says otherwise. Options that only one has belong to it.
DEFAULTS = {
    "repo": {
        "nn": 2000, "ksize": 3, "list_k": [4, 7], "filters": [64, 128, 256, 512], "mode_optim": "sgd", "lr": 5e-4,
        "mode_lr": 0, "weight_decay": 0.0, "batch": 16, "batch_score": 32,
    },
    "paper": {
        "smooth": 21, "list_k": [2, 4, 8, 16], "filters": [64, 128, 256, 512, 512], "mode_optim": "adam", "lr": 1e-4,
        "mode_lr": 3, "weight_decay": 1e-5, "batch": 4, "batch_score": 8,
    },
}  # fmt: skip
# What must agree for a training to be resumed.
TRAINING = (
    "algorithm", "dataset", "select_norm", "train_images", "img_size", "masking_mode", "disjoint_n", "list_k", "nn",
    "ksize", "filters", "weights", "mode_optim", "lr", "mode_lr", "weight_decay", "batch", "validation_share",
    "eval_images", "precision", "seed", "max_value",
)  # fmt: skip
# What of a trained network's settings its scores depend on.
SCORING = (
    "nn", "ksize", "filters", "img_size", "list_k", "disjoint_n", "smooth", "seed", "precision", "fpr", "max_value",
)  # fmt: skip


def _both(name: str, help: str) -> str:
    """The help of an option whose default depends on --algorithm."""
    defaults = {algorithm: values[name] for algorithm, values in DEFAULTS.items() if name in values}
    shown = (f"{key}: {' '.join(map(str, v)) if isinstance(v, list) else v}" for key, v in defaults.items())
    return f"{help} ({'; '.join(shown)})"


def _add_machine_options(parser: ArgumentParser) -> None:
    add = parser.add_argument_group("machine").add_argument
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1 or mps")
    add("--gpu", help="GPU to use; torchrun: one for each process, such as 2,3; unset: 0")
    add("--ngpu", type=whole(0, 1024), default=1, help="0: the CPU; above 1: accepted, unused (torchrun takes several)")
    add("--cpu", action="store_true", help="use the CPU even where there is a GPU")
    add("--max_pixels", **cli.MAX_PIXELS)
    add("--batch_score", type=whole(1, 65536), help=_both("batch_score", "images scored at once"))


def build_parser() -> ArgumentParser:
    """The parser of run.py. Options without a default depend on --algorithm and --dataset."""
    parser = ArgumentParser(
        description="Train RIAD on good images, test it, write result.json and pictures.",
        example="python riad/run.py --algorithm paper --dataset mvtec --data my_data/bottle --output bottle",
    )
    add = parser.add_argument_group("data").add_argument
    add("--algorithm", choices=tuple(DEFAULTS), default="repo", help="the published code's variant, or the paper's")
    add("--dataset", choices=("mnist", "digits", "mvtec"), help="unset: mnist, or digits where it cannot be had")
    folder = f"MNIST's folder, or mvtec's category folder; unset, of MNIST: {cli.shown_path(HERE / 'data')}".replace(
        "%", "%%"
    )
    add("--data", "--data_path", dest="data_path", type=Path, help=folder)
    add("--select_norm", type=whole(0, 9), default=1, help="the digit that is normal (not for mvtec)")
    first = "use the first so many {}; 0: all"
    add("--train_images", type=whole(0), default=0, help=first.format("normal images to train"))
    add("--eval_images", type=whole(0), default=0, help=first.format("of the labelled validation images"))
    add("--validation_share", type=share, default=0.2, help="of the good images, where labels choose no epoch")
    add("--max_value", **cli.MAX_VALUE)
    add("--img_size", type=whole(1, 4096), help="side in pixels; unset: mnist 28 (paper: 32), mvtec 256")

    add = parser.add_argument_group("masks").add_argument
    add("--masking_mode", choices=("disjoint_mask",), default="disjoint_mask", help="how cells are hidden")
    add("--disjoint_n", type=whole(1), default=3, help="masks per cell size: each hides one n-th of the cells")
    add("--list_k", type=whole(1, 4096), nargs="+", help=_both("list_k", "cell sizes in pixels"))

    add = parser.add_argument_group("network").add_argument
    add("--nn", type=int, choices=(1000, 2000), help=_both("nn", "2000: U-Net, 1000: without skips"))
    add("--ksize", type=whole(1, 31), help=_both("ksize", "kernel size, odd"))
    add("--filters", type=whole(1, 65536), nargs="+", help=_both("filters", "channels of the stages"))

    add = parser.add_argument_group("training").add_argument
    add("--weights", type=number(0), nargs=3, default=[1.0, 1.0, 1.0], help="of the losses L2, MSGMS and SSIM")
    add("--mode_optim", choices=("sgd", "rms", "rmsprop", "adam"), help=_both("mode_optim", "optimizer"))
    add("--lr", type=positive, help=_both("lr", "learning rate"))
    steps = "0: constant; 1: warm-up; 2: warm-up, cosine restarts, a tenth from epoch 250; 3: constant, then that tenth"
    add("--mode_lr", type=int, choices=(0, 1, 2, 3), help=_both("mode_lr", steps))
    add("--weight_decay", type=number(0), help=_both("weight_decay", "weight decay"))
    add("--batch", type=whole(1, 65536), help=_both("batch", "images per batch"))
    add("--epochs", type=whole(1), default=300, help="passes over the training images")
    add("--minutes", **MINUTES)
    add("--precision", choices=cli.PRECISIONS, default="fp32", help="of the network's passes")
    add("--deterministic", action="store_true", help="on a GPU: the same numbers every time, more slowly")
    add("--sync_bn", action="store_true", help="torchrun on GPUs: batch norms over all processes")
    add("--seed", type=whole(0, 2**32 - 1), default=0, help="of weights, batches, masks and the validation share")
    add("--save_every", type=number(0), default=60.0, help="seconds between saves for resuming")
    add("--resume", **cli.YES_NO, default=True, help="resume an interrupted training; no: start again in its place")

    add = parser.add_argument_group("scores and verdicts").add_argument
    add("--smooth", type=whole(1), help=_both("smooth", "side of the mean filter over anomaly maps, pixels, odd"))
    add("--fpr", type=share, default=0.05, help="share of good images that the threshold may call defective")

    add = parser.add_argument_group("output").add_argument
    add("--output", type=Path, default=HERE, help="folder for Checkpoint, results_tr, results_te and result.json")
    add("--figures_every", type=whole(0), default=1, help="epochs between pictures; 0: none")
    add("--report", action="store_true", help=cli.REPORT_HELP)
    _add_machine_options(parser)
    return parser


def parse(argv: list[str] | None = None) -> Namespace:
    """The options of run.py, complete but for dataset and --max_value auto, which the data decide."""
    given = vars(build_parser().parse_args(argv))
    algorithm, mvtec = given["algorithm"], given["dataset"] == "mvtec"
    other, labelled = "paper" if algorithm == "repo" else "repo", algorithm == "repo" and not mvtec
    theirs = DEFAULTS[other].keys() - DEFAULTS[algorithm].keys()
    for name, wrong, why in (
        *((name, given[name] is not None, f"belongs to --algorithm {other}: leave it out") for name in theirs),
        ("eval_images", given["eval_images"] and not labelled, "only repo on MNIST has labelled validation images"),
        ("validation_share", given["validation_share"] != 0.2 and labelled, "labels choose the epoch: --eval_images"),
        ("select_norm", given["select_norm"] != 1 and mvtec, "mvtec's normal images are those in train/good, drop it"),
        ("max_value", given["max_value"] != 65535 and not mvtec, "only images of --dataset mvtec may have 16 bits"),
        ("data_path", given["data_path"] and given["dataset"] == "digits", "digits come with scikit-learn, drop it"),
        ("dataset", mvtec and not given["data_path"], "needs --data, the folder with train/good and test/good"),
        ("weights", not any(given["weights"]), "expected at least one above 0"),
    ):
        if wrong:
            shown = " ".join(map(str, given[name])) if isinstance(given[name], list) else given[name]
            raise UserError(f"--{name} {shown}: {why}")
    defaults = {**DEFAULTS[algorithm], "img_size": 256 if mvtec else 32 if algorithm == "paper" else 28}
    chosen = {name: defaults.get(name) if value is None else value for name, value in given.items()}
    settings = Namespace(**{**chosen, "mode_optim": chosen["mode_optim"].replace("rmsprop", "rms")})
    check_network(settings)
    return settings


def check_network(settings: Namespace) -> None:
    """UserError where the network or the masks have no use for these settings, or for images of --img_size."""
    # Entries of filters; the smallest side in pixels, of which the halvings leave 2; and what it must be a multiple of.
    levels, smallest, step = (5, 32, 16) if settings.algorithm == "paper" else (4, 16, 1)
    for name in ("ksize", "smooth"):
        if (value := getattr(settings, name)) is not None and (value % 2 == 0 or value > 1001):
            raise UserError(f"--{name} {value}: expected an odd number up to 1001")
    if len(settings.filters) != levels:
        raise UserError(f"--filters {' '.join(map(str, settings.filters))}: expected {levels} numbers of channels")
    size = settings.img_size
    if not smallest <= size <= 4096 or size % step:
        of = f"a multiple of {step}, " * (step > 1)
        raise UserError(f"--img_size {size}: expected {of}{smallest} to 4096 pixels, for the network")
    for k in settings.list_k:
        require_cells((size, size), k, settings.disjoint_n)


def require_cells(size: tuple[int, int], k: int, n: int) -> None:
    """UserError where an image of `size` has fewer cells of k x k pixels than the n parts that masks hide."""
    cells = -(-size[0] // k) * -(-size[1] // k)
    if not 1 <= n <= cells:
        raise UserError(
            f"--disjoint_n {n}: {size[0]} x {size[1]} pixels have {cells} cells of {k} x {k}; lower it, or --list_k"
        )


def from_stored(stored: Mapping[str, Any], path: Path) -> Namespace:
    """Settings with which the network in the checkpoint `path` scores; UserError where they make no sense."""
    with using(path, "riad"):
        if stored["algorithm"] not in DEFAULTS or stored["precision"] not in cli.PRECISIONS or not stored["list_k"]:
            raise ValueError(f"algorithm {stored['algorithm']!r}, {stored['precision']!r}, list_k {stored['list_k']}")
        usual = vars(parse(["--algorithm", stored["algorithm"]]))
        used = {name: stored[name] for name in SCORING}
        require_like(used, {name: usual[name] for name in SCORING}, "its settings")
        settings = Namespace(**{**usual, **used})
        try:
            check_network(settings)
        except UserError as error:
            raise ValueError(str(error)) from error
    return settings


def parse_score(argv: list[str] | None = None) -> Namespace:
    """The options of score.py."""
    parser = ArgumentParser(
        description="Score a folder of images without labels with a trained network.",
        example="python riad/score.py --images my_new_images "
        "--checkpoint bottle/Checkpoint/model_2_best_val_loss.pth --output scores",
    )
    cli.add_scoring_options(parser, "scores/<folder's name> beside the checkpoint's")
    add = parser.add_argument_group("network, verdicts and precision").add_argument
    add("--checkpoint", type=Path, help="trained network; unset: the one that validation chose, in riad/Checkpoint")
    add("--fpr", type=share, help="share of good images that the threshold may call defective; unset: as in training")
    add("--precision", choices=cli.PRECISIONS, help="of the network's passes; unset: as in training")
    _add_machine_options(parser)
    return parser.parse_args(argv)
