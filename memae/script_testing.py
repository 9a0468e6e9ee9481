"""Score every clip of the test videos: <OutRoot>/res_<setting>/<video>.npy, and error maps beside the worst frames.

    python script_testing.py          the model that script_training.py wrote; --ModelFilePath takes another
    torchrun --nproc_per_node=2 script_testing.py       several processes share the clips of each video

A clip's score is its mean reconstruction error, `memae.utils.clip_errors`. script_eval_video.py makes AUCs of them.
The same command continues an interrupted run, also in the midst of a video.
"""

import os
import shutil
import sys
import zlib
from argparse import Namespace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from torch import Tensor, nn

from common import checkpoint, distributed
from common.cli import goes_on, notes, progress, say, script
from common.files import UserError, atomic_write, digest, first_process, locked, naming, plain, read_json, write_json
from common.images import synthetic
from common.report import map_sheet
from common.runtime import autocast, channels_last, reuse_memory
from memae.data import VideoDatasetOneDir
from memae.data.demo_videos import ensure_data
from memae.data.video_datasets import index_root, load_batches, read_npy, subfolders
from memae.options import TestOptions
from memae.utils import (
    clip_errors,
    device_of,
    error_maps,
    load_weights,
    make_model,
    normalise,
    plain_settings,
    require_fitting,
    setting_name,
)

# What scores depend on beside weights, frames and device: with other values of these, all is scored anew.
BINDING = (
    "ModelName", "ImgChnNum", "FrameNum", "Backbone", "BackboneDepth", "MemDim", "ShrinkThres", "BatchSize",
    "precision",
)  # fmt: skip
PART = 128  # clips, about, that are decoded at once and after which their scores are written


@torch.no_grad()
def reconstruct(model: nn.Module, frames: Tensor, opt: Namespace, device: torch.device) -> tuple[Tensor, Tensor]:
    """uint8 clips (B, C, T, H, W) -> reconstruction and input, float32 in [-1, 1]."""
    x = normalise(frames, device)
    with autocast(device, opt.precision):
        out = model(x)
    return (out["output"] if isinstance(out, dict) else out).to(x.dtype), x


def score_clips(
    model: nn.Module, dataset: VideoDatasetOneDir, clips: range, opt: Namespace, device: torch.device
) -> np.ndarray:
    """Errors of these clips of a video, (N,) float64. Several processes share them."""
    dataset.decode(clips)
    own = distributed.share(clips)
    # A process for which nothing is left scores the first clip, to be left out.
    batches = torch.tensor(own if len(own) else clips[:1]).split(opt.BatchSize)
    loaded = load_batches(dataset, [batch.tolist() for batch in batches], opt.NumWorker, pin=device.type == "cuda")
    scores = [clip_errors(*reconstruct(model, frames, opt, device), opt.ModelName).cpu() for frames in loaded]
    return distributed.gathered(torch.cat(scores)[: len(own)].double().numpy())


def score_video(
    model: nn.Module, dataset: VideoDatasetOneDir, begun: Path, anew: bool, opt: Namespace, device: torch.device
) -> np.ndarray:
    """Error of each clip of a video, (N,) float64, in the order of its clips.

    begun: file that gets the scores as they come; unless `anew`, it has those of the first clips already. Clips are
    decoded part by part, so that memory does not grow with the video. FloatingPointError where scores are not finite.
    """
    step = max(PART // opt.BatchSize, 1) * opt.BatchSize * distributed.size()
    scores = np.empty(0) if anew else _scores_before(begun)
    scores = scores[: len(scores) // step * step]
    if len(scores):
        say(f"going on after {len(scores)} of {len(dataset)} clips of {dataset.videos[0]}")
    distributed.anywhere(False, device)  # every process has looked before the first one writes
    if first_process():
        with naming(begun, "what is scored is kept"):
            begun.touch()
            os.truncate(begun, 16 * len(scores))
    for start in progress(range(len(scores), len(dataset), step), dataset.videos[0]):
        clips = range(start, min(start + step, len(dataset)))
        found = score_clips(model, dataset, clips, opt, device)
        if not np.isfinite(found).all():
            raise FloatingPointError(f"the scores of {dataset.videos[0]} are not finite")
        if first_process():
            with naming(begun, "what is scored is kept"), begun.open("ab") as file:
                file.write(np.stack([found, _checks(found)], axis=1).tobytes())
        scores = np.append(scores, found)
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


def middle_frame(
    model: nn.Module, dataset: VideoDatasetOneDir, clip: int, opt: Namespace, device: torch.device
) -> tuple[np.ndarray, np.ndarray]:
    """The frame that a clip's score belongs to, (H, W, 3) uint8, and its error map, (H, W). Decodes this clip alone."""
    dataset.decode([clip])
    frames, middle = dataset.batch([clip]), opt.FrameNum // 2
    output, x = reconstruct(model, frames, opt, device)
    error = error_maps(output, x, opt.ModelName)[0, middle].cpu().numpy()
    return frames[0, :, middle].expand(3, -1, -1).movedim(0, -1).numpy(), error


def draw_worst(
    path: Path, model: nn.Module, dataset: VideoDatasetOneDir, scores: np.ndarray, opt: Namespace, device: torch.device
) -> None:
    """Draw the frames to which the highest scores belong, with their error maps, in order of time."""
    middle, (video,) = opt.FrameNum // 2, dataset.videos
    columns = []
    for clip in sorted(worst_clips(scores, opt.WorstFrames, middle)):
        image, error = middle_frame(model, dataset, clip, opt, device)
        number = dataset.numbers[video][dataset.clips[clip][1][middle] - 1]
        columns.append((image, error, f"frame {number}\nscore {scores[clip]:.4g}"))
    map_sheet(path, columns, f"{opt.ModelName} on {opt.Dataset}: worst frames of {video}", vmin=0)


# Of one model's scores, and of what script_eval_video.py makes of them: never mixed with another's.
RESULTS = (
    "*.npy", "*.scoring", "progress.json", "maps/*.jpg", "testing.json", "acc.txt", "results.json", "scores.csv",
    "*_score.mat", "*_label.mat", "plots/*.png", "report.html",
)  # fmt: skip


def begin(work: Path, about: dict[str, Any]) -> dict[str, Any]:
    """Make `work` ready for scores made as `about` says; returns the videos that an interrupted or a finished run has
    scored, or begun to.

    What other runs left there is removed. UserError where the folder cannot be written.
    """
    file, complete = work / "progress.json", work.parent / "testing.json"
    for stored in (path for path in (file, complete) if path.is_file()):
        try:
            with checkpoint.using(stored, "memae"):
                content = read_json(stored)
                if _binding(content if stored == complete else content["about"]) != _binding(about):
                    continue
                videos = {key: dict(entry) for key, entry in content["videos"].items()}
        except UserError as error:
            say(f"{error}: all is scored anew")
            continue
        if stored == complete:
            write_json(file, {"about": about, "videos": videos})
            for path in [*work.parent.glob("*.npy"), *work.parent.glob("maps/*.jpg")]:
                (work / path.relative_to(work.parent)).parent.mkdir(exist_ok=True)
                shutil.copy2(path, work / path.relative_to(work.parent))
        return videos
    remove_results(work)
    write_json(file, {"about": about, "videos": {}})
    return {}


def remove_results(folder: Path) -> None:
    """Remove all RESULTS of a folder."""
    for path in [path for pattern in RESULTS for path in folder.glob(pattern)]:
        path.unlink()


def _binding(about: dict[str, Any]) -> list[Any]:
    """What scores depend on, of `about` as it is stored."""
    return [about["model_sha256"], about["device"], *map(about["settings"].get, BINDING)]


@script(memory="a smaller --BatchSize, or --precision bf16", several=True)
def main(argv: list[str] | None = None) -> None:
    """Score the test videos one by one; each video's file is written when it is done."""
    opt = TestOptions().parse(argv)
    device = distributed.join(device_of(opt))
    reuse_memory()
    autocast(device, opt.precision)  # refuses what this device cannot do
    with distributed.first_alone():
        ensure_data(opt)
    root, name = opt.DataRoot / opt.Dataset, setting_name(opt)
    path = opt.ModelFilePath or opt.ModelRoot / f"{name}.pt"
    model = make_model(opt)
    load_weights(model, path, opt)
    model.to(device, memory_format=channels_last(device, 5)).eval()
    if not (root / "Test").is_dir():
        raise UserError(f"there is no folder {root / 'Test'}: prepare videos with script_img_prep.py")
    made = synthetic(root)
    if made:
        say(f"the videos in {root} are generated stand-ins, not real data")

    datasets = [listed(root, video, opt) for video in subfolders(root / "Test")]
    datasets = [dataset for dataset in datasets if len(dataset)]
    if not datasets:
        raise UserError(f"no video in {root / 'Test'} has the {opt.FrameNum} frames of a clip")
    for dataset in datasets:
        require_fitting(dataset.size, opt)
    output = opt.OutRoot / f"res_{name}"
    work = output / "unfinished"  # until all is scored, complete results of an earlier run stay
    settings = plain_settings(opt)
    about = {"data": "synthetic" if made else str(root), "model": str(path.absolute()), "model_sha256": digest(path)}
    about |= {"device": device.type, "settings": settings}
    with locked(output):
        with distributed.first_alone():
            scored = begin(work, about)
        say(f"scoring {root / 'Test'} with {path} ({device}, {opt.precision})")
        entries = {plain(dataset.videos[0]): _entry(dataset, opt) for dataset in datasets}
        scored = {key: scored[key] for key, entry in entries.items() if entry.items() <= scored.get(key, {}).items()}
        videos = {plain(dataset.videos[0]): dataset for dataset in datasets}
        finished = {key for key, entry in scored.items() if _whole(work / f"{videos[key].videos[0]}.npy", entry)}
        if finished:
            say(f"{len(finished)} of {len(datasets)} videos are scored already: going on")
        with goes_on(output):
            for key, dataset in videos.items():
                (video,) = dataset.videos
                file, picture, begun = (work / name.format(video) for name in ("{}.npy", "maps/{}.jpg", "{}.scoring"))
                anew = key not in scored  # or its frames were others
                if anew:
                    scored[key] = entries[key]
                    if first_process():
                        file.unlink(missing_ok=True)
                        picture.unlink(missing_ok=True)
                        write_json(work / "progress.json", {"about": about, "videos": scored})
                done = key in finished
                try:
                    scores = read_npy(file) if done else score_video(model, dataset, begun, anew, opt, device)
                except FloatingPointError as error:
                    raise UserError(f"{error}: {path} is no sound model (--precision fp32?)") from None
                if first_process():
                    if not done:
                        with atomic_write(file) as target:
                            np.save(target, scores, allow_pickle=False)
                        scored[key] = entries[key] | {"sha256": digest(file)}
                        write_json(work / "progress.json", {"about": about, "videos": scored})
                        begun.unlink()
                    if opt.WorstFrames and not picture.is_file():
                        draw_worst(picture, model, dataset, scores, opt, device)
                vars(dataset).pop("store", None)
        if first_process():
            summary = {"method": opt.ModelName, **about, "versions": checkpoint.versions()}
            if len(finished) < len(datasets):
                remove_results(output)
            for file in [path for pattern in RESULTS for path in work.glob(pattern) if path.name != "progress.json"]:
                (output / file.relative_to(work)).parent.mkdir(exist_ok=True)
                file.replace(output / file.relative_to(work))
            write_json(output / "testing.json", {**summary, "videos": scored, "notes": notes()})
            shutil.rmtree(work)
            say(f"scores of {sum(map(len, videos.values()))} clips: {output}")


def _whole(file: Path, entry: dict[str, Any]) -> bool:
    """Whether a video's scores are complete and undamaged."""
    whole = "sha256" in entry and file.is_file() and digest(file) == entry["sha256"]
    if "sha256" in entry and not whole:
        say(f"{file} is damaged or gone: scored again")
    return whole


def listed(root: Path, video: str, opt: Namespace) -> VideoDatasetOneDir:
    """The clips of one video, their frames not decoded yet."""
    idx_root = index_root(root, "Test")
    return VideoDatasetOneDir(
        idx_root and idx_root / video, root / "Test" / video,
        frame_num=opt.FrameNum, channels=opt.ImgChnNum, limit_gib=opt.CacheGiB, decode=False,
    )  # fmt: skip


def _entry(dataset: VideoDatasetOneDir, opt: Namespace) -> dict[str, Any]:
    """What is stored about a video's scores."""
    middles = [numbers[opt.FrameNum // 2] for _, numbers in dataset.clips]
    frames = dataset.frame_counts[dataset.videos[0]]
    return {"frames": frames, "scored_frames": middles, "fingerprint": dataset.fingerprint()}


if __name__ == "__main__":
    sys.exit(main())
