"""Training of the flow: data, forward, loss, backward, step; an evaluation after every sub_epochs epochs."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from common import distributed
from common.checkpoint import Training, shuffled
from common.cli import say
from common.metrics import image_auroc, in_words
from common.runtime import autocast
from csflow.model import CSFlow
from csflow.utils import Dataset, Features, get_loss, run_flow


def train(
    training: Training,
    dataset: Dataset,
    train_set: Features,
    test_set: Features,
    rows: Sequence[int],
    held_out: Sequence[int],
    *,
    batch_size: int,
    epochs: int,
    sub_epochs: int,
    max_grad_norm: float,
    precision: str,
    score: str = "std",
    verbose: bool = True,
) -> None:
    """Train the flow of `training` on the images `rows` of `train_set`; its history has an entry per evaluation.

    held_out: the images of `train_set` whose scores set the threshold, kept in training.extra["calibration"].
    """
    network, device, scaler = distributed.parallel(training.model), training.device, training.scaler
    (optimizer,) = training.optimizers
    for epoch in training.epochs(epochs, -(-len(rows) // batch_size)):
        batches = shuffled(len(rows), batch_size, training.seed, epoch)
        training.extra["calibration"] = None  # the last evaluation's belongs to its parameters
        for step in training.steps():
            batch, weight = distributed.weighted_share([rows[i] for i in batches[step]])
            x = [x_s.to(device) for x_s in train_set.batch(batch)]  # scale s: (B, C, H / 32 / 2^s, W / 32 / 2^s)
            with autocast(device, precision):
                z, log_det = network(x)  # equations 2 and 3
            loss = weight * get_loss(z, log_det)  # equation 6
            training.record(len(batches[step]), train_loss=loss)
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(training.model.parameters(), max_grad_norm)
            scaler.step(optimizer)
            scaler.update()
        evaluations, rest = divmod(epoch + 1, sub_epochs)
        if rest == 0 or training.over:
            measured, training.extra["calibration"] = _evaluate(
                training.model, dataset, train_set, test_set, held_out, batch_size
            )
            entry = training.finish_epoch(**measured)
            if verbose and (training.over or evaluations % max(epochs // sub_epochs // 10, 1) == 0):
                _say_evaluation(entry, score)


def _evaluate(
    model: CSFlow,
    dataset: Dataset,
    train_set: Features,
    test_set: Features,
    held_out: Sequence[int],
    batch_size: int,
) -> tuple[dict[str, float], dict[str, list[float]] | None]:
    """Losses and AUROC on the test part, and the scores of the held-out good images, from which thresholds come.

    In full precision, as in evaluate.py and score.py: scores and threshold belong together.
    """
    labels = np.array([sample.label for sample in dataset.test])
    test = run_flow(model, test_set, range(len(labels)), batch_size)
    good = test["loss"][labels == 0]
    measured = {
        "test_good_loss": float(good.mean()) if len(good) else math.nan,
        "auroc_std": image_auroc(labels, test["std"]),
        "auroc_mean": image_auroc(labels, test["mean"]),
    }
    if not held_out:
        return measured, None
    held = run_flow(model, train_set, held_out, batch_size)
    measured["calibration_loss"] = float(held["loss"].mean())
    calibration = {name: held[name].tolist() for name in ("std", "mean")}
    calibration["map"] = held["map"].max(axis=(1, 2)).tolist()  # each image's most anomalous place
    calibration["median"] = np.median(held["map"], axis=(1, 2)).tolist()  # where overlays begin
    return measured, calibration


def _say_evaluation(entry: dict[str, Any], score: str) -> None:
    tested = "" if math.isnan(entry["test_good_loss"]) else f", {entry['test_good_loss']:.4f} on good test images"
    auroc = f"{in_words(entry[f'auroc_{score}'])} ({score})"
    say(f"epoch {entry['epoch']:4d}: loss {entry['train_loss']:.4f} on training images{tested}; {auroc}")
