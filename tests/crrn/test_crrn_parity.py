"""The network against numbers of the authors' own code (tests/parity), and properties that the spec asks for."""

import pytest
import torch

from crrn.model.ConvRRN import ST_EncDec
from tests.parity.cases import assert_float32, assert_gradients, assert_parity, case, draw, filled

MODES = ("ConvLSTM", "ConvConjLSTM", "ConvSTLSTM")
CASES = [f"crrn_{mode}{attention}" for mode in MODES for attention in ("", "_a")]


def model_of(settings: dict, **changes) -> ST_EncDec:
    names = ("mode", "channels", "kernels", "n_layers", "is_attn")
    return ST_EncDec(**({name: settings[name] for name in names} | changes))


@pytest.mark.parametrize("name", CASES)
def test_output_loss_gradients_and_names(name):
    settings, arrays = case(name)
    model = filled(model_of(settings), settings["keys"]).eval()  # names in order: Adam's state goes by position
    x = draw(settings["input_seed"], *settings["shape"], low=-2, high=2)
    output = model(x)
    loss = ((output - x) ** 2).mean()
    loss.backward()
    assert_parity(output, arrays["output"])
    assert_parity(loss, arrays["loss"])
    parameters = dict(model.named_parameters())
    assert all(parameters.pop(key).grad is None for key in settings["no_grad"])
    assert_gradients(parameters, arrays)
    with torch.no_grad():
        assert_float32(model.float()(x.float()), name, "output")
