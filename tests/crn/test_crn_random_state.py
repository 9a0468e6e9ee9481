"""Random generators that go on where a checkpoint was saved."""

import random

import numpy as np
import torch
from torch import nn

from common import checkpoint
from common.runtime import seed_all
from crn.training.random_state import random_state, set_random_state


def draws() -> tuple:
    """Some numbers of each generator; an odd count of normal ones leaves a spare one in NumPy's and Python's state."""
    normal = [random.gauss(0, 1) for _ in range(3)], np.random.normal(size=3).tolist(), torch.randn(3).tolist()
    return random.random(), np.random.randint(1000, size=5).tolist(), torch.randperm(20).tolist(), *normal


def test_random_state_is_exact_through_a_file(tmp_path):
    seed_all(4)
    draws()
    checkpoint.save(tmp_path / "state", "test", random=random_state())
    expected = [draws() for _ in range(2)]
    seed_all(5)
    assert draws() != expected[0]
    set_random_state(checkpoint.load(tmp_path / "state", "test")["random"])
    assert [draws() for _ in range(2)] == expected


class Run:
    """A small training whose batches, noise and dropout are random."""

    def __init__(self):
        self.model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 1))
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=0.01, weight_decay=1e-3)
        self.scheduler = torch.optim.lr_scheduler.StepLR(self.optimizer, 3, gamma=0.5)

    def steps(self, count: int) -> list[float]:
        losses = []
        for _ in range(count):
            x = torch.from_numpy(np.random.normal(size=(6, 4)).astype(np.float32))
            loss = (self.model(x) - random.random()).square().mean()
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.scheduler.step()
            losses.append(loss.item())
        return losses

    def parts(self) -> dict:
        return {"model": self.model, "optimizer": self.optimizer, "scheduler": self.scheduler}


def test_a_resumed_training_is_the_uninterrupted_one(tmp_path):
    seed_all(1)
    whole = Run()
    expected = whole.steps(4) + whole.steps(6)

    seed_all(1)
    first = Run()
    losses = first.steps(4)
    states = {name: part.state_dict() for name, part in first.parts().items()}
    checkpoint.save(tmp_path / "run", "test", random=random_state(), **states)

    seed_all(99)
    second = Run()
    content = checkpoint.load(tmp_path / "run", "test")
    for name, part in second.parts().items():
        part.load_state_dict(content[name])
    set_random_state(content["random"])
    assert losses + second.steps(6) == expected
    for one, two in zip(second.model.state_dict().values(), whole.model.state_dict().values()):
        assert torch.equal(one, two)
    assert second.scheduler.get_last_lr() == whole.scheduler.get_last_lr()
