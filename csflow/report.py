"""The report of an evaluation: results/<modelname>/report.html."""

from collections.abc import Callable
from typing import Any

import numpy as np

from common.images import read_image
from common.report import Column, data_sentence, metric_name, write_image_report
from csflow.config import Config
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


def write(
    config: Config,
    dataset: Dataset,
    labels: np.ndarray,
    scores: np.ndarray,
    results: dict[str, Any],
    column: Callable[[int], Column],
) -> None:
    """Write it; results: those of results.json; labels, scores, column: see `common.report.write_image_report`."""
    counts, threshold = results["images"], results["threshold"]
    held = f" ({threshold['images']} of them held out for the threshold)" if threshold else ""
    about = [
        data_sentence(results["data"]),
        f"{len(dataset.train)} good images to train on{held}, {counts['good']} good and "
        f"{counts['defective']} defective ones to test. Features: {results['extractor']}, "
        f"{config.img_size[0]} x {config.img_size[1]} pixels. {results['epochs_trained']} epochs; "
        f"score: {config.score} of z²/2.",
        "The model is the last epoch's. Best F1s and the best AUROC in training are the highest on the test images "
        "themselves; the threshold comes from good images held out from the training.",
    ]
    numbers = [(metric_name(name), results[name]) for name in METRICS if name in results]
    numbers += [(f"threshold: {metric_name(name)}", threshold[name]) for name in RATES if threshold]
    write_image_report(
        config.result_dir / "report.html", f"CS-Flow on {config.class_name}", about, numbers,
        [np.asarray(read_image(sample.path, config.max_value)) for sample in dataset.train[:6]], labels, scores, column,
        threshold["image"] if threshold else None, f"{config.score} of z²/2",
    )  # fmt: skip
