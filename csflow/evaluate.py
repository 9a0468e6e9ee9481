"""Evaluate a saved model on the test part: python evaluate.py --modelname dummy_test

Writes viz/scores/<modelname>/{score_histogram,all,<defect>}.png, viz/maps/<modelname>/<n>.jpg, and
results/<modelname>/{results.json,scores.csv}; with --report, results/<modelname>/report.html too.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common.cli import answer_early
from csflow.config import parse_evaluate

answer_early(__name__, parse_evaluate)

from collections.abc import Mapping
from typing import Any

import numpy as np

from common import checkpoint
from common.cli import notes, number_of, progress, say, script
from common.files import first_process, locked, require_writable, using, write_json
from common.images import same_images, set_max_pixels
from common.metrics import MaskedPixels, image_auroc, say_results, thresholds, write_scores
from common.metrics import evaluate as metrics_of
from common.report import colour_range, map_sheet, roc_figure, score_histogram
from common.runtime import pick_device
from csflow import report
from csflow.config import Config
from csflow.dummy_data import ensure_dummy_data
from csflow.extract_features import load_features
from csflow.model import CSFlow, load_model, require_same_weights
from csflow.utils import Dataset, Features, load_dataset, run_flow

NO_THRESHOLD = "no threshold, no verdicts: no good images were held out, or the training was not finished"


def thresholds_of(content: Mapping[str, Any], path: Path, score: str, fpr: float) -> dict[str, Any] | None:
    """`common.metrics.thresholds` from the held-out good images, whose scores are stored in the model's file `path`
    (its `content`); None without such."""
    if (calibration := content.get("calibration")) is None:
        return None
    with using(path, "csflow"):
        return thresholds(calibration[score], calibration["map"], fpr, calibration.get("median", ()))


def evaluate(
    options: Config, dataset: Dataset, flow: CSFlow, test_set: Features, metadata: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Score the test part, write pictures, scores.csv and results.json; returns the results and what `run_flow` found.

    metadata: what is stored beside the model. Pixel metrics are given where masks exist.
    """
    threshold = thresholds_of(metadata, options.model_file, options.score, options.fpr)
    labels = np.array([sample.label for sample in dataset.test])
    scored = run_flow(flow, test_set, range(len(labels)), options.batch_size)
    pixels = pixels_of(dataset, scored["map"], options.hide_tqdm_bar)
    # Of other images than these, the history would read like results on them.
    same = same_images(str(metadata.get("fingerprint")), dataset.fingerprint)
    history = metadata.get("history", []) if same else []
    results = {
        "method": "CS-Flow",
        "data": dataset.data,
        "trained_on": metadata.get("data"),
        "epochs_trained": metadata.get("epoch"),
        "chosen_on": "last epoch",
        "class_name": options.class_name,
        "extractor": metadata["extractor"],
        "score": options.score,
        **metrics_of(labels, scored[options.score], threshold, pixels, [sample.class_name for sample in dataset.test]),
        "image_auroc_std": image_auroc(labels, scored["std"]),
        "image_auroc_mean": image_auroc(labels, scored["mean"]),
        "history": history,
        **_last_and_best([entry[f"auroc_{options.score}"] for entry in history], history),
        "training_seconds": metadata.get("seconds"),
        "device": str(next(flow.parameters()).device),
        "settings": options.as_dict(),
        "versions": checkpoint.versions(),
        "notes": notes(),
    }
    images = [(dataset.name(sample), sample.class_name, sample.label) for sample in dataset.test]
    columns = {"score": scored[options.score], **{f"score_{name}": scored[name] for name in ("std", "mean")}}
    write_scores(options.result_dir / "scores.csv", images, columns, threshold)
    write_json(options.result_dir / "results.json", results)
    title = f"CS-Flow on {options.class_name}"
    if dataset.test:
        limit, score_name = threshold["image"] if threshold else None, f"{options.score} of z²/2"
        _draw_scores(options.score_picture_dir, dataset, scored[options.score], limit, title, score_name)
        rows = np.flatnonzero(labels)[:: options.map_every]
        sheets = [rows[i : i + options.map_columns] for i in range(0, len(rows), options.map_columns)]
        _draw_maps(options.map_picture_dir, dataset, scored["map"], sheets, title, threshold, options.hide_tqdm_bar)

    epoch, step = metadata.get("epoch"), metadata.get("step")
    minutes = metadata.get("settings", {}).get("minutes")  # of the training
    over = minutes is not None and metadata["seconds"] >= 60 * minutes
    if epoch is not None and (step or epoch < options.epochs) and not over:
        done = number_of(epoch, "epoch") + (f" and {number_of(step, 'step')}" if step else "")
        say(f"the model's training is not finished: {done}")
    say_results(results, f"{options.score} score")
    if "best_auroc" in results:
        say(
            f"  in training: last {results['last_auroc']:.4f} after epoch {history[-1]['epoch']}, best "
            f"{results['best_auroc']:.4f} after epoch {results['best_auroc_epoch']} (the best is chosen on the test "
            "set; the model that is saved and evaluated here is the last)"
        )
    if not threshold:
        say(NO_THRESHOLD)
    say(f"results: {options.result_dir}")
    if dataset.test:
        say(f"pictures: {options.score_picture_dir}" + (f" and {options.map_picture_dir}" if labels.any() else ""))
    return results, scored


def pixels_of(dataset: Dataset, maps: np.ndarray, hide: bool) -> MaskedPixels | None:
    """Those of the test images, whose maps are (N, h, w); None without masks."""
    if not any(sample.mask for sample in dataset.test):
        if any(sample.label for sample in dataset.test):  # else there is nothing to mark
            say(f"no masks in {dataset.root / 'ground_truth'}: no pixel metrics")
        return None
    pixels = MaskedPixels()
    for sample, anomaly_map in zip(progress(dataset.test, "pixel metrics", hide=hide), maps):
        pixels.update(sample.path, sample.label, sample.mask, anomaly_map)
    return pixels


def _last_and_best(aurocs: list[float], history: list[dict[str, Any]]) -> dict[str, Any]:
    """The AUROC of the last evaluation in training, which is the saved model's, and the highest of all."""
    if not aurocs or np.isnan(aurocs).all():
        return {}
    best = int(np.nanargmax(aurocs))
    return {
        "last_auroc": aurocs[-1],
        "best_auroc": aurocs[best],
        "best_auroc_epoch": history[best]["epoch"],
        "best_auroc_chosen_on": "test set",
    }


def _draw_scores(
    folder: Path, dataset: Dataset, scores: np.ndarray, limit: float | None, title: str, score_name: str
) -> None:
    labels = np.array([sample.label for sample in dataset.test])
    score_histogram(folder / "score_histogram.png", labels, scores, title, limit, score_name=score_name)
    roc_figure(folder / "all.png", {"all defects": (labels, scores)}, title)
    for label, defect in enumerate(dataset.class_names[1:], start=1):
        chosen = (labels == 0) | (labels == label)
        # A defect folder named like one of the other figures must not overwrite it.
        file = f"{defect}_defect.png" if defect in ("all", "score_histogram") else f"{defect}.png"
        roc_figure(folder / file, {defect: (labels[chosen], scores[chosen])}, title)


def _draw_maps(
    folder: Path,
    dataset: Dataset,
    maps: np.ndarray,
    sheets: list[np.ndarray],
    title: str,
    threshold: Mapping[str, Any] | None,
    hide: bool,
) -> None:
    """sheets: the indices of each picture's images."""
    good = np.array([sample.label == 0 for sample in dataset.test])
    vmin, vmax, limit, _ = colour_range(maps, maps[good] if good.any() else maps, threshold)
    for number, rows in enumerate(progress(sheets, "map pictures", hide=hide)):
        *columns, masks = zip(*(report.shown_image(dataset, maps, i) for i in rows))
        map_sheet(folder / f"{number}.jpg", list(zip(*columns)), title, masks, vmax, vmin, limit)
    names = {f"{number}.jpg" for number in range(len(sheets))}
    for old in [path for path in folder.glob("*.jpg") if path.name not in names] if first_process() else ():
        old.unlink()


@script(memory="a smaller --batch_size")
def main(argv: list[str] | None = None) -> None:
    """Model, data, features, evaluation."""
    options = parse_evaluate(argv)
    set_max_pixels(options.max_pixels)
    device = pick_device(options.device, options.gpu_ids, options.cpu)
    flow, options, content = load_model(options.model_file, options, device)
    ensure_dummy_data(options.root)
    dataset = load_dataset(options.root, options.max_value, options.img_size)
    _, test_set = load_features(
        options.feature_dir, dataset, device, options.extraction, stored=options.pre_extracted,
        batch_size=options.batch_size, hide=options.hide_tqdm_bar,
    )  # fmt: skip
    require_same_weights(test_set.weights, content, options.model_file)
    for folder in (options.score_picture_dir, options.map_picture_dir):
        require_writable(folder)
    with locked(options.result_dir):
        results, scored = evaluate(options, dataset, flow, test_set, content)
        if options.report:
            report.write(options.result_dir / "report.html", dataset, results, scored)


if __name__ == "__main__":
    sys.exit(main())
