"""Training with its validation, checkpoints and pictures, and the test of what was saved."""

import math
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from common import checkpoint, distributed
from common.checkpoint import Training
from common.cli import notes, progress, say
from common.files import UserError, plain, require_like, using, write_csv, write_json
from common.metrics import MaskedPixels, evaluate, image_auroc, in_words, say_results, thresholds, write_scores
from common.runtime import autocast
from riad.options import TRAINING
from riad.source import report, utils
from riad.source.agent import Agent, learning_rate
from riad.source.connector import make_optimizer
from riad.source.datamanager import DataSet, Images, Part
from riad.source.masks import content_keys

PATH_CKPT, STATE = "Checkpoint", "resume.pth"
LAST_EPOCH, LOWEST_L2 = "model_0_finepoch.pth", "model_1_best_loss.pth"
BEST = {"auroc": "model_2_best_auroc.pth", "val_loss": "model_2_best_val_loss.pth"}
CHOSEN_BY = {
    LAST_EPOCH: "no measure, the last epoch",
    LOWEST_L2: "lowest L2 loss in training",
    BEST["auroc"]: "highest AUROC on the validation half",
    BEST["val_loss"]: "lowest loss on the validation share of the good images",
}
LOSSES = ("loss", "l2", "ssim", "msgms")
# What the files of networks hold.
TRAINED = {"settings": {}, "model": {}, "data": "", "fingerprint": "", "channels": 0, "epoch": 0}
SAME_K = 8  # validation images in a row that are validated with one cell size, whatever the batch


def training(settings: Namespace, data: DataSet, agent: Agent) -> list[dict[str, Any]]:
    """Train for settings.epochs, or resume, and write checkpoints, history and pictures; returns the history.

    Raises KeyboardInterrupt, after saving, where the user stops it; UserError where the folder holds another training,
    or losses or parameters are not finite: what was saved before stays.
    """
    criterion, batches, device = data.criterion, -(-len(data.train) // settings.batch), agent.device
    optimizer = make_optimizer(settings.mode_optim, agent.network.parameters(), settings.lr, settings.weight_decay)
    path, per_batch = settings.output / PATH_CKPT / STATE, agent.steps_per_batch
    stored = state_to_resume(path, data, settings.batch, per_batch) if settings.resume else None
    training = Training(
        path, "riad", plain(vars(settings)), data.fingerprint, agent.network, [optimizer], device, seed=settings.seed,
        precision=settings.precision, save_every=settings.save_every, minutes=settings.minutes, shorter="--epochs 3",
        binding=TRAINING, stored=stored, otherwise="give another --output",
        data=data.data, channels=data.channels,
    )  # fmt: skip
    training.remedy = " (--lr)" + training.remedy
    board = start(training, settings.epochs, settings.figures_every > 0, data, agent)
    weight_l2, weight_msgms, weight_ssim = settings.weights
    for epoch in training.epochs(settings.epochs, batches):
        order = checkpoint.shuffled(len(data.train), settings.batch, settings.seed, epoch)
        for step in training.steps():
            agent.network.train()
            rows = torch.tensor(order[step])  # numbers of the batch's images
            # repo: a step of the optimizer for each slice of the masked images; paper: one for all n masks
            for number, (x, masks) in enumerate(agent.training_passes(data.train[rows], rows, epoch), start=1):
                trained = ((epoch * batches + step) * per_batch + number) / (batches * per_batch)  # epochs
                optimizer.param_groups[0]["lr"] = learning_rate(settings.mode_lr, settings.lr, trained)
                (x, share), (masks, _) = distributed.weighted_share(x), distributed.weighted_share(masks)
                with autocast(device, settings.precision):
                    outputs = agent.inpaint(x, masks)  # f(mask x)  (B, n, C, H, W)
                # repo: of each output; paper: of the sum over masks of (1 - mask) f(mask x), section 3.1
                l2, msgms, ssim = (share * value for value in agent.losses(x, outputs, masks))
                loss = weight_l2 * l2 + weight_msgms * msgms + weight_ssim * ssim  # section 3.3
                training.record(len(rows), loss=loss, l2=l2, ssim=ssim, msgms=msgms)
                optimizer.zero_grad()
                training.scaler.scale(loss).backward()
                training.scaler.step(optimizer)
                training.scaler.update()
        value, scores = validate(agent, data.validation, criterion, settings.weights, settings.batch_score)
        if not math.isfinite(value):
            raise training.diverged(f"the validation loss is {value}")
        training.finish_epoch(rate=optimizer.param_groups[0]["lr"], **{criterion: value})
        if training.over or (epoch + 1) % max(settings.epochs // 10, 1) == 0:
            entry = training.history[-1]
            say(f"epoch {epoch + 1:4d}: loss {entry['loss']:.5f}, validation {criterion} {value:.5f}")
        finish_epoch(training, settings.figures_every, data, agent, scores, board)
    return training.history


def state_to_resume(path: Path, data: DataSet, batch: int, steps_per_batch: int) -> dict[str, Any] | None:
    """What the training was saved with in `path`, None where it starts; UserError where it cannot go on."""
    output = path.parent.parent
    if not path.exists():
        if any(path.parent.glob("*.pth")) or (output / "result.json").exists():
            otherwise = "give another --output, or --resume no to replace them"
            raise UserError(f"{output} holds results that cannot be resumed: {otherwise}")
        return None
    stored = load(path)
    with using(path, "riad"):
        if "step" not in stored:  # of an older version
            total = len(data.train) * steps_per_batch
            seen = min(stored["batch"] * batch * steps_per_batch, total)
            sums = {name: value * total for name, value in stored["sums"].items()} | {"weight": float(seen)}
            stored |= {"step": stored["batch"], "sums": sums if seen else {}, "optimizer": [stored["optimizer"]]}
            stored["history"] = [{**entry, "seconds": entry["time"]} for entry in stored["history"]]
        names = (*LOSSES, "rate", data.criterion, "seconds")
        require_like(stored["history"], [dict.fromkeys(names, 0.0)], "history")
        if len(stored["history"]) != stored["epoch"]:
            raise ValueError(f"its history is of {len(stored['history'])} epochs, not {stored['epoch']}")
    return stored


def start(training: Training, epochs: int, figures: bool, data: DataSet, agent: Agent) -> Any:
    """Write what a training begins with; returns TensorBoard's writer, or None."""
    distributed.anywhere(False, agent.device)  # all processes have looked before the first one writes
    if not training.resumed:
        training.save()
    if training.epoch == training.step == 0:  # also where a kill came right after the first state
        save_network(training.path.with_name("base.pth"), agent.network, 0, about(training))
        if figures:
            utils.draw_masks(training.path.parent.parent / "results_tr", agent, data.train[:1])
    if distributed.rank() or training.epoch >= epochs:
        return None
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        say("tensorboard is not installed (pip install tensorboard): the curves go to results_tr/history.* only")
        return None
    return SummaryWriter(str(training.path.parent), purge_step=training.epoch + 1)


def finish_epoch(
    training: Training, figures_every: int, data: DataSet, agent: Agent, scores: np.ndarray | None, board: Any
) -> None:
    """Write networks, history and pictures of the last epoch; scores: of labelled validation images.

    This comes before the state is saved: a training killed in between comes here again with the same numbers.
    """
    history, criterion = seeds_history(training.history), data.criterion
    entry, folder, last = history[-1], training.path.parent.parent / "results_tr", training.over
    epoch = entry["epoch"]
    if not checkpoint.finite(agent.network):  # which may still give finite scores
        raise training.diverged("the parameters are not finite")
    for name in best_now(history, criterion) + [LAST_EPOCH] * (last or training.stopping):
        save_network(training.path.with_name(name), agent.network, epoch, about(training))
    write_csv(folder / "history.csv", list(entry), [[row[name] for name in entry] for row in history])
    if figures_every and (last or epoch % figures_every == 0):
        utils.loss_curves(folder / "history.png", history, criterion)
        picture, title = folder / f"gen/generation_{epoch:08d}.png", f"epoch {epoch}, test images"
        utils.draw_images(picture, agent, data.test, data.class_names, title)
        if scores is not None:
            picture, title = folder / f"gen/auroc_{epoch:08d}.png", f"epoch {epoch}, validation images"
            utils.violin(picture, data.validation.labels, scores, title)
    if board:
        for name in entry.keys() - {"epoch", "time"}:
            board.add_scalar(name, entry[name], epoch)
        board.flush()  # whatever ends the training


def about(training: Training) -> dict[str, Any]:
    """What the files of networks tell of their training."""
    return {"settings": training.settings, "fingerprint": training.fingerprint, **training.extra}


def save_network(path: Path, network: nn.Module, epoch: int, about: Mapping[str, Any], **content: Any) -> None:
    """Write the network after `epoch`, with what `about` tells of the training, and `content`."""
    kept = {name: about[name] for name in ("settings", "data", "fingerprint", "channels")}
    checkpoint.save(path, "riad", model=network.state_dict(), epoch=epoch, **kept, **content)


def load(path: Path) -> dict[str, Any]:
    """A checkpoint of ours; UserError where it is missing, damaged, or something else."""
    content = checkpoint.load(path, "riad", TRAINED)
    return {**content, "settings": {"max_value": 65535, **content["settings"]}}  # which older versions do not tell


def best_now(history: Sequence[Mapping[str, Any]], criterion: str) -> list[str]:
    """The files for which the last epoch is the best so far; ties go to the later one."""
    last, values = history[-1], [entry[criterion] for entry in history]
    names = [LOWEST_L2] if last["l2"] <= min(entry["l2"] for entry in history) else []
    return names + [BEST[criterion]] * (last[criterion] == (max if criterion == "auroc" else min)(values))


def seeds_history(history: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The history as the seed has it, "time" being seconds since the start."""
    return [
        {"epoch": row["epoch"], "time": row["seconds"], **{k: row[k] for k in row if k not in ("seconds", "time")}}
        for row in history
    ]


@torch.no_grad()
def validate(
    agent: Agent, part: Part, criterion: str, weights: Sequence[float], batch_score: int
) -> tuple[float, np.ndarray | None]:
    """The value that chooses the epoch, and with labels the scores it comes from.

    A loss is that of all images in eval mode, each SAME_K of which take the next cell size; their masks are the same in
    every epoch.
    """
    images, count = part.images, len(part.images)
    if criterion == "auroc":
        scores = score_all(agent, images, range(count), batch_score, "validating")
        return image_auroc(part.labels, scores), scores
    agent.network.eval()
    total = 0.0
    for number, first in enumerate(progress(range(0, count, SAME_K), "validating")):
        end, k = min(first + SAME_K, count), agent.list_k[number % len(agent.list_k)]
        for start in range(first, end, batch_score):
            batch = images[range(start, min(start + batch_score, end))]
            own, share = distributed.weighted_share(batch)
            x, masks = agent.prepare(own), agent.masks(content_keys(agent.seed, own.to(agent.device)), k)
            with autocast(agent.device, agent.precision):
                outputs = agent.inpaint(x, masks)
            loss = sum(weight * value for weight, value in zip(weights, agent.losses(x, outputs, masks)))
            total += distributed.mean_of(share * float(loss), agent.device) * len(batch)
    return total / count, None


def score_each(
    agent: Agent, images: Images, rows: Sequence[int], batch_score: int, title: str
) -> Iterator[tuple[int, np.ndarray]]:
    """Each row with its anomaly map (H, W); every process gets all of them."""
    size = batch_score * distributed.size()
    for start in progress(range(0, len(rows), size), title):
        batch = rows[start : start + size]
        own = distributed.share(batch)
        maps = agent.score(images[own if len(own) else batch[:1]])[1]  # all call the network equally often
        yield from zip(batch, distributed.gathered(maps[: len(own)].cpu().numpy()))


def score_all(agent: Agent, images: Images, rows: Sequence[int], batch_score: int, title: str) -> np.ndarray:
    """The score of each of the rows (N,): the maximum of its anomaly map."""
    return np.array([values.max() for _, values in score_each(agent, images, rows, batch_score, title)], np.float32)


def test(settings: Namespace, data: DataSet, agent: Agent, history: Sequence[Mapping[str, Any]]) -> None:
    """Score the test images with each saved network; writes results_te, results.json and, with the seed's names beside
    the common ones, result.json.

    The network that the validation images chose is the result; the others stand beside it. Stores the scores of the
    good validation images, from which thresholds come, in the checkpoints, with the settings that they depend on.
    """
    folder, best, part = settings.output / PATH_CKPT, BEST[data.criterion], data.test
    scored: dict[int, tuple] = {}  # by epoch: a network may have several names
    models: dict[str, dict[str, Any]] = {}
    distributed.anywhere(False, agent.device)  # the first process has written what all read
    for name in (LAST_EPOCH, LOWEST_L2, best):
        content = load(folder / name)
        epoch, chosen_by = content["epoch"], CHOSEN_BY[name]
        checkpoint.load_parameters(agent.network, content["model"], folder / name)
        if epoch not in scored:
            scored[epoch] = score_test(agent, data, settings.batch_score)
        calibration, medians, scores, pixels = scored[epoch]
        # One for images and pixels, since an image's score is its map's maximum.
        threshold = thresholds(calibration, calibration, settings.fpr, medians)
        # A test with another --smooth or --fpr gives other thresholds: score.py is to use the same.
        content["settings"] |= {"smooth": settings.smooth, "fpr": settings.fpr}
        save_network(folder / name, agent.network, epoch, content, calibration=calibration, medians=medians)
        kinds = [data.class_names[k] for k in part.classes]
        results = evaluate(part.labels, scores, threshold if name == best else None, pixels, kinds)
        good = scores[part.labels == 0]
        seeds = {"auroc": results["image_auroc"], "loss": float(good.mean()) if len(good) else math.nan}
        models[name] = {"epoch": epoch, "chosen_by": chosen_by, **seeds, **results}
        say(f"{name}, epoch {epoch} (chosen by: {chosen_by}): {in_words(results['image_auroc'])}")
        output, stem = settings.output / "results_te", Path(name).stem
        images = list(zip(part.names, kinds, part.labels))
        write_scores(output / f"test_{stem}.csv", images, {"score": scores}, threshold)
        if settings.figures_every and len(scores):
            utils.violin(output / f"auroc_{stem}.png", part.labels, scores, f"{stem}, test images")
            utils.draw_images(output / f"generation_{stem}.png", agent, part, data.class_names, f"{stem}, test images")
    # The best network is the one loaded last: results, scores and the seed's numbers are its.
    images = {"train": len(data.train), "validation": len(data.validation.images)}
    results |= {
        "images": images | results["images"], "epoch": epoch, "chosen_on": chosen_by, "trained_on": data.data,
        "data": data.data, "models": models, "history": seeds_history(history), "settings": plain(vars(settings)),
        "versions": checkpoint.versions(), "notes": notes(),
    }  # fmt: skip
    write_json(settings.output / "results.json", results)
    names = ("masking_mode", "disjoint_n", "nn", "ksize", "mode_optim", "mode_lr", "ngpu")
    seeds |= {
        "name_best": best, "select_norm": None if settings.dataset == "mvtec" else settings.select_norm,
        **{name: getattr(settings, name) for name in names}, "dim_h": settings.img_size, "dim_w": settings.img_size,
        "dim_c": data.channels, "learning_rate": settings.lr, "path_ckpt": PATH_CKPT, "device": str(agent.device),
        "filters": str([data.channels, *settings.filters]), "images": {**images, "test": len(part.labels)},
    }  # fmt: skip
    write_json(settings.output / "result.json", results | seeds)
    say_results(results, best)
    say(f"results: {settings.output / 'results.json'} and {settings.output / 'results_te'}")
    if settings.report:
        mvtec = settings.dataset == "mvtec"
        subject = settings.data_path.resolve().name if mvtec else f"digits, {settings.select_norm} is good"
        report.write(settings.output / "report.html", f"RIAD on {subject}", data, agent, scores, results | seeds)


def score_test(
    agent: Agent, data: DataSet, batch_score: int
) -> tuple[list[float], list[float], np.ndarray, MaskedPixels | None]:
    """Scores of the good validation images, the medians of their maps, the scores of the test images (N,), and these
    images' pixels where there are masks."""
    part, good = data.test, np.flatnonzero(data.validation.labels == 0).tolist()
    calibration, medians = [], []
    title = "scoring good validation images"
    for _, anomaly_map in score_each(agent, data.validation.images, good, batch_score, title):
        calibration.append(float(anomaly_map.max()))
        medians.append(float(np.median(anomaly_map)))
    pixels = MaskedPixels() if part.samples and any(sample.mask for sample in part.samples) else None
    scores = []
    for row, anomaly_map in score_each(agent, part.images, range(len(part.images)), batch_score, "testing"):
        scores.append(anomaly_map.max())
        if pixels:
            sample = part.samples[row]
            pixels.update(sample.path, sample.label, sample.mask, anomaly_map)
    return calibration, medians, np.array(scores, np.float32), pixels
