"""Minimal filtering computes what PyTorch's convolution does, gradients included, and the authors' numbers."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from csflow import winograd
from csflow.winograd import Conv2d, Winograd
from tests.csflow import test_csflow_parity as parity


@pytest.fixture
def calls(monkeypatch) -> list:
    """The inputs that take Winograd's way, here whatever their size."""
    inputs, apply = [], Winograd.apply
    monkeypatch.setattr(winograd, "pays", lambda x, layer: True)
    monkeypatch.setattr(Winograd, "apply", lambda *args: (inputs.append(args[0]), apply(*args))[1])
    return inputs


def results(x, weight, bias, gradient, convolve) -> list[torch.Tensor]:
    leaves = [tensor.detach().clone().requires_grad_() for tensor in (x, weight, bias)]
    y = convolve(*leaves)
    return [y.detach(), *torch.autograd.grad(y, leaves, gradient)]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("size", [(16, 16), (13, 17), (6, 4), (3, 1)])
def test_values_and_gradients_against_float64(size, kernel, layout):
    torch.manual_seed(0)
    x, gradient = torch.randn(3, 24, *size), torch.randn(3, 10, *size)
    weight, bias = torch.randn(10, 24, kernel, kernel) / kernel / 24**0.5, torch.randn(10)
    exact = results(
        *(tensor.double() for tensor in (x, weight, bias, gradient)), lambda *args: F.conv2d(*args, padding=kernel // 2)
    )
    x, weight, gradient = (tensor.to(memory_format=layout) for tensor in (x, weight, gradient))
    for ours, expected in zip(results(x, weight, bias, gradient, Winograd.apply), exact, strict=True):
        assert ours.shape == expected.shape
        assert ours.dtype == torch.float32
        assert (ours - expected).norm() < 1e-5 * expected.norm()


@pytest.mark.parametrize("name", parity.CASES)
def test_the_authors_numbers(name, calls):
    parity.test_flow_loss_scores_map_and_gradients(name)
    assert calls


def test_state_and_copies_are_conv2ds(calls):
    plain = nn.Conv2d(4, 6, 5, padding=2)
    ours = winograd.with_minimal_filtering(nn.Sequential(copy.deepcopy(plain)))[0]
    assert type(ours) is Conv2d and ours.state_dict().keys() == plain.state_dict().keys()
    x = torch.randn(2, 4, 8, 8)
    torch.testing.assert_close(copy.deepcopy(ours)(x), plain(x), rtol=1e-4, atol=1e-5)
    assert len(calls) == 1
    frozen = ours.requires_grad_(False)(x.requires_grad_())
    frozen.sum().backward()
    assert x.grad is not None


def test_what_minimal_filtering_cannot_do_is_left_to_conv2d(calls):
    x = torch.randn(2, 4, 8, 8)
    Conv2d(4, 6, 5, padding=2, stride=2)(x)
    Conv2d(4, 6, 7, padding=3)(x)
    Conv2d(4, 6, 1)(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert Conv2d(4, 6, 5, padding=2)(x).dtype == torch.bfloat16
    assert not calls


@pytest.mark.parametrize(("kernel", "stride", "size"), [(5, 1, (1, 1)), (7, 1, (2, 2)), (5, 2, (1, 1)), (5, 1, (1, 4))])
def test_bf16_gradients_of_weights_that_meet_only_padding_are_0(kernel, stride, size):
    torch.manual_seed(0)
    layer = Conv2d(512, 192, kernel, padding=kernel // 2, stride=stride)
    x = torch.randn(2, 512, *size)
    gradients = []
    for precision in (torch.float32, torch.bfloat16):
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
            y = layer(x)
        for count in (10**5, 10**6, 3 * 10**6, 5 * 10**6):  # what is not written holds what lay there before
            torch.full((count,), math.nan, dtype=precision)
        gradients += torch.autograd.grad(y.float().square().sum(), layer.weight)
    exact, ours = gradients
    assert (ours - exact).norm() < 0.02 * exact.norm()
    assert not ours[exact == 0].any()


@pytest.mark.parametrize(
    ("channels", "kernel", "batch", "side", "expected"),
    [(512, 5, 16, 16, True), (512, 5, 2, 16, False), (512, 3, 16, 16, True), (512, 3, 16, 8, False),
     (64, 5, 16, 16, False)],
)  # fmt: skip
def test_few_pixels_or_channels_do_not_pay(channels, kernel, batch, side, expected):
    layer = Conv2d(channels, 304, kernel, padding=kernel // 2, device="meta")
    assert winograd.pays(torch.empty(batch, channels, side, side, device="meta"), layer) is expected
