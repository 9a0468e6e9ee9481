"""Files of CRN: checkpoints (ours and the authors'), the metrics' table, pictures, and Weights & Biases."""

import itertools
import math
import re
from argparse import Namespace
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from common import checkpoint
from common.cli import say
from common.files import UserError, atomic_write, first_process, read_tensors, reason, write_csv
from common.images import same_images
from crn.options import LARGEST, parse, plain
from crn.training.crn import CompetitiveReconstructionNetwork, levels_of, require_fitting
from crn.training.dataset import DATASETS
from crn.training.double_skip import DAGAN
from crn.training.skipnetworks import FEWEST_LEVELS, NORMS

Model = CompetitiveReconstructionNetwork | DAGAN

# What a model is made of, and with what else a training can be continued.
ARCHITECTURE = ("model", "num_competitive_units", "max_network_depth", "ngf", "improved", "use_dropout", "norm")
BINDING = (
    *ARCHITECTURE, "dataset", "imsize", "antialias", "batch_size", "seed", "optimizer", "lr",
    "max_value", "lr_scheduler", "lr_factor", "lr_steps", "momentum", "precision", "calibration_share",
    "reconstruction_weight", "feedback_weight", "discrimination_weight", "adversarial_loss_weight",
    "contextual_loss_weight", "discriminator_reconstruction_loss_weight",
)  # fmt: skip
# Those of them that change nothing unless another one has one of these values.
ONLY_WITH = {
    **dict.fromkeys(("num_competitive_units", "max_network_depth", "improved"), ("model", "crn")),
    **dict.fromkeys(("reconstruction_weight", "feedback_weight", "discrimination_weight"), ("model", "crn")),
    **dict.fromkeys(("adversarial_loss_weight", "contextual_loss_weight"), ("model", "dagan")),
    "discriminator_reconstruction_loss_weight": ("model", "dagan"),
    "max_value": ("dataset", "MVTec", "Panorama"),
    "lr_factor": ("lr_scheduler", "step", "exponential"),
    "lr_steps": ("lr_scheduler", "step"),
    "momentum": ("optimizer", "rmsprop", "sgd"),
}
# What settings that a network is made by, or reads images by, may be.
SETTINGS: dict[str, Sequence[Any]] = {
    "model": ("crn", "dagan"), "dataset": DATASETS, "norm": NORMS, "max_value": range(1, 65536),
    **dict.fromkeys(("improved", "use_dropout", "antialias"), (False, True)),
    **{name: range(1, LARGEST[name] + 1) for name in ("num_competitive_units", "max_network_depth", "ngf", "imsize")},
}  # fmt: skip
# What every checkpoint of ours holds, and what last.ckpt holds besides (`checkpoint.require_like`). AUROCs are nan
# without good or defective test images.
TRAINED: dict[str, Any] = {
    "settings": dict.fromkeys(BINDING) | {name: values[0] for name, values in SETTINGS.items()},
    "model": {}, "bookkeeping": {}, "levels": 0,
}  # fmt: skip
RESUMABLE: dict[str, Any] = {
    **dict.fromkeys(("epoch", "step", "batch", "version"), 0), "seconds": 0.0, "fingerprint": "",
    "optimizers": [], "scaler": {},
    "history": [
        {"batch": 0, "metrics/score": math.nan, "metrics/max_roc_auc": math.nan, "metrics/inference_roc_auc": math.nan},
    ],
}  # fmt: skip


def counts(name: str, opt: Namespace) -> bool:
    """Whether a setting changes the training that the others describe."""
    other, *values = ONLY_WITH.get(name, ("model", opt.model))
    return getattr(opt, other) in values


def make_model(opt: Namespace, levels: int | None = None) -> Model:
    """The network that the options describe, with new weights; `levels` takes precedence over what imsize tells.

    Raises UserError for sizes that do not fit.
    """
    if opt.model == "dagan":
        return DAGAN(
            levels or levels_of(opt.imsize, None), opt.norm, opt.use_dropout, opt.ngf, opt.adversarial_loss_weight,
            opt.contextual_loss_weight, opt.discriminator_reconstruction_loss_weight,
        )  # fmt: skip
    return CompetitiveReconstructionNetwork(
        opt.num_competitive_units, levels or levels_of(opt.imsize, opt.max_network_depth), opt.improved, opt.norm,
        opt.use_dropout, opt.ngf, opt.reconstruction_weight, opt.feedback_weight, opt.discrimination_weight,
    )  # fmt: skip


def load_model(opt: Namespace) -> tuple[Model, dict[str, Any]]:
    """The model in opt.model_input, in eval mode on the CPU, and what is stored beside it.

    A file of ours brings its settings: `opt` takes over the network's, and image size and smoothing unless they are on
    the command line. The authors' Lightning checkpoints bring their number of units; the rest must be on the command
    line. Raises UserError where the file is missing, broken, or of another model.
    """
    path = opt.model_input
    content = read(path)
    if "state_dict" in content:
        return _from_lightning(opt, content), {}
    settings = content["settings"]
    if settings["model"] != opt.model:
        raise UserError(f"{path} is a checkpoint of --model {settings['model']}, not of {opt.model}")
    if settings["dataset"] != opt.dataset:
        say(f"{path} was trained on {settings['dataset']}, not on {opt.dataset}")
    for name in ARCHITECTURE:
        if name in opt.given and getattr(opt, name) != settings[name] and counts(name, opt):
            raise UserError(f"{path} has {name.replace('_', '-')} {settings[name]}, not {getattr(opt, name)}")
        setattr(opt, name, settings[name])
    for name in ("imsize", "antialias", "max_value"):
        if name not in opt.given:
            setattr(opt, name, settings[name])
        elif getattr(opt, name) != settings[name]:
            option = name.replace("_", "-")
            say(f"--{option} {getattr(opt, name)}, though {path} was trained with {settings[name]}")
    try:
        require_fitting(opt.imsize, content["levels"])
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    parameters = stored_parameters(content)
    checkpoint.require_fitting(lambda: make_model(opt, content["levels"]), parameters, path)
    model = make_model(opt, content["levels"])
    checkpoint.load_parameters(model, parameters, path)
    set_bookkeeping(model, content["bookkeeping"], path)
    return model.eval(), content


def read_model_kind(opt: Namespace) -> Namespace:
    """Options for `load_model`: train.py's, with model and data set as opt.model_input tells.

    The authors' checkpoints do not tell the data set: then it must be in opt.dataset. opt.imsize and opt.dataset win.
    """
    content = read(opt.model_input)
    if "state_dict" in content:
        if opt.dataset is None:
            raise UserError(f"{opt.model_input} does not tell how its images were normalised: give --dataset")
        crn = any(str(key).startswith("competitive_units.") for key in content["state_dict"])
        model, dataset = "crn" if crn else "dagan", opt.dataset
    else:
        model, dataset = content["settings"]["model"], opt.dataset or content["settings"]["dataset"]
    argv = ["--mode", "inference", "--model", model, "--dataset", dataset, "--dataset-path", "."]
    argv += ["--model-input", str(opt.model_input)]
    return parse([*argv, *(["--imsize", str(opt.imsize)] if opt.imsize else [])])


def trained_max_value(opt: Namespace) -> int | str:
    """opt.max_value, or, unless it is on the command line, as opt.model_input tells."""
    if opt.model_input is None or "max_value" in opt.given or "state_dict" in (content := read(opt.model_input)):
        return opt.max_value
    return content["settings"]["max_value"]


def read(path: Path) -> dict[str, Any]:
    """Content of a checkpoint of ours, or of the authors', which has a "state_dict". UserError for anything else."""
    content = read_tensors(path)
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        return dict(content)
    content = checkpoint.load(path, "crn", {"settings": {}})
    settings = content["settings"] = {"max_value": 65535, **content["settings"]}  # which older versions do not tell
    with checkpoint.using(path, "crn"):
        checkpoint.require_like(content, TRAINED)
        for name, values in SETTINGS.items():
            if settings[name] not in values:
                raise ValueError(f"{name} is {settings[name]}")
        if content["levels"] not in range(FEWEST_LEVELS, LARGEST["max_network_depth"] + 1):
            raise ValueError(f"levels is {content['levels']}")
    return content


def stored_parameters(content: Mapping[str, Any]) -> Mapping[str, Tensor]:
    """The parameters in a checkpoint of ours, which once numbered layers without norms as if the norms were there."""
    state = content["model"]
    if content["settings"]["norm"] != "none" or not any(".model.3.model." in str(name) for name in state):
        return state
    places = re.compile(r"(?<=\bmodel\.)(?:3(?=\.model\.)|[56](?=\.weight))")  # behind a norm: inner block, upsampling
    return {places.sub(lambda place: str(int(place[0]) - 1), str(name)): value for name, value in state.items()}


def _from_lightning(opt: Namespace, content: Mapping[str, Any]) -> Model:
    """The authors' checkpoint: parameters under "state_dict", best_gen and best_disc beside it."""
    path, state = opt.model_input, content["state_dict"]
    units = {match[1] for key in state if (match := re.match(r"competitive_units\.(\d+)\.", str(key)))}
    if bool(units) != (opt.model == "crn"):
        raise UserError(f"{path} is a checkpoint of --model {'crn' if units else 'dagan'}, not of {opt.model}")
    if units:
        opt.num_competitive_units = len(units)
    try:
        checkpoint.require_fitting(lambda: make_model(opt), state, path)
    except UserError as error:
        raise UserError(
            f"{error}; --imsize, --max-network-depth, --ngf, --improved and --norm must be the training's (train.py "
            "has these options)"
        ) from None
    model = make_model(opt)
    checkpoint.load_parameters(model, state, path)
    if units:  # of the bookkeeping, theirs hold the best ones
        fresh = {"reconstruction_losses": model.reconstruction_losses, "advantages": model.advantages}
        set_bookkeeping(model, {**content, **fresh}, path)
    return model.eval()


def set_bookkeeping(model: Model, stored: Mapping[str, Any], path: Path) -> None:
    """Undo `model.bookkeeping()`. UserError where it belongs to other units."""
    if isinstance(model, DAGAN):
        return
    count = len(model.competitive_units)
    with checkpoint.using(path, "crn"):
        for name in ("reconstruction_losses", "advantages"):
            checkpoint.require_like(stored[name], [math.nan], name)  # inf before a unit's first step
            if len(stored[name]) != count:
                raise ValueError(f"{name} are of {len(stored[name])} units, not of {count}")
            setattr(model, name, list(stored[name]))
        model.best_gen, model.best_disc = int(stored["best_gen"]), int(stored["best_disc"])
        if not {model.best_gen, model.best_disc} <= set(range(count)):
            raise ValueError(f"its best units {model.best_gen} and {model.best_disc} are none of {count}")


def load_training(
    path: Path, model: Model, optimizers: Sequence[torch.optim.Optimizer], scaler: torch.amp.GradScaler, opt: Namespace,
    fingerprint: str,
) -> dict[str, Any]:  # fmt: skip
    """Put the training in `path` into model, optimizers and scaler; returns the rest of the file.

    Raises UserError where it had other settings or images.
    """
    content = read(path)
    if "state_dict" in content:
        raise UserError(f"{path} is no checkpoint of ours: use it with --model-input")
    with checkpoint.using(path, "crn"):
        checkpoint.require_like(content, RESUMABLE)
    theirs = content["settings"]
    names = BINDING + (("epochs", "training_steps") if opt.lr_scheduler == "cosine" else ())
    unlike = [
        f"{name.replace('_', '-')} {theirs.get(name)}, not {getattr(opt, name)}"
        for name in names
        if theirs.get(name) != getattr(opt, name) and counts(name, opt)
    ]
    remedy = "or another --checkpoint-path, or --resume no to train anew in its place"
    if unlike:
        raise UserError(f"{path} belongs to a training with other settings: {'; '.join(unlike)}. Use these, {remedy}")
    if not same_images(content["fingerprint"], fingerprint):
        raise UserError(f"{path} belongs to a training on other images: use the same, {remedy}")
    checkpoint.load_parameters(model, stored_parameters(content), path)
    set_bookkeeping(model, content["bookkeeping"], path)
    if len(content["optimizers"]) != len(optimizers):
        raise UserError(f"{path} is damaged: it has {len(content['optimizers'])} optimizers, not {len(optimizers)}")
    for optimizer, state in zip(optimizers, content["optimizers"]):
        checkpoint.load_optimizer(optimizer, state, path)
    with checkpoint.using(path, "crn"):
        checkpoint.load_scaler(scaler, content["scaler"])
    return content


def new_version(log_dir: Path) -> int:
    """Make log_dir/version_N with the smallest N above all that are there, and return N; 0 in processes that write
    nothing."""
    if not first_process():
        return 0
    try:
        log_dir.mkdir(parents=True, exist_ok=True)
        taken = [int(match[1]) for path in log_dir.iterdir() if (match := re.fullmatch(r"version_(\d+)", path.name))]
        for number in itertools.count(max(taken, default=-1) + 1):
            with suppress(FileExistsError):  # another run was faster
                (log_dir / f"version_{number}").mkdir()
                return number
    except OSError as error:
        raise UserError(f"cannot write in {log_dir}: {reason(error)}") from error


def write_metrics(path: Path, history: Sequence[Mapping[str, Any]], units: int) -> None:
    """The table of all validations so far; a unit that has not trained yet has no loss."""
    names = [
        "epoch", "batch", "metrics/score", "metrics/max_roc_auc", "metrics/inference_roc_auc", "metrics/traintime",
        "best_gen", "best_disc", *(f"unit_losses/loss_{unit}" for unit in range(units)),
    ]  # fmt: skip
    write_csv(path, names, ([row.get(name, "") for name in names] for row in history))


def save_grid(path: Path, rows: Sequence[Tensor]) -> None:
    """Write images (B, 3, H, W) in 0..1, one row of the picture for each of `rows`."""
    picture = torch.cat([torch.cat(list(row), dim=2) for row in rows], dim=1)  # (3, rows * H, B * W)
    save_picture(path, to_bytes(picture.movedim(0, -1)))


def to_bytes(values: Tensor) -> np.ndarray:
    """0..1 -> 0..255, uint8; what lies outside is clipped."""
    return values.clamp(0, 1).mul(255).round().byte().cpu().numpy()


def save_picture(path: Path, pixels: np.ndarray) -> None:
    """Write (H, W) or (H, W, 3) uint8 as PNG."""
    with atomic_write(path) as file:
        Image.fromarray(pixels).save(file, "PNG")


class Board:
    """Weights & Biases, if asked for; else nothing."""

    def __init__(self, opt: Namespace, folder: Path, run: str | None = None):
        """folder: where its files go; run: the one to continue. UserError where it cannot start."""
        self.run = None
        if not opt.wandb or not first_process():
            return
        try:
            import wandb
        except ImportError as error:
            raise UserError("--wandb needs the package wandb: pip install wandb") from error
        try:
            self.run = wandb.init(
                project="crn", name=opt.experiment, dir=str(folder), config=plain(opt), id=run,
                resume="allow" if run else None,
            )  # fmt: skip
        except (wandb.errors.Error, OSError) as error:
            words = " ".join(str(error).split())
            raise UserError(f"--wandb: {words}; log in (wandb login), or set WANDB_MODE=offline") from error
        self.image = wandb.Image

    @property
    def id(self) -> str | None:
        """The run's name for itself, by which it is continued."""
        return self.run.id if self.run else None

    def log(self, values: Mapping[str, Any], batch: int) -> None:
        """Numbers after `batch` batches."""
        if self.run:
            self.run.log({**values, "batch": batch})

    def picture(self, path: Path, batch: int) -> None:
        """The picture in `path`."""
        if self.run:
            self.run.log({"images": self.image(str(path)), "batch": batch})

    def close(self) -> None:
        """Write what is left."""
        if self.run:
            self.run.finish()
