"""The network with its optimizer: one training batch, validation, scores; the seed's algorithm and the paper's."""

import math
from argparse import Namespace
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from common import checkpoint, distributed
from common.files import UserError
from common.runtime import autocast
from riad.source import connector
from riad.source.losses import l2_loss, magnitudes, msgms_loss, msgms_map, ssim_loss, ssim_map
from riad.source.masks import content_keys, disjoint_masks, epoch_keys, mix

SCALES = {"repo": 3, "paper": 4}  # of the MSGMS

DIVERGED = "the network has diverged, what is saved stays. Train with a lower --lr, or --precision fp32"


def learning_rate(mode: int, lr: float, epoch: float) -> float:
    """The rate at `epoch`, a fraction that counts finished training, for --mode_lr.

    0: lr. 1: linear warm-up over 5 epochs, then lr. 2: warm-up, then cosine from lr down to lr / 5 in periods of 20,
    40, 80, ... epochs, until epoch 250; a tenth of the last rate from then on. 3: lr, a tenth of it from epoch 250 on.
    """
    if mode == 0:
        return lr
    if mode == 3:
        return lr if epoch < 250 else lr / 10
    if epoch < 5:
        return lr * epoch / 5
    if mode == 1:
        return lr
    since, period = min(epoch, 250) - 5, 20
    while since >= period:
        since, period = since - period, 2 * period
    low = lr / 5
    rate = low + (lr - low) * (1 + math.cos(math.pi * since / period)) / 2
    return rate if epoch < 250 else rate / 10


class Agent:
    """A network and its training.

    settings: the options of run.py, complete; channels: of the images; batches: per epoch, which the learning rate
    depends on. Images come as (B, C, H, W) uint8. Under torchrun, all processes call the same methods with the same
    images: training batches are shared, scores are those of the images given. Raises UserError for --sync_bn
    without a GPU.
    """

    def __init__(self, settings: Namespace, channels: int, batches: int, device: torch.device):
        self.settings, self.device = settings, device
        self.size = (settings.img_size, settings.img_size)
        self.scales = SCALES[settings.algorithm]
        self.network = connector.connect(settings, channels).to(device)
        # Called in place of the network, in eval mode too: it gives all processes the first one's batch statistics.
        self.forward = distributed.parallel(self.network, sync_bn=settings.sync_bn)
        parameters, lr, decay = self.network.parameters(), settings.lr, settings.weight_decay
        if settings.mode_optim == "adam":
            self.optimizer = torch.optim.Adam(parameters, lr, weight_decay=decay, fused=True)  # one pass over them
        elif settings.mode_optim == "sgd":
            self.optimizer = torch.optim.SGD(parameters, lr, momentum=0.1, weight_decay=decay, fused=True)
        else:
            self.optimizer = torch.optim.RMSprop(parameters, lr, weight_decay=decay)
        self.scaler = torch.amp.GradScaler(device.type, enabled=settings.precision == "fp16")
        self.steps = 0  # of the optimizer
        masks = settings.disjoint_n * len(settings.list_k)
        self.steps_per_epoch = batches * (masks if settings.algorithm == "repo" else 1)

    def prepare(self, images: Tensor) -> Tensor:
        """(B, C, H, W) uint8 as the network computes: 0..1 by each image's minimum and maximum, paper: -1..1."""
        x = images.to(self.device, next(self.network.parameters()).dtype)
        if self.settings.algorithm == "paper":
            return (x / 255 - 0.5) / 0.5
        low, high = x.amin(dim=(1, 2, 3), keepdim=True), x.amax(dim=(1, 2, 3), keepdim=True)
        return (x - low) / (high - low).clamp(min=1)

    def train_batch(self, images: Tensor, rows: Tensor, epoch: int, batch: int) -> dict[str, float]:
        """Train on one batch; rows: (B,) numbers of the images. Returns "loss", "l2", "msgms", "ssim", their means.

        Raises UserError where the loss is not finite.
        """
        self.network.train()
        x = self.prepare(images)
        train = self._train_repo if self.settings.algorithm == "repo" else self._train_paper
        return train(x, rows.to(self.device), epoch, batch)

    def _train_repo(self, x: Tensor, rows: Tensor, epoch: int, batch: int) -> dict[str, float]:
        """The seed's: all masked images in image-major order, in slices of B, each one step of the optimizer."""
        keys = epoch_keys(self.settings.seed, epoch, rows)
        masks = torch.cat([self._masks(keys, k) for k in self.settings.list_k], dim=1)  # (B, M, 1, H, W)
        masked = (x[:, None] * masks).flatten(0, 1)  # (B M, C, H, W), image-major
        image_of_each = torch.arange(len(x), device=self.device).repeat_interleave(masks.shape[1])
        with torch.no_grad():
            g = magnitudes(x, self.scales)  # once for all masks
        sums: dict[str, Tensor] = {}
        for inputs, numbers in zip(masked.split(len(x)), image_of_each.split(len(x))):
            (inputs, weight), (numbers, _) = distributed.weighted_share(inputs), distributed.weighted_share(numbers)
            with autocast(self.device, self.settings.precision):
                output = self.forward(inputs)
            losses = self._repo_losses(x[numbers], [g_s[numbers] for g_s in g], output)
            self._step(losses, weight)
            sums = {name: sums.get(name, 0) + weight * value.detach() for name, value in losses.items()}
        return self._reported({name: value / masks.shape[1] for name, value in sums.items()}, epoch, batch)

    def _train_paper(self, x: Tensor, rows: Tensor, epoch: int, batch: int) -> dict[str, float]:
        """The paper's: one cell size and one mask set for the batch, n passes, one step on the assembled image."""
        key = epoch_keys(self.settings.seed, epoch, rows[:1])
        masks = self._masks(key, self.settings.list_k[int(mix(key)) % len(self.settings.list_k)])
        x, weight = distributed.weighted_share(x)
        losses = self._paper_losses(x, assemble(self.inpaint(x, masks), masks))
        self._step(losses, weight)
        return self._reported({name: weight * value.detach() for name, value in losses.items()}, epoch, batch)

    def _repo_losses(self, x: Tensor, g: list[Tensor], output: Tensor) -> dict[str, Tensor]:
        return {
            "l2": l2_loss(x, output).mean(),
            "msgms": msgms_map(g, magnitudes(output, self.scales)).mean(),
            "ssim": ssim_loss(x, output).mean(),
        }

    def _paper_losses(self, x: Tensor, reconstruction: Tensor) -> dict[str, Tensor]:
        g, g_r = magnitudes(grey(x), self.scales), magnitudes(grey(reconstruction), self.scales)
        return {
            "l2": l2_loss(x, reconstruction).mean(),
            "msgms": msgms_loss(g, g_r),
            "ssim": (1 - ssim_map(x, reconstruction, value_range=2)).mean(),
        }

    def _weighted_sum(self, losses: Mapping[str, Any]) -> Any:
        l2, msgms, ssim = self.settings.weights
        return l2 * losses["l2"] + msgms * losses["msgms"] + ssim * losses["ssim"]

    def _step(self, losses: Mapping[str, Tensor], weight: float) -> None:
        self.steps += 1
        rate = learning_rate(self.settings.mode_lr, self.settings.lr, self.steps / self.steps_per_epoch)
        self.optimizer.param_groups[0]["lr"] = rate
        self.optimizer.zero_grad()
        self.scaler.scale(weight * self._weighted_sum(losses)).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def _reported(self, losses: Mapping[str, Tensor], epoch: int, batch: int) -> dict[str, float]:
        """The losses and "loss", their sum, as means over all processes; UserError where one is not finite."""
        values = torch.stack([self._weighted_sum(losses), *losses.values()]).tolist()  # one transfer from the device
        result = dict(zip(["loss", *losses], [distributed.mean_of(value, self.device) for value in values]))
        if not all(map(math.isfinite, result.values())):
            raise UserError(
                f"the loss is {result['loss']} in epoch {epoch + 1}, batch {batch + 1}: training stops, what is saved "
                "stays. Try a lower --lr, or --precision fp32"
            )
        return result

    def _masks(self, keys: Tensor, k: int) -> Tensor:
        return disjoint_masks(keys, self.size, k, self.settings.disjoint_n)[:, :, None]  # (B, n, 1, H, W)

    def inpaint(self, x: Tensor, masks: Tensor) -> Tensor:
        """The network's outputs for `x` (B, C, H, W) under each of its masks (B or 1, n, 1, H, W): (B, n, C, H, W)."""
        with autocast(self.device, self.settings.precision):
            return self.forward((x[:, None] * masks).flatten(0, 1)).unflatten(0, (x.shape[0], -1))

    @torch.no_grad()
    def validation_loss(self, images: Tensor, k: int) -> float:
        """The mean loss of `images` in eval mode, with cells of k x k; their masks are the same in every epoch.

        Raises UserError where it is not finite.
        """
        self.network.eval()
        images, weight = distributed.weighted_share(images)
        x, keys = self.prepare(images), content_keys(self.settings.seed, images.to(self.device))
        masks = self._masks(keys, k)
        outputs = self.inpaint(x, masks)
        if self.settings.algorithm == "repo":
            x = x.repeat_interleave(masks.shape[1], dim=0)
            losses = self._repo_losses(x, magnitudes(x, self.scales), outputs.flatten(0, 1))
        else:
            losses = self._paper_losses(x, assemble(outputs, masks))
        loss = distributed.mean_of(weight * float(self._weighted_sum(losses)), self.device)
        if not math.isfinite(loss):
            raise UserError(f"the validation loss is {loss}: {DIVERGED}")
        return loss

    @torch.no_grad()
    def score(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Reconstructions (B, C, H, W) in 0..1 and anomaly maps (B, H, W), whose maxima are the images' scores.

        images: (B, C, H, W) uint8. Reconstructions are made of the hidden cells, as the mean over cell sizes.
        Raises UserError where a map is not finite.
        """
        self.network.eval()
        reconstructions, maps = self.maps(images)
        if not maps.isfinite().all():
            raise UserError(f"the scores are not finite: {DIVERGED}")
        return reconstructions, maps

    def maps(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """As `score`, with the network in the mode that it is in, finite or not."""
        x, keys = self.prepare(images), content_keys(self.settings.seed, images.to(self.device))
        reconstructions, maps = torch.zeros_like(x), torch.zeros_like(x[:, :1])
        for k in self.settings.list_k:
            masks = self._masks(keys, k)
            outputs = self.inpaint(x, masks)
            reconstruction = assemble(outputs, masks)
            reconstructions += reconstruction / len(self.settings.list_k)
            of_k = self.repo_map(x, outputs) if self.settings.algorithm == "repo" else self.paper_map(x, reconstruction)
            maps += of_k / len(self.settings.list_k)
        if self.settings.algorithm == "paper":
            reconstructions = reconstructions / 2 + 0.5
            smooth = self.settings.smooth
            maps = F.avg_pool2d(maps, smooth, stride=1, padding=smooth // 2, count_include_pad=False)
        return reconstructions, maps[:, 0]

    def repo_map(self, x: Tensor, outputs: Tensor) -> Tensor:
        """The seed's: mean over the masks of the MSGMS map of image and output, (B, 1, H, W)."""
        g = [g_s.repeat_interleave(outputs.shape[1], dim=0) for g_s in magnitudes(x, self.scales)]
        maps = msgms_map(g, magnitudes(outputs.flatten(0, 1), self.scales))
        return maps.unflatten(0, (x.shape[0], -1)).mean(dim=1)

    def paper_map(self, x: Tensor, reconstruction: Tensor) -> Tensor:
        """The paper's: MSGMS map of image and assembled reconstruction, (B, 1, H, W)."""
        return msgms_map(magnitudes(grey(x), self.scales), magnitudes(grey(reconstruction), self.scales))

    def state(self) -> dict[str, Any]:
        """What continuing the training needs."""
        return {
            "model": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "steps": self.steps,
        }

    def load_state(self, stored: Mapping[str, Any], path: Any) -> None:
        """Put back what `state` returned; UserError where it does not fit."""
        checkpoint.load_parameters(self.network, stored["model"], path)
        checkpoint.load_optimizer(self.optimizer, stored["optimizer"], path)
        with checkpoint.using(path, "riad"):
            checkpoint.load_scaler(self.scaler, stored["scaler"])
        self.steps = stored["steps"]


def assemble(outputs: Tensor, masks: Tensor) -> Tensor:
    """The reconstruction (paper, section 3.1): of each mask's output (B, n, C, H, W) the hidden cells; (B, C, H, W)."""
    return ((1 - masks) * outputs).sum(dim=1)


def grey(image: Tensor) -> Tensor:
    """Mean over channels, (B, 1, H, W)."""
    return image.mean(dim=1, keepdim=True)
