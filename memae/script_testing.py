"""Score every clip of the test videos: <OutRoot>/res_<setting>/<video>.npy, and error maps beside the worst frames.

    python script_testing.py          the model that script_training.py wrote; --ModelFilePath takes another
    torchrun --nproc_per_node=2 script_testing.py       several processes share the clips of each video

A clip's score is its mean reconstruction error, `memae.utils.clip_errors`. script_eval_video.py makes AUCs of them.
The same command resumes an interrupted run, also in the midst of a video.
"""

import os
import shutil
import sys
import zlib
from argparse import Namespace
from collections.abc import Mapping
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
    atomic_write,
    digest,
    first_process,
    locked,
    naming,
    plain,
    read_json,
    using,
    write_json,
)
from common.images import synthetic
from common.report import map_sheet
from common.runtime import autocast, pick_device, reuse_memory
from memae.data import VideoDatasetOneDir
from memae.data.demo_videos import with_data
from memae.data.video_datasets import index_root, load_batches, read_npy, subfolders
from memae.utils import Scorer, load_scorer, model_path, plain_settings, require_fitting, setting_name

# What scores depend on beside weights, frames and device: with other values of these, all is scored again.
BINDING = (
    "ModelName", "ImgChnNum", "FrameNum", "Backbone", "BackboneDepth", "MemDim", "ShrinkThres", "BatchSize",
    "precision",
)  # fmt: skip
PART = 128  # clips, about, that are decoded at once and after which their scores are written
# Of one model's scores, and of what script_eval_video.py makes of them: never mixed with another's.
RESULTS = (
    "*.npy", "*.scoring", "progress.json", "maps/*.jpg", "testing.json", "acc.txt", "results.json", "scores.csv",
    "*_score.mat", "*_label.mat", "plots/*.png", "report.html",
)  # fmt: skip


def open_video(root: Path, video: str, opt: Namespace) -> VideoDatasetOneDir:
    """The clips of a test video of the data set `root`, their frames not decoded yet."""
    idx_root = index_root(root, "Test")
    return VideoDatasetOneDir(
        idx_root and idx_root / video, root / "Test" / video,
        frame_num=opt.FrameNum, channels=opt.ImgChnNum, limit_gib=opt.CacheGiB, decode=False,
    )  # fmt: skip


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


def score_video(scorer: Scorer, dataset: VideoDatasetOneDir, begun: Path) -> np.ndarray:
    """Error of each clip of a video, (N,) float64, in the order of its clips.

    begun: file that gets the scores as they come; it may have those of the first clips already. Clips are decoded part
    by part, so that memory does not grow with the video. UserError where scores are not finite.
    """
    (video,) = dataset.videos
    step = max(PART // scorer.batch_size, 1) * scorer.batch_size * distributed.size()
    scores = _scores_before(begun)
    scores = scores[: len(scores) // step * step]
    if len(scores):
        say(f"resuming {video} after {len(scores)} of {len(dataset)} clips")
    distributed.anywhere(False, scorer.device)  # every process has looked before the first one writes
    if first_process():
        with naming(begun, "what is scored is kept"):
            begun.touch()
            os.truncate(begun, 16 * len(scores))
    for start in progress(range(len(scores), len(dataset), step), video):
        clips = range(start, min(start + step, len(dataset)))
        new = score_clips(scorer, dataset, clips)
        if not np.isfinite(new).all():
            raise UserError(f"the scores of {video} are not finite: use another model, or --precision fp32")
        if first_process():
            with naming(begun, "what is scored is kept"), begun.open("ab") as file:
                file.write(np.stack([new, _checks(new)], axis=1).tobytes())
        scores = np.append(scores, new)
    return scores


def _checks(scores: np.ndarray) -> np.ndarray:
    """A checksum of each score."""
    return np.array([zlib.crc32(score.tobytes()) for score in scores], np.float64)


def _scores_before(begun: Path) -> np.ndarray:
    """The scores in a file of pairs of score and checksum, up to the first one that is damaged."""
    values = np.fromfile(begun) if begun.is_file() else np.empty(0)
    scores, checks = values[: len(values) // 2 * 2].reshape(-1, 2).T
    if (damaged := checks != _checks(scores)).any():
        say(f"{begun} is damaged: what comes after {damaged.argmax()} clips is scored again")
        return scores[: damaged.argmax()]
    return scores


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
    map_sheet(path, columns, f"{title}: worst frames of {video}", vmin=0)


def files_of(folder: Path, video: str) -> tuple[Path, Path, Path]:
    """Where the scores of a video lie, its picture, and, until all are there, its first scores."""
    return folder / f"{video}.npy", folder / f"maps/{video}.jpg", folder / f"{video}.scoring"


def begin(
    work: Path, metadata: Mapping[str, Any], datasets: Mapping[str, VideoDatasetOneDir]
) -> dict[str, dict[str, Any]]:
    """Make `work` ready for scores made as `metadata` says; returns what is stored about each video, with "sha256"
    where a run before this one, interrupted or finished, has scored it.

    What does not belong to these scores is removed. UserError where the folder cannot be written.
    """
    videos: dict[str, dict[str, Any]] | None = None
    for stored in (work / "progress.json", work.parent / "testing.json"):
        if videos is not None or not stored.is_file():
            continue
        try:
            with using(stored, "memae"):
                content = read_json(stored)
                if _binding(content.get("about", content)) == _binding(metadata):  # "about": of older versions
                    videos = {key: dict(entry) for key, entry in content["videos"].items()}
        except UserError as error:
            say(f"{error}: all is scored again")
            continue
        if videos is not None and stored.name == "testing.json":
            for path in [*work.parent.glob("*.npy"), *work.parent.glob("maps/*.jpg")]:
                (work / path.relative_to(work.parent)).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(path, work / path.relative_to(work.parent))
    if videos is None:
        remove_results(work)
    before, videos = videos or {}, {}
    for key, dataset in datasets.items():
        middles = [numbers[len(numbers) // 2] for _, numbers in dataset.clips]
        frames = dataset.frame_counts[dataset.videos[0]]
        entry = {"frames": frames, "scored_frames": middles, "fingerprint": dataset.fingerprint()}
        if entry.items() <= before.get(key, {}).items():
            videos[key] = before[key]
        else:
            videos[key] = entry
            for path in files_of(work, dataset.videos[0]):
                path.unlink(missing_ok=True)
    write_json(work / "progress.json", {**metadata, "videos": videos})
    return videos


def remove_results(folder: Path) -> None:
    """Remove all RESULTS of a folder."""
    for path in [path for pattern in RESULTS for path in folder.glob(pattern)]:
        path.unlink()


def _binding(metadata: Mapping[str, Any]) -> list[Any]:
    """What scores depend on."""
    return [metadata["model_sha256"], metadata["device"], *map(metadata["settings"].get, BINDING)]


def _whole(file: Path, entry: Mapping[str, Any]) -> bool:
    """Whether a video's scores are complete and undamaged."""
    whole = "sha256" in entry and file.is_file() and digest(file) == entry["sha256"]
    if "sha256" in entry and not whole:
        say(f"{file} is damaged or gone: scored again")
    return whole


def score(
    output: Path, datasets: Mapping[str, VideoDatasetOneDir], scorer: Scorer, metadata: dict[str, Any], opt: Namespace
) -> None:
    """Score the videos, by their names as JSON has them, one by one; each one's file is written when it is done."""
    work = output / "unfinished"  # until all is scored, complete results of an earlier run stay
    with distributed.first_alone():
        videos = begin(work, metadata, datasets)
    finished = {key for key, one in datasets.items() if _whole(files_of(work, one.videos[0])[0], videos[key])}
    if finished:
        say(f"{len(finished)} of {len(datasets)} videos are scored already")
    for key, dataset in datasets.items():
        file, picture, begun = files_of(work, dataset.videos[0])
        if key in finished:
            scores = read_npy(file)
        else:
            scores = score_video(scorer, dataset, begun)
        if first_process():
            if key not in finished:
                with atomic_write(file) as target:
                    np.save(target, scores, allow_pickle=False)
                videos[key] |= {"sha256": digest(file)}
                write_json(work / "progress.json", {**metadata, "videos": videos})
                begun.unlink()
            if opt.WorstFrames and not picture.is_file():
                draw_worst(picture, scorer, dataset, scores, opt.WorstFrames, f"{opt.ModelName} on {opt.Dataset}")
        dataset.forget()
    if first_process():
        if len(finished) < len(datasets):
            remove_results(output)
        for file in [path for pattern in RESULTS for path in work.glob(pattern) if path.name != "progress.json"]:
            (output / file.relative_to(work)).parent.mkdir(exist_ok=True)
            file.replace(output / file.relative_to(work))
        summary = {"method": opt.ModelName, **metadata, "versions": checkpoint.versions()}
        write_json(output / "testing.json", {**summary, "videos": videos, "notes": notes()})
        shutil.rmtree(work)


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
    scorer = load_scorer(opt, path)
    if not (root / "Test").is_dir():
        raise UserError(f"there is no folder {root / 'Test'}: prepare videos with script_img_prep.py")
    generated = synthetic(root)
    if generated:
        say(f"the videos in {root} are generated stand-ins, not real data")
    datasets = {plain(video): open_video(root, video, opt) for video in subfolders(root / "Test")}
    datasets = {key: dataset for key, dataset in datasets.items() if len(dataset)}
    if not datasets:
        raise UserError(f"no video in {root / 'Test'} has the {opt.FrameNum} frames of a clip")
    for dataset in datasets.values():
        require_fitting(dataset.size, opt)
    metadata = {"data": "synthetic" if generated else str(root), "model": str(path.absolute())}
    metadata |= {"model_sha256": digest(path), "device": device.type, "settings": plain_settings(opt)}
    with locked(output), resumable(output):
        say(f"scoring {root / 'Test'} with {path} ({device}, {opt.precision})")
        score(output, datasets, scorer, metadata, opt)
    say(f"scores of {sum(map(len, datasets.values()))} clips: {output}")


if __name__ == "__main__":
    sys.exit(main())
