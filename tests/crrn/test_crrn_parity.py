"""The network against numbers of the authors' own code (tests/parity), and properties that the spec asks for."""

import json
import runpy
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from crrn.model.ConvRRN import ST_EncDec

PARITY = Path(__file__).parents[1] / "parity"
_rules = runpy.run_path(str(PARITY / "fill.py"))
fill, draw = _rules["fill"], _rules["draw"]
MODES = ("ConvLSTM", "ConvConjLSTM", "ConvSTLSTM")
CASES = [f"crrn_{mode}{attention}" for mode in MODES for attention in ("", "_a")]


@cache
def case(name: str):
    """Settings of a parity case, the authors' arrays, and the state dict under the authors' names."""
    settings = json.loads((PARITY / f"{name}.json").read_text())
    arrays = dict(np.load(PARITY / f"{name}.npz"))
    state = {key: torch.zeros(shape) for key, shape in settings["keys"].items()}
    state |= {key: value.long() for key, value in state.items() if key.endswith("_tracked")}
    return settings, arrays, fill(state)


def model_of(settings: dict, **changes) -> ST_EncDec:
    names = ("mode", "channels", "kernels", "n_layers", "is_attn")
    return ST_EncDec(**({name: settings[name] for name in names} | changes))


@pytest.mark.parametrize("name", CASES)
def test_output_loss_gradients_and_names(name):
    settings, arrays, state = case(name)
    model = model_of(settings)
    assert list(model.state_dict()) == list(state)  # the order too: Adam's state goes by position
    model.load_state_dict(state)
    model.eval()
    x = draw(settings["input_seed"], *settings["shape"], low=-2, high=2)
    output = model(x)
    loss = ((output - x) ** 2).mean()
    loss.backward()
    np.testing.assert_allclose(output.detach().numpy(), arrays["output"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(loss.item(), arrays["loss"], rtol=1e-4, atol=1e-5)

    theirs = {key.removeprefix("gradnorm/"): float(value) for key, value in arrays.items() if "gradnorm/" in key}
    slack = 1e-4 * max(theirs.values())
    parameters = dict(model.named_parameters())
    assert set(theirs) == set(parameters) - set(settings["no_grad"])
    for key, norm in theirs.items():
        assert parameters[key].grad.norm().item() == pytest.approx(norm, rel=1e-3, abs=slack), key
    for key in settings["no_grad"]:
        assert parameters[key].grad is None
