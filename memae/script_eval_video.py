"""AUC and pictures from the scores that script_testing.py wrote: python script_eval_video.py, with the same options.

Writes to <OutRoot>/res_<setting>/: acc.txt, results.json, scores.csv (a row per scored frame), for each video
<video>_score.mat, <video>_label.mat and plots/<video>.png; with --report, report.html too. Videos without labels get
scores and plots, no AUC.
"""

import sys
from argparse import Namespace
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from scipy.io import savemat

from common.checkpoint import versions
from common.cli import note, notes, number_of, progress, say, script
from common.files import UserError, atomic_write, digest, plain, read_json, read_mat, write_csv, write_json
from common.images import synthetic
from common.metrics import image_auroc
from common.report import Column
from common.runtime import channels_last
from memae import report
from memae.data import VideoDatasetOneDir
from memae.data.demo_videos import ensure_data
from memae.data.video_datasets import (
    file_numbers,
    frame_files,
    frame_size,
    read_frame,
    read_npy,
    require_labels,
    subfolders,
)
from memae.options import TestOptions
from memae.pictures import curve_figure
from memae.script_testing import listed, middle_frame
from memae.utils import device_of, load_weights, make_model, plain_settings, setting_name


@dataclass
class Scored:
    """One video: the frames that have a score (places from 1), their scores, and their labels where known."""

    name: str
    frames: np.ndarray  # (N,) int
    scores: np.ndarray  # (N,) float64
    labels: np.ndarray | None  # (N,) bool
    all_labels: np.ndarray | None  # of all frames of the video
    numbers: np.ndarray  # of all frames, in the files that they were made of


def scaled(scores: np.ndarray) -> np.ndarray:
    """Scores of one video, scaled to 0..1 by their own minimum and maximum; 0 where all are equal."""
    low, high = scores.min(), scores.max()
    return np.zeros_like(scores) if high == low else (scores - low) / (high - low)


def middle_frames(frames: int, frame_num: int) -> np.ndarray:
    """Numbers of the frames that the clips' scores belong to, for all clips of a video with `frames` frames.

    The 9th of 16 frames: labels [8:-7].
    """
    return np.arange(max(frames - frame_num + 1, 0)) + frame_num // 2 + 1


def aucs(videos: list[Scored]) -> dict[str, float]:
    """Frame AUC over the frames of all labelled videos together: "auc" of the scores scaled per video, "auc_raw".

    nan where all frames are normal, or all abnormal.
    """
    labels = np.concatenate([video.labels for video in videos])
    if labels.all() or not labels.any():
        return {"auc": float("nan"), "auc_raw": float("nan")}
    return {
        "auc": image_auroc(labels, np.concatenate([scaled(video.scores) for video in videos])),
        "auc_raw": image_auroc(labels, np.concatenate([video.scores for video in videos])),
    }


def difference_scores(folder: Path, middles: np.ndarray, opt: Namespace) -> np.ndarray:
    """The plain baseline: for each clip, the mean absolute difference of consecutive frames, in grey levels (0..255).

    folder: a prepared video; middles: the middle frames of its clips, each of consecutive frames, (N,) -> (N,).
    """
    files = frame_files(folder)
    size = frame_size(files)
    differences, before = [], None
    for path in progress(files, f"{folder.name} baseline"):
        frame = read_frame(path, opt.ImgChnNum, size, files[0]).astype(np.float32)
        if before is not None:
            differences.append(np.abs(frame - before).mean(dtype=np.float64))
        before = frame
    total = np.concatenate([[0], np.cumsum(differences)])  # total[k]: of the steps up to frame k + 1
    first = middles - opt.FrameNum // 2 - 1
    return (total[first + opt.FrameNum - 1] - total[first]) / (opt.FrameNum - 1)


def read_scores(path: Path) -> np.ndarray:
    """Scores (N,) from a .npy file. UserError where it is missing, broken or not finite."""
    if not path.is_file():
        raise UserError(f"there is no file {path}: run script_testing.py with the same options")
    scores = read_npy(path)
    if scores.dtype.kind not in "fiu" or scores.ndim != 1 or not len(scores):
        raise UserError(f"{path} does not hold one score per clip")
    if not np.isfinite(scores).all():
        raise UserError(f"{path} holds scores that are nan or infinite")
    return scores.astype(np.float64)


def read_labels(path: Path, video: str, frames: int | None) -> np.ndarray:
    """Labels (frames,) bool from <video>.mat. UserError where there are fewer or more than the video has frames."""
    labels = require_labels(read_mat(path, "l")[0], path)
    if frames is not None and len(labels) != frames:
        raise UserError(f"{path} has labels for {len(labels)} frames, {video} has {frames}")
    return labels


def read_tested(folder: Path, opt: Namespace) -> dict[str, Any]:
    """What script_testing.py stored beside the scores; nothing where the scores are another program's.

    UserError where the file is damaged, or the clips were of other lengths than --FrameNum.
    """
    path = folder / "testing.json"
    if not path.is_file():
        return {}
    tested = read_json(path)
    tested = tested if isinstance(tested, Mapping) else {}
    for name in ("settings", "videos"):
        if not isinstance(tested.get(name), Mapping):
            raise UserError(f"{path} is damaged, its {name!r} is missing or no object: run script_testing.py again")
    if (length := tested["settings"].get("FrameNum")) != opt.FrameNum:
        raise UserError(f"the scores in {folder} are of clips of {length} frames, not of --FrameNum {opt.FrameNum}")
    return dict(tested)


def scored_frames(tested: dict[str, Any], video: str, frames: int, opt: Namespace) -> np.ndarray:
    """Numbers of the frames that the scores of `video` belong to, (N,). UserError where that is not to be had."""
    possible = middle_frames(frames, opt.FrameNum)
    if not tested:
        return possible
    numbers = _entry(tested, video).get("scored_frames")
    if not isinstance(numbers, list) or not all(type(n) is int and possible[0] <= n <= possible[-1] for n in numbers):
        raise UserError(
            f"testing.json does not say which of the frames {possible[0]} to {possible[-1]} of {video} the scores "
            "belong to: run script_testing.py again"
        )
    return np.array(numbers, dtype=int)


def _entry(tested: dict[str, Any], video: str) -> Mapping[str, Any]:
    entry = tested["videos"].get(plain(video)) if tested else None
    return entry if isinstance(entry, Mapping) else {}


def chosen(tested: dict[str, Any]) -> str:
    """How the model that gave the scores was chosen."""
    if not tested:
        return "unknown"
    return "by --ModelFilePath" if tested["settings"].get("ModelFilePath") else "last epoch"


def load_videos(opt: Namespace, folder: Path, tested: dict[str, Any]) -> list[Scored]:
    """All scored videos of the data set, in the order of their names; what is left out is said.

    tested: see `read_tested`. UserError where scores are missing or do not fit the video or its labels.
    """
    root = opt.DataRoot / opt.Dataset
    videos, without = [], []
    for name in subfolders(root / "Test"):
        frames = len(frame_files(root / "Test" / name))
        if frames < opt.FrameNum:
            note(f"{name} is skipped: it has {frames} frames, a clip {opt.FrameNum}")
            continue
        path = folder / f"{name}.npy"
        scores = read_scores(path)
        middles = scored_frames(tested, name, frames, opt)
        if len(middles) != len(scores):
            raise UserError(f"{path} has {len(scores)} scores, {name} has {len(middles)} clips: run script_testing.py")
        if _entry(tested, name).get("sha256") not in (None, digest(path)):
            raise UserError(f"{path} has changed since script_testing.py wrote it: run it again")
        file = root / "Test_gt" / f"{name}.mat"
        labels = read_labels(file, name, frames) if file.is_file() else None
        if labels is None:
            without.append(name)
        of_scored, numbers = None if labels is None else labels[middles - 1], file_numbers(root / "Test" / name, frames)
        videos.append(Scored(name, middles, scores, of_scored, labels, numbers))
    if not videos:
        raise UserError(f"no video in {root / 'Test'} has the {opt.FrameNum} frames of a clip")
    if without:
        number = number_of(len(without), "video has", "videos have")
        note(f"{number} no labels in {root / 'Test_gt'}, such as {without[0]}: scores, but no AUC")
    return videos


def spans(labels: np.ndarray) -> list[tuple[int, int]]:
    """First and last frame (from 1) of each run of abnormal frames."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], labels.astype(int), [0]])))
    return [(int(first) + 1, int(last)) for first, last in zip(edges[::2], edges[1::2])]


def evaluate(opt: Namespace) -> dict[str, Any]:
    """Everything this script does; returns the results."""
    name = setting_name(opt)
    root, folder = opt.DataRoot / opt.Dataset, opt.OutRoot / f"res_{name}"
    if not folder.is_dir():
        raise UserError(f"there are no scores in {folder}: run script_testing.py with the same options")
    made = synthetic(root)
    tested = read_tested(folder, opt)
    videos = load_videos(opt, folder, tested)
    baseline = [replace(v, scores=difference_scores(root / "Test" / v.name, v.frames, opt)) for v in videos]
    labelled = [i for i, video in enumerate(videos) if video.labels is not None]
    results = {
        "method": opt.ModelName,
        "data": "synthetic" if made else str(root),
        "model": tested.get("model"),
        "model_sha256": tested.get("model_sha256"),
        "chosen": chosen(tested),
        "tested_on_training_videos": _prepared(root).get("same_videos") is True,
        "videos": len(videos),
        "unlabelled_videos": [video.name for video in videos if video.labels is None],
        "frames": sum(len(videos[i].scores) for i in labelled),
        "abnormal_frames": sum(int(videos[i].labels.sum()) for i in labelled),
    }
    if labelled:
        results |= aucs([videos[i] for i in labelled])
        results |= {f"baseline_{key}": value for key, value in aucs([baseline[i] for i in labelled]).items()}
        results["auc_per_video"] = {videos[i].name: _quiet_auc(videos[i]) for i in labelled}
    results |= {"settings": plain_settings(opt), "tested_with": tested.get("settings"), "versions": versions()}
    before = [record["notes"] for record in (_prepared(root), tested) if isinstance(record.get("notes"), list)]
    results["notes"] = [*dict.fromkeys(str(line) for lines in (*before, notes()) for line in lines)]

    _write(opt, root, folder, videos, baseline, results)
    _say_results(opt, folder, results, made)
    if opt.report:
        curves = [[scaled(one.scores) for one in scored] for scored in (videos, baseline)]
        report.write(opt, folder, videos, *curves, results, error_maps_of(opt, tested))
    return results


def error_maps_of(opt: Namespace, tested: dict[str, Any]) -> Callable[[Scored, int], Column]:
    """A function (video, clip) -> frame, error map, name and no mask, by the model that gave the scores.

    UserError where the model is another one now.
    """
    path = opt.ModelFilePath or Path(str(tested.get("model") or opt.ModelRoot / f"{setting_name(opt)}.pt"))
    device, model = device_of(opt), make_model(opt)
    load_weights(model, path, opt)
    if tested.get("model_sha256") != digest(path):
        raise UserError(f"--report: the scores are not known to be those of {path}: run script_testing.py again")
    model.to(device, memory_format=channels_last(device, 5)).eval()

    @cache
    def dataset(name: str) -> VideoDatasetOneDir:
        return listed(opt.DataRoot / opt.Dataset, name, opt)

    def column(video: Scored, clip: int) -> Column:
        image, error = middle_frame(model, dataset(video.name), clip, opt, device)
        return image, error, f"{video.name}, frame {video.numbers[video.frames[clip] - 1]}", None

    return column


def _quiet_auc(video: Scored) -> float:
    """AUC within one video; nan, as JSON's null, where it has only normal or only abnormal frames."""
    return aucs([video])["auc_raw"]


def _prepared(root: Path) -> Mapping[str, Any]:
    """What script_img_prep.py recorded, nothing where it made none of this."""
    record = read_json(root / "prepared.json") if (root / "prepared.json").is_file() else None
    return record if isinstance(record, Mapping) else {}


def _write(
    opt: Namespace, root: Path, folder: Path, videos: list[Scored], baseline: list[Scored], results: dict[str, Any]
) -> None:
    with atomic_write(folder / "acc.txt", "w") as file:
        file.write(f"{root}\nAUC: {results.get('auc', float('nan'))}\n")
    rows = []
    for video, difference in zip(videos, baseline):
        labels = [""] * len(video.scores) if video.labels is None else video.labels.astype(int).tolist()
        score = scaled(video.scores)
        numbers = video.numbers[video.frames - 1]
        for row in zip(numbers.tolist(), video.scores, score, 1 - score, difference.scores, labels):
            rows.append([video.name, *row])
        with atomic_write(folder / f"{video.name}_score.mat") as file:
            savemat(file, {"score": video.scores, "regularity": 1 - score, "frame": numbers})
        if video.labels is not None:
            with atomic_write(folder / f"{video.name}_label.mat") as file:
                savemat(file, {"l": video.labels.astype(np.float64)})
        curves = {
            opt.ModelName: (numbers, score),
            "frame difference": (numbers, scaled(difference.scores)),
        }
        runs = [] if video.all_labels is None else spans(video.all_labels)
        shaded = [(video.numbers[first - 1], video.numbers[last - 1]) for first, last in runs]
        curve_figure(
            folder / "plots" / f"{video.name}.png", curves, f"{video.name} of {opt.Dataset}",
            "frame", "error, scaled to 0..1", shaded, "abnormal",
        )  # fmt: skip
    header = ["video", "frame", "error", "error_scaled", "regularity", "frame_difference", "label"]
    write_csv(folder / "scores.csv", header, rows)
    write_json(folder / "results.json", results)


def _say_results(opt: Namespace, folder: Path, results: dict[str, Any], made: bool) -> None:
    if made:
        say("generated videos, not real data: these numbers say nothing about real ones")
    if results["tested_on_training_videos"]:
        say("the test videos are the training videos: these scores say little about others")
    if results["frames"] and results["abnormal_frames"] in (0, results["frames"]):
        kind = "abnormal" if results["abnormal_frames"] else "normal"
        say(f"no AUC: all {results['frames']} labelled frames are {kind}")
    elif "auc" in results:
        say(
            f"{opt.ModelName} frame AUC {results['auc']:.4f} (errors scaled per video), {results['auc_raw']:.4f} raw, "
            f"{results['frames']} frames, {results['abnormal_frames']} abnormal; model: {results['chosen']}"
        )
        say(f"baseline (frame difference) {results['baseline_auc']:.4f} scaled, {results['baseline_auc_raw']:.4f} raw")
    say(f"results and plots: {folder}")


@script
def main(argv: list[str] | None = None) -> None:
    """Evaluate the scores of a setting."""
    opt = TestOptions(
        "Evaluate the scores of script_testing.py, with the same options.",
        "python memae/script_eval_video.py --Dataset mine --report",
    ).parse(argv)
    ensure_data(opt)
    evaluate(opt)


if __name__ == "__main__":
    sys.exit(main())
