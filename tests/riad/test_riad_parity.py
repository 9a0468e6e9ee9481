"""Network, losses and scores against numbers of the authors' own code (tests/parity), and the properties of masks."""

import json
import math
import runpy
from argparse import Namespace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from common import checkpoint
from common.runtime import UserError
from riad.neuralnet import ae_l2, aesc_l2, layers, unet
from riad.neuralnet.aesc_l2 import from_authors
from riad.source import losses
from riad.source.agent import Agent, assemble, learning_rate
from riad.source.masks import content_keys, disjoint_masks, epoch_keys
from riad.source.options import DEFAULTS, parse

PARITY = Path(__file__).parents[1] / "parity"
_rules = runpy.run_path(str(PARITY / "fill.py"))
fill, draw = _rules["fill"], _rules["draw"]


@cache
def case(name: str):
    """Settings of a parity case and the authors' arrays."""
    return json.loads((PARITY / f"{name}.json").read_text()), dict(np.load(PARITY / f"{name}.npz"))


@cache
def authors_state():
    keys = case("riad_unet")[0]["keys"]
    whole = {k: torch.zeros(shape, dtype=torch.long) for k, shape in keys.items() if k.endswith("_tracked")}
    return fill({key: torch.empty(shape) for key, shape in keys.items()} | whole)


def assert_parity(ours, theirs) -> None:
    np.testing.assert_allclose(torch.as_tensor(ours).detach().numpy(), theirs, rtol=1e-4, atol=1e-5)


def settings_of(*argv: str) -> Namespace:
    settings = parse(list(argv))
    settings.img_size = settings.img_size or 28
    return settings


@pytest.mark.parametrize("fold_from", [0, 10**9], ids=["folded", "upsampled"])
def test_unet_losses_and_gradients(fold_from, monkeypatch):
    monkeypatch.setattr(layers, "FOLD_FROM", fold_from)
    settings, arrays = case("riad_unet")
    network = aesc_l2.NeuralNet(1, settings["filters"][1:], settings["ksize"])
    checkpoint.load_parameters(network, from_authors(authors_state()), "parity")
    x, target = (draw(settings[seed], *settings["shape"], low=0, high=1) for seed in ("input_seed", "target_seed"))
    output = network(x)
    msgms = losses.msgms_map(losses.magnitudes(target, 3), losses.magnitudes(output, 3))
    ssim, l2 = losses.ssim_loss(target, output).mean(dim=(1, 2, 3)), losses.l2_loss(target, output)
    total = msgms.mean() + ssim.mean() + l2.mean()
    total.backward()
    assert_parity(output.flatten()[::5], arrays["output_train"])
    assert_parity(msgms.flatten()[::5], arrays["msgms"])
    assert_parity(ssim, arrays["ssim"])
    assert_parity(l2, arrays["l2"])
    assert_parity(total, arrays["total"])

    parameters, norms = (
        dict(network.named_parameters()),
        from_authors({k[9:]: v for k, v in arrays.items() if "/" in k}),
    )
    assert parameters.keys() == norms.keys()
    slack = 1e-4 * max(float(norm) for norm in norms.values())
    for name, parameter in parameters.items():
        assert parameter.grad.norm().item() == pytest.approx(float(norms[name]), rel=1e-3, abs=slack), name
    network.eval()
    with torch.no_grad():
        assert_parity(network(x).flatten()[::5], arrays["output_eval"])


def test_losses():
    settings, arrays = case("riad_losses")
    a = draw(settings["a_seed"], *settings["shape"], low=0, high=1)
    b = 0.7 * a + 0.3 * draw(settings["b_seed"], *settings["shape"], low=0, high=1)
    msgms, ssim = losses.msgms_map(losses.magnitudes(a, 3), losses.magnitudes(b, 3)), losses.ssim_loss(a, b)
    assert_parity(msgms, arrays["msgms_map"])
    assert_parity(msgms.mean(), arrays["msgms_loss"])
    assert_parity(ssim, arrays["ssim_map"])
    assert_parity(ssim.mean(dim=(1, 2, 3)), arrays["ssim"])
    assert_parity(losses.l2_loss(a, b), arrays["l2"])


def test_scoring_pass():
    settings, arrays = case("riad_step")
    agent = Agent(settings_of(), 1, 1, torch.device("cpu"))
    checkpoint.load_parameters(agent.network, from_authors(authors_state()), "parity")
    agent.network.eval()
    x = draw(settings["input_seed"], *settings["shape"], low=0, high=1).permute(0, 3, 1, 2)
    masks = torch.from_numpy(arrays["masks"]).float()[:, :, None]
    with torch.no_grad():
        outputs = agent.inpaint(x, masks)
        anomaly_map = agent.repo_map(x, outputs)
    assert_parity((outputs * masks).mean(dim=1).permute(0, 2, 3, 1), arrays["y_hat"])  # the original's reconstruction
    assert_parity(anomaly_map.permute(0, 2, 3, 1), arrays["map"])
    assert_parity(anomaly_map.amax(dim=(1, 2, 3)), arrays["score"])
