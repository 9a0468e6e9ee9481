"""Score images without labels: python score.py --images FOLDER --modelname dummy_test

Writes to --output (default results/<modelname>/<folder's name>): scores.csv with one row per image (score, threshold,
verdict, error), and per image the anomaly map (maps/, float32 TIFF, of the network's resolution or the image's), its
overlay (overlays/, JPEG) and the binary mask of defective pixels (masks/, PNG; only with a threshold), under the
image's relative path. In Python: `load` once, then `score_images`.
"""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch

from common.cli import SCORING_OPTIONS, add_scoring_options, say, script
from common.images import read_image
from common.runtime import pick_device
from common.scoring import Scored, default_output, named_images, score_folder, scored
from csflow.config import MODEL_SETTINGS, Config, build_parser, from_options
from csflow.evaluate import NO_THRESHOLD, thresholds_of
from csflow.model import CSFlow, FeatureExtractor, load_extractor, load_model
from csflow.utils import ComputedFeatures, require_same_weights, run_flow


@dataclass(frozen=True)
class Loaded:
    """A trained flow with its extractor and settings, ready to score; `about` is the rest of its file."""

    flow: CSFlow
    extractor: FeatureExtractor
    config: Config
    about: dict[str, Any]
    threshold: dict[str, Any] | None  # as `common.scoring.thresholds` gives it
    device: torch.device


def load(**options: Any) -> Loaded:
    """The model that the options name, settings of config.py such as modelname="bottle". UserError where it is missing,
    damaged, or of other weights of the extractor."""
    config = from_options(options)
    device = pick_device(config.device, config.gpu_ids, config.cpu)
    flow, config, about = load_model(config.model_file, config, device)
    config.extractor = about["extractor"]
    extractor, _ = load_extractor(config, device)
    require_same_weights(ComputedFeatures([], config, extractor, device), about, config.model_file)
    threshold = thresholds_of(about.get("calibration"), config)
    if threshold is None:
        say(NO_THRESHOLD)
    return Loaded(flow, extractor, config, about, threshold, device)


def score_images(images: np.ndarray | Sequence[np.ndarray], model: Loaded) -> Scored | list[Scored]:
    """Score, verdict and map of an image (H, W, 3) uint8, RGB, or of each of several. ValueError for other
    arrays, UserError where scores are not finite."""

    def score(images: list[np.ndarray]) -> Iterator[tuple[float, np.ndarray]]:
        features = ComputedFeatures(images, model.config, model.extractor, model.device)
        found = run_flow(model.flow, features, range(len(images)), model.config, model.device)
        return zip(found[model.config.score], found["map"])

    return scored(images, score, model.threshold)


@script(memory="smaller images, or --cpu")
def main(argv: list[str] | None = None) -> int:
    """Score every image of a folder; exit status 1 where some could not be read."""
    parser = build_parser(
        "Score a folder of images without labels with a saved model.",
        "python csflow/score.py --modelname bottle --images my_new_images",
    )
    add_scoring_options(parser, "results/<modelname>/<folder's name>")
    given = parser.parse_args(argv)
    paths = named_images(given.images)
    model = load(**{name: value for name, value in vars(given).items() if name not in SCORING_OPTIONS})
    config, about = model.config, model.about
    return score_folder(
        given,
        given.output or default_output(config.result_dir, given.images),
        config.model_file,
        {name: [path] for name, path in paths.items()},
        lambda name: np.asarray(read_image(paths[name], config.max_value)),
        partial(score_images, model=model),
        1,
        {
            "trained_on": about.get("data"),
            "weights": model.extractor.checksum(),
            "settings": {name: config.as_dict()[name] for name in MODEL_SETTINGS},  # the authors' files hold none
            "score": config.score,
        },
        model.threshold,
        f"score_{config.score}",
        config.hide_tqdm_bar,
        config.img_size,
        config.max_value,
    )


if __name__ == "__main__":
    sys.exit(main())
