"""Scores of frames that are arrays, for Python: `load` once, then `score_frames`."""

from argparse import Namespace
from typing import Any, NamedTuple

import numpy as np
import torch

from common.runtime import pick_device
from memae.options import TestOptions
from memae.utils import Scorer, load_scorer, model_path, require_fitting


class Loaded(NamedTuple):
    """A trained model, ready to score."""

    scorer: Scorer
    opt: Namespace


def load(**options: Any) -> Loaded:
    """The trained model that options of script_testing.py name, such as Dataset="mine". UserError where there is none,
    or it does not fit them."""
    opt = TestOptions().parse([f"--{name}={value}" for name, value in options.items()])
    return Loaded(load_scorer(opt, model_path(opt), pick_device(opt.device, deterministic=opt.IsDeter)), opt)


def score_frames(frames: np.ndarray, model: Loaded) -> tuple[np.ndarray, np.ndarray]:
    """Of each clip of FrameNum frames, its score, script_testing.py's, (N,), and the error map of the frame that it
    belongs to, number FrameNum // 2 of the clip, (N, H, W); N = T - FrameNum + 1. There are no verdicts: thresholds
    are the user's.

    frames: (T, H, W), or (T, H, W, 3) for a model of colours, uint8, of the size that the model was trained with.
    ValueError for other shapes, UserError where H and W do not fit the network.
    """
    opt, scorer = model.opt, model.scorer
    clip = torch.tensor(frames if frames.ndim == 4 else frames[..., None]).movedim(-1, 0)  # (C, T, H, W)
    if clip.dim() != 4 or clip.dtype != torch.uint8 or len(clip) != opt.ImgChnNum or clip.size(1) < opt.FrameNum:
        raise ValueError(f"frames of shape {frames.shape}, {frames.dtype}: expected uint8, {opt.FrameNum} or more")
    require_fitting(tuple(clip.shape[2:]), opt.Backbone)
    scores, maps = [], []
    for batch in torch.arange(clip.size(1) - opt.FrameNum + 1).split(opt.BatchSize):
        clips = torch.stack([clip[:, start : start + opt.FrameNum] for start in batch.tolist()])
        errors = scorer.maps(clips)  # (B, FrameNum, H, W)
        scores.append(errors.flatten(1).mean(dim=1).double().cpu())
        maps.append(errors[:, opt.FrameNum // 2].cpu())
    return torch.cat(scores).numpy(), torch.cat(maps).numpy()
