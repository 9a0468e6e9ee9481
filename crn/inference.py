"""Scores of images, thresholds and verdicts, and the inference of train.py: tables and pictures of a whole data set."""

from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common import distributed
from common.checkpoint import using, versions
from common.cli import notes, progress, say
from common.files import UserError, require_writable, write_csv, write_json
from common.images import image_size
from common.metrics import MaskedPixels, image_auroc, in_words, rates, thresholds, upsample, verdict_of
from common.runtime import autocast, channels_last
from crn import report
from crn.options import SCORES, plain
from crn.training.dataset import Dataset, Images, Item, viewable
from crn.training.utils import Model, load_model, save_grid, save_picture, to_bytes


@torch.no_grad()
def score_batches(
    model: Model,
    images: Images,
    numbers: Sequence[int],
    batch_size: int,
    device: torch.device,
    title: str | None = None,
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
        for batch, x in zip(progress(batches, title or "", hide=title is None), loaded):
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
        raise UserError("the scores are not finite: the model is diverged or an image holds huge values")
    return scored


def score_all(model: Model, images: Images, batch_size: int, device: torch.device) -> dict[str, np.ndarray]:
    """Both scores of all images, (N,), and "map", the highest value of each image's difference map."""
    rows = []
    # Under torchrun, each process scores its part.
    own = distributed.share(range(len(images)))
    for _, _, scored in score_batches(model, images, own, batch_size, device):
        highest = scored["difference"].mean(dim=1).flatten(1).amax(dim=1)
        rows.append(torch.stack([*(scored[name] for name in SCORES), highest], dim=1))  # (B, 3)
    found = torch.cat([torch.empty(0, 3, device=device), *rows]).cpu().double().numpy()
    return dict(zip((*SCORES, "map"), distributed.gathered(found).T))


def thresholds_of(about: Mapping[str, Any], opt: Namespace, fpr: float, score: str) -> dict[str, Any] | None:
    """`common.scoring.thresholds` from the held-out good images of the checkpoint; None, and a line, without such, or
    where images are prepared in another way than those were: the scores do not compare."""
    calibration = about.get("calibration")
    if calibration is None:
        say("no threshold, no verdicts: no good images were held out, or the training was not finished")
        return None
    for name in ("dataset", "imsize", "antialias", "max_value"):
        if getattr(opt, name) != (trained := about["settings"][name]):
            say(f"no threshold, no verdicts: the good images held out for them were scored with --{name} {trained}")
            return None
    with using(opt.model_input, "crn"):
        return thresholds(calibration[score], calibration["map"], fpr)


def inference(opt: Namespace, dataset: Dataset, device: torch.device) -> dict[str, Any]:
    """Score the test part, then the training part with the model in opt.model_input; returns the results.

    Writes --anomaly-score-file, beside it the results as .json, and under --image-output-path for each image, under its
    path in the data set: inference/ with the image, what the model makes of it and their difference side by side, and
    diff/ with the difference at the image's own size. There the published v = mean over channels of |x - D(G(x))| - 1
    is shown as (v + 1) / 2. With --report, a page beside it as .html. Nothing that is there already is deleted.
    """
    parts = {"test": dataset.test, "train": dataset.train}
    for folder in (opt.image_output_path / "inference", opt.image_output_path / "diff", opt.anomaly_score_file.parent):
        require_writable(folder)
    if opt.anomaly_score_file.is_dir():
        raise UserError(f"--anomaly-score-file {opt.anomaly_score_file} is a folder: give a file")
    model, about = load_model(opt)
    model.to(device, memory_format=channels_last(device))
    threshold = thresholds_of(about, opt, opt.fpr, "inference")
    rows: list[list[Any]] = []
    pixels = MaskedPixels() if any(item.mask for item in dataset.test) else None
    table = unfinished = opt.anomaly_score_file.with_suffix(".unfinished.csv")
    try:
        for part, items in parts.items():
            images = Images(items, dataset.kind, opt.imsize, opt.antialias, opt.num_workers, limit_gib=0)
            numbers, title = range(len(items)), f"scoring the {part} part"
            for batch, x, scored in score_batches(model, images, numbers, opt.batch_size, device, title):
                for row, index in enumerate(batch):
                    item = items[index]
                    score, other = (float(scored[name][row]) for name in SCORES)
                    rows.append([item.name, score, other, part, item.label, verdict_of(score, threshold)])
                    difference = scored["difference"][row].mean(dim=0)  # (h, w)
                    _save_pictures(opt, dataset.kind, item, x[row], scored["shown"][row], difference)
                    if pixels is not None and part == "test":
                        pixels.update(item.path, item.label, item.mask, difference)
        table = opt.anomaly_score_file
    finally:  # whatever ends this, the scores so far stay, under a name of their own
        header = ["file_name", "anomaly_score", "validation_score", "part", "label", "verdict"]
        write_csv(table, header, rows)
    unfinished.unlink(missing_ok=True)
    results = _results(opt, dataset, about, rows, threshold, pixels, device)
    path = opt.anomaly_score_file.with_suffix(".json")
    write_json(path, results)
    say(
        f"{in_words(results['image_auroc'])} (inference score), {in_words(results['image_auroc_validation'])} "
        f"(validation score): {opt.anomaly_score_file}, {path.name}, pictures in {opt.image_output_path}"
    )
    if opt.report:
        report.write(opt, dataset, model, [row[1] for row in rows if row[3] == "test"], results, device)
    return results


def _save_pictures(opt: Namespace, kind: str, item: Item, x: Tensor, shown: Tensor, difference: Tensor) -> None:
    grey = (difference / 2).expand(3, -1, -1)  # (v + 1) / 2
    panels = [*viewable(torch.stack((x, shown)), kind), grey]
    save_grid(opt.image_output_path / "inference" / f"{item.name}.png", [torch.stack(panels)])
    difference = torch.from_numpy(upsample(grey[0], image_size(item.path)))
    save_picture(opt.image_output_path / "diff" / f"{item.name}.png", to_bytes(difference))


def _results(
    opt: Namespace,
    dataset: Dataset,
    about: Mapping[str, Any],
    rows: Sequence[Sequence[Any]],
    threshold: Mapping[str, Any] | None,
    pixels: MaskedPixels | None,
    device: torch.device,
) -> dict[str, Any]:
    tested = [row for row in rows if row[3] == "test"]
    labels, scores = np.array([row[4] for row in tested]), np.array([row[1] for row in tested])
    results = {
        "method": opt.model,
        "data": dataset.data,
        "trained_on": about.get("data"),
        "model": str(opt.model_input),
        "batches_trained": about.get("batch"),
        "images": {"good": int((labels == 0).sum()), "defective": int((labels > 0).sum())},
        "image_auroc": image_auroc(labels, scores),
        "image_auroc_validation": image_auroc(labels, [row[2] for row in tested]),
    }
    if threshold:
        results["threshold"] = rates(threshold, labels, scores)
    if pixels is not None:
        results |= pixels.compute()
    return results | {"device": str(device), "settings": plain(opt), "versions": versions(), "notes": notes()}
