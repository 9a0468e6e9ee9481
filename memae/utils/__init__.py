"""What MemAE's scripts share: names, models, reconstructions and their errors."""

from argparse import Namespace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from common import checkpoint
from common.files import UserError
from common.runtime import autocast, channels_last
from memae.models import AutoEncoderCov3D, AutoEncoderCov3DMem


def setting_name(opt: Namespace) -> str:
    """Name of checkpoints, logs and results, the original's; a backbone other than conv3d is part of it."""
    setting = opt.ModelSetting
    if opt.Backbone != "conv3d":
        setting += f"_{opt.Backbone}{opt.BackboneDepth}"
    if opt.ModelName == "AE":
        return f"AE_{setting}_{opt.Dataset}_{opt.Suffix}"
    return (
        f"MemAE_{setting}_{opt.Dataset}_MemDim{opt.MemDim}_EntW{opt.EntropyLossWeight}_ShrThres{opt.ShrinkThres}"
        f"_Seed{opt.Seed}_{opt.Suffix}"
    )


def make_model(opt: Namespace) -> nn.Module:
    """The network that the options describe, with new weights."""
    depth = opt.BackboneDepth or None
    if opt.ModelName == "AE":
        return AutoEncoderCov3D(opt.ImgChnNum, opt.Backbone, depth)
    return AutoEncoderCov3DMem(opt.ImgChnNum, opt.MemDim, opt.ShrinkThres, opt.Backbone, depth)


class Scorer(NamedTuple):
    """A trained network, and how it scores clips."""

    network: nn.Module
    method: str  # MemAE or AE
    device: torch.device
    precision: str
    batch_size: int
    threads: int

    @torch.no_grad()
    def maps(self, frames: Tensor) -> Tensor:
        """`error_maps` (B, T, H, W) of clips (B, C, T, H, W), uint8."""
        x = normalise(frames, self.device)
        with autocast(self.device, self.precision):
            output, _ = reconstruct(self.network, x)
        return error_maps(output, x, self.method)


def load_scorer(opt: Namespace, path: Path, device: torch.device) -> Scorer:
    """The network that the options name, with the weights in `path`. UserError as `load_weights` raises it."""
    network = make_model(opt)
    load_weights(network, path)
    network.to(device, memory_format=channels_last(device, 5)).eval()
    return Scorer(network, opt.ModelName, device, opt.precision, opt.BatchSize, opt.NumWorker)


def model_path(opt: Namespace) -> Path:
    """Of the weights that the options name."""
    return opt.ModelFilePath or opt.ModelRoot / f"{setting_name(opt)}.pt"


def load_weights(model: nn.Module, path: Path) -> None:
    """Copy the state dict in `path` into `model`. UserError, with the options that may be off, where it does not
    fit."""
    if not path.exists():
        others = sorted(other.stem for other in path.parent.glob("*.pt"))
        trained = f" (trained are {', '.join(others[:5])})" if others else ""
        raise UserError(
            f"there is no checkpoint {path}{trained}: run script_training.py with the same options, or name one by "
            "--ModelFilePath"
        )
    state = checkpoint.load_tensors(path)
    if "kind" in state:
        raise UserError(f"{path} is for resuming a training: score with <setting>.pt or an epoch's file")
    # Trained on several GPUs, the authors' parameters are called module.<name>.
    state = {name.removeprefix("module."): value for name, value in state.items()}
    try:
        checkpoint.load_parameters(model, state, path)
    except UserError as error:
        options = "--ModelName, --MemDim, --ImgChnNum, --Backbone and --BackboneDepth"
        raise UserError(f"{error} ({options} must be those of the training)") from error


def normalise(frames: Tensor, device: torch.device) -> Tensor:
    """uint8 0..255 -> float32 [-1, 1] on `device`: ToTensor, then mean 0.5 and standard deviation 0.5."""
    return frames.to(device, non_blocking=True).float().div_(255).sub_(0.5).div_(0.5)


def reconstruct(network: nn.Module, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """Clips (B, C, T, H, W) in [-1, 1] -> their reconstructions, of the same shape and type, and MemAE's weights w_hat
    (B, M, T', H', W') of the memory items."""
    out = network(x)
    output, w_hat = (out["output"], out["att"]) if isinstance(out, dict) else (out, None)
    return output.to(x.dtype), w_hat


def error_maps(output: Tensor, x: Tensor, model_name: str) -> Tensor:
    """Reconstruction errors of clips (B, C, T, H, W) in [-1, 1] -> (B, T, H, W), >= 0 (paper, section 4.2).

    MemAE: sqrt(sum over channels of r^2), r = output - x. AE: mean over channels of the squared error of grey levels
    in 0..1 (v * 0.5 + 0.5).
    """
    r = output.to(x.dtype) - x
    if model_name == "MemAE":
        return r.square().sum(dim=1).sqrt()
    return (0.5 * r).square().mean(dim=1)


def clip_errors(output: Tensor, x: Tensor, model_name: str) -> Tensor:
    """Score of each clip, (B,): the mean of `error_maps` over frames and pixels."""
    return error_maps(output, x, model_name).flatten(1).mean(dim=1)


def require_fitting(size: tuple[int, int], backbone: str, frame_num: int = 16, fewest: int = 2) -> None:
    """Raise UserError unless frames of `size` (height, width) survive the network's strides; fewest: clips that a
    process is given in a training step, of which batch norms need more than one value."""
    step = 16 if backbone == "conv3d" else 32
    if fewest == 1 and (frame_num, *size) == (8, step, step):
        raise UserError(
            f"a single clip of 8 x {step} x {step}, which remains for a process in some batch, is too small for batch "
            "norms: use more frames (--FrameNum), larger ones, or another --BatchSize"
        )
    if size[0] % step or size[1] % step:
        raise UserError(
            f"frames of {size[1]} x {size[0]} pixels: width and height must be multiples of {step} for "
            f"--Backbone {backbone} (script_img_prep.py --Size)"
        )


def plain_settings(opt: Namespace) -> dict[str, Any]:
    """All options as plain values, for results and checkpoints."""
    return {name: str(value) if isinstance(value, Path) else value for name, value in vars(opt).items()}
