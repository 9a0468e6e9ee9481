"""Score images without labels: python score.py --images FOLDER --model-input model_checkpoints/last.ckpt

Writes to --output (default results/<checkpoint's folder>_<its name>/<folder's name>): scores.csv with one row per image
(score, threshold, verdict, error), and per image the difference map (maps/, float32 TIFF, of the network's resolution
or the image's), its overlay (overlays/, JPEG) and the binary mask of defective pixels (masks/, PNG; only with a
threshold), under the image's relative path. A model of RoadImages expects the folders intensity_files and height_files
in --images. In Python: `load` once, then `score_images`.
"""

import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch

from common.cli import MAX_PIXELS, ArgumentParser, add_scoring_options, script
from common.images import read_image, set_max_pixels
from common.runtime import channels_last, pick_device
from common.scoring import Scored, default_output, score_folder, scored
from crn.inference import finite_scores, thresholds_of
from crn.options import HERE, SCORES, require
from crn.training.dataset import DATASETS, prepare, read, unlabelled
from crn.training.utils import Model, load_model, read_model_kind


@dataclass(frozen=True)
class Loaded:
    """A trained model with its settings, ready to score; `about` is the rest of its file, `score` names what counts."""

    model: Model
    settings: Namespace
    about: dict[str, Any]
    score: str
    threshold: dict[str, Any] | None  # as `common.scoring.thresholds` gives it
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
    given = Namespace(model_input=path, fpr=fpr, dataset=dataset, imsize=imsize)
    require(given, "fpr", 0 < fpr < 1, "between 0 and 1")
    require(given, "imsize", imsize is None or 1 <= imsize <= 4096, "from 1 to 4096")
    settings = read_model_kind(given)
    model, about = load_model(settings)
    device = device or pick_device()
    model.to(device, memory_format=channels_last(device))
    return Loaded(model, settings, about, score, thresholds_of(about, settings, fpr, score), device)


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
            found = finite_scores(model.model, x)
            yield float(found[model.score][0]), found["difference"][0].mean(dim=0).cpu().numpy()

    infinite = float("inf")
    return scored(images, score, model.threshold, (-infinite, infinite) if settings.dataset == "RoadImages" else (0, 1))


@script(memory="a smaller --imsize, smaller images, or --cpu")
def main(argv: list[str] | None = None) -> int:
    """Score every image of a folder; exit status 1 where some could not be read."""
    parser = ArgumentParser(
        description="Score a folder of images without labels with a trained model.",
        example="python crn/score.py --images my_new_images --model-input ck/last.ckpt",
    )
    add_scoring_options(parser, "results/<checkpoint's folder>_<its name>/<folder's name> in crn/")
    add = parser.add_argument_group("scores and verdicts").add_argument
    add("--score", choices=SCORES, default="inference", help="the score that counts")
    add("--fpr", type=float, default=0.05, help="share of good images that the threshold may call defective")

    add = parser.add_argument_group("network").add_argument
    add("--model-input", type=Path, required=True, help="checkpoint, such as model_checkpoints/last.ckpt")
    add("--dataset", choices=DATASETS, help="how images are normalised; unset: as the checkpoint says")
    add("--imsize", type=int, help="side of the images for the network; unset: the training's")

    add = parser.add_argument_group("machine").add_argument
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1 or mps")
    add("--cpu", action="store_true", help="use the CPU even where there is a GPU")
    add("--max-pixels", "--max_pixels", **MAX_PIXELS)
    opt = parser.parse_args(argv)
    set_max_pixels(opt.max_pixels)
    device = pick_device(opt.device, cpu=opt.cpu)
    model = load(opt.model_input, device, opt.score, opt.fpr, opt.dataset, opt.imsize)
    kind = model.settings.dataset
    items = {item.name: item for item in unlabelled(opt.images, kind)}

    def read_one(name: str) -> np.ndarray:
        if kind == "RoadImages":
            return read(items[name], kind).movedim(0, -1).numpy()
        return np.asarray(read_image(items[name].path, model.settings.max_value))

    return score_folder(
        opt,
        opt.output or default_output(HERE / "results" / model_name(opt.model_input), opt.images),
        opt.model_input,
        {name: item.paths for name, item in items.items()},
        read_one,
        partial(score_images, model=model),
        1,
        {"trained_on": model.about.get("data"), "score": opt.score, "imsize": model.settings.imsize, "dataset": kind},
        model.threshold,
        f"score_{opt.score}",
        size=(model.settings.imsize, model.settings.imsize),
        max_value=None if kind == "RoadImages" else model.settings.max_value,
    )


def model_name(path: Path) -> str:
    """The checkpoint's name with its folder's, since most are called last.ckpt: model_checkpoints_last."""
    return f"{path.absolute().parent.name}_{path.stem}"


if __name__ == "__main__":
    sys.exit(main())
