"""The report of an evaluation: <OutRoot>/res_<setting>/report.html."""

import math
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from common import report
from common.cli import number_of
from common.report import Column, Section, data_sentence

VIDEOS = 4  # of which the report shows the curve
FRAMES = 3  # of each kind


def write(
    folder: Path,
    videos: Sequence[Any],
    scaled: Sequence[np.ndarray],
    baseline: Sequence[np.ndarray],
    results: dict[str, Any],
    normal: Sequence[np.ndarray],
    column: Callable[[Any, int], Column],
) -> None:
    """Write it.

    folder: of the results, with plots/; videos: of `script_eval_video.Scored`; scaled, baseline: errors and frame
    differences of each video, scaled to 0..1; results: those of results.json; normal: frames of the training videos;
    column(video, clip): a frame, its error map, its name, and its mask.
    """
    method, settings = results["method"], results["settings"]
    title, telling = f"{method} on {settings['Dataset']}", _telling(videos, results)
    known = [n for n, video in enumerate(videos) if video.labels is not None]
    with tempfile.TemporaryDirectory() as temporary:
        drawn = Path(temporary)
        sections = [_results(results)]
        if normal:
            report.image_row(drawn / "normal.jpg", normal)
            pictures = [(drawn / "normal.jpg", "Some frames of the videos to train on.")]
            sections.append(Section("Normal data", pictures=pictures))
        curves = [(folder / f"plots/{name}.png", f"{name}: error over time.") for name in telling]
        if known:
            labels = np.concatenate([videos[n].labels for n in known])
            scores, plain = (np.concatenate([values[n] for n in known]) for values in (scaled, baseline))
            score_name = "error, scaled to 0..1 per video"
            report.score_histogram(drawn / "histogram.png", labels, scores, f"frames of {title}", score_name=score_name)
            both = {method: (labels, scores), "frame difference": (labels, plain)}
            report.roc_figure(drawn / "roc.png", both, title)
            roc = "ROC: what share of the abnormal frames is found at which false-positive rate."
            distribution = "How the frames' errors are distributed (defective: abnormal frames)."
            curves += [(drawn / "histogram.png", distribution), (drawn / "roc.png", roc)]
            places = [(videos[n], clip) for n in known for clip in range(len(scaled[n]))]
            cases = report.cases(labels, scores, None).items()
            chosen = {name: _apart(rows, places, settings["FrameNum"] // 2) for name, rows in cases}
            maps = [report.case_section(drawn, chosen, labels, scores, lambda i: column(*places[i]))]
        else:  # what script_testing.py drew, unless by --WorstFrames 0
            worst = [(folder / f"maps/{name}.jpg", f"{name}: frames of the highest errors.") for name in telling]
            worst = [(path, caption) for path, caption in worst if path.is_file()]
            maps = [Section("Image, anomaly map, and both", pictures=worst)] if worst else []
        sections += [Section("Scores", pictures=curves), *maps]
        report.write_report(folder / "report.html", title, sections)


def alarm_sentence(alarm: dict[str, Any]) -> str:
    """Where the alarm's threshold lies, what it is from, and how often test frames exceed it."""
    words = f"alarm above an error of {alarm['image']:.4g}, from {alarm['images']} clips of "
    words += f"{number_of(alarm['normal_videos'], 'normal video')} (--fpr {alarm['fpr']:g})"
    for name, value in (("normal", alarm["fpr_on_test_good"]), ("abnormal", alarm["detection_rate"])):
        words += "" if math.isnan(value) else f"; {value:.3f} of the {name} test frames raise it"
    return words


def behind_sentence(results: dict[str, Any]) -> str:
    """What follows where the model is worse than the baseline; empty where it is not, or nobody knows."""
    if not results.get("auc", 0) < results.get("baseline_auc", 0):
        return ""
    return (
        f"{results['method']} is behind the frame difference, which trains nothing: train longer (--minutes, "
        "--EpochNum) before you trust its scores and alarms"
    )


def _results(results: dict[str, Any]) -> Section:
    method = results["method"]
    paragraphs = [
        data_sentence(results["data"]),
        f"{results['videos']} test videos; {results['frames']} frames have a score and a label, "
        f"{results['abnormal_frames']} of them are abnormal. A frame's score is the mean error of the clip of "
        f"{results['settings']['FrameNum']} frames around it.",
        f"The model: {results['chosen_on']}. AUCs are those of errors scaled to 0..1 per video, which looks at "
        "each whole test video, and of raw errors; the frame difference, a baseline without training, is scored alike.",
    ]
    if results["tested_on_training_videos"]:
        paragraphs.append("The test videos are the training videos: these scores say little about others.")
    if results["alarm"]:
        words = alarm_sentence(results["alarm"])
        paragraphs.append(f"{words[0].upper()}{words[1:]}. The threshold is on raw errors.")
    if behind := behind_sentence(results):
        paragraphs.insert(0, f"{behind}.")
    rows = [("frame AUC", "none: no labels")]
    if "auc" in results:
        rows = [
            (f"frame AUC, {method}", results["auc"]),
            ("frame AUC, frame difference", results["baseline_auc"]),
            (f"frame AUC of raw errors, {method}", results["auc_raw"]),
            ("frame AUC of raw errors, frame difference", results["baseline_auc_raw"]),
            *((f"AUC within {name}", value) for name, value in results["auc_per_video"].items()),
        ]
    return Section("Results", paragraphs, ("metric", "value"), rows)


def _telling(videos: Sequence[Any], results: dict[str, Any]) -> list[str]:
    """Names of at most `VIDEOS` videos: those of the highest and the lowest AUC, then any."""
    aucs = {name: value for name, value in results.get("auc_per_video", {}).items() if value == value}  # not nan
    order = sorted(aucs, key=aucs.__getitem__)
    return list(dict.fromkeys([*order[::-1][:2], *order[:2], *(video.name for video in videos)]))[:VIDEOS]


def _apart(rows: list[int], places: Sequence[tuple[Any, int]], apart: int) -> list[int]:
    """The first of `rows` that are at least `apart` clips from each other: neighbours look alike."""
    chosen: list[int] = []
    for row in rows:
        video, clip = places[row]
        if all(places[o][0] is not video or abs(places[o][1] - clip) >= apart for o in chosen):
            chosen.append(row)
        if len(chosen) == FRAMES:
            break
    return chosen
