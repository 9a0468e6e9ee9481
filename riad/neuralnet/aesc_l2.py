"""The seed's U-Net (--nn 2000): an autoencoder with skip connections. `ae_l2.py` is the same without them."""

import re
from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from riad.neuralnet.layers import Layer


class NeuralNet(nn.Module):
    """Inpaints (B, C, H, W) in 0..1, with hidden cells at 0, to the same shape in [1e-12, 1 - 1e-12].

    Three stages of two convolutions (the second one's output is the skip) and one of stride 2; two convolutions; the
    way up: nearest x2 and convolution, cropped to the skip's size, concatenated as (upsampled, skip), two convolutions.
    The layers bear the authors' names, enc_1_1 to dec_4_out.
    """

    skips = True

    def __init__(self, channels: int, filters: Sequence[int], ksize: int):
        super().__init__()
        c, layer = [channels, *filters], partial(Layer, ksize=ksize, slope=0.01)
        for s in (1, 2, 3):
            self.add_module(f"enc_{s}_1", layer(c[s - 1], c[s]))
            self.add_module(f"enc_{s}_2", layer(c[s], c[s]))
            self.add_module(f"enc_{s}_3", layer(c[s], c[s], stride=2))
        self.enc_5_1 = layer(c[3], c[4])
        self.enc_5_2 = layer(c[4], c[4])
        for s in (1, 2, 3):
            below, here = c[5 - s], c[4 - s]
            self.add_module(f"dec_{s}_1", layer(below, here, upsample=True))
            self.add_module(f"dec_{s}_2", layer(2 * here if self.skips else here, here))
            self.add_module(f"dec_{s}_3", layer(here, here))
        self.dec_4_out = nn.ModuleDict({"conv": nn.Conv2d(c[1], channels, ksize, padding=ksize // 2)})

    def forward(self, x: Tensor) -> Tensor:
        layer, skips, dtype = dict(self.named_children()), [], x.dtype
        for s in (1, 2, 3):
            x = layer[f"enc_{s}_2"](layer[f"enc_{s}_1"](x))
            skips.append(x)
            x = layer[f"enc_{s}_3"](x)
        x = self.enc_5_2(self.enc_5_1(x))
        for s in (1, 2, 3):
            skip = skips.pop()
            x = layer[f"dec_{s}_1"](x)[:, :, : skip.shape[2], : skip.shape[3]]
            if self.skips:
                x = torch.cat([x, skip], dim=1)
            x = layer[f"dec_{s}_3"](layer[f"dec_{s}_2"](x))
        return self.dec_4_out["conv"](x).to(dtype).clamp(1e-12, 1 - 1e-12)


def from_authors(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict with the authors' names (modules.0.conv.enc_1_1_conv.weight) under ours (enc_1_1.conv.weight)."""
    return {re.sub(r"^modules\.\d+\.(?:up)?conv\.(\w+)_(conv|bn)\.", r"\1.\2.", name): state[name] for name in state}
