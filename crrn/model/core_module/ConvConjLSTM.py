"""CSTM, the paper's convolutional spatiotemporal memory: the memories of layer below and step before, conjoined."""

import torch
from torch import Tensor, nn

Hidden = list[Tensor]  # [h, c], each (B, C, H, W)


class ConvConjLSTM(nn.Module):
    """One layer of CSTM: its memory mixes c of the time step before with m of the layer below.

    mix = btneck([c, m]) (1x1 convolution, 2C -> C; c itself without m);  i = s(s(z_i)) as published, s(z_i) textbook;
    c' = s(z_f) mix + i tanh(z_g);  h' = s(z_o) tanh(c')     with z = i2h(x) + h2h(h), s the sigmoid.

    channel: C, of input and state; kernel: odd side of all convolutions; stride: 1 ("same" padding) or 2 (no padding,
    no btneck: for the first layer, which has no m) of the input convolution; textbook_gates: squash the input gate
    once. The published one lies in 0.5..0.73 and can never close.
    """

    def __init__(self, channel: int, kernel: int, stride: int = 1, textbook_gates: bool = False):
        super().__init__()
        self.textbook_gates = textbook_gates
        self.i2h = nn.Conv2d(channel, 4 * channel, kernel, stride, kernel // 2 if stride == 1 else 0)
        self.btneck = nn.Conv2d(2 * channel, channel, 1) if stride == 1 else None
        self.h2h = nn.Conv2d(channel, 4 * channel, kernel, padding=kernel // 2)
        nn.init.ones_(self.i2h.bias.data[3 * channel :])  # the forget gate starts open

    def forward(self, xm: list[Tensor | None], hidden: Hidden | None = None) -> tuple[Tensor, Tensor]:
        """One time step: ([x, m], [h, c] or None for zeros) -> (h', c'); m may be None.

        x: (B, C, H, W); m, h, c, h', c': (B, C, H', W') with H' = H for stride 1, (H - kernel) // 2 + 1 for stride 2.
        Raises ValueError for an m where stride is 2.
        """
        x, m = xm
        return self.step(self.input_gates(x), m, hidden)

    def input_gates(self, x: Tensor) -> Tensor:
        """The input's share of all gates, (N, 4C, H', W'); N may run over samples and time steps at once."""
        return self.i2h(x)

    def step(self, gates: Tensor, m: Tensor | None, hidden: Hidden | None) -> tuple[Tensor, Tensor]:
        """The rest of a time step, given `input_gates` of its x."""
        if m is not None and self.btneck is None:
            raise ValueError("a ConvConjLSTM of stride 2 has no btneck: it takes no memory m from a layer below")
        h, c = hidden or (None, None)
        # h2h of zeros is its bias, for nothing.
        z = gates + (self.h2h.bias[:, None, None] if h is None else self.h2h(h))
        z_i, z_g, z_o, z_f = z.chunk(4, dim=1)
        i = torch.sigmoid(z_i)
        if not self.textbook_gates:
            i = torch.sigmoid(i)
        mix = c if m is None else self.btneck(torch.cat([torch.zeros_like(m) if c is None else c, m], dim=1))
        new = i * torch.tanh(z_g)
        c = new if mix is None else torch.sigmoid(z_f) * mix + new
        return torch.sigmoid(z_o) * torch.tanh(c), c
