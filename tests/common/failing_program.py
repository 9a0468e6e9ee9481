"""What tests/common/test_distributed.py starts with torchrun: one process fails, the other waits for it."""

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

from common import distributed
from common.cli import script
from common.files import UserError


@script(several=True)
def main(argv: list[str] | None = None) -> None:
    device = distributed.join(torch.device("cpu"))
    torch.distributed.destroy_process_group = lambda: time.sleep(600)  # NCCL's waits for the others
    if not distributed.rank():
        raise UserError("the disk is full")
    distributed.mean_of(1.0, device)


if __name__ == "__main__":
    sys.exit(main())
