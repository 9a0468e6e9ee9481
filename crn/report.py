"""The report of an inference: an .html page beside --anomaly-score-file, named like it."""

from argparse import Namespace
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from common.images import image_size, read_mask
from common.report import Column, metric_name, spread, write_image_report
from crn.training.dataset import Dataset, Images, viewable
from crn.training.utils import Model, to_bytes

SCORE = {"crn": "mean |x - D(G(x))|", "dagan": "mse(x, G(x))"}
MAP = {"crn": "|x - D(G(x))|", "dagan": "|x - G(x)|"}


@torch.no_grad()
def write(
    opt: Namespace,
    dataset: Dataset,
    model: Model,
    scores: Sequence[float],
    results: dict[str, Any],
    device: torch.device,
) -> None:
    """Write it; scores: of the test part, (N,); results: those of the .json file."""
    model.eval()
    labels = np.array([item.label for item in dataset.test])
    images = Images(dataset.test, dataset.kind, opt.imsize, opt.antialias, limit_gib=0)

    def column(i: int) -> Column:
        """Test image i as the network sees it."""
        x = images.one(i)[None].to(device)
        difference = model.scores(x)["difference"][0].mean(dim=0)
        mask = dataset.test[i].mask
        return (
            _picture(x[0], dataset.kind),
            difference.cpu().numpy(),
            dataset.test[i].name.removeprefix("test/"),
            read_mask(mask, image_size(dataset.test[i].path)) if mask else None,
        )

    counts, threshold, batches = results["images"], results.get("threshold"), results["batches_trained"]
    trained = Images(spread(dataset.train), dataset.kind, opt.imsize, opt.antialias, limit_gib=0)
    held = f" ({threshold['images']} of them held out for the threshold)" if threshold else ""
    elsewhere = results["trained_on"] not in (None, results["data"])
    paragraphs = [
        *([f"The model was trained on {results['trained_on']}."] if elsewhere else []),
        f"{len(dataset.train) + len(dataset.held_out)} good images to train on{held}, {counts['good']} good and "
        f"{counts['defective']} defective ones to test, {opt.imsize} x {opt.imsize} pixels. "
        f"{'An unknown number of' if batches is None else batches} batches. The score is {SCORE[opt.model]}, the map "
        f"the mean of {MAP[opt.model]} over the channels; the validation score beside it is the training's own.",
        f"The model is {opt.model_input.name}: last.ckpt is the last one of a training, best.ckpt the best of its "
        "validations, chosen on the test images. The pixel F1 is the highest on the test images themselves; the "
        "threshold comes from good images held out from the training.",
    ]
    write_image_report(
        opt.anomaly_score_file.with_suffix(".html"),
        f"{opt.model.upper()} on {dataset.root.resolve().name}", results, paragraphs,
        [_picture(trained.one(i), dataset.kind) for i in range(len(trained))], labels, np.array(scores), column,
        SCORE[opt.model], [(metric_name(name), results[name]) for name in ["image_auroc_validation"]],
    )  # fmt: skip


def _picture(x: torch.Tensor, kind: str) -> np.ndarray:
    """A prepared image (3, H, W) as (H, W, 3) uint8."""
    return to_bytes(viewable(x[None], kind)[0].movedim(0, -1))
