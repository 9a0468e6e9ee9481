"""Every method trains, continues and scores on a GPU, as far as that can be seen without one (tests/fake_cuda.py)."""

import functools
import importlib
import shutil

import pytest
import torch

from tests import fake_cuda
from tests.crrn.test_crrn_scripts import CYCLE
from tests.fake_cuda import FakeCuda
from tests.robustness.methods import METHODS

CRRN = f"--data {{0}}/data --cycle {CYCLE} --result {{0}}/run/result --n_layers 1"
MEMAE = "--DataRoot {0}/data --Dataset stripes --ModelRoot {0}/run/models --MemDim 8 --OutRoot {0}/run"
RIAD = "--images {0}/data/brick/test --output {0}/run/scored --checkpoint {0}/run/Checkpoint/resume.pth"
SCORING = {
    "csflow": [("csflow.score", "--images {0}/data/brick/test --modelname m --output_path {0}/run")],
    "crn": [("crn.score", "--images {0}/data/good_ones --model-input ck/last.ckpt --output scored")],
    "crrn": [("crrn.2_test_model", CRRN), ("crrn.3_score_boards", CRRN + " --boards {0}/data --output {0}/run/scored")],
    "memae": [("memae.script_testing", MEMAE)],
    "riad": [("riad.score", RIAD)],
}
FAST = [("crrn", "fp16"), ("riad", "bf16")]


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda x: x)
    monkeypatch.setattr(torch, "autocast", lambda _, dtype, enabled: fake_cuda.autocast("cpu", dtype, enabled))
    for check in (
        "_accelerator_graph_capture_health_check",
        "_cuda_graph_capture_health_check",
    ):  # by PyTorch's version
        monkeypatch.setattr(torch.optim.Optimizer, check, lambda _: None, raising=False)
    with FakeCuda():
        yield


def test_what_a_gpu_refuses(gpu):
    here, there = torch.ones(3), torch.ones(3, device="cuda")
    for refused in (lambda: here + there, lambda: there.numpy(), lambda: torch.cat([there, here])):
        with pytest.raises((RuntimeError, TypeError)):
            refused()
    assert (there * 2).cpu().numpy().tolist() == [2, 2, 2] and str((there * torch.tensor(2.0)).device) == "cuda:0"


def run(method, precision, tmp_path, monkeypatch, capsys):
    """Train an epoch, continue with another, score."""
    method.make_data(tmp_path)
    if method.name == "memae":
        shutil.copytree(tmp_path / "data/stripes/Train", tmp_path / "data/stripes/Test")
    (tmp_path / "run").mkdir()
    monkeypatch.chdir(tmp_path / "run")
    main = importlib.import_module(method.module).main
    more = ["--precision", precision] + (["--output_path", "."] if method.name == "csflow" else [])
    for epochs in (1, 2):
        argv = " ".join(method.argv(tmp_path, epochs)).replace("--cpu ", "").replace("--UseCUDA no ", "").split()
        assert main([*argv, *more]) == 0, capsys.readouterr()
    said = capsys.readouterr().out
    assert "resuming" in said or "continuing" in said
    for script, options in SCORING[method.name]:
        assert importlib.import_module(script).main(options.format(tmp_path).split()) == 0, capsys.readouterr()


@pytest.mark.parametrize(
    ("method", "precision"),
    [
        pytest.param(method, precision, id=f"{method.name}-{precision}", marks=() if fast else pytest.mark.slow)
        for method in METHODS
        for precision in ("fp32", "bf16", "fp16")
        for fast in [(method.name, precision) in FAST]
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
