"""A baseline without training: how far is each patch of an image from the nearest one of good images?

python benchmarks/nearest_neighbour.py --data my_data/bottle --images my_new_images

Tests on the category's test images, if it has any, then scores --images. Features, split and metrics are those of
csflow/: a patch is one position of the finest scale, what --calibration_share holds out sets the thresholds. An image's
score is its largest distance (as in PatchCore, Roth et al. 2022); the mean stands beside it. Writes results.json,
scores.csv, maps.npy (test images in the order of scores.csv, at the features' resolution) and report.html to --output,
what is found in --images to scored/<their folder's name> in it, as csflow/score.py does.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common.cli import add_scoring_options, answer_early
from csflow.config import FEATURES, Config, build_parser, parse_with

HERE = Path(__file__).resolve().parent
NAMES = (*FEATURES, "calibration_share", "fpr", "seed")


def parse(argv: list[str] | None = None) -> Config:
    """CS-Flow's settings of the data, the features and the split, and those of the scoring."""
    does = "Nearest-neighbour baseline on CS-Flow's features: tests on a category, scores new images."
    example = "python benchmarks/nearest_neighbour.py --data my_data/bottle --images my_new_images"
    parser = build_parser(does, example, NAMES)
    add = parser.add_argument_group("results").add_argument
    add("--output", type=Path, default=None, help="folder for the results; unset: in benchmarks/results")
    add_scoring_options(parser, None)
    return parse_with(parser, argv)


answer_early(__name__, parse)

import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from sklearn.neighbors import NearestNeighbors

from common import checkpoint
from common.cli import notes, progress, say, script
from common.files import UserError, atomic_write, locked, require_writable, write_json
from common.images import read_image, set_max_pixels
from common.metrics import evaluate, say_results, thresholds, write_scores
from common.report import spread, write_image_report
from common.runtime import pick_device
from common.scoring import FolderScorer, Scored, default_output, named_images, score_folder, scored
from csflow.dummy_data import ensure_dummy_data
from csflow.evaluate import pixels_of
from csflow.extract_features import feature_file, load_features, open_features
from csflow.model import load_extractor
from csflow.report import shown_image
from csflow.utils import ComputedFeatures, Dataset, Features, load_dataset


def patches(maps: np.ndarray) -> np.ndarray:
    """(N, C, h, w) -> (N * h * w, C)."""
    return np.moveaxis(maps, 1, -1).reshape(-1, maps.shape[1])


def distance_map(neighbours: NearestNeighbors, features: np.ndarray) -> np.ndarray:
    """Euclidean distance of each patch of an image to its nearest neighbour: (C, h, w) -> (h, w) float32."""
    distances = neighbours.kneighbors(patches(features[None]))[0]
    return distances.reshape(features.shape[1:]).astype(np.float32)


@script
def main(argv: list[str] | None = None) -> int:
    """Data, features, distances, evaluation; then the scores of --images."""
    options = parse(argv)
    set_max_pixels(options.max_pixels)
    device = pick_device(options.device, options.gpu_ids, options.cpu)
    paths = named_images(options.images) if options.images else {}
    ensure_dummy_data(options.root)
    dataset = load_dataset(options.root, options.max_value, options.img_size)
    if not dataset.test and not paths:
        raise UserError(f"{dataset.root} has no test images, and nothing is trained here: give --images to score")
    start = time.monotonic()
    train, test = features_of(options, dataset, device)
    extracted = time.monotonic()
    name = f"nearest_neighbour_{options.class_name}_{train.extractor}_{'x'.join(map(str, options.img_size))}"
    output = options.output or HERE / "results" / name
    require_writable(output)

    rows, held_out = dataset.split(options.calibration_share, options.seed)
    bank = patches(train.maps[0][rows])
    neighbours = NearestNeighbors(n_neighbors=1, algorithm="brute").fit(bank)
    held = [distance_map(neighbours, train.maps[0][i]) for i in progress(held_out, "held-out images")]
    maps = [distance_map(neighbours, image) for image in progress(test.maps[0], "nearest neighbours")]
    highest = [values.max() for values in held]
    threshold = thresholds(highest, highest, options.fpr, [np.median(values) for values in held]) if held else None
    metadata = {
        "method": "nearest neighbour",
        "data": dataset.data,
        "trained_on": dataset.data,
        "chosen_on": None,
        "extractor": train.extractor,
        "score": "largest distance",
        "images": {"train": len(rows)},
        "extraction_seconds": extracted - start,
        "seconds": time.monotonic() - extracted,
        "settings": {key: value for key, value in options.as_dict().items() if key in NAMES},
        "versions": checkpoint.versions(),
    }
    with locked(output):
        if dataset.test:
            test_images(output, dataset, np.stack(maps), threshold, metadata)
        model = output / "neighbours.npy"
        if paths:
            with atomic_write(model) as file:
                np.save(file, bank, allow_pickle=False)
    if not paths:
        return 0
    extractor = load_extractor(train.extractor, options.extractor_weights, options.n_scales, device)
    size, white = options.img_size, dataset.max_value
    features = ComputedFeatures([], extractor, device, size, options.norm_mean, options.norm_std, white)

    def score(images: list[np.ndarray]) -> Iterator[tuple[float, np.ndarray]]:
        for one in replace(features, images=images).batch(range(len(images)))[0].cpu().numpy():
            values = distance_map(neighbours, one)
            yield values.max(), values

    def score_images(images: list[np.ndarray]) -> list[Scored]:
        return scored(images, score, threshold)

    found = {name: metadata[name] for name in ("method", "trained_on", "extractor", "score")}
    # What distances depend on beside the model's file: not the machine, nor --fpr, by which they are judged anew.
    found["settings"] = {name: metadata["settings"][name] for name in ("img_size", "n_scales", "norm_mean", "norm_std")}
    found["settings"]["max_value"] = white
    scorer = FolderScorer(model, score_images, {**found, "weights": train.weights}, threshold, 4, size, white)
    files = {name: [path] for name, path in paths.items()}
    folder = default_output(output / "scored", options.images)
    return score_folder(options, folder, scorer, files, lambda name: np.asarray(read_image(paths[name], white)))


def features_of(options: Config, dataset: Dataset, device: torch.device) -> tuple[Features, Features]:
    """Features of train and test part: of --feature_path; unset, from this program's own folder, where those of other
    images or settings are replaced."""
    how = {"stored": True, "batch_size": options.batch_size, "hide": options.hide_tqdm_bar}
    if "feature_path" in options.given:
        return load_features(options.feature_dir, dataset, device, options.extraction, **how)
    folder = HERE / "results/features" / options.class_name
    if feature_file(folder, "features.json").is_file():
        try:
            return open_features(folder, dataset, options.extraction)
        except UserError:
            say("the stored features are of other images or settings: extracting them again")
            feature_file(folder, "features.json").unlink()
    return load_features(folder, dataset, device, options.extraction, **how)


def test_images(
    output: Path, dataset: Dataset, maps: np.ndarray, threshold: dict[str, Any] | None, metadata: dict[str, Any]
) -> None:
    """Write what is found in the test images, whose distances are maps (N, h, w)."""
    labels, kinds = (np.array([getattr(one, name) for one in dataset.test]) for name in ("label", "class_name"))
    scores = {"score": maps.max(axis=(1, 2)), "score_mean": maps.mean(axis=(1, 2))}
    results = evaluate(labels, scores["score"], threshold, pixels_of(dataset, maps, False), kinds)
    of_mean = evaluate(labels, scores["score_mean"])
    say_results(results, "largest distance")
    say_results(of_mean, "mean distance")
    images = [(dataset.name(sample), sample.class_name, sample.label) for sample in dataset.test]
    write_scores(output / "scores.csv", images, scores, threshold)
    with atomic_write(output / "maps.npy") as file:
        np.save(file, maps, allow_pickle=False)
    results["images"] = {**metadata["images"], **results["images"]}
    results = {**metadata, **results, "image_auroc_of_mean_distance": of_mean["image_auroc"], "notes": notes()}
    write_json(output / "results.json", results)
    say(f"results: {output}")
    words = [
        f"{metadata['images']['train']} good images, {len(labels)} to test. Features: {metadata['extractor']}. "
        "Nothing is trained: an image's score is the largest distance of a patch to the nearest one of good images."
    ]
    good = [np.asarray(read_image(sample.path, dataset.max_value)) for sample in spread(dataset.good)]
    write_image_report(
        output / "report.html", f"Nearest neighbour on {dataset.root.name}", results, words, good, labels,
        scores["score"], lambda i: shown_image(dataset, maps, i), "largest distance",
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
