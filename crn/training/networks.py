"""DAGAN's discriminator, initial weights, optimizers and schedulers."""

import math
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn


class RoadImageDiscriminator(nn.Module):
    """Autoencoder of DAGAN: images (B, image_channels, H, W) -> (image of the same shape in [-1, 1], latent
    (B, 64 * 2^levels, H / 2^levels, W / 2^levels))."""

    def __init__(self, levels: int = 2, image_channels: int = 3):
        super().__init__()
        encoder: list[nn.Module] = [nn.Conv2d(image_channels, 64, 3, padding=1)]
        decoder: list[nn.Module] = []
        for level in range(levels):
            narrow, wide = 64 * 2**level, 128 * 2**level
            encoder += [nn.Conv2d(narrow, wide, 4, stride=2, padding=1), nn.LeakyReLU(), nn.BatchNorm2d(wide)]
            decoder = [nn.ConvTranspose2d(wide, narrow, 4, stride=2, padding=1), nn.ReLU(), *decoder]
        self.encoder = nn.Sequential(*encoder)
        self.decoder = nn.Sequential(*decoder, nn.Conv2d(64, image_channels, 3, padding=1), nn.Tanh())

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, image_channels, H, W) -> both outputs."""
        latent = self.encoder(x)
        return self.decoder(latent), latent


def init_weights(network: nn.Module) -> None:
    """Initial weights of a competitive unit: Kaiming normal (fan_out, a = 0), biases 0, batch norm weights
    N(1, 0.02)."""
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            nn.init.kaiming_normal_(module.weight, a=0, mode="fan_out")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1, 0.02)
            nn.init.zeros_(module.bias)


def create_optimizer(
    name: str, parameters: Iterable[nn.Parameter], lr: float, momentum: float
) -> torch.optim.Optimizer:
    """One of `crn.options.OPTIMIZERS`; momentum: of rmsprop and sgd."""
    if name in ("adam", "adamw"):  # fused: the same update in one pass over the parameters
        return {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[name](parameters, lr, fused=True)
    if name in ("radam", "nadam"):
        return {"radam": torch.optim.RAdam, "nadam": torch.optim.NAdam}[name](parameters, lr)
    if name == "rmsprop":
        return torch.optim.RMSprop(parameters, lr, momentum=momentum)
    return torch.optim.SGD(parameters, lr, momentum=momentum, fused=True)


def create_scheduler(name: str, lr: float, factor: float, steps: Sequence[int], epochs: int) -> Callable[[int], float]:
    """The learning rate of each epoch (from 0): `lr` times `factor` from each of `steps` on ("step") or after every
    epoch ("exponential"), half a cosine over `epochs` ("cosine"), or `lr` itself ("")."""
    return {
        "step": lambda epoch: lr * factor ** sum(step <= epoch for step in steps),
        "exponential": lambda epoch: lr * factor**epoch,
        "cosine": lambda epoch: lr * (1 + math.cos(math.pi * epoch / epochs)) / 2,
        "": lambda epoch: lr,
    }[name]
