"""The report of an evaluation: results/<modelname>/report.html."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from common.figures import drawn, drawn_mask
from common.images import read_image, read_mask
from common.report import Column, data_sentence, metric_name, write_image_report
from csflow.utils import Dataset

METRICS = (
    "image_auroc",
    "image_ap",
    "image_best_f1",
    "pixel_auroc",
    "aupro",
    "pixel_best_f1",
    "last_auroc",
    "best_auroc",
)
RATES = ("promised_fpr", "fpr_on_test_good", "detection_rate")


def write(path: Path, dataset: Dataset, results: dict[str, Any], scored: dict[str, np.ndarray]) -> None:
    """Write it; results: those of results.json; scored: as `csflow.utils.run_flow` gives it, for the test part."""
    counts, threshold, score = results["images"], results["threshold"], results["score"]
    held = f" ({threshold['images']} of them held out for the threshold)" if threshold else ""
    height, width = results["settings"]["img_size"]
    about = [
        data_sentence(results["data"]),
        f"{len(dataset.train)} good images to train on{held}, {counts['good']} good and "
        f"{counts['defective']} defective ones to test. Features: {results['extractor']}, {height} x {width} pixels. "
        f"{results['epochs_trained']} epochs; score: {score} of z²/2.",
        "The model is the last epoch's. Best F1s and the best AUROC in training are the highest on the test images "
        "themselves; the threshold comes from good images held out from the training.",
    ]
    numbers = [(metric_name(name), results[name]) for name in METRICS if name in results]
    numbers += [(f"threshold: {metric_name(name)}", threshold[name]) for name in RATES if threshold]
    write_image_report(
        path, f"CS-Flow on {results['class_name']}", about, numbers,
        [np.asarray(read_image(sample.path, dataset.max_value)) for sample in dataset.train[:6]],
        np.array([sample.label for sample in dataset.test]), scored[score],
        partial(shown_image, dataset, scored["map"]), threshold["image"] if threshold else None, f"{score} of z²/2",
    )  # fmt: skip


def shown_image(dataset: Dataset, maps: np.ndarray, i: int) -> Column:
    """Test image i (H, W, 3) uint8 as pictures show it, its anomaly map (h, w), its name, and its mask or None."""
    sample = dataset.test[i]
    image = np.asarray(read_image(sample.path, dataset.max_value))
    mask = read_mask(sample.mask, image.shape[:2]) if sample.mask else None
    small = drawn(image)
    return small, maps[i], dataset.name(sample)[len("test/") :], drawn_mask(mask, small.shape[:2])
