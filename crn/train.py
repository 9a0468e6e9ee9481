"""Train CRN or DAGAN (--mode train), or score a data set with a trained model (--mode inference); --help lists every
option.

Training writes <log-dir>/version_N/{metrics.csv,results.json}, pictures to --image-output-path, and last.ckpt and
best.ckpt to --checkpoint-path. The same command continues an interrupted training that has a --checkpoint-path.
"""

import logging
import shlex
import sys
import time
from argparse import Namespace
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch

from common import checkpoint, distributed
from common.cli import command_to_continue, notes, printable, progress, say, script, stop_on_request
from common.files import UserError, first_process, locked, reason, require_writable, write_json
from common.images import note_squeezed, set_max_pixels
from common.metrics import image_auroc, in_words
from common.runtime import autocast, channels_last, pick_device, reuse_memory, seed_all
from crn.demo_data import ensure_data
from crn.inference import inference, score_all
from crn.options import DEMO_IMAGES, SCORES, parse, plain
from crn.training.dataset import Dataset, Images, load_dataset, viewable
from crn.training.networks import create_optimizer, create_scheduler
from crn.training.utils import (
    Board,
    Model,
    load_model,
    load_training,
    make_model,
    new_version,
    save_grid,
    trained_max_value,
    write_metrics,
)

log = logging.getLogger("crn")


def split_calibration(count: int, opt: Namespace) -> tuple[list[int], list[int]]:
    """Numbers of the training images to train on, and of those held out to set the threshold of the verdicts.

    A share above 0 holds out at least one image. Raises UserError where fewer than a batch remain.
    """
    held = 0 if opt.calibration_share == 0 else max(round(opt.calibration_share * count), 1)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(opt.seed)).tolist()
    if count - held < opt.batch_size:
        remedy = f"--batch-size {count - held} or less" if count > held else "more images, or --calibration-share 0"
        raise UserError(
            f"{count} training images, {held} of them held out for the threshold (--calibration-share), are fewer than "
            f"a batch: use {remedy}"
        )
    return sorted(order[held:]), sorted(order[:held])


def plan(opt: Namespace, count: int, steps_per_batch: int) -> tuple[int, int]:
    """Epochs, and batches in all, of a training on `count` images. --training-steps counts optimizer steps; epochs are
    training-steps / (images / batch-size) + 1 where not given, as published."""
    epochs = opt.epochs or int(opt.training_steps / (count / opt.batch_size)) + 1
    return epochs, min(epochs * -(-count // opt.batch_size), -(-opt.training_steps // steps_per_batch))


def draw_epoch(opt: Namespace, model: Model, count: int, epoch: int) -> list[tuple[list[int], tuple[int, int]]]:
    """The shuffled batches of an epoch, none dropped, each with its pair of units. They depend on seed and epoch alone,
    so that a training interrupted anywhere goes on with the very batches that are left."""
    generator = torch.Generator().manual_seed(opt.seed * 1_000_003 + epoch)
    order = torch.randperm(count, generator=generator)
    return [(batch.tolist(), model.draw_pair(generator)) for batch in order.split(opt.batch_size)]


class _LogFile(logging.FileHandler):
    """A file of messages that ends the program where it cannot be written, as every other file does."""

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exception()
        if isinstance(error, OSError):
            raise UserError(f"cannot write --log-file {self.baseFilename}: {reason(error)}") from error
        raise error


class Training:
    """A training's state beside the networks, and what is written after a validation."""

    def __init__(self, opt: Namespace, dataset: Dataset, device: torch.device):
        self.opt, self.dataset, self.device = opt, dataset, device
        rows, held = split_calibration(len(dataset.train), opt)
        seed_all(opt.seed)
        self.model = load_model(opt)[0] if opt.model_input else make_model(opt)  # the former may bring the images' size
        images = partial(Images, kind=dataset.kind, imsize=opt.imsize, antialias=opt.antialias, threads=opt.num_workers)
        self.train_images = images([dataset.train[row] for row in rows])
        self.held_images = images([dataset.train[row] for row in held] + dataset.held_out)
        self.test_images = images(dataset.test)
        self.labels = [item.label for item in dataset.test]

        if opt.sync_bn:
            if device.type != "cuda":
                raise UserError("--sync-bn needs GPUs: on a CPU, batch norms are of each process's share")
            self.model = torch.nn.SyncBatchNorm.convert_sync_batchnorm(self.model)
        self.model.train().to(device, memory_format=channels_last(device))
        self.optimizers = [create_optimizer(opt, network.parameters()) for network in self.model.networks]
        self.scaler = torch.amp.GradScaler(device.type, enabled=opt.precision == "fp16")
        self.epochs, self.batches = plan(opt, len(self.train_images), self.model.steps_per_batch)
        self.learning_rate = create_scheduler(opt, self.epochs)
        self.state: dict[str, Any] = {
            "epoch": 0,  # finished ones
            "step": 0,  # batches of the epoch after them
            "batch": 0,  # all batches so far
            "version": 0,
            "history": [],
            "calibration": None,
            "seconds": 0.0,  # of training, without validations
            "wandb": None,
        }
        self.last_saved = time.monotonic()
        self.folder = opt.checkpoint_path
        last = self.folder / "last.ckpt" if self.folder else None
        logged_in = None
        if last and opt.resume and last.exists():
            stored = load_training(last, self.model, self.optimizers, self.scaler, opt, dataset.fingerprint)
            self.state = {name: stored.get(name) for name in self.state}
            self._require_place(last)
            say(f"continuing {last} after {self.state['batch']} of {self.batches} batches")
            logged_in = stored["settings"].get("log_dir")
        if logged_in != str(opt.log_dir):  # in another folder, the number may be another run's
            self.state["version"] = new_version(opt.log_dir)
        self.log_folder = opt.log_dir / f"version_{self.state['version']}"
        if opt.save and self.folder is None:
            opt.checkpoint_path = self.folder = self.log_folder
            say(f"checkpoints go to {self.folder} (--checkpoint-path chooses)")
        if first_process():  # nothing of the others is written
            for folder in (self.log_folder, opt.image_output_path, *([self.folder] if opt.save else [])):
                require_writable(folder)

    def _require_place(self, path: Path) -> None:
        """UserError where a stored training has come to a place that this one does not have."""
        state, history = self.state, self.state["history"]
        per_epoch = -(-len(self.train_images) // self.opt.batch_size)
        if state["step"] >= per_epoch or state["batch"] != state["epoch"] * per_epoch + state["step"]:
            raise UserError(f"{path} is damaged: epoch {state['epoch']} has no batch {state['step']}")
        validated = bool(history) and history[-1].get("batch") == state["batch"]
        if state["batch"] > self.batches or (state["batch"] == self.batches and not validated):
            raise UserError(
                f"{path} is trained for {state['batch']} batches already, more than asked for: raise --training-steps "
                "and --epochs, or --resume no to train anew in its place"
            )

    def content(self) -> dict[str, Any]:
        """What every checkpoint holds."""
        first = self.model.networks[0]
        return {
            "model": self.model.state_dict(),
            "bookkeeping": self.model.bookkeeping(),
            "levels": first.levels,
            "settings": plain(self.opt),
            "data": self.dataset.data,
            "fingerprint": self.dataset.fingerprint,
            "batch": self.state["batch"],
            "calibration": self.state["calibration"],
        }

    def stopped(self, what: str) -> UserError:
        """The error for a training that has diverged."""
        saved = f"; {self.folder} keeps what was saved" if self.opt.save else ""
        return UserError(
            f"{what} not finite at epoch {self.state['epoch']}, batch {self.state['batch']}: training stops{saved}. "
            "Try a lower --lr, or --precision fp32"
        )

    def require_finite(self) -> None:
        """Raise `stopped` unless all parameters and moments are finite: after a fine loss, a step may spoil them."""
        pairs = zip(self.model.networks, self.optimizers)
        if not all(checkpoint.finite(network, optimizer) for network, optimizer in pairs):
            raise self.stopped("parameters are")

    def save(self) -> None:
        """Write last.ckpt, from which the training continues as if it had never stopped."""
        self.last_saved = time.monotonic()
        if not self.opt.save:
            return
        self.require_finite()
        self.model.choose_best()  # a training that is stopped need not have come to a validation yet
        more = {
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "scaler": self.scaler.state_dict(),
        }
        checkpoint.save(self.folder / "last.ckpt", "crn", **{**self.content(), **more, **self.state})

    def validate(self, board: Board) -> None:
        """Score the test part and the held-out images; enter the result into history, table and best.ckpt."""
        self.require_finite()
        self.model.choose_best()
        test = score_all(self.model, self.test_images, self.opt.batch_size, self.device)
        if len(self.held_images):
            held = score_all(self.model, self.held_images, self.opt.batch_size, self.device)
            self.state["calibration"] = {name: values.tolist() for name, values in held.items()}
        aurocs = {name: image_auroc(self.labels, test[name]) for name in SCORES}
        history = self.state["history"]
        best = max((entry["metrics/max_roc_auc"] for entry in history), default=-1.0)
        entry = {
            "epoch": self.state["epoch"],
            "batch": self.state["batch"],
            "metrics/score": aurocs["validation"],
            "metrics/max_roc_auc": max(aurocs["validation"], best),  # nan without good or defective test images
            "metrics/inference_roc_auc": aurocs["inference"],
            "metrics/traintime": self.state["seconds"],
        }
        if self.opt.model == "crn":
            entry |= {"best_gen": self.model.best_gen, "best_disc": self.model.best_disc}
            losses = self.model.reconstruction_losses
            entry |= {f"unit_losses/loss_{i}": loss for i, loss in enumerate(losses) if np.isfinite(loss)}
        history.append(entry)
        write_metrics(self.log_folder / "metrics.csv", history, self.units)
        board.log(entry, self.state["batch"])
        if self.opt.save and aurocs["validation"] > best:
            checkpoint.save(self.folder / "best.ckpt", "crn", **self.content())
        log.info("%s", entry)

    @property
    def units(self) -> int:
        """Columns of unit losses."""
        return self.opt.num_competitive_units if self.opt.model == "crn" else 0

    @torch.no_grad()
    def picture(self, x: torch.Tensor, name: str, board: Board) -> None:
        """Up to 8 images, what the model makes of them, and in the last row what it is scored by."""
        self.model.choose_best()
        x = x[:8]
        shown = self.model.eval().reconstruct(x)
        self.model.train()
        path = self.opt.image_output_path / f"version_{self.state['version']}_{name}.png"
        save_grid(path, [viewable(images, self.dataset.kind) for images in (x, *shown)])
        board.picture(path, self.state["batch"])


def train(opt: Namespace, dataset: Dataset, device: torch.device) -> Training:
    """Train to the end; last.ckpt, best.ckpt, metrics.csv and results.json are written on the way.

    Raises UserError where the loss is not finite, KeyboardInterrupt after a requested stop, when the state is saved.
    """
    # A folder that is not given will be the log's version_N, which no other run has.
    with locked(opt.checkpoint_path) if opt.save and opt.checkpoint_path else nullcontext():
        return _train(Training(opt, dataset, device))


def _train(training: Training) -> Training:
    opt, device = training.opt, training.device
    model, state, count = training.model, training.state, len(training.train_images)
    board = Board(opt, training.log_folder, state["wandb"])
    state["wandb"] = board.id
    say(
        f"training {opt.model} on {count} good images, {len(training.held_images)} held out for the threshold, "
        f"{opt.imsize} x {opt.imsize}: {training.batches} batches of {opt.batch_size} ({device}, {opt.precision})"
    )
    precision = partial(autocast, device, opt.precision)
    last_line = time.monotonic()
    with stop_on_request() as stop:
        ahead = progress(range(state["batch"], training.batches), "training")
        while state["batch"] < training.batches:
            started = time.monotonic()
            for optimizer in training.optimizers:
                optimizer.param_groups[0]["lr"] = training.learning_rate(state["epoch"])
            drawn = draw_epoch(opt, model, count, state["epoch"])
            left = drawn[state["step"] :][: training.batches - state["batch"]]
            shares = [distributed.weighted_share(batch) for batch, _ in left]  # under torchrun, of this process
            loaded = training.train_images.batches([rows for rows, _ in shares])
            for (_, pair), (_, weight), x in zip(left, shares, loaded):
                next(ahead)
                # Dropout of its own in every process and batch, so that a training goes on as it would have.
                torch.manual_seed(((opt.seed * 1_000_003 + state["batch"]) * 1_000_003 + distributed.rank()) % 2**63)
                x = x.to(device, non_blocking=True, memory_format=channels_last(device))
                try:
                    losses = model.training_step(x, training.optimizers, pair, training.scaler, precision, weight)
                except FloatingPointError:
                    raise training.stopped("the loss is") from None
                state["step"] += 1
                state["batch"] += 1
                state["calibration"] = None  # it belonged to earlier parameters
                if state["batch"] % opt.image_output_interval == 0:
                    name = f"epoch_{state['epoch']:04d}_batch_{state['batch']:06d}"
                    training.picture(x, name, board)
                    board.log(losses, state["batch"])
                    log.debug("batch %d: %s", state["batch"], losses)
                if distributed.anywhere(stop(), device):
                    break
            state["seconds"] += time.monotonic() - started
            finished = state["batch"] == training.batches
            if state["step"] == len(drawn) or finished:
                training.picture(x, f"epoch_{state['epoch']:04d}_end", board)
                if state["step"] == len(drawn):
                    state["epoch"], state["step"] = state["epoch"] + 1, 0
                if finished or state["epoch"] % opt.validation_interval == 0:
                    training.validate(board)
                    if finished or time.monotonic() - last_line >= 10:
                        last_line = time.monotonic()
                        _say_validation(state["history"][-1])
                if finished or time.monotonic() - training.last_saved >= opt.save_every:
                    training.save()
            if distributed.anywhere(stop(), device) and not finished:
                training.save()
                board.close()
                raise KeyboardInterrupt
    _write_results(training)
    board.close()
    return training


def _say_validation(entry: dict[str, Any]) -> None:
    found = in_words(entry["metrics/score"])
    if not np.isnan(entry["metrics/score"]):
        found += (
            f" (validation score), {entry['metrics/inference_roc_auc']:.4f} (inference score); best "
            f"{entry['metrics/max_roc_auc']:.4f}, chosen on the test set"
        )
    say(f"epoch {entry['epoch']}, batch {entry['batch']}: {found}")


def _write_results(training: Training) -> None:
    state, opt = training.state, training.opt
    last = state["history"][-1]
    best = max(state["history"], key=lambda entry: entry["metrics/score"])
    write_json(
        training.log_folder / "results.json",
        {
            "method": opt.model,
            "experiment": opt.experiment,
            "data": training.dataset.data,
            "batches": state["batch"],
            "last_auroc": last["metrics/score"],
            "best_auroc": best["metrics/score"],
            "best_auroc_batch": None if np.isnan(best["metrics/score"]) else best["batch"],
            "last_auroc_inference": last["metrics/inference_roc_auc"],
            "best_auroc_inference": max(entry["metrics/inference_roc_auc"] for entry in state["history"]),
            "best_chosen_on": "test set",
            "training_seconds": state["seconds"],
            "device": str(training.device),
            "checkpoints": str(training.folder) if opt.save else None,
            "notes": notes(),
            "settings": plain(opt),
            "versions": checkpoint.versions(),
        },
    )
    say(f"results: {training.log_folder}" + (f", checkpoints: {training.folder}" if opt.save else ""))


def _start_log(opt: Namespace) -> None:
    log.setLevel(opt.log_level.upper())
    log.propagate = False
    for handler in list(log.handlers):  # of an earlier call in the same process
        log.removeHandler(handler)
        handler.close()
    if not first_process():
        log.addHandler(logging.NullHandler())
        return
    try:
        opt.log_file.parent.mkdir(parents=True, exist_ok=True)
        handlers: list[logging.Handler] = [_LogFile(opt.log_file, encoding="utf-8", errors="backslashreplace")]
    except OSError as error:
        raise UserError(f"cannot write --log-file {opt.log_file}: {reason(error)}") from error
    if opt.log_stdout:
        handlers.append(logging.StreamHandler(sys.stdout))
    for handler in handlers:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        log.addHandler(handler)


@script(memory="a smaller --batch-size, --imsize or --ngf, or --precision bf16", several=True)
def main(argv: list[str] | None = None) -> None:
    """Data, then training or inference."""
    opt = parse(argv)
    set_max_pixels(opt.max_pixels)
    device = distributed.join(pick_device(opt.device, cpu=opt.cpu, deterministic=opt.deterministic))
    if opt.mode == "inference" and distributed.size() > 1:
        raise UserError("--mode inference does not support torchrun: start it with python")
    autocast(device, opt.precision)  # refuses what this device cannot do before images are read
    reuse_memory()
    _start_log(opt)
    words = sys.argv[1:] if argv is None else argv
    log.info("train.py %s", printable(shlex.join(words)))
    if opt.demo:
        with distributed.first_alone():
            ensure_data(opt.dataset, opt.dataset_path)
    limit = DEMO_IMAGES if opt.demo else None
    dataset = load_dataset(opt.dataset, opt.dataset_path, limit, trained_max_value(opt))
    opt.max_value = dataset.max_value
    paths = [path for item in dataset.train + dataset.held_out + dataset.test for path in item.paths]
    note_squeezed(paths, (opt.imsize, opt.imsize), "CRN takes squares, cut them into such first")
    if opt.mode == "inference":
        inference(opt, dataset, device)
        return
    try:
        train(opt, dataset, device)
    except KeyboardInterrupt:
        if not opt.save:
            say("stopped; nothing is saved (--save no)")
        elif opt.checkpoint_path and (opt.checkpoint_path / "last.ckpt").exists():
            place = [] if "checkpoint_path" in opt.given else ["--checkpoint-path", str(opt.checkpoint_path)]
            command = command_to_continue([*words, *place], opt.resume)
            say(f"stopped; what is saved is in {opt.checkpoint_path}. To continue: {command}")
        else:
            say("stopped before there was anything to save")
        raise


if __name__ == "__main__":
    sys.exit(main())
