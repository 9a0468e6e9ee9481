"""CRN and DAGAN against numbers of the authors' own code (tests/parity), gradients and whole steps included."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from crn.training.crn import CompetitiveReconstructionNetwork
from crn.training.double_skip import DAGAN
from crn.training.networks import create_scheduler
from crn.training.skipnetworks import UnetGenerator, UnetGeneratorImproved, UpsampledConv2d, get_norm_layer
from crn.training.utils import stored_parameters
from tests.parity.cases import assert_float32, assert_gradients, assert_parity, case, draw, fill, filled


def make_step(model, optimizers, pair, x):
    """A step as train.py's loop makes it, without what surrounds it; the losses, by name."""
    for optimizer in optimizers:
        optimizer.zero_grad()
    found = {}
    for g, d in model.orders(pair):
        losses = model.losses(x, *model.passes(x, g, d))
        losses["generator"].backward()
        losses["discriminator"].backward()
        found[g, d] = {name: loss.item() for name, loss in losses.items()}
    for unit in {*pair}:
        optimizers[unit].step()
    model.finish_step(found)
    return losses


@pytest.mark.parametrize("name", ["crn_unet_batch", "crn_unet_improved_batch", "crn_unet_improved_instance"])
def test_unets(name):
    settings, arrays = case(name)
    unet = UnetGeneratorImproved if "improved" in name else UnetGenerator
    model = filled(unet(3, 3, settings["num_downs"], norm_layer=get_norm_layer(settings["norm"])), settings["keys"])
    x = draw(settings["input_seed"], *settings["shape"])
    output = model(x)
    assert_parity(output.flatten()[::11], arrays["output_first"])
    loss = F.l1_loss(output, x)
    assert_parity(loss, arrays["loss"])
    loss.backward()
    assert_gradients(dict(model.named_parameters()), arrays)
    with torch.no_grad():
        assert_parity(model.eval()(x).flatten()[::11], arrays["output_eval"])
        assert_float32(model.float()(x.float()).flatten()[::11], name, "output_eval")


def units_of(settings):
    model = CompetitiveReconstructionNetwork(
        settings["units"], settings["num_downs"], settings["improved"], settings["norm"],
        reconstruction_weight=settings["reconstruction_weight"], feedback_weight=settings["feedback_weight"],
        discrimination_weight=settings["discrimination_weight"],
    )  # fmt: skip
    model.load_state_dict(fill(model.state_dict()))
    return model.double().train()


def test_competitive_steps():
    settings, arrays = case("crn_step")
    model = units_of(settings)
    optimizers = [torch.optim.Adam(unit.parameters(), settings["lr"], fused=True) for unit in model.networks]
    for step, seed in enumerate(settings["input_seeds"]):
        make_step(model, optimizers, (0, 1), draw(seed, *settings["shape"]))
        for g, d in ((0, 1), (1, 0)):
            theirs = arrays[f"step{step}/gen{g}"]  # |x - G(x)|, |G(x) - D(G(x))|, |x - D(x)|, and the second again
            found = model.reconstruction_losses[g], model.reconstruction_losses[d], model.advantages[d]
            assert_parity(np.array(found), np.array([theirs[0], theirs[2], theirs[3] - theirs[2]]))
            assert theirs[1] == theirs[3]
    for i, unit in enumerate(model.competitive_units):
        assert_parity(sum(parameter.abs().sum() for parameter in unit.parameters()), arrays[f"paramsum/{i}"])
    model.best_gen, model.best_disc = settings["generator_for_scores"], settings["discriminator_for_scores"]
    with torch.no_grad():
        scores = model.eval().scores(draw(settings["eval_input_seed"], *settings["shape"]))
    assert_parity(scores["validation"], arrays["val_score"])
    assert_parity(scores["inference"], arrays["inference_score"])


def published_step(model, optimizers, pair, x):
    """The competition as published, every pass made: what ours must come to with fewer."""
    w_r, w_f, w_d = model.weights
    for optimizer in optimizers:
        optimizer.zero_grad()
    for g, d in (pair, pair[::-1]):
        generator, discriminator = model.competitive_units[g], model.competitive_units[d]
        rec = generator(x)
        (w_r * F.l1_loss(x, rec) + w_f * F.l1_loss(rec, discriminator(rec).detach())).backward()
        discriminator(x)
        (4 - w_d * F.l1_loss(rec.detach(), discriminator(rec.detach()))).backward()
    for unit in set(pair):
        optimizers[unit].step()


@pytest.mark.parametrize(
    ("norm", "improved", "pair"), [("batch", True, (1, 0)), ("instance", False, (0, 0)), ("image", True, (0, 1))]
)
def test_step_equals_the_published_passes(norm, improved, pair):
    """Also for a unit that plays both roles, and for instance norms."""
    torch.manual_seed(0)
    ours = CompetitiveReconstructionNetwork(len(set(pair)), 5, improved, norm, ngf=4).double()
    theirs = copy.deepcopy(ours)
    for step in range(2):
        x = draw(step, 2, 3, 32, 32)
        for model, call in ((ours, make_step), (theirs, published_step)):
            call(model, [torch.optim.SGD(unit.parameters(), 1e-2) for unit in model.networks], pair, x)
    for (name, one), other in zip(ours.state_dict().items(), theirs.state_dict().values()):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-10, msg=name)


def names_without_norms(levels, improved, gaps=False):
    """Parameters of a U-Net in the order of the spec's layers; gaps: our older ones, which kept the norms' places."""
    norm = ["norm"] if gaps else []
    up = ["upsample", "conv"] if improved else ["conv"]
    inside = {0: ["conv", "block", "relu", *up, "tanh"], levels - 1: ["leaky relu", "conv", "relu", *up, *norm]}
    names = []

    def walk(prefix, level):
        for place, layer in enumerate(inside.get(level, ["leaky relu", "conv", *norm, "block", "relu", *up, *norm])):
            if layer == "block":
                walk(f"{prefix}.model.{place}", level + 1)
            elif layer == "conv":
                names.append(f"{prefix}.model.{place}.weight")

    walk("model", 0)
    if not improved:
        names.append("model.model.3.bias")
    return names


@pytest.mark.parametrize("improved", [False, True])
@pytest.mark.parametrize("levels", [5, 7])
def test_names_without_norms(levels, improved):
    """Those of the published code, in which nothing takes a norm's place; our older names become them."""
    model = (UnetGeneratorImproved if improved else UnetGenerator)(3, 3, levels, 2, get_norm_layer("none"))
    names = names_without_norms(levels, improved)
    assert "model.model.1.model.2.model.1.weight" in names
    assert list(model.state_dict()) == names
    older = {f"competitive_units.0.{name}": torch.zeros(1) for name in names_without_norms(levels, improved, gaps=True)}
    for norm, expected in (("none", [f"competitive_units.0.{name}" for name in names]), ("batch", list(older))):
        assert list(stored_parameters({"model": older, "settings": {"norm": norm}})) == expected
    newer = dict.fromkeys(names, torch.zeros(1))
    assert list(stored_parameters({"model": newer, "settings": {"norm": "none"}})) == names


def test_norm_by_the_image_scores_as_it_trains():
    """Running statistics mix what units saw as generator and as discriminator: with them, the two modes differ."""
    torch.manual_seed(0)
    x = torch.randn(3, 3, 32, 32)
    for norm, alike in (("batch", False), ("instance", False), ("image", True)):
        unit = UnetGenerator(3, 3, 5, 4, norm_layer=get_norm_layer(norm))
        trained, scored = unit(x), unit.eval()(x)
        assert torch.allclose(trained, scored, atol=1e-5) == alike, norm
        if alike:  # and each image for itself
            torch.testing.assert_close(unit(x[:1]), scored[:1], rtol=1e-4, atol=1e-5)


def test_upsampling_is_part_of_the_convolution():
    torch.manual_seed(0)
    layer = UpsampledConv2d(3, 4, bias=True).double()
    x = torch.randn(2, 3, 5, 6, dtype=torch.double)
    plain = F.conv2d(F.interpolate(x, scale_factor=2), layer.weight, layer.bias, padding=1)
    for layer.worthwhile in (60, 61):  # of 2 x 5 x 6 pixels: with either kernel
        torch.testing.assert_close(layer(x), plain)


def test_dagan():
    settings, arrays = case("crn_dagan")
    model = DAGAN(
        6, adversarial_loss_weight=settings["adversarial_loss_weight"],
        contextual_loss_weight=settings["contextual_loss_weight"],
        discriminator_reconstruction_loss_weight=settings["discriminator_reconstruction_loss_weight"],
    )  # fmt: skip
    for network in ("generator", "discriminator"):
        filled(getattr(model, network), settings[f"{network}_keys"])
    model.load_state_dict(fill(model.state_dict()))
    x = draw(settings["input_seed"], *settings["shape"])
    optimizers = [torch.optim.SGD(network.parameters(), 0) for network in model.networks]
    found = make_step(model, optimizers, (0, 1), x)
    names = ("generator", "adversarial", "contextual", "discriminator", "discriminator_reconstruction")
    losses = [found[name].item() for name in names]
    adversarial, contextual, generator = arrays["generator_losses"]
    reconstruction, discrimination, discriminator = arrays["discriminator_losses"]
    assert adversarial == discrimination
    assert_parity(np.array(losses), np.array([generator, adversarial, contextual, discriminator, reconstruction]))
    with torch.no_grad():  # the running statistics have seen D's three passes
        model.eval()
        assert_parity(model.scores(x)["validation"], arrays["score"])
        assert_parity(model.generator(x).flatten()[::11], arrays["reconstruction"])
        assert_parity(model.discriminator(x)[0].flatten()[::11], arrays["discrimination"])
        assert_float32(model.float().discriminator(x.float())[0].flatten()[::11], "crn_dagan", "discrimination")


def test_dagans_step_equals_the_published_passes():
    """One network's loss does not reach the other one; D's running statistics see G(x) twice, then x."""
    torch.manual_seed(0)
    ours = DAGAN(5, ngf=4, adversarial_loss_weight=0.7, contextual_loss_weight=3.0).double()
    theirs = copy.deepcopy(ours)
    optimizers = [[torch.optim.SGD(network.parameters(), 1e-2) for network in m.networks] for m in (ours, theirs)]
    generator, discriminator = theirs.networks
    x = draw(0, 2, 3, 32, 32)
    make_step(ours, optimizers[0], (0, 1), x)

    rec = generator(x)
    (0.7 * F.mse_loss(rec, discriminator(rec)[0].detach()) + 3.0 * F.mse_loss(x, rec)).backward()
    optimizers[1][0].step()
    rec = rec.detach()
    optimizers[1][1].zero_grad()
    of_rec, of_x = discriminator(rec)[0], discriminator(x)[0]
    (F.mse_loss(of_x, x) - 0.7 * F.mse_loss(of_rec, rec)).backward()
    optimizers[1][1].step()
    for (name, one), other in zip(ours.state_dict().items(), theirs.state_dict().values()):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-10, msg=name)


def test_initial_weights():
    """Kaiming normal by fan_out for convolutions, zero biases, N(1, 0.02) for batch norms."""
    torch.manual_seed(0)
    for unet in (UnetGenerator, UnetGeneratorImproved):
        network = CompetitiveReconstructionNetwork(1, 5, unet.improved, ngf=16).networks[0]
        for name, module in network.named_modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                assert abs(module.weight.mean() - 1) < 0.02 and 0.005 < module.weight.std() < 0.05, name
                assert not module.bias.any(), name
            elif isinstance(module, (torch.nn.Conv2d, torch.nn.ConvTranspose2d)):
                # PyTorch's fan_out: the weight's first dimension times the kernel's size, of transposed ones, too
                fan_out = len(module.weight) * module.weight[0, 0].numel()
                assert module.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.1), name
                assert module.bias is None or not module.bias.any(), name


def test_learning_rates_are_those_of_pytorchs_schedulers():
    schedulers = torch.optim.lr_scheduler
    lr, factor, steps = 0.2, 0.3, [2, 3, 7]
    for name, create in (
        ("step", lambda optimizer: schedulers.MultiStepLR(optimizer, steps, factor)),
        ("exponential", lambda optimizer: schedulers.ExponentialLR(optimizer, factor)),
        ("cosine", lambda optimizer: schedulers.CosineAnnealingLR(optimizer, 9)),
        ("", lambda optimizer: schedulers.ConstantLR(optimizer, factor=1)),
    ):
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr)
        theirs, ours = create(optimizer), create_scheduler(name, lr, factor, steps, 9)
        for epoch in range(9):
            assert ours(epoch) == pytest.approx(theirs.get_last_lr()[0]), (name, epoch)
            optimizer.step()
            theirs.step()
