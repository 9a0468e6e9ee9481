"""The report of an inference: an .html page beside --anomaly-score-file, named like it."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.images import image_size, read_mask
from common.report import Column, metric_name, spread, write_image_report
from crn.training.dataset import Dataset, Images, Item, viewable
from crn.training.utils import Model, to_bytes

SCORE = {"crn": "mean |x - D(G(x))|", "dagan": "mse(x, G(x))"}
MAP = {"crn": "|x - D(G(x))|", "dagan": "|x - G(x)|"}


@torch.no_grad()
def write(
    path: Path, dataset: Dataset, images: Callable[[Sequence[Item]], Images], model: Model, scores: Sequence[float],
    results: dict[str, Any], device: torch.device,
) -> None:  # fmt: skip
    """Write it to `path`; images: prepares items for the network; scores: of the test part, (N,); results: those of the
    .json file."""
    model.eval()
    tested, trained = images(dataset.test), images(spread(dataset.train))

    def column(i: int) -> Column:
        """Test image i as the network sees it."""
        item, x = dataset.test[i], tested.one(i)
        difference = model.scores(x[None].to(device))["difference"][0].mean(dim=0).cpu().numpy()
        mask = read_mask(item.mask, image_size(item.path)) if item.mask else None
        return _picture(x, dataset.kind), difference, item.name.removeprefix("test/"), mask

    counts, threshold, batches = results["images"], results.get("threshold"), results["batches_trained"]
    held = f" ({threshold['images']} of them held out for the threshold)" if threshold else ""
    elsewhere = results["trained_on"] not in (None, results["data"])
    paragraphs = [
        *([f"The model was trained on {results['trained_on']}."] if elsewhere else []),
        f"{len(dataset.train) + len(dataset.held_out)} good images to train on{held}, {counts['good']} good and "
        f"{counts['defective']} defective ones to test, {tested.imsize} x {tested.imsize} pixels. "
        f"{'An unknown number of' if batches is None else batches} batches. The score is {SCORE[model.name]}, the map "
        f"the mean of {MAP[model.name]} over the channels; the validation score beside it is the training's own.",
        f"The model is {Path(results['model']).name}: last.ckpt is the last one of a training, best.ckpt the best of "
        "its validations, chosen on the test images. The pixel F1 is the highest on the test images themselves; the "
        "threshold comes from good images held out from the training.",
    ]
    write_image_report(
        path, f"{model.name.upper()} on {dataset.root.resolve().name}", results, paragraphs,
        [_picture(trained.one(i), dataset.kind) for i in range(len(trained))],
        np.array([item.label for item in dataset.test]), np.array(scores), column, SCORE[model.name],
        [(metric_name(name), results[name]) for name in ["image_auroc_validation"]],
    )  # fmt: skip


def _picture(x: torch.Tensor, kind: str) -> np.ndarray:
    """A prepared image (3, H, W) as (H, W, 3) uint8."""
    return to_bytes(viewable(x[None], kind)[0].movedim(0, -1))
