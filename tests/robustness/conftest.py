"""One training of each method for all tests; `make test` has that of RIAD alone."""

import shutil

import pytest

from tests.robustness.methods import METHODS, Training

EPOCHS = 4


@pytest.fixture(
    scope="session",
    params=[pytest.param(m, id=m.name, marks=() if m.name == "riad" else pytest.mark.slow) for m in METHODS],
)
def method(request):
    return request.param


@pytest.fixture(scope="session")
def undisturbed(method, tmp_path_factory):
    return Training(method, tmp_path_factory.mktemp(method.name), EPOCHS)


@pytest.fixture
def training(undisturbed):
    """A training that has yet to begin; an undisturbed one of the same command is in `whole`."""
    shutil.rmtree(undisturbed.run, ignore_errors=True)
    return undisturbed


@pytest.fixture
def trained(training):
    """A finished training in `run`."""
    shutil.copytree(training.whole, training.run)
    return training
