"""What all tests need."""

import signal

import pytest
import torch

# A shell starts background jobs with Ctrl-C ignored, and so would be every process that the tests start and interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def two_threads():
    """As many as the authors' numbers were computed with: other numbers of threads sum in another order."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)
