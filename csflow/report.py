"""The report of an evaluation: results/<modelname>/report.html."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from common.images import read_image, read_mask
from common.report import Column, drawn, drawn_mask, metric_name, spread, write_image_report
from csflow.utils import Dataset


def write(path: Path, dataset: Dataset, results: dict[str, Any], scored: dict[str, np.ndarray]) -> None:
    """Write it; results: those of results.json; scored: as `csflow.utils.run_flow` gives it, for the test part."""
    counts, threshold, score = results["images"], results["threshold"], results["score"]
    held = f" ({threshold['images']} of them held out for the threshold)" if threshold else ""
    height, width = results["settings"]["img_size"]
    paragraphs = [
        f"{len(dataset.good)} good images to train on{held}, {counts['good']} good and "
        f"{counts['defective']} defective ones to test. Features: {results['extractor']}, {height} x {width} pixels. "
        f"{results['epochs_trained']} epochs; score: {score} of z²/2.",
        "The model is the last epoch's. Best F1s and the best AUROC in training are the highest on the test images "
        "themselves; the threshold comes from good images held out from the training.",
    ]
    write_image_report(
        path, f"CS-Flow on {results['class_name']}", results, paragraphs,
        [np.asarray(read_image(sample.path, dataset.max_value)) for sample in spread(dataset.good)],
        np.array([sample.label for sample in dataset.test]), scored[score],
        partial(shown_image, dataset, scored["map"]), f"{score} of z²/2",
        [(metric_name(name), results[name]) for name in ("last_auroc", "best_auroc") if name in results],
    )  # fmt: skip


def shown_image(dataset: Dataset, maps: np.ndarray, i: int) -> Column:
    """Test image i (H, W, 3) uint8 as pictures show it, its anomaly map (h, w), its name, and its mask or None."""
    sample = dataset.test[i]
    image = np.asarray(read_image(sample.path, dataset.max_value))
    mask = read_mask(sample.mask, image.shape[:2]) if sample.mask else None
    small = drawn(image)
    return small, maps[i], dataset.name(sample)[len("test/") :], drawn_mask(mask, small.shape[:2])
