"""Convolutional LSTM (Shi et al. 2015), the simplest of the paper's three cells."""

import torch
from torch import Tensor, nn

Hidden = list[Tensor]  # [h, c], each (B, C, H, W)


class ConvLSTM(nn.Module):
    """One layer of a convolutional LSTM, without peepholes (the published ones are constants of zero).

    i = s(z_i);  c' = s(z_f) c + i tanh(z_g);  h' = s(z_o) tanh(c')     with z = i2h(x) + h2h(h), s the sigmoid.

    channel: C, of input and state; kernel: odd side of all convolutions; stride: 1 ("same" padding) or 2 (no padding)
    of the input convolution. textbook_gates changes nothing here: this cell was published without errors.
    """

    def __init__(self, channel: int, kernel: int, stride: int = 1, textbook_gates: bool = False):
        super().__init__()
        self.i2h = nn.Conv2d(channel, 4 * channel, kernel, stride, kernel // 2 if stride == 1 else 0)
        self.h2h = nn.Conv2d(channel, 4 * channel, kernel, padding=kernel // 2)
        nn.init.ones_(self.i2h.bias.data[3 * channel :])  # the forget gate starts open

    def forward(self, xm: list[Tensor | None], hidden: Hidden | None = None) -> tuple[Tensor, Tensor]:
        """One time step: ([x, m], [h, c] or None for zeros) -> (h', c'); m is not used by this cell.

        x: (B, C, H, W); h, c, h', c': (B, C, H', W') with H' = H for stride 1, (H - kernel) // 2 + 1 for stride 2.
        """
        x, m = xm
        return self.step(self.input_gates(x), m, hidden)

    def input_gates(self, x: Tensor) -> Tensor:
        """The input's share of all gates, (N, 4C, H', W'); N may run over samples and time steps at once."""
        return self.i2h(x)

    def step(self, gates: Tensor, m: Tensor | None, hidden: Hidden | None) -> tuple[Tensor, Tensor]:
        """The rest of a time step, given `input_gates` of its x."""
        h, c = hidden or (None, None)
        # h2h of zeros is its bias, for nothing.
        z = gates + (self.h2h.bias[:, None, None] if h is None else self.h2h(h))
        z_i, z_g, z_o, z_f = z.chunk(4, dim=1)
        new = torch.sigmoid(z_i) * torch.tanh(z_g)
        c = new if c is None else torch.sigmoid(z_f) * c + new
        return torch.sigmoid(z_o) * torch.tanh(c), c
