"""What test_memae_scripts.py starts with torchrun: gradients against one process's, then training and testing.

argv: folder for furthest_<rank>.json, the largest difference of a gradient; arguments of both scripts, as JSON.
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

from common import distributed
from memae import script_testing, script_training
from memae.options import TrainOptions
from memae.utils import make_model, reconstruct

folder, (training, testing) = Path(sys.argv[1]), json.loads(sys.argv[2])
device = distributed.join(torch.device("cpu"))
opt = TrainOptions().parse(training)
torch.manual_seed(0)
model = make_model(opt).eval()  # batch norms of shares are other ones than of the whole
clips = torch.rand(3, 1, 16, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1  # 3 do not divide by 2


def gradients(network, x, weight):
    model.zero_grad()
    losses = script_training.losses_of(*reconstruct(network, x), x, opt.EntropyLossWeight)
    (weight * losses["loss"]).backward()
    return [parameter.grad.clone() for parameter in model.parameters()]


wanted = gradients(model, clips, 1.0)
found = gradients(distributed.parallel(model), *distributed.weighted_share(clips))
furthest = max((one - other).abs().max().item() for one, other in zip(found, wanted))
(folder / f"furthest_{distributed.rank()}.json").write_text(json.dumps(furthest))

# join() in the scripts finds the processes met already.
distributed.join = lambda device: device
sys.exit(script_training.main(training) or script_testing.main(testing))
