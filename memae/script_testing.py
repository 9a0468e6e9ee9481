"""Score every clip of the test videos: <OutRoot>/res_<setting>/<video>.npy, and error maps beside the worst frames.

    python script_testing.py          the model that script_training.py wrote; --ModelFilePath takes another

A clip's score is its mean reconstruction error, `memae.utils.clip_errors`. script_eval_video.py makes AUCs of them.
"""

import sys
from argparse import Namespace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from torch import Tensor, nn

from common.checkpoint import versions
from common.figures import map_sheet
from common.files import UserError, atomic_write, write_json
from common.images import synthetic
from common.memory import reuse_memory
from common.runtime import progress, say, script
from memae.data import VideoDatasetOneDir
from memae.data.demo_videos import ensure_data
from memae.data.video_datasets import index_root, load_batches, subfolders
from memae.options import TestOptions
from memae.utils import (
    autocast,
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
    with autocast(opt, device):
        out = model(x)
    return (out["output"] if isinstance(out, dict) else out).float(), x


def score_video(model: nn.Module, dataset: VideoDatasetOneDir, opt: Namespace, device: torch.device) -> np.ndarray:
    """Error of each clip of a video, (N,) float64, in the order of its clips."""
    batches = torch.arange(len(dataset)).split(opt.BatchSize)
    loaded = load_batches(dataset, [batch.tolist() for batch in batches], opt.NumWorker, pin=device.type == "cuda")
    scores = []
    for frames in progress(loaded, dataset.videos[0], total=len(batches)):
        scores.append(clip_errors(*reconstruct(model, frames, opt, device), opt.ModelName).cpu())
    return torch.cat(scores).double().numpy()


def worst_clips(scores: np.ndarray, count: int, apart: int) -> list[int]:
    """Up to `count` clips with the highest scores, at least `apart` clips from each other, highest first."""
    chosen: list[int] = []
    for clip in np.argsort(-scores, kind="stable"):
        if len(chosen) < count and all(abs(int(clip) - other) >= apart for other in chosen):
            chosen.append(int(clip))
    return chosen


def draw_worst(
    path: Path, model: nn.Module, dataset: VideoDatasetOneDir, scores: np.ndarray, opt: Namespace, device: torch.device
) -> None:
    """Draw the frames to which the highest scores belong, with their error maps, in order of time."""
    middle = opt.FrameNum // 2
    columns = []
    for clip in sorted(worst_clips(scores, opt.WorstFrames, opt.FrameNum // 2)):
        frames = dataset.batch([clip])
        output, x = reconstruct(model, frames, opt, device)
        error = error_maps(output, x, opt.ModelName)[0, middle].cpu().numpy()
        image = frames[0, :, middle].expand(3, -1, -1).movedim(0, -1).numpy()
        columns.append((image, error, f"frame {dataset.clips[clip][1][middle]}\nscore {scores[clip]:.4g}"))
    map_sheet(path, columns, f"{opt.ModelName} on {opt.Dataset}: worst frames of {dataset.videos[0]}", vmin=0)


@script
def main(argv: list[str] | None = None) -> None:
    """Score the test videos one by one; each video's file is written when it is done."""
    opt = TestOptions().parse(argv)
    device = pick(opt)
    reuse_memory()
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

    output = opt.OutRoot / f"res_{name}"
    datasets = {video: _open(root, video, opt) for video in subfolders(root / "Test")}
    if not any(datasets.values()):
        raise UserError(f"no video in {root / 'Test'} has the {opt.FrameNum} frames of a clip")
    for old in [*output.glob("*.npy"), *(output / "maps").glob("*.jpg"), output / "testing.json"]:
        old.unlink(missing_ok=True)  # never a mixture of two models' scores
    say(f"scoring {root / 'Test'} with {path} ({device}, {opt.precision})")
    scored = {}
    for video, dataset in datasets.items():
        if dataset is None:
            continue
        scores = score_video(model, dataset, opt, device)
        if not np.isfinite(scores).all():
            raise UserError(f"the scores of {video} are not finite: {path} is no sound model (--precision fp32?)")
        with atomic_write(output / f"{video}.npy") as file:
            np.save(file, scores)
        if opt.WorstFrames:
            draw_worst(output / "maps" / f"{video}.jpg", model, dataset, scores, opt, device)
        middles = [numbers[opt.FrameNum // 2] for _, numbers in dataset.clips]
        scored[video] = {"frames": dataset.frame_counts[video], "scored_frames": middles}
    result = {"method": opt.ModelName, "data": "synthetic" if made else str(root), "model": str(path)}
    result |= {"model_sha256": digest(path), "device": str(device), "settings": plain_settings(opt)}
    write_json(output / "testing.json", result | {"versions": versions(), "videos": scored})
    say(f"scores of {sum(len(video['scored_frames']) for video in scored.values())} clips: {output}")


def _open(root: Path, video: str, opt: Namespace) -> VideoDatasetOneDir | None:
    """The clips of one video, None where it is shorter than a clip."""
    idx_root = index_root(root, "Test")
    dataset = VideoDatasetOneDir(
        idx_root and idx_root / video, root / "Test" / video,
        frame_num=opt.FrameNum, channels=opt.ImgChnNum, limit_gib=opt.CacheGiB,
    )  # fmt: skip
    if not len(dataset):
        return None
    require_fitting(dataset.size, opt)
    return dataset


if __name__ == "__main__":
    sys.exit(main())
