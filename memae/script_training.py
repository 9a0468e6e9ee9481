"""Train MemAE or AE: python script_training.py; --help lists every option.

Without data, it trains on generated videos and says so. Checkpoints are plain state dicts in
<ModelRoot>/model_<setting>/, at the end <ModelRoot>/<setting>.pt; logs lie in <ModelRoot>/log_<setting>/. The same
command continues an interrupted training and ends with the same weights.
"""

import shlex
import sys
import time
from argparse import Namespace
from pathlib import Path
from typing import IO, Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from common import checkpoint
from common.figures import curve_figure
from common.files import UserError, atomic_write, reason, write_json
from common.images import synthetic
from common.memory import reuse_memory
from common.runtime import progress, say, script, seed_all, stop_on_request
from memae.data import VideoDataset
from memae.data.demo_videos import EPOCHS, ensure_data
from memae.data.video_datasets import index_root, load_batches
from memae.models import EntropyLossEncap
from memae.models.backbones import from_mmaction
from memae.options import TrainOptions
from memae.utils import autocast, make_model, normalise, pick, plain_settings, require_fitting
from memae.utils import setting_name as name_of

# What must agree for a training to be continued; the rest only says where, how often to save, and for how long.
BINDING = (
    "ModelName", "ModelSetting", "Backbone", "BackboneDepth", "Seed", "Dataset", "ImgChnNum", "FrameNum", "MemDim",
    "EntropyLossWeight", "ShrinkThres", "BatchSize", "LR", "precision",
)  # fmt: skip
HEADER = "epoch,iteration,loss,recon_loss,entropy_loss\n"


class Logs:
    """loss, recon_loss and entropy_loss as log.csv and, where installed, for TensorBoard; pictures of x and x_rec."""

    def __init__(self, folder: Path, offset: int, iteration: int, opt: Namespace):
        """Continue log.csv at byte `offset`, up to which it belongs to the training's saved state."""
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self.file: IO = (folder / "log.csv").open("r+" if (folder / "log.csv").exists() else "w+", newline="")
        except OSError as error:
            raise UserError(f"cannot write {folder}: {reason(error)}") from error
        self.file.seek(0, 2)
        self.file.truncate(min(offset, self.file.tell()))
        self.file.seek(0, 2)
        if not self.file.tell():
            self.file.write(HEADER)
        self.board = None
        if opt.IsTbLog:
            try:
                from torch.utils.tensorboard import SummaryWriter

                self.board = SummaryWriter(str(folder), purge_step=iteration)
            except ImportError:
                say(
                    "tensorboard is not installed (pip install tensorboard): the curves go to log.csv and loss.png only"
                )

    def losses(self, epoch: int, iteration: int, losses: dict[str, float]) -> None:
        """One line."""
        self.file.write(f"{epoch},{iteration},{losses['loss']!r},{losses['recon_loss']!r},{losses['entropy_loss']!r}\n")
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
        """Bring everything to the disk and return the length of log.csv."""
        self.file.flush()
        if self.board:
            self.board.flush()
        return self.file.tell()


def losses_of(model: nn.Module, x: Tensor, opt: Namespace, device: torch.device) -> tuple[dict[str, Tensor], Tensor]:
    """Equation 10: loss = recon_loss + alpha * entropy_loss, all three, and the reconstruction; AE has no entropy."""
    with autocast(opt, device):
        out = model(x)
    output, att = (out["output"], out["att"]) if isinstance(out, dict) else (out, None)
    recon = F.mse_loss(output.float(), x)
    entropy = torch.zeros((), device=device) if att is None else EntropyLossEncap()(att)
    return {"loss": recon + opt.EntropyLossWeight * entropy, "recon_loss": recon, "entropy_loss": entropy}, output


def batches_of(count: int, opt: Namespace, epoch: int, first: int) -> list[list[int]]:
    """The shuffled batches of an epoch from number `first` on, none dropped. They depend on seed and epoch alone."""
    generator = torch.Generator().manual_seed(opt.Seed * 1_000_003 + epoch)
    order = torch.randperm(count, generator=generator)
    return [batch.tolist() for batch in order.split(opt.BatchSize)][first:]


def train(opt: Namespace, dataset: VideoDataset, device: torch.device, about: dict[str, Any]) -> Path:
    """Train and save; returns the file of the final weights. about: stored in training.json.

    Raises UserError where a training of the same name had other settings or clips, or the loss is not finite.
    KeyboardInterrupt after a requested stop, when the state is saved.
    """
    name = name_of(opt)
    folder, log_folder = opt.ModelRoot / f"model_{name}", opt.ModelRoot / f"log_{name}"
    state_file = folder / f"{name}_resume.pt"
    seed_all(opt.Seed)
    model = make_model(opt)
    if opt.BackboneWeights:
        _load_backbone(model, opt)
    model.to(device, memory_format=torch.channels_last_3d)
    optimizer = torch.optim.Adam(model.parameters(), lr=opt.LR, fused=True)  # one pass over the parameters
    scaler = torch.amp.GradScaler(device.type, enabled=opt.precision == "fp16")
    settings = plain_settings(opt)
    epoch, step, iteration, log_end, seconds, sums, history = 0, 0, 0, 0, 0.0, [0.0, 0.0, 0.0], []
    if opt.Resume and state_file.exists():
        stored = checkpoint.load(state_file, "memae")
        _same_training(settings, about, stored, state_file)
        checkpoint.load_parameters(model, stored["model"], state_file)
        checkpoint.load_optimizer(optimizer, stored["optimizer"], state_file)
        scaler.load_state_dict(stored["scaler"])
        epoch, step, iteration = stored["epoch"], stored["step"], stored["iteration"]
        log_end, seconds, sums, history = stored["log_end"], stored["seconds"], stored["sums"], stored["history"]
        if epoch > opt.EpochNum:
            raise UserError(
                f"{name} is trained for {epoch} epochs already, --EpochNum {opt.EpochNum} is less: {folder} has the "
                "weights of each epoch, --Resume no trains anew"
            )
        say(f"continuing {name} after {epoch} epochs and {step} steps")
    logs = Logs(log_folder, log_end, iteration, opt)
    steps = -(-len(dataset) // opt.BatchSize)
    started = time.monotonic()

    def save() -> None:
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
            for frames in load_batches(dataset, batches, opt.NumWorker, pin=device.type == "cuda"):
                next(ahead)
                x = normalise(frames, device)  # (B, C, 16, H, W) in [-1, 1]
                losses, x_rec = losses_of(model, x, opt, device)
                optimizer.zero_grad()
                scaler.scale(losses["loss"]).backward()
                scaler.step(optimizer)
                scaler.update()

                values = {key: value.item() for key, value in losses.items()}
                if not np.isfinite(values["loss"]):
                    raise UserError(
                        f"the loss is {values['loss']} at epoch {epoch}, iteration {iteration}: training stops; what "
                        f"was saved in {folder} stays. Try a lower --LR, or --precision fp32"
                    )
                sums = [total + value * len(frames) for total, value in zip(sums, values.values())]
                if iteration % opt.TextLogInterval == 0:
                    logs.losses(epoch, iteration, values)
                if iteration % opt.TBImgLogInterval == 0:
                    logs.picture(iteration, x[0], x_rec[0].detach().float())
                snapshot = iteration % opt.SnapInterval == 0
                step, iteration = step + 1, iteration + 1
                if snapshot:
                    checkpoint.write(folder / f"{name}_snap.pt", model.state_dict())
                if step < steps and (snapshot or stop()):
                    save()
                if stop():
                    break
            if step == steps:  # the epoch is complete
                means = [total / len(dataset) for total in sums]
                history.append(dict(zip(("loss", "recon_loss", "entropy_loss"), means), epoch=epoch))
                if epoch % max(opt.EpochNum // 20, 1) == 0 or epoch + 1 == opt.EpochNum:
                    say(
                        f"epoch {epoch:4d}: loss {means[0]:.6f}, recon_loss {means[1]:.6f}, entropy_loss {means[2]:.4f}"
                    )
                if epoch % opt.SaveCheckInterval == 0:
                    checkpoint.write(folder / f"{name}_epoch_{epoch:04d}.pt", model.state_dict())
                epoch, step, sums = epoch + 1, 0, [0.0, 0.0, 0.0]
                save()
            if stop():
                raise KeyboardInterrupt

    final = opt.ModelRoot / f"{name}.pt"
    for path in (folder / f"{name}_epoch_{opt.EpochNum - 1:04d}_final.pt", final):
        checkpoint.write(path, model.state_dict())
    _finish(opt, about, history, seconds + time.monotonic() - started, folder, log_folder, device)
    return final


def _finish(
    opt: Namespace,
    about: dict[str, Any],
    history: list[dict[str, float]],
    seconds: float,
    folder: Path,
    log_folder: Path,
    device: torch.device,
) -> None:
    result = {"method": opt.ModelName, **about, "device": str(device), "seconds": seconds, "saved": "last epoch"}
    versions = checkpoint.versions()
    write_json(
        folder / "training.json", result | {"settings": plain_settings(opt), "versions": versions, "history": history}
    )
    epochs = [entry["epoch"] for entry in history]
    curves = {key: (epochs, [entry[key] for entry in history]) for key in ("loss", "recon_loss")}
    curve_figure(log_folder / "loss.png", curves, f"{opt.ModelName} on {opt.Dataset}", "epoch", "mean loss")


def _same_training(settings: dict[str, Any], about: dict[str, Any], stored: dict[str, Any], path: Path) -> None:
    theirs = stored["settings"]
    unlike = [f"{key} {theirs.get(key)}, not {settings[key]}" for key in BINDING if theirs.get(key) != settings[key]]
    if unlike:
        raise UserError(
            f"{path} belongs to a training with other settings: {'; '.join(unlike)}. Use these, or another --Suffix, "
            "or --Resume no to train anew in its place"
        )
    if stored["fingerprint"] != about["fingerprint"]:
        raise UserError(
            f"{path} belongs to a training on other frames than {about['folder']} holds now: use another --Suffix, or "
            "--Resume no to train anew in its place"
        )


def _load_backbone(model: nn.Module, opt: Namespace) -> None:
    if opt.Backbone == "conv3d":
        raise UserError("--BackboneWeights needs a --Backbone of mmaction2: slowonly, csn or resnet3d")
    content = checkpoint.read(opt.BackboneWeights)
    state = content.get("state_dict", content) if isinstance(content, dict) else {}
    checkpoint.load_parameters(model.encoder, from_mmaction(state, opt.ImgChnNum), opt.BackboneWeights)


@script
def main(argv: list[str] | None = None) -> None:
    """Data, training, final weights."""
    opt = TrainOptions().parse(argv)
    device = pick(opt)
    reuse_memory()
    autocast(opt, device)  # refuses what this device cannot do before the frames are read
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
    require_fitting(dataset.size, opt)
    about = {"data": "synthetic" if made else str(root), "folder": str(root), "fingerprint": dataset.fingerprint()}
    about |= {"clips": len(dataset), "frame_size": list(dataset.size)}
    say(
        f"training {name_of(opt)} on {len(dataset)} clips of {opt.FrameNum} x {dataset.size[0]} x {dataset.size[1]} "
        f"({device}, {opt.precision})"
    )
    try:
        final = train(opt, dataset, device, about)
    except KeyboardInterrupt:
        command = shlex.join(["python", sys.argv[0], *(sys.argv[1:] if argv is None else argv)])
        say(f"stopped; what was reached is saved in {opt.ModelRoot}. To continue: {command}")
        raise
    say(f"weights: {final}")


if __name__ == "__main__":
    sys.exit(main())
