"""Training of the flow: data, forward, loss, backward, step; an evaluation after every sub_epochs epochs."""

import math
import time
from collections.abc import Callable
from typing import Any, NoReturn

import numpy as np
import torch

from common import checkpoint, distributed
from common.cli import progress, say, stop_on_request
from common.files import UserError
from common.images import same_images
from common.metrics import image_auroc, in_words
from common.runtime import autocast, channels_last, seed_all
from csflow.config import Config
from csflow.model import N_FEAT, CSFlow, get_cs_flow_model, load_training, save_model
from csflow.utils import Dataset, Features, get_loss, require_same_weights, run_flow


def train(
    config: Config, dataset: Dataset, train_set: Features, test_set: Features, extractor: str, device: torch.device
) -> tuple[CSFlow, dict[str, Any]]:
    """Train a flow, or continue a training of the same name, and save it in config.model_file.

    Returns the model in eval mode and what is stored beside it: "history" (one entry per evaluation), "calibration"
    (scores of the held-out good images), "extractor", "data", "epoch" and more. Raises UserError where a training of
    that name had other settings or images, or the loss is not finite.
    """
    config.extractor = extractor  # "auto" has been decided
    train_rows, calibration_rows = dataset.split(config)
    say(
        f"training on {len(train_rows)} good images of {config.class_name}, {len(calibration_rows)} held out for the "
        f"threshold ({extractor} features, {config.img_size[0]} x {config.img_size[1]}, {device})"
    )
    labels = [sample.label for sample in dataset.test]
    seed_all(config.seed)
    model = get_cs_flow_model(config, N_FEAT[extractor]).to(device, memory_format=channels_last(device))
    # fused: the same update in one pass over the parameters, five times as fast on a CPU
    optimizer = torch.optim.Adam(model.parameters(), config.lr_init, eps=1e-4, weight_decay=1e-5, fused=True)
    scaler = torch.amp.GradScaler(device.type, enabled=config.precision == "fp16")
    about = {
        "extractor": extractor,
        "weights": train_set.weights,
        "data": dataset.data,
        "fingerprint": dataset.fingerprint,
        "device": str(device),
        "history": [],
        "calibration": None,
        "seconds": 0.0,
        "epoch": 0,  # finished ones
        "step": 0,  # of the epoch after them
        "loss_sum": 0.0,
    }
    if config.resume and config.save_model and config.model_file.exists():
        stored = load_training(config.model_file)
        config.same_training(stored["settings"], config.model_file)
        if not same_images(stored["fingerprint"], dataset.fingerprint):
            raise UserError(
                f"{config.model_file} was trained on other images than {dataset.root} holds now: "
                "use another --modelname, or --resume False to train anew in its place"
            )
        steps, evaluations = -(-len(train_rows) // config.batch_size), stored["epoch"] // config.sub_epochs
        if stored["step"] > steps or len(stored["history"]) != evaluations:
            raise UserError(f"{config.model_file} is damaged: its epochs, steps and history do not fit together")
        require_same_weights(train_set, stored, config.model_file)
        checkpoint.load_parameters(model, stored["model"], config.model_file)
        checkpoint.load_optimizer(optimizer, stored["optimizer"], config.model_file)
        with checkpoint.using(config.model_file, "csflow"):
            checkpoint.load_scaler(scaler, stored["scaler"])
            about = {name: stored[name] for name in about} | {"device": str(device), "fingerprint": dataset.fingerprint}
        _say_continued(config, about["epoch"], about["step"])
    first_epoch, first_step = about["epoch"], about["step"]

    network = distributed.parallel(model)
    last_saved = time.monotonic()

    def save(epoch: int, step: int) -> None:
        nonlocal last_saved
        if not checkpoint.finite(model, optimizer):  # after a fine loss, the step may have spoiled them
            last = -(-len(train_rows) // config.batch_size)
            _stop("the parameters are not finite", epoch + bool(step), step or last, config)
        last_saved = time.monotonic()
        about.update(epoch=epoch, step=step)
        if config.save_model:
            states = {"optimizer": optimizer.state_dict(), "scaler": scaler.state_dict()}
            save_model(config.model_file, model, config, **states, **about)

    epochs = range(first_epoch, config.meta_epochs * config.sub_epochs)
    with stop_on_request() as stop:
        for epoch in progress(epochs, "training", hide=config.hide_tqdm_bar):
            started = time.monotonic()
            batches = _batches(train_rows, config, epoch)
            if epoch % config.sub_epochs == 0 and first_step == 0:
                about["loss_sum"] = 0.0
            for step in range(first_step, len(batches)):
                rows, weight = distributed.weighted_share(batches[step])
                features = [x.to(device) for x in train_set.batch(rows)]
                with autocast(device, config.precision):
                    z, log_det = network(features)
                loss = weight * get_loss(z, log_det)
                mean = distributed.mean_of(loss.item(), device)
                if not math.isfinite(mean):
                    _stop(f"the loss is {mean}", epoch + 1, step + 1, config)
                optimizer.zero_grad()
                scaler.scale(loss).backward()
                scaler.unscale_(optimizer)
                torch.nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
                scaler.step(optimizer)
                scaler.update()
                about["loss_sum"] += mean * len(batches[step])
                if distributed.anywhere(stop(), device):
                    about["calibration"] = None  # it belonged to the parameters of the last evaluation
                    save(epoch, step + 1)
                    raise KeyboardInterrupt
            first_step = 0
            about["seconds"] += time.monotonic() - started
            if (epoch + 1) % config.sub_epochs == 0:
                mean_loss = about["loss_sum"] / (len(train_rows) * config.sub_epochs)
                # In full precision, as in evaluate.py and score.py: scores and threshold belong together.
                evaluation, about["calibration"] = _evaluate(
                    model, config, train_set, test_set, labels, calibration_rows, device
                )
                about["history"].append({"epoch": epoch + 1, "train_loss": mean_loss, **evaluation})
                if config.verbose and _worth_a_line(epoch, config):
                    _say_evaluation(about["history"][-1], config)
                stopping = distributed.anywhere(stop(), device)
                if stopping or epoch + 1 == epochs.stop or time.monotonic() - last_saved >= config.save_every:
                    save(epoch + 1, 0)
                if stopping:
                    raise KeyboardInterrupt
    return model.eval(), about


def _batches(rows: list[int], config: Config, epoch: int) -> list[list[int]]:
    """The shuffled batches of an epoch, none dropped. They depend on seed and epoch alone, so that a training
    interrupted anywhere goes on with the very batches that are left."""
    generator = torch.Generator().manual_seed(config.seed * 1_000_003 + epoch)
    order = torch.randperm(len(rows), generator=generator)
    return [[rows[i] for i in batch] for batch in order.split(config.batch_size)]


def _evaluate(
    model: Callable,
    config: Config,
    train_set: Features,
    test_set: Features,
    labels: list[int],
    calibration_rows: list[int],
    device: torch.device,
) -> tuple[dict[str, float], dict[str, list[float]] | None]:
    """Losses and AUROC on the test part, and the scores of the held-out good images, from which thresholds come."""
    test = run_flow(model, test_set, range(len(labels)), config, device)
    good = test["loss"][np.array(labels) == 0]
    result = {
        "test_good_loss": float(good.mean()) if len(good) else math.nan,
        "auroc_std": image_auroc(labels, test["std"]),
        "auroc_mean": image_auroc(labels, test["mean"]),
    }
    if not calibration_rows:
        return result, None
    held = run_flow(model, train_set, calibration_rows, config, device)
    result["calibration_loss"] = float(held["loss"].mean())
    calibration = {name: held[name].tolist() for name in ("std", "mean")}
    calibration["map"] = held["map"].max(axis=(1, 2)).tolist()  # each image's most anomalous place
    return result, calibration


def _stop(what: str, epoch: int, step: int, config: Config) -> NoReturn:
    saved = f"; the last saved model ({config.model_file}) stays" if config.model_file.exists() else ""
    raise UserError(f"{what} at epoch {epoch}, step {step}: training stops{saved}. Try a lower --lr_init or --clamp")


def _worth_a_line(epoch: int, config: Config) -> bool:
    """At most about ten lines in all, however many evaluations there are."""
    number, last = (epoch + 1) // config.sub_epochs, config.meta_epochs
    return number == last or number % max(last // 10, 1) == 0


def _say_evaluation(entry: dict[str, float], config: Config) -> None:
    tested = "" if math.isnan(entry["test_good_loss"]) else f", {entry['test_good_loss']:.4f} on good test images"
    auroc = f"{in_words(entry[f'auroc_{config.score}'])} ({config.score})"
    say(f"epoch {entry['epoch']:4d}: loss {entry['train_loss']:.4f} on training images{tested}; {auroc}")


def _say_continued(config: Config, epoch: int, step: int) -> None:
    if epoch >= config.meta_epochs * config.sub_epochs:
        say(f"{config.model_file} is trained for {epoch} epochs already (--resume False trains it anew)")
    else:
        say(f"continuing {config.model_file} after epoch {epoch}" + (f", step {step}" if step else ""))
