"""The file <data>/result/<mode>/model_dictionary.pt.

Users of the authors' code read {epoch: the last finished one, from 0, test_loss, state_dict, optimizer} there. To
`Training`, epoch is the next one and optimizer a list, so that one file cannot hold both: `as_published` renames what
it saves, `read_checkpoint` undoes that. All else in the file has the names that it has in all methods' checkpoints.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from common import checkpoint
from common.cli import note, number_of
from common.files import UserError, digest, read_tensors, require_like, using
from common.runtime import channels_last
from crrn.boards import command
from crrn.model.ConvRRN import ST_EncDec
from crrn.options import HELD_OUT, MODEL, TRAINING, words_to_train
from crrn.preprocess import Prepared

CHANNELS, KERNELS = [1, 64, 64], [5, 5]
BOUND = (*MODEL, *TRAINING, "height", "width")  # settings that a training is resumed with
# What every checkpoint holds, and what ours hold besides; a loss is nan where an authors' training was resumed.
PUBLISHED: dict[str, Any] = {"epoch": None, "test_loss": [0.0], "state_dict": {}, "optimizer": {}}
SETTINGS = {"held_out": 0.0, "height": 0, "width": 0, "num_epochs": 0, **dict.fromkeys((*MODEL, *TRAINING[1:]))}
OURS = {"settings": SETTINGS, "fingerprint": "", "data": "", "step": 0, "scaler": {}}
HISTORY = [{"loss": math.nan, "test_loss": 0.0}]


def as_published(content: Mapping[str, Any]) -> dict[str, Any]:
    """What `Training` saves, under the names of the authors' files."""
    history = content["history"]
    published = {
        "epoch": content["epoch"] - 1,  # the last finished one, from 0; -1: none
        "test_loss": [entry["test_loss"] for entry in history],
        "state_dict": content["model"],
        "optimizer": content["optimizer"][0],
    }
    return {**published, **{name: content[name] for name in content if name not in (*published, "model")}}


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A model_dictionary.pt as `Training` knows it; of the authors' files, and of older ones of ours, too.

    Of the authors' files, settings, fingerprint and data are unknown and left out. UserError where it is damaged.
    """
    content = read_tensors(path)
    with using(path, "crrn"):
        require_like(content, PUBLISHED)
        ours = "kind" in content or "settings" in content
        if ours and content.get("kind") != "crrn":
            raise UserError(f"{path} is a checkpoint of another method than CRRN")
        checkpoint.require_known_format(content, path)
        test_loss, step = [float(loss) for loss in content["test_loss"]], content.get("step", 0)
        if "history" not in content:  # of the authors, or of an older version
            losses = content["train_loss"] if ours else [math.nan] * len(test_loss)
            pairs = enumerate(zip(losses, test_loss, strict=True), start=1)
            history = [{"epoch": number, "loss": loss, "test_loss": tested} for number, (loss, tested) in pairs]
            content = {**content, "history": history, "sums": {}}
            if ours:
                settings = {**content["settings"], "num_epochs": content.get("num_epochs") or 0}
                content["settings"] = {**settings, "height": content["height"], "width": content["width"]}
                content["sums"] = {"loss": content["loss_sum"], "weight": float(step)} if step else {}
        require_like(content, {"history": HISTORY, "sums": {}, **(OURS if ours else {})})
        history = content["history"]
        if type(content["epoch"]) is not int or not content["epoch"] + 1 == len(history) == len(test_loss):
            raise ValueError(f"epoch is {content['epoch']!r}, with {len(history)} losses")
        # Trained on several GPUs, the authors' parameters are called module.<name>.
        model = {name.removeprefix("module."): value for name, value in content["state_dict"].items()}
    known = {name: content[name] for name in ("settings", "fingerprint", "data") if name in content}
    return {
        **known, "epoch": len(history), "step": step, "history": history, "sums": content["sums"],
        "seconds": content.get("seconds", 0.0), "model": model, "optimizer": [content["optimizer"]],
        "scaler": content.get("scaler", {}),
    }  # fmt: skip


def model_folder(options: Mapping[str, Any], data: Path) -> Path:
    """Where model and results lie: <result>/<mode>, with _a, _textbook and _measured for other than the defaults."""
    suffix = "_a" if options["is_attn"] else ""
    suffix += "_textbook" if options["gates"] == "textbook" else ""
    suffix += "_measured" if options["protocol"] == "measured" else ""
    return (options["result"] or data / "result") / f"{options['mode']}{suffix}"


def build_model(mode: str, n_layers: int, is_attn: bool, gates: str) -> ST_EncDec:
    """A new network; gates: "published" or "textbook"."""
    return ST_EncDec(mode, CHANNELS, KERNELS, n_layers, is_attn, textbook_gates=gates == "textbook")


def load_trained(
    path: Path, options: Mapping[str, Any], prepared: Prepared, device: torch.device
) -> tuple[ST_EncDec, float, dict[str, Any]]:
    """The trained network of `path` in eval mode, the share of held-out cycles (the file's, where options have none),
    and what results.json says of it: None where the file does not tell.

    options: the script's, which must agree with the file's settings. UserError where it is missing, damaged, or of
    others.
    """
    if not path.exists():
        if options.get("checkpoint"):
            raise UserError(f"there is no {path}")
        others = sorted(other.parent.name for other in path.parent.parent.glob(f"*/{path.name}"))
        there = f"trained there {'is' if len(others) == 1 else 'are'} {', '.join(others)}" if others else ""
        there += " (--protocol measured)" if f"{path.parent.name}_measured" in others else ""
        there += "; " * bool(there)
        raise UserError(f"there is no {path}; {there}{command('1_train.py', *words_to_train(options))} makes it")
    # Before it is loaded: where it changes meanwhile, results are not taken for those of the new one.
    sha256 = digest(path) if path.is_file() else ""
    stored = read_checkpoint(path)
    settings, measured = stored.get("settings", {}), options["protocol"] == "measured"
    held_out = options["held_out"] or (settings.get("held_out", HELD_OUT) if measured else HELD_OUT)
    # Judged on cycles that it was trained on, a model of measured cycles would look better than it is.
    wanted = {name: options[name] for name in MODEL} | {"height": prepared.height, "width": prepared.width}
    wanted |= {"held_out": held_out} if measured else {}
    pairs = [(name, settings[name], wanted[name]) for name in wanted if settings]
    if differing := [f"{name} {theirs}, not {ours}" for name, theirs, ours in pairs if theirs != ours]:
        raise UserError(
            f"{path} was trained with other settings: {'; '.join(differing)}. Use these, or another --result folder"
        )
    same = stored["fingerprint"] == prepared.fingerprint if "fingerprint" in stored else None
    if same is False and measured:
        raise UserError(f"{path} was trained on other boards than {prepared.folder} holds now: use another --result")
    if same is False:
        note(f"{path} was trained on other boards ({stored['data']}) than {prepared.folder} holds now")
    model = build_model(*(options[name] for name in ("mode", "n_layers", "is_attn", "gates")))
    checkpoint.load_parameters(model, stored["model"], path)
    done, planned, step = stored["epoch"], settings.get("num_epochs") or None, stored["step"]
    if planned and done < planned:
        steps = f" and {number_of(step, 'step')}" if step else ""
        note(f"{path} is of a training stopped after {done} of {planned} epochs{steps}")
    model.eval().to(device, memory_format=channels_last(device))
    results = {"epochs": done, "epochs_planned": planned, "chosen_on": "last epoch"}
    results |= {"model_sha256": sha256, "trained_on": stored.get("data"), "trained_on_these_boards": same}
    return model, held_out, results
