"""Training with its validation, checkpoints and pictures, and the test of what was saved."""

import math
import time
from argparse import Namespace
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common import checkpoint, distributed
from common.cli import notes, progress, say, stop_on_request
from common.files import UserError, write_csv, write_json
from common.images import same_images
from common.metrics import (
    MaskedPixels,
    average_precision,
    image_auroc,
    in_words,
    met_in_words,
    rates,
    thresholds,
    verdict_of,
)
from riad.source import options, report, utils
from riad.source.agent import Agent
from riad.source.datamanager import Chosen, DataSet, Images, Part
from riad.source.masks import content_keys, disjoint_masks

PATH_CKPT = "Checkpoint"
STATE = "resume.pth"
LAST_EPOCH, LOWEST_L2 = "model_0_finepoch.pth", "model_1_best_loss.pth"
BEST = {"auroc": "model_2_best_auroc.pth", "val_loss": "model_2_best_val_loss.pth"}
CHOSEN_BY = {
    LAST_EPOCH: "no measure, the last epoch",
    LOWEST_L2: "lowest L2 loss in training",
    BEST["auroc"]: "highest AUROC on the validation half",
    BEST["val_loss"]: "lowest loss on the validation share of the good images",
}
LOSSES = ("loss", "l2", "ssim", "msgms")
COLUMNS = ("epoch", "time", *LOSSES, "rate")
# What our files hold to be used, and what else for a training to be continued, as `checkpoint.require_like` reads it.
TRAINED = {
    "settings": dict.fromkeys((*options.TRAINING, "smooth", "fpr")), "model": {}, "data": "", "fingerprint": "",
    "channels": 0, "epoch": 0,
}  # fmt: skip
RESUMABLE = TRAINED | {
    "optimizer": {}, "scaler": {}, "steps": 0, "batch": 0, "sums": {}, "seconds": 0.0,
    "history": [{"epoch": 0, **dict.fromkeys(COLUMNS[1:], 0.0)}],
}  # fmt: skip
SAME_K = 8  # validation images in a row that are validated with one cell size, whatever the batch


def criterion(data: DataSet) -> str:
    """What chooses the epoch: "auroc" where the validation images are labelled, else "val_loss"."""
    return "auroc" if data.validation.labels.any() else "val_loss"


def training(settings: Namespace, data: DataSet, agent: Agent) -> list[dict[str, Any]]:
    """Train for settings.epochs, or continue, and write checkpoints, history and pictures; returns the history.

    Raises KeyboardInterrupt, after saving, where the user stops it; UserError where the folder holds another training,
    or the loss or the weights are not finite: what was saved before stays.
    """
    folder, chosen_by = settings.output / PATH_CKPT, criterion(data)
    about = {
        "settings": options.plain(settings),
        "data": data.data,
        "fingerprint": data.fingerprint,
        "channels": data.channels,
    }
    batches = -(-len(data.train) // settings.batch)
    place: dict[str, Any] = {"epoch": 0, "batch": 0, "sums": {}, "seconds": 0.0, "history": []}
    continuing = settings.resume and (folder / STATE).exists()
    if continuing:
        stored = load(folder / STATE, RESUMABLE)
        options.require_same_training(settings, stored["settings"], folder / STATE)
        if not same_images(stored["fingerprint"], data.fingerprint):
            raise UserError(f"{folder / STATE} was trained on other images: use another --output, or --resume False")
        agent.load_state(stored, folder / STATE)
        place = {name: stored[name] for name in place}
        whole = len(place["history"]) == place["epoch"] and place["batch"] < batches
        if not whole or bool(place["sums"]) != bool(place["batch"]):
            raise UserError(f"{folder / STATE} is damaged: its history, sums, epoch and batch disagree")
        with checkpoint.using(folder / STATE, "riad"):
            checkpoint.require_like(place["history"], [{chosen_by: 0.0}], "history")
            checkpoint.require_like(place["sums"], dict.fromkeys(LOSSES if place["batch"] else (), 0.0), "sums")
        trained = place["epoch"] >= settings.epochs
        say(
            f"{folder} is trained for {place['epoch']} epochs already"
            if trained
            else f"continuing {folder} {_at(place)}"
        )
        if place["epoch"] > settings.epochs:
            raise UserError(f"--epochs {settings.epochs}: fewer than it is trained for; --resume False trains anew")
    elif settings.resume and (any(folder.glob("*.pth")) or (settings.output / "result.json").exists()):
        raise UserError(
            f"{settings.output} holds results that cannot be continued: use another --output, or --resume False to "
            "replace them"
        )
    _wait_for_all(agent)  # to look before the first one writes
    if not continuing:
        checkpoint.save(folder / STATE, "riad", **agent.state(), **about, **place)
    if place["epoch"] == place["batch"] == 0:  # also where a kill came right after the first state
        save_network(folder / "base.pth", agent, 0, about)
    if settings.figures_every:
        draw_masks(settings, data, agent)
    shown = _first_of_each_class(data.test)
    ahead = progress(range(place["epoch"] * batches + place["batch"], settings.epochs * batches), "training")
    started = saved = time.monotonic()
    board = _tensorboard(folder, place["epoch"] + 1) if place["epoch"] < settings.epochs else None

    def save() -> None:
        nonlocal started, saved
        _require_finite(agent, place["epoch"])
        now = time.monotonic()
        place["seconds"] += now - started
        started = saved = now
        checkpoint.save(folder / STATE, "riad", **agent.state(), **about, **place)

    with stop_on_request() as stop:
        while place["epoch"] < settings.epochs:
            epoch = place["epoch"]
            order = _order(len(data.train), settings.seed, epoch)
            for number in range(place["batch"], batches):
                next(ahead)
                rows = order[number * settings.batch : (number + 1) * settings.batch]
                losses = agent.train_batch(data.train.batch(rows), rows, epoch, number)
                share = len(rows) / len(order)
                place["sums"] = {name: place["sums"].get(name, 0.0) + share * losses[name] for name in losses}
                place["batch"] = number + 1
                stopping = distributed.anywhere(stop(), agent.device)
                if place["batch"] < batches and (stopping or time.monotonic() - saved >= settings.save_every):
                    save()
                    if stopping:
                        raise KeyboardInterrupt
            _require_finite(agent, epoch)
            every = settings.figures_every
            picture = bool(every) and ((epoch + 1) % every == 0 or epoch + 1 == settings.epochs)
            value, scores = _validate(agent, data.validation, chosen_by, settings)
            entry = {
                "epoch": epoch + 1,
                "time": place["seconds"] + time.monotonic() - started,
                **place["sums"],
                "rate": agent.optimizer.param_groups[0]["lr"],
                chosen_by: value,
            }
            history = [*place["history"], entry]
            place.update(epoch=epoch + 1, batch=0, sums={}, history=history)
            stopping = distributed.anywhere(stop(), agent.device)
            # Before the state: a training killed in between comes here again with the same numbers.
            for name in _best_now(history, chosen_by) + [LAST_EPOCH] * (stopping or epoch + 1 == settings.epochs):
                save_network(folder / name, agent, epoch + 1, about)
            _write_history(settings.output / "results_tr", history, chosen_by, picture)
            if picture:
                _draw_epoch(settings, data, agent, shown, scores, epoch + 1)
            if board:
                for name in entry.keys() - {"epoch", "time"}:
                    board.add_scalar(name, entry[name], epoch + 1)
                board.flush()  # whatever ends the training
            if _worth_a_line(epoch, settings.epochs):
                say(f"epoch {epoch + 1:4d}: loss {entry['loss']:.5f}, validation {chosen_by} {value:.5f}")
            if stopping or epoch + 1 == settings.epochs or time.monotonic() - saved >= settings.save_every:
                save()
            if stopping:
                raise KeyboardInterrupt
    if board:
        board.close()
    return place["history"]


def save_network(path: Path, agent: Agent, epoch: int, about: Mapping[str, Any], **content: Any) -> None:
    """Write the network after `epoch`, with what `about` tells of the training, and `content`."""
    kept = {name: about[name] for name in ("settings", "data", "fingerprint", "channels")}
    checkpoint.save(path, "riad", model=agent.network.state_dict(), epoch=epoch, **kept, **content)


def _wait_for_all(agent: Agent) -> None:
    """Of several processes, each goes on when all have come here."""
    distributed.anywhere(False, agent.device)


def _require_finite(agent: Agent, epoch: int) -> None:
    """After a fine loss, the step may have spoiled the weights: those are not saved."""
    if not checkpoint.finite(agent.network, agent.optimizer):
        raise UserError(
            f"the weights are not finite in epoch {epoch + 1}: training stops, what is saved stays. Try a lower --lr, "
            "or --precision fp32"
        )


def _at(place: dict[str, Any]) -> str:
    return f"after epoch {place['epoch']}" + (f", batch {place['batch']}" if place["batch"] else "")


def _order(count: int, seed: int, epoch: int) -> Tensor:
    """The images' order depends on seed and epoch alone, so that a training interrupted anywhere goes on with the very
    batches that are left."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch))


def _best_now(history: list[dict[str, Any]], chosen_by: str) -> list[str]:
    """The files for which the last epoch is the best so far; ties go to the later one."""
    last = history[-1]
    names = [LOWEST_L2] if last["l2"] <= min(entry["l2"] for entry in history) else []
    values = [entry[chosen_by] for entry in history]
    if last[chosen_by] == (max(values) if chosen_by == "auroc" else min(values)):
        names.append(BEST[chosen_by])
    return names


def _worth_a_line(epoch: int, epochs: int) -> bool:
    return epoch + 1 == epochs or (epoch + 1) % max(epochs // 10, 1) == 0


def _tensorboard(folder: Path, epoch: int) -> Any:
    """A TensorBoard writer of the first process, beginning at `epoch`, or None where tensorboard is not installed."""
    if distributed.rank():
        return None
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        say("tensorboard is not installed (pip install tensorboard): the curves go to results_tr/history.* only")
        return None
    return SummaryWriter(str(folder), purge_step=epoch)


def _validate(agent: Agent, part: Part, chosen_by: str, settings: Namespace) -> tuple[float, np.ndarray | None]:
    """The value that chooses the epoch, and with labels the scores it comes from."""
    if chosen_by == "auroc":
        scores = score_all(agent, part.images, settings, "validating")
        return image_auroc(part.labels, scores), scores
    total = 0.0
    for number, first in enumerate(progress(range(0, len(part.images), SAME_K), "validating")):
        rows, k = range(first, min(first + SAME_K, len(part.images))), settings.list_k[number % len(settings.list_k)]
        for start in range(0, len(rows), settings.batch_score):
            images = part.images.batch(rows[start : start + settings.batch_score])
            total += agent.validation_loss(images, k) * len(images)
    return total / len(part.images), None


def score_batches(agent: Agent, images: Images, settings: Namespace, title: str) -> Iterator[tuple[int, Tensor]]:
    """(first row, anomaly maps (B, H, W) on the CPU) of one batch after the other; every process gets all of them."""
    size = settings.batch_score * distributed.size()
    for start in progress(range(0, len(images), size), title):
        rows = range(start, min(start + size, len(images)))
        own = distributed.share(rows)
        maps = agent.score(images.batch(own or rows[:1]))[1]  # all call the network equally often
        yield start, torch.from_numpy(distributed.gathered(maps[: len(own)].cpu().numpy()))


def score_all(agent: Agent, images: Images, settings: Namespace, title: str) -> np.ndarray:
    """Each image's score (N,): the maximum of its anomaly map."""
    return np.concatenate([maps.amax(dim=(1, 2)).numpy() for _, maps in score_batches(agent, images, settings, title)])


def _write_history(folder: Path, history: list[dict[str, Any]], chosen_by: str, picture: bool) -> None:
    columns = [*COLUMNS, chosen_by]
    write_csv(folder / "history.csv", columns, [[entry[name] for name in columns] for entry in history])
    if picture:
        utils.loss_curves(folder / "history.png", history, chosen_by)


def _first_of_each_class(part: Part) -> list[int]:
    return [int(np.flatnonzero(part.classes == number)[0]) for number in np.unique(part.classes)][:12]


def _draw_epoch(
    settings: Namespace, data: DataSet, agent: Agent, shown: list[int], scores: np.ndarray | None, epoch: int
) -> None:
    folder = settings.output / "results_tr/gen"
    if shown:
        _draw_images(folder / f"generation_{epoch:08d}.png", data, agent, shown, f"epoch {epoch}, test images")
    if scores is not None:
        title = f"epoch {epoch}, validation images"
        utils.violin(folder / f"auroc_{epoch:08d}.png", data.validation.labels, scores, title)


def _draw_images(path: Path, data: DataSet, agent: Agent, rows: list[int], title: str) -> None:
    images = data.test.images.batch(rows)
    reconstructions, maps = agent.score(images)
    x = agent.prepare(images)
    x = x / 2 + 0.5 if agent.settings.algorithm == "paper" else x
    pictures = [value.permute(0, 2, 3, 1).cpu().numpy() for value in (x, reconstructions)]
    captions = [data.class_names[data.test.classes[row]] for row in rows]
    utils.generation(path, *pictures, maps.cpu().numpy(), captions, title)


def draw_masks(settings: Namespace, data: DataSet, agent: Agent) -> None:
    """Draw the masks of the first training image, and what they leave of it."""
    images = data.train.batch([0])
    keys = content_keys(settings.seed, images.to(agent.device))
    x = agent.prepare(images)
    shown = x / 2 + 0.5 if settings.algorithm == "paper" else x
    masks, masked = [], []
    for k in settings.list_k:
        mask = disjoint_masks(keys, agent.size, k, settings.disjoint_n)[0].cpu()  # (n, H, W)
        masks.append((f"k = {k}", list(mask[:12].numpy())))
        values = (shown[0].cpu() * mask[:12, None]).permute(0, 2, 3, 1).numpy()
        masked.append((f"k = {k}", [np.squeeze(value) for value in values]))
    captions = [f"mask {number + 1}" for number in range(min(settings.disjoint_n, 12))]
    utils.grid(settings.output / "results_tr/masks.png", masks, "disjoint masks (black: hidden)", captions)
    utils.grid(settings.output / "results_tr/masked.png", masked, "masked inputs", captions)


def load(path: Path, example: Mapping[str, Any] = TRAINED) -> dict[str, Any]:
    """A checkpoint of ours; UserError where it is missing, damaged, or not like `example`."""
    content = checkpoint.load(path, "riad")
    with checkpoint.using(path, "riad"):
        content["settings"] = {"max_value": 65535, **content["settings"]}  # which older versions do not tell
        checkpoint.require_like(content, example)
    return content


def test(settings: Namespace, data: DataSet, agent: Agent, history: list[dict[str, Any]]) -> dict[str, Any]:
    """Score the test images with each saved network; writes results_te and result.json, returns what is in the latter.

    The network that the validation images chose is the result; the others stand beside it. Stores the scores of the
    good validation images, from which thresholds come, in the checkpoints, with the settings that they depend on.
    """
    folder, chosen_by = settings.output / PATH_CKPT, criterion(data)
    found: dict[str, dict[str, Any]] = {}
    _wait_for_all(agent)  # until the first one has written what all read
    for name in (LAST_EPOCH, LOWEST_L2, BEST[chosen_by]):
        content = load(folder / name)
        checkpoint.load_parameters(agent.network, content["model"], folder / name)
        entry = next((other for other in found.values() if other["epoch"] == content["epoch"]), None)
        if entry is None:  # else this network was tested under another name
            calibration = _calibrate(agent, data.validation, settings)
            scores, pixels = _score_test(agent, data.test, settings)
            entry = {
                "epoch": content["epoch"],
                "scores": scores,
                "pixels": pixels,
                "calibration": calibration,
                # One for images and pixels, since an image's score is its map's maximum.
                "threshold": thresholds(calibration, calibration, settings.fpr),
            }
        # A test with another --smooth or --fpr gives other thresholds: score.py is to use the same.
        about = {**content, "settings": {**content["settings"], "smooth": settings.smooth, "fpr": settings.fpr}}
        save_network(folder / name, agent, content["epoch"], about, calibration=entry["calibration"])
        found[name] = entry
        _write_test(settings.output / "results_te", name, data, entry, agent)
    best = found[BEST[chosen_by]]
    result = {
        "name_best": BEST[chosen_by],
        **_measures(data.test, best),
        "select_norm": None if settings.dataset == "mvtec" else settings.select_norm,
        **{name: getattr(settings, name) for name in ("masking_mode", "disjoint_n", "nn")},
        "dim_h": settings.img_size,
        "dim_w": settings.img_size,
        "dim_c": data.channels,
        "ksize": settings.ksize,
        "mode_optim": settings.mode_optim,
        "learning_rate": settings.lr,
        "mode_lr": settings.mode_lr,
        "path_ckpt": PATH_CKPT,
        "ngpu": settings.ngpu,
        "device": str(agent.device),
        "filters": str([data.channels, *settings.filters]),
        "data": data.data,
        "images": {"train": len(data.train), "validation": len(data.validation.images), "test": len(data.test.images)},
        "models": {
            name: {"epoch": entry["epoch"], "chosen_by": CHOSEN_BY[name], **_measures(data.test, entry)}
            for name, entry in found.items()
        },
        "threshold": rates(best["threshold"], data.test.labels, best["scores"]),
        "history": history,
        "settings": options.plain(settings),
        "versions": checkpoint.versions(),
        "notes": notes(),
    }
    write_json(settings.output / "result.json", result)
    for name, entry in result["models"].items():
        more = f", pixel AUROC {entry['pixel_auroc']:.4f}, AUPRO {entry['aupro']:.4f}" if "aupro" in entry else ""
        say(f"{name}, epoch {entry['epoch']} (chosen by: {entry['chosen_by']}): {in_words(entry['auroc'])}{more}")
    met = result["threshold"]
    say(
        f"threshold {met['image']:.4g} for a false-positive rate of {met['promised_fpr']:.2g}, from {met['images']} "
        f"good validation images{met_in_words(met)}"
    )
    say(f"results: {settings.output / 'result.json'} and {settings.output / 'results_te'}")
    if settings.report:
        report.write(settings, data, agent, best["scores"], result)  # the best network is the one loaded last
    return result


def _calibrate(agent: Agent, part: Part, settings: Namespace) -> list[float]:
    """Scores of the good validation images."""
    good = Chosen(part.images, np.flatnonzero(part.labels == 0).tolist())
    return score_all(agent, good, settings, "scoring good validation images").tolist()


def _score_test(agent: Agent, part: Part, settings: Namespace) -> tuple[np.ndarray, dict[str, float]]:
    """Scores (N,), and pixel metrics where there are masks."""
    with_masks = part.samples and any(sample.mask for sample in part.samples)
    pixels, scores = MaskedPixels(), [np.empty(0, np.float32)]
    for start, maps in score_batches(agent, part.images, settings, "testing"):
        scores.append(maps.amax(dim=(1, 2)).numpy())
        for sample, anomaly_map in zip(part.samples[start : start + len(maps)] if with_masks else [], maps):
            pixels.update(sample.path, sample.label, sample.mask, anomaly_map)
    return np.concatenate(scores), pixels.compute() if with_masks else {}


def _measures(part: Part, entry: dict[str, Any]) -> dict[str, Any]:
    scores = entry["scores"]
    return {
        "auroc": image_auroc(part.labels, scores),
        "loss": float(scores[part.labels == 0].mean()) if (part.labels == 0).any() else math.nan,
        "average_precision": average_precision(part.labels, scores),
        **entry["pixels"],
    }


def _write_test(folder: Path, name: str, data: DataSet, entry: dict[str, Any], agent: Agent) -> None:
    part, stem = data.test, Path(name).stem
    rows = [
        [label, score, data.class_names[number], image, verdict_of(score, entry["threshold"])]
        for label, score, number, image in zip(part.labels, entry["scores"], part.classes, part.names)
    ]
    write_csv(folder / f"test_{stem}.csv", ["label", "score", "class", "image", "verdict"], rows)
    if not agent.settings.figures_every or not len(part.labels):
        return
    utils.violin(folder / f"auroc_{stem}.png", part.labels, entry["scores"], f"{stem}, test images")
    _draw_images(folder / f"generation_{stem}.png", data, agent, _first_of_each_class(part), f"{stem}, test images")
