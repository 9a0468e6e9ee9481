"""ONNX files of CS-Flow, CRN, RIAD and MemAE: ONNX Runtime gives the scores that the methods' own programs give."""

import sys

import numpy as np
import pytest
import torch
from PIL import Image

import crn.export
import csflow.config
import csflow.export
import memae.script_export
import riad.export
from common import checkpoint, scoring
from common.files import UserError
from common.images import read_image
from common.metrics import upsample
from crn.inference import score_batches
from crn.options import parse, plain
from crn.training.dataset import Images, Item
from crn.training.utils import make_model
from csflow.model import get_cs_flow_model, load_extractor
from csflow.utils import ComputedFeatures, run_flow
from memae.options import TestOptions
from memae.utils import clip_errors, error_maps, load_weights, normalise, reconstruct
from memae.utils import make_model as make_memae
from riad import options
from riad.score import load
from riad.source import procedure
from riad.source.agent import Agent
from riad.source.datamanager import to_tensor
from tests.helpers import refused

THRESHOLD = [0.25, 0.5]


def wake(network):
    """Values where new networks have zeros and ones, so that every layer counts."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, value in [*network.named_parameters(), *network.named_buffers()]:
            if "gamma" in name or "running_mean" in name:
                value.copy_(torch.randn(value.shape, generator=generator) * 0.1)
            elif "running_var" in name:
                value.copy_(torch.rand(value.shape, generator=generator) + 0.5)
    return network.eval()


def flow_of(place, monkeypatch):
    monkeypatch.setattr(csflow.config, "HERE", place)
    words = ["--modelname", "m", "--img_size", "128", "--extractor", "lite0", "--fc_internal", "160", "--cpu"]
    words += ["--n_coupling_blocks", "2"]
    config = csflow.config.parse(words)
    model = wake(get_cs_flow_model(192, **config.flow))
    calibration = dict.fromkeys(("std", "mean", "map"), THRESHOLD)
    content = {"extractor": "lite0", "calibration": calibration, "history": [], "settings": config.as_dict()}
    checkpoint.save(config.model_file, "csflow", model=model.state_dict(), **content)
    return ["--modelname", "m", "--output", place / "m.onnx"], (model, config)


def crn_of(place, *words):
    paths = ["--mode", "inference", "--dataset", "MVTec", "--dataset-path", ".", "--model-input", str(place / "m.ckpt")]
    opt = parse([*paths, "--imsize", "64", "--ngf", "16", "--num-competitive-units", "2", *words])
    model = wake(make_model(opt))
    content = {"bookkeeping": model.bookkeeping(), "levels": model.networks[0].levels, "settings": plain(opt)}
    calibration = dict.fromkeys(("validation", "inference", "map"), THRESHOLD)
    checkpoint.save(place / "m.ckpt", "crn", model=model.state_dict(), **content, calibration=calibration)
    return ["--model-input", place / "m.ckpt"], (model, opt)


def riad_of(place, *words, channels=3, side=32):
    settings = options.parse([*words, "--img_size", str(side)])
    agent = Agent(settings, channels, torch.device("cpu"))
    wake(agent.network)
    about = {"settings": {**vars(settings), "output": ""}, "data": "", "fingerprint": "", "channels": channels}
    procedure.save_network(place / "m.pth", agent.network, 0, about, calibration=THRESHOLD)
    return ["--checkpoint", place / "m.pth"], agent


def memae_of(place, *words):
    argv = ["--ModelFilePath", str(place / "m.pt"), "--MemDim", "8", *words]
    opt = TestOptions().parse([*argv, "--UseCUDA", "no"])
    torch.save(wake(make_memae(opt)).state_dict(), place / "m.pt")
    return [*argv, "--Size", "32"], opt


def picture(place, side, seed=0):
    values = np.random.default_rng(seed).uniform(0, 255, (side // 8, side // 8, 3)).astype(np.uint8)
    Image.fromarray(values).resize((side, side), Image.Resampling.BICUBIC).save(place / f"{seed}.png")
    return place / f"{seed}.png"


def in_unit_range(path):
    """(1, 3, H, W) float32 in 0..1: what a user of the file makes of an image."""
    return (np.asarray(read_image(path), np.float32) / 255).transpose(2, 0, 1)[None]


def runtime(main, argv, place, **inputs):
    """Export, run with ONNX Runtime: its outputs by name, and the file's metadata."""
    onnxruntime = pytest.importorskip("onnxruntime")
    assert main([str(word) for word in argv]) == 0
    session = onnxruntime.InferenceSession(str(place / "m.onnx"), providers=["CPUExecutionProvider"])
    assert [one.shape[0] for one in session.get_inputs()] == ["batch"]
    names, about = [one.name for one in session.get_outputs()], session.get_modelmeta().custom_metadata_map
    assert {"method", "channels", "values", "size", "resizing", "threshold", "pixel_threshold"} <= set(about)
    assert about["size"] == " x ".join(map(str, next(iter(inputs.values())).shape[-2:]))
    return dict(zip(names, session.run(None, inputs))), about


@pytest.mark.slow  # an export takes 10 s
def test_csflow(tmp_path, monkeypatch):
    argv, (model, config) = flow_of(tmp_path, monkeypatch)
    path = picture(tmp_path, 128)
    found, about = runtime(csflow.export.main, argv, tmp_path, image=in_unit_range(path))
    extractor = load_extractor("lite0", None, 3, torch.device("cpu"))
    how = (extractor, torch.device("cpu"), config.img_size, config.norm_mean, config.norm_std, 65535)
    scored = run_flow(model, ComputedFeatures([path], *how), [0], 1)
    assert found["score"] == pytest.approx(scored["std"], rel=1e-3)
    maps = upsample(scored["map"][0], (128, 128))
    assert found["map"].shape == (1, 128, 128) and found["map"][0] == pytest.approx(
        maps, rel=1e-3, abs=1e-3 * float(maps.max())
    )
    assert float(about["threshold"]) == 0.5 and about["extractor"] == "lite0"


@pytest.mark.slow
@pytest.mark.parametrize("words", [["--antialias"], ["--model", "dagan", "--norm", "image"]])
def test_crn(tmp_path, words):
    argv, (model, opt) = crn_of(tmp_path, *words)
    path = picture(tmp_path, 64)
    found, about = runtime(crn.export.main, argv, tmp_path, image=in_unit_range(path))
    images = Images([Item("0.png", path)], "MVTec", 64, opt.antialias)
    ((_, _, scored),) = score_batches(model, images, [0], 1, torch.device("cpu"))
    for name, theirs in (("score", "inference"), ("validation_score", "validation")):
        assert found[name] == pytest.approx(scored[theirs].numpy(), rel=1e-4), name
    assert found["map"] == pytest.approx(scored["difference"].mean(dim=1).numpy(), rel=1e-3, abs=1e-4)
    assert float(about["threshold"]) == 0.5 and about["method"] == opt.model
    # How images are resized decides on their scores.
    assert ("bilinear, antialiased" in about["resizing"]) == opt.antialias and about["channels"] == "RGB"


@pytest.mark.slow
@pytest.mark.parametrize("words", ["--filters 4 4 8 8", "--algorithm paper --filters 4 4 8 8 8 --smooth 5"])
def test_riad(tmp_path, words):
    grey = "paper" not in words
    argv, _ = riad_of(tmp_path, *words.split(), channels=1 if grey else 3)
    path = picture(tmp_path, 32)
    image = in_unit_range(path)[:, :1] if grey else in_unit_range(path)
    found, about = runtime(riad.export.main, argv, tmp_path, image=image)
    agent = load(tmp_path / "m.pth", torch.device("cpu")).agent
    pixels = to_tensor(read_image(path), 32)[None]
    maps = agent.score(pixels[:, :1] if grey else pixels)[1].numpy()
    assert maps.std() > 0.01  # else any masks would do
    assert found["map"] == pytest.approx(maps, rel=1e-3, abs=1e-4)
    assert found["score"] == pytest.approx(maps.max(axis=(1, 2)), rel=1e-4)
    assert float(about["threshold"]) == 0.5


@pytest.mark.slow
# 0.12: of 8 items, some always lie below the threshold, and one above it.
@pytest.mark.parametrize(
    "words",
    [["--ShrinkThres", "0.12"], ["--ModelName", "AE"], ["--Backbone", "resnet3d"]],
    ids=["MemAE", "AE", "backbone"],
)
def test_memae(tmp_path, words):
    argv, opt = memae_of(tmp_path, *words)
    frames = torch.randint(256, (1, 1, 16, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    clip = frames.numpy().astype(np.float32) / 255
    found, about = runtime(memae.script_export.main, argv, tmp_path, clip=clip)
    model = make_memae(opt)
    load_weights(model, tmp_path / "m.pt")
    x = normalise(frames, torch.device("cpu"))
    with torch.no_grad():
        rebuilt = reconstruct(model.eval(), x)[0], x
    assert found["score"] == pytest.approx(clip_errors(*rebuilt, opt.ModelName).numpy(), rel=1e-4)
    errors = error_maps(*rebuilt, opt.ModelName).numpy()
    assert about["threshold"] == "none" and about["channels"] == "grey" and "bicubic" in about["resizing"]
    assert errors.shape == (1, 16, 32, 32) and found["error"] == pytest.approx(errors, rel=1e-3, abs=1e-4)


@pytest.mark.slow
def test_outputs_that_differ_or_are_too_large_are_not_written(tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime")

    class Random(torch.nn.Module):
        def forward(self, images):
            return (images + (0 if torch.compiler.is_exporting() else 1),)

    file, inputs = tmp_path / "m.onnx", scoring.examples(1, 8, 8)
    file.write_text("before")
    file.with_name("m.pt").write_text("the checkpoint")
    model = scoring.Exported(file.with_name("m.pt"), file, Random(), inputs, ["out"], {"method": "m"})
    for limit, words in ((scoring.LARGEST, "nothing is written"), (-1, "less than 2")):
        monkeypatch.setattr(scoring, "LARGEST", limit)
        with pytest.raises(UserError, match=words):
            scoring.export(model)
    assert {path.name for path in tmp_path.iterdir()} == {"m.onnx", "m.pt"} and file.read_text() == "before"


def test_largest_difference():
    wanted = [np.array([1.0, -2.0]), np.array([10.0])]
    assert scoring.largest_difference([np.array([1.0, -1.9]), np.array([9.0])], wanted) == pytest.approx(0.1)
    assert np.isnan(scoring.largest_difference([wanted[0], np.array([np.nan])], wanted))


@pytest.mark.parametrize("missing", scoring.PACKAGES)
def test_missing_packages_are_named(missing, tmp_path, monkeypatch, capsys):
    argv, _ = riad_of(tmp_path, "--filters", "2", "2", "2", "2", channels=1)
    for name in scoring.PACKAGES:
        monkeypatch.setitem(sys.modules, name, None if name == missing else sys)
    words = f"needs the package {missing}: pip install onnx onnxscript onnxruntime"
    refused(capsys, riad.export.main, argv, words, keeps=tmp_path)


def test_examples():
    images = scoring.examples(3, 20, 24)
    assert images.shape == (3, 3, 20, 24) and 0 <= images.min() < images.max() <= 1
    assert torch.equal((images * 255).round() / 255, images) and scoring.examples(1, 16, 32, 32).dim() == 5
