"""A plain baseline for CS-Flow, without training: distance of each patch to its nearest neighbour among good ones.

Uses the features that csflow/extract_features.py stored: python benchmarks/nearest_neighbour.py --dataset_path DIR
--class_name mtd --img_size 256. A patch is one position of the finest scale; both usual image scores are reported, the
mean distance over the image's patches and the largest one. The same split and metrics as in csflow/: what
--calibration_share holds out there is left out here. Writes results.json, scores.csv and maps.npy (test images in the
order of scores.csv, at the features' resolution) to --output.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common.cli import answer_early
from csflow.config import FEATURES, Config, build_parser, parse_with


def parse(argv: list[str] | None = None) -> Config:
    """CS-Flow's settings of the data, the features and the split, and `output`."""
    does = "Nearest-neighbour baseline on CS-Flow's features."
    example = "python benchmarks/nearest_neighbour.py --dataset_path my_data --class_name bottle"
    parser = build_parser(does, example, (*FEATURES, "calibration_share", "seed"))
    add = parser.add_argument_group("results").add_argument
    add("--output", type=Path, default=None, help="folder for the results; unset: in benchmarks/results")
    return parse_with(parser, argv)


answer_early(__name__, parse)

import time

import numpy as np
from sklearn.neighbors import NearestNeighbors

from common.cli import notes, progress, say, script
from common.files import UserError, atomic_write, locked, require_writable, write_json
from common.images import set_max_pixels
from common.metrics import MaskedPixels, evaluate, say_results, write_scores
from common.runtime import pick_device
from csflow.dummy_data import ensure_dummy_data
from csflow.extract_features import load_features
from csflow.utils import load_dataset


def patches(maps: np.ndarray) -> np.ndarray:
    """(N, C, h, w) -> (N * h * w, C)."""
    return np.moveaxis(maps, 1, -1).reshape(-1, maps.shape[1])


def distance_maps(train: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Euclidean distance of each test patch to its nearest training patch: (N, C, h, w) -> (N, h, w)."""
    neighbours = NearestNeighbors(n_neighbors=1, algorithm="brute").fit(patches(train))
    distances = [neighbours.kneighbors(patches(image[None]))[0] for image in progress(test, "nearest neighbours")]
    return np.stack(distances).reshape(len(test), *test.shape[2:])


@script
def main(argv: list[str] | None = None) -> None:
    """Data, features, distances, evaluation."""
    options = parse(argv)
    set_max_pixels(options.max_pixels)
    device = pick_device(options.device, options.gpu_ids, options.cpu)
    ensure_dummy_data(options.root)
    dataset = load_dataset(options.root, options.max_value, options.img_size)
    if not dataset.test:
        raise UserError(f"{dataset.root} has no test images, and nothing is trained here")
    train, test = load_features(options, dataset, device)
    name = f"nearest_neighbour_{options.class_name}_{train.extractor}_{'x'.join(map(str, options.img_size))}"
    output = options.output or Path(__file__).resolve().parent / "results" / name
    require_writable(output)
    rows, _ = dataset.split(options.calibration_share, options.seed)
    start = time.monotonic()
    maps = distance_maps(train.maps[0][rows], test.maps[0])
    seconds = time.monotonic() - start
    labels = np.array([sample.label for sample in dataset.test])
    scores = {"score_mean": maps.mean(axis=(1, 2)), "score_max": maps.max(axis=(1, 2))}
    pixels = MaskedPixels() if any(sample.mask for sample in dataset.test) else None
    for sample, distances in zip(dataset.test, maps) if pixels else ():
        pixels.update(sample.path, sample.label, sample.mask, distances.astype(np.float32))
    results = evaluate(labels, scores["score_mean"], None, pixels)
    largest = evaluate(labels, scores["score_max"])
    say_results(results, "mean distance")
    say_results(largest, "largest distance")
    with locked(output):
        images = [(dataset.name(sample), sample.class_name, sample.label) for sample in dataset.test]
        write_scores(output / "scores.csv", images, scores, [""] * len(images))
        with atomic_write(output / "maps.npy") as file:
            np.save(file, maps.astype(np.float32), allow_pickle=False)
        metadata = {
            "method": "nearest neighbour",
            "data": dataset.data,
            "trained_on": dataset.data,
            "chosen_on": None,
            "extractor": train.extractor,
            "img_size": options.img_size,
        }
        results["images"] = {"train": len(rows), **results["images"]}
        aurocs = {"image_auroc_mean": results["image_auroc"], "image_auroc_max": largest["image_auroc"]}
        settings = {"seconds": seconds, "settings": options.as_dict(), "notes": notes()}
        write_json(output / "results.json", {**metadata, **results, **aurocs, **settings})
    say(f"results: {output}")


if __name__ == "__main__":
    sys.exit(main())
