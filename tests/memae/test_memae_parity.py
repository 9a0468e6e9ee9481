"""MemAE's networks and backbones against numbers of the authors' own code (tests/parity), gradients included."""

import copy

import pytest
import torch
import torch.nn.functional as F

from common import checkpoint
from common.files import UserError
from memae import script_training
from memae.models import AutoEncoderCov3D, AutoEncoderCov3DMem, EntropyLossEncap, MemModule
from memae.models.backbones import ResNet3d, from_mmaction, make_backbone
from memae.options import TestOptions, TrainOptions
from memae.utils import clip_errors, load_weights, make_model, reconstruct
from tests.parity.cases import assert_float32, assert_gradients, assert_parity, authors_state, case, draw, fill, filled

BACKBONES = {
    "memae_slowonly18": ("slowonly", None),
    "memae_slowonly50": ("slowonly", 50),
    "memae_resnet3d18": ("resnet3d", None),
    "memae_csn50": ("csn", 50),
}


@pytest.mark.parametrize("name", ["memae_conv3d", "memae_ae"])
def test_autoencoders(name):
    settings, arrays = case(name)
    memory = name == "memae_conv3d"
    model = AutoEncoderCov3DMem(1, 50, 0.0025) if memory else AutoEncoderCov3D(1)
    filled(model, settings["keys"])
    x = draw(settings["input_seed"], *settings["shape"])
    output, w_hat = reconstruct(model, x)
    losses = script_training.losses_of(output, w_hat, x, alpha=0.0002)
    losses["loss"].backward()
    assert_parity(output.flatten()[::13], arrays["output_train"])
    assert_parity(losses["recon_loss"], arrays["recon_loss"])
    assert_parity(losses["loss"], arrays["loss"])
    assert_gradients(dict(model.named_parameters()), arrays)
    if memory:
        assert_parity(losses["entropy_loss"], arrays["entropy"])

    model.eval()
    with torch.no_grad():
        out = model(x)
    output = out["output"] if memory else out
    assert_parity(output.flatten()[::13], arrays["output_eval"])
    assert_parity(clip_errors(output, x, "MemAE" if memory else "AE"), arrays["recon_error"])
    with torch.no_grad():
        out = model.float()(x.float())
    assert_float32((out["output"] if memory else out).flatten()[::13], name, "output_eval")


def test_memory_weights_of_the_autoencoder():
    settings, arrays = case("memae_conv3d")
    model = filled(AutoEncoderCov3DMem(1, 50, 0.0025), settings["keys"])
    with torch.no_grad():
        att = model(draw(settings["input_seed"], *settings["shape"]))["att"]
    assert_parity(att.sum(dim=(0, 2, 3, 4)), arrays["att_sum"])
    assert int((att > 0).sum()) == int(arrays["att_nnz"])
    assert_parity(EntropyLossEncap()(att), arrays["entropy"])


def test_memory():
    settings, arrays = case("memae_memory")
    module = MemModule(settings["mem_dim"], settings["fea_dim"], settings["shrink_thres"])
    model = filled(module, {"memory.weight": [40, 16]})
    low, high = settings["input_range"]
    x = draw(settings["input_seed"], *settings["shape"], low=low, high=high).requires_grad_()
    out = model(x)
    assert_parity(out["output"], arrays["output"])
    assert_parity(out["att"], arrays["att"])
    out["output"].square().mean().backward()
    assert_parity(x.grad.norm(), arrays["x_gradnorm"])
    assert_parity(model.memory.weight.grad.norm(), arrays["w_gradnorm"])
    with torch.no_grad():
        assert_float32(model.float()(x.float())["output"], "memae_memory", "output")


@pytest.mark.parametrize("name", BACKBONES)
def test_backbones(name):
    settings, arrays = case(name)
    model = filled(make_backbone(*BACKBONES[name]), settings["keys"])
    assert sum(parameter.numel() for parameter in model.parameters()) == settings["parameters"]
    x = draw(settings["input_seed"], *settings["shape"])
    rounded = copy.deepcopy(model).float()
    output = model(x)
    assert list(output.shape) == settings["output_shape"]
    loss = output.square().mean()
    loss.backward()
    assert_parity(output.flatten()[::7], arrays["output_train"])
    assert_parity(loss, arrays["loss"])
    assert_gradients(dict(model.named_parameters()), arrays)
    with torch.no_grad():
        assert_parity(model.eval()(x).flatten()[::7], arrays["output_eval"])
        assert_float32(rounded(x.float()).flatten()[::7], name, "output_train")


def test_an_authors_checkpoint_loads_and_ours_is_one(tmp_path):
    settings, _ = case("memae_conv3d")
    state = authors_state(settings["keys"])
    torch.save(state, tmp_path / "authors.pt")
    options = TestOptions().parse(["--MemDim", "50"])
    model = make_model(options)
    load_weights(model, tmp_path / "authors.pt")
    checkpoint.write(tmp_path / "ours.pt", model.state_dict())
    ours = torch.load(tmp_path / "ours.pt", weights_only=True)
    assert list(ours) == list(state)
    assert all(torch.equal(ours[key], state[key]) for key in state)


def test_an_mmaction_checkpoint_loads(tmp_path):
    """Names with `backbone.`, a head, and a stem for colour, which for grey frames is the sum of its channels."""
    options = TrainOptions().parse(["--Backbone", "slowonly", "--ModelName", "AE"])
    colour = make_backbone("slowonly", in_channels=3)
    state = {f"backbone.{name}": value for name, value in fill(colour.state_dict()).items()}
    torch.save(
        {"meta": {"epoch": 3}, "state_dict": {**state, "cls_head.fc_cls.weight": torch.zeros(4, 512)}}, tmp_path / "a"
    )
    model = make_model(options)
    script_training.load_backbone(model, tmp_path / "a", 1)
    colour.load_state_dict(fill(colour.state_dict()))
    grey = draw(3, 1, 1, 16, 32, 32, dtype=torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(
            model.eval().encoder(grey), colour.eval()(grey.expand(-1, 3, -1, -1, -1)), rtol=1e-4, atol=1e-5
        )
    options.Backbone = "resnet3d"
    with pytest.raises(UserError, match="does not fit"):
        script_training.load_backbone(make_model(options), tmp_path / "a", 1)
    for content in (None, [1], {"state_dict": None}, {"state_dict": [1]}, {1: torch.ones(1)}, {"a": "b"}, {"a": None}):
        torch.save(content, tmp_path / "a")
        with pytest.raises(UserError, match=r"a .*(damaged|does not fit)"):
            script_training.load_backbone(model, tmp_path / "a", 1)
    assert from_mmaction({"conv1.conv.weight": torch.ones(2, 3, 1, 7, 7)}, 3)["conv1.conv.weight"].shape[1] == 3


@pytest.mark.parametrize(
    ("backbone", "depth", "code"),
    [
        ("slowonly", None, (1, 512, 2, 8, 8)),
        ("csn", None, (1, 2048, 2, 8, 8)),
        ("resnet3d", None, (1, 512, 2, 8, 8)),
        ("slowonly", 50, (1, 2048, 2, 8, 8)),
        pytest.param("resnet3d", 101, (1, 2048, 2, 8, 8), marks=pytest.mark.slow),
        ("conv3d", None, (1, 256, 2, 16, 16)),
    ],
)
def test_the_seeds_shapes(backbone, depth, code):
    with torch.device("meta"), torch.no_grad():
        model = AutoEncoderCov3DMem(1, 2000, backbone=backbone, depth=depth).eval()
        x = torch.empty(1, 1, 15, 256, 256)
        assert model.encoder(x).shape == code
        out = model(x)  # 15 frames give 16, as the seed shows
        assert out["att"].shape == (1, 2000, *code[2:]) and out["output"].shape == (1, 1, 16, 256, 256)
        assert model(torch.empty(1, 1, 16, 256, 256))["output"].shape == (1, 1, 16, 256, 256)
        assert AutoEncoderCov3D(3, backbone, depth).eval()(torch.empty(2, 3, 16, 64, 96)).shape == (2, 3, 16, 64, 96)


def test_decoder_of_plan_c_and_b():
    def layers(model):
        return [(m.in_channels, m.out_channels, m.stride) for m in model.decoder if hasattr(m, "output_padding")]

    two, flat = (2, 2, 2), (1, 2, 2)
    with torch.device("meta"):
        for name in ("slowonly", "resnet3d"):
            assert layers(AutoEncoderCov3D(1, name)) == [
                (512, 256, two), (256, 128, two), (128, 96, two), (96, 96, flat), (96, 1, flat)
            ]  # fmt: skip
        for name, depth in (("csn", 50), ("slowonly", 50)):
            assert layers(AutoEncoderCov3D(1, name, depth)) == [
                (2048, 1024, two), (1024, 512, two), (512, 256, two),
                (256, 128, flat), (128, 96, flat), (96, 1, (1, 1, 1)),
            ]  # fmt: skip


def test_csn_interaction_preserved():
    plan = make_backbone("csn", 50).plan
    names = list(ResNet3d(plan, 50, csn_mode="ip").state_dict())
    assert "layer1.0.conv2.0.conv.weight" in names and "layer1.0.conv2.1.conv.weight" in names
    block = ResNet3d(plan, 50, csn_mode="ip").layer1[0]
    assert block.conv2[0].conv.kernel_size == (1, 1, 1) and not block.conv2[0].relu
    assert block.conv2[1].conv.groups == 64 and block.conv2[1].relu


@pytest.mark.parametrize(
    "backbone", ["slowonly", *(pytest.param(name, marks=pytest.mark.slow) for name in ("resnet3d", "csn"))]
)
def test_a_step_reaches_every_parameter(backbone):
    torch.manual_seed(0)
    depth = 50 if backbone == "csn" else None
    model = AutoEncoderCov3DMem(1, 20, 0.0025, backbone, depth)
    x = draw(1, 2, 1, 16, 32, 32, dtype=torch.float32)
    out = model(x)
    (F.mse_loss(out["output"], x) + 0.0002 * EntropyLossEncap()(out["att"])).backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert not without
