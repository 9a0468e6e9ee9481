"""Scores of images, thresholds and verdicts, and the inference of train.py: tables and pictures of a whole data set."""

from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common import distributed, metrics
from common.checkpoint import versions
from common.cli import notes, progress, say
from common.files import UserError, locked, require_writable, using, write_csv, write_json
from common.images import image_size
from common.runtime import autocast, channels_last
from crn import report
from crn.options import SCORES, plain
from crn.training.dataset import Dataset, Images, Item, viewable
from crn.training.utils import Model, save_grid, save_picture, to_bytes


@torch.no_grad()
def score_batches(
    model: Model, images: Images, numbers: Sequence[int], batch_size: int, device: torch.device, title: str = ""
) -> Iterator[tuple[Sequence[int], Tensor, dict[str, Tensor]]]:
    """Of each batch of the images `numbers`: which they are, the prepared images (B, 3, H, W) and `model.scores`, in
    float32 and eval mode.

    title: of the progress shown. Raises UserError where a score is not finite: it ranks nowhere.
    """
    training = model.training
    model.eval()
    batches = [numbers[i : i + batch_size] for i in range(0, len(numbers), batch_size)]
    loaded = images.batches(batches)
    try:
        for batch, x in zip(progress(batches, title, hide=not title), loaded):
            x = x.to(device, non_blocking=True)
            yield batch, x, finite_scores(model, x)
    finally:
        model.train(training)


@torch.no_grad()
def finite_scores(model: Model, x: Tensor) -> dict[str, Tensor]:
    """`model.scores` of prepared images (B, 3, H, W). UserError where a score is not finite."""
    autocast(x.device, "fp32")  # in a training with tf32, too
    scored = model.scores(x)
    if not all(scored[name].isfinite().all() for name in SCORES):
        raise UserError("the scores are not finite: the model has diverged or an image holds huge values")
    return scored


def score_all(model: Model, images: Images, batch_size: int, device: torch.device) -> dict[str, np.ndarray]:
    """Both scores of all images, (N,), "map", the highest value of each image's difference map, and "median"."""
    rows = [torch.empty(0, 4, device=device)]
    rank_images = distributed.share(range(len(images)))  # under torchrun, each process scores its share
    for _, _, scored in score_batches(model, images, rank_images, batch_size, device):
        maps = scored["difference"].mean(dim=1).flatten(1)  # (B, H W)
        columns = [*(scored[name] for name in SCORES), maps.amax(dim=1), maps.median(dim=1).values]
        rows.append(torch.stack(columns, dim=1))  # (B, 4)
    return dict(zip((*SCORES, "map", "median"), distributed.gathered(torch.cat(rows).cpu().double().numpy()).T))


def aurocs_of(images: Images, scores: Mapping[str, np.ndarray]) -> dict[str, float]:
    """The image AUROC of either score, (N,) each."""
    return {name: metrics.image_auroc([item.label for item in images.items], scores[name]) for name in SCORES}


def validation_line(entry: Mapping[str, Any]) -> str:
    """What is printed of an entry of the training's history."""
    auroc = metrics.in_words(entry["metrics/score"])
    if not np.isnan(entry["metrics/score"]):
        best = f"best {entry['metrics/max_roc_auc']:.4f}, chosen on the test set"
        auroc += f" (validation score), {entry['metrics/inference_roc_auc']:.4f} (inference score); {best}"
    return f"epoch {entry['epoch']}, batch {entry['batch']}: {auroc}"


def thresholds_of(content: Mapping[str, Any], opt: Namespace, fpr: float, score: str) -> dict[str, Any] | None:
    """`common.metrics.thresholds` from the held-out good images of a checkpoint; None, and a line, without such, or
    where images are prepared in another way than those were: the scores do not compare."""
    if content.get("calibration") is None:
        say("no threshold, no verdicts: no good images were held out, or the training was not finished")
        return None
    with using(opt.model_input, "crn"):
        for name in ("dataset", "imsize", "antialias", "max_value"):
            if getattr(opt, name) != (trained := content["settings"][name]):
                say(f"no threshold, no verdicts: the good images held out for them were scored with --{name} {trained}")
                return None
        stored = content["calibration"]
        return metrics.thresholds(stored[score], stored["map"], fpr, stored.get("median", ()))


def inference(opt: Namespace, dataset: Dataset, model: Model, content: Mapping[str, Any], device: torch.device) -> None:
    """Score the test part, then the training part; content: of the model's file.

    Writes --anomaly-score-file, beside it the results as .json and results.json, and under --image-output-path for each
    image, under its path in the data set: inference/ with the image, what the model makes of it and their difference
    side by side, and diff/ with the difference at the image's own size. There the published v = mean over channels of
    |x - D(G(x))| - 1 is shown as (v + 1) / 2. With --report, a page beside it as .html. Nothing that is there already
    is deleted.
    """
    table, pictures = opt.anomaly_score_file, opt.image_output_path
    if table.is_dir():
        raise UserError(f"--anomaly-score-file {table} is a folder: give a file")
    for folder in (pictures / "inference", pictures / "diff", table.parent):
        require_writable(folder)
    model.to(device, memory_format=channels_last(device))
    threshold = thresholds_of(content, opt, opt.fpr, "inference")
    pixels = metrics.MaskedPixels() if any(item.mask for item in dataset.test) else None
    rows: list[list[Any]] = []
    unfinished = table.with_suffix(".unfinished.csv")
    header = ["file_name", "anomaly_score", "validation_score", "part", "label", "verdict"]
    with locked(table.parent):
        try:
            for part, items in {"test": dataset.test, "train": dataset.train}.items():
                images = Images(items, dataset.kind, opt.imsize, opt.antialias, opt.num_workers, limit_gib=0)
                title = f"scoring the {part} part"
                batches = score_batches(model, images, range(len(items)), opt.batch_size, device, title)
                for item, (x, shown, difference, *scores) in zip(items, _images_of(batches)):
                    rows.append([item.name, *scores, part, item.label, metrics.verdict_of(scores[0], threshold)])
                    _save_pictures(pictures, dataset.kind, item, x, shown, difference)
                    if pixels is not None and part == "test":
                        pixels.update(item.path, item.label, item.mask, difference)
        except BaseException:  # whatever ends this, the scores so far stay, under a name of their own
            write_csv(unfinished, header, rows)
            raise
        write_csv(table, header, rows)
        unfinished.unlink(missing_ok=True)
        tested = [row for row in rows if row[3] == "test"]
        labels, scores = np.array([row[4] for row in tested]), np.array([row[1] for row in tested])
        results = {
            "method": opt.model, "data": dataset.data, "trained_on": content.get("data"),
            "chosen_on": content.get("chosen_on"), "model": str(opt.model_input),
            "batches_trained": content.get("batch"), "score": "inference",
            **metrics.evaluate(labels, scores, threshold, pixels, [item.defect for item in dataset.test]),
            "image_auroc_validation": metrics.image_auroc(labels, [row[2] for row in tested]),
            "device": str(device), "settings": plain(opt), "versions": versions(), "notes": notes(),
        }  # fmt: skip
        for path in (table.with_suffix(".json"), table.with_name("results.json")):
            write_json(path, results)
        metrics.say_results(results, "inference score")
        say(f"results: {table}, {table.with_suffix('.json').name} and results.json, pictures in {pictures}")
        if opt.report:
            images = partial(Images, kind=dataset.kind, imsize=opt.imsize, antialias=opt.antialias, limit_gib=0)
            report.write(table.with_suffix(".html"), dataset, images, model, scores, results, device)


def _images_of(batches: Iterator[tuple[Sequence[int], Tensor, dict[str, Tensor]]]) -> Iterator[tuple]:
    """Of each image: what the network was given, what is shown for it, the map (h, w), and both scores."""
    for _, x, scored in batches:
        for row, image in enumerate(x):
            difference = scored["difference"][row].mean(dim=0)
            yield image, scored["shown"][row], difference, *(float(scored[name][row]) for name in SCORES)


def _save_pictures(folder: Path, kind: str, item: Item, x: Tensor, shown: Tensor, difference: Tensor) -> None:
    grey = (difference / 2).expand(3, -1, -1)  # (v + 1) / 2
    panels = [*viewable(torch.stack((x, shown)), kind), grey]
    save_grid(folder / "inference" / f"{item.name}.png", [torch.stack(panels)])
    difference = torch.from_numpy(metrics.upsample(grey[0], image_size(item.path)))
    save_picture(folder / "diff" / f"{item.name}.png", to_bytes(difference))
