"""Competitive Reconstruction Network: a population of U-Nets, two of which compete in every step."""

import math
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common import distributed
from common.files import UserError
from crn.training.networks import average_gradients, average_statistics, init_weights, observe, replay
from crn.training.skipnetworks import FEWEST_LEVELS, UnetGenerator, UnetGeneratorImproved, get_norm_layer

MARGIN = 4.0  # the discriminator's loss is MARGIN - discrimination_weight * ..., so that it stays positive


def levels_of(imsize: int, max_network_depth: int | None) -> int:
    """Levels of a U-Net for images of imsize x imsize: floor(log2 imsize), at most max_network_depth, at least 5.

    Raises UserError where such images cannot be halved so often.
    """
    levels = int(math.log2(imsize))
    levels = max(FEWEST_LEVELS, levels if max_network_depth is None else min(levels, max_network_depth))
    require_fitting(imsize, levels)
    return levels


def require_fitting(imsize: int, levels: int) -> None:
    """Raise UserError unless imsize can be halved `levels` times."""
    if imsize < 2**levels or imsize % 2**levels:
        raise UserError(
            f"--imsize {imsize}: a network of {levels} levels needs a multiple of {2**levels} (it has at least "
            f"{FEWEST_LEVELS} levels; --max-network-depth limits them)"
        )


class CompetitiveReconstructionNetwork(nn.Module):
    """The units, which of them is the best generator and discriminator, one training step, and the scores.

    Images are (B, 3, imsize, imsize) as the data set normalises them.
    """

    name = "crn"
    steps_per_batch: int

    def __init__(
        self,
        units: int,
        levels: int,
        improved: bool = True,
        norm: str = "batch",
        use_dropout: bool = False,
        ngf: int = 64,
        reconstruction_weight: float = 0.5,
        feedback_weight: float = 1.0,
        discrimination_weight: float = 2.0,
    ):
        super().__init__()
        unet = UnetGeneratorImproved if improved else UnetGenerator
        self.competitive_units = nn.ModuleList(
            unet(3, 3, levels, ngf, norm_layer=get_norm_layer(norm), use_dropout=use_dropout) for _ in range(units)
        )
        self.competitive_units.apply(init_weights)
        self.weights = reconstruction_weight, feedback_weight, discrimination_weight
        self.steps_per_batch = min(units, 2)
        # Until a unit has trained, it can be neither: the worst values there are.
        self.reconstruction_losses = [math.inf] * units  # last |x - G(x)| as generator
        self.advantages = [-math.inf] * units  # last |G(x) - D(G(x))| - |x - D(x)| as discriminator
        self.best_gen = self.best_disc = 0

    @property
    def networks(self) -> Sequence[nn.Module]:
        """What has an optimizer each."""
        return self.competitive_units

    def draw_pair(self, generator: torch.Generator) -> tuple[int, int]:
        """Two different units at random; one unit alone plays both roles."""
        order = torch.randperm(len(self.competitive_units), generator=generator).tolist()
        return order[0], order[-1]

    def training_step(
        self,
        x: Tensor,
        optimizers: Sequence[torch.optim.Optimizer],
        pair: tuple[int, int],
        scaler: torch.amp.GradScaler,
        autocast: Any = nullcontext,
        weight: float = 1.0,
    ) -> dict[str, float]:
        """One competition of the units `pair` on the images x; returns the losses for the log.

        For (g, d) = pair and the reverse, with gradients summed:
            generator loss      w_r |x - G(x)| + w_f |G(x) - D(G(x))|,  D(G(x)) constant
            discriminator loss  4 - w_d |G(x) - D(G(x))|,               G(x) constant
        | | is the mean absolute difference. Then both units' optimizers step. The published code passes G(x) through D
        twice and x through D once more, for bookkeeping: the outputs are the same, so that here each pass is made once
        and only its running statistics are entered as often as there.

        Under torchrun, x and `weight` are `common.distributed.share` of the batch. DistributedDataParallel follows one
        forward pass for each backward pass, and here are several: gradients are averaged before the step, and all
        processes note the mean losses, so that they choose the same units. Raises FloatingPointError before the step
        where a loss is not finite.
        """
        w_r, w_f, w_d = self.weights
        a, b = pair
        for unit in {a, b}:
            optimizers[unit].zero_grad()
        distances = {}  # of each as generator: |x - G(x)| and |G(x) - D(G(x))|
        on_image, on_reconstruction = {}, {}  # what `observe` saw of each
        for g, d in ((a, b), (b, a)):
            with autocast():
                rec, on_image[g] = observe(self.competitive_units[g], x)
                feedback, on_reconstruction[d] = observe(self.competitive_units[d], rec.detach())
            rec, feedback = rec.to(x.dtype), feedback.to(x.dtype)

            reconstruction = F.l1_loss(rec, x)
            adversarial = F.l1_loss(rec, feedback.detach())
            scaler.scale(weight * (w_r * reconstruction + w_f * adversarial)).backward()
            discrimination = F.l1_loss(feedback, rec.detach())
            scaler.scale(weight * (MARGIN - w_d * discrimination)).backward()
            own = torch.stack((reconstruction, adversarial)).tolist()
            distances[g] = [distributed.mean_of(weight * value, x.device) for value in own]

        if not all(math.isfinite(value) for values in distances.values() for value in values):
            raise FloatingPointError
        for unit in {a, b}:
            average_gradients(self.competitive_units[unit].parameters())
            scaler.step(optimizers[unit])
        scaler.update()

        for g, d in ((a, b), (b, a)):
            replay(self.competitive_units[g], [on_image[g]])
            replay(self.competitive_units[d], [on_reconstruction[d], on_image[d], on_reconstruction[d]])
            reconstruction, adversarial = distances[g]
            self.reconstruction_losses[g] = reconstruction
            self.advantages[d] = adversarial - distances[d][0]  # |x - D(x)|, from where d was the generator
        average_statistics(self.competitive_units[unit] for unit in {a, b})
        return {f"unit_losses/loss_{unit}": distances[unit][0] for unit in {a, b}}

    def choose_best(self) -> None:
        """best_gen: the trained unit with the lowest reconstruction loss; best_disc: with the largest advantage."""
        units = range(len(self.competitive_units))
        self.best_gen = min(units, key=self.reconstruction_losses.__getitem__)
        self.best_disc = max(units, key=self.advantages.__getitem__)

    def reconstruct(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """G(x) and D(G(x)) of the best generator and discriminator, shaped as x."""
        rec = self.competitive_units[self.best_gen](x).to(x.dtype)
        return rec, self.competitive_units[self.best_disc](rec).to(x.dtype)

    def scores(self, x: Tensor) -> dict[str, Tensor]:
        """Both anomaly scores of each image, (B,), the image shown for it, and the difference to it, both (B, 3, H, W).

        "validation": mean |G(x) - D(G(x))|, "inference": mean |x - D(G(x))|.
        """
        rec, shown = self.reconstruct(x)
        difference = (x - shown).abs()
        return {
            "validation": (rec - shown).abs().mean(dim=(1, 2, 3)),
            "inference": difference.mean(dim=(1, 2, 3)),
            "shown": shown,
            "difference": difference,
        }

    def bookkeeping(self) -> dict[str, Any]:
        """What a checkpoint holds beside the parameters."""
        return {
            "best_gen": self.best_gen,
            "best_disc": self.best_disc,
            "reconstruction_losses": list(self.reconstruction_losses),
            "advantages": list(self.advantages),
        }
