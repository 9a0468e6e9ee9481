"""Properties that hold for all inputs, on inputs that hypothesis draws: metrics, masks, indices, windows, labels."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.io import savemat

from common.checkpoint import shuffled
from common.files import UserError, plain, read_json, write_json
from common.metrics import average_precision, best_f1, image_auroc, threshold_for_fpr
from crn.train import split_calibration
from crn.training.dataset import prepare, viewable
from crrn.boards import grid_side
from crrn.utils import Counts, at_pads, make_colormaps, place
from csflow import utils as csflow_utils
from memae.data.video_datasets import read_index, windows
from memae.script_eval_video import middle_frames, scaled, spans
from memae.script_img_prep import labels_from_intervals, natural, read_intervals
from memae.script_testing import worst_clips
from riad.source import datamanager
from riad.source.masks import content_keys, disjoint_masks, epoch_keys, mix
from riad.source.masks import require_cells as riad_require_cells

# The same examples each time, and none kept: a failure is the same for everybody.
settings.register_profile("ours", derandomize=True, deadline=None, database=None, max_examples=40)
settings.load_profile("ours")

SEEDS = st.integers(0, 2**32 - 1)
FINITE = st.floats(-1e6, 1e6, width=32)


@st.composite
def judged(draw, values=FINITE):
    """Labels with both classes, and scores, with ties."""
    labels = draw(st.lists(st.booleans(), min_size=2, max_size=30).filter(lambda found: len(set(found)) == 2))
    few = st.sampled_from(draw(st.lists(values, min_size=1, max_size=8)))
    return np.array(labels), np.array(draw(st.lists(few | values, min_size=len(labels), max_size=len(labels))))


# ---------------------------------------------------------------------------------------------------------- metrics


@given(judged())
def test_auroc_is_the_share_of_pairs_in_order(case):
    labels, scores = case
    bad, good = scores[labels][:, None], scores[~labels][None]
    expected = ((bad > good) + 0.5 * (bad == good)).mean()
    assert image_auroc(labels, scores) == pytest.approx(expected, abs=1e-12)
    assert image_auroc(labels, -scores) == pytest.approx(1 - expected, abs=1e-12)
    assert image_auroc(~labels, scores) == pytest.approx(1 - expected, abs=1e-12)


@given(judged(st.integers(-1000, 1000)), st.randoms(use_true_random=False))
def test_metrics_depend_on_the_order_of_scores_alone(case, random):
    labels, scores = case
    stretched = np.arctan(scores / 300) + scores**3  # rises strictly; ties stay ties
    order = random.sample(range(len(labels)), len(labels))
    for metric in (image_auroc, average_precision, lambda *both: best_f1(*both)[0]):
        value = metric(labels, scores)
        assert 0 <= value <= 1
        assert metric(labels, stretched) == pytest.approx(value, abs=1e-12)
        assert metric(labels[order], scores[order]) == pytest.approx(value, abs=1e-12)


@given(judged())
def test_average_precision_and_f1_are_their_definitions(case):
    labels, scores = case
    precision, f1, recall_before, expected = {}, {}, 0.0, 0.0
    for threshold in sorted(set(scores.tolist()), reverse=True):
        found = scores >= threshold
        precision[threshold] = labels[found].mean()
        recall = found[labels].mean()
        expected += precision[threshold] * (recall - recall_before)
        recall_before = recall
        f1[threshold] = 2 * found[labels].sum() / (found.sum() + labels.sum())
    assert average_precision(labels, scores) == pytest.approx(expected, abs=1e-9)
    best, threshold = best_f1(labels, scores)
    assert best == pytest.approx(max(f1.values()), abs=1e-12) and best == pytest.approx(f1[threshold], abs=1e-12)
    assert threshold == max(one for one, value in f1.items() if value >= best - 1e-12)


@given(st.lists(st.integers(-50, 50), min_size=1, max_size=40), st.sampled_from([0.01, 0.05, 0.1, 0.25, 0.3, 0.5, 0.9]))
def test_thresholds_keep_their_promise(scores, fpr):
    """Of exchangeable scores, each may be the new one: at most the promised share exceeds the others' threshold."""
    threshold, promised = threshold_for_fpr(scores, fpr)
    assert threshold in scores and 0 < promised <= max(fpr, 1 / (len(scores) + 1)) + 1e-12
    assert threshold_for_fpr(sorted(scores), fpr) == (threshold, promised)
    assert threshold_for_fpr(scores, fpr / 2)[0] >= threshold
    if len(scores) > 1:
        exceeding = sum(one > threshold_for_fpr(scores[:i] + scores[i + 1 :], fpr)[0] for i, one in enumerate(scores))
        promised_by_others = threshold_for_fpr(scores[1:], fpr)[1]
        assert exceeding <= promised_by_others * len(scores) + 1e-9


# ------------------------------------------------------------------------------------------------------------ masks


@given(SEEDS, st.integers(1, 40), st.integers(1, 40), st.integers(1, 12), st.integers(1, 6), st.integers(1, 3))
def test_masks_are_disjoint_and_complete(seed, height, width, k, n, batch):
    keys = epoch_keys(seed, 3, torch.arange(batch))
    cells = -(-height // k) * -(-width // k)
    if cells < n:
        with pytest.raises(UserError, match="--disjoint_n"):
            disjoint_masks(keys, (height, width), k, n)
        with pytest.raises(UserError):
            riad_require_cells((height, width), k, n)
        return
    masks = disjoint_masks(keys, (height, width), k, n)
    assert masks.shape == (batch, n, height, width) and set(masks.unique().tolist()) <= {0.0, 1.0}
    assert ((1 - masks).sum(dim=1) == 1).all()  # each pixel is hidden once
    corners = (1 - masks)[:, :, ::k, ::k]  # one pixel of each cell
    assert corners.sum(dim=(2, 3)).tolist() == [[cells // n] * (n - 1) + [cells - cells // n * (n - 1)]] * batch
    whole = corners.repeat_interleave(k, dim=2).repeat_interleave(k, dim=3)[:, :, :height, :width]
    assert torch.equal(whole, 1 - masks)  # cells are hidden as a whole
    assert torch.equal(disjoint_masks(keys[-1:], (height, width), k, n), masks[-1:])  # whatever batch it is in


@given(SEEDS, st.lists(st.integers(-(2**63), 2**63 - 1), min_size=2, max_size=50, unique=True))
def test_keys_of_unlike_things_are_unlike(seed, numbers):
    assert len(set(mix(torch.tensor(numbers)).tolist())) == len(numbers)
    images = torch.from_numpy(np.random.default_rng(seed).integers(0, 255, (3, 1, 4, 4), np.uint8))
    keys = content_keys(seed, images)
    assert keys.tolist() == [content_keys(seed, images[i : i + 1]).item() for i in range(3)]
    assert len(set(keys.tolist())) == len(set(map(str, images.tolist())))


# --------------------------------------------------------------------------------------- clips, windows and labels


@given(st.integers(0, 60), st.integers(1, 24), st.integers(1, 9))
def test_windows_are_all_clips_of_a_video(frames, length, stride):
    clips = windows(frames, length, stride)
    assert len(clips) == max(0, (frames - length) // stride + 1 if frames >= length else 0)
    assert [clip[0] for clip in clips] == [1 + stride * i for i in range(len(clips))]
    assert all(clip == list(range(clip[0], clip[0] + length)) and clip[-1] <= frames for clip in clips)
    middles = middle_frames(frames, length)
    assert middles.tolist() == [clip[length // 2] for clip in windows(frames, length)]


@given(st.integers(16, 60), st.data())
def test_scores_belong_to_the_labels_that_are_left(frames, data):
    """The original crops labels by [8:-7] for clips of 16 frames."""
    labels = np.array(data.draw(st.lists(st.booleans(), min_size=frames, max_size=frames)))
    assert labels[middle_frames(frames, 16) - 1].tolist() == labels[8 : frames - 7].tolist()


@given(st.integers(1, 30), st.data())
def test_index_files_give_back_their_clips(length, data):
    frames = length + data.draw(st.integers(0, 20))
    clip = data.draw(st.sampled_from(windows(frames, length)))
    name = data.draw(st.text("abc_-é0123", min_size=1, max_size=12))
    file = FOLDER / "index.mat"
    savemat(file, {"v_name": name, "idx": [float(number) for number in clip]})
    assert read_index(file, name, frames, length) == clip
    for other in (frames + 1 - length, length + 1):
        wrong = [number + other for number in clip] if other != length + 1 else [*clip, clip[-1] + 1]
        savemat(file, {"v_name": name, "idx": wrong})
        with pytest.raises(UserError, match=r"index\.mat"):
            read_index(file, name, frames, length)


@given(st.lists(st.booleans(), min_size=1, max_size=60), st.sampled_from(["-", ":"]))
def test_labels_survive_intervals(labels, sign):
    found = spans(np.array(labels))
    assert all(first <= last for first, last in found)
    file = FOLDER / "labels.txt"
    file.write_text("v: " + ", ".join(f"{first}{sign}{last}" for first, last in found))
    intervals = read_intervals(file, ["v"])["v"]
    assert intervals == found and labels_from_intervals(intervals, range(1, len(labels) + 1), "v").tolist() == labels
    if len(labels) > 1 and labels[-1]:
        with pytest.raises(UserError, match="reach to frame"):
            labels_from_intervals(intervals, range(1, len(labels)), "v")


@given(
    arrays(np.float64, st.integers(1, 30), elements=st.integers(-1000, 1000)),
    st.sampled_from([0.5, 2, 64]),
    st.integers(-9, 9),
)
def test_scaled_scores_lie_in_0_to_1(scores, factor, offset):
    found = scaled(scores)
    assert found.min() == 0 and found.max() in (0, 1) and (found.max() == 1) == (len(set(scores)) > 1)
    np.testing.assert_allclose(scaled(scores * factor + offset), found, atol=1e-12)
    assert (np.diff(found[np.argsort(scores)]) >= 0).all()


@given(arrays(np.float64, st.integers(1, 40), elements=st.integers(0, 99)), st.integers(0, 8), st.integers(1, 12))
def test_worst_clips_are_apart_and_none_is_passed_over(scores, count, apart):
    chosen = worst_clips(scores, count, apart)
    assert len(chosen) <= count and all(abs(a - b) >= apart for a in chosen for b in chosen if a != b)
    assert scores[chosen].tolist() == sorted(scores[chosen], reverse=True)
    if len(chosen) < count:  # whatever is left is too close to one that was taken
        assert all(any(abs(clip - one) < apart for one in chosen) for clip in range(len(scores)))


@given(st.lists(st.text("a1²٣.x_0", min_size=1, max_size=8), min_size=1, max_size=8))
def test_names_of_all_kinds_are_sorted(names):
    assert sorted(names, key=lambda name: natural(FOLDER / name)) == sorted(
        sorted(names), key=lambda name: natural(FOLDER / name)
    )


# ------------------------------------------------------------------------------------------------------------ CRRN


@given(st.floats(1, 2000))
def test_grids_are_the_next_number_that_is_1_modulo_4(side):
    pixels, rounded = grid_side(side), math.floor(side + 0.5)
    assert pixels % 4 == 1 and 0 < pixels - rounded <= 4


@given(SEEDS, st.integers(1, 9), st.integers(1, 9), st.data())
def test_pads_come_back_from_where_they_were_placed(seed, height, width, data):
    pixels = data.draw(st.lists(st.integers(0, height * width - 1), min_size=1, max_size=12, unique=True))
    rows, columns = torch.tensor(pixels) // width, torch.tensor(pixels) % width
    values = torch.randn(2, 3, len(pixels), generator=torch.Generator().manual_seed(seed))
    images = place(values, rows, columns, height, width)
    assert images.shape == (2, 3, 1, height, width) and torch.equal(at_pads(images, rows, columns), values)
    assert torch.count_nonzero(images) == torch.count_nonzero(values)


@given(st.lists(st.tuples(st.integers(-60, 60), st.integers(-5, 5)), min_size=1, max_size=30), st.sampled_from([1, -1]))
def test_counts_are_their_definition_however_they_come(pairs, sign):
    error, shift = (torch.tensor(values, dtype=torch.float64) for values in zip(*pairs))
    error = error / 10 + 0.05  # never on a threshold
    whole, parts = Counts(sign), Counts(sign)
    whole.update(error, shift)
    for i in range(len(error)):
        parts.update(error[i : i + 1], shift[i : i + 1])
    assert all(torch.equal(getattr(whole, name), getattr(parts, name)) for name in ("tp", "fp", "fn"))
    found, true = sign * error > 2.0, sign * shift > 0
    assert (whole.tp[20], whole.fp[20], whole.fn[20]) == (
        (found & true).sum(),
        (found & ~true).sum(),
        (~found & true).sum(),
    )
    curve = whole.curve()
    assert len({len(values) for values in curve.values()}) == 1
    assert all(0 < value <= 1 for name in ("Precision", "Recall", "F1") for value in curve[name])
    assert curve["Recall"] == sorted(curve["Recall"], reverse=True)  # a higher threshold finds fewer


@given(arrays(np.float64, (1, 2, 3), elements=st.floats(-50, 50)), st.floats(0.1, 9))
def test_colours_are_bounded_and_symmetric(maps, limit):
    colours = make_colormaps(maps, limit)
    assert colours.shape == (1, 3, 2, 3) and colours.min() >= 0 and colours.max() <= 1
    np.testing.assert_allclose(make_colormaps(-maps, limit)[:, ::-1], colours, atol=0.02)  # red for blue


# ------------------------------------------------------------------------------------ shares, batches, scaling, JSON


@given(st.integers(2, 50), st.sampled_from([0.1, 0.3, 0.5, 0.9]), SEEDS)
def test_held_out_images_are_a_share_and_never_trained_on(count, share, seed):
    rows = list(range(count))
    crn = split_calibration(count, share, seed, 1) if share < 0.9 else None
    riad = datamanager.split(np.arange(count), share, seed)
    for parts in (csflow_utils.split_calibration(count, share, seed), crn, riad):
        if parts is None:
            continue
        train, held = (list(part) for part in parts)
        assert sorted([*train, *held]) == rows and train and held
        assert train == sorted(train) and held == sorted(held)
        assert abs(len(held) - share * count) <= 1


@given(st.integers(1, 60), st.integers(1, 9), SEEDS, st.integers(0, 9))
def test_epochs_go_through_all_images_once(count, size, seed, epoch):
    batches = shuffled(count, size, seed % 2**31, epoch)
    assert sorted(row for batch in batches for row in batch) == list(range(count))
    assert [len(batch) for batch in batches[:-1]] == [size] * (len(batches) - 1) and 1 <= len(batches[-1]) <= size


@given(SEEDS, st.sampled_from(["MVTec", "Panorama"]), st.integers(1, 9))
def test_normalisation_can_be_undone(seed, kind, side):
    image = torch.rand(3, side, side, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(viewable(prepare(image, kind, side)[None], kind)[0], image, atol=1e-5, rtol=0)
    half = prepare(image, kind, max(side // 2, 1))
    assert half.shape == (3, max(side // 2, 1), max(side // 2, 1)) and half.isfinite().all()


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(
        allow_nan=False, allow_infinity=False,
    ) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


@settings(max_examples=15)
@given(VALUES)
def test_json_files_give_back_what_was_written(value):
    try:
        write_json(FOLDER / "a.json", value)
    except UnicodeEncodeError:
        pytest.fail("text that is not UTF-8 has to be written, too")
    if "\\ud" not in ascii(value):  # halves of surrogate pairs are written as escapes of their own
        assert read_json(FOLDER / "a.json") == plain(value) == value


@pytest.fixture(autouse=True, scope="module")
def _folder(tmp_path_factory):
    """A folder for all: hypothesis draws many examples within one test's tmp_path."""
    global FOLDER
    FOLDER = tmp_path_factory.mktemp("properties")
