"""Two processes have the gradients of one, in every method's network; batch norms in eval mode."""

import os
import socket

import pytest
import torch
import torch.nn.functional as F

from common import distributed
from tests.robustness.processes import context


def csflow():
    from csflow.model import CSFlow
    from csflow.utils import get_loss

    x = [torch.randn(3, 4, 4 >> s, 4 >> s) for s in range(3)]
    return CSFlow(4, 2, 8, [3, 5], 3.0), x, lambda model, *part: get_loss(*model(list(part)))


def crrn(mode="ConvConjLSTM", is_attn=True):
    from crrn.model.ConvRRN import ST_EncDec

    network = ST_EncDec(mode, [1, 4, 4], [5, 5], 2, is_attn)
    return network, [torch.randn(3, 4, 1, 13, 17)], lambda model, part: F.mse_loss(model(part), part)


def crrn_with_parameters_that_take_no_part():
    return crrn("ConvSTLSTM", False)


def memae():
    from memae.models import AutoEncoderCov3DMem, EntropyLossEncap

    def loss(model, part):
        out = model(part)
        return F.mse_loss(out["output"], part) + 0.1 * EntropyLossEncap()(out["att"])

    return AutoEncoderCov3DMem(1, 10, 0.01), [torch.randn(3, 1, 8, 16, 16)], loss


def riad():
    from riad.neuralnet import aesc_l2
    from riad.source.losses import l2_loss

    network = aesc_l2.NeuralNet(1, [4, 4, 4, 4], 3)
    return network, [torch.rand(3, 1, 16, 16)], lambda model, part: l2_loss(part, model(part)).mean()


def gradients(model) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def furthest(alone: dict, together: dict) -> float:
    assert len(alone) > 3 and max(value.abs().max() for value in alone.values()) > 1e-3
    return max((together[key] - value).abs().max().item() for key, value in alone.items())


def difference(make) -> float:
    """Between the gradients of one process and of two."""
    torch.manual_seed(0)
    model, inputs, loss_of = make()
    model.eval()
    loss_of(model, *inputs).backward()
    alone = gradients(model)
    model.zero_grad()
    parts, weights = zip(*(distributed.weighted_share(x) for x in inputs))
    wrapped = distributed.parallel(model, unused="no_part" in make.__name__)
    (weights[0] * loss_of(wrapped, *parts)).backward()
    return furthest(alone, gradients(model))


def crn_step(norm, x, weight):
    """After CRN's passes and backward passes, with its own averages: it passes several times through each network."""
    from crn.training.crn import CompetitiveReconstructionNetwork
    from crn.training.statistics import average_gradients

    torch.manual_seed(0)
    model = CompetitiveReconstructionNetwork(2, 5, norm=norm, ngf=2)
    found = {}
    for g, d in model.orders((0, 1)):
        losses = {name: weight * loss for name, loss in model.losses(x, *model.passes(x, g, d)).items()}
        (losses["generator"] + losses["discriminator"]).backward()
        found[g, d] = {name: distributed.mean_of(loss.item(), x.device) for name, loss in losses.items()}
    average_gradients(model.parameters())
    model.finish_step(found)
    return model


def crn() -> dict[str, float]:
    """Gradients and what units are chosen by, without norms; running statistics, which are to be the same in both."""
    torch.manual_seed(0)
    x = torch.rand(3, 3, 32, 32)
    alone, together = crn_step("none", x, 1.0), crn_step("none", *distributed.weighted_share(x))
    noted = [torch.tensor(model.reconstruction_losses + model.advantages) for model in (alone, together)]
    normed = crn_step("batch", *distributed.weighted_share(x))
    rows = distributed.gathered(torch.cat([b.float().flatten() for b in normed.buffers()])[None].numpy())
    assert len(rows) == 2 and rows.std() > 0
    return {
        "crn": furthest(gradients(alone), gradients(together)),
        "crn, what units are chosen by": (noted[1] - noted[0]).abs().max().item(),
        "crn, statistics of batch norms": float(abs(rows[1] - rows[0]).max()),
    }


def work(rank: int, port: int, results) -> None:
    """One of two processes, as torchrun starts them; the first one tells how far the gradients are from its own."""
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in names.items()})
    os.environ.update(MASTER_ADDR="127.0.0.1", TORCHELASTIC_RUN_ID="test")
    torch.set_num_threads(1)
    distributed.join(torch.device("cpu"))
    methods = (csflow, crrn, crrn_with_parameters_that_take_no_part, memae, riad)
    found = {make.__name__: difference(make) for make in methods} | crn()
    if not rank:
        results.put(found)


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="PyTorch without gloo")
def test_gradients_of_two_processes():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    results = context.SimpleQueue()
    processes = [context.Process(target=work, args=(rank, port, results)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(200)
    assert [process.exitcode for process in processes] == [0, 0]
    found = results.get()
    assert len(found) == 8 and max(found.values()) < 1e-5, found
