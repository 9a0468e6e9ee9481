"""Two processes have the gradients of one, in every method's network."""

import json
import subprocess
import sys
from pathlib import Path


def test_gradients_of_two_processes():
    program = Path(__file__).with_name("distributed_gradients.py")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", program]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout.splitlines()[-1])
    assert len(found) >= 4 and max(found.values()) < 1e-5, found
