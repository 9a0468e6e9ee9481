"""The invertible parts of CS-Flow: channel permutation, cross-scale subnet and coupling layer (paper, section 3.2).

Everything works on one tensor per scale: a list of (B, C, H / 2^s, W / 2^s) for s = 0, 1, ..., all with C channels.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ParallelPermute(nn.Module):
    """Fixed permutation of the channels, another one at each scale: output channel i is input channel perm[i].

    The permutations follow from `seed`, the number of the block, by NumPy's legacy generator, as in the published
    code; they are not part of the state dict. Its log-determinant is 0.
    """

    def __init__(self, channels: int, n_scales: int, seed: int):
        super().__init__()
        random = np.random.RandomState(seed)
        for scale in range(n_scales):
            perm = torch.from_numpy(random.permutation(channels))
            self.register_buffer(f"perm{scale}", perm, persistent=False)
            self.register_buffer(f"inverse{scale}", perm.argsort(), persistent=False)

    def forward(self, x: list[Tensor], reverse: bool = False) -> list[Tensor]:
        name = "inverse" if reverse else "perm"
        return [x_s[:, getattr(self, f"{name}{scale}")] for scale, x_s in enumerate(x)]


class CrossConvolutions(nn.Module):
    """The subnet r of a coupling layer: two convolutions per scale, the second one across neighbouring scales.

    y_s = LeakyReLU(conv_s(x_s));  o_s = gamma_s * (conv(y_s) + down(y_{s-1}) + up(y_{s+1}))

    down is a convolution of stride 2, up a bilinear upsampling by 2 followed by a convolution. Every convolution pads
    k // 2 zeros. gamma_s starts at 0, so that a new coupling layer is the identity; without use_gamma it has no effect.
    (B, in_channels, H/2^s, W/2^s) -> (B, channels, H/2^s, W/2^s) at each scale s.
    """

    def __init__(self, in_channels: int, hidden: int, channels: int, kernel: int, use_gamma: bool, n_scales: int):
        super().__init__()
        self.n_scales, self.use_gamma = n_scales, use_gamma
        pad = kernel // 2
        for s in range(n_scales):
            setattr(self, f"gamma{s}", nn.Parameter(torch.zeros(1)))
            setattr(self, f"conv_scale{s}_0", nn.Conv2d(in_channels, hidden, kernel, padding=pad))
            setattr(self, f"conv_scale{s}_1", nn.Conv2d(hidden, channels, kernel, padding=pad))
        for s in range(n_scales - 1):  # the digits are "from scale" and "to scale"
            setattr(self, f"up_conv{s + 1}{s}", nn.Conv2d(hidden, channels, kernel, padding=pad))
            setattr(self, f"down_conv{s}{s + 1}", nn.Conv2d(hidden, channels, kernel, padding=pad, stride=2))

    def forward(self, x: list[Tensor]) -> list[Tensor]:
        y = [F.leaky_relu(getattr(self, f"conv_scale{s}_0")(x_s), 0.1) for s, x_s in enumerate(x)]
        out = []
        for s in range(self.n_scales):
            o = getattr(self, f"conv_scale{s}_1")(y[s])
            if s > 0:
                o = o + getattr(self, f"down_conv{s - 1}{s}")(y[s - 1])
            if s < self.n_scales - 1:
                upsampled = F.interpolate(y[s + 1], scale_factor=2, mode="bilinear", align_corners=False)
                o = o + getattr(self, f"up_conv{s + 1}{s}")(upsampled)
            out.append(o * getattr(self, f"gamma{s}") if self.use_gamma else o)
        return out


def _on_its_own(x: Tensor) -> Tensor:
    """On Apple's MPS a copy: its convolutions of slices of channels have been wrong."""
    return x.contiguous() if x.device.type == "mps" else x


class ParallelGlowCoupling(nn.Module):
    """Affine coupling of both halves x = [a, b] of the channels, at all scales at once (paper, equations 2 and 3).

    (s, t) = s2(b);   a' = exp(l(s)) * a + t
    (s, t) = s1(a');  b' = exp(l(s)) * b + t

    with the soft clamp l(s) = clamp * 0.636 * atan(s / clamp), which stays within +-clamp (clamp <= 0: l(s) = s).
    forward returns the new tensors and the log-determinant per scale, (B,) each: the sum of both l(s).
    reverse=True inverts it and returns the negative log-determinants.
    """

    limit = 1e6  # the outputs are clipped to +- this

    def __init__(
        self, channels: int, hidden: int, kernel: int, clamp: float, use_gamma: bool = True, n_scales: int = 3
    ):
        super().__init__()
        self.clamp = clamp
        self.n_a = channels // 2
        self.n_b = channels - self.n_a
        self.s1 = CrossConvolutions(self.n_a, hidden, 2 * self.n_b, kernel, use_gamma, n_scales)
        self.s2 = CrossConvolutions(self.n_b, hidden, 2 * self.n_a, kernel, use_gamma, n_scales)

    def log_scale(self, s: Tensor) -> Tensor:
        """l(s); 0.636 is about 2 / pi."""
        return self.clamp * 0.636 * torch.atan(s / self.clamp) if self.clamp > 0 else s

    def forward(self, x: list[Tensor], reverse: bool = False) -> tuple[list[Tensor], list[Tensor]]:
        a, b = zip(*(map(_on_its_own, x_s.split([self.n_a, self.n_b], dim=1)) for x_s in x))
        if not reverse:
            a, log_det2 = self._affine(a, self.s2(b), reverse)
            b, log_det1 = self._affine(b, self.s1(a), reverse)
        else:
            b, log_det1 = self._affine(b, self.s1(a), reverse)
            a, log_det2 = self._affine(a, self.s2(b), reverse)
        out = [torch.cat(halves, dim=1).clamp(-self.limit, self.limit) for halves in zip(a, b)]
        return out, [one + two for one, two in zip(log_det1, log_det2)]

    def _affine(self, x: list[Tensor], s_t: list[Tensor], reverse: bool) -> tuple[list[Tensor], list[Tensor]]:
        """y = exp(l(s)) * x + t, or its inverse, with the log-determinant, at each scale."""
        y, log_det = [], []
        for x_s, r in zip(x, s_t):
            s, t = r.to(x_s.dtype).chunk(2, dim=1)  # with bf16, the convolutions' outputs return to float32 here
            l_s = self.log_scale(s)
            y.append((x_s - t) * torch.exp(-l_s) if reverse else torch.exp(l_s) * x_s + t)
            log_det.append(-l_s.sum(dim=(1, 2, 3)) if reverse else l_s.sum(dim=(1, 2, 3)))
        return y, log_det
