import math
import tracemalloc

import numpy as np
import pytest
import torch

from common.metrics import (
    PixelMetrics,
    as_arrays,
    average_precision,
    evaluate,
    image_auroc,
    say_results,
    threshold_for_fpr,
)

PIXEL_METRICS = ["pixel_auroc", "pixel_ap", "pixel_best_f1", "aupro"]


# --- images ---


def test_image_metrics_by_hand():
    # Descending: 0.9 defective, 0.8 good, 0.7 defective, 0.7 good, 0.1 good.
    labels, scores = [0, 3, 0, 1, 0], [0.8, 0.9, 0.7, 0.7, 0.1]
    # 0.9 beats 3 of 3 good ones; 0.7 beats 0.1, ties with 0.7, loses to 0.8: 1.5 of 3.
    assert image_auroc(labels, scores) == pytest.approx(4.5 / 6)
    # Recall 1/2 at precision 1/1, the other half at 0.7, where 2 of 4 are defective.
    assert average_precision(labels, scores) == pytest.approx(0.5 * 1 + 0.5 * 2 / 4)


def test_tensors_and_any_label_above_zero():
    scores = torch.tensor([0.5, 0.25, 1.0], dtype=torch.bfloat16, requires_grad=True)
    assert image_auroc(torch.tensor([0, 0, 7]), scores) == 1


@pytest.mark.parametrize("labels", [[0, 0], [1, 2], []])
def test_one_class_has_no_metrics(labels, capsys):
    for metric in (image_auroc, average_precision):
        assert math.isnan(metric(labels, [0.5] * len(labels)))
    say_results(evaluate(np.array(labels), np.full(len(labels), 0.5)))
    assert capsys.readouterr().out == "no image AUROC\n"


@pytest.mark.parametrize(
    ("labels", "scores", "message"),
    [
        ([0, 1], [1, 2, 3], "2 labels but 3 scores"),
        ([0, 1, 1], [1, math.nan, math.inf], "2 of 3 scores not finite, first nan at position 1"),
        ([0, 1], [0, -math.inf], "first -inf at position 1"),
        ([1, -1], [0, 1], "label -1 at position 1"),
        ([math.nan, 1], [0, 1], "label nan at position 0"),
    ],
)
def test_unsound_input_is_named(labels, scores, message):
    for metric in (image_auroc, average_precision, as_arrays):
        with pytest.raises(ValueError, match=message):
            metric(labels, scores)


# --- pixels: exact values, threshold by threshold ---


def flood_regions(mask):
    """List of the 8-connected regions of `mask`, each a list of (row, column)."""
    left, regions = set(zip(*np.nonzero(mask))), []
    while left:
        todo, region = [left.pop()], []
        while todo:
            row, column = todo.pop()
            region.append((row, column))
            around = {(row + i, column + j) for i in (-1, 0, 1) for j in (-1, 0, 1)} & left
            left -= around
            todo += around
        regions.append(region)
    return regions


def exact(maps, masks, limits=(0.3,)):
    """All metrics by their definitions, from every distinct value as a threshold: one dict for each limit."""
    normal = np.concatenate([m[~k] for m, k in zip(maps, masks)])
    defective = np.concatenate([m[k] for m, k in zip(maps, masks)])
    regions = [np.array([m[p] for p in region]) for m, k in zip(maps, masks) for region in flood_regions(k)]
    wins = (defective[:, None] > normal).mean() + (defective[:, None] == normal).mean() / 2
    rate, overlap, ap, f1 = [0.0], [0.0], 0.0, 0.0
    found_before = 0
    for t in sorted(set(normal) | set(defective), reverse=True):
        tp, fp = (defective >= t).sum(), (normal >= t).sum()
        ap += (tp - found_before) / len(defective) * tp / (tp + fp)
        found_before = tp
        f1 = max(f1, 2 * tp / (tp + fp + len(defective)))
        rate.append(fp / len(normal))
        overlap.append(np.mean([(region >= t).mean() for region in regions]))
    results = []
    for limit in limits:
        area = 0.0
        for x0, x1, y0, y1 in zip(rate, rate[1:], overlap, overlap[1:]):
            if x0 < limit and x1 > x0:
                x = min(x1, limit)
                area += (x - x0) * (y0 + y0 + (y1 - y0) * (x - x0) / (x1 - x0)) / 2
        results.append({"pixel_auroc": wins, "pixel_ap": ap, "pixel_best_f1": f1, "aupro": area / limit})
    return results


def binned(maps, masks, limit=0.3):
    pixels = PixelMetrics()
    for anomaly_map, mask in zip(maps, masks):
        pixels.update(anomaly_map, mask)
    return pixels.compute(limit)


def random_maps(seed, draw):
    """Six maps of unlike sizes, with masks of blobs and single pixels; one of the images is good."""
    rng = np.random.default_rng(seed)
    maps, masks = [], []
    for number, (height, width) in enumerate([(1, 1), (7, 3), (12, 17), (20, 20), (3, 40), (25, 9)]):
        mask = rng.random((height, width)) < (0.15 if number != 3 else 0)
        maps.append((draw(rng, (height, width)) + mask * draw(rng, (height, width))).astype(np.float32))
        masks.append(mask)
    return maps, masks


DRAWS = {
    "normal, both signs": lambda rng, shape: rng.normal(size=shape),
    "many ties": lambda rng, shape: rng.integers(-2, 3, shape) / 4,
    "huge": lambda rng, shape: rng.normal(size=shape) * 1e37,
    "twenty decades": lambda rng, shape: 10 ** rng.uniform(-10, 10, shape),
    "few bins": lambda rng, shape: 1000 + rng.random(shape),  # a bin is 0.5 wide here
}


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_pixel_metrics_lie_within_their_error_of_the_exact_ones(draw):
    maps, masks = random_maps(0, draw)
    limits = [0.05, 0.3, 1]
    for limit, truth in zip(limits, exact(maps, masks, limits)):
        result = binned(maps, masks, limit)
        for name in PIXEL_METRICS:
            assert abs(result[name] - truth[name]) <= result[f"{name}_error"] + 1e-12, name
            if draw is not DRAWS["few bins"]:
                assert result[f"{name}_error"] < 2e-3, name


@pytest.mark.parametrize(
    "draw", [DRAWS["many ties"], lambda rng, shape: np.zeros(shape)], ids=["many ties", "constant"]
)
def test_bins_of_a_single_value_are_exact(draw):
    maps, masks = random_maps(1, draw)
    (truth,), result = exact(maps, masks), binned(maps, masks)
    for name in PIXEL_METRICS:
        assert result[name] == pytest.approx(truth[name], abs=1e-12)
        assert result[f"{name}_error"] <= 1e-12


def test_errors_are_reached_where_all_order_is_lost_within_one_bin():
    values = (1 + np.arange(100) / 1e6).astype(np.float32)[None]  # (1, 100), all in the bin from 1 to 1 + 2**-11
    assert len(set(values.ravel())) == 100
    best = np.arange(100)[None] >= 50
    for mask, auroc in ((best, 1), (~best, 0)):
        (truth,), result = exact([values], [mask]), binned([values], [mask])
        assert (result["pixel_auroc"], result["pixel_auroc_error"]) == (0.5, 0.5)
        assert truth["pixel_auroc"] == auroc
        for name in PIXEL_METRICS:
            assert abs(result[name] - truth[name]) <= result[f"{name}_error"] + 1e-12, name


def test_unlike_values_of_one_bin_are_noticed_across_images():
    # 1 + 2**-20 shares the bin of 1, whose dropped bits are all zero: of 2 pairs, (1, 1 + 2**-20) is undecided.
    result = binned([np.array([[1.0, 0.5]]), np.array([[1 + 2**-20]])], [np.array([[1, 0]]), None])
    assert (result["pixel_auroc"], result["pixel_auroc_error"]) == (0.75, 0.25)


def test_highest_bin_of_normal_pixels_only():
    result = binned([np.array([[1, 1 + 2**-20, 0.5]])], [np.array([[0, 0, 1]])])  # no precision before its end
    assert result["pixel_ap"] == pytest.approx(1 / 3)
    assert result["pixel_ap_error"] == pytest.approx(0, abs=1e-12)


def test_tensors_flipped_maps_and_missing_masks_are_counted():
    rng = np.random.default_rng(2)
    maps, masks = [rng.normal(size=size) for size in ((20, 30), (16, 12), (9, 9))], []
    for one in maps:
        masks.append(np.zeros(one.shape, bool))
    masks[0][2:5, 3:6] = masks[1][5:9, 5:10] = True
    pixels = PixelMetrics()
    pixels.update(torch.tensor(maps[0], requires_grad=True), torch.tensor(masks[0]))
    pixels.update(maps[1][::-1], masks[1][::-1] * 255)  # negative strides
    pixels.update(maps[2], None)
    assert pixels.compute() == pytest.approx(binned(maps, masks), abs=1e-12)


@pytest.mark.parametrize("value", [-3.5, -1e-40, 0.0, 1e-40, 2.5, 3e38, -3e38])
def test_f1_threshold_is_just_below_the_defect_for_any_sign_and_scale(value):
    value = np.float32(value)
    pixels = PixelMetrics()
    pixels.update([[value, value - max(abs(value) / 100, np.float32(1e-30))]], [[1, 0]])
    result = pixels.compute()
    assert result["pixel_best_f1"] == 1
    assert value - max(abs(value) * 2**-11, 1e-38) <= result["pixel_best_f1_threshold"] <= value


# --- pixels: by hand ---


def test_pixel_metrics_by_hand():
    # map   9 1 1 0    mask  # . . .    regions: the 9 alone, and the diagonal 8-2 (8-connected)
    #       1 1 8 4          . . # .
    #       1 1 6 2          . . . #
    anomaly_map = np.array([[9, 1, 1, 0], [1, 1, 8, 4], [1, 1, 6, 2]])
    mask = np.array([[1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    result = binned([anomaly_map], [mask])
    # Normal pixels: 6 4 1 1 1 1 1 1 0. 9 and 8 beat all 9, 2 beats 7.
    assert result["pixel_auroc"] == pytest.approx(25 / 27)
    # 9, 8 at precision 1, 2 at 3 of 5.
    assert result["pixel_ap"] == pytest.approx((1 + 1 + 3 / 5) / 3)
    # F1 = 2 TP / (TP + FP + 3): 2/4, 4/5 at 8, 4/6, 4/7, 6/8 at 2, ...
    assert result["pixel_best_f1"] == pytest.approx(4 / 5)
    assert result["pixel_best_f1_threshold"] == 8
    # (rate, overlap): (0, 1/2) at 9, (0, (1 + 1/2) / 2) at 8, (1/9, 3/4) at 6, (2/9, 3/4) at 4, (2/9, 1) at 2, then 1.
    assert result["aupro"] == pytest.approx((2 / 9 * 3 / 4 + (0.3 - 2 / 9) * 1) / 0.3)
    # 4-connected, the diagonal would be two regions, and the overlap 2/3 instead of 3/4.


def test_aupro_interpolates_at_the_limit():
    # One region of 2 pixels; 4 normal ones. Points: (0, 0), (0, 1/2) at 5, then both the rest of it and 2 of 4 normal
    # pixels at 1: (1/2, 1), then (1, 1). At 0.3 the line from (0, 1/2) to (1/2, 1) is at 0.8.
    result = binned([np.array([[5, 1, 1, 1, 0, 0]])], [np.array([[1, 1, 0, 0, 0, 0]])])
    assert result["aupro"] == pytest.approx((0.5 + 0.8) / 2)
    # Limit 1/2, on a point: (1/2 + 1) / 2; beyond: half of that and half of 1.
    assert binned([np.array([[5, 1, 1, 1, 0, 0]])], [np.array([[1, 1, 0, 0, 0, 0]])], 0.5)["aupro"] == 0.75
    assert binned([np.array([[5, 1, 1, 1, 0, 0]])], [np.array([[1, 1, 0, 0, 0, 0]])], 1)["aupro"] == 0.875


def test_aupro_counts_regions_alike_and_false_positives_over_all_images():
    # A region of 4 pixels is found, one of a single pixel is not: overlap 1/2, though 4 of 5 pixels are found. The good
    # image's 3 pixels score between them, and its 3 and the 5 normal pixels elsewhere make the rate 3/8 > 0.3 there.
    maps = [np.array([[9, 9, 0, 0], [9, 9, 0, 0]]), np.array([[5, 5, 5]]), np.array([[2, 0]])]
    masks = [np.array([[1, 1, 0, 0], [1, 1, 0, 0]]), None, np.array([[1, 0]])]
    assert binned(maps, masks)["aupro"] == pytest.approx(0.5)


def test_negative_zero_is_zero():
    result = binned([np.array([[-0.0, 0.0, -1e-30, 1e-30]])], [np.array([[1, 0, 0, 0]])])
    # The defect ties with 0.0, beats -1e-30 and loses to 1e-30.
    assert result["pixel_auroc"] == pytest.approx(0.5)
    assert result["pixel_auroc_error"] == 0


# --- pixels: what may go wrong ---


@pytest.mark.parametrize("mask", [None, np.ones((2, 2))])
def test_pixels_of_one_kind_have_no_metrics(mask):
    pixels = PixelMetrics()
    assert math.isnan(pixels.compute()["aupro"])
    pixels.update(np.arange(4.0).reshape(2, 2), mask)
    result = pixels.compute()
    assert all(math.isnan(value) for value in result.values())
    pixels.update([[0, 1]], [[0, 1]])  # both kinds from here on
    assert result.keys() == pixels.compute().keys()


@pytest.mark.parametrize(
    ("anomaly_map", "mask", "message"),
    [
        (np.zeros((2, 3)), np.zeros((3, 2)), r"mask of shape \(3, 2\) for an anomaly map of shape \(2, 3\)"),
        (np.zeros((1, 2, 3)), None, r"shape \(1, 2, 3\): expected \(height, width\)"),
        ([[0, math.nan]], None, "1 values of the anomaly map are nan or infinite"),
        ([[0, -math.inf]], [[0, 1]], "nan or infinite"),
        ([[0, 1e39]], None, "nan or infinite"),  # as float32
    ],
)
def test_unsound_maps_are_refused_and_not_counted(anomaly_map, mask, message):
    pixels = PixelMetrics()
    with pytest.raises(ValueError, match=message):
        pixels.update(anomaly_map, mask)
    assert not pixels.normal.any() and not pixels.defective.any()


@pytest.mark.parametrize("limit", [0, 1.1, math.nan])
def test_limit_outside_of_0_to_1_is_refused(limit):
    with pytest.raises(ValueError, match="fpr_limit"):
        PixelMetrics().compute(limit)


def test_memory_does_not_grow_with_the_number_of_maps():
    rng = np.random.default_rng(4)
    maps, mask = rng.normal(size=(40, 128, 128)).astype(np.float32), rng.random((128, 128)) < 0.1
    pixels = PixelMetrics()
    pixels.update(maps[0], mask)
    tracemalloc.start()
    try:
        pixels.update(maps[1], mask)
        held, few = tracemalloc.get_traced_memory()
        for anomaly_map in maps:
            pixels.update(anomaly_map, mask)
        held_after, many = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    one_map = maps[0].nbytes
    assert held_after - held < one_map / 4
    assert many - few < one_map / 4


# --- threshold ---


def test_threshold_by_hand():
    scores = [9, 1, 8, 2, 7, 3, 6, 4, 5]  # 9 of them: rank ceil(10 * (1 - fpr))
    assert threshold_for_fpr(scores, 0.1) == (9, 0.1)
    assert threshold_for_fpr(scores, 0.2) == (8, 0.2)
    assert threshold_for_fpr(scores, 0.25) == (8, 0.2)  # rank ceil(7.5)
    assert threshold_for_fpr(scores, 0.7) == (3, 0.7)  # 10 * (1 - 0.7) is above 3 in floats
    assert threshold_for_fpr(scores, 0.95) == (1, 0.9)
    # 9 images support no rate below 1/10.
    assert threshold_for_fpr(scores, 0.05) == (9, 0.1)
    assert threshold_for_fpr(torch.tensor([2.5]), 0.01) == (2.5, 0.5)


@pytest.mark.parametrize("fpr", [0, 1, -0.1, math.nan])
def test_unsound_rates_and_good_scores_are_refused(fpr):
    with pytest.raises(ValueError, match="false-positive rate"):
        threshold_for_fpr([1, 2], fpr)
    for scores in ([], [1, math.nan], [math.inf]):
        with pytest.raises(ValueError, match=f"{len(scores)} good scores"):
            threshold_for_fpr(scores, 0.1)
