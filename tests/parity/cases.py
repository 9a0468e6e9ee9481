"""The authors' numbers (written by their own code, in float64 and in float32) and how ours are compared with them.

In float64, where neither processor nor memory layout nor number of threads matters, everything is compared, tightly. In
float32, where they do, one output of each network is, with a slack.
"""

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from tests.parity import fill as rules

FOLDER = Path(__file__).parent
Arrays = dict[str, np.ndarray]
fill = rules.fill


@cache
def case(name: str, files: str = "_f64") -> tuple[dict, Arrays]:
    """Settings of a case and the authors' arrays in float64; files "": those in float32."""
    return json.loads((FOLDER / f"{name}.json").read_text()), dict(np.load(FOLDER / f"{name}{files}.npz"))


def draw(*args, dtype: torch.dtype = torch.float64, **kwargs) -> Tensor:
    """An input, of float32 values."""
    return rules.draw(*args, **kwargs).to(dtype)


def authors_state(keys: Mapping[str, list[int]]) -> dict[str, Tensor]:
    """Filled parameters under the authors' names, in float32."""
    whole = {key: torch.zeros(shape, dtype=torch.long) for key, shape in keys.items() if key.endswith("_tracked")}
    return fill({key: torch.zeros(shape) for key, shape in keys.items()} | whole)


def filled(model: nn.Module, keys: Mapping[str, list[int]]) -> nn.Module:
    """`model` in float64 and training mode, with the case's weights; names, their order and shapes are the authors'."""
    assert [(name, list(value.shape)) for name, value in model.state_dict().items()] == list(keys.items())
    model.load_state_dict(fill(model.state_dict()))
    return model.double().train()


def assert_parity(ours: object, theirs: np.ndarray, largest: float | None = None) -> None:
    """Equal in float64 up to 1e-9 of the largest value."""
    ours = torch.as_tensor(ours).detach().numpy()
    assert ours.dtype == theirs.dtype == np.float64
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-9 * (largest or np.abs(theirs).max()))


def assert_gradients(parameters: Mapping[str, Tensor], arrays: Arrays) -> None:
    """The gradients' norms are the authors'; parameters: by the authors' names."""
    theirs = {key.removeprefix("gradnorm/"): norm for key, norm in arrays.items() if key.startswith("gradnorm/")}
    assert theirs and theirs.keys() <= parameters.keys()
    for name, norm in theirs.items():
        assert_parity(parameters[name].grad.norm(), norm, max(theirs.values()))


def assert_float32(ours: Tensor, name: str, key: str) -> None:
    """As near to the authors' numbers in float64 as theirs in float32 are, or ten times as far, plus a tolerance."""
    assert ours.dtype == torch.float32
    exact, rounded = case(name)[1][key], case(name, "")[1][key]
    slack = 1e-5 + 10 * np.abs(rounded - exact).max()
    np.testing.assert_allclose(ours.detach().numpy(), exact, rtol=1e-4, atol=slack)
