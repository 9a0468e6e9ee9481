"""The layers with the mixed memory layout compute what PyTorch's do, gradients included."""

import math

import pytest
import torch
from torch import nn

from memae.models.backbones import ConvNorm
from memae.models.convolutions import Conv3d, Convolution, ConvTranspose3d


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
@pytest.mark.parametrize(
    ("ours", "plain", "options"),
    [
        (Conv3d, nn.Conv3d, {"stride": 2}),
        (Conv3d, nn.Conv3d, {"stride": (1, 2, 2)}),
        (ConvTranspose3d, nn.ConvTranspose3d, {"stride": 2, "output_padding": 1}),
        (ConvTranspose3d, nn.ConvTranspose3d, {"stride": (1, 2, 2), "output_padding": (0, 1, 1)}),
    ],
)
def test_values_and_gradients(ours, plain, options, layout, monkeypatch):
    torch.manual_seed(0)
    one, other = ours(5, 6, 3, padding=1, **options), plain(5, 6, 3, padding=1, **options)
    other.load_state_dict(one.state_dict())
    one.to(memory_format=layout)
    x = torch.randn(2, 5, 4, 6, 6).contiguous(memory_format=layout).requires_grad_()
    used = []
    apply = Convolution.apply
    monkeypatch.setattr(Convolution, "apply", lambda *args: (used.append(1), apply(*args))[1])
    y, expected = one(x), other(x)
    assert used
    torch.testing.assert_close(y, expected)
    weights = torch.randn_like(y)
    found = torch.autograd.grad((y * weights).sum(), [x, *one.parameters()])
    wanted = torch.autograd.grad((expected * weights).sum(), [x, *other.parameters()])
    for a, b in zip(found, wanted):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_a_layer_that_needs_no_input_gradient():
    layer = Conv3d(5, 6, 3, padding=1)
    layer(torch.randn(1, 5, 2, 3, 3)).sum().backward()
    assert layer.weight.grad.abs().sum() > 0


def test_bfloat16_gradients_are_near_those_of_float32():
    torch.manual_seed(0)
    layer, x = ConvTranspose3d(5, 6, 3, stride=2, padding=1, output_padding=1), torch.randn(2, 5, 4, 6, 6)
    weights = torch.randn(2, 6, 8, 12, 12)
    wanted = torch.autograd.grad((layer(x) * weights).sum(), layer.parameters())
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    found = torch.autograd.grad((y * weights).sum(), layer.parameters())
    for a, b in zip(found, wanted, strict=True):
        assert a.dtype == torch.float32
        assert (a - b).norm() < 0.02 * b.norm()


@pytest.mark.parametrize(
    ("make", "size"),
    [
        (lambda: ConvNorm(32, 32, (3, 3, 3)), (2, 4, 4)),
        (lambda: ConvNorm(32, 32, (3, 1, 1)), (2, 2, 2)),
        (lambda: ConvNorm(64, 64, (3, 3, 3), groups=64), (2, 4, 4)),
        (lambda: ConvNorm(32, 32, (1, 3, 3), (1, 2, 2)), (2, 1, 2)),
        (lambda: Conv3d(32, 32, 3, padding=1), (2, 8, 8)),
    ],
    ids=["resnet3d", "slowonly", "csn", "flat", "conv3d"],
)
def test_bfloat16_gradients_of_kernels_longer_than_the_clip(make, size):
    """oneDNN's hold what lay in the memory before."""
    torch.manual_seed(0)
    layer = make().to(memory_format=torch.channels_last_3d).eval()
    (weight,) = [parameter for parameter in layer.parameters() if parameter.dim() == 5]
    x = torch.randn(2, len(weight), *size).contiguous(memory_format=torch.channels_last_3d)
    gradients = []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            y = layer(x)
        for count in (10**4, 3 * 10**4, 10**5):
            torch.full((count,), math.nan)
        gradients += torch.autograd.grad(y.float().square().sum(), weight)
    exact, found = gradients
    assert found.dtype == torch.float32 and (found - exact).norm() < 0.02 * exact.norm()
