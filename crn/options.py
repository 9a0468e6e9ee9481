"""Every option of CRN's programs, with its default. A default path lies in this folder wherever a program is started; a
path on the command line is relative to where you stand."""

import sys
from argparse import ArgumentTypeError, Namespace
from pathlib import Path
from typing import Any

from common import cli
from common.cli import MAX_PIXELS, MAX_VALUE, YES_NO, ArgumentParser, number, positive, share, whole
from common.files import UserError

HERE = Path(__file__).resolve().parent
MODELS = ("crn", "dagan")
DATASETS = ("MVTec", "Panorama", "RoadImages")
NORMS = ("batch", "instance", "image", "none")
OPTIMIZERS = ("adam", "adamw", "radam", "nadam", "rmsprop", "sgd")
SCHEDULERS = ("step", "exponential", "cosine")
SCORES = ("inference", "validation")
LARGEST_SIDE = 4096  # of --imsize
UNUSED = ("pipeline", "generator_network_depth", "wandb_hyperparameter_sweep")  # by the original, too
# --demo: these, where the command line does not say otherwise, and at most so many images of each part.
DEMO = {"batch_size": 2, "max_network_depth": 3, "imsize": 32, "num_competitive_units": 3}
DEMO_BATCHES = DEMO_IMAGES = 50
DEMO_FOLDERS = {"MVTec": "datasets/mvtec/brick", "Panorama": "datasets/panorama", "RoadImages": "datasets/roadimages"}
# What is written goes here, in this folder or in --output.
PLACES = {
    "log_dir": "logged_metrics", "image_output_path": "output_images", "anomaly_score_file": "anomaly_scores.csv",
    "log_file": "log.log",
}  # fmt: skip
GOOD, BAD = 60, 24  # images that demo_data.py draws


def scheduler_name(text: str) -> str:
    """Type of --lr-scheduler: "" for none."""
    name = text.lower()
    if name in ("", "none", "null"):
        return ""
    if name not in SCHEDULERS:
        raise ArgumentTypeError(f"{text!r}: expected {', '.join(SCHEDULERS)} or none")
    return name


def optional_path(text: str) -> Path | None:
    """Type of an option: a path; empty for none."""
    return Path(text) if text else None


optional_path.metavar = "PATH"


def build_parser() -> ArgumentParser:
    """The parser of train.py."""
    count, part = whole(1, 10**9), number(0, 1, below=True)
    parser = ArgumentParser(
        description="Train CRN or DAGAN, or score a data set with a trained model.",
        example="python crn/train.py --mode train --dataset MVTec --dataset-path my_data/bottle --checkpoint-path ck",
    )

    add = parser.add_argument_group("what to do").add_argument
    add("--mode", choices=("train", "inference"), required=True, help="train a model, or score a data set with one")
    add("--model", choices=MODELS, default="crn", help="CRN, or its baseline")
    add("--dataset", choices=DATASETS, required=True, help="the data set's kind, which tells its folders")
    add(
        "--dataset-path",
        "--data",
        type=optional_path,
        help="the data set's folder; unset, with --demo: in crn/datasets",
    )
    add("--max-value", "--max_value", **MAX_VALUE)
    add("--max-pixels", "--max_pixels", **MAX_PIXELS)
    add("--model-input", "--checkpoint", type=optional_path, help="the model, or initial weights; unset: none")
    add("--experiment", default="crn", help="name of the run")
    add("--auto-set-name", **YES_NO, default=False, help="name the run after model, data set and category")
    add("--demo", **YES_NO, default=False, help="small settings; where there is no data set, stand-in data")

    add = parser.add_argument_group("training").add_argument
    add("--training-steps", type=count, default=20000, help="optimizer steps; a batch takes two, one for each network")
    add("--epochs", type=count, help="at most so many; unset: training-steps / (images / batch-size) + 1")
    add("--minutes", **cli.MINUTES)
    add("--batch-size", type=whole(1, 65536), default=64, help="images per batch")
    add("--seed", type=whole(0, 2**32 - 1), default=0, help="of initial weights, batches, pairs and held-out images")
    add("--optimizer", choices=OPTIMIZERS, default="adam", help="one for each network")
    add("--lr", type=positive, default=1e-4, help="learning rate")
    scheduler = {"type": scheduler_name, "nargs": "?", "const": "", "default": ""}
    add("--lr-scheduler", **scheduler, help="step, exponential, cosine; unset: none")
    add("--lr-factor", type=positive, default=0.1, help="of the step and exponential schedulers")
    add("--lr-steps", type=whole(0), nargs="*", default=[30, 60, 90], help="epochs at which the step scheduler acts")
    add("--momentum", type=part, default=0.9, help="of rmsprop and sgd")
    add("--precision", choices=cli.PRECISIONS, default="fp32", help="of the training's networks; tf32, fp16: GPUs")
    add("--calibration-share", type=part, default=0.1, help="share of the training images held out for the threshold")
    add("--validation-interval", type=count, default=1, help="epochs between validations")

    add = parser.add_argument_group("networks").add_argument
    add("--num-competitive-units", type=whole(1, 1000), default=12, help="CRN's units")
    add("--imsize", type=whole(1, LARGEST_SIDE), default=128, help="side of the images for the network, in pixels")
    add("--antialias", **YES_NO, default=False, help="smooth images when making them smaller (the original does not)")
    add("--max-network-depth", type=whole(1, 30), default=8, help="most levels of a CRN unit (there are at least 5)")
    add("--ngf", type=whole(1, 1024), default=64, help="channels of the outermost level")
    add("--improved", **YES_NO, default=True, help="CRN: upsampling and convolution instead of transposed convolutions")
    add("--use-dropout", **YES_NO, default=False, help="dropout in the middle levels, if there are more than 5")
    add("--norm", choices=NORMS, default="batch", help="normalisation; image: by each image alone, also when scoring")

    add = parser.add_argument_group("losses").add_argument
    for name, default, of in (
        ("reconstruction", 0.5, "CRN: of |x - G(x)|"),
        ("feedback", 1.0, "CRN: of |G(x) - D(G(x))| for the generator"),
        ("discrimination", 2.0, "CRN: of |G(x) - D(G(x))| for the discriminator"),
        ("adversarial-loss", 1.0, "DAGAN: of mse(G(x), D(G(x))) in both losses"),
        ("contextual-loss", 40.0, "DAGAN: of mse(x, G(x))"),
        ("discriminator-reconstruction-loss", 1.0, "DAGAN: of mse(D(x), x)"),
    ):
        add(f"--{name}-weight", type=number(0), default=default, help=of)

    add = parser.add_argument_group("output").add_argument
    add("--output", type=optional_path, help="folder for all that is written; unset: the places of these options")
    add("--checkpoint-path", type=optional_path, help="folder of last.ckpt and best.ckpt; unset: the log's version_N")
    add("--save", **YES_NO, default=True, help="write checkpoints")
    add("--save-every", "--save_every", type=number(0), default=300, help="seconds between checkpoints")
    add("--resume", **YES_NO, default=True, help="resume the training in --checkpoint-path; no: start again")
    add("--log-dir", type=Path, default=HERE / PLACES["log_dir"], help="folder of version_N/metrics.csv")
    of_model = "inference: results/<checkpoint's folder>_<its name>/<data set's name>"
    pictures = HERE / PLACES["image_output_path"]
    add("--image-output-path", type=Path, default=pictures, help=f"folder for pictures; {of_model}")
    add("--image-output-interval", type=count, default=10, help="batches between training pictures")
    table = HERE / PLACES["anomaly_score_file"]
    add("--anomaly-score-file", type=Path, default=table, help=f"table of the scores; {of_model}/anomaly_scores.csv")
    add("--fpr", type=share, default=0.05, help="inference: share of good images that may be called defective")
    add("--report", **YES_NO, default=False, help=f"inference: {cli.REPORT_HELP}")
    add("--wandb", **YES_NO, default=False, help="log to Weights & Biases too (WANDB_MODE=offline: without an account)")
    add("--log-level", choices=("debug", "info", "warning", "error"), default="info", help="what goes to the log file")
    add("--log-file", type=Path, default=HERE / PLACES["log_file"], help="file that messages are appended to")
    add("--log-stdout", **YES_NO, default=False, help="all that goes to the log file to the terminal too")

    add = parser.add_argument_group("machine").add_argument
    add("--num-workers", type=whole(0, 256), default=0, help="threads that read the next batch ahead; 0: none ahead")
    add("--cpu", **YES_NO, default=False, help="use the CPU even where there is a GPU")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1 or mps")
    add("--deterministic", **YES_NO, default=False, help="training on a GPU: the same numbers every time, more slowly")
    add("--sync-bn", "--sync_bn", **YES_NO, default=False, help="torchrun on GPUs: batch norms over all processes")

    add = parser.add_argument_group("as in the original, without effect").add_argument
    for name in UNUSED:
        add(f"--{name.replace('_', '-')}", nargs="?", const="", help="accepted, unused")
    return parser


def defaults() -> dict[str, Any]:
    """Of the options of train.py."""
    return {action.dest: action.default for action in build_parser()._actions if action.dest != "help"}


def parse(argv: list[str] | None = None) -> Namespace:
    """Settings of train.py from the command line (`sys.argv` unless given), and `given`, the names of those on it."""
    unset = object()
    values = vars(build_parser().parse_args(argv, Namespace(**dict.fromkeys(defaults(), unset))))
    given = {name: value for name, value in values.items() if value is not unset}
    opt = Namespace(**{**defaults(), **given}, given=set(given))
    if opt.demo:
        networks = 2 if opt.model == "dagan" else min(given.get("num_competitive_units", 3), 2)
        demo = {**DEMO, "training_steps": DEMO_BATCHES * networks, "dataset_path": HERE / DEMO_FOLDERS[opt.dataset]}
        vars(opt).update({**demo, **given})
    if opt.output:
        places = {name: opt.output / place for name, place in PLACES.items()}
        vars(opt).update({"checkpoint_path": opt.output / "model_checkpoints", **places, **given})
    if opt.dataset_path is None:
        raise UserError("--dataset-path is missing: give the data set's folder, or --demo for stand-in data")
    if opt.mode == "inference" and opt.model_input is None:
        raise UserError("--model-input is missing: give the checkpoint to score with, such as ck/last.ckpt")
    if opt.mode == "inference" and not opt.output:  # one folder for each model and data set
        folder = HERE / "results" / model_name(opt.model_input) / opt.dataset_path.resolve().name
        places = {"anomaly_score_file": folder / PLACES["anomaly_score_file"], "image_output_path": folder}
        vars(opt).update({**places, **given})
    if opt.anomaly_score_file.suffix in (".json", ".html"):
        raise UserError(
            f"--anomaly-score-file {opt.anomaly_score_file}: results (.json) and report (.html) lie beside it"
        )
    if opt.auto_set_name:
        category = f"_{opt.dataset_path.resolve().name}" if opt.dataset == "MVTec" else ""
        opt.experiment = f"{opt.model}_{opt.dataset}{category}"
    return opt


def model_name(path: Path) -> str:
    """The checkpoint's name with its folder's, since most are called last.ckpt: model_checkpoints_last."""
    return f"{path.absolute().parent.name}_{path.stem}"


def plain(opt: Namespace) -> dict[str, Any]:
    """All settings as plain values, for checkpoints and results."""
    values = {name: value for name, value in vars(opt).items() if name != "given"}
    return {name: str(value) if isinstance(value, Path) else value for name, value in values.items()}


def parse_score(argv: list[str] | None = None) -> Namespace:
    """The options of score.py."""
    parser = ArgumentParser(
        description="Score a folder of images without labels with a trained model.",
        example="python crn/score.py --images my_new_images --model-input ck/last.ckpt",
    )
    cli.add_scoring_options(parser, "results/<checkpoint's folder>_<its name>/<folder's name> in crn/")
    add = parser.add_argument_group("scores and verdicts").add_argument
    add("--score", choices=SCORES, default="inference", help="the score that counts")
    add("--fpr", type=share, default=0.05, help="share of good images that the threshold may call defective")

    add = parser.add_argument_group("network").add_argument
    add("--model-input", "--checkpoint", type=Path, required=True, help="checkpoint, such as ck/last.ckpt")
    add("--dataset", choices=DATASETS, help="how images are normalised; unset: as the checkpoint says")
    add("--imsize", type=whole(1, LARGEST_SIDE), help="side of the images for the network; unset: the training's")

    add = parser.add_argument_group("machine").add_argument
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1 or mps")
    add("--cpu", action="store_true", help="use the CPU even where there is a GPU")
    add("--max-pixels", "--max_pixels", **MAX_PIXELS)
    return parser.parse_args(argv)


def parse_sweep(argv: list[str] | None = None) -> Namespace:
    """The options of sweep.py, and `more`, the words behind -- for every trial."""
    words = sys.argv[1:] if argv is None else list(argv)
    end = words.index("--") if "--" in words else len(words)
    parser = ArgumentParser(
        description="Run a sweep file without an account, through Optuna; what follows -- goes to every trial.",
        example="python crn/sweep.py crn/hyperparameter_optimization_sweep.yml --workers 2 -- --imsize 64",
    )
    add = parser.add_argument_group("sweep").add_argument
    add("file", type=Path, help="sweep file")
    add("--trials", type=whole(1, 10**6), help="finished trials in all, whoever ran them; unset: 50, or the whole grid")
    add("--seed", type=whole(0, 2**31 - 1), help="of the parameters' choice, with one worker; unset: by chance")

    add = parser.add_argument_group("machines and files").add_argument
    add("--workers", type=whole(1, 64), default=1, help="trials at a time in this call")
    add("--storage", help="Optuna's storage URL, the same for all machines; unset: a file in crn/sweeps")
    add("--name", help="name of the study; unset: the file's")
    add("--output", type=Path, default=HERE / "sweeps", help="folder of the trials' files")
    return Namespace(**vars(parser.parse_args(words[:end])), more=words[end + 1 :])


def parse_demo_data(argv: list[str] | None = None) -> Namespace:
    """The options of demo_data.py."""
    parser = ArgumentParser(
        description="Draw stand-ins for road images or panoramas, with cracks and potholes.",
        example="python crn/demo_data.py --dataset RoadImages --output my_roads --good 30 --bad 10",
    )
    add = parser.add_argument_group("data").add_argument
    add("--dataset", choices=("RoadImages", "Panorama"), default="RoadImages", help="whose layout")
    add("--output", type=Path, required=True, help="folder to make")
    add("--good", type=whole(1, 100_000), default=GOOD, help="good images, to train and to test on")
    add("--bad", type=whole(1, 100_000), default=BAD, help="damaged ones")
    return parser.parse_args(argv)
