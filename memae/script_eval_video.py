"""AUC and pictures from the scores that script_testing.py wrote: python script_eval_video.py, with the same options.

Writes to <OutRoot>/res_<setting>/: acc.txt, results.json, scores.csv (a row per scored frame), for each video
<video>_score.mat, <video>_label.mat and plots/<video>.png. Videos without labels get scores and plots, no AUC.
"""

import sys
import warnings
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from scipy.io import savemat

from common.checkpoint import versions
from common.figures import curve_figure
from common.files import UserError, atomic_write, read_json, write_csv, write_json
from common.images import synthetic
from common.metrics import image_auroc
from common.runtime import progress, say, script
from memae.data.demo_videos import ensure_data
from memae.data.video_datasets import frame_files, read_frame, read_mat, subfolders
from memae.options import TestOptions
from memae.utils import plain_settings, setting_name


@dataclass
class Scored:
    """One video: the frames that have a score (numbers from 1), their scores, and their labels where known."""

    name: str
    frames: np.ndarray  # (N,) int
    scores: np.ndarray  # (N,) float64
    labels: np.ndarray | None  # (N,) bool
    all_labels: np.ndarray | None  # of all frames of the video


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
    """Frame AUC over the frames of all labelled videos together: "auc" of the scores scaled per video, "auc_raw"."""
    labels = np.concatenate([video.labels for video in videos])
    return {
        "auc": image_auroc(labels, np.concatenate([scaled(video.scores) for video in videos])),
        "auc_raw": image_auroc(labels, np.concatenate([video.scores for video in videos])),
    }


def difference_scores(folder: Path, middles: np.ndarray, opt: Namespace) -> np.ndarray:
    """The plain baseline: for each clip, the mean absolute difference of consecutive frames, in grey levels (0..255).

    folder: a prepared video; middles: the middle frames of its clips, (N,) -> (N,).
    """
    files = frame_files(folder)
    differences, before = [], None
    for path in progress(files, f"{folder.name} baseline"):
        frame = read_frame(path, opt.ImgChnNum).astype(np.float32)
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
    try:
        scores = np.load(path, allow_pickle=False)
    except Exception as error:  # on damaged files, NumPy's reader raises nearly anything
        raise UserError(f"{path} is broken or not a NumPy array: {error}") from error
    if not isinstance(scores, np.ndarray) or scores.dtype.kind not in "fiu" or scores.ndim != 1 or not len(scores):
        raise UserError(f"{path} does not hold one score per clip")
    if not np.isfinite(scores).all():
        raise UserError(f"{path} holds scores that are nan or infinite")
    return scores.astype(np.float64)


def read_labels(path: Path, video: str, frames: int | None) -> np.ndarray:
    """Labels (frames,) bool from <video>.mat. UserError where there are fewer or more than the video has frames."""
    labels = read_mat(path, "l")
    if labels.dtype.kind not in "buif" or not np.isin(labels, (0, 1)).all():
        raise UserError(f"{path}: l holds something else than 0 and 1")
    if frames is not None and len(labels) != frames:
        raise UserError(f"{path} has labels for {len(labels)} frames, {video} has {frames}")
    return labels.astype(bool)


def load_videos(opt: Namespace, folder: Path) -> list[Scored]:
    """All scored videos of the data set, in the order of their names; what is left out is said.

    UserError where scores are missing or do not fit the video or its labels.
    """
    root = opt.DataRoot / opt.Dataset
    tested = read_json(folder / "testing.json").get("videos", {}) if (folder / "testing.json").is_file() else {}
    videos, without = [], []
    for name in subfolders(root / "Test"):
        frames = len(frame_files(root / "Test" / name))
        if frames < opt.FrameNum:
            say(f"{name} is skipped: it has {frames} frames, a clip {opt.FrameNum}")
            continue
        scores = read_scores(folder / f"{name}.npy")
        middles = np.asarray(tested.get(name, {}).get("scored_frames", middle_frames(frames, opt.FrameNum)))
        if len(middles) != len(scores) or middles.max() > frames:
            raise UserError(
                f"{folder / name}.npy has {len(scores)} scores, {name} has {len(middles)} clips: run script_testing.py"
            )
        file = root / "Test_gt" / f"{name}.mat"
        labels = read_labels(file, name, frames) if file.is_file() else None
        if labels is None:
            without.append(name)
        videos.append(Scored(name, middles, scores, None if labels is None else labels[middles - 1], labels))
    if not videos:
        raise UserError(f"no video in {root / 'Test'} has the {opt.FrameNum} frames of a clip")
    if without:
        say(f"no labels in {root / 'Test_gt'} for {', '.join(without)}: scores, but no AUC")
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
    videos = load_videos(opt, folder)
    baseline = [
        Scored(v.name, v.frames, difference_scores(root / "Test" / v.name, v.frames, opt), v.labels, v.all_labels)
        for v in videos
    ]
    tested = read_json(folder / "testing.json") if (folder / "testing.json").is_file() else {}
    labelled = [i for i, video in enumerate(videos) if video.labels is not None]
    results = {
        "method": opt.ModelName,
        "data": "synthetic" if made else str(root),
        "model": tested.get("model"),
        "model_sha256": tested.get("model_sha256"),
        "chosen": "last epoch" if opt.ModelFilePath is None else "by --ModelFilePath",
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

    _write(opt, root, folder, videos, baseline, results)
    _report(opt, folder, results, made)
    return results


def _quiet_auc(video: Scored) -> float:
    """AUC within one video; nan, as JSON's null, where it has only normal or only abnormal frames."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return image_auroc(video.labels, video.scores)


def _write(
    opt: Namespace, root: Path, folder: Path, videos: list[Scored], baseline: list[Scored], results: dict[str, Any]
) -> None:
    with atomic_write(folder / "acc.txt", "w") as file:
        file.write(f"{root}\nAUC: {results.get('auc', float('nan'))}\n")
    rows = []
    for video, plain in zip(videos, baseline):
        labels = [""] * len(video.scores) if video.labels is None else video.labels.astype(int).tolist()
        score = scaled(video.scores)
        for row in zip(video.frames.tolist(), video.scores, score, 1 - score, plain.scores, labels):
            rows.append([video.name, *row])
        with atomic_write(folder / f"{video.name}_score.mat") as file:
            savemat(file, {"score": video.scores, "regularity": 1 - score, "frame": video.frames})
        if video.labels is not None:
            with atomic_write(folder / f"{video.name}_label.mat") as file:
                savemat(file, {"l": video.labels.astype(np.float64)})
        curves = {
            opt.ModelName: (video.frames, score),
            "frame difference": (video.frames, scaled(plain.scores)),
        }
        shaded = [] if video.all_labels is None else spans(video.all_labels)
        curve_figure(
            folder / "plots" / f"{video.name}.png", curves, f"{video.name} of {opt.Dataset}",
            "frame", "error, scaled to 0..1", shaded, "abnormal",
        )  # fmt: skip
    header = ["video", "frame", "error", "error_scaled", "regularity", "frame_difference", "label"]
    write_csv(folder / "scores.csv", header, rows)
    write_json(folder / "results.json", results)


def _report(opt: Namespace, folder: Path, results: dict[str, Any], made: bool) -> None:
    if made:
        say("generated videos, not real data: these numbers say nothing about real ones")
    if "auc" in results:
        say(
            f"{opt.ModelName} frame AUC {results['auc']:.4f} (errors scaled per video), {results['auc_raw']:.4f} raw, "
            f"{results['frames']} frames, {results['abnormal_frames']} abnormal; model: {results['chosen']}"
        )
        say(f"baseline (frame difference) {results['baseline_auc']:.4f} scaled, {results['baseline_auc_raw']:.4f} raw")
    say(f"results and plots: {folder}")


@script
def main(argv: list[str] | None = None) -> None:
    """Evaluate the scores of a setting."""
    opt = TestOptions().parse(argv)
    ensure_data(opt)
    evaluate(opt)


if __name__ == "__main__":
    sys.exit(main())
