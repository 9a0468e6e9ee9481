"""Command-line options of MemAE's scripts, in the original's spelling and with its defaults."""

from memae.options.testing_options import TestOptions
from memae.options.training_options import TrainOptions

__all__ = ["TestOptions", "TrainOptions"]
