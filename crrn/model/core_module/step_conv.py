"""Convolutions that are called once per time step, but compute their weight's gradient once per sequence.

The gradient of a convolution's weight is a sum over time steps. Step by step, each call sees a handful of small maps
and leaves much of the machine idle; with all steps' maps in one call, the same sum takes about half the time.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

Arguments = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], bool, tuple[int, ...], int]


class _Sequence:
    """Weight and bias during one sequence, and the (input, gradient of the output) that each step leaves behind."""

    def __init__(self, weight: Tensor, bias: Tensor, arguments: Arguments):
        self.arguments = arguments
        self.steps: list[tuple[Tensor, Tensor]] = []
        self.weight, self.bias = _Parameters.apply(weight, bias, self)

    def backward(self, gradient: Tensor, x: Tensor, weight: Tensor, wanted: list[bool]) -> tuple[Tensor | None, ...]:
        """Gradients of input, weight and bias, those that are wanted."""
        sizes = [gradient.size(1)]
        return torch.ops.aten.convolution_backward(gradient, x, weight, sizes, *self.arguments, wanted)


class _Parameters(torch.autograd.Function):
    """Passes weight and bias through; runs backward when all steps have, and then computes their gradients."""

    @staticmethod
    def forward(ctx, weight: Tensor, bias: Tensor, sequence: _Sequence) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(weight)
        ctx.sequence = sequence
        return weight.view_as(weight), bias.view_as(bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, *_: None) -> tuple[Tensor | None, Tensor | None, None]:
        steps = ctx.sequence.steps
        if not steps:
            return None, None, None
        x, gradient = (torch.cat(parts) if len(parts) > 1 else parts[0] for parts in zip(*steps))
        steps.clear()
        _, weight, bias = ctx.sequence.backward(gradient, x, *ctx.saved_tensors, [False, True, True])
        return weight, bias, None


class _Step(torch.autograd.Function):
    """One call of the convolution; its backward leaves the weight's gradient to `_Parameters`."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor, sequence: _Sequence) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.sequence = sequence
        return torch.convolution(x, weight, bias, *sequence.arguments)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, None, None, None]:
        x, weight = ctx.saved_tensors
        ctx.sequence.steps.append((x, gradient))
        if not ctx.needs_input_grad[0]:
            return None, None, None, None
        return ctx.sequence.backward(gradient, x, weight, [True, False, False])[0], None, None, None


class _StepConvolution:
    """What both convolutions below share."""

    sequence: _Sequence | None = None  # set within `one_sequence`

    def forward(self, x: Tensor) -> Tensor:
        if self.sequence is None:
            return super().forward(x)
        weight, bias = self.sequence.weight, self.sequence.bias
        return _Step.apply(x.to(weight.dtype), weight, bias, self.sequence)

    def open_sequence(self) -> None:
        weight, bias, kind = self.weight, self.bias, self.weight.device.type
        if torch.is_autocast_enabled(kind):
            weight, bias = (tensor.to(torch.get_autocast_dtype(kind)) for tensor in (weight, bias))
        arguments = self.stride, self.padding, self.dilation, self.transposed, self.output_padding, self.groups
        self.sequence = _Sequence(weight, bias, arguments)


class StepConv2d(_StepConvolution, nn.Conv2d):
    """nn.Conv2d (with bias, zeros as padding) for use within `one_sequence`; outside of it, plain nn.Conv2d."""


class StepConvTranspose2d(_StepConvolution, nn.ConvTranspose2d):
    """The same for nn.ConvTranspose2d."""


@contextmanager
def one_sequence(model: nn.Module) -> Iterator[None]:
    """Within the block, all calls of a step convolution in `model` belong to one sequence (see the top of this file).

    Gradients are those of plain convolutions but for the order of summation. Without autograd nothing changes.
    """
    convolutions = [module for module in model.modules() if isinstance(module, _StepConvolution)]
    try:
        if torch.is_grad_enabled():
            for module in convolutions:
                module.open_sequence()
        yield
    finally:
        for module in convolutions:
            module.sequence = None
