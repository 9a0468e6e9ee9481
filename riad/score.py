"""Score images without labels: python score.py --images FOLDER [--checkpoint FILE]

Writes to --output (default: scores/<folder's name> beside the checkpoint's folder): scores.csv with one row per image
(score, threshold, verdict, error), and per image the anomaly map (maps/, float32 TIFF, of the network's resolution or
the image's), its overlay (overlays/, JPEG) and the binary mask of defective pixels (masks/, PNG; only with a
threshold), under the image's relative path. In Python: `load` once, then `score_images`.
"""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common.cli import answer_early
from riad.options import HERE, from_stored, parse_score

answer_early(__name__, parse_score)

import numpy as np
import torch
from PIL import Image

from common import checkpoint
from common.cli import say, script
from common.files import UserError, using
from common.images import read_image, set_max_pixels
from common.metrics import thresholds
from common.runtime import autocast, pick_device, reuse_memory
from common.scoring import FolderScorer, Scored, default_output, named_images, score_folder, scored
from riad.run import device_of
from riad.source import procedure
from riad.source.agent import Agent
from riad.source.connector import connect
from riad.source.datamanager import to_tensor


@dataclass(frozen=True)
class Loaded:
    """A trained network, ready to score; `stored` is the rest of its file."""

    agent: Agent
    stored: dict[str, Any]
    threshold: dict[str, Any] | None  # as `common.metrics.thresholds` gives it
    batch_score: int  # images scored at once


def load(
    path: Path,
    device: torch.device | None = None,
    fpr: float | None = None,
    precision: str | None = None,
    batch_score: int | None = None,
) -> Loaded:
    """The network in the checkpoint `path`; what is given takes precedence over the settings it was trained with.

    Raises UserError where the file is missing or damaged.
    """
    device, stored = device or pick_device(), procedure.load(path)
    settings, threshold = from_stored(stored["settings"], path), None
    settings.precision = precision or settings.precision
    autocast(device, settings.precision)  # refuses what this device cannot do
    with using(path, "riad"):
        checkpoint.require_fitting(
            lambda: connect(settings.nn, stored["channels"], settings.filters, settings.ksize), stored["model"], path
        )
        if (calibration := stored.get("calibration")) is not None:
            threshold = thresholds(calibration, calibration, fpr or settings.fpr, stored.get("medians", ()))
    agent = Agent(settings, stored["channels"], device)
    checkpoint.load_parameters(agent.network, stored["model"], path)
    if threshold is None:
        say("no threshold, no verdicts: the network was not tested by run.py, which sets it")
    return Loaded(agent, stored, threshold, batch_score or settings.batch_score)


def score_images(images: np.ndarray | Sequence[np.ndarray], model: Loaded) -> Scored | list[Scored]:
    """Score, verdict and map of an image (H, W, 3) uint8, RGB, or of each of several. ValueError for other
    arrays, UserError where scores are not finite."""

    def score(images: list[np.ndarray]) -> Iterator[tuple[float, np.ndarray]]:
        batch = torch.stack([to_tensor(Image.fromarray(image), model.agent.size[0]) for image in images])
        if model.stored["channels"] == 1:  # as MNIST's
            batch = batch.float().mean(dim=1, keepdim=True).round().byte()
        for part in batch.split(model.batch_score):
            maps = model.agent.score(part)[1].cpu().numpy()
            yield from zip(maps.max(axis=(1, 2)), maps)

    return scored(images, score, model.threshold)


@script(memory="a smaller --batch_score, or --precision bf16")
def main(argv: list[str] | None = None) -> int:
    """Score every image of a folder; exit status 1 where some could not be read."""
    given = parse_score(argv)
    set_max_pixels(given.max_pixels)
    device = device_of(given.device, given.gpu, given.ngpu, given.cpu)
    if device.type == "cpu":
        reuse_memory()
    paths = named_images(given.images)
    file = given.checkpoint or chosen_checkpoint()
    model = load(file, device, given.fpr, given.precision, given.batch_score)
    max_value = model.stored["settings"]["max_value"]
    scorer = FolderScorer(
        file, partial(score_images, model=model),
        {"trained_on": model.stored["data"], "precision": model.agent.precision}, model.threshold,
        model.batch_score, size=model.agent.size, max_value=max_value,
    )  # fmt: skip
    output = given.output or default_output(file.absolute().parent.parent / "scores", given.images)
    files = {name: [path] for name, path in paths.items()}
    return score_folder(given, output, scorer, files, lambda name: np.asarray(read_image(paths[name], max_value)))


def chosen_checkpoint() -> Path:
    """The network that the default training's validation chose; UserError where there is none, or two."""
    folder = HERE / procedure.PATH_CKPT
    files = [folder / name for name in procedure.BEST.values() if (folder / name).exists()]
    if len(files) != 1:
        raise UserError(f"{folder} holds {len(files)} networks: train one with run.py, or give --checkpoint FILE")
    return files[0]


if __name__ == "__main__":
    sys.exit(main())
