"""The report of an evaluation: <OutRoot>/res_<setting>/report.html."""

import tempfile
from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from common.report import (
    Column,
    Section,
    case_section,
    cases,
    data_sentence,
    image_row,
    roc_figure,
    score_histogram,
    write_report,
)
from memae.data.video_datasets import frame_files, read_frame, subfolders

VIDEOS = 4  # of which the report shows the curve
FRAMES = 3  # of each kind


class Video(Protocol):
    """`script_eval_video.Scored`."""

    name: str
    frames: np.ndarray
    labels: np.ndarray | None


def write(
    opt: Namespace,
    folder: Path,
    videos: Sequence[Video],
    scaled: Sequence[np.ndarray],
    baseline: Sequence[np.ndarray],
    results: dict[str, Any],
    column: Callable[[Video, int], Column],
) -> None:
    """Write it.

    folder: of the results, with plots/; scaled, baseline: errors and frame differences of each video, scaled to 0..1;
    results: those of results.json; column(video, clip): a frame, its error map, its name, and its mask.
    """
    title = f"{opt.ModelName} on {opt.Dataset}"
    known = [n for n, video in enumerate(videos) if video.labels is not None]
    labels = np.concatenate([videos[n].labels for n in known]) if known else np.zeros(0, bool)
    scores, plain = (np.concatenate([s[n] for n in known]) if known else np.zeros(0) for s in (scaled, baseline))
    places = [(videos[n], clip) for n in known for clip in range(len(scaled[n]))]
    with tempfile.TemporaryDirectory() as temporary:
        drawn = Path(temporary)
        sections = [Section("Results", _about(opt, results), ("metric", "value"), _numbers(opt, results))]
        train = opt.DataRoot / opt.Dataset / "Train"
        if train.is_dir():  # scoring needs no training videos
            files = [path for name in subfolders(train)[:3] for path in _two(frame_files(train / name))]
            image_row(drawn / "normal.jpg", [_rgb(read_frame(path, opt.ImgChnNum)) for path in files])
            pictures = [(drawn / "normal.jpg", "Some frames of the videos to train on.")]
            sections.append(Section("Normal data", pictures=pictures))
        curves = [(folder / "plots" / f"{name}.png", f"{name}: error over time.") for name in _telling(videos, results)]
        if known:
            name = "error, scaled to 0..1 per video"
            score_histogram(drawn / "histogram.png", labels, scores, f"frames of {title}", score_name=name)
            roc_figure(drawn / "roc.png", {opt.ModelName: (labels, scores), "frame difference": (labels, plain)}, title)
            curves += [
                (drawn / "histogram.png", "How the frames' errors are distributed (defective: abnormal frames)."),
                (drawn / "roc.png", "ROC: what share of the abnormal frames is found at which false-positive rate."),
            ]
        sections.append(Section("Scores", pictures=curves))
        if known:
            chosen = {
                name: _apart(rows, places, opt.FrameNum // 2) for name, rows in cases(labels, scores, None).items()
            }
            sections.append(case_section(drawn, chosen, labels, scores, lambda i: column(*places[i])))
        else:  # what script_testing.py drew, unless by --WorstFrames 0
            maps = {name: folder / "maps" / f"{name}.jpg" for name in _telling(videos, results)}
            worst = [(path, f"{name}: frames of the highest errors.") for name, path in maps.items() if path.is_file()]
            sections += [Section("Image, anomaly map, and both", pictures=worst)] if worst else []
        write_report(folder / "report.html", title, sections)


def _about(opt: Namespace, results: dict[str, Any]) -> list[str]:
    parts = [
        data_sentence(results["data"]),
        f"{results['videos']} test videos; {results['frames']} frames have a score and a label, "
        f"{results['abnormal_frames']} of them are abnormal. A frame's score is the mean error of the clip of "
        f"{opt.FrameNum} frames around it.",
        f"The model: {results['chosen_on']}. AUCs are those of errors scaled to 0..1 per video, which looks at "
        "each whole test video, and of raw errors; the frame difference, a baseline without training, is scored alike.",
    ]
    if results["tested_on_training_videos"]:
        parts.append("The test videos are the training videos: these scores say little about others.")
    return parts


def _numbers(opt: Namespace, results: dict[str, Any]) -> list[tuple[str, Any]]:
    if "auc" not in results:
        return [("frame AUC", "none: no labels")]
    return [
        (f"frame AUC, {opt.ModelName}", results["auc"]),
        ("frame AUC, frame difference", results["baseline_auc"]),
        (f"frame AUC of raw errors, {opt.ModelName}", results["auc_raw"]),
        ("frame AUC of raw errors, frame difference", results["baseline_auc_raw"]),
        *((f"AUC within {name}", value) for name, value in results["auc_per_video"].items()),
    ]


def _two(files: list[Path]) -> list[Path]:
    """The first and the middle one."""
    return [files[0], files[len(files) // 2]]


def _rgb(frame: np.ndarray) -> np.ndarray:
    """(H, W, 1 or 3) uint8 as (H, W, 3)."""
    return np.broadcast_to(frame, (*frame.shape[:2], 3))


def _telling(videos: Sequence[Video], results: dict[str, Any]) -> list[str]:
    """Names of at most `VIDEOS` videos: those of the highest and the lowest AUC, then any."""
    aucs = {name: value for name, value in results.get("auc_per_video", {}).items() if value == value}  # not nan
    order = sorted(aucs, key=aucs.__getitem__)
    return list(dict.fromkeys([*order[::-1][:2], *order[:2], *(video.name for video in videos)]))[:VIDEOS]


def _apart(rows: list[int], places: Sequence[tuple[Video, int]], apart: int) -> list[int]:
    """The first of `rows` that are at least `apart` clips from each other: neighbours look alike."""
    chosen: list[int] = []
    for row in rows:
        video, clip = places[row]
        if all(places[o][0] is not video or abs(places[o][1] - clip) >= apart for o in chosen):
            chosen.append(row)
        if len(chosen) == FRAMES:
            break
    return chosen
