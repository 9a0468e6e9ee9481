"""DAGAN, the baseline: a U-Net against an autoencoder that reconstructs images well and reconstructions badly."""

import math
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common import distributed
from crn.training.networks import RoadImageDiscriminator, average_gradients, average_statistics, observe, replay
from crn.training.skipnetworks import UnetGenerator, get_norm_layer


class DAGAN(nn.Module):
    """Generator G and discriminator D, one training step, and the scores.

    Images are (B, 3, imsize, imsize) as the data set normalises them.
    """

    name = "dagan"
    steps_per_batch = 2

    def __init__(
        self,
        levels: int,
        norm: str = "batch",
        use_dropout: bool = False,
        ngf: int = 64,
        adversarial_loss_weight: float = 1.0,
        contextual_loss_weight: float = 40.0,
        discriminator_reconstruction_loss_weight: float = 1.0,
    ):
        super().__init__()
        self.generator = UnetGenerator(3, 3, levels, ngf, norm_layer=get_norm_layer(norm), use_dropout=use_dropout)
        self.discriminator = RoadImageDiscriminator(levels=2)
        self.weights = adversarial_loss_weight, contextual_loss_weight, discriminator_reconstruction_loss_weight

    @property
    def networks(self) -> Sequence[nn.Module]:
        """What has an optimizer each."""
        return self.generator, self.discriminator

    def draw_pair(self, generator: torch.Generator) -> tuple[int, int]:
        """There is only this pair."""
        return 0, 1

    def training_step(
        self,
        x: Tensor,
        optimizers: Sequence[torch.optim.Optimizer],
        pair: tuple[int, int],
        scaler: torch.amp.GradScaler,
        autocast: Any = nullcontext,
        weight: float = 1.0,
    ) -> dict[str, float]:
        """One step of each network on the images x; returns the losses for the log. With mse the mean squared error:

            generator loss      w_a mse(G(x), D(G(x))) + w_c mse(x, G(x)),  D(G(x)) constant
            discriminator loss  w_d mse(D(x), x) - w_a mse(D(G(x)), G(x)),  G(x) constant

        D has not changed between the two, so that D(G(x)) is computed once; its running statistics are entered twice,
        as in the published code. `weight` and torchrun: as in CRN's step (crn.py). Raises FloatingPointError before the
        step where a loss is not finite.
        """
        w_a, w_c, w_d = self.weights
        for optimizer in optimizers:
            optimizer.zero_grad()
        with autocast():
            rec = self.generator(x)
            (of_rec, _), on_rec = observe(self.discriminator, rec.detach())
            (of_x, _), on_x = observe(self.discriminator, x)
        rec, of_rec, of_x = (output.to(x.dtype) for output in (rec, of_rec, of_x))

        adversarial, contextual = F.mse_loss(rec, of_rec.detach()), F.mse_loss(rec, x)
        generator_loss = w_a * adversarial + w_c * contextual
        scaler.scale(weight * generator_loss).backward()
        reconstruction, discrimination = F.mse_loss(of_x, x), F.mse_loss(of_rec, rec.detach())
        discriminator_loss = w_d * reconstruction - w_a * discrimination
        scaler.scale(weight * discriminator_loss).backward()

        own = torch.stack((generator_loss, adversarial, contextual, discriminator_loss, reconstruction)).tolist()
        losses = [distributed.mean_of(weight * value, x.device) for value in own]
        if not all(map(math.isfinite, losses)):
            raise FloatingPointError
        average_gradients(self.parameters())
        for optimizer in optimizers:
            scaler.step(optimizer)
        scaler.update()
        replay(self.discriminator, [on_rec, on_rec, on_x])
        average_statistics(self.networks)
        names = ("generator", "adversarial", "contextual", "discriminator", "discriminator_reconstruction")
        return {f"losses/{name}": value for name, value in zip(names, losses)}

    def choose_best(self) -> None:
        """There is nothing to choose."""

    def reconstruct(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """G(x) and D(x), shaped as x."""
        return self.generator(x).to(x.dtype), self.discriminator(x)[0].to(x.dtype)

    def scores(self, x: Tensor) -> dict[str, Tensor]:
        """Both anomaly scores of each image, (B,), the image shown for it, and the difference to it, both (B, 3, H, W).

        "validation": (mean |x - G(x)| + mean |x - D(x)|) / 2, "inference": mse(x, G(x)).
        """
        rec, of_x = self.reconstruct(x)
        difference = (x - rec).abs()
        return {
            "validation": (difference + (x - of_x).abs()).mean(dim=(1, 2, 3)) / 2,
            "inference": difference.square().mean(dim=(1, 2, 3)),
            "shown": rec,
            "difference": difference,
        }

    def bookkeeping(self) -> dict[str, Any]:
        """What a checkpoint holds beside the parameters: nothing."""
        return {}
