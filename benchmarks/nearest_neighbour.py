"""A plain baseline for CS-Flow, without training: distance of each patch to its nearest neighbour among good ones.

Uses the features that csflow/extract_features.py stored: python benchmarks/nearest_neighbour.py --dataset_path DIR
--class_name mtd --img_size 256. A patch is one position of the finest scale; both usual image scores are reported, the
mean distance over the image's patches and the largest one. The same split and metrics as in csflow/.
"""

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from sklearn.neighbors import NearestNeighbors

from common.files import write_json
from common.images import image_size, read_mask
from common.metrics import PixelMetrics, image_auroc
from common.runtime import pick_device, progress, say, script
from csflow.config import parse
from csflow.dummy_data import ensure_dummy_data
from csflow.evaluate import load_features, upsample
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
    """Score the test part of config.class_name and print the metrics."""
    config = parse(argv, "Nearest-neighbour baseline on CS-Flow's features.")
    device = pick_device(config.device, config.gpu_ids, config.cpu)
    ensure_dummy_data(config)
    dataset = load_dataset(config)
    config.pre_extracted = True
    train, test, extractor = load_features(config, dataset, device)
    start = time.monotonic()
    maps = distance_maps(train.maps[0], test.maps[0])
    seconds = time.monotonic() - start
    labels = [sample.label for sample in dataset.test]
    results = {
        "method": "nearest neighbour",
        "data": dataset.data,
        "extractor": extractor,
        "img_size": config.img_size,
        "image_auroc_mean": image_auroc(labels, maps.mean(axis=(1, 2))),
        "image_auroc_max": image_auroc(labels, maps.max(axis=(1, 2))),
        "seconds": seconds,
    }
    if any(sample.mask for sample in dataset.test):
        pixels = PixelMetrics()
        for sample, distances in zip(dataset.test, maps):
            if sample.label == 0 or sample.mask:
                size = image_size(sample.path)
                mask = read_mask(sample.mask, size) if sample.mask else None
                pixels.update(upsample(distances.astype(np.float32), size), mask)
        results |= pixels.compute()
    for name in ("image_auroc_mean", "image_auroc_max", "pixel_auroc", "aupro", "seconds"):
        if name in results:
            say(f"{name} {results[name]:.4f}")
    size = "x".join(map(str, config.img_size))
    file = Path(__file__).resolve().parent / f"results/nearest_neighbour_{config.class_name}_{extractor}_{size}.json"
    write_json(file, results)
    say(f"results: {file}")


if __name__ == "__main__":
    sys.exit(main())
