"""Memory addressing, entropy, initial values: against plain formulas on tiny tensors."""

import pytest
import torch
import torch.nn.functional as F

from memae.models import AutoEncoderCov3DMem, EntropyLoss, EntropyLossEncap, MemModule, MemoryUnit
from memae.models.entropy_loss import Entropy
from memae.models.memory_module import Addressing


def plain_addressing(similarity, threshold):
    w = similarity.softmax(dim=1)
    if threshold > 0:
        w = F.relu(w - threshold) * w / ((w - threshold).abs() + 1e-12)
        w = w / w.abs().sum(dim=1, keepdim=True).clamp(min=1e-12)
    return w


@pytest.mark.parametrize("threshold", [0.0, 0.05, 0.2])
def test_addressing_and_its_gradient(threshold):
    torch.manual_seed(0)
    similarity = torch.randn(7, 9, dtype=torch.float64, requires_grad=True)
    ours, plain = Addressing.apply(similarity, threshold), plain_addressing(similarity, threshold)
    torch.testing.assert_close(ours, plain, rtol=1e-12, atol=1e-12)
    weights = torch.randn_like(ours)
    one, other = (torch.autograd.grad((w * weights).sum(), similarity)[0] for w in (ours, plain))
    assert one.abs().max() > 1e-3
    torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)
    assert torch.autograd.gradcheck(lambda s: Addressing.apply(s, threshold), similarity)


def test_rows_below_the_threshold_are_zeros_without_gradient():
    similarity = torch.tensor([[0.0, 0.0, 0.0], [9.0, 0.0, 0.0]], requires_grad=True)
    w = Addressing.apply(similarity, 0.4)
    assert torch.equal(w[0].detach(), torch.zeros(3))
    assert w[1].tolist() == pytest.approx([1, 0, 0])
    w.square().sum().backward()
    assert torch.equal(similarity.grad[0], torch.zeros(3)) and similarity.grad.isfinite().all()


@pytest.mark.parametrize("shape", [(2, 4, 5), (2, 4, 3, 5), (2, 4, 2, 3, 5)])
def test_memory_treats_each_position_alike(shape):
    torch.manual_seed(0)
    module = MemModule(mem_dim=6, fea_dim=4, shrink_thres=0.1)
    z = torch.randn(shape)
    out = module(z)
    assert out["output"].shape == shape and out["att"].shape == (2, 6, *shape[2:])
    position = (1, slice(None), *(n - 1 for n in shape[2:]))
    alone = module.memory(z[position][None])
    torch.testing.assert_close(out["output"][position], alone["output"][0])
    torch.testing.assert_close(out["att"][position], alone["att"][0])
    torch.testing.assert_close(alone["output"], alone["att"] @ module.memory.weight)


def test_memory_refuses_other_codes():
    module = MemModule(mem_dim=6, fea_dim=4)
    for shape in ((2, 4), (2, 5, 3), (1, 4, 1, 1, 1, 1)):
        with pytest.raises(ValueError, match="expected"):
            module(torch.zeros(shape))


def test_initial_values():
    torch.manual_seed(0)
    weight = MemoryUnit(500, 16).weight
    assert weight.abs().max() <= 0.25 and weight.abs().max() > 0.24
    model = AutoEncoderCov3DMem(1, 10)
    for layer in (model.encoder[3], model.decoder[3]):
        assert layer.weight.std().item() == pytest.approx(0.02, rel=0.02)
        assert layer.bias.abs().max() > 0
    norm = model.encoder[7]
    assert norm.weight.mean().item() == pytest.approx(1, abs=0.01) and norm.weight.std().item() == pytest.approx(
        0.02, rel=0.2
    )
    assert not norm.bias.any()


def test_entropy_is_that_of_the_formula():
    w = torch.tensor([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]], dtype=torch.float64, requires_grad=True)
    plain = -(w * (w + 1e-12).log()).sum(dim=1).mean()
    loss = EntropyLoss()(w)
    assert loss.item() == pytest.approx(plain.item(), rel=1e-9)
    assert loss.item() == pytest.approx(0.5 * torch.log(torch.tensor(2.0)).item(), rel=1e-6)
    one, other = (torch.autograd.grad(value, w)[0] for value in (loss, plain))
    torch.testing.assert_close(one, other)
    positive = torch.rand(4, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: Entropy.apply(v, 1e-12), positive)
    att = torch.rand(2, 3, 2, 2)
    assert EntropyLossEncap()(att).item() == pytest.approx(
        EntropyLoss()(att.permute(0, 2, 3, 1).reshape(-1, 3)).item(), rel=1e-6
    )


def test_the_backward_pass_keeps_two_arrays_of_weights():
    """Of arrays with a value per position and item, w and w_hat: one more would be 57 MB at the paper's size."""
    module, entropy = MemModule(mem_dim=64, fea_dim=8), EntropyLossEncap()
    z = torch.randn(2, 8, 2, 5, 5).contiguous(memory_format=torch.channels_last_3d).requires_grad_()
    kept = {}

    def note(tensor):
        if tensor.numel() == 100 * 64:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        out = module(z)
        loss = out["output"].square().mean() + entropy(out["att"])
    assert len(kept) == 2
    loss.backward()
    assert z.grad.abs().sum() > 0


def test_nothing_is_copied_in_channels_last_memory():
    module = MemModule(mem_dim=10, fea_dim=8)
    z = torch.randn(2, 8, 2, 4, 4).contiguous(memory_format=torch.channels_last_3d)
    rows = z.movedim(1, -1).reshape(-1, 8)
    assert rows.data_ptr() == z.data_ptr()
    assert module(z)["output"].is_contiguous(memory_format=torch.channels_last_3d)
