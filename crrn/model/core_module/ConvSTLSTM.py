"""Spatiotemporal LSTM (Wang et al. 2017, PredRNN): a second memory m that runs up through the layers."""

import torch
from torch import Tensor, nn

Hidden = list[Tensor]  # [h, c], each (B, C, H, W)


class ConvSTLSTM(nn.Module):
    """One layer of a spatiotemporal LSTM; c runs through time, m through the layers, each with gates of its own.

    c' = s(z_f) c + s(z_i) tanh(z_g)     with z = i2h(x) + h2h(h), s the sigmoid
    m' = s(y_f) m + s(y_i) tanh(y_g)     with y = i2m(x) + h2m(m); without m: y = i2m(x), m' = s(y_i) tanh(y_g)
    h' = z_o tanh(btneck([c', m']))      as published, s(z_o) tanh(...) textbook; btneck: 1x1 convolution, 2C -> C

    channel: C, of input and state; kernel: odd side of all convolutions; stride: 1 ("same" padding) or 2 (no padding)
    of the input convolutions; textbook_gates: squash the output gate, which the published code forgets.
    """

    def __init__(self, channel: int, kernel: int, stride: int = 1, textbook_gates: bool = False):
        super().__init__()
        self.textbook_gates = textbook_gates
        padding = kernel // 2 if stride == 1 else 0
        self.i2h = nn.Conv2d(channel, 4 * channel, kernel, stride, padding)
        self.i2m = nn.Conv2d(channel, 3 * channel, kernel, stride, padding)
        self.h2h = nn.Conv2d(channel, 4 * channel, kernel, padding=kernel // 2)
        self.h2m = nn.Conv2d(channel, 3 * channel, kernel, padding=kernel // 2)
        self.btneck = nn.Conv2d(2 * channel, channel, 1)
        nn.init.ones_(self.i2h.bias.data[3 * channel :])  # the forget gates start open
        nn.init.ones_(self.i2m.bias.data[2 * channel :])

    def forward(self, xm: list[Tensor | None], hidden: Hidden | None = None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """One time step: ([x, m], [h, c] or None for zeros) -> (h', (c', m')); m may be None.

        x: (B, C, H, W); all others: (B, C, H', W') with H' = H for stride 1, (H - kernel) // 2 + 1 for stride 2.
        """
        x, m = xm
        return self.step(self.input_gates(x), m, hidden)

    def input_gates(self, x: Tensor) -> Tensor:
        """The input's share of all gates, (N, 7C, H', W'); N may run over samples and time steps at once."""
        return torch.cat([self.i2h(x), self.i2m(x)], dim=1)

    def step(self, gates: Tensor, m: Tensor | None, hidden: Hidden | None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """The rest of a time step, given `input_gates` of its x."""
        h, c = hidden or (None, None)
        z, y = gates.split([self.i2h.out_channels, self.i2m.out_channels], dim=1)
        # h2h of zeros is its bias, for nothing.
        z = z + (self.h2h.bias[:, None, None] if h is None else self.h2h(h))
        z_i, z_g, z_o, z_f = z.chunk(4, dim=1)
        new = torch.sigmoid(z_i) * torch.tanh(z_g)
        c = new if c is None else torch.sigmoid(z_f) * c + new

        if m is not None:
            y = y + self.h2m(m)
        y_i, y_g, y_f = y.chunk(3, dim=1)
        new = torch.sigmoid(y_i) * torch.tanh(y_g)
        m = new if m is None else torch.sigmoid(y_f) * m + new

        o = torch.sigmoid(z_o) if self.textbook_gates else z_o
        return o * torch.tanh(self.btneck(torch.cat([c, m], dim=1))), (c, m)
