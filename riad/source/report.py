"""The report of a test: report.html beside result.json."""

from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from common.images import image_size, read_mask
from common.report import Column, spread, write_image_report
from riad.source.agent import Agent
from riad.source.datamanager import DataSet


def write(path: Path, title: str, data: DataSet, agent: Agent, scores: np.ndarray, result: dict[str, Any]) -> None:
    """Write it; agent: with the network that the validation images chose; scores: (N,), its scores of the test images;
    result: as in result.json."""
    part = data.test

    def column(i: int) -> Column:
        """Test image i as the network sees it."""
        images = part.images[[i]]
        seen = picture(images[0]), agent.score(images)[1][0].cpu().numpy()
        if part.samples is None:
            return *seen, f"{data.class_names[part.classes[i]]} ({part.names[i]})", None
        mask, size = part.samples[i].mask, image_size(part.samples[i].path)
        return *seen, part.names[i].removeprefix("test/"), read_mask(mask, size) if mask else None

    images, model = result["images"], result["models"][result["name_best"]]
    good = int((part.labels == 0).sum())
    paragraphs = [
        f"{images['train']} good images to train on, {images['validation']} to validate, {good} good and "
        f"{len(part.labels) - good} others to test, {agent.size[0]} x {agent.size[1]} pixels. The score is the "
        "map's maximum.",
        f"The model is that of epoch {model['epoch']} of {len(result['history'])}, chosen by: {model['chosen_by']}. "
        "The threshold comes from good validation images; a pixel F1 is the highest on the test images themselves.",
    ]
    more = [
        (f"AUROC of epoch {other['epoch']}, chosen by: {other['chosen_by']}", other["auroc"])
        for name, other in result["models"].items()
        if name != result["name_best"]
    ]
    write_image_report(
        path, title, result, paragraphs,
        [picture(image) for image in spread(data.train)], part.labels, scores, column, more=more,
    )  # fmt: skip


def picture(image: Tensor) -> np.ndarray:
    """(1 or 3, H, W) uint8 as (H, W, 3)."""
    return image.expand(3, -1, -1).permute(1, 2, 0).numpy()
