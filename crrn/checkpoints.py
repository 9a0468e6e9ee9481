"""Options that training, testing and scoring share, and the file <data>/result/<mode>/model_dictionary.pt."""

import argparse
import shlex
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common import checkpoint
from common.runtime import ArgumentParser, UserError
from crrn.boards import add_data_options
from crrn.model.ConvRRN import CELLS, ST_EncDec, cell_class
from crrn.preprocess import Prepared

CHANNELS, KERNELS = [1, 64, 64], [5, 5]
# What must agree for a training to be continued; the first ones also for its result to be used.
MODEL_SETTINGS = ("mode", "is_attn", "n_layers", "gates", "protocol")
TRAINING_SETTINGS = ("held_out", "batch_size", "num_instance", "lr", "init_tr", "final_tr", "seed", "precision")


def add_model_options(parser: ArgumentParser, gpu_ids: list[int]) -> None:
    """Add the options that say which model of which data is meant, and where it runs."""
    add_data_options(parser)
    parser.add_argument("--mode", type=_mode, default="ConvConjLSTM", help=f"recurrent cell: {', '.join(CELLS)}")
    parser.add_argument("--is_attn", action="store_true", help="spatial attention in the encoder")
    parser.add_argument("--n_layers", type=int, default=2, help="recurrent layers")
    parser.add_argument(
        "--gates",
        choices=("published", "textbook"),
        default="published",
        help="published: with the errors of the authors' code, as their checkpoints need it (see README.md)",
    )
    parser.add_argument(
        "--protocol",
        choices=("drawn", "measured"),
        default="drawn",
        help="clean sequences: drawn from the age model, each pad on its own (the authors'), or measured cycles",
    )
    parser.add_argument("--held_out", type=float, default=0.3, help="share of the measured cycles not trained on")
    parser.add_argument("--result", type=Path, help="folder for models and results; unset: result/ in the data folder")
    parser.add_argument("--precision", choices=("fp32", "bf16", "fp16"), default="fp32", help="of the network")
    parser.add_argument("--gpu_ids", type=int, nargs="+", default=gpu_ids, help="GPUs; the first one is used")
    parser.add_argument("--cpu", action="store_true", help="use the CPU even where there is a GPU")


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
        if not low <= value <= high:
            raise UserError(
                f"--{name} {value:g}: expected a number from {low:g}" + (f" to {high:g}" if high < 1e9 else "")
            )


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


def load_checkpoint(path: Path, options: argparse.Namespace, height: int, width: int, train: bool) -> dict[str, Any]:
    """Read a model_dictionary.pt, of ours or of the authors' ({epoch, test_loss, state_dict, optimizer} alone).

    train: to continue the training, else to use the model. UserError where it is broken, or was made with other
    settings or for another grid than height x width; of an authors' file nothing but names and shapes is known.
    """
    content = checkpoint.read(path)
    missing = {"epoch", "test_loss", "state_dict", "optimizer"} - set(content if isinstance(content, dict) else ())
    if missing or content.get("kind", "crrn") != "crrn":
        raise UserError(
            f"{path} is no checkpoint of CRRN: "
            + (f"{sorted(missing)[0]} is missing" if missing else "of another method")
        )
    # Trained on several GPUs, the authors' parameters are called module.<name>.
    content["state_dict"] = {name.removeprefix("module."): value for name, value in content["state_dict"].items()}
    if "settings" not in content:
        return content
    names = MODEL_SETTINGS + (TRAINING_SETTINGS if train else ())
    stored = content["settings"]
    differing = [f"{n} {stored[n]}, not {getattr(options, n)}" for n in names if stored[n] != getattr(options, n)]
    if (content["height"], content["width"]) != (height, width):
        differing.append(f"boards of {content['height']} x {content['width']} pixels, not {height} x {width}")
    if differing:
        raise UserError(
            f"{path} was trained with other settings: {'; '.join(differing)}. Use these, or another --result folder"
        )
    return content


def load_trained(
    path: Path, options: argparse.Namespace, prepared: Prepared, device: torch.device
) -> tuple[ST_EncDec, dict]:
    """The trained network of `path` in eval mode, and the rest of the file."""
    if not path.is_file():
        train = ["python", str(Path(sys.argv[0]).with_name("1_train.py")), *_shared_arguments(options)]
        raise UserError(f"there is no {path}; {shlex.join(train)} makes it")
    content = load_checkpoint(path, options, prepared.height, prepared.width, train=False)
    model = build_model(options)
    checkpoint.load_parameters(model, content["state_dict"], path)
    return model.eval().to(device), content


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


@torch.no_grad()
def reconstruct(
    model: ST_EncDec, sequences: Tensor, batch_size: int, device: torch.device, precision: str = "fp32"
) -> Tensor:
    """The network's reconstruction of `sequences` (N, T, 1, H, W): the same shape, float32, on the CPU."""
    model.eval()
    outputs = []
    for batch in sequences.split(batch_size):
        with autocast(device, precision):
            outputs.append(model(batch.to(device)).float().cpu())
    return torch.cat(outputs)


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Within the context, convolutions compute in `precision`: fp32, bf16 or fp16."""
    dtype = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    return torch.autocast(device.type, dtype, enabled=dtype is not None)
