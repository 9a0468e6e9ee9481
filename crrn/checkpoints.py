"""Options that training, testing and scoring share, and the file <data>/result/<mode>/model_dictionary.pt."""

import argparse
import math
from pathlib import Path
from reprlib import repr as short  # numbers may have hundreds of digits
from typing import Any

import torch

from common import checkpoint
from common.cli import PRECISIONS, ArgumentParser, note, number_of
from common.files import UserError, digest, read_tensors
from common.runtime import channels_last
from crrn.boards import add_data_options, command
from crrn.model.ConvRRN import CELLS, ST_EncDec, cell_class
from crrn.preprocess import Prepared

CHANNELS, KERNELS = [1, 64, 64], [5, 5]
# What must agree for a training to be continued; the first ones also for its result to be used.
MODEL_SETTINGS = ("mode", "is_attn", "n_layers", "gates", "protocol")
TRAINING_SETTINGS = ("held_out", "batch_size", "num_instance", "lr", "init_tr", "final_tr", "seed", "precision")
HELD_OUT = 0.3
# What every checkpoint holds, and what ours hold besides (`require_like`). epoch is -1 where the first one was stopped,
# a train_loss nan where an authors' file was continued.
PLAIN: dict[str, Any] = {"epoch": None, "test_loss": [0.0], "state_dict": {}, "optimizer": {}}
OURS: dict[str, Any] = {
    "train_loss": [math.nan],
    "settings": {**dict.fromkeys(MODEL_SETTINGS + TRAINING_SETTINGS), "held_out": 0.0},
    "loss_sum": 0.0,
    "scaler": {},
    **dict.fromkeys(("step", "height", "width"), 0),
    **dict.fromkeys(("fingerprint", "data"), ""),
}


def add_model_options(parser: ArgumentParser, gpu_ids: list[int], several: str = "the first one is used") -> None:
    """Add the options that say which model of which data is meant, and where it runs; several: what is done with more
    than one GPU."""
    add_data_options(parser)
    add = parser.add_argument_group("network").add_argument
    add("--mode", type=_mode, default="ConvConjLSTM", help=f"recurrent cell: {', '.join(CELLS)}")
    add("--is_attn", action="store_true", help="spatial attention in the encoder")
    add("--n_layers", type=int, default=2, help="recurrent layers")
    errors = "published: with the errors of the authors' code, as their checkpoints need it (see README.md)"
    add("--gates", choices=("published", "textbook"), default="published", help=errors)

    add = parser.add_argument_group("clean sequences").add_argument
    kinds = "drawn from the age model, each pad on its own (the authors'), or measured cycles"
    add("--protocol", choices=("drawn", "measured"), default="drawn", help=kinds)
    share = f"share of the measured cycles not trained on; unset: the trained model's, or {HELD_OUT}"
    add("--held_out", type=float, help=share)

    group = parser.add_argument_group("machine and files")
    add = group.add_argument
    add("--result", type=Path, help="folder for models and results; unset: result/ in the data folder")
    add("--precision", choices=PRECISIONS, default="fp32", help="of the network")
    add = group.add_mutually_exclusive_group().add_argument
    add("--gpu_ids", type=int, nargs="+", default=gpu_ids, help=f"GPUs; {several}")
    add("--cpu", action="store_true", help="use the CPU even where there is a GPU")


def _mode(name: str) -> str:
    try:
        cell_class(name)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return name


def check_options(options: argparse.Namespace, **ranges: tuple[float, float]) -> None:
    """Raise UserError for numbers out of range; ranges: option -> (lowest, highest), the other limits are known."""
    for name, (low, high) in {"n_layers": (1, 100), "held_out": (0.01, 0.99), **ranges}.items():
        value = getattr(options, name)
        if value is not None and not low <= value <= high:
            raise UserError(f"--{name} {short(value)}: expected a number from {low:.10g} to {high:.10g}")


def result_folder(options: argparse.Namespace, data: Path) -> Path:
    """Where model and results lie: <result>/<mode>, with _a, _textbook and _measured for other than the defaults."""
    suffix = "_a" if options.is_attn else ""
    suffix += "_textbook" if options.gates == "textbook" else ""
    suffix += "_measured" if options.protocol == "measured" else ""
    return (options.result or data / "result") / f"{options.mode}{suffix}"


def build_model(options: argparse.Namespace) -> ST_EncDec:
    """A new network as the options say."""
    return ST_EncDec(
        options.mode, CHANNELS, KERNELS, options.n_layers, options.is_attn, textbook_gates=options.gates == "textbook"
    )


def load_checkpoint(path: Path, options: argparse.Namespace, prepared: Prepared, train: bool) -> dict[str, Any]:
    """Read a model_dictionary.pt, of ours or of the authors' ({epoch, test_loss, state_dict, optimizer} alone).

    train: to continue the training, else to use the model. Sets options.held_out where it is None. UserError where the
    file is damaged, or was made with other settings or for another grid; of an authors' file nothing but names and
    shapes is known.
    """
    content = read_tensors(path)
    with checkpoint.using(path, "crrn"):
        checkpoint.require_like(content, PLAIN)
        ours = "kind" in content or "settings" in content
        if ours and content.get("kind") != "crrn":
            raise UserError(f"{path} is a checkpoint of another method than CRRN")
        checkpoint.require_known_format(content, path)
        checkpoint.require_like(content, OURS if ours else {})
        if type(content["epoch"]) is not int or content["epoch"] < -1:
            raise ValueError(f"epoch is {content['epoch']!r}")
        checkpoint.require_like(content.get("num_epochs") or 0, 0, "num_epochs")  # older files do not have it
        content = {**content, "test_loss": [float(loss) for loss in content["test_loss"]]}
        for losses in (content["test_loss"], content["train_loss"] if ours else content["test_loss"]):
            if len(losses) != content["epoch"] + 1:
                raise ValueError(f"{len(losses)} losses of {content['epoch'] + 1} epochs")
        # Trained on several GPUs, the authors' parameters are called module.<name>.
        content["state_dict"] = {name.removeprefix("module."): value for name, value in content["state_dict"].items()}
    stored = content["settings"] if ours else {}
    if options.held_out is None:
        options.held_out = stored.get("held_out", HELD_OUT) if options.protocol == "measured" else HELD_OUT
    if not ours:
        return {name: content[name] for name in PLAIN}
    # Judged on cycles that it was trained on, a model of measured cycles would look better than it is.
    names = MODEL_SETTINGS + (TRAINING_SETTINGS if train else ("held_out",) if options.protocol == "measured" else ())
    differing = [f"{n} {stored[n]}, not {getattr(options, n)}" for n in names if stored[n] != getattr(options, n)]
    if (content["height"], content["width"]) != (prepared.height, prepared.width):
        own, here = (f"{one['height']} x {one['width']}" for one in (content, vars(prepared)))
        differing.append(f"boards of {own} pixels, not {here}")
    if differing:
        anew = ", or --resume no to train anew in its place" if train else ""
        raise UserError(
            f"{path} was trained with other settings: {'; '.join(differing)}. Use these, or another --result folder"
            f"{anew}"
        )
    if content["fingerprint"] != prepared.fingerprint and (train or options.protocol == "measured"):
        raise UserError(
            f"{path} was trained on other boards than {prepared.folder} holds now: use another --result folder"
        )
    return content


def load_trained(
    path: Path, options: argparse.Namespace, prepared: Prepared, device: torch.device
) -> tuple[ST_EncDec, dict]:
    """The trained network of `path` in eval mode, and the rest of the file with its digest, "sha256", and with
    "same_boards": whether it was trained on those of `prepared` (None: its file does not say)."""
    if not path.exists():
        raise UserError(f"there is no {path}; {command('1_train.py', *_shared_arguments(options))} makes it")
    # Before it is loaded: where it changes meanwhile, results are not taken for those of the new one.
    sha256 = digest(path) if path.is_file() else ""
    content = load_checkpoint(path, options, prepared, train=False)
    model = build_model(options)
    checkpoint.load_parameters(model, content["state_dict"], path)
    done, planned, step = content["epoch"] + 1, content.get("num_epochs"), content.get("step")
    if planned and done < planned:
        steps = f" and {number_of(step, 'step')}" if step else ""
        note(f"{path} is of a training stopped after {done} of {planned} epochs{steps}")
    same = content["fingerprint"] == prepared.fingerprint if "fingerprint" in content else None
    if same is False:
        note(f"{path} was trained on other boards ({content['data']}) than {prepared.folder} holds now")
    model.eval().to(device, memory_format=channels_last(device))
    return model, {**content, "sha256": sha256, "same_boards": same}


def _shared_arguments(options: argparse.Namespace) -> list[str]:
    """The options that select the model, where they are not the defaults, as they are written."""
    parser = ArgumentParser()
    add_model_options(parser, [0])
    arguments = []
    for name in ("data", "cycle", "mode", "is_attn", "n_layers", "gates", "protocol", "held_out", "result"):
        value = getattr(options, name)
        if value != parser.get_default(name):
            arguments += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    return arguments
