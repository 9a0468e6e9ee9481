"""Train MemAE or AE: python script_training.py; --help lists every option.

Without data, it trains on generated videos and says so. Checkpoints are plain state dicts in
<ModelRoot>/model_<setting>/, at the end <ModelRoot>/<setting>.pt; logs lie in <ModelRoot>/log_<setting>/. The same
command resumes an interrupted training and ends with the same weights. On several GPUs or processes:
torchrun --nproc_per_node=N script_training.py ...
"""

import errno
import os
import sys
import warnings
from argparse import Namespace
from contextlib import closing
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common.cli import answer_early, notes, resumable, say, script
from memae.options import TrainOptions

answer_early(__name__, TrainOptions().parse)

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from common import checkpoint, distributed
from common.checkpoint import Training
from common.files import (
    UserError,
    atomic_write,
    digest,
    locked,
    naming,
    read_tensors,
    require_like,
    require_writable,
    using,
    write_json,
)
from common.images import synthetic
from common.runtime import autocast, channels_last, pick_device, reuse_memory, seed_all
from memae.data import VideoDataset
from memae.data.demo_videos import EPOCHS, with_data
from memae.data.video_datasets import index_root, load_batches
from memae.models import EntropyLossEncap
from memae.models.backbones import from_mmaction
from memae.pictures import curve_figure
from memae.utils import make_model, normalise, plain_settings, reconstruct, require_fitting, setting_name

# What must agree for a training to be resumed; the rest only says where, how often to save, and for how long.
BINDING = (
    "ModelName", "ModelSetting", "Backbone", "BackboneDepth", "Seed", "Dataset", "ImgChnNum", "FrameNum", "MemDim",
    "EntropyLossWeight", "ShrinkThres", "BatchSize", "LR", "precision", "BackboneWeights_sha256",
)  # fmt: skip
LOSSES = ("loss", "recon_loss", "entropy_loss")


def losses_of(x_rec: Tensor, w_hat: Tensor | None, x: Tensor, alpha: float) -> dict[str, Tensor]:
    """Equation 10: loss = R + alpha E. AE has no memory and so no weights w_hat, whose entropy E is."""
    recon = F.mse_loss(x_rec, x)
    entropy = torch.zeros((), device=x.device) if w_hat is None else EntropyLossEncap()(w_hat)
    return {"loss": recon + alpha * entropy, "recon_loss": recon, "entropy_loss": entropy}


def train(opt: Namespace, dataset: VideoDataset, device: torch.device, metadata: dict[str, Any]) -> Path:
    """Train and save; returns the file of the final weights. metadata: stored in training.json.

    UserError where a training of the same name had other settings or clips, or loss or weights are not finite.
    KeyboardInterrupt after a requested stop, when the state is saved.
    """
    name, steps = setting_name(opt), -(-len(dataset) // opt.BatchSize)
    folder, log_folder = opt.ModelRoot / f"model_{name}", opt.ModelRoot / f"log_{name}"
    state_file = folder / f"{name}_resume.pt"
    stored = load_state(state_file) if opt.resume and state_file.exists() else None
    settings = plain_settings(opt) | {"BackboneWeights_sha256": backbone_digest(opt.BackboneWeights, stored)}
    seed_all(opt.Seed)
    model = make_model(opt)
    if stored is None and opt.BackboneWeights:
        load_backbone(model, opt.BackboneWeights, opt.ImgChnNum)
    model.to(device, memory_format=channels_last(device, 5))
    optimizer = torch.optim.Adam(model.parameters(), lr=opt.LR, fused=True)  # one pass over the parameters
    training = Training(
        state_file, "memae", settings, metadata["fingerprint"], model, [optimizer], device, seed=opt.Seed,
        precision=opt.precision, save_every=opt.save_every, minutes=opt.minutes, shorter="--EpochNum 3", stored=stored,
        binding=BINDING,
        otherwise="give another --Suffix", history_file=log_folder / "history.csv", log_end=0,
    )  # fmt: skip
    training.remedy = " (--LR)" + training.remedy
    network = distributed.parallel(model, sync_bn=opt.sync_bn)
    scaler, start = training.scaler, training.epoch * steps + training.step
    with closing(Logs(log_folder, training.extra["log_end"], start, opt.IsTbLog)) as logs:
        for epoch in training.epochs(opt.EpochNum, steps):
            batches = checkpoint.shuffled(len(dataset), opt.BatchSize, opt.Seed, epoch)[training.step :]
            shares = [distributed.weighted_share(batch) for batch in batches]
            clips = load_batches(dataset, [numbers for numbers, _ in shares], opt.NumWorker, pin=device.type == "cuda")
            for step, batch, (_, weight), frames in zip(training.steps(), batches, shares, clips):
                x = normalise(frames, device)  # (B, C, T, H, W) in [-1, 1]
                with autocast(device, opt.precision):
                    x_rec, w_hat = reconstruct(network, x)  # (B, C, T, H, W), (B, M, T', H', W'): equations 1 to 7
                losses = losses_of(x_rec, w_hat, x, opt.EntropyLossWeight)  # equations 9 and 10
                means = training.record(len(batch), **{key: weight * loss for key, loss in losses.items()})
                optimizer.zero_grad()
                scaler.scale(weight * losses["loss"]).backward()
                scaler.step(optimizer)
                scaler.update()
                iteration = epoch * steps + step
                if iteration % opt.TextLogInterval == 0:
                    training.extra["log_end"] = logs.losses(epoch, iteration, means)
                if iteration % opt.TBImgLogInterval == 0:
                    logs.picture(iteration, x[0], x_rec[0].detach())
                if iteration % opt.SnapInterval == 0:
                    save_weights(folder / f"{name}_snap.pt", training)
            means = training.finish_epoch()
            if epoch % max(opt.EpochNum // 20, 1) == 0 or training.over:
                say(f"epoch {epoch:4d}: " + ", ".join(f"{key} {means[key]:.6f}" for key in LOSSES))
            if epoch % opt.SaveCheckInterval == 0:
                save_weights(folder / f"{name}_epoch_{epoch:04d}.pt", training)
    final = opt.ModelRoot / f"{name}.pt"
    for path in (folder / f"{name}_epoch_{training.epoch - 1:04d}_final.pt", final):
        save_weights(path, training)
    summarise(training, metadata, opt.ModelName, log_folder / "loss.png", f"{opt.ModelName} on {opt.Dataset}")
    return final


def save_weights(path: Path, training: Training) -> None:
    """Write a plain state dict. UserError where a step has spoiled the weights after a finite loss."""
    if not checkpoint.finite(training.model):
        raise training.diverged("the parameters are not finite")
    checkpoint.write(path, training.model.state_dict())


def summarise(training: Training, metadata: dict[str, Any], method: str, picture: Path, title: str) -> None:
    """Write training.json, beside the checkpoints, and the curves of both losses."""
    # Epochs from 0, as the checkpoints' names and log.csv have them.
    history = [{"epoch": entry["epoch"] - 1, **{key: entry[key] for key in LOSSES}} for entry in training.history]
    result = {"method": method, **metadata, "device": str(training.device), "seconds": training.seconds}
    result |= {"saved": "last epoch", "settings": training.settings, "notes": notes()}
    result |= {"versions": checkpoint.versions(), "history": history}
    write_json(training.path.with_name("training.json"), result)
    epochs = [entry["epoch"] for entry in history]
    curves = {key: (epochs, [entry[key] for entry in history]) for key in LOSSES[:2]}
    curve_figure(picture, curves, title, "epoch", "mean loss")


def load_state(path: Path) -> dict[str, Any]:
    """What `Training` resumes from. Before it, files held one optimizer, sums without names, and epochs from 0."""
    stored = checkpoint.load(path, "memae")
    with using(path, "memae"):
        require_like(stored["history"], [{"epoch": 0, **dict.fromkeys(LOSSES, 0.0)}], "history")
        if len(stored["history"]) != stored["epoch"]:
            raise ValueError(f"its history is of {len(stored['history'])} epochs, not {stored['epoch']}")
        if isinstance(stored["optimizer"], list):
            return stored
        require_like(stored, {"settings": {"BatchSize": 0}, "step": 0, "sums": [0.0]})
        clips = float(stored["step"] * stored["settings"]["BatchSize"])  # all of an epoch but its last batch are whole
        sums = dict(zip(LOSSES, stored["sums"], strict=True)) | {"weight": clips} if clips else {}
        history = [entry | {"epoch": entry["epoch"] + 1} for entry in stored["history"]]
        return stored | {"optimizer": [stored["optimizer"]], "sums": sums, "history": history}


def backbone_digest(path: Path | None, stored: dict[str, Any] | None) -> str | None:
    """Of the file --BackboneWeights; one that is gone is not needed to resume the training that began with it."""
    if path is None:
        return None
    before = stored["settings"] if stored else {}
    if not path.exists() and before.get("BackboneWeights") == str(path):
        return before.get("BackboneWeights_sha256")
    if not path.is_file():
        raise UserError(f"there is no checkpoint {path}: --BackboneWeights takes mmaction2's file")
    return digest(path)


def load_backbone(model: nn.Module, path: Path, channels: int) -> None:
    """Start the encoder, for frames of `channels` channels, from mmaction2's checkpoint. UserError where it does not
    fit."""
    content = read_tensors(path)
    with using(path, "mmaction2"):
        state = from_mmaction(content.get("state_dict", content), channels)
        checkpoint.load_parameters(model.encoder, state, path)


class Logs:
    """The losses of iterations in log.csv and, where installed, for TensorBoard; pictures of x and x_rec. Of several
    processes, the first one writes."""

    def __init__(self, folder: Path, end: int, iteration: int, tensorboard: bool):
        """Continue log.csv at byte `end`, up to which it belongs to the training's saved state; iteration: the next."""
        self.folder, self.file, self.board = folder, None, None
        if distributed.rank():
            return
        require_writable(folder)
        path = folder / "log.csv"
        with naming(path, "what was saved stays"):
            self.file = path.open("r+b" if path.exists() else "w+b", buffering=0)
            if self.file.seek(0, os.SEEK_END) > end:
                self.file.truncate(end)
        if not self.file.seek(0, os.SEEK_END):
            self._write(",".join(("epoch", "iteration", *LOSSES)))
        if tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter

                self.board = SummaryWriter(str(folder), purge_step=iteration, flush_secs=10)
            except ImportError:
                say("tensorboard is not installed (pip install tensorboard): no TensorBoard logs, only log.csv")

    def _write(self, line: str) -> int:
        with naming(self.folder / "log.csv", "what was saved stays"):
            if self.file.write(f"{line}\n".encode()) <= len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return self.file.tell()

    def losses(self, epoch: int, iteration: int, losses: dict[str, float]) -> int:
        """Add a line; returns where log.csv ends now."""
        if self.file is None:
            return 0
        if self.board:
            for name, value in losses.items():
                self.board.add_scalar(name, value, iteration)
        return self._write(",".join(map(str, (epoch, iteration, *losses.values()))))

    def picture(self, iteration: int, x: Tensor, x_rec: Tensor) -> None:
        """Every third frame of a clip, (C, T, H, W) in [-1, 1], above its reconstruction."""
        if self.file is None:
            return
        rows = [torch.cat(list(clip[:, ::3].movedim(1, 0)), dim=2) for clip in (x, x_rec)]  # (C, H, W * n) each
        grey = torch.cat(rows, dim=1).mul(0.5).add(0.5).clamp(0, 1)  # (C, 2 H, W * n)
        pixels = grey.mul(255).round().byte().movedim(0, -1).cpu().numpy()
        with atomic_write(self.folder / f"x_x_rec_{iteration:07d}.jpg") as file:
            Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(file, "JPEG", quality=90)
        if self.board:
            self.board.add_image("x, x_rec", grey.cpu(), iteration)

    def close(self) -> None:
        """Write what is left."""
        for one in filter(None, (self.file, self.board)):
            one.close()


@script(memory="a smaller --BatchSize or --MemDim, or --precision bf16", several=True)
def main(argv: list[str] | None = None) -> None:
    """Data, training, final weights."""
    opt = TrainOptions().parse(argv)
    device = distributed.join(pick_device(opt.device, deterministic=opt.IsDeter))
    reuse_memory()
    autocast(device, opt.precision)  # refuses what this device cannot do before the frames are read
    # Of weights of one channel, whose memory layout has two equal descriptions.
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
    with distributed.first_alone():
        opt = with_data(opt)
    root = opt.DataRoot / opt.Dataset
    if not (root / "Train").is_dir():
        raise UserError(f"there is no folder {root / 'Train'}: prepare videos with script_img_prep.py")
    generated = synthetic(root)
    if generated:
        say(f"the videos in {root} are generated stand-ins, not real data")
        if "EpochNum" not in opt.given:
            opt = Namespace(**vars(opt) | {"EpochNum": EPOCHS})
            say(f"{EPOCHS} epochs are enough for them (--EpochNum chooses)")
    dataset = VideoDataset(
        index_root(root, "Train"), root / "Train", opt.FrameNum, opt.ImgChnNum, limit_gib=opt.CacheGiB
    )
    if not len(dataset):
        raise UserError(f"no video in {root / 'Train'} has the {opt.FrameNum} frames of a clip")
    last = len(dataset) % opt.BatchSize or opt.BatchSize
    require_fitting(dataset.size, opt.Backbone, opt.FrameNum, fewest=max(last // distributed.size(), 1))
    metadata = {"data": "synthetic" if generated else str(root), "folder": str(root)}
    metadata |= {"fingerprint": dataset.fingerprint(), "clips": len(dataset), "frame_size": list(dataset.size)}
    name = setting_name(opt)
    processes = f", {distributed.size()} processes" if distributed.size() > 1 else ""
    say(
        f"training {name} on {len(dataset)} clips of {opt.FrameNum} x {dataset.size[0]} x {dataset.size[1]} "
        f"({device}, {opt.precision}{processes})"
    )
    require_writable(opt.ModelRoot)
    folder = opt.ModelRoot / f"model_{name}"
    with resumable(folder / f"{name}_resume.pt", argv, opt.resume), locked(folder):
        final = train(opt, dataset, device, metadata)
    say(f"weights: {final}")


if __name__ == "__main__":
    sys.exit(main())
