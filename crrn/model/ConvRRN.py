"""The convolutional recurrent reconstructive network (CRRN) of Yoo, Kim and Kim, IEEE Trans. Cybernetics 2020.

A spatiotemporal encoder reads a sequence of boards; from its last state, a decoder gives the sequence back, last board
first. Parameter names are those of the published code, so that its checkpoints load. Shapes: B samples, T time steps.
"""

import torch
from torch import Tensor, nn

from .core_module.ConvConjLSTM import ConvConjLSTM
from .core_module.ConvLSTM import ConvLSTM
from .core_module.ConvSTLSTM import ConvSTLSTM
from .SpatialAttention import SpatialAttention

CELLS = {"ConvLSTM": ConvLSTM, "ConvConjLSTM": ConvConjLSTM, "ConvSTLSTM": ConvSTLSTM}
KEEP = 0.8  # share of the recurrent h that dropout keeps

Hiddens = list[list[Tensor]]  # per layer [h, c], each (B, C, H, W)


def cell_class(mode: str) -> type[nn.Module]:
    """The cell named `mode`; ValueError for other names."""
    if mode == "ConvGridLSTM":
        raise ValueError("ConvGridLSTM was never published: use ConvLSTM, ConvConjLSTM or ConvSTLSTM")
    if mode not in CELLS:
        raise ValueError(f"mode {mode!r} is unknown: use {', '.join(CELLS)}")
    return CELLS[mode]


class StackedConvLSTM(nn.Module):
    """`n_layers` cells on top of each other; the first one halves the resolution.

    mode: name of the cell; channel: of input and states; kernel: odd; is_attn: attention on every layer's h.
    """

    def __init__(
        self, mode: str, channel: int, kernel: int, n_layers: int, is_attn: bool = False, textbook_gates: bool = False
    ):
        super().__init__()
        cell = cell_class(mode)
        strides = [2] + [1] * (n_layers - 1)
        self.conv_lstm = nn.Sequential(*(cell(channel, kernel, stride, textbook_gates) for stride in strides))
        self.s_attn = nn.ModuleList(SpatialAttention(channel, kernel) for _ in strides) if is_attn else None

    def forward(self, inputs: Tensor, hiddens: Hiddens | None = None) -> tuple[Hiddens, list[list[Tensor]] | None]:
        """All T steps of one layer, then of the next.

        inputs: (B, T, C, H, W); hiddens: the state before the first step, None for zeros.
        Returns the state after the last step, and with attention the maps a of each layer and step, (B, 1, H', W').
        """
        steps = inputs.size(1)
        final, attns = [], [] if self.s_attn else None
        x = inputs.transpose(0, 1).flatten(0, 1)  # (T * B, C, H, W): the batch of a step lies in one piece
        memories: list[Tensor | None] = [None] * steps
        for layer, cell in enumerate(self.conv_lstm):
            # The input's share of the gates needs no state: all steps in one convolution.
            # unbind, since the gradient of an index would be a tensor of zeros as large as all steps, for each of them.
            # In the weights' precision, and so all states: rounded to bfloat16 they cost 0.02 of the best F1.
            gates = cell.input_gates(x).to(cell.h2h.weight.dtype).unflatten(0, (steps, -1)).unbind()
            hidden = hiddens[layer] if hiddens else None
            outputs, maps = [], []
            for t in range(steps):
                h, c = cell.step(gates[t], memories[t], hidden)
                c, memories[t] = c if isinstance(c, tuple) else (c, c)
                outputs.append(h)  # what goes up has seen neither attention nor dropout
                if self.s_attn:
                    h, a = self.s_attn[layer](h)
                    maps.append(a)
                if self.training and t == 0:
                    h = h * torch.empty_like(h).bernoulli_(KEEP).div_(KEEP)
                hidden = [h, c]
            final.append(hidden)
            if attns is not None:
                attns.append(maps)
            if layer < len(self.conv_lstm) - 1:
                x = torch.cat(outputs)
        return final, attns


class S_EncDec(nn.Module):
    """Spatial encoder (convolutions, each halves the resolution) or decoder (transposed ones, each doubles it).

    channels: n + 1 numbers, of the input and behind every stage; kernels: n odd sides. Encoder: each stage ends with
    ReLU and batch norm. Decoder (is_decoder): the same, over the reversed lists, but its last stage is bare.
    """

    def __init__(self, channels: list[int], kernels: list[int], is_decoder: bool = False):
        super().__init__()
        if is_decoder:
            channels, kernels = channels[::-1], kernels[::-1]
        convolution = nn.ConvTranspose2d if is_decoder else nn.Conv2d
        layers = []
        for before, after, kernel in zip(channels[:-1], channels[1:], kernels):
            layers += [convolution(before, after, kernel, stride=2), nn.ReLU(), nn.BatchNorm2d(after)]
        self.layer = nn.Sequential(*(layers[:-2] if is_decoder else layers))

    def forward(self, frames: Tensor) -> Tensor:
        """(B, T, C, H, W) -> (B, T, C', H', W'); batch norm sees all frames as one batch."""
        batch, steps = frames.shape[:2]
        # Folded step by step, the order in which the recurrent layers read, so that nobody has to copy.
        return self.layer(frames.transpose(0, 1).flatten(0, 1)).unflatten(0, (steps, batch)).transpose(0, 1)


class ST_Encoder(nn.Module):
    """Spatiotemporal encoder: (B, T, 1, H, W) -> the stack's last state and its attention maps (or None)."""

    def __init__(
        self, mode: str, channels: list[int], kernels: list[int], n_layers: int, is_attn: bool, textbook_gates: bool
    ):
        super().__init__()
        self.s_enc = S_EncDec(channels[:-1], kernels[:-1])
        self.conv_lstm = StackedConvLSTM(mode, channels[-1], kernels[-1], n_layers, is_attn, textbook_gates)

    def forward(self, inputs: Tensor) -> tuple[Hiddens, list[list[Tensor]] | None]:
        return self.conv_lstm(self.s_enc(inputs))


class ST_Decoder(nn.Module):
    """Spatiotemporal decoder: gives the frames back one by one, the last one first."""

    def __init__(self, mode: str, channels: list[int], kernels: list[int], n_layers: int, textbook_gates: bool):
        super().__init__()
        self.s_enc = S_EncDec(channels[:-1], kernels[:-1])
        self.conv_lstm = StackedConvLSTM(mode, channels[-1], kernels[-1], n_layers, False, textbook_gates)
        self.s_dec = S_EncDec(channels, kernels, is_decoder=True)

    def forward(
        self, inputs: Tensor, hiddens: Hiddens, attns: list[list[Tensor]] | None, teacher_ratio: float = 1.0
    ) -> Tensor:
        """inputs: (B, T, 1, H, W), seen in train mode only, by teacher forcing; hiddens, attns: the encoder's.

        Before frame t is decoded, every layer's h loses the encoder's attention a of that frame.
        """
        steps = inputs.size(1)
        frames = [self._decode(hiddens, attns, steps - 1)]
        for t in range(steps - 1, 0, -1):
            previous = frames[-1]  # frame t as reconstructed, (B, 1, 1, H, W)
            if self.training:
                forced = torch.rand(len(previous), 1, 1, 1, 1, device=previous.device) < teacher_ratio
                previous = torch.where(forced, inputs[:, t : t + 1], previous)
            hiddens, _ = self.conv_lstm(self.s_enc(previous), hiddens)
            frames.append(self._decode(hiddens, attns, t - 1))
        return torch.cat(frames[::-1], dim=1)

    def _decode(self, hiddens: Hiddens, attns: list[list[Tensor]] | None, t: int) -> Tensor:
        """Frame t, (B, 1, 1, H, W), from the last layer's h; with attention, changes `hiddens`."""
        if attns is not None:
            for hidden, maps in zip(hiddens, attns):
                hidden[0] = hidden[0] - maps[t]
        return self.s_dec(hiddens[-1][0][:, None])


class ST_EncDec(nn.Module):
    """CRRN: (B, T, 1, H, W) -> its reconstruction of the same shape; H and W are 1 modulo 4.

    mode: ConvLSTM, ConvConjLSTM or ConvSTLSTM; channels, kernels: of the spatial stages, the last ones also of the
    cells (the scripts use [1, 64, 64] and [5, 5]); n_layers: cells; is_attn: spatial attention in the encoder;
    textbook_gates: the cells' gates as in the literature instead of as published. ValueError for other modes.
    """

    def __init__(
        self,
        mode: str,
        channels: list[int],
        kernels: list[int],
        n_layers: int,
        is_attn: bool = False,
        textbook_gates: bool = False,
    ):
        super().__init__()
        self.st_encoder = ST_Encoder(mode, channels, kernels, n_layers, is_attn, textbook_gates)
        self.st_decoder = ST_Decoder(mode, channels, kernels, n_layers, textbook_gates)
        self.to(memory_format=torch.channels_last)  # what the convolutions are fastest with

    def forward(self, inputs: Tensor, teacher_ratio: float = 1.0) -> Tensor:
        """teacher_ratio: in train mode, how often the decoder is shown the input frame instead of its own output."""
        hiddens, attns = self.st_encoder(inputs)
        return self.st_decoder(inputs, hiddens, attns, teacher_ratio)
