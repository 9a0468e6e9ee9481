"""DAGAN, the baseline: a U-Net against an autoencoder that reconstructs images well and reconstructions badly."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from crn.training.networks import RoadImageDiscriminator
from crn.training.skipnetworks import UnetGenerator, get_norm_layer
from crn.training.statistics import apply_statistics, average_statistics, captured


class DAGAN(nn.Module):
    """Generator G and discriminator D, passes and losses of a step, and the scores.

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

    def draw_pair(self) -> tuple[int, int]:
        """There is only this pair."""
        return 0, 1

    def orders(self, pair: tuple[int, int]) -> tuple[tuple[int, int], ...]:
        """Each network has its role."""
        return (pair,)

    def passes(self, x: Tensor, g: int, d: int) -> tuple[Tensor, Tensor, Tensor]:
        """G(x), D(G(x)) with G(x) constant, and D(x), shaped as x; D's running statistics wait for `finish_step`."""
        rec = self.generator(x)
        with captured(self.discriminator) as self.on_reconstruction:
            of_rec, _ = self.discriminator(rec.detach())
        with captured(self.discriminator) as self.on_image:
            of_x, _ = self.discriminator(x)
        return rec.to(x.dtype), of_rec.to(x.dtype), of_x.to(x.dtype)

    def losses(self, x: Tensor, rec: Tensor, of_rec: Tensor, of_x: Tensor) -> dict[str, Tensor]:
        """Of G(x), D(G(x)) and D(x), with mse the mean squared error:

            generator        w_a mse(G(x), D(G(x))) + w_c mse(x, G(x)),  D(G(x)) constant
            discriminator    w_d mse(D(x), x) - w_a mse(D(G(x)), G(x)),  G(x) constant

        and three of the four errors.
        """
        w_a, w_c, w_d = self.weights
        adversarial, contextual = F.mse_loss(rec, of_rec.detach()), F.mse_loss(rec, x)
        reconstruction, discrimination = F.mse_loss(of_x, x), F.mse_loss(of_rec, rec.detach())
        return {
            "generator": w_a * adversarial + w_c * contextual,
            "discriminator": w_d * reconstruction - w_a * discrimination,
            "adversarial": adversarial,
            "contextual": contextual,
            "discriminator_reconstruction": reconstruction,
        }

    def finish_step(self, losses: Mapping[tuple[int, int], Mapping[str, float]]) -> None:
        """Enter D's running statistics, as `statistics` says; there is nothing to choose by the losses."""
        apply_statistics(self.discriminator, self.on_reconstruction, self.on_reconstruction, self.on_image)
        average_statistics(self.networks)

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
