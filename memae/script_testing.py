"""Score every clip of the test videos: <OutRoot>/res_<setting>/<video>.npy, and error maps beside the worst frames.

    python script_testing.py          the model that script_training.py wrote; --ModelFilePath takes another
    torchrun --nproc_per_node=2 script_testing.py       several processes share the clips of each video

A clip's score is its mean reconstruction error, `memae.utils.clip_errors`. script_eval_video.py makes AUCs of them.
The same command resumes an interrupted run, also in the midst of a video.
"""

import shutil
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common.cli import answer_early, notes, progress, resumable, say, script
from memae.options import TestOptions

answer_early(__name__, TestOptions().parse)

import numpy as np
import torch

from common import checkpoint, distributed
from common.files import (
    UserError,
    append_text,
    atomic_write,
    digest,
    first_process,
    locked,
    marked_line,
    plain,
    read_marked_lines,
    write_json,
)
from common.images import synthetic
from common.report import map_sheet
from common.runtime import autocast, pick_device, reuse_memory
from memae.data import VideoDatasetOneDir
from memae.data.demo_videos import with_data
from memae.data.video_datasets import index_root, load_batches, subfolders
from memae.utils import Scorer, load_scorer, model_path, plain_settings, require_fitting, setting_name

# What scores depend on beside weights, frames and device: with other values of these, all is scored again.
BINDING = (
    "ModelName", "ImgChnNum", "FrameNum", "Backbone", "BackboneDepth", "MemDim", "ShrinkThres", "BatchSize",
    "precision",
)  # fmt: skip
PART = 128  # clips, about, that are decoded at once and after which their scores are written
DONE = "all is scored"  # progress.jsonl's last line
# Of one model's scores, and of what script_eval_video.py makes of them: never mixed with another's.
RESULTS = (
    "*.npy", "Normal/*.npy", "maps/*.jpg", "testing.json", "acc.txt", "results.json", "scores.csv", "*_score.mat",
    "*_label.mat", "plots/*.png", "report.html",
)  # fmt: skip


def open_video(folder: Path, frame_num: int, channels: int, limit_gib: float) -> VideoDatasetOneDir:
    """The clips of a prepared video, such as <data set>/Test/<video>, their frames not decoded yet."""
    idx_root, video = index_root(folder.parent.parent, folder.parent.name), folder.name
    idx_dir = idx_root / video if idx_root else None
    return VideoDatasetOneDir(
        idx_dir, folder, frame_num=frame_num, channels=channels, limit_gib=limit_gib, decode=False
    )


def score_clips(scorer: Scorer, dataset: VideoDatasetOneDir, clips: range) -> np.ndarray:
    """Errors of these clips of a video, (N,) float64. Several processes share them."""
    dataset.decode(clips)
    share = distributed.share(clips)
    # A process for which nothing is left scores the first clip, to be left out.
    batches = torch.tensor(share if len(share) else clips[:1]).split(scorer.batch_size)
    pin = scorer.device.type == "cuda"
    loaded = load_batches(dataset, [batch.tolist() for batch in batches], scorer.threads, pin)
    scores = [scorer.maps(frames).flatten(1).mean(dim=1).cpu() for frames in loaded]
    return distributed.gathered(torch.cat(scores)[: len(share)].double().numpy())


def worst_clips(scores: np.ndarray, count: int, apart: int) -> list[int]:
    """Up to `count` clips with the highest scores, at least `apart` clips from each other, highest first."""
    chosen: list[int] = []
    for clip in np.argsort(-scores, kind="stable"):
        if len(chosen) < count and all(abs(int(clip) - other) >= apart for other in chosen):
            chosen.append(int(clip))
    return chosen


def middle_frame(scorer: Scorer, dataset: VideoDatasetOneDir, clip: int) -> tuple[np.ndarray, np.ndarray]:
    """The frame that a clip's score belongs to, (H, W, 3) uint8, and its error map, (H, W). Decodes this clip alone."""
    dataset.decode([clip])
    frames = dataset.batch([clip])  # (1, C, T, H, W)
    middle = frames.shape[2] // 2
    error = scorer.maps(frames)[0, middle].cpu().numpy()
    return frames[0, :, middle].expand(3, -1, -1).movedim(0, -1).numpy(), error


def draw_worst(
    path: Path, scorer: Scorer, dataset: VideoDatasetOneDir, scores: np.ndarray, count: int, title: str
) -> None:
    """Draw the frames to which the `count` highest scores belong, with their error maps, in order of time."""
    (video,) = dataset.videos
    middle = len(dataset.clips[0][1]) // 2
    columns = []
    for clip in sorted(worst_clips(scores, count, middle)):
        image, error = middle_frame(scorer, dataset, clip)
        number = dataset.numbers[video][dataset.clips[clip][1][middle] - 1]
        columns.append((image, error, f"frame {number}\nscore {scores[clip]:.4g}"))
    end = float(np.quantile([error for _, error, _ in columns], 0.99))  # a few pixels would leave all others dark
    map_sheet(path, columns, f"{title}: worst frames of {video}", vmin=0, vmax=end)


def read_progress(path: Path, key: Any, fingerprints: dict[str, str]) -> list[Any]:
    """Rows of scores, (video, fingerprint, first clip, scores), that earlier runs with the same key made of the same
    frames, without gaps, and DONE where these runs came to their end."""
    first, *lines = read_marked_lines(path) or [None]
    counts, rows = dict.fromkeys(fingerprints, 0), []
    for row in lines if first == key else ():
        if row is None:
            say(f"{path} has a damaged line: its clips are scored again")
        elif row == DONE:
            rows.append(row)
        elif fingerprints.get(row[0]) == row[1] and row[2] == counts[row[0]]:
            rows.append(row)
            counts[row[0]] += len(row[3])
    return rows


def score(
    output: Path, datasets: dict[str, VideoDatasetOneDir], scorer: Scorer, metadata: dict[str, Any]
) -> dict[str, list[float]]:
    """The scores of all clips of each video. They are kept part by part in progress.jsonl, with which an interrupted
    run resumes; once all are there, those of an earlier run, and what was made of them, are removed.

    Clips are decoded part by part, so that memory does not grow with the videos. UserError where scores are not finite.
    """
    path, settings = output / "progress.jsonl", metadata["settings"]
    key = plain([metadata["model_sha256"], metadata["device"], *map(settings.get, BINDING)])
    prints = {video: dataset.fingerprint() for video, dataset in datasets.items()}
    rows = read_progress(path, key, prints)
    distributed.anywhere(False, scorer.device)  # every process has read it before the first one writes
    scores: dict[str, list[float]] = {video: [] for video in datasets}
    for video, _, _, values in (row for row in rows if row != DONE):
        scores[video] += values
    done = DONE in rows and all(len(scores[video]) == len(dataset) for video, dataset in datasets.items())
    if rows:
        say(
            f"resuming: {sum(map(len, scores.values()))} of {sum(map(len, datasets.values()))} clips are scored already"
        )
    with atomic_write(path, "w") as file:
        file.writelines(map(marked_line, [key, *(row for row in rows if done or row != DONE)]))
    step = max(PART // scorer.batch_size, 1) * scorer.batch_size * distributed.size()
    for video, dataset in datasets.items():
        for start in progress(range(len(scores[video]), len(dataset), step), video):
            new = score_clips(scorer, dataset, range(start, min(start + step, len(dataset)))).tolist()
            if not np.isfinite(new).all():
                raise UserError(f"the scores of {video} are not finite: use another model, or --precision fp32")
            append_text(path, marked_line([video, prints[video], start, new]))
            scores[video] += new
        dataset.forget()
    if first_process() and not done:
        shutil.rmtree(output / "unfinished", ignore_errors=True)  # of older versions
        for file in [file for pattern in RESULTS for file in output.glob(pattern)]:
            file.unlink()
        append_text(path, marked_line(DONE))
    return scores


def write_scores(
    output: Path, datasets: dict[str, VideoDatasetOneDir], scores: dict[str, list[float]], metadata: dict[str, Any]
) -> None:
    """Each video's scores, <video>.npy, those of normal videos in Normal/, and testing.json."""
    videos = {}
    for video, dataset in datasets.items():
        file = output / ("Normal" if video.startswith("Normal/") else "") / f"{dataset.videos[0]}.npy"
        with atomic_write(file) as target:
            np.save(target, np.array(scores[video]), allow_pickle=False)
        middles = [numbers[len(numbers) // 2] for _, numbers in dataset.clips]
        videos[video] = {"frames": len(dataset.numbers[dataset.videos[0]]), "scored_frames": middles}
        videos[video] |= {"fingerprint": dataset.fingerprint(), "sha256": digest(file)}
    for old in (output / "Normal").glob("*.npy"):  # of a video that is there no more: no alarm is to come from it
        if f"Normal/{plain(old.stem)}" not in datasets:
            old.unlink()
    result = {**metadata, "versions": checkpoint.versions(), "videos": videos, "notes": notes()}
    write_json(output / "testing.json", result)


@script(memory="a smaller --BatchSize, or --precision bf16", several=True)
def main(argv: list[str] | None = None) -> None:
    """Model, videos, scores."""
    opt = TestOptions().parse(argv)
    device = distributed.join(pick_device(opt.device, deterministic=opt.IsDeter))
    reuse_memory()
    autocast(device, opt.precision)  # refuses what this device cannot do
    with distributed.first_alone():
        opt = with_data(opt)
    root, output = opt.DataRoot / opt.Dataset, opt.OutRoot / f"res_{setting_name(opt)}"
    path = model_path(opt)
    scorer = load_scorer(opt, path, device)
    if not (root / "Test").is_dir():
        raise UserError(f"there is no folder {root / 'Test'}: prepare videos with script_img_prep.py")
    generated = synthetic(root)
    if generated:
        say(f"the videos in {root} are generated stand-ins, not real data")
    how, normal = (opt.FrameNum, opt.ImgChnNum, opt.CacheGiB), root / "Normal"
    folders = {plain(video): root / "Test" / video for video in subfolders(root / "Test")}
    folders |= {f"Normal/{plain(video)}": normal / video for video in (subfolders(normal) if normal.is_dir() else ())}
    datasets = {name: dataset for name, folder in folders.items() if len(dataset := open_video(folder, *how))}
    tested = [name for name in datasets if not name.startswith("Normal/")]
    if not tested:
        raise UserError(f"no video in {root / 'Test'} has the {opt.FrameNum} frames of a clip")
    for dataset in datasets.values():
        require_fitting(dataset.size, opt.Backbone)
    metadata = {"data": "synthetic" if generated else str(root), "model": str(path.absolute())}
    metadata |= {"model_sha256": digest(path), "device": device.type, "settings": plain_settings(opt)}
    with locked(output), resumable(output / "progress.jsonl"):
        say(f"scoring {root / 'Test'} with {path} ({device}, {opt.precision})")
        scores = score(output, datasets, scorer, metadata)
        if first_process():
            write_scores(output, datasets, scores, {"method": opt.ModelName, **metadata})
            for video in tested if opt.WorstFrames else ():
                dataset = datasets[video]
                picture, title = output / f"maps/{dataset.videos[0]}.jpg", f"{opt.ModelName} on {opt.Dataset}"
                draw_worst(picture, scorer, dataset, np.array(scores[video]), opt.WorstFrames, title)
    say(f"scores of {sum(map(len, datasets.values()))} clips: {output}")


if __name__ == "__main__":
    sys.exit(main())
