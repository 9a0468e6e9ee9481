"""Evaluate a saved model on the test part: python evaluate.py --modelname dummy_test

Writes viz/scores/<modelname>/{score_histogram,all,<defect>}.png, viz/maps/<modelname>/<n>.jpg, and
results/<modelname>/{results.json,scores.csv}; with --report, results/<modelname>/report.html too.
"""

import sys
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch

from common import checkpoint
from common.cli import notes, progress, say, script
from common.figures import drawn, drawn_mask, map_sheet, roc_figure, score_histogram
from common.files import first_process, locked, require_writable, write_csv, write_json
from common.images import read_image, read_mask, same_images
from common.metrics import (
    MaskedPixels,
    average_precision,
    best_f1,
    image_auroc,
    in_words,
    met_in_words,
    rates,
    thresholds,
    verdict_of,
)
from common.report import Column
from common.runtime import pick_device
from csflow import report
from csflow.config import Config, parse
from csflow.dummy_data import ensure_dummy_data
from csflow.extract_features import extract, features_exist, open_features
from csflow.model import CSFlow, load_extractor, load_model
from csflow.utils import ComputedFeatures, Dataset, Features, load_dataset, require_same_weights, run_flow

NO_THRESHOLD = "no threshold, no verdicts: no good images were held out, or the training was not finished"


def load_features(config: Config, dataset: Dataset, device: torch.device) -> tuple[Features, Features, str]:
    """Features of train and test part and the extractor's name: stored ones, extracted first where there are none,
    or, with pre_extracted False, computed from the images whenever they are needed."""
    if not config.pre_extracted:
        extractor, name = load_extractor(config, device)
        parts = [[sample.path for sample in samples] for samples in (dataset.train, dataset.test)]
        return *(ComputedFeatures(paths, config, extractor, device) for paths in parts), name
    if not features_exist(config):
        say(f"no features of {config.class_name} in {config.feature_path} yet: extracting them")
        extract(config, dataset, device)
    return open_features(config, dataset)


def thresholds_of(calibration: dict[str, list[float]] | None, config: Config) -> dict[str, Any] | None:
    """`common.scoring.thresholds` from the held-out good images, None without such."""
    if calibration is None:
        return None
    with checkpoint.using(config.model_file, "csflow"):
        return thresholds(calibration[config.score], calibration["map"], config.fpr)


def evaluate(
    config: Config, dataset: Dataset, model: CSFlow, test_set: Features, about: dict[str, Any], device: torch.device
) -> dict[str, Any]:
    """Score the test part, write figures, scores.csv and results.json, and return the results.

    about: what is stored beside the model (`train.train`). Pixel metrics are given where masks exist.
    """
    threshold = thresholds_of(about.get("calibration"), config)
    labels = np.array([sample.label for sample in dataset.test])
    scored = run_flow(model, test_set, range(len(labels)), config, device)
    scores = scored[config.score]
    # Of other images than these, the history would read like results on them.
    history = about.get("history", []) if same_images(str(about.get("fingerprint")), dataset.fingerprint) else []
    f1, f1_threshold = best_f1(labels, scores)
    results = {
        "method": "CS-Flow",
        "data": dataset.data,
        "trained_on": about.get("data"),
        "epochs_trained": about.get("epoch"),
        "class_name": config.class_name,
        "extractor": about["extractor"],
        "score": config.score,
        "images": {"good": int((labels == 0).sum()), "defective": int((labels > 0).sum())},
        "image_auroc": image_auroc(labels, scores),
        "image_auroc_std": image_auroc(labels, scored["std"]),
        "image_auroc_mean": image_auroc(labels, scored["mean"]),
        "image_ap": average_precision(labels, scores),
        "image_best_f1": f1,
        "image_best_f1_threshold": f1_threshold,
        **_pixel_metrics(dataset, scored["map"], config),
        "threshold": rates(threshold, labels, scores) if threshold else None,
        "history": history,
        **_last_and_best(history, config),
        "training_seconds": about.get("seconds"),
        "device": str(device),
        "settings": config.as_dict(),
        "versions": checkpoint.versions(),
        "notes": notes(),
    }
    _write_scores(config, dataset, scored, threshold)
    write_json(config.result_dir / "results.json", results)
    if dataset.test:
        _draw(config, dataset, scored, threshold)
    _say_results(config, results, about)
    if config.report:
        column = partial(shown_image, config, dataset, scored["map"])
        report.write(config, dataset, labels, scores, results, column)
    return results


def _pixel_metrics(dataset: Dataset, maps: np.ndarray, config: Config) -> dict[str, Any]:
    if not any(sample.mask for sample in dataset.test):
        if any(sample.label for sample in dataset.test):  # else there is nothing to mark
            say(f"no masks in {dataset.root / 'ground_truth'}: no pixel metrics")
        return {}
    pixels = MaskedPixels()
    for sample, anomaly_map in zip(progress(dataset.test, "pixel metrics", hide=config.hide_tqdm_bar), maps):
        pixels.update(sample.path, sample.label, sample.mask, anomaly_map)
    return pixels.compute()


def _last_and_best(history: list[dict[str, Any]], config: Config) -> dict[str, Any]:
    """The AUROC of the last evaluation in training, which is the saved model's, and the highest of all."""
    aurocs = [entry[f"auroc_{config.score}"] for entry in history]
    if not aurocs or np.isnan(aurocs).all():
        return {}
    best = int(np.nanargmax(aurocs))
    return {
        "last_auroc": aurocs[-1],
        "best_auroc": aurocs[best],
        "best_auroc_epoch": history[best]["epoch"],
        "best_auroc_chosen_on": "test set",
    }


def _write_scores(config: Config, dataset: Dataset, scored: dict[str, Any], threshold: dict[str, Any] | None) -> None:
    rows = []
    for i, sample in enumerate(dataset.test):
        verdict = verdict_of(scored[config.score][i], threshold)
        rows.append(
            [dataset.name(sample), sample.class_name, sample.label, scored["std"][i], scored["mean"][i], verdict]
        )
    header = ["path", "class", "label", "score_std", "score_mean", "verdict"]
    write_csv(config.result_dir / "scores.csv", header, rows)


def _draw(config: Config, dataset: Dataset, scored: dict[str, Any], threshold: dict[str, Any] | None) -> None:
    labels = np.array([sample.label for sample in dataset.test])
    scores, folder = scored[config.score], config.score_picture_dir
    limit = threshold["image"] if threshold else None
    title = f"CS-Flow on {config.class_name}"
    name = f"{config.score} of z²/2"
    score_histogram(folder / "score_histogram.png", labels, scores, title, limit, score_name=name)
    roc_figure(folder / "all.png", {"all defects": (labels, scores)}, title)
    for label, defect in enumerate(dataset.class_names[1:], start=1):
        chosen = (labels == 0) | (labels == label)
        # A defect folder named like one of the other figures must not overwrite it.
        file = f"{defect}_defect.png" if defect in ("all", "score_histogram") else f"{defect}.png"
        roc_figure(folder / file, {defect: (labels[chosen], scores[chosen])}, title)

    defective = np.flatnonzero(labels)[:: config.map_every]
    folder = config.map_picture_dir
    good, maps = labels == 0, scored["map"]
    # From what is usual in good images, or where there are none in all, to the highest values.
    vmin, vmax = float(np.median(maps[good] if good.any() else maps)), float(np.quantile(maps, 0.999))
    sheets = [defective[i : i + config.map_columns] for i in range(0, len(defective), config.map_columns)]
    for number, rows in enumerate(progress(sheets, "map pictures", hide=config.hide_tqdm_bar)):
        *columns, masks = zip(*(shown_image(config, dataset, maps, i) for i in rows))
        map_sheet(folder / f"{number}.jpg", list(zip(*columns)), title, masks, vmin=vmin, vmax=vmax)
    names = {f"{number}.jpg" for number in range(len(sheets))}
    for old in [path for path in folder.glob("*.jpg") if path.name not in names] if first_process() else ():
        old.unlink()


def shown_image(config: Config, dataset: Dataset, maps: np.ndarray, i: int) -> Column:
    """Test image i (H, W, 3) uint8 as pictures show it, its anomaly map (h, w), its name, and its mask or None."""
    sample = dataset.test[i]
    image = np.asarray(read_image(sample.path, config.max_value))
    mask = read_mask(sample.mask, image.shape[:2]) if sample.mask else None
    small = drawn(image)
    return small, maps[i], dataset.name(sample)[len("test/") :], drawn_mask(mask, small.shape[:2])


def _say_results(config: Config, results: dict[str, Any], about: dict[str, Any]) -> None:
    epoch, step = about.get("epoch"), about.get("step")
    if epoch is not None and (step or epoch < config.meta_epochs * config.sub_epochs):
        say(f"the model's training is not finished: {epoch} epochs" + (f" and {step} steps" if step else ""))
    say(f"{in_words(results['image_auroc'])} ({config.score} score)")
    if "best_auroc" in results:
        say(
            f"  in training: last {results['last_auroc']:.4f} after epoch {results['history'][-1]['epoch']}, best "
            f"{results['best_auroc']:.4f} after epoch {results['best_auroc_epoch']} (the best is chosen on the test "
            "set; the model that is saved and evaluated here is the last)"
        )
    if "aupro" in results:
        pair = f"pixel AUROC {results['pixel_auroc']:.4f}, AUPRO {results['aupro']:.4f}"
        say(f"{pair}, best F1 {results['pixel_best_f1']:.4f} (its threshold is chosen on the test set)")
    if results["threshold"]:
        met = results["threshold"]
        say(
            f"threshold {met['image']:.4g} for a false-positive rate of {met['promised_fpr']:.2g}, from "
            f"{met['images']} held-out good images{met_in_words(met)}"
        )
    else:
        say(NO_THRESHOLD)
    say(f"results: {config.result_dir}")
    if any(results["images"].values()):
        maps = f" and {config.map_picture_dir}" if results["images"]["defective"] else ""
        say(f"pictures: {config.score_picture_dir}{maps}")


@script(memory="a smaller --batch_size")
def main(argv: list[str] | None = None) -> None:
    """Evaluate config.modelname."""
    does = "Evaluate a saved model on the test images of its class."
    config = parse(argv, does, "python csflow/evaluate.py --modelname bottle --report")
    device = pick_device(config.device, config.gpu_ids, config.cpu)
    model, config, about = load_model(config.model_file, config, device)
    config.extractor = about["extractor"]
    ensure_dummy_data(config)
    dataset = load_dataset(config)
    _, test_set, _ = load_features(config, dataset, device)
    require_same_weights(test_set, about, config.model_file)
    for folder in (config.score_picture_dir, config.map_picture_dir):
        require_writable(folder)
    with locked(config.result_dir):
        evaluate(config, dataset, model, test_set, about, device)


if __name__ == "__main__":
    sys.exit(main())
