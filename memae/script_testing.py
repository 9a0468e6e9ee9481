"""Score every clip of the test videos: <OutRoot>/res_<setting>/<video>.npy, and error maps beside the worst frames.

    python script_testing.py          the model that script_training.py wrote; --ModelFilePath takes another
    torchrun --nproc_per_node=2 script_testing.py       several processes share the clips of each video

A clip's score is its mean reconstruction error, `memae.utils.clip_errors`. script_eval_video.py makes AUCs of them.
The same command continues an interrupted run with the videos that are left.
"""

import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from torch import Tensor, nn

from common import distributed
from common.checkpoint import versions
from common.figures import map_sheet
from common.files import UserError, atomic_write, read_json, require_writable, write_json
from common.images import synthetic
from common.memory import reuse_memory
from common.runtime import autocast, progress, say, script
from memae.data import VideoDatasetOneDir
from memae.data.demo_videos import ensure_data
from memae.data.video_datasets import index_root, load_batches, subfolders
from memae.options import TestOptions
from memae.utils import (
    clip_errors,
    digest,
    error_maps,
    load_weights,
    make_model,
    normalise,
    pick,
    plain_settings,
    require_fitting,
    setting_name,
)


@torch.no_grad()
def reconstruct(model: nn.Module, frames: Tensor, opt: Namespace, device: torch.device) -> tuple[Tensor, Tensor]:
    """uint8 clips (B, C, T, H, W) -> reconstruction and input, float32 in [-1, 1]."""
    x = normalise(frames, device)
    with autocast(device, opt.precision):
        out = model(x)
    return (out["output"] if isinstance(out, dict) else out).float(), x


def score_video(model: nn.Module, dataset: VideoDatasetOneDir, opt: Namespace, device: torch.device) -> np.ndarray:
    """Error of each clip of a video, (N,) float64, in the order of its clips. Several processes share them."""
    own = distributed.part(range(len(dataset)))
    # A process for which nothing is left scores the first clip, to be left out.
    batches = torch.tensor(own if len(own) else [0]).split(opt.BatchSize)
    loaded = load_batches(dataset, [batch.tolist() for batch in batches], opt.NumWorker, pin=device.type == "cuda")
    scores = []
    for frames in progress(loaded, dataset.videos[0], total=len(batches)):
        scores.append(clip_errors(*reconstruct(model, frames, opt, device), opt.ModelName).cpu())
    return distributed.gathered(torch.cat(scores)[: len(own)].double().numpy())


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
    """The frame that a clip's score belongs to, (H, W, 3) uint8, and its error map, (H, W)."""
    frames, middle = dataset.batch([clip]), opt.FrameNum // 2
    output, x = reconstruct(model, frames, opt, device)
    error = error_maps(output, x, opt.ModelName)[0, middle].cpu().numpy()
    return frames[0, :, middle].expand(3, -1, -1).movedim(0, -1).numpy(), error


def draw_worst(
    path: Path, model: nn.Module, dataset: VideoDatasetOneDir, scores: np.ndarray, opt: Namespace, device: torch.device
) -> None:
    """Draw the frames to which the highest scores belong, with their error maps, in order of time."""
    middle = opt.FrameNum // 2
    columns = []
    for clip in sorted(worst_clips(scores, opt.WorstFrames, middle)):
        image, error = middle_frame(model, dataset, clip, opt, device)
        columns.append((image, error, f"frame {dataset.clips[clip][1][middle]}\nscore {scores[clip]:.4g}"))
    map_sheet(path, columns, f"{opt.ModelName} on {opt.Dataset}: worst frames of {dataset.videos[0]}", vmin=0)


# Of one model's scores, and of what script_eval_video.py makes of them: never mixed with another's.
RESULTS = (
    "*.npy", "maps/*.jpg", "testing.json", "acc.txt", "results.json", "scores.csv", "*_score.mat", "*_label.mat",
    "plots/*.png", "report.html",
)  # fmt: skip


def begin(output: Path, about: dict[str, Any]) -> dict[str, Any]:
    """Make `output` ready for scores made as `about` says; returns the videos that an interrupted run has scored.

    What other runs left there is removed. UserError where the folder cannot be written.
    """
    require_writable(output)
    file = output / "progress.json"
    if file.is_file():
        try:
            content = read_json(file)
        except UserError:
            content = None  # damaged: nothing of it is used
        if isinstance(content, dict) and content.get("about") == about and isinstance(content.get("videos"), dict):
            return {name: entry for name, entry in content["videos"].items() if (output / f"{name}.npy").is_file()}
    for old in [old for pattern in RESULTS for old in output.glob(pattern)]:
        old.unlink()
    write_json(file, {"about": about, "videos": {}})
    return {}


@script
def main(argv: list[str] | None = None) -> None:
    """Score the test videos one by one; each video's file is written when it is done."""
    opt = TestOptions().parse(argv)
    device = distributed.join(pick(opt))
    reuse_memory()
    autocast(device, opt.precision)  # refuses what this device cannot do
    with distributed.first_alone():
        ensure_data(opt)
    root, name = opt.DataRoot / opt.Dataset, setting_name(opt)
    path = opt.ModelFilePath or opt.ModelRoot / f"{name}.pt"
    model = make_model(opt)
    load_weights(model, path, opt)
    model.to(device, memory_format=torch.channels_last_3d).eval()
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
    settings = plain_settings(opt)
    about = {"data": "synthetic" if made else str(root), "model": str(path), "model_sha256": digest(path)}
    about |= {"device": device.type, "settings": settings}
    with distributed.first_alone():
        scored = begin(output, about)
    say(f"scoring {root / 'Test'} with {path} ({device}, {opt.precision})")
    begun = {d.videos[0]: _entry(d, opt) for d in datasets if d.videos[0] in scored}
    scored = {video: entry for video, entry in begun.items() if entry == scored[video]}  # of the same frames
    if scored:
        say(f"an interrupted run of this command has scored {len(scored)} of {len(datasets)} videos: going on")
    for dataset in datasets:
        (video,) = dataset.videos
        if video in scored:
            continue
        dataset.decode()
        scores = score_video(model, dataset, opt, device)
        if not np.isfinite(scores).all():
            raise UserError(f"the scores of {video} are not finite: {path} is no sound model (--precision fp32?)")
        scored[video] = _entry(dataset, opt)
        if not distributed.rank():
            if opt.WorstFrames:
                draw_worst(output / "maps" / f"{video}.jpg", model, dataset, scores, opt, device)
            with atomic_write(output / f"{video}.npy") as file:
                np.save(file, scores)
            write_json(output / "progress.json", {"about": about, "videos": scored})
        del dataset.store  # one video's frames at a time
    if distributed.rank():
        return
    videos = {dataset.videos[0]: scored[dataset.videos[0]] for dataset in datasets}
    write_json(output / "testing.json", {"method": opt.ModelName, **about, "versions": versions(), "videos": videos})
    (output / "progress.json").unlink()
    say(f"scores of {sum(len(video['scored_frames']) for video in scored.values())} clips: {output}")


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
