"""Score images without labels: python score.py --images FOLDER --model-input model_checkpoints/last.ckpt

Writes to --output (default results/<checkpoint's folder>_<its name>/<folder's name>): scores.csv with one row per image
(score, threshold, verdict, error), and per image the difference map (maps/, float32 TIFF, of the network's resolution
or the image's), its overlay (overlays/, JPEG) and the binary mask of defective pixels (masks/, PNG; only with a
threshold), under the image's relative path. A model of RoadImages expects the folders intensity_files and height_files
in --images. In Python: `load` once, then `score_images`.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common.cli import answer_early
from crn.options import parse_score

answer_early(__name__, parse_score)

from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from common.cli import script
from common.files import UserError
from common.images import read_image, set_max_pixels
from common.runtime import channels_last, pick_device
from common.scoring import FolderScorer, Scored, default_output, score_folder, scored
from crn.inference import finite_scores, thresholds_of
from crn.options import HERE, LARGEST_SIDE, defaults, model_name
from crn.training import utils
from crn.training.dataset import prepare, read, unlabelled


@dataclass(frozen=True)
class Loaded:
    """A trained model with its settings, ready to score; `content` is its file's, `score` names what counts."""

    model: utils.Model
    settings: Namespace
    content: Mapping[str, Any]
    score: str
    threshold: dict[str, Any] | None  # as `common.metrics.thresholds` gives it
    device: torch.device


def load(
    path: Path,
    device: torch.device | None = None,
    score: str = "inference",
    fpr: float = 0.05,
    dataset: str | None = None,
    imsize: int | None = None,
) -> Loaded:
    """The model in the checkpoint `path`; dataset and imsize: else as it says. UserError where it is missing, damaged,
    or does not fit."""
    if not (0 < fpr < 1 and 1 <= (imsize or 1) <= LARGEST_SIDE):
        raise UserError(f"fpr {fpr}, imsize {imsize}: expected a rate between 0 and 1, a side from 1 to {LARGEST_SIDE}")
    content = utils.read(path)
    given = {"dataset": dataset or content.get("settings", {}).get("dataset"), "imsize": imsize}
    if given["dataset"] is None:
        raise UserError(f"{path} does not tell how its images were normalised: give --dataset")
    given = {name: value for name, value in given.items() if value is not None}
    options = {**defaults(), **given, "model": utils.kind_of(content), "model_input": path}
    model, settings = utils.load_model(Namespace(**options, given=set(given)), content)
    device = device or pick_device()
    model.to(device, memory_format=channels_last(device))
    return Loaded(model, settings, content, score, thresholds_of(content, settings, fpr, score), device)


def score_images(images: np.ndarray | Sequence[np.ndarray], model: Loaded) -> Scored | list[Scored]:
    """Score, verdict and map of an image (H, W, 3), or of each of several: RGB, uint8 or float in 0..1; of RoadImages
    height, intensity, intensity, uint8 or any finite float. ValueError for other arrays, UserError where scores are not
    finite."""
    settings = model.settings

    def score(images: list[np.ndarray]) -> Iterator[tuple[float, np.ndarray]]:
        for image in images:
            x = torch.tensor(image).movedim(-1, 0)
            x = x / 255 if x.dtype == torch.uint8 else x
            x = prepare(x, settings.dataset, settings.imsize, settings.antialias)[None].to(model.device)
            scores = finite_scores(model.model, x)
            yield float(scores[model.score][0]), scores["difference"][0].mean(dim=0).cpu().numpy()

    infinite = float("inf")
    return scored(images, score, model.threshold, (-infinite, infinite) if settings.dataset == "RoadImages" else (0, 1))


@script(memory="a smaller --imsize, smaller images, or --cpu")
def main(argv: list[str] | None = None) -> int:
    """Score every image of a folder; exit status 1 where some could not be read."""
    opt = parse_score(argv)
    set_max_pixels(opt.max_pixels)
    device = pick_device(opt.device, cpu=opt.cpu)
    model = load(opt.model_input, device, opt.score, opt.fpr, opt.dataset, opt.imsize)
    kind = model.settings.dataset
    items = {item.name: item for item in unlabelled(opt.images, kind)}

    def read_one(name: str) -> np.ndarray:
        if kind == "RoadImages":
            return read(items[name], kind).movedim(0, -1).numpy()
        return np.asarray(read_image(items[name].path, model.settings.max_value))

    settings = model.settings
    metadata = {"trained_on": model.content.get("data"), "score": opt.score, "imsize": settings.imsize, "dataset": kind}
    scorer = FolderScorer(
        opt.model_input, partial(score_images, model=model), metadata, model.threshold,
        size=(settings.imsize, settings.imsize), max_value=None if kind == "RoadImages" else settings.max_value,
    )  # fmt: skip
    output = opt.output or default_output(HERE / "results" / model_name(opt.model_input), opt.images)
    return score_folder(opt, output, scorer, {name: item.paths for name, item in items.items()}, read_one)


if __name__ == "__main__":
    sys.exit(main())
