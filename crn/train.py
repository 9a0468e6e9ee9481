"""Train CRN or DAGAN (--mode train), or score a data set with a trained model (--mode inference); --help lists every
option.

Training writes <log-dir>/version_N/{metrics.csv,results.json}, pictures to --image-output-path, and last.ckpt and
best.ckpt to --checkpoint-path. The same command resumes an interrupted training that has a --checkpoint-path.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common.cli import answer_early
from crn.options import parse

answer_early(__name__, parse)

import logging
import shlex
import time
from argparse import Namespace
from contextlib import nullcontext
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch

from common import checkpoint, distributed
from common.cli import note, notes, printable, resumable, say, script
from common.files import UserError, first_process, locked, naming, require_writable, write_json
from common.images import note_squeezed, set_max_pixels
from common.runtime import autocast, channels_last, pick_device, reuse_memory, seed_all
from crn.demo_data import ensure_data
from crn.inference import aurocs_of, inference, score_all, validation_line
from crn.options import DEMO_IMAGES, UNUSED, plain
from crn.training import utils
from crn.training.dataset import Dataset, Images, load_dataset, viewable
from crn.training.networks import create_optimizer, create_scheduler
from crn.training.statistics import average_gradients
from crn.training.utils import Model

log = logging.getLogger("crn")


class Parts(NamedTuple):
    """The images of a training."""

    train: Images
    held_out: Images
    test: Images


def split_calibration(count: int, share: float, seed: int, batch_size: int) -> tuple[list[int], list[int]]:
    """Numbers of the training images to train on, and of those held out to set the threshold of the verdicts.

    A share above 0 holds out at least one image. Raises UserError where fewer than a batch remain.
    """
    held = 0 if share == 0 else max(round(share * count), 1)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()
    if count - held < batch_size:
        remedy = f"--batch-size {count - held} or less" if count > held else "more images, or --calibration-share 0"
        raise UserError(
            f"{count} training images, {held} of them held out for the threshold (--calibration-share), are fewer than "
            f"a batch: use {remedy}"
        )
    return sorted(order[held:]), sorted(order[:held])


def split(dataset: Dataset, opt: Namespace) -> Parts:
    """The data set's training images, but for those held out, these with its own held-out ones, and its test images."""
    rows, held = split_calibration(len(dataset.train), opt.calibration_share, opt.seed, opt.batch_size)
    images = partial(Images, kind=dataset.kind, imsize=opt.imsize, antialias=opt.antialias, threads=opt.num_workers)
    held_out = [dataset.train[row] for row in held] + dataset.held_out
    return Parts(images([dataset.train[row] for row in rows]), images(held_out), images(dataset.test))


def plan(count: int, batch_size: int, training_steps: int, epochs: int | None, networks: int) -> tuple[int, int]:
    """Epochs, and batches in all, of a training on `count` images. training_steps counts the steps of all networks;
    epochs: None for training_steps / (count / batch_size) + 1, as published."""
    epochs = epochs or int(training_steps / (count / batch_size)) + 1
    return epochs, min(epochs * -(-count // batch_size), -(-training_steps // networks))


def start(
    opt: Namespace, dataset: Dataset, model: Model, optimizers: list[torch.optim.Optimizer], device: torch.device
) -> checkpoint.Training:
    """A training that begins, or resumes the one in --checkpoint-path; its folders are made."""
    last = opt.checkpoint_path / "last.ckpt" if opt.checkpoint_path else None
    stored = utils.read_training(last) if last and opt.resume and last.exists() else None
    training = checkpoint.Training(
        last, "crn", plain(opt), dataset.fingerprint, model, optimizers, device, seed=opt.seed,
        precision=opt.precision, save_every=opt.save_every, minutes=opt.minutes, shorter="--epochs 3", stored=stored,
        binding=utils.binding(opt),
        otherwise="give another --checkpoint-path", version=0, wandb=None, calibration=None, data=dataset.data, batch=0,
        bookkeeping={}, levels=model.networks[0].levels,
    )  # fmt: skip
    if stored:
        utils.set_bookkeeping(model, stored["bookkeeping"], last)
    if stored is None or stored["settings"].get("log_dir") != str(opt.log_dir):  # there, N may be another run's
        training.extra["version"] = utils.new_version(opt.log_dir)
    logs = opt.log_dir / f"version_{training.extra['version']}"
    training.history_file = logs / "metrics.csv"
    training.path = (opt.checkpoint_path or logs) / "last.ckpt" if opt.save else None
    if first_process():  # nothing of the others is written
        for folder in (logs, opt.image_output_path, *([training.path.parent] if opt.save else [])):
            require_writable(folder)
    return training


def train(opt: Namespace, images: Parts, kind: str, model: Model, training: checkpoint.Training, board: Any) -> None:
    """Train to the end; last.ckpt, best.ckpt, metrics.csv and pictures are written on the way. kind: of data set."""
    device, optimizers, scaler = training.device, training.optimizers, training.scaler
    count, steps = len(images.train), -(-len(images.train) // opt.batch_size)
    epochs, total = plan(count, opt.batch_size, opt.training_steps, opt.epochs, model.steps_per_batch)
    learning_rate = create_scheduler(opt.lr_scheduler, opt.lr, opt.lr_factor, opt.lr_steps, epochs)
    pictures, version = opt.image_output_path, f"version_{training.extra['version']}_epoch"
    length = f"{opt.minutes:g} minutes in" if opt.minutes else total
    say(
        f"training {opt.model} on {count} good images, {len(images.held_out)} held out for the threshold, "
        f"{opt.imsize} x {opt.imsize}: {length} batches of {opt.batch_size} ({device}, {opt.precision})"
    )
    said = time.monotonic()
    for epoch in training.epochs(epochs, steps, total):
        for optimizer in optimizers:
            optimizer.param_groups[0]["lr"] = learning_rate(epoch)
        batches = checkpoint.shuffled(count, opt.batch_size, opt.seed, epoch)[training.step :]
        shares = [distributed.weighted_share(rows) for rows in batches]  # under torchrun, of this process
        loaded = images.train.batches([rows for rows, _ in shares])
        for step, rows, (_, weight), x in zip(training.steps(), batches, shares, loaded):
            pair = model.draw_pair()  # the same in all processes, which have dropout of their own:
            torch.manual_seed(int(torch.randint(2**62, ())) + distributed.rank())
            x = x.to(device, non_blocking=True, memory_format=channels_last(device))  # data: (B, 3, H, W)
            for optimizer in optimizers:
                optimizer.zero_grad()
            means = {}
            for g, d in model.orders(pair):  # CRN: each of the two units is the generator once
                with autocast(device, opt.precision):
                    passes = model.passes(x, g, d)  # forward: G(x), D(G(x)); DAGAN: D(x), too
                losses = {name: weight * loss for name, loss in model.losses(x, *passes).items()}  # loss
                scaler.scale(losses["generator"]).backward()  # backward
                scaler.scale(losses["discriminator"]).backward()
                means[g, d] = training.record(len(rows), **losses)  # finite, before the step
            average_gradients(model.parameters())
            for unit in {*pair}:
                scaler.step(optimizers[unit])  # step
            scaler.update()
            model.finish_step(means)  # running statistics, which units are best

            batch = epoch * steps + step + 1
            training.extra |= {"bookkeeping": model.bookkeeping(), "batch": batch, "calibration": None}
            if batch % opt.image_output_interval == 0:
                path = pictures / f"{version}_{epoch:04d}_batch_{batch:06d}.png"
                save_reconstructions(path, model, x, kind)
                utils.log_to(board, batch, {f"losses/{name}": value for name, value in means[g, d].items()}, path)
                log.debug("batch %d: %s", batch, means)
        path = pictures / f"{version}_{epoch:04d}_end.png"
        save_reconstructions(path, model, x, kind)
        utils.log_to(board, batch, {}, path)
        if training.over or (epoch + 1) % opt.validation_interval == 0:
            entry = validate(training, model, images, opt.batch_size, epochs_done=epoch + (training.step == steps))
            utils.log_to(board, batch, entry)
            if training.over or time.monotonic() - said >= 10:
                said = time.monotonic()
                say(validation_line(entry))


@torch.no_grad()
def save_reconstructions(path: Path, model: Model, x: torch.Tensor, kind: str) -> None:
    """A picture of up to 8 images, what the model makes of them, and in the last row what it is scored by."""
    shown = model.eval().reconstruct(x[:8])
    model.train()
    utils.save_grid(path, [viewable(images, kind) for images in (x[:8], *shown)])


def validate(
    training: checkpoint.Training, model: Model, images: Parts, batch_size: int, epochs_done: int
) -> dict[str, Any]:
    """Score test and held-out images; returns the entry of history and table. Writes best.ckpt where it is the best."""
    if not checkpoint.finite(model, *training.optimizers):
        raise training.diverged("the parameters are not finite")
    test = score_all(model, images.test, batch_size, training.device)
    if len(images.held_out):
        held_out = score_all(model, images.held_out, batch_size, training.device)
        training.extra["calibration"] = {name: values.tolist() for name, values in held_out.items()}
    aurocs = aurocs_of(images.test, test)
    best = max((entry["metrics/max_roc_auc"] for entry in training.history), default=-1.0)
    values = {
        "epoch": epochs_done,
        "batch": training.extra["batch"],
        "metrics/score": aurocs["validation"],
        "metrics/max_roc_auc": max(aurocs["validation"], best),  # nan without good or defective test images
        "metrics/inference_roc_auc": aurocs["inference"],
        "metrics/traintime": training.seconds + time.monotonic() - training.started,
    }
    if model.name == "crn":
        values |= {"best_gen": model.best_gen, "best_disc": model.best_disc}
        for unit, loss in enumerate(model.reconstruction_losses):
            values[f"unit_losses/loss_{unit}"] = loss if np.isfinite(loss) else None  # of one that has not trained yet
    entry = training.finish_epoch(**values)
    if training.path and aurocs["validation"] > best:
        checkpoint.save(
            training.path.with_name("best.ckpt"), "crn", settings=training.settings, fingerprint=training.fingerprint,
            model=model.state_dict(), chosen_on="test set", **training.extra,
        )  # fmt: skip
    log.info("%s", entry)
    return entry


def write_results(opt: Namespace, training: checkpoint.Training) -> None:
    """results.json beside the table of the validations."""
    last, best = training.history[-1], max(training.history, key=lambda entry: entry["metrics/score"])
    folder, checkpoints = training.history_file.parent, training.path.parent if training.path else None
    results = {
        "method": opt.model, "experiment": opt.experiment, "data": training.extra["data"],
        "batches": training.extra["batch"], "last_auroc": last["metrics/score"], "best_auroc": best["metrics/score"],
        "best_auroc_batch": None if np.isnan(best["metrics/score"]) else best["batch"],
        "last_auroc_inference": last["metrics/inference_roc_auc"],
        "best_auroc_inference": max(entry["metrics/inference_roc_auc"] for entry in training.history),
        "best_chosen_on": "test set", "training_seconds": training.seconds, "device": str(training.device),
        "checkpoints": checkpoints, "notes": notes(), "settings": plain(opt), "versions": checkpoint.versions(),
    }  # fmt: skip
    write_json(folder / "results.json", results)
    say(f"results: {folder}" + (f", checkpoints: {checkpoints}" if checkpoints else ""))


class _LogFile(logging.FileHandler):
    """A file of messages that ends the program where it cannot be written, as every other file does."""

    def handleError(self, record: logging.LogRecord) -> None:
        raise UserError(f"cannot write --log-file {self.baseFilename}: {sys.exception()}") from sys.exception()


def start_log(path: Path, level: str, on_stdout: bool) -> None:
    """Append messages from `level` on to the file `path`, and show them too where asked."""
    log.setLevel(level.upper())
    log.propagate = False
    while log.handlers:  # of an earlier call in the same process
        log.handlers[0].close()
        log.removeHandler(log.handlers[0])
    if not first_process():
        log.addHandler(logging.NullHandler())
        return
    with naming(path, "choose another --log-file"):
        path.parent.mkdir(parents=True, exist_ok=True)
        log.addHandler(_LogFile(path, encoding="utf-8", errors="backslashreplace"))
    if on_stdout:
        log.addHandler(logging.StreamHandler(sys.stdout))
    for handler in log.handlers:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))


def train_on(dataset: Dataset, opt: Namespace, model: Model | None, device: torch.device, words: list[str]) -> None:
    """Everything of --mode train once there are data; model: of --model-input; words: the command line's."""
    images = split(dataset, opt)
    if model is None:
        seed_all(opt.seed)
        model = utils.make_model(opt)
    if opt.sync_bn:
        if device.type != "cuda":
            raise UserError("--sync-bn needs GPUs: on a CPU, batch norms are of each process's share")
        model = torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)
    model.train().to(device, memory_format=channels_last(device))
    optimizers = [create_optimizer(opt.optimizer, one.parameters(), opt.lr, opt.momentum) for one in model.networks]
    with locked(opt.checkpoint_path) if opt.save and opt.checkpoint_path else nullcontext():
        training = start(opt, dataset, model, optimizers, device)
        folder = training.path.parent if training.path else opt.log_dir
        if opt.save and opt.checkpoint_path is None:
            say(f"checkpoints go to {folder} (--checkpoint-path chooses)")
            words = [*words, "--checkpoint-path", str(folder)]
        logs, run = training.history_file.parent, training.extra["wandb"]
        resume = opt.resume and opt.checkpoint_path is not None
        with (
            resumable(folder / "last.ckpt", words, resume),
            utils.opened_board(opt.wandb, opt.experiment, logs, training.settings, run) as board,
        ):
            training.extra["wandb"] = board.id if board else None
            train(opt, images, dataset.kind, model, training, board)
        if not training.history or training.history[-1]["batch"] < training.extra["batch"]:
            validate(training, model, images, opt.batch_size, training.epoch)  # stopped here before, and cut short
            training.save()
        write_results(opt, training)


@script(memory="a smaller --batch-size, --imsize or --ngf, or --precision bf16", several=True)
def main(argv: list[str] | None = None) -> None:
    """Data, then training or inference."""
    opt = parse(argv)
    for name in sorted(opt.given & {*UNUSED}):
        note(f"--{name.replace('_', '-')} is accepted and has no effect, as in the original")
    set_max_pixels(opt.max_pixels)
    device = distributed.join(pick_device(opt.device, cpu=opt.cpu, deterministic=opt.deterministic))
    if opt.mode == "inference" and distributed.size() > 1:
        raise UserError("--mode inference does not support torchrun: start it with python")
    autocast(device, opt.precision)  # refuses what this device cannot do before images are read
    reuse_memory()
    start_log(opt.log_file, opt.log_level, opt.log_stdout)
    words = sys.argv[1:] if argv is None else argv
    log.info("train.py %s", printable(shlex.join(words)))
    if opt.demo:
        with distributed.first_alone():
            ensure_data(opt.dataset, opt.dataset_path)
    model, content = None, {}
    if opt.model_input:
        content = utils.read(opt.model_input)
        model, opt = utils.load_model(opt, content)
    limit = DEMO_IMAGES if opt.demo else None
    dataset = load_dataset(opt.dataset, opt.dataset_path, limit, opt.max_value)
    opt = Namespace(**{**vars(opt), "max_value": dataset.max_value})
    paths = [path for item in dataset.train + dataset.held_out + dataset.test for path in item.paths]
    note_squeezed(paths, (opt.imsize, opt.imsize), "CRN takes squares, cut them into such first")
    if opt.mode == "inference":
        inference(opt, dataset, model, content, device)
    else:
        train_on(dataset, opt, model, device, words)


if __name__ == "__main__":
    sys.exit(main())
