"""A plain baseline for CS-Flow, without training: distance of each patch to its nearest neighbour among good ones.

Uses the features that csflow/extract_features.py stored: python benchmarks/nearest_neighbour.py --dataset_path DIR
--class_name mtd --img_size 256. A patch is one position of the finest scale; both usual image scores are reported, the
mean distance over the image's patches and the largest one. The same split and metrics as in csflow/: what
--calibration_share holds out there is left out here. Writes results.json, scores.csv and maps.npy (test images in the
order of scores.csv, at the features' resolution) to --output.
"""

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from sklearn.neighbors import NearestNeighbors

from common.cli import notes, progress, say, script
from common.files import UserError, atomic_write, require_writable, write_csv, write_json
from common.metrics import MaskedPixels, image_auroc
from common.runtime import pick_device
from csflow.config import build_parser, from_options
from csflow.dummy_data import ensure_dummy_data
from csflow.evaluate import load_features
from csflow.utils import load_dataset

# CS-Flow's options that matter here: those of the data, the features and the split.
USED = (
    "dataset_path", "class_name", "feature_path", "img_size", "extractor", "extractor_weights", "n_scales", "norm_mean",
    "norm_std", "batch_size", "calibration_share", "seed", "hide_tqdm_bar", "device", "gpu_ids", "cpu", "max_value",
    "max_pixels",
)  # fmt: skip


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
    """Score the test part of config.class_name and print the metrics."""
    parser = build_parser(
        "Nearest-neighbour baseline on CS-Flow's features.",
        "python benchmarks/nearest_neighbour.py --dataset_path my_data --class_name bottle",
        USED,
    )
    add = parser.add_argument_group("results").add_argument
    add("--output", type=Path, help="folder for the results; unset: in benchmarks/results")
    options = vars(parser.parse_args(argv))
    output = options.pop("output", None)
    config = from_options(options)
    device = pick_device(config.device, config.gpu_ids, config.cpu)
    ensure_dummy_data(config)
    dataset = load_dataset(config)
    if not dataset.test:
        raise UserError(f"{dataset.root} has no test images, and nothing is trained here")
    config.pre_extracted = True
    train, test, extractor = load_features(config, dataset, device)
    size = "x".join(map(str, config.img_size))
    name = f"nearest_neighbour_{config.class_name}_{extractor}_{size}"
    output = output or Path(__file__).resolve().parent / "results" / name
    require_writable(output)
    rows, _ = dataset.split(config)
    start = time.monotonic()
    maps = distance_maps(train.maps[0][rows], test.maps[0])
    seconds = time.monotonic() - start
    labels = [sample.label for sample in dataset.test]
    scores = {"mean": maps.mean(axis=(1, 2)), "max": maps.max(axis=(1, 2))}
    results = {
        "method": "nearest neighbour",
        "data": dataset.data,
        "extractor": extractor,
        "img_size": config.img_size,
        "images": {"train": len(rows), "good": labels.count(0), "defective": len(labels) - labels.count(0)},
        "image_auroc_mean": image_auroc(labels, scores["mean"]),
        "image_auroc_max": image_auroc(labels, scores["max"]),
        "seconds": seconds,
        "settings": config.as_dict(),
    }
    if any(sample.mask for sample in dataset.test):
        pixels = MaskedPixels()
        for sample, distances in zip(dataset.test, maps):
            pixels.update(sample.path, sample.label, sample.mask, distances.astype(np.float32))
        results |= pixels.compute()
    for name in ("image_auroc_mean", "image_auroc_max", "pixel_auroc", "aupro", "seconds"):
        if name in results:
            say(f"{name} {results[name]:.4f}")
    table = [[dataset.name(s), s.class_name, s.label, *pair] for s, *pair in zip(dataset.test, *scores.values())]
    write_csv(output / "scores.csv", ["path", "class", "label", "score_mean", "score_max"], table)
    with atomic_write(output / "maps.npy") as file:
        np.save(file, maps.astype(np.float32), allow_pickle=False)
    write_json(output / "results.json", {**results, "notes": notes()})
    say(f"results: {output}")


if __name__ == "__main__":
    sys.exit(main())
