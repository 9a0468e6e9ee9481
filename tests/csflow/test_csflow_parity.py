"""The flow and its extractors against numbers of the authors' own code (tests/parity), and the paper's properties."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from common.files import UserError
from csflow.config import Config, complete
from csflow.freia_funcs import ParallelPermute
from csflow.model import (
    CSFlow,
    EfficientNetB5,
    FeatureExtractor,
    from_authors,
    from_efficientnet_pytorch,
    get_cs_flow_model,
    load_extractor,
    load_model,
)
from csflow.utils import anomaly_maps, get_loss, image_scores
from tests.parity import cases
from tests.parity.cases import assert_float32, assert_gradients, assert_parity, authors_state, draw, fill

CPU = torch.device("cpu")
CASES = ("csflow_a", "csflow_b")


def case(name: str):
    """Settings of a parity case, the authors' arrays, and the float32 state dict under the authors' names."""
    settings, arrays = cases.case(name)
    return settings, arrays, authors_state(settings["keys"])


def config_of(settings: dict, **changes) -> Config:
    names = ("n_coupling_blocks", "fc_internal", "kernel_sizes", "clamp")
    options = {name: settings[name] for name in names} | {"img_size": (settings["img_size"],)} | changes
    return complete(options)


def inputs_of(settings: dict) -> list[torch.Tensor]:
    side = settings["img_size"] // 32
    return [
        draw(seed, settings["batch"], settings["n_feat"], side >> s, side >> s)
        for s, seed in enumerate(settings["input_seeds"])
    ]


@pytest.mark.parametrize("name", CASES)
def test_flow_loss_scores_map_and_gradients(name):
    settings, arrays, state = case(name)
    model = get_cs_flow_model(settings["n_feat"], **config_of(settings).flow)
    ours = from_authors(state)
    model.load_state_dict(ours)
    x = inputs_of(settings)
    z, log_det = model.double()(x)
    loss = get_loss(z, log_det)
    loss.backward()
    for s in range(3):
        assert_parity(z[s].flatten()[::7], arrays[f"z{s}"])
        assert_parity(log_det[s], arrays[f"jac{s}"])
    assert_parity(loss, arrays["loss"])
    scores = image_scores(z)
    assert_parity(scores["std"], arrays["score_std"])
    assert_parity(scores["mean"], arrays["score_mean"])
    assert_parity(anomaly_maps(z), arrays["map0"])

    with torch.no_grad():
        back, log_det_back = model.reverse(z)
    for s in range(3):
        torch.testing.assert_close(back[s], x[s], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(log_det_back[s], -log_det[s], rtol=1e-4, atol=1e-4)

    parameters = dict(model.named_parameters())
    assert_gradients({theirs: parameters[name] for theirs, name in zip(state, ours)}, arrays)  # in the same order


@pytest.mark.parametrize("name", CASES)
def test_load_model_takes_an_authors_state_dict(name, tmp_path):
    settings, _, state = case(name)
    torch.save(state, tmp_path / "authors.pt")
    model, _, content = load_model(tmp_path / "authors.pt", config_of(settings, extractor="effnetB5"), CPU)
    assert content["extractor"] == "effnetB5"
    assert not model.training
    with torch.no_grad():
        z, _ = model([x.float() for x in inputs_of(settings)])
    for s in range(3):
        assert_float32(z[s].flatten()[::7], name, f"z{s}")


def test_load_model_refuses_what_does_not_fit(tmp_path):
    settings, _, state = case("csflow_b")
    path = tmp_path / "authors.pt"

    def refused(content: dict, match: str, **changes) -> None:
        torch.save(content, path)
        with pytest.raises(UserError, match=match):
            load_model(path, config_of(settings, **changes), CPU)

    refused({**state, "extra.weight": torch.zeros(1)}, "extra.weight")
    refused({key: state[key] for key in state if "down_conv12.bias" not in key}, "down_conv12.bias is missing")
    refused({**state, "module_list.4.s1.gamma3": torch.zeros(1)}, "gamma3 is unknown")
    refused({**state, "module_list.4.s1.gamma1": torch.zeros(2)}, r"gamma1 has shape \(2,\) instead of \(1,\)")
    refused(state, "has shape .* and [0-9]+ more", fc_internal=32)
    refused(state, "blocks.1.* is missing", n_coupling_blocks=2, kernel_sizes=[5, 5])
    refused(state, "has shape", extractor="lite0")  # 192 channels instead of 304
    with pytest.raises(UserError, match="no checkpoint"):
        load_model(tmp_path / "nowhere.pt", config_of(settings), CPU)


def random_flow(channels, hidden=6, kernels=(3, 5), clamp=3.0, n_scales=3, use_gamma=True) -> CSFlow:
    model = CSFlow(channels, len(kernels), hidden, list(kernels), clamp, use_gamma, n_scales)
    model.load_state_dict(fill(model.state_dict()))
    with torch.no_grad():  # large enough that scales and shifts matter
        for name, parameter in model.named_parameters():
            if "gamma" in name:
                parameter.fill_(0.7)
    return model


def tiny_inputs(channels, n_scales=3, side=8, batch=2, dtype=torch.float32) -> list[torch.Tensor]:
    return [draw(s, batch, channels, side >> s, side >> s, low=-2, high=2, dtype=dtype) for s in range(n_scales)]


@pytest.mark.parametrize(
    ("channels", "options"),
    [(7, {}), (3, {"kernels": (3, 3, 5)}), (6, {"n_scales": 2}), (7, {"clamp": 0.0}), (6, {"use_gamma": False})],
)
def test_round_trip_negates_the_log_determinant(channels, options):
    model = random_flow(channels, **options)
    x = tiny_inputs(channels, options.get("n_scales", 3))
    with torch.no_grad():
        z, log_det = model(x)
        back, log_det_back = model.reverse(z)
    for s, x_s in enumerate(x):
        assert not torch.allclose(z[s], x_s, atol=0.1)
        assert log_det[s].abs().min() > 1e-3
        torch.testing.assert_close(back[s], x_s, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(log_det_back[s], -log_det[s], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("channels", "clamp"), [(4, 3.0), (3, 3.0), (3, 0.0)])
def test_log_determinant_is_that_of_the_jacobian(channels, clamp):
    model = random_flow(channels, hidden=3, kernels=(3, 5), clamp=clamp).double()
    x = tiny_inputs(channels, side=4, batch=1, dtype=torch.float64)
    sizes, shapes = [x_s.numel() for x_s in x], [x_s.shape for x_s in x]

    def flat(v):
        z, _ = model([part.reshape(shape) for part, shape in zip(v.split(sizes), shapes)])
        return torch.cat([z_s.flatten() for z_s in z])

    jacobian = torch.autograd.functional.jacobian(flat, torch.cat([x_s.flatten() for x_s in x]), vectorize=True)
    expected = torch.linalg.slogdet(jacobian).logabsdet
    assert expected.abs() > 0.1
    torch.testing.assert_close(sum(model(x)[1]).squeeze(), expected, rtol=1e-8, atol=1e-8)


def test_permutations_follow_numpys_legacy_generator_and_leave_it_alone():
    for seed in range(3):
        np.random.seed(seed)
        expected = [np.random.permutation(304) for _ in range(3)]
        before = np.random.get_state()[1].copy()
        permute = ParallelPermute(304, 3, seed)
        assert (np.random.get_state()[1] == before).all()
        x = [torch.arange(304.0).reshape(1, 304, 1, 1)] * 3
        for out, perm in zip(permute(x), expected):
            assert out.flatten().tolist() == perm.tolist()
        for out in permute(permute(x), reverse=True):
            assert torch.equal(out, x[0])
        assert not permute.state_dict()
    # A new flow permutes, block by block, and nothing else.
    flow, x = CSFlow(9, 2, 4, [3, 5], 3.0), tiny_inputs(9)
    z, log_det = flow(x)
    expected = flow.permutations[1](flow.permutations[0](x))
    assert all(torch.equal(*pair) for pair in zip(z, expected)) and not any(part.any() for part in log_det)


def test_from_authors_numbers_blocks_and_refuses_other_names():
    renamed = from_authors({"module_list.4.s1.gamma0": torch.zeros(1), "module_list.6.s2.gamma2": torch.ones(1)})
    assert list(renamed) == ["blocks.0.s1.gamma0", "blocks.1.s2.gamma2"]
    # Odd nodes are permutations; a leading zero would be a second name for the same block.
    for name in ("conv1.weight", *(f"module_list.{node}.a" for node in ("5.s1", "2.s1", "04.s1", "4.s3"))):
        with pytest.raises(UserError, match=name.replace(".", r"\.")):
            from_authors({name: torch.zeros(1)})


def test_efficientnet_b5_is_the_authors():
    settings, arrays, state = case("csflow_effnet_b5")
    network = EfficientNetB5()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    network.load_weights(state, "the authors' weights")
    network.double().eval()
    x = draw(settings["input_seed"], *settings["shape"])
    with torch.no_grad():
        output = network(x)
        assert_float32(network.float()(x.float()), "csflow_effnet_b5", "output")
    assert list(output.shape) == settings["output_shape"]
    assert_parity(output, arrays["output"])

    # under torchvision's names, the same weights give the same output; incomplete ones are refused
    renamed = from_efficientnet_pytorch(state)
    network.load_state_dict(before)
    network.load_weights(renamed, "torchvision's names")
    with torch.no_grad():
        assert torch.equal(network.double()(x), output)
    del renamed["features.6.8.block.3.1.running_var"]
    with pytest.raises(
        UserError, match=r"weights\.pth does not fit.*features\.6\.8\.block\.3\.1\.running_var is missing"
    ):
        network.load_weights(renamed, "weights.pth")


def test_lite0_gives_192_channels_at_stride_32_and_three_scales():
    extractor = load_extractor("lite0", None, 3, CPU)
    assert extractor.name == "lite0"
    assert not extractor.network.training
    assert not any(parameter.requires_grad for parameter in extractor.parameters())
    images = draw(1, 2, 3, 128, 256, dtype=torch.float32)
    features = extractor(images)
    assert [tuple(f.shape) for f in features] == [(2, 192, 4, 8), (2, 192, 2, 4), (2, 192, 1, 2)]
    assert all(f.isfinite().all() and f.std() > 0 and not f.requires_grad for f in features)
    with torch.no_grad():  # every second, every fourth pixel
        torch.testing.assert_close(features[1], extractor.network(images[..., ::2, ::2]))
        torch.testing.assert_close(features[2], extractor.network(images[..., ::4, ::4]))


def test_smaller_scales_are_nearest_pixels_of_the_image():
    images = draw(2, 1, 3, 64, 96)
    scales = FeatureExtractor(torch.nn.Identity(), n_scales=4)(images)
    for s, scale in enumerate(scales):
        step = 2**s
        assert torch.equal(scale, images[..., ::step, ::step])
        assert torch.equal(scale, F.interpolate(images, scale_factor=1 / step, mode="nearest"))
