"""Train MemAE or AE: python script_training.py; --help lists every option.

Without data, it trains on generated videos and says so. Checkpoints are plain state dicts in
<ModelRoot>/model_<setting>/, at the end <ModelRoot>/<setting>.pt; logs lie in <ModelRoot>/log_<setting>/. The same
command continues an interrupted training and ends with the same weights. On several GPUs or processes:
torchrun --nproc_per_node=N script_training.py ...
"""

import errno
import math
import os
import sys
import time
import warnings
from argparse import Namespace
from pathlib import Path
from typing import IO, Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from common import checkpoint, distributed
from common.cli import command_to_continue, notes, progress, say, script, stop_on_request
from common.files import UserError, atomic_write, digest, locked, naming, read_tensors, require_writable, write_json
from common.images import same_images, synthetic
from common.runtime import autocast, channels_last, reuse_memory, seed_all
from memae.data import VideoDataset
from memae.data.demo_videos import EPOCHS, ensure_data
from memae.data.video_datasets import index_root, load_batches
from memae.models import EntropyLossEncap
from memae.models.backbones import from_mmaction
from memae.options import TrainOptions
from memae.pictures import curve_figure
from memae.utils import device_of, make_model, normalise, plain_settings, require_fitting, setting_name

# What must agree for a training to be continued; the rest only says where, how often to save, and for how long.
BINDING = (
    "ModelName", "ModelSetting", "Backbone", "BackboneDepth", "Seed", "Dataset", "ImgChnNum", "FrameNum", "MemDim",
    "EntropyLossWeight", "ShrinkThres", "BatchSize", "LR", "precision", "BackboneWeights_sha256",
)  # fmt: skip
LOSSES = ("loss", "recon_loss", "entropy_loss")
HEADER = "epoch,iteration,loss,recon_loss,entropy_loss\n"


# What a training's saved state must hold to be continued, as `checkpoint.require_like` reads it.
RESUMABLE = {
    "settings": {}, "model": {}, "optimizer": {}, "scaler": {}, "fingerprint": "", "epoch": 0, "step": 0,
    "iteration": 0, "log_end": 0, "seconds": 0.0, "sums": [0.0], "history": [dict.fromkeys(LOSSES, 0.0)],
}  # fmt: skip


class Logs:
    """loss, recon_loss and entropy_loss as log.csv and, where installed, for TensorBoard; pictures of x and x_rec."""

    def __init__(self, folder: Path, offset: int, iteration: int, opt: Namespace):
        """Continue log.csv at byte `offset`, up to which it belongs to the training's saved state."""
        self.folder = folder
        require_writable(folder)
        path = folder / "log.csv"
        with naming(path, "what was saved stays"):
            self.file: IO[bytes] = path.open("r+b" if path.exists() else "w+b", buffering=0)
            self.file.seek(0, 2)
            self.file.truncate(min(offset, self.file.tell()))
            self.file.seek(0, 2)
        if not self.file.tell():
            self._write(HEADER)
        self.board = None
        if opt.IsTbLog:
            try:
                from torch.utils.tensorboard import SummaryWriter

                self.board = SummaryWriter(str(folder), purge_step=iteration)
            except ImportError:
                say(
                    "tensorboard is not installed (pip install tensorboard): the curves go to log.csv and loss.png only"
                )

    def _write(self, line: str) -> None:
        with naming(self.folder / "log.csv", "what was saved stays"):
            if self.file.write(line.encode()) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def losses(self, epoch: int, iteration: int, losses: dict[str, float]) -> None:
        """One line."""
        self._write(f"{epoch},{iteration},{losses['loss']!r},{losses['recon_loss']!r},{losses['entropy_loss']!r}\n")
        if self.board:
            for name, value in losses.items():
                self.board.add_scalar(name, value, iteration)

    def picture(self, iteration: int, x: Tensor, x_rec: Tensor) -> None:
        """Every third frame of the first clip, (C, T, H, W) in [-1, 1] each, above its reconstruction."""
        rows = [torch.cat(list(clip[:, ::3].movedim(1, 0)), dim=2) for clip in (x, x_rec)]  # (C, H, W * n) each
        grey = torch.cat(rows, dim=1).mul(0.5).add(0.5).clamp(0, 1)  # (C, 2 H, W * n)
        pixels = grey.mul(255).round().byte().movedim(0, -1).cpu().numpy()
        with atomic_write(self.folder / f"x_x_rec_{iteration:07d}.jpg") as file:
            Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(file, "JPEG", quality=90)
        if self.board:
            self.board.add_image("x, x_rec", grey.cpu(), iteration)

    def end_of_file(self) -> int:
        """The length of log.csv."""
        if self.board:
            self.board.flush()
        return self.file.tell()


def losses_of(network: nn.Module, x: Tensor, opt: Namespace, device: torch.device) -> tuple[dict[str, Tensor], Tensor]:
    """Equation 10: loss = recon_loss + alpha * entropy_loss, all three, and the reconstruction; AE has no entropy."""
    with autocast(device, opt.precision):
        out = network(x)
    output, att = (out["output"], out["att"]) if isinstance(out, dict) else (out, None)
    recon = F.mse_loss(output.to(x.dtype), x)
    entropy = torch.zeros((), device=device) if att is None else EntropyLossEncap()(att)
    return {"loss": recon + opt.EntropyLossWeight * entropy, "recon_loss": recon, "entropy_loss": entropy}, output


def _of_processes() -> str:
    return f", {distributed.size()} processes" if distributed.size() > 1 else ""


def batches_of(count: int, opt: Namespace, epoch: int, first: int) -> list[list[int]]:
    """The shuffled batches of an epoch from number `first` on, none dropped. They depend on seed and epoch alone."""
    generator = torch.Generator().manual_seed(opt.Seed * 1_000_003 + epoch)
    order = torch.randperm(count, generator=generator)
    return [batch.tolist() for batch in order.split(opt.BatchSize)][first:]


def train(opt: Namespace, dataset: VideoDataset, device: torch.device, about: dict[str, Any]) -> Path:
    """Train and save; returns the file of the final weights. about: stored in training.json.

    Raises UserError where a training of the same name had other settings or clips, or loss or weights are not finite.
    KeyboardInterrupt after a requested stop, when the state is saved.
    """
    name = setting_name(opt)
    folder, log_folder = opt.ModelRoot / f"model_{name}", opt.ModelRoot / f"log_{name}"
    state_file = folder / f"{name}_resume.pt"
    steps = -(-len(dataset) // opt.BatchSize)
    stored = None
    if opt.resume and state_file.exists():
        stored = checkpoint.load(state_file, "memae", RESUMABLE)
    settings = plain_settings(opt) | {"BackboneWeights_sha256": _backbone_digest(opt, stored)}
    seed_all(opt.Seed)
    model = make_model(opt)
    if stored is None and opt.BackboneWeights:
        _load_backbone(model, opt)
    model.to(device, memory_format=channels_last(device, 5))
    optimizer = torch.optim.Adam(model.parameters(), lr=opt.LR, fused=True)  # one pass over the parameters
    scaler = torch.amp.GradScaler(device.type, enabled=opt.precision == "fp16")
    epoch, step, iteration, log_end, seconds, sums, history = 0, 0, 0, 0, 0.0, [0.0, 0.0, 0.0], []
    if stored is not None:
        _same_training(settings, about, stored, state_file, steps)
        checkpoint.load_parameters(model, stored["model"], state_file)
        checkpoint.load_optimizer(optimizer, stored["optimizer"], state_file)
        with checkpoint.using(state_file, "memae"):
            checkpoint.load_scaler(scaler, stored["scaler"])
        epoch, step, iteration = stored["epoch"], stored["step"], stored["iteration"]
        log_end, seconds, sums, history = stored["log_end"], stored["seconds"], stored["sums"], stored["history"]
        _say_continued(opt, name, folder, epoch, step)
    # Of weights of one channel, whose memory layout has two equal descriptions.
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
    network = distributed.parallel(model, sync_bn=opt.sync_bn)
    first = not distributed.rank()  # of several processes, the one that logs and saves
    logs = Logs(log_folder, log_end, iteration, opt) if first else None
    started = time.monotonic()

    def stop_training(what: str) -> None:
        raise UserError(
            f"{what} at epoch {epoch}, iteration {iteration}: training stops; what was saved in {folder} stays. Try "
            "a lower --LR, or --precision fp32; with other settings, --resume no trains anew"
        )

    def save(*names: str) -> None:
        """The state to continue from, and the weights as files `names`."""
        # Every process checks, so that all stop: after a fine loss, the step may have spoiled the weights.
        if not checkpoint.finite(model, optimizer):
            stop_training("the weights are not finite")
        if not first:
            return
        for file in names:
            checkpoint.write(folder / file, model.state_dict())
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "scaler": scaler.state_dict()}
        place = {"epoch": epoch, "step": step, "iteration": iteration, "log_end": logs.end_of_file()}
        passed = seconds + time.monotonic() - started
        checkpoint.save(
            state_file, "memae", settings=settings, **state, **place, **about,
            seconds=passed, sums=sums, history=history,
        )  # fmt: skip

    with stop_on_request() as stop:
        ahead = progress(range(iteration, opt.EpochNum * steps), "training")
        while epoch < opt.EpochNum:
            batches = batches_of(len(dataset), opt, epoch, step)
            own = [distributed.weighted_share(batch) for batch in batches]
            loaded = load_batches(dataset, [clips for clips, _ in own], opt.NumWorker, pin=device.type == "cuda")
            for batch, (_, weight), frames in zip(batches, own, loaded):
                next(ahead)
                x = normalise(frames, device)  # (B, C, 16, H, W) in [-1, 1]
                losses, x_rec = losses_of(network, x, opt, device)
                optimizer.zero_grad()
                scaler.scale(weight * losses["loss"]).backward()
                scaler.step(optimizer)
                scaler.update()

                values = {key: distributed.mean_of(weight * value.item(), device) for key, value in losses.items()}
                if not math.isfinite(values["loss"]):
                    stop_training(f"the loss is {values['loss']}")
                sums = [total + value * len(batch) for total, value in zip(sums, values.values())]
                if first and iteration % opt.TextLogInterval == 0:
                    logs.losses(epoch, iteration, values)
                if first and iteration % opt.TBImgLogInterval == 0:
                    logs.picture(iteration, x[0], x_rec[0].detach().float())
                snapshot = [f"{name}_snap.pt"] if iteration % opt.SnapInterval == 0 else []
                step, iteration = step + 1, iteration + 1
                stopping = distributed.anywhere(stop(), device)
                if step < steps and (snapshot or stopping):
                    save(*snapshot)
                if stopping:
                    break
            if step == steps:  # the epoch is complete
                means = [total / len(dataset) for total in sums]
                history.append(dict(zip(LOSSES, means), epoch=epoch))
                if epoch % max(opt.EpochNum // 20, 1) == 0 or epoch + 1 == opt.EpochNum:
                    say(
                        f"epoch {epoch:4d}: loss {means[0]:.6f}, recon_loss {means[1]:.6f}, entropy_loss {means[2]:.4f}"
                    )
                if epoch % opt.SaveCheckInterval == 0:
                    snapshot = [*snapshot, f"{name}_epoch_{epoch:04d}.pt"]
                epoch, step, sums = epoch + 1, 0, [0.0, 0.0, 0.0]
                save(*snapshot)
            if stopping:
                raise KeyboardInterrupt

    final = opt.ModelRoot / f"{name}.pt"
    if first:
        for path in (folder / f"{name}_epoch_{opt.EpochNum - 1:04d}_final.pt", final):
            checkpoint.write(path, model.state_dict())
        seconds += time.monotonic() - started
        _finish(opt, settings, about, history, seconds, folder, log_folder, device)
    return final


def _finish(
    opt: Namespace,
    settings: dict[str, Any],
    about: dict[str, Any],
    history: list[dict[str, float]],
    seconds: float,
    folder: Path,
    log_folder: Path,
    device: torch.device,
) -> None:
    result = {"method": opt.ModelName, **about, "device": str(device), "seconds": seconds, "saved": "last epoch"}
    result |= {"settings": settings, "notes": notes(), "versions": checkpoint.versions(), "history": history}
    write_json(folder / "training.json", result)
    epochs = [entry["epoch"] for entry in history]
    curves = {key: (epochs, [entry[key] for entry in history]) for key in ("loss", "recon_loss")}
    curve_figure(log_folder / "loss.png", curves, f"{opt.ModelName} on {opt.Dataset}", "epoch", "mean loss")


def _say_continued(opt: Namespace, name: str, folder: Path, epoch: int, step: int) -> None:
    if epoch > opt.EpochNum:
        raise UserError(
            f"{name} is trained for {epoch} epochs already, --EpochNum {opt.EpochNum} is less: {folder} has the "
            "weights of each epoch, --resume no trains anew"
        )
    if epoch == opt.EpochNum:
        say(f"{name} is trained for {epoch} epochs already (more: --EpochNum; anew: --resume no)")
    else:
        say(f"continuing {name} after {epoch} epochs" + (f" and {step} steps" if step else ""))


def _same_training(
    settings: dict[str, Any], about: dict[str, Any], stored: dict[str, Any], path: Path, steps: int
) -> None:
    theirs = stored["settings"]
    unlike = [f"{key} {theirs.get(key)}, not {settings[key]}" for key in BINDING if theirs.get(key) != settings[key]]
    if unlike:
        raise UserError(
            f"{path} belongs to a training with other settings: {'; '.join(unlike)}. Use these, or another --Suffix, "
            "or --resume no to train anew in its place"
        )
    if not same_images(stored["fingerprint"], about["fingerprint"]):
        raise UserError(
            f"{path} belongs to a training on other frames than {about['folder']} holds now: use another --Suffix, or "
            "--resume no to train anew in its place"
        )
    epoch, step = stored["epoch"], stored["step"]
    whole = step < steps and len(stored["history"]) == epoch and len(stored["sums"]) == len(LOSSES)
    if not whole or stored["iteration"] != epoch * steps + step:
        raise UserError(f"{path} is damaged: its epochs, steps, sums and history do not fit together")


def _backbone_digest(opt: Namespace, stored: dict[str, Any] | None) -> str | None:
    """Of the file --BackboneWeights; one that is gone is not needed to go on with the training begun from it."""
    if not opt.BackboneWeights:
        return None
    begun = stored["settings"] if stored else {}
    if begun.get("BackboneWeights") == str(opt.BackboneWeights) and not opt.BackboneWeights.exists():
        return begun.get("BackboneWeights_sha256")
    if not opt.BackboneWeights.is_file():
        raise UserError(f"there is no checkpoint {opt.BackboneWeights}: --BackboneWeights takes mmaction2's file")
    return digest(opt.BackboneWeights)


def _load_backbone(model: nn.Module, opt: Namespace) -> None:
    content = read_tensors(opt.BackboneWeights)
    with checkpoint.using(opt.BackboneWeights, "mmaction2"):
        state = from_mmaction(content.get("state_dict", content), opt.ImgChnNum)
        checkpoint.load_parameters(model.encoder, state, opt.BackboneWeights)


@script(memory="a smaller --BatchSize or --MemDim, or --precision bf16", several=True)
def main(argv: list[str] | None = None) -> None:
    """Data, training, final weights."""
    opt = TrainOptions().parse(argv)
    device = distributed.join(device_of(opt))
    reuse_memory()
    autocast(device, opt.precision)  # refuses what this device cannot do before the frames are read
    with distributed.first_alone():
        ensure_data(opt)
    root = opt.DataRoot / opt.Dataset
    if not (root / "Train").is_dir():
        raise UserError(f"there is no folder {root / 'Train'}: prepare videos with script_img_prep.py")
    made = synthetic(root)
    if made:
        say(f"the videos in {root} are generated stand-ins, not real data")
        if "EpochNum" not in opt.given:
            opt.EpochNum = EPOCHS
            say(f"{EPOCHS} epochs are enough for them (--EpochNum chooses)")
    dataset = VideoDataset(
        index_root(root, "Train"), root / "Train", opt.FrameNum, opt.ImgChnNum, limit_gib=opt.CacheGiB
    )
    if not len(dataset):
        raise UserError(f"no video in {root / 'Train'} has the {opt.FrameNum} frames of a clip")
    last = len(dataset) % opt.BatchSize or opt.BatchSize
    require_fitting(dataset.size, opt, fewest=max(last // distributed.size(), 1))
    about = {"data": "synthetic" if made else str(root), "folder": str(root), "fingerprint": dataset.fingerprint()}
    about |= {"clips": len(dataset), "frame_size": list(dataset.size)}
    name = setting_name(opt)
    say(
        f"training {name} on {len(dataset)} clips of {opt.FrameNum} x {dataset.size[0]} x {dataset.size[1]} "
        f"({device}, {opt.precision}{_of_processes()})"
    )
    try:
        require_writable(opt.ModelRoot)
        with locked(opt.ModelRoot / f"model_{name}"):
            final = train(opt, dataset, device, about)
    except KeyboardInterrupt:
        command = command_to_continue(argv, opt.resume)
        say(f"stopped; what was reached is saved in {opt.ModelRoot}. To continue: {command}")
        raise
    say(f"weights: {final}")


if __name__ == "__main__":
    sys.exit(main())
