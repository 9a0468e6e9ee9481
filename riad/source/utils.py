"""Pictures: masks, masked inputs, reconstructions, scores and losses."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from common.metrics import image_auroc
from common.report import DEFECTIVE, GOOD, overlay, save_figure
from riad.source.agent import Agent
from riad.source.datamanager import Part
from riad.source.masks import content_keys


def grid(
    path: Path, rows: Sequence[tuple[str, Sequence[np.ndarray]]], title: str, captions: Sequence[str] = ()
) -> None:
    """Draw rows of images, each (name, images (H, W, 1 or 3) in 0..1), with a caption above each column."""
    columns = max(len(images) for _, images in rows)
    height, width = rows[0][1][0].shape[:2]
    line = 1 + height // 64  # around each, since white images have an end, too
    tall, wide = height + 2 * line, width + 2 * line
    canvas = np.ones((len(rows) * tall, columns * wide, 3))
    for r, (_, images) in enumerate(rows):
        for c, image in enumerate(images):
            cell = canvas[r * tall : (r + 1) * tall, c * wide : (c + 1) * wide]
            cell[:] = 0.8
            cell[line:-line, line:-line] = image
    figure = Figure((1.1 * columns + 1.3, 1.1 * len(rows) * tall / wide + 0.9), dpi=100, layout="tight")
    axes = figure.subplots()
    axes.imshow(canvas.clip(0, 1))
    axes.set_yticks((np.arange(len(rows)) + 0.5) * tall, [name for name, _ in rows], fontsize=9)
    axes.set_xticks((np.arange(len(captions)) + 0.5) * wide, captions, fontsize=9, parse_math=False)
    axes.tick_params(length=0, top=True, labeltop=True, labelbottom=False)
    axes.spines[:].set_visible(False)
    axes.set_title(title, fontsize=10, parse_math=False)
    save_figure(figure, path)


def draw_masks(folder: Path, agent: Agent, images: Tensor) -> None:
    """Draw the masks of an image (1, C, H, W) uint8, and what they leave of it: masks.png, masked.png."""
    x = agent.in_unit_range(agent.prepare(images))[0]
    masks, masked = [], []
    for k in agent.list_k:
        some = agent.masks(content_keys(agent.seed, images.to(agent.device)), k)[0, :12]  # (n, 1, H, W)
        masks.append((f"k = {k}", as_pictures(some)))
        masked.append((f"k = {k}", as_pictures(x * some)))
    captions = [f"mask {number + 1}" for number in range(min(agent.disjoint_n, 12))]
    grid(folder / "masks.png", masks, "disjoint masks (black: hidden)", captions)
    grid(folder / "masked.png", masked, "masked inputs", captions)


def draw_images(path: Path, agent: Agent, part: Part, class_names: Sequence[str], title: str) -> None:
    """Draw the first image of each class, its reconstruction, map and overlay below each other.

    Maps are shown on one scale from 0 to their maximum.
    """
    rows = [int(np.flatnonzero(part.classes == number)[0]) for number in np.unique(part.classes)][:12]
    if not rows:
        return
    images = part.images[rows]
    reconstructions, maps = agent.score(images)
    x, heats = agent.in_unit_range(agent.prepare(images)), maps.cpu().numpy()
    hottest = max(float(heats.max()), 1e-6)
    coloured = [(image * 255).astype(np.uint8) for image in as_pictures(x.expand(-1, 3, -1, -1))]
    lines = [
        ("input", as_pictures(x)),
        ("reconstruction", as_pictures(reconstructions)),
        ("map", list(heats[..., None] / hottest)),
        ("overlay", [overlay(image, heat, 0, hottest) / 255 for image, heat in zip(coloured, heats)]),
    ]
    grid(path, lines, title, [class_names[part.classes[row]] for row in rows])


def as_pictures(images: Tensor) -> list[np.ndarray]:
    """(N, C, H, W) in 0..1 as (H, W, C) each."""
    return list(images.clamp(0, 1).permute(0, 2, 3, 1).cpu().numpy())


def violin(path: Path, labels: np.ndarray, scores: np.ndarray, title: str) -> None:
    """Draw how the scores of good images (label 0) and of others are distributed, with the AUROC where both exist."""
    figure = Figure((4.5, 3.8), dpi=100)
    axes = figure.subplots()
    groups = [("good", GOOD, scores[labels == 0]), ("not good", DEFECTIVE, scores[labels > 0])]
    groups = [group for group in groups if len(group[2])]
    for place, (_, colour, values) in enumerate(groups):
        if len(values) > 1 and np.ptp(values) > 0:
            body = axes.violinplot(values, [place], widths=0.8, showmedians=True, showextrema=True)
            for part in (*body["bodies"], body["cmedians"], body["cbars"], body["cmins"], body["cmaxes"]):
                part.set_color(colour)
        else:
            axes.plot(np.full(len(values), place), values, "o", color=colour)
    axes.set_xticks(range(len(groups)), [f"{name} ({len(values)})" for name, _, values in groups])
    axes.set_ylabel("anomaly score")
    axes.grid(axis="y", alpha=0.3)
    auroc = f"\nAUROC {image_auroc(labels, scores):.4f}" if len(groups) == 2 else ""
    axes.set_title(title + auroc, fontsize=10, parse_math=False)
    figure.set_layout_engine("tight")
    save_figure(figure, path)


def loss_curves(path: Path, history: Sequence[dict[str, Any]], criterion: str) -> None:
    """Draw total, L2, SSIM and MSGMS loss, the learning rate and what chooses the epoch, over epochs."""
    panels = {"loss": "total loss", "l2": "L2", "ssim": "SSIM", "msgms": "MSGMS", "rate": "learning rate"}
    figure = Figure((10, 5), dpi=100)
    epochs = [entry["epoch"] for entry in history]
    for axes, (key, title) in zip(
        figure.subplots(2, 3).flat, {**panels, criterion: f"validation: {criterion}"}.items()
    ):
        axes.plot(epochs, [entry[key] for entry in history], marker="o" if len(epochs) == 1 else None, color=GOOD)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("epoch", fontsize=9)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        axes.tick_params(labelsize=8)
    figure.set_layout_engine("tight")
    save_figure(figure, path)
