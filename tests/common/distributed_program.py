"""What tests/common/test_distributed.py starts with torchrun: every process writes what it found to argv[1]; with
"fails" in its place, one process fails and the other waits for it."""

import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import torch
from torch import nn

from common import distributed
from common.cli import progress, say, script
from common.files import UserError, write_json


def main() -> None:
    device = distributed.join(torch.device("cpu"))
    folder = Path(sys.argv[1])
    rank, size = distributed.rank(), distributed.size()
    with distributed.first_alone():
        (folder / f"met_by_{rank}").mkdir()
        found = sorted(path.name for path in folder.glob("met_by_*"))

    torch.manual_seed(rank)  # the first process's parameters count
    network = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    spare = nn.Linear(1, 1)  # takes no part
    model = nn.ModuleList([network, spare])
    model.forward = lambda x: network(x)
    wrapped = distributed.parallel(model, unused=True)
    data = torch.linspace(-1, 1, 15).view(5, 3)  # 5 does not divide by the processes

    x, weight = distributed.weighted_share(data)
    loss = weight * wrapped(x).square().mean()
    loss.backward()
    by_wrapper = [parameter.grad.clone() for parameter in network.parameters()]

    torch.manual_seed(0)
    alone = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    whole = alone(data).square().mean()
    whole.backward()
    wanted = [parameter.grad for parameter in alone.parameters()]

    def furthest(gradients) -> float:
        return max((one - other).abs().max().item() for one, other in zip(gradients, wanted))

    try:
        distributed.parallel(nn.BatchNorm2d(1), sync_bn=True)
        refusal = ""
    except UserError as error:
        refusal = str(error)
    say("said once")
    list(progress(range(2), "not shown by the others", every=0))
    write_json(folder / "shared.json", rank)  # the first process's alone is kept
    (folder / f"result_{rank}.json").write_text(
        json.dumps(
            {
                "size": size,
                "found": found,
                "loss": [distributed.mean_of(loss.item(), device), whole.item()],
                "by_wrapper": furthest(by_wrapper),
                "few": distributed.weighted_share([7])[1],
                "anywhere": [distributed.anywhere(rank == 1, device), distributed.anywhere(False, device)],
                "gathered": [
                    distributed.gathered(np.array(distributed.share(range(n)), dtype=np.int64).reshape(-1, 1))
                    .ravel()
                    .tolist()
                    for n in (5, 1)
                ],
                "refusal": refusal,
            }
        )
    )


@script(several=True)
def fail(argv: list[str] | None = None) -> None:
    device = distributed.join(torch.device("cpu"))
    torch.distributed.destroy_process_group = lambda: time.sleep(600)  # NCCL's waits for the others
    if not distributed.rank():
        raise UserError("the disk is full")
    distributed.mean_of(1.0, device)


if __name__ == "__main__":  # functions, as in every script: what they leave behind would hold the process group at exit
    sys.exit(fail() if sys.argv[1] == "fails" else main())
