"""Network, losses, steps and scores against the authors' numbers (tests/parity) and plain loops; masks are in
tests/test_properties.py, too."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from common import checkpoint
from common.checkpoint import shuffled
from riad.neuralnet import ae_l2, aesc_l2, layers, unet
from riad.neuralnet.aesc_l2 import from_authors
from riad.options import DEFAULTS, parse
from riad.source import losses, procedure
from riad.source.agent import Agent, learning_rate
from riad.source.datamanager import DataSet, Part
from riad.source.masks import content_keys, disjoint_masks, epoch_keys
from tests.parity.cases import assert_float32, assert_gradients, assert_parity, authors_state, case, draw


def load_authors(network):
    """The authors' weights, in float64."""
    checkpoint.load_parameters(network, from_authors(authors_state(case("riad_unet")[0]["keys"])), "parity")
    return network.double()


@pytest.mark.parametrize("fold_from", [0, 10**9], ids=["folded", "upsampled"])
def test_unet_losses_and_gradients(fold_from, monkeypatch):
    monkeypatch.setattr(layers, "FOLD_FROM", fold_from)
    settings, arrays = case("riad_unet")
    network = load_authors(aesc_l2.NeuralNet(1, settings["filters"][1:], settings["ksize"]))
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

    parameters = from_authors({key: key for key in settings["keys"]})  # {our name: the authors'}
    assert_gradients({parameters[name]: parameter for name, parameter in network.named_parameters()}, arrays)
    network.eval()
    with torch.no_grad():
        assert_parity(network(x).flatten()[::5], arrays["output_eval"])
        assert_float32(network.float()(x.float()).flatten()[::5], "riad_unet", "output_eval")


def test_losses():
    settings, arrays = case("riad_losses")
    a = draw(settings["a_seed"], *settings["shape"], low=0, high=1)
    b = (0.7 * a.float() + 0.3 * draw(settings["b_seed"], *settings["shape"], low=0, high=1).float()).double()
    msgms, ssim = losses.msgms_map(losses.magnitudes(a, 3), losses.magnitudes(b, 3)), losses.ssim_loss(a, b)
    assert_parity(msgms, arrays["msgms_map"])
    assert_parity(msgms.mean(), arrays["msgms_loss"])
    assert_parity(ssim, arrays["ssim_map"])
    assert_parity(ssim.mean(dim=(1, 2, 3)), arrays["ssim"])
    assert_parity(losses.l2_loss(a, b), arrays["l2"])


def test_scoring_pass():
    settings, arrays = case("riad_step")
    agent = Agent(parse([]), 1, torch.device("cpu"))
    load_authors(agent.network).eval()
    x = draw(settings["input_seed"], *settings["shape"], low=0, high=1).permute(0, 3, 1, 2)
    masks = torch.from_numpy(arrays["masks"]).double()[:, :, None]
    with torch.no_grad():
        outputs = agent.inpaint(x, masks)
        anomaly_map = agent.map(x, outputs)
    assert_parity((outputs * masks).mean(dim=1).permute(0, 2, 3, 1), arrays["y_hat"])  # the original's reconstruction
    assert_parity(anomaly_map.permute(0, 2, 3, 1), arrays["map"])
    assert_parity(anomaly_map.amax(dim=(1, 2, 3)), arrays["score"])


def test_masks_are_random_fresh_and_reproducible():
    keys = epoch_keys(0, 0, torch.arange(3000))
    hidden = 1 - disjoint_masks(keys, (28, 28), 7, 3)[:, 0, ::7, ::7].flatten(1)  # (3000, 16), 5 cells of 16 hidden
    assert hidden.mean(dim=0).sub(5 / 16).abs().max() < 0.04  # 4.7 standard deviations
    both = hidden.T @ hidden / 3000  # how often two cells are hidden together
    assert both.fill_diagonal_(5 / 16 * 4 / 15).sub(5 / 16 * 4 / 15).abs().max() < 0.025

    def masks(*key):
        return disjoint_masks(epoch_keys(*key, torch.tensor([7, 8])), (28, 28), 4, 3)

    assert torch.equal(masks(0, 0), masks(0, 0))
    assert not torch.equal(masks(0, 0)[0], masks(0, 0)[1])
    assert not torch.equal(masks(0, 0), masks(0, 1)) and not torch.equal(masks(0, 0), masks(1, 0))


@pytest.mark.parametrize("ksize", [1, 3, 5])
def test_folded_upsampling_is_exact(ksize, monkeypatch):
    layer = layers.Layer(3, 4, ksize, upsample=True).double()
    x = torch.randn(2, 3, 5, 6, dtype=torch.float64)
    expected = layer(x)
    monkeypatch.setattr(layers, "FOLD_FROM", 0)
    layer.bn.reset_running_stats()
    assert torch.allclose(layer(x), expected, rtol=1e-10, atol=1e-12)


def test_ssim_is_the_definition():
    x, y = torch.rand(2, 3, 20, 13, dtype=torch.float64), torch.rand(2, 3, 20, 13, dtype=torch.float64)
    offset = torch.arange(11, dtype=torch.float64) - 5
    window = torch.exp(-(offset[:, None] ** 2 + offset**2) / (2 * 1.5**2))
    window = (window / window.sum()).expand(3, 1, 11, 11)

    def mean(image):
        return F.conv2d(image, window, padding=5, groups=3)

    c1, c2 = 0.02**2, 0.06**2  # values 2 apart
    covariance = mean(x * y) - mean(x) * mean(y)
    variances = mean(x * x) - mean(x) ** 2 + mean(y * y) - mean(y) ** 2
    expected = (2 * mean(x) * mean(y) + c1) * (2 * covariance + c2)
    expected /= (mean(x) ** 2 + mean(y) ** 2 + c1) * (variances + c2)
    ours = losses.ssim_map(x.float(), y.float(), value_range=2)
    assert torch.allclose(ours.double(), expected, atol=1e-5)
    assert losses.ssim_map(x.float(), x.float()).sub(1).abs().max() < 1e-4


def test_msgms_compares_gradients_not_brightness():
    image = torch.rand(1, 1, 32, 32)
    shifted = losses.msgms_map(losses.magnitudes(image, 4), losses.magnitudes(image + 0.3, 4))
    assert shifted[:, :, 16, 16].abs().max() < 1e-4  # far from the border, where zero padding shows
    damaged = image.clone()
    damaged[:, :, 12:20, 12:20] = 0.5
    found = losses.msgms_map(losses.magnitudes(image, 4), losses.magnitudes(damaged, 4))[0, 0]
    assert found[12:20, 12:20].mean() > 5 * found[:6].mean()
    same = losses.msgms_loss(losses.magnitudes(image, 4), losses.magnitudes(image, 4))
    assert float(same) == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("size", [(28, 28), (17, 22)])
@pytest.mark.parametrize("module", [ae_l2, aesc_l2])
def test_seed_networks(module, size):
    network = module.NeuralNet(3, [4, 8, 8, 16], 5)
    output = network(torch.rand(2, 3, *size))
    assert output.shape == (2, 3, *size) and output.min() >= 1e-12 and output.max() <= 1
    assert network.dec_1_2.conv.in_channels == (8 if module is ae_l2 else 16)


def test_papers_network():
    network = unet.NeuralNet(3, [64, 128, 256, 512, 512])
    shapes = [tuple(down[0].conv.weight.shape) for down in network.down]
    assert shapes == [(64, 3, 3, 3), (128, 64, 4, 4), (256, 128, 4, 4), (512, 256, 4, 4), (512, 512, 4, 4)]
    assert [merge[0].conv.in_channels for merge in network.merge] == [1024, 512, 256, 128]
    output = network(torch.rand(2, 3, 32, 48))
    assert output.shape == (2, 3, 32, 48) and output.abs().max() <= 1


def test_learning_rates():
    assert learning_rate(0, 1.0, 299) == 1
    assert [learning_rate(1, 1.0, epoch) for epoch in (0.5, 5, 299)] == [0.1, 1, 1]
    assert [learning_rate(3, 1.0, epoch) for epoch in (0.5, 249.9, 250)] == [1, 1, 0.1]
    cosine = [learning_rate(2, 1.0, epoch) for epoch in (2.5, 5, 15, 24.9999, 25, 45, 64.9999, 65, 105, 145)]
    assert cosine == pytest.approx([0.5, 1, 0.6, 0.2, 1, 0.6, 0.2, 1, 0.6, 1], abs=1e-4)
    assert (
        learning_rate(2, 1.0, 299)
        == learning_rate(2, 1.0, 250)
        == pytest.approx(learning_rate(2, 1.0, 249.9999) / 10, rel=1e-3)
    )


def tiny(*argv: str, channels: int = 1) -> Agent:
    """A small network in float64: in float32, rounding is the processor's."""
    torch.manual_seed(0)
    settings = parse(["--filters", *["8"] * (5 if "paper" in argv else 4), *argv])
    agent = Agent(settings, channels, torch.device("cpu"))
    agent.network.double()
    return agent


def images_of(count: int, channels: int = 1, side: int = 28) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(256, (count, channels, side, side), dtype=torch.uint8, generator=generator)


def trained(place: Path, images: torch.Tensor, *argv: str) -> tuple[Agent, list[dict]]:
    """A tiny network trained by run.py's loop, and its history; one epoch unless `argv` says otherwise."""
    words = ["--epochs", "1", "--figures_every", "0", "--output", str(place), *argv]
    agent, labels = tiny(*words, channels=images.shape[1]), np.array([0, "paper" not in argv])
    settings = parse(["--filters", *["8"] * (5 if "paper" in argv else 4), *words])
    part = Part(images[:2], labels, labels, ["", ""])
    data = DataSet(images, part, part, ["0", "1"], "", "")
    return agent, procedure.training(settings, data, agent)


def test_repo_batch_is_one_step_per_slice(tmp_path):
    """The batched step against plain loops over images, cell sizes and masks, as the seed describes it."""
    images, words = images_of(4), ["--lr", "0.01"]
    ours, (entry,) = trained(tmp_path, images, *words)
    plain = tiny(*words)
    optimizer = torch.optim.SGD(plain.network.parameters(), 0.01, momentum=0.1)
    x = torch.stack([(image - image.min()) / (image.max() - image.min()) for image in images.double()])
    pairs = []  # (image, masked image), image-major
    for row in shuffled(4, 16, 0, 0)[0]:
        for k in (4, 7):
            masks = disjoint_masks(epoch_keys(0, 0, torch.tensor([row])), (28, 28), k, 3)[0]
            pairs += [(x[row], x[row] * mask) for mask in masks]
    total = []
    for start in range(0, len(pairs), len(images)):
        target, masked = (torch.stack(part) for part in zip(*pairs[start : start + len(images)]))
        output = plain.network(masked)
        msgms = losses.msgms_map(losses.magnitudes(target, 3), losses.magnitudes(output, 3)).mean()
        loss = ((target - output) ** 2).mean() + msgms + losses.ssim_loss(target, output).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total.append(loss.item())
    assert len(total) == 6 == ours.steps_per_batch
    assert entry["loss"] == pytest.approx(np.mean(total), rel=1e-9)
    for one, other in zip(ours.network.state_dict().values(), plain.network.state_dict().values()):
        assert torch.allclose(one, other, rtol=1e-9, atol=1e-10)


def papers_loss(x, reconstruction):
    """Loss and map of the paper's section 3.3, from gradient magnitudes and SSIM alone; images (1, C, H, W)."""
    grey, made = x.mean(dim=1, keepdim=True), reconstruction.mean(dim=1, keepdim=True)
    loss = ((x - reconstruction) ** 2).mean() + 1 - losses.ssim_map(x, reconstruction, value_range=2).mean()
    anomaly_map = 0
    for s in range(4):
        if s:
            grey, made = F.avg_pool2d(grey, 2), F.avg_pool2d(made, 2)
        g, g_r = losses.gradient_magnitude(grey), losses.gradient_magnitude(made)
        difference = 1 - (2 * g * g_r + 0.0026) / (g**2 + g_r**2 + 0.0026)
        loss = loss + difference.mean() / 4
        anomaly_map = anomaly_map + F.interpolate(difference, x.shape[2:], mode="bilinear") / 4
    return loss, anomaly_map[0, 0]


def test_papers_step_and_score(tmp_path):
    """The batched step and score against plain loops over images, cell sizes and masks."""
    words = ["--algorithm", "paper", "--mode_optim", "sgd", "--lr", "0.01", "--smooth", "5", "--weight_decay", "0"]
    words += ["--list_k", "4", "8"]
    images = images_of(2, 3, 32)
    ours, (entry,) = trained(tmp_path, images, *words)
    plain = tiny(*words, channels=3)
    x = images.double() / 255 * 2 - 1
    key = epoch_keys(0, 0, torch.tensor(shuffled(2, 4, 0, 0)[0][:1]))
    reached = {}  # {cell size: loss}, one of which the step has taken
    for k in (4, 8):
        masks = disjoint_masks(key, (32, 32), k, 3)[0]
        outputs = plain.network(torch.stack([image * mask for image in x for mask in masks])).unflatten(0, (2, 3))
        whole = [sum((1 - mask) * part for mask, part in zip(masks, parts)) for parts in outputs]
        reached[k] = sum(papers_loss(image[None], made[None])[0] for image, made in zip(x, whole)) / 2
    k = min(reached, key=lambda k: abs(reached[k].item() - entry["loss"]))
    assert entry["loss"] == pytest.approx(reached[k].item(), rel=1e-9)
    reached[k].backward()
    torch.optim.SGD(plain.network.parameters(), 0.01).step()
    for one, other in zip(ours.network.parameters(), plain.network.parameters()):
        assert torch.allclose(one, other, rtol=1e-9, atol=1e-10)

    _, maps = ours.score(images)
    for number, image in enumerate(images):
        total = 0
        for k in (4, 8):
            masks = disjoint_masks(content_keys(0, image[None]), (32, 32), k, 3)[0]
            with torch.no_grad():
                parts = [ours.network((x[number] * mask)[None])[0] for mask in masks]
            whole = sum((1 - mask) * part for mask, part in zip(masks, parts))
            total = total + papers_loss(x[number][None], whole[None])[1] / 2
        assert maps[number, 9, 20] == pytest.approx(total[7:12, 18:23].mean().item(), rel=1e-9)
        assert maps[number, 0, 31] == pytest.approx(total[:3, 29:].mean().item(), rel=1e-9)


def test_papers_batches_draw_all_cell_sizes(monkeypatch):
    agent, drawn = tiny("--algorithm", "paper", channels=3), []
    monkeypatch.setattr(agent, "masks", lambda keys, k: drawn.append(k) or torch.zeros(1, 1, 1, 32, 32))
    for row in range(200):
        list(agent.training_passes(images_of(1, 3, 32), torch.tensor([row]), 0))
    assert [30 < drawn.count(k) < 70 for k in (2, 4, 8, 16)] == [True] * 4  # 3.3 standard deviations


def test_seeds_score():
    """The mean over all masks of both cell sizes, of hidden and visible cells alike."""
    agent, images = tiny(), images_of(2)
    _, maps = agent.score(images)
    for image, anomaly_map in zip(images, maps):
        x = (image.double() - image.min()) / (image.max() - image.min())
        total = 0
        for k in (4, 7):
            for mask in disjoint_masks(content_keys(0, image[None]), (28, 28), k, 3)[0]:
                with torch.no_grad():
                    output = agent.network((x * mask)[None])
                total = total + losses.msgms_map(losses.magnitudes(x[None], 3), losses.magnitudes(output, 3))[0, 0]
        assert torch.allclose(anomaly_map, total / 6, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("algorithm", ["repo", "paper"])
def test_scores_do_not_depend_on_the_batch(algorithm):
    agent, images = tiny("--algorithm", algorithm, "--img_size", "32", channels=3), images_of(5, 3, 32)
    reconstructions, maps = agent.score(images)
    assert reconstructions.shape == (5, 3, 32, 32) and maps.shape == (5, 32, 32)
    assert reconstructions.min() >= 0 and reconstructions.max() <= 1 and maps.min() >= 0 and maps.max() <= 1
    alone = torch.cat([agent.score(image[None])[1] for image in images])
    assert torch.allclose(maps, alone, rtol=1e-9, atol=1e-10)
    assert not agent.network.training


@pytest.mark.parametrize("optimizer", ["sgd", "rms", "rmsprop", "adam"])
def test_loss_weights_and_rate_of_every_optimizer(optimizer, tmp_path):
    words = ["--mode_optim", optimizer, "--lr", "1e-3", "--weights", "2", "0", "0.5", "--mode_lr", "1", "--list_k", "7"]
    _, (entry,) = trained(tmp_path, images_of(4), *words, "--batch", "2")
    assert entry["loss"] == pytest.approx(2 * entry["l2"] + 0.5 * entry["ssim"], rel=1e-5)
    assert entry["rate"] == pytest.approx(1e-3 / 5)  # one epoch of the five that the warm-up takes


def test_defaults_are_the_originals():
    settings = parse([])
    wanted = {
        "gpu": None, "ngpu": 1, "select_norm": 1, "masking_mode": "disjoint_mask", "disjoint_n": 3, "nn": 2000,
        "ksize": 3, "lr": 5e-4, "mode_lr": 0, "mode_optim": "sgd", "batch": 16, "epochs": 300, "list_k": [4, 7],
    }  # fmt: skip
    assert {name: getattr(settings, name) for name in wanted} == wanted
    paper = parse(["--algorithm", "paper"])
    assert (paper.mode_optim, paper.lr, paper.weight_decay, paper.batch, paper.epochs) == ("adam", 1e-4, 1e-5, 4, 300)
    assert DEFAULTS["paper"]["list_k"] == paper.list_k == [2, 4, 8, 16]
