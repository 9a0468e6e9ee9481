"""Files of CRN: checkpoints (ours and the authors'), pictures, and Weights & Biases."""

import itertools
import math
import re
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from common import checkpoint
from common.cli import say
from common.files import UserError, atomic_write, first_process, read_tensors, require_like, require_writable, using
from crn.options import DATASETS, LARGEST_SIDE, MODELS, NORMS, defaults
from crn.training.crn import CompetitiveReconstructionNetwork, levels_of, require_fitting
from crn.training.double_skip import DAGAN
from crn.training.skipnetworks import FEWEST_LEVELS

Model = CompetitiveReconstructionNetwork | DAGAN

# What a file may say of images and network.
ALLOWED = {
    "model": MODELS, "dataset": DATASETS, "norm": NORMS, "imsize": range(1, LARGEST_SIDE + 1),
    "max_value": range(1, 65536), "levels": range(FEWEST_LEVELS, int(math.log2(LARGEST_SIDE)) + 1),
}  # fmt: skip
READING = ("imsize", "antialias", "max_value")  # of images
# What a model is made of, and with what else a training can be continued.
ARCHITECTURE = ("model", "num_competitive_units", "max_network_depth", "ngf", "improved", "use_dropout", "norm")
BINDING = (
    *ARCHITECTURE, *READING, "dataset", "batch_size", "seed", "optimizer", "lr", "lr_scheduler", "lr_factor",
    "lr_steps", "momentum", "precision", "calibration_share", "reconstruction_weight", "feedback_weight",
    "discrimination_weight", "adversarial_loss_weight", "contextual_loss_weight",
    "discriminator_reconstruction_loss_weight",
)  # fmt: skip
# Those of them that change nothing unless another one has one of these values.
ONLY_WITH = {
    **dict.fromkeys(("num_competitive_units", "max_network_depth", "improved"), ("model", "crn")),
    **dict.fromkeys((name for name in BINDING if name.endswith("_weight")), ("model", "crn")),
    **dict.fromkeys((name for name in BINDING if name.endswith("_loss_weight")), ("model", "dagan")),
    "max_value": ("dataset", "MVTec", "Panorama"), "lr_factor": ("lr_scheduler", "step", "exponential"),
    "lr_steps": ("lr_scheduler", "step"), "momentum": ("optimizer", "rmsprop", "sgd"),
}  # fmt: skip


def binding(opt: Namespace) -> list[str]:
    """The settings in which a training and the file that it resumes must agree: those that change the training that the
    others describe."""
    names = BINDING + (("epochs", "training_steps") if opt.lr_scheduler == "cosine" else ())
    conditions = {name: ONLY_WITH.get(name, ("model", opt.model)) for name in names}
    return [name for name, (other, *values) in conditions.items() if getattr(opt, other) in values]


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


def read(path: Path) -> dict[str, Any]:
    """Content of a checkpoint of ours, or "model" and "bookkeeping" of the authors'. UserError for anything else."""
    content = read_tensors(path)
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        best = {name: content[name] for name in ("best_gen", "best_disc") if name in content}
        return {"model": content["state_dict"], "bookkeeping": best}
    kind = content.get("kind") if isinstance(content, Mapping) else None
    if kind != "crn":
        raise UserError(f"{path} is not a checkpoint of crn{f' but of {kind}' if kind else ''}")
    checkpoint.require_known_format(content, path)
    with using(path, "crn"):
        require_like(content, {"settings": {}, "model": {}, "bookkeeping": {}, "levels": 0})
        settings = {"max_value": 65535, **content["settings"]}  # which older versions do not tell
        require_like(settings, {name: value for name, value in defaults().items() if name in BINDING})
        for name, allowed in ALLOWED.items():
            if (value := content["levels"] if name == "levels" else settings[name]) not in allowed:
                raise ValueError(f"{name} is {value}")
        return {**content, "settings": settings, "model": stored_parameters(content)}


def read_training(path: Path) -> dict[str, Any]:
    """What `common.checkpoint.Training` resumes from: content of a last.ckpt, of older versions, too."""
    content = read(path)
    if "settings" not in content:
        raise UserError(f"{path} is a checkpoint of the authors, which cannot be resumed: use it with --model-input")
    with using(path, "crn"):
        entry = dict.fromkeys(("metrics/score", "metrics/max_roc_auc", "metrics/inference_roc_auc"), math.nan)
        require_like(content, {"history": [{"batch": 0, **entry}]})  # nan without good or defective test images
    if "optimizers" in content:
        content = {**content, "optimizer": content["optimizers"], "sums": {}}
    return content


def stored_parameters(content: Mapping[str, Any]) -> Mapping[str, Tensor]:
    """The parameters in a checkpoint of ours, which once numbered layers without norms as if the norms were there."""
    state = content["model"]
    if content["settings"]["norm"] != "none" or not any(".model.3.model." in str(name) for name in state):
        return state
    places = re.compile(r"(?<=\bmodel\.)(?:3(?=\.model\.)|[56](?=\.weight))")  # behind a norm: inner block, upsampling
    return {places.sub(lambda place: str(int(place[0]) - 1), str(name)): value for name, value in state.items()}


def kind_of(content: Mapping[str, Any]) -> str:
    """Which of `MODELS` a checkpoint holds, as `read` gives it."""
    if "settings" in content:
        return content["settings"]["model"]
    return "crn" if any(str(key).startswith("competitive_units.") for key in content["model"]) else "dagan"


def load_model(opt: Namespace, content: Mapping[str, Any]) -> tuple[Model, Namespace]:
    """The model in `content`, as `read` gives it of opt.model_input, in eval mode on the CPU, and its settings.

    These are `opt` with what a file of ours says of the network, and of size, smoothing and range of the images unless
    they are on the command line. The authors' Lightning checkpoints bring their number of units; the rest must be on
    the command line. Raises UserError where the file is of another model or damaged.
    """
    path, kind, stored, levels = opt.model_input, kind_of(content), content.get("settings"), content.get("levels")
    if kind != opt.model:
        raise UserError(f"{path} is a checkpoint of --model {kind}, not of {opt.model}")
    if stored is None:
        units = {str(key).split(".")[1] for key in content["model"] if str(key).startswith("competitive_units.")}
        taken = {"num_competitive_units": len(units)} if units else {}
        hint = "; --imsize, --max-network-depth, --ngf, --improved and --norm of train.py must be the training's"
    else:
        if stored["dataset"] != opt.dataset:
            say(f"{path} was trained on {stored['dataset']}, not on {opt.dataset}")
        for name in [name for name in (*ARCHITECTURE, *READING) if name in opt.given]:
            given, option = getattr(opt, name), name.replace("_", "-")
            if given != stored[name] and name in READING:
                say(f"--{option} {given}, though {path} was trained with {stored[name]}")
            elif given != stored[name] and name in binding(opt):
                raise UserError(f"{path} has {option} {stored[name]}, not {given}")
        taken = {name: stored[name] for name in {*ARCHITECTURE} | ({*READING} - opt.given)}
        hint = ""
    settings = Namespace(**{**vars(opt), **taken})
    try:
        if levels:
            require_fitting(settings.imsize, levels)
        with using(path, "crn"):
            checkpoint.require_fitting(lambda: make_model(settings, levels), content["model"], path)
    except UserError as error:
        raise UserError(f"{path}: {str(error).removeprefix(f'{path} ')}{hint}") from error
    model = make_model(settings, levels)
    checkpoint.load_parameters(model, content["model"], path)
    set_bookkeeping(model, content["bookkeeping"], path)
    return model.eval(), settings


def set_bookkeeping(model: Model, stored: Mapping[str, Any], path: Path) -> None:
    """Undo `model.bookkeeping()`. UserError where it belongs to other units."""
    if isinstance(model, DAGAN):
        return
    count = len(model.competitive_units)
    with using(path, "crn"):
        for name in ("reconstruction_losses", "advantages"):  # not in the authors' files
            values = stored.get(name, getattr(model, name))
            require_like(values, [math.nan], name)  # inf before a unit's first step
            if len(values) != count:
                raise ValueError(f"{name} are of {len(values)} units, not of {count}")
            setattr(model, name, list(values))
        model.best_gen, model.best_disc = int(stored["best_gen"]), int(stored["best_disc"])
        if not {model.best_gen, model.best_disc} <= set(range(count)):
            raise ValueError(f"best_gen {model.best_gen} or best_disc {model.best_disc} is not one of {count} units")


def new_version(log_dir: Path) -> int:
    """Make log_dir/version_N with the smallest N above all that are there, and return N; 0 in processes that write
    nothing."""
    if not first_process():
        return 0
    require_writable(log_dir)
    taken = [int(match[1]) for path in log_dir.iterdir() if (match := re.fullmatch(r"version_(\d+)", path.name))]
    for number in itertools.count(max(taken, default=-1) + 1):
        with suppress(FileExistsError):  # another run was faster
            (log_dir / f"version_{number}").mkdir()
            return number


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


@contextmanager
def opened_board(
    wanted: bool, experiment: str, folder: Path, settings: Mapping[str, Any], run: str | None
) -> Iterator[Any]:
    """Within the block, a run of Weights & Biases, its files in `folder`; run: the one to resume.

    None unless wanted, and in processes that write nothing. UserError where it cannot start.
    """
    if not wanted or not first_process():
        yield None
        return
    try:
        import wandb

        about = {"name": experiment, "dir": str(folder), "config": dict(settings)}
        board = wandb.init(project="crn", **about, id=run, resume="allow" if run else None)
    except ImportError as error:
        raise UserError("--wandb needs the package wandb: pip install wandb") from error
    except (wandb.errors.Error, OSError) as error:
        words = " ".join(str(error).split())
        raise UserError(f"--wandb: {words}; log in (wandb login), or set WANDB_MODE=offline") from error
    try:
        yield board
    finally:
        board.finish()


def log_to(board: Any, batch: int, values: Mapping[str, Any], picture: Path | None = None) -> None:
    """Send numbers, and a picture, to what `opened_board` gives; nothing where that is None."""
    if board is None:
        return
    values = {name: value for name, value in values.items() if value is not None}
    if picture:
        import wandb

        values["images"] = wandb.Image(str(picture))
    board.log({**values, "batch": batch})
