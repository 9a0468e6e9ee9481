"""AUC and pictures from the scores that script_testing.py wrote: python script_eval_video.py, with the same options.

Writes to <OutRoot>/res_<setting>/: acc.txt, results.json, scores.csv (a row per scored frame), for each video
<video>_score.mat, <video>_label.mat and plots/<video>.png; with --report, report.html too. Videos without labels get
scores and plots, no AUC.
"""

import sys
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common.cli import answer_early, note, notes, number_of, progress, say, script
from memae.options import evaluation_options

answer_early(__name__, evaluation_options().parse)

import numpy as np
from scipy.io import savemat

from common.checkpoint import versions
from common.files import UserError, atomic_write, digest, locked, plain, read_json, write_csv, write_json
from common.images import synthetic
from common.metrics import evaluate, image_auroc, rates, thresholds, verdict_of
from common.report import Column
from common.runtime import pick_device
from memae import report
from memae.data import VideoDatasetOneDir
from memae.data.demo_videos import with_data
from memae.data.matlab import read_mat
from memae.data.video_datasets import (
    file_numbers,
    frame_files,
    frame_size,
    read_frame,
    read_npy,
    require_labels,
    subfolders,
)
from memae.pictures import curve_figure
from memae.script_testing import middle_frame, open_video
from memae.utils import load_scorer, model_path, plain_settings, setting_name


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


def aucs(videos: Sequence[Scored]) -> dict[str, float]:
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


def difference_scores(folder: Path, middles: np.ndarray, channels: int, frame_num: int) -> np.ndarray:
    """The plain baseline: for each clip, the mean absolute difference of consecutive frames, in grey levels (0..255).

    folder: a prepared video; middles: the middle frames of its clips, each of consecutive frames, (N,) -> (N,).
    """
    files = frame_files(folder)
    size = frame_size(files)
    differences, before = [], None
    for path in progress(files, f"{folder.name} baseline"):
        frame = read_frame(path, channels, size, files[0]).astype(np.float32)
        if before is not None:
            differences.append(np.abs(frame - before).mean(dtype=np.float64))
        before = frame
    total = np.concatenate([[0], np.cumsum(differences)])  # total[k]: of the steps up to frame k + 1
    first = middles - frame_num // 2 - 1
    return (total[first + frame_num - 1] - total[first]) / (frame_num - 1)


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


def read_record(path: Path) -> Mapping[str, Any]:
    """The JSON object in a file, empty where there is none. UserError where it is damaged."""
    record = read_json(path) if path.is_file() else {}
    if not isinstance(record, Mapping):
        raise UserError(f"{path} is damaged: it holds no object")
    return record


def read_tested(path: Path, frame_num: int) -> Mapping[str, Any]:
    """What script_testing.py stored beside the scores, testing.json; nothing where they are another program's.

    UserError where the file is damaged, or the clips were of other lengths than `frame_num`.
    """
    tested = read_record(path)
    if not path.is_file():
        return tested
    if not all(isinstance(tested.get(name), Mapping) for name in ("settings", "videos")):
        raise UserError(f"{path} is damaged, it tells no settings or videos: run script_testing.py again")
    if (length := tested["settings"].get("FrameNum")) != frame_num:
        raise UserError(f"{path} is of scores of clips of {length} frames, not of --FrameNum {frame_num}")
    return tested


def load_video(root: Path, scores_file: Path, tested: Mapping[str, Any], frame_num: int) -> Scored | None:
    """A scored video of the data set `root`, named as its scores are; None for one shorter than a clip.

    UserError where scores are missing or do not fit the video or its labels.
    """
    name = scores_file.stem
    frames = len(frame_files(root / "Test" / name))
    if frames < frame_num:
        note(f"{name} is skipped: it has {frames} frames, a clip {frame_num}")
        return None
    scores, middles = read_scores(scores_file), middle_frames(frames, frame_num)
    if tested:
        entry = tested["videos"].get(plain(name))
        numbers = entry.get("scored_frames") if isinstance(entry, Mapping) else None
        if not isinstance(numbers, list) or not all(type(n) is int and middles[0] <= n <= middles[-1] for n in numbers):
            raise UserError(
                f"testing.json does not say which of the frames {middles[0]} to {middles[-1]} of {name} the scores "
                "belong to: run script_testing.py again"
            )
        middles = np.array(numbers, dtype=int)
    if len(middles) != len(scores):
        raise UserError(f"{scores_file} has {len(scores)} scores, {name} has {len(middles)} clips: test it again")
    if tested and entry.get("sha256") not in (None, digest(scores_file)):
        raise UserError(f"{scores_file} has changed since script_testing.py wrote it: run it again")
    numbers, labels = file_numbers(root / "Test" / name, frames), root / "Test_gt" / f"{name}.mat"
    if not labels.is_file():
        return Scored(name, middles, scores, None, None, numbers)
    known = require_labels(read_mat(labels, "l")[0], labels)
    if len(known) != frames:
        raise UserError(f"{labels} has labels for {len(known)} frames, {name} has {frames}")
    return Scored(name, middles, scores, known[middles - 1], known, numbers)


def load_videos(root: Path, folder: Path, tested: Mapping[str, Any], frame_num: int) -> list[Scored]:
    """All scored videos of the data set, in the order of their names; what is left out is said."""
    names = subfolders(root / "Test")
    videos = [load_video(root, folder / f"{name}.npy", tested, frame_num) for name in names]
    videos = [video for video in videos if video]
    if not videos:
        raise UserError(f"no video in {root / 'Test'} has the {frame_num} frames of a clip")
    if without := [video.name for video in videos if video.labels is None]:
        number = number_of(len(without), "video has", "videos have")
        note(f"{number} no labels in {root / 'Test_gt'}, such as {without[0]}: scores, but no AUC")
    return videos


def spans(labels: np.ndarray) -> list[tuple[int, int]]:
    """First and last frame (from 1) of each run of abnormal frames."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], labels.astype(int), [0]])))
    return [(int(first) + 1, int(last)) for first, last in zip(edges[::2], edges[1::2])]


def results_of(videos: Sequence[Scored], baseline: Sequence[Scored]) -> dict[str, Any]:
    """The numbers of results.json; image_...: of frames, their errors scaled per video."""
    labelled = [i for i, video in enumerate(videos) if video.labels is not None]
    known = [videos[i] for i in labelled]
    results = {
        "videos": len(videos),
        "unlabelled_videos": [video.name for video in videos if video.labels is None],
        "frames": sum(len(video.scores) for video in known),
        "abnormal_frames": sum(int(video.labels.sum()) for video in known),
    }
    if known:
        labels, scores = (np.concatenate(part) for part in zip(*((v.labels, scaled(v.scores)) for v in known)))
        results |= {**evaluate(labels, scores), **aucs(known)}
        results |= {f"baseline_{key}": value for key, value in aucs([baseline[i] for i in labelled]).items()}
        results["auc_per_video"] = {video.name: aucs([video])["auc_raw"] for video in known}
    return results


def error_maps_of(opt: Namespace, tested: Mapping[str, Any]) -> Callable[[Scored, int], Column]:
    """A function (video, clip) -> frame, error map, name and no mask, by the model that gave the scores.

    UserError where the model is another one now.
    """
    path = opt.ModelFilePath or Path(str(tested.get("model") or model_path(opt)))
    scorer = load_scorer(opt, path, pick_device(opt.device, deterministic=opt.IsDeter))
    if tested.get("model_sha256") != digest(path):
        raise UserError(f"--report: the scores are not known to be those of {path}: run script_testing.py again")

    @cache
    def dataset(name: str) -> VideoDatasetOneDir:
        return open_video(opt.DataRoot / opt.Dataset / "Test" / name, opt.FrameNum, opt.ImgChnNum, opt.CacheGiB)

    def column(video: Scored, clip: int) -> Column:
        image, error = middle_frame(scorer, dataset(video.name), clip)
        return image, error, f"{video.name}, frame {video.numbers[video.frames[clip] - 1]}", None

    return column


def normal_frames(folder: Path, channels: int) -> list[np.ndarray]:
    """Some frames (H, W, 3) of the videos to train on, which need not be there."""
    videos = [frame_files(folder / name) for name in subfolders(folder)[:3]] if folder.is_dir() else []
    frames = [read_frame(files[n], channels) for files in videos for n in (0, len(files) // 2)]
    return [np.broadcast_to(frame, (*frame.shape[:2], 3)) for frame in frames]


def alarm_of(folder: Path, videos: Sequence[Scored], fpr: float) -> dict[str, Any] | None:
    """The threshold of the alarm, on raw errors, which need no look at the whole video, and how often it is met on the
    labelled frames. It comes from the scores of normal videos that took no part in training, `folder`/*.npy; None
    without any. Clips of a video overlap and are alike: the rate is an estimate."""
    files = sorted(folder.glob("*.npy"))
    if not files:
        return None
    normal = np.concatenate([read_scores(path) for path in files])
    threshold = {**thresholds(normal, normal, fpr), "normal_videos": len(files)}
    known = [video for video in videos if video.labels is not None]
    labels = np.concatenate([video.labels for video in known]) if known else np.empty(0)
    return rates(threshold, labels.astype(int), np.concatenate([video.scores for video in known] or [np.empty(0)]))


def write_videos(
    folder: Path,
    videos: Sequence[Scored],
    baseline: Sequence[Scored],
    method: str,
    data: str,
    alarm: Mapping[str, Any] | None,
) -> None:
    """scores.csv, and each video's plot and .mat files."""
    rows, limit = [], alarm["image"] if alarm else None
    for video, difference in zip(videos, baseline):
        labels = [""] * len(video.scores) if video.labels is None else video.labels.astype(int).tolist()
        score, numbers = scaled(video.scores), video.numbers[video.frames - 1]
        for row in zip(numbers.tolist(), labels, video.scores, score, 1 - score, difference.scores):
            rows.append([video.name, row[0], "", *row[1:], limit, verdict_of(row[2], alarm), ""])
        with atomic_write(folder / f"{video.name}_score.mat") as file:
            savemat(file, {"score": video.scores, "regularity": 1 - score, "frame": numbers})
        if video.labels is not None:
            with atomic_write(folder / f"{video.name}_label.mat") as file:
                savemat(file, {"l": video.labels.astype(np.float64)})
        curves = {method: (numbers, score), "frame difference": (numbers, scaled(difference.scores))}
        if alarm and np.ptp(video.scores):  # as high as it is among this video's errors
            height = (limit - video.scores.min()) / np.ptp(video.scores)
            if -0.5 < height < 1.5:  # else it would squeeze the curves
                curves["alarm above"] = (numbers[[0, -1]], np.full(2, height))
        runs = [] if video.all_labels is None else spans(video.all_labels)
        shaded = [(video.numbers[first - 1], video.numbers[last - 1]) for first, last in runs]
        curve_figure(
            folder / "plots" / f"{video.name}.png", curves, f"{video.name} of {data}",
            "frame", "error, scaled to 0..1", shaded, "abnormal",
        )  # fmt: skip
    scores = ["score", "score_scaled", "regularity", "frame_difference"]
    header = ["path", "frame", "class", "label", *scores, "threshold", "verdict", "error"]
    write_csv(folder / "scores.csv", header, rows)


def say_results(results: Mapping[str, Any]) -> None:
    """The lines that the script ends with."""
    if results["data"] == "synthetic":
        say("generated videos, not real data: these numbers say nothing about real ones")
    if results["tested_on_training_videos"]:
        say("the test videos are the training videos: these scores say little about others")
    if results["frames"] and results["abnormal_frames"] in (0, results["frames"]):
        kind = "abnormal" if results["abnormal_frames"] else "normal"
        say(f"no AUC: all {results['frames']} labelled frames are {kind}")
    elif "auc" in results:
        say(
            f"{results['method']} frame AUC {results['auc']:.4f} (errors scaled per video), {results['auc_raw']:.4f} "
            f"raw, {results['frames']} frames, {results['abnormal_frames']} abnormal; model: {results['chosen_on']}"
        )
        say(f"best F1 {results['image_best_f1']:.4f} (its threshold is chosen on the test set)")
        say(f"baseline (frame difference) {results['baseline_auc']:.4f} scaled, {results['baseline_auc_raw']:.4f} raw")
    if behind := report.behind_sentence(results):
        say(behind)
    if alarm := results["alarm"]:
        say(report.alarm_sentence(alarm))
    else:
        say("no alarm: its threshold needs normal videos that are not trained on (script_img_prep.py --Normal)")


@script
def main(argv: list[str] | None = None) -> None:
    """Scores and labels, numbers, files."""
    opt = with_data(evaluation_options().parse(argv))
    name = setting_name(opt)
    root, folder = opt.DataRoot / opt.Dataset, opt.OutRoot / f"res_{name}"
    if not folder.is_dir():
        raise UserError(f"there are no scores in {folder}: run script_testing.py with the same options")
    with locked(folder):
        generated, tested = synthetic(root), read_tested(folder / "testing.json", opt.FrameNum)
        videos = load_videos(root, folder, tested, opt.FrameNum)
        differences = [difference_scores(root / "Test" / v.name, v.frames, opt.ImgChnNum, opt.FrameNum) for v in videos]
        baseline = [replace(video, scores=scores) for video, scores in zip(videos, differences)]
        prepared, settings = read_record(root / "prepared.json"), tested.get("settings", {})
        last = bool(tested) and not settings.get("ModelFilePath")
        trained = read_record(opt.ModelRoot / f"model_{name}" / "training.json") if last else {}
        results = {
            "method": opt.ModelName,
            "data": "synthetic" if generated else str(root),
            "trained_on": trained.get("data"),
            "model": tested.get("model"),
            "model_sha256": tested.get("model_sha256"),
            "chosen_on": "last epoch" if last else "by --ModelFilePath" if tested else "unknown",
            "tested_on_training_videos": prepared.get("same_videos") is True,
            **results_of(videos, baseline),
            "alarm": alarm_of(folder / "Normal", videos, opt.fpr),
            "settings": plain_settings(opt),
            "tested_with": settings or None,
            "versions": versions(),
        }
        before = [record["notes"] for record in (prepared, tested) if isinstance(record.get("notes"), list)]
        results["notes"] = [*dict.fromkeys(str(line) for lines in (*before, notes()) for line in lines)]
        with atomic_write(folder / "acc.txt", "w") as file:
            file.write(f"{root}\nAUC: {results.get('auc', float('nan'))}\n")
        write_videos(folder, videos, baseline, opt.ModelName, opt.Dataset, results["alarm"])
        write_json(folder / "results.json", results)
        say_results(results)
        if opt.report:
            curves = [[scaled(one.scores) for one in scored] for scored in (videos, baseline)]
            normal = normal_frames(root / "Train", opt.ImgChnNum)
            report.write(folder, videos, *curves, results, normal, error_maps_of(opt, tested))
    say(f"results and plots: {folder}")


if __name__ == "__main__":
    sys.exit(main())
