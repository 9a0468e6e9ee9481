"""Competitive Reconstruction Network: a population of U-Nets, two of which compete in every step."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.files import UserError
from crn.training.networks import init_weights
from crn.training.skipnetworks import FEWEST_LEVELS, UnetGenerator, UnetGeneratorImproved, get_norm_layer
from crn.training.statistics import Statistics, apply_statistics, average_statistics, captured

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
    """The units, which of them is the best generator and discriminator, passes and losses of a step, and the scores.

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
        # Of the step that is being made: what each unit's passes over x and over a reconstruction captured.
        self.on_image: dict[int, Statistics] = {}
        self.on_reconstruction: dict[int, Statistics] = {}

    @property
    def networks(self) -> Sequence[nn.Module]:
        """What has an optimizer each."""
        return self.competitive_units

    def draw_pair(self) -> tuple[int, int]:
        """Two different units at random; one unit alone plays both roles."""
        order = torch.randperm(len(self.competitive_units)).tolist()
        return order[0], order[-1]

    def orders(self, pair: tuple[int, int]) -> tuple[tuple[int, int], ...]:
        """(generator, discriminator) of a step's two halves: each of the two is both."""
        return pair, pair[::-1]

    def passes(self, x: Tensor, g: int, d: int) -> tuple[Tensor, Tensor]:
        """G(x) and D(G(x)) with G(x) constant, shaped as x; their running statistics wait for `finish_step`."""
        with captured(self.competitive_units[g]) as self.on_image[g]:
            rec = self.competitive_units[g](x)
        with captured(self.competitive_units[d]) as self.on_reconstruction[d]:
            feedback = self.competitive_units[d](rec.detach())
        return rec.to(x.dtype), feedback.to(x.dtype)

    def losses(self, x: Tensor, rec: Tensor, feedback: Tensor) -> dict[str, Tensor]:
        """Of G(x) and D(G(x)), with | | the mean absolute difference:

            generator        w_r |x - G(x)| + w_f |G(x) - D(G(x))|,  D(G(x)) constant
            discriminator    4 - w_d |G(x) - D(G(x))|,               G(x) constant

        and of the former its two distances.
        """
        w_r, w_f, w_d = self.weights
        reconstruction = F.l1_loss(rec, x)
        adversarial = F.l1_loss(rec, feedback.detach())
        discrimination = F.l1_loss(feedback, rec.detach())
        return {
            "generator": w_r * reconstruction + w_f * adversarial,
            "discriminator": MARGIN - w_d * discrimination,
            "reconstruction": reconstruction,
            "adversarial": adversarial,
        }

    def finish_step(self, losses: Mapping[tuple[int, int], Mapping[str, float]]) -> None:
        """After a step, enter running statistics (statistics.py says why now), each unit's last losses by the mean
        losses of its pairs (g, d), and which units are best."""
        for g, d in self.orders(next(iter(losses))):
            on_reconstruction = self.on_reconstruction[d]
            apply_statistics(self.competitive_units[g], self.on_image[g])
            apply_statistics(self.competitive_units[d], on_reconstruction, self.on_image[d], on_reconstruction)
            self.reconstruction_losses[g] = losses[g, d]["reconstruction"]
            self.advantages[d] = losses[g, d]["adversarial"] - losses[d, g]["reconstruction"]  # that is |x - D(x)|
        average_statistics(self.competitive_units[unit] for unit in self.on_image)
        self.on_image, self.on_reconstruction = {}, {}
        self.choose_best()

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
