"""What tests/test_distributed_gradients.py starts with torchrun: one backward pass of every method's network in two
processes, batch norms in eval mode; the first process prints, per method, how far the gradients are from its own."""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import torch.nn.functional as F

from common import distributed
from crn.training.crn import CompetitiveReconstructionNetwork
from crrn.model.ConvRRN import ST_EncDec
from csflow.model import CSFlow
from csflow.utils import get_loss
from memae.models import AutoEncoderCov3DMem, EntropyLossEncap
from riad.neuralnet import aesc_l2
from riad.source.losses import l2_loss


def csflow():
    x = [torch.randn(3, 4, 4 >> s, 4 >> s) for s in range(3)]
    return CSFlow(4, 2, 8, [3, 5], 3.0), x, lambda model, *part: get_loss(*model(list(part)))


def crrn(mode, is_attn):
    x = [torch.randn(3, 4, 1, 13, 17)]
    network = ST_EncDec(mode, [1, 4, 4], [5, 5], 2, is_attn)
    return network, x, lambda model, part: F.mse_loss(model(part), part)


def memae():
    def loss(model, part):
        out = model(part)
        return F.mse_loss(out["output"], part) + 0.1 * EntropyLossEncap()(out["att"])

    return AutoEncoderCov3DMem(1, 10, 0.01), [torch.randn(3, 1, 8, 16, 16)], loss


def riad():
    network = aesc_l2.NeuralNet(1, [4, 4, 4, 4], 3)
    return network, [torch.rand(3, 1, 16, 16)], lambda model, part: l2_loss(part, model(part)).mean()


METHODS = {
    "csflow": csflow,
    "crrn": lambda: crrn("ConvConjLSTM", True),
    "crrn, parameters that take no part": lambda: crrn("ConvSTLSTM", False),
    "memae": memae,
    "riad": riad,
}


def crn_step(norm, x, weight) -> CompetitiveReconstructionNetwork:
    """After CRN's step, which averages by itself, since it passes several times through each network."""
    torch.manual_seed(0)
    model = CompetitiveReconstructionNetwork(2, 5, norm=norm, ngf=2)
    optimizers = [torch.optim.SGD(unit.parameters(), 0.0) for unit in model.networks]
    model.training_step(x, optimizers, (0, 1), torch.amp.GradScaler("cpu", enabled=False), weight=weight)
    return model


def crn() -> dict[str, float]:
    """Gradients and what units are chosen by, without norms; running statistics, which are to be the same in both."""
    x = torch.rand(3, 3, 32, 32)
    alone, together = crn_step("none", x, 1.0), crn_step("none", *distributed.weighted_share(x))
    after = gradients(together)
    far = max((after[key] - value).abs().max().item() for key, value in gradients(alone).items())
    noted = [torch.tensor(model.reconstruction_losses + model.advantages) for model in (alone, together)]
    normed = crn_step("batch", *distributed.weighted_share(x))
    statistics = torch.cat([b.float().flatten() for b in normed.buffers()])
    rows = distributed.gathered(statistics[None].numpy())
    assert len(rows) == 2 and rows.std() > 0
    return {
        "crn": far,
        "crn, what units are chosen by": (noted[1] - noted[0]).abs().max().item(),
        "crn, statistics of batch norms": float(abs(rows[1] - rows[0]).max()),
    }


def gradients(model) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


device = distributed.join(torch.device("cpu"))
found = {}
for name, make in METHODS.items():
    torch.manual_seed(0)
    model, inputs, loss_of = make()
    model.eval()
    loss_of(model, *inputs).backward()
    alone = gradients(model)
    model.zero_grad()
    parts, weights = zip(*(distributed.weighted_share(x) for x in inputs))
    wrapped = distributed.parallel(model, unused="no part" in name)
    (weights[0] * loss_of(wrapped, *parts)).backward()
    together = gradients(model)
    found[name] = max((together[key] - value).abs().max().item() for key, value in alone.items())
    assert len(alone) > 3 and max(value.abs().max().item() for value in alone.values()) > 1e-3, name
found |= crn()
if not distributed.rank():
    print(json.dumps(found))
