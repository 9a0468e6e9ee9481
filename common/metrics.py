"""How well anomaly scores tell defective images and pixels from good ones, and what results.json says of it."""

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike
from scipy import ndimage
from sklearn import metrics

from common.cli import note, number_of, say
from common.files import write_csv
from common.images import image_size, read_mask


def image_auroc(labels: ArrayLike, scores: ArrayLike) -> float:
    """Area under the ROC curve: how often a defective image scores higher than a good one; ties count one half.

    labels, scores: see `as_arrays`. The result lies in 0..1 and is never folded: below 0.5, scores rank the wrong way
    round. nan where good or defective images are missing.
    """
    labels, scores = as_arrays(labels, scores)
    if labels.all() or not labels.any():
        return math.nan
    return float(metrics.roc_auc_score(labels, scores))


def in_words(auroc: float) -> str:
    """ "image AUROC 0.9500", or "no image AUROC" for nan."""
    return "no image AUROC" if math.isnan(auroc) else f"image AUROC {auroc:.4f}"


def average_precision(labels: ArrayLike, scores: ArrayLike) -> float:
    """Area under the precision-recall curve, as the sum of precision * gain of recall over all thresholds (0..1).

    labels, scores: see `as_arrays`. nan where good or defective images are missing.
    """
    labels, scores = as_arrays(labels, scores)
    if labels.all() or not labels.any():
        return math.nan
    return float(metrics.average_precision_score(labels, scores))


def best_f1(labels: ArrayLike, scores: ArrayLike) -> tuple[float, float]:
    """The best F1 = 2 TP / (TP + FP + TP + FN) of all thresholds t, and that t: an image is defective where score >= t.

    labels, scores: see `as_arrays`. Of equally good thresholds, the highest. Since t is chosen on the labels it is
    judged by, this is the best case, no forecast. (nan, nan) without good or defective images.
    """
    defective, scores = as_arrays(labels, scores)
    if defective.all() or not defective.any():
        return math.nan, math.nan
    values, index = np.unique(scores, return_inverse=True)
    counts = (np.bincount(index[chosen], minlength=len(values)) for chosen in (~defective, defective))
    fp, tp = (np.cumsum(count[::-1]) for count in counts)  # at each threshold, from the highest to the lowest
    f1 = _f1(fp, tp)
    best = f1.argmax()
    return float(f1[best]), float(values[::-1][best])


def as_arrays(labels: ArrayLike, scores: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """`labels` as bool (N,), True for defective, and `scores` as float64 (N,), once they are known to be sound.

    labels: 0 good, any value > 0 a defect (its kind); scores: finite, higher is more anomalous; both arrays, tensors
    or sequences of N values. Raises ValueError for unlike lengths, labels below 0 and scores that are nan or infinite.
    """
    labels, scores = _array(labels, np.float64).ravel(), _array(scores, np.float64).ravel()
    if len(labels) != len(scores):
        raise ValueError(f"{len(labels)} labels but {len(scores)} scores")
    if len(bad := np.flatnonzero(~(labels >= 0))):  # written so that it catches nan too
        raise ValueError(f"label {labels[bad[0]]:g} at position {bad[0]}: 0 is good, above 0 is defective")
    if len(bad := np.flatnonzero(~np.isfinite(scores))):
        raise ValueError(f"{len(bad)} of {len(scores)} scores not finite, first {scores[bad[0]]} at position {bad[0]}")
    return labels > 0, scores


def threshold_for_fpr(good_scores: ArrayLike, fpr: float) -> tuple[float, float]:
    """Threshold above which an image is called defective (score > threshold), and the false-positive rate it promises.

    good_scores: N finite scores of good images that took no part in training; fpr: the rate wanted, 0 < fpr < 1.

    Split-conformal prediction (Papadopoulos et al. 2002; Vovk et al. 2005): if the score of a new good image and the N
    given ones are exchangeable (any order equally likely), its rank among all N + 1 is uniform. It exceeds the k-th
    smallest of the N with a probability of (N + 1 - k) / (N + 1), less where scores tie. The smallest k that keeps this
    at or below `fpr` is ceil((N + 1)(1 - fpr)). The promise holds on average over draws of the N images, not for each.
    N < 1 / fpr - 1 images cannot support so low a rate: then the threshold is their largest score and the promise
    1 / (N + 1) > fpr.

    Raises ValueError for a rate outside 0..1 and for scores that are missing, nan or infinite.
    """
    if not 0 < fpr < 1:
        raise ValueError(f"false-positive rate {fpr}: expected a value between 0 and 1")
    scores = np.sort(_array(good_scores, np.float64), axis=None)
    if not scores.size or not np.isfinite(scores).all():
        raise ValueError(f"{len(scores)} good scores, {np.isfinite(scores).sum()} of them finite: all have to be")
    n = len(scores)
    # In exact decimals: 10 * (1 - 0.7) is 3.0000000000000004 in floats, one rank too high.
    rank = min(n, n + 1 - math.floor((n + 1) * Fraction(repr(float(fpr)))))
    return float(scores[rank - 1]), (n + 1 - rank) / (n + 1)


_DROPPED_BITS = 12  # of float32's 32: sign, 8 bits of exponent and 11 of the fraction remain
_BINS = 2 ** (32 - _DROPPED_BITS)


class PixelMetrics:
    """Pixel-wise metrics of any number of anomaly maps of any sizes, in one pass and 27 MiB.

    Each value, as float32, is counted in the bin of all numbers with the same leading 20 bits: bins are 2**-11 (0.05 %)
    of the value wide, or finer, at every scale from 1e-38 to 1e38, so that no range has to be known in advance. Values
    within a bin count as ties. Every result comes with `..._error`, a bound of what this may have changed: the exact
    value (all float32 values sorted one by one) lies within result +- error. It is derived, bin by bin, from the best
    and the worst order that the pixels of a bin can have; bins that hold one single value, such as 0, are exact.
    """

    def __init__(self):
        self.normal = np.zeros(_BINS, np.int64)
        self.defective = np.zeros(_BINS, np.int64)
        self.overlap = np.zeros(_BINS)  # each pixel of a ground-truth region weighs 1 / (pixels of the region)
        self.regions = 0
        self.first = np.full(_BINS, -1, np.int16)  # the dropped bits of the first value in each bin
        self.mixed = np.zeros(_BINS, bool)  # bins that hold unlike values

    def update(self, anomaly_map: ArrayLike, mask: ArrayLike | None = None) -> None:
        """Count the pixels of one image.

        anomaly_map: (H, W) finite floats, higher is more anomalous; mask: (H, W), true for defective pixels, None for a
        good image. Regions are 8-connected, as in MVTec AD's own evaluation. Raises ValueError for other shapes, for
        unlike ones, and for values that are nan, infinite or beyond float32.
        """
        anomaly_map = _array(anomaly_map, np.float32)
        if anomaly_map.ndim != 2:
            raise ValueError(f"anomaly map of shape {anomaly_map.shape}: expected (height, width)")
        if not np.isfinite(anomaly_map).all():
            raise ValueError(f"{(~np.isfinite(anomaly_map)).sum()} values of the anomaly map are nan or infinite")
        mask = np.zeros(anomaly_map.shape, bool) if mask is None else _array(mask, bool)
        if mask.shape != anomaly_map.shape:
            raise ValueError(f"mask of shape {mask.shape} for an anomaly map of shape {anomaly_map.shape}")

        ordered = _ordered(anomaly_map)
        bins, rest = (ordered >> _DROPPED_BITS).astype(np.intp), ordered & (2**_DROPPED_BITS - 1)  # (H, W) each
        new = self.first[bins] < 0
        self.first[bins[new]] = rest[new]
        self.mixed[bins[self.first[bins] != rest]] = True
        np.add.at(self.normal, bins[~mask], 1)
        if mask.any():
            np.add.at(self.defective, bins[mask], 1)
            region, regions = ndimage.label(mask, structure=np.ones((3, 3)))  # (H, W), 0 outside of regions
            np.add.at(self.overlap, bins[mask], 1 / np.bincount(region.ravel())[region[mask]])
            self.regions += regions

    def compute(self, fpr_limit: float = 0.3) -> dict[str, float]:
        """The metrics of all pixels so far, each in 0..1 but for the threshold.

        pixel_auroc, pixel_ap: as `image_auroc` and `average_precision`, over the pixels of all images together.
        pixel_best_f1, pixel_best_f1_threshold: the highest F1 of all thresholds, the best case, since it is chosen on
        the masks, and that threshold (defective where the float32 value >= threshold). aupro: per-region overlap
        (the share of a region's pixels that is found, averaged over all regions) over the false-positive rate of all
        normal pixels, its area from rate 0 to `fpr_limit` by trapezoids, divided by `fpr_limit` (Bergmann et al. 2020,
        "Uninformed Students"). The last point before the limit and the first after it are joined by a straight line.
        pixel_auroc_error, pixel_ap_error, pixel_best_f1_error, aupro_error: see the class.

        All nan where normal or defective pixels are missing. Raises ValueError unless 0 < fpr_limit <= 1.
        """
        if not 0 < fpr_limit <= 1:
            raise ValueError(f"fpr_limit {fpr_limit}: expected a value above 0, up to 1")
        used = np.flatnonzero(self.normal + self.defective)[::-1]  # from the highest value to the lowest
        n, d, o = self.normal[used], self.defective[used], self.overlap[used]
        fp, tp = np.cumsum(n), np.cumsum(d)  # at each threshold: the lower edge of each bin
        normal, defective = float(n.sum()), float(d.sum())
        if not normal or not defective:
            names = "pixel_auroc", "pixel_ap", "pixel_best_f1", "aupro"
            return dict.fromkeys([*names, "pixel_best_f1_threshold", *(f"{name}_error" for name in names)], math.nan)

        # A defective pixel wins against the normal ones in lower bins, and half against those in its own.
        auroc = d @ (normal - fp + n / 2) / (normal * defective)

        # Within a bin, the precision at its i-th defective pixel is highest if all of them stand before all normal
        # pixels (and tie), lowest if they stand after them: then it is (tp' + i) / (tp' + i + fp), tp' being tp of the
        # bin before. That is concave in i, so that its mean over i is at least that of its two ends.
        mixed = self.mixed[used]
        movable = n * mixed  # normal pixels that may stand before or after the bin's defective ones
        ap = d @ (tp / (tp + fp)) / defective
        first = np.where(mixed, tp - d + 1, tp)
        highest = d @ (tp / np.maximum(tp + fp - movable, 1)) / defective
        lowest = d @ (first / (first + fp) + tp / (tp + fp)) / 2 / defective
        f1 = _f1(fp, tp)
        best = f1.argmax()

        # One point per threshold, from (0, 0), up to the first at or beyond the limit, which is moved back onto it.
        rate, pro = np.append(0, fp / normal), np.append(0, np.cumsum(o) / self.regions)
        end = np.searchsorted(rate, fpr_limit)
        part = (fpr_limit - rate[end - 1]) / (rate[end] - rate[end - 1])
        pro_at_limit = pro[end - 1] + part * (pro[end] - pro[end - 1])
        x, y = np.append(rate[:end], fpr_limit), np.append(pro[:end], pro_at_limit)

        return {
            "pixel_auroc": float(auroc),
            "pixel_ap": float(ap),
            "pixel_best_f1": float(f1[best]),
            "pixel_best_f1_threshold": _lower_edge(used[best]),
            "aupro": float(np.trapezoid(y, x) / fpr_limit),
            "pixel_auroc_error": float(movable @ (d / 2) / (normal * defective)),
            "pixel_ap_error": float(max(highest - ap, ap - lowest)),
            # The exact curve is anywhere in the box that a bin's line crosses from corner to corner.
            "aupro_error": float(movable[:end] @ o[:end] / 2 / (normal * self.regions) / fpr_limit),
            "pixel_best_f1_error": float(_f1(fp - movable, tp).max() - f1[best]),
        }


def upsample(anomaly_map: np.ndarray | torch.Tensor, size: Sequence[int]) -> np.ndarray:
    """Map (h, w) at the network's resolution to (H, W) = size, bilinear, float32."""
    values = anomaly_map if isinstance(anomaly_map, torch.Tensor) else torch.tensor(anomaly_map)
    return F.interpolate(values[None, None], tuple(size), mode="bilinear", align_corners=False)[0, 0].cpu().numpy()


def thresholds(
    scores: Sequence[float], highest: Sequence[float], fpr: float, medians: Sequence[float] = ()
) -> dict[str, Any]:
    """Thresholds from good images: an image is defective if its score is above "image", a pixel if its map value is
    above "pixel", which at most a share `fpr` of good images exceed anywhere.

    scores, highest, medians: score, highest and median map value of each good image. "promised_fpr" is the rate that so
    many images can vouch for; `rates` and `score_folder` say so where it is not the one asked for. "usual" is the
    median of the medians, at which the colours of overlays begin; None without any.
    """
    image, promised = threshold_for_fpr(scores, fpr)
    pixel, _ = threshold_for_fpr(highest, fpr)
    if not np.isfinite(medians).all():
        raise ValueError("medians of good images' maps that are not finite")
    usual = float(np.median(medians)) if len(medians) else None
    return {
        "image": image, "pixel": pixel, "usual": usual, "images": len(scores), "fpr": fpr, "promised_fpr": promised
    }  # fmt: skip


def say_promise(threshold: Mapping[str, Any]) -> None:
    """Say where the threshold keeps a higher false-positive rate than the one asked for."""
    if threshold["promised_fpr"] > threshold["fpr"]:
        say(
            f"{number_of(threshold['images'], 'good image is', 'good images are')} too few for --fpr "
            f"{threshold['fpr']:g} (lowest possible: {threshold['promised_fpr']:.2g}, which is used)"
        )


def verdict_of(score: float | None, threshold: Mapping[str, Any] | None) -> str:
    """ "good", "defective", or nothing without a score or a threshold."""
    if score is None or threshold is None or threshold["image"] is None:
        return ""
    return "defective" if score > threshold["image"] else "good"


def rates(threshold: Mapping[str, Any], labels: np.ndarray, scores: np.ndarray) -> dict[str, Any]:
    """The threshold with the shares of good and of defective test images that it calls defective; labels: 0 is good."""
    say_promise(threshold)
    called = scores > threshold["image"]
    good, bad = called[labels == 0], called[labels > 0]
    met = {"fpr_on_test_good": good, "detection_rate": bad}
    return {**threshold, **{name: float(part.mean()) if len(part) else float("nan") for name, part in met.items()}}


class MaskedPixels:
    """Pixel metrics of test images, of which defective ones without a mask are left out, counted and named."""

    def __init__(self):
        self.metrics = PixelMetrics()
        self.without: list[str] = []

    def update(self, path: Path, label: int, mask: Any, anomaly_map: np.ndarray | torch.Tensor) -> None:
        """Count the pixels of an image; label: 0 is good; mask: as `read_mask` takes it, or nothing."""
        if label and not mask:  # nobody knows which of its pixels are defective
            self.without.append(path.name)
            return
        size = image_size(path)
        self.metrics.update(upsample(anomaly_map, size), read_mask(mask, size) if mask else None)

    def compute(self) -> dict[str, Any]:
        """The metrics, and "defective_images_without_mask"."""
        if self.without:
            note(
                f"the pixel metrics leave out {number_of(len(self.without), 'defective image')} without a mask, "
                f"such as {self.without[0]}"
            )
        return self.metrics.compute() | {"defective_images_without_mask": len(self.without)}


def evaluate(
    labels: np.ndarray,
    scores: np.ndarray,
    threshold: Mapping[str, Any] | None = None,
    pixels: MaskedPixels | None = None,
    kinds: Sequence[str] = (),
) -> dict[str, Any]:
    """What results.json says of scored test images, under the same names in all methods.

    labels: (N,), 0 is good; scores: (N,); threshold: as `thresholds` gives it; pixels: of all images; kinds: of the
    defects, the name of each image's class. "images", "image_auroc", "image_ap", "image_best_f1" and its threshold,
    with `pixels` those of `PixelMetrics.compute`, "threshold", as `rates` gives it, or None, and "by_defect", for each
    kind its images, their AUROC against all good images and the share of them above the threshold (nan without one).
    The thresholds of the best F1 are chosen on the test set.
    """
    f1, f1_threshold = best_f1(labels, scores)
    return {
        "images": {"good": int((labels == 0).sum()), "defective": int((labels > 0).sum())},
        "image_auroc": image_auroc(labels, scores),
        "image_ap": average_precision(labels, scores),
        "image_best_f1": f1,
        "image_best_f1_threshold": f1_threshold,
        **(pixels.compute() if pixels else {}),
        "best_f1_chosen_on": "test set",
        "threshold": rates(threshold, labels, scores) if threshold else None,
        "by_defect": _by_defect(labels, scores, threshold, np.asarray(kinds)) if len(kinds) else {},
    }


def _by_defect(
    labels: np.ndarray, scores: np.ndarray, threshold: Mapping[str, Any] | None, kinds: np.ndarray
) -> dict[str, dict[str, float]]:
    found = {}
    for kind in dict.fromkeys(kinds[labels > 0].tolist()):
        good, defective = labels == 0, (labels > 0) & (kinds == kind)
        above = scores[defective] > (threshold["image"] if threshold else math.nan)
        found[kind] = {
            "images": int(defective.sum()),
            "image_auroc": image_auroc(labels[good | defective], scores[good | defective]),
            "detection_rate": float(above.mean()) if threshold else math.nan,
        }
    return found


def say_results(results: Mapping[str, Any], score: str = "") -> None:
    """The lines that a script ends with; score: which one it is, where a method has several."""
    chosen, score = "(its threshold is chosen on the test set)", f" ({score})" if score else ""
    f1 = "" if math.isnan(results["image_auroc"]) else f", best F1 {results['image_best_f1']:.4f} {chosen}"
    say(f"{in_words(results['image_auroc'])}{score}{f1}")
    if math.isnan(results.get("aupro", 0)):
        say("no pixel metrics: they need normal and defective pixels")
    elif "aupro" in results:
        pair = f"pixel AUROC {results['pixel_auroc']:.4f}, AUPRO {results['aupro']:.4f}"
        say(f"{pair}, best F1 {results['pixel_best_f1']:.4f} {chosen}")
    if threshold := results["threshold"]:
        held = number_of(threshold["images"], "held-out good image")
        words = f"threshold {threshold['image']:.4g} from {held}: false-positive rate {threshold['promised_fpr']:.2g}"
        for name, value in (("good", threshold["fpr_on_test_good"]), ("defective", threshold["detection_rate"])):
            words += "" if math.isnan(value) else f"; {value:.3f} of the {name} test images are above it"
        say(words)
    for kind, one in results["by_defect"].items() if len(results["by_defect"]) > 1 else ():
        share = "" if math.isnan(one["detection_rate"]) else f", {one['detection_rate']:.3f} of them found"
        say(f"  {kind} ({number_of(one['images'], 'image')}): {in_words(one['image_auroc'])}{share}")


def write_scores(
    path: Path,
    images: Sequence[tuple[str, str, int | str]],
    scores: Mapping[str, Sequence[float | None]],
    threshold: Mapping[str, Any] | None,
    errors: Sequence[str] = (),
) -> None:
    """scores.csv, a row for each image: path, class, label, score, other scores, threshold, verdict, error.

    images: path, class and label of each ("" where unknown); scores: by column, the first of them "score", which the
    verdict is about; errors: why an image has none.
    """
    limit = threshold["image"] if threshold else None
    rows = []
    for image, error, *values in zip(images, errors or [""] * len(images), *scores.values(), strict=True):
        verdict = verdict_of(values[0], threshold)
        rows.append([*image, *values, limit if verdict else None, verdict, error])
    write_csv(path, ["path", "class", "label", *scores, "threshold", "verdict", "error"], rows)


def _array(values: ArrayLike, dtype: type) -> np.ndarray:
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
        values = values.float() if values.dtype == torch.bfloat16 else values  # which NumPy does not know
    with np.errstate(over="ignore"):  # beyond float32 becomes infinite, which the caller reports
        return np.asarray(values, dtype=dtype)


def _f1(fp: np.ndarray, tp: np.ndarray) -> np.ndarray:
    """F1 = 2 TP / (TP + FP + TP + FN) at each threshold; the last one finds every defect."""
    return 2 * tp / (tp + fp + tp[-1])


def _ordered(values: np.ndarray) -> np.ndarray:
    """float32 values as uint32 in the same order."""
    bits = (values + np.float32(0)).view(np.uint32)  # -0.0 + 0.0 is 0.0, so that both are one
    # Sign and magnitude, read as an integer, put negative values above the positive ones and the wrong way round.
    return np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31))


def _lower_edge(number: int) -> float:
    """The smallest float32 value in a bin: `_ordered` undone."""
    bits = np.uint32(int(number) << _DROPPED_BITS)
    return float((bits ^ np.uint32(1 << 31) if bits >> 31 else ~bits).view(np.float32))
