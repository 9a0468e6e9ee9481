"""Verdicts on images that nobody has labelled: thresholds from good images, and the scoring of a folder."""

import csv
import io
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from common.figures import overlay
from common.files import (
    UserError,
    append_csv,
    atomic_write,
    digest,
    first_process,
    only_run,
    plain,
    read_json,
    reason,
    require_writable,
    write_csv,
    write_json,
)
from common.metrics import threshold_for_fpr
from common.runtime import goes_on, progress, say

Scored = tuple[float, np.ndarray, np.ndarray]  # score, image (H, W, 3) uint8, anomaly map (H, W) float32


def thresholds(scores: Sequence[float], highest: Sequence[float], fpr: float) -> dict[str, Any]:
    """Thresholds from good images: an image is defective if its score is above "image", a pixel if its map value is
    above "pixel", which at most a share `fpr` of good images exceed anywhere.

    scores, highest: score and highest map value of each good image. "promised_fpr" is the rate that so many images can
    vouch for; a line says so where it is not the one asked for.
    """
    image, promised = threshold_for_fpr(scores, fpr)
    pixel, _ = threshold_for_fpr(highest, fpr)
    if promised > fpr:
        images = "1 good image" if len(scores) == 1 else f"{len(scores)} good images"
        say(
            f"{images} cannot vouch for a false-positive rate of {fpr:g}, only for {promised:.2g}: "
            "the threshold is their highest score"
        )
    return {"image": image, "pixel": pixel, "images": len(scores), "fpr": fpr, "promised_fpr": promised}


def met_in_words(met: Mapping[str, Any]) -> str:
    """What `rates` found on the test images, as the end of a sentence; nothing where there are none."""
    good, bad = met["fpr_on_test_good"], met["detection_rate"]
    found = "" if math.isnan(good) else f"; on the test images, {good:.3f} of the good are called defective"
    return found + ("" if math.isnan(bad) else f", {bad:.3f} of the defective are")


def verdict_of(score: float, threshold: Mapping[str, Any] | None) -> str:
    """ "good", "defective", or nothing without a threshold."""
    return "" if threshold is None else "defective" if score > threshold["image"] else "good"


def rates(threshold: Mapping[str, Any], labels: np.ndarray, scores: np.ndarray) -> dict[str, Any]:
    """The threshold with the shares of good and of defective test images that it calls defective; labels: 0 is good."""
    called = scores > threshold["image"]
    good, bad = called[labels == 0], called[labels > 0]
    met = {"fpr_on_test_good": good, "detection_rate": bad}
    return {**threshold, **{name: float(part.mean()) if len(part) else float("nan") for name, part in met.items()}}


def score_folder(
    images: Path,
    output: Path,
    model: Path,
    names: Sequence[str],
    score: Callable[[Sequence[int]], Sequence[Scored | UserError]],
    batch_size: int,
    about: Mapping[str, Any],
    threshold: Mapping[str, Any] | None,
    score_name: str = "score",
    hide: bool = False,
) -> int:
    """Score images in batches; returns the exit status, 1 where some could not be read.

    names: relative paths; score(numbers): for each of these images what was found, or why nothing was. Writes to
    `output` scores.csv (path, <score_name>, threshold, verdict, error), a row as soon as an image is scored, and per
    image the map (maps/, float32 TIFF), its overlay (overlays/, JPEG) and, with a threshold, the mask of defective
    pixels (masks/, PNG); results.json with `about`. Interrupted, the same call goes on with the images that are left.
    UserError where `output` holds or would mix with something else.
    """
    if images.is_dir() and output.resolve().is_relative_to(images.resolve()):
        raise UserError(f"--output {output} lies in --images {images}: its pictures would be scored the next time")
    about = {"images": str(images.resolve()), "model": str(model), "model_sha256": digest(model), **about}
    about = {**about, "threshold": threshold}
    header = ["path", score_name, "threshold", "verdict", "error"]
    table, summary = output / "scores.csv", output / "results.json"
    require_writable(output)
    with only_run(output):
        rows = _rows_before(table, summary, about, header)
        write_json(summary, {**about, "finished": False})
        write_csv(table, header, rows)
        known = {row[0] for row in rows}
        left = [number for number, name in enumerate(names) if name not in known]
        if rows:
            say(f"continuing after {len(rows)} of {len(names)} images: {output}")
        batches = [left[i : i + batch_size] for i in range(0, len(left), batch_size)]
        counts = {"scored": len(rows), "defective": sum(row[3] == "defective" for row in rows), "failed": 0}
        with goes_on(output):
            for numbers in progress(batches, "scoring", hide=hide):
                new = []
                for number, found in zip(numbers, score(numbers)):
                    row = _row(output, names[number], found, threshold)
                    counts["scored"] += row[1] != ""
                    counts["defective"] += row[3] == "defective"
                    counts["failed"] += row[4] != ""
                    new.append(row)
                append_csv(table, new)
        write_json(summary, {**about, "finished": True, **counts})
    say(
        f"{counts['scored']} images scored"
        + (f", {counts['defective']} defective" if threshold else "")
        + f": {output}"
    )
    if counts["failed"] and first_process():
        print(
            f"{counts['failed']} images could not be read, or their maps not written; scores.csv says why",
            file=sys.stderr,
        )
    return 1 if counts["failed"] else 0


def _rows_before(table: Path, summary: Path, about: Mapping[str, Any], header: list[str]) -> list[list[str]]:
    """The rows of images that an interrupted scoring with the same model and settings has finished.

    UserError where there are scores of other images.
    """
    if not summary.exists():
        return []
    before = read_json(summary)
    if not isinstance(before, dict) or before.get("images") != about["images"]:
        raise UserError(f"{table.parent} holds results of other images than {about['images']}: choose another --output")
    if before != plain({**about, "finished": False}):
        return []
    try:
        text = table.read_bytes().decode("utf-8", "backslashreplace")
        found = list(csv.reader(io.StringIO(text[: text.rfind("\n") + 1], newline="")))  # the last line may be cut off
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UserError(f"cannot read {table}: {reason(error)}") from error
    except csv.Error as error:
        raise UserError(f"{table} is damaged ({error}): remove {table.parent} to score anew") from error
    return [row for row in found[1:] if len(row) == len(header) and row[1] and not row[4]]


def _row(output: Path, name: str, found: Scored | UserError, threshold: Mapping[str, Any] | None) -> list[Any]:
    if isinstance(found, UserError):
        return [name, "", "", "", str(found)]
    score, image, anomaly_map = found
    row = [name, score, threshold["image"] if threshold else "", verdict_of(score, threshold), ""]
    try:
        _save_pictures(output, name, image, anomaly_map, threshold["pixel"] if threshold else None)
    except UserError as error:
        row[-1] = str(error)
    return row


def _save_pictures(output: Path, name: str, image: np.ndarray, anomaly_map: np.ndarray, limit: float | None) -> None:
    hottest = 2 * limit if limit else max(float(anomaly_map.max()), 1e-6)  # the same for all images where possible
    _save(Image.fromarray(anomaly_map), output / "maps" / f"{name}.tiff", "TIFF")
    _save(Image.fromarray(overlay(image, anomaly_map, 0, hottest)), output / "overlays" / f"{name}.jpg", "JPEG")
    if limit is not None:
        defective = (anomaly_map > limit).astype(np.uint8) * 255
        _save(Image.fromarray(defective), output / "masks" / f"{name}.png", "PNG")


def _save(image: Image.Image, path: Path, format: str) -> None:
    with atomic_write(path) as file:
        image.save(file, format)
