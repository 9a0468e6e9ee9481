"""The frozen extractor for inference alone: the same features, to rounding, in less than half of the time on a CPU.

* Batch norms are folded into the convolutions before them: y = gamma (w x - mean) / std + beta is one convolution.
* Padding becomes the convolutions' own, which copies nothing. Strided ones are padded unevenly, p before and p + 1
  behind: a kernel with a row and a column of zeros in front, padded by p + 1 on all sides, gives the same sums.
* Activations work in place, and all is channels last.
"""

from itertools import pairwise

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights


@torch.no_grad()
def fold(network: nn.Module) -> nn.Module:
    """Change `network`, in eval mode, as described above; returns it."""
    for module in [*network.modules()]:
        for (_, conv), (name, norm) in pairwise(list(module.named_children())):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                conv.weight, conv.bias = fuse_conv_bn_weights(
                    conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
                )
                setattr(module, name, nn.Identity())
    for module in network.modules():
        if isinstance(module, nn.ReLU6):
            module.inplace = True
        if isinstance(padding := getattr(module, "static_padding", None), nn.ZeroPad2d):
            before, behind, *same = padding.padding
            if same == [before, behind] and behind - before in (0, 1):
                if behind > before:
                    module.weight = nn.Parameter(nn.functional.pad(module.weight, (1, 0, 1, 0)), requires_grad=False)
                module.padding, module.static_padding = (behind, behind), nn.Identity()
    return network.requires_grad_(False).to(memory_format=torch.channels_last)
