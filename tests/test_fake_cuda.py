"""Every method trains, resumes and scores on a GPU, as far as that can be seen without one (tests/fake_cuda.py)."""

import functools
import importlib

import pytest
import torch

from tests import fake_cuda
from tests.fake_cuda import FakeCuda
from tests.robustness.methods import CRRN, METHODS


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda x: x)
    monkeypatch.setattr(torch, "autocast", lambda _, dtype, enabled: fake_cuda.autocast("cpu", dtype, enabled))
    for of in ("accelerator", "cuda"):  # by PyTorch's version
        name = f"_{of}_graph_capture_health_check"
        monkeypatch.setattr(torch.optim.Optimizer, name, lambda _: None, raising=False)
    with FakeCuda():
        yield


def test_what_a_gpu_refuses(gpu):
    here, there = torch.ones(3), torch.ones(3, device="cuda")
    for refused in (lambda: here + there, lambda: there.numpy(), lambda: torch.cat([there, here])):
        with pytest.raises((RuntimeError, TypeError)):
            refused()
    assert (there * 2).cpu().numpy().tolist() == [2, 2, 2] and str((there * torch.tensor(2.0)).device) == "cuda:0"


def run(method, precision, tmp_path, monkeypatch, capsys):
    """Train an epoch, resume with another, score."""

    def called(module, options, epochs=1):
        argv = options.format(place=tmp_path, epochs=epochs).replace("--cpu", "").replace("--UseCUDA no", "").split()
        assert importlib.import_module(module).main(argv) == 0, capsys.readouterr()

    method.make_data(tmp_path)
    (tmp_path / "run").mkdir()
    monkeypatch.chdir(tmp_path / "run")
    for epochs in (1, 2):
        called(method.module, f"{method.training} --precision {precision}", epochs)
    assert "resuming" in capsys.readouterr().out
    if method.name == "crrn":
        called("crrn.2_test_model", CRRN)
    method.make_items(tmp_path)
    called(method.scorer, method.scoring)


CASES = [(method, precision) for method in METHODS for precision in ("fp32", "bf16", "fp16")]


@pytest.mark.parametrize(
    ("method", "precision"),
    [
        pytest.param(*case, id=name, marks=() if name == "crrn-fp16" else pytest.mark.slow)
        for case in CASES
        for name in [f"{case[0].name}-{case[1]}"]
    ],
)
def test_training_resuming_and_scoring(method, precision, gpu, tmp_path, monkeypatch, capsys):
    run(method, precision, tmp_path, monkeypatch, capsys)


@pytest.mark.slow
@pytest.mark.parametrize("method", [m for m in METHODS if m.name != "memae"], ids=lambda method: method.name)
def test_layouts_on_mps(method, gpu, tmp_path, monkeypatch, capsys):
    """MemAE computes on CUDA or the CPU."""
    available = functools.wraps(torch.backends.mps.is_available)(lambda: True)  # PyTorch looks for what it wraps
    monkeypatch.setattr(FakeCuda, "device", torch.device("mps:0"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", available)
    monkeypatch.setattr(torch.mps, "manual_seed", lambda seed: None)
    run(method, "fp32", tmp_path, monkeypatch, capsys)
