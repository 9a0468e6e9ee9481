"""Score images without labels: python score.py --images FOLDER --modelname dummy_test

Writes to --output (default results/<modelname>/<folder's name>): scores.csv with one row per image (score, threshold,
verdict, error), and per image the anomaly map (maps/, float32 TIFF, of the network's resolution or the image's), its
overlay (overlays/, JPEG) and the binary mask of defective pixels (masks/, PNG; only with a threshold), under the
image's relative path. In Python: `load` once, then `score_images`.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common.cli import answer_early
from csflow.config import parse_score

answer_early(__name__, parse_score)

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from common.cli import say, script
from common.images import read_image, set_max_pixels
from common.runtime import pick_device
from common.scoring import FolderScorer, Scored, default_output, named_images, score_folder, scored
from csflow.config import MODEL_SETTINGS, Config, complete
from csflow.evaluate import NO_THRESHOLD, thresholds_of
from csflow.model import CSFlow, load_extractor, load_model, require_same_weights
from csflow.utils import ComputedFeatures, run_flow


@dataclass(frozen=True)
class Loaded:
    """A trained flow with its extractor and settings, ready to score."""

    flow: CSFlow
    features: ComputedFeatures  # of no images
    config: Config
    content: dict[str, Any]  # of the model's file
    threshold: dict[str, Any] | None  # as `common.metrics.thresholds` gives it


def load(**options: Any) -> Loaded:
    """The model that the options name, settings of config.py such as modelname="bottle". UserError where it is missing,
    damaged, or of other weights of the extractor."""
    config = complete(options)
    set_max_pixels(config.max_pixels)
    device = pick_device(config.device, config.gpu_ids, config.cpu)
    flow, config, content = load_model(config.model_file, config, device)
    extractor = load_extractor(config.extractor, config.extractor_weights, config.n_scales, device)
    features = ComputedFeatures(
        [], extractor, device, config.img_size, config.norm_mean, config.norm_std, config.max_value
    )
    require_same_weights(features.weights, content, config.model_file)
    threshold = thresholds_of(content, config.model_file, config.score, config.fpr)
    if threshold is None:
        say(NO_THRESHOLD)
    return Loaded(flow, features, config, content, threshold)


def score_images(images: np.ndarray | Sequence[np.ndarray], model: Loaded) -> Scored | list[Scored]:
    """Score, verdict and map of an image (H, W, 3) uint8, RGB, or of each of several. ValueError for other
    arrays, UserError where scores are not finite."""

    def score(images: list[np.ndarray]) -> Iterator[tuple[float, np.ndarray]]:
        features = replace(model.features, images=images)
        rows = run_flow(model.flow, features, range(len(images)), model.config.batch_size)
        return zip(rows[model.config.score], rows["map"])

    return scored(images, score, model.threshold)


@script(memory="smaller images, or --cpu")
def main(argv: list[str] | None = None) -> int:
    """Score every image of a folder; exit status 1 where some could not be read."""
    given = parse_score(argv)
    paths = named_images(given.images)
    model = load(**{name: getattr(given, name) for name in given.given})
    config = model.config
    metadata = {
        "trained_on": model.content.get("data"),
        "weights": model.features.weights,
        "settings": {name: config.as_dict()[name] for name in MODEL_SETTINGS},  # the authors' files hold none
        "score": config.score,
    }
    scorer = FolderScorer(
        config.model_file, partial(score_images, model=model), metadata, model.threshold,
        size=config.img_size, max_value=config.max_value, hide=config.hide_tqdm_bar,
    )  # fmt: skip
    output = given.output or default_output(config.result_dir, given.images)
    files = {name: [path] for name, path in paths.items()}
    return score_folder(
        given, output, scorer, files, lambda name: np.asarray(read_image(paths[name], config.max_value))
    )


if __name__ == "__main__":
    sys.exit(main())
