"""Command-line options of MemAE's scripts, in the original's spelling and with its defaults."""

from memae.options.data_options import IndexOptions, PreparationOptions
from memae.options.testing_options import TestOptions, evaluation_options
from memae.options.training_options import TrainOptions

__all__ = ["IndexOptions", "PreparationOptions", "TestOptions", "TrainOptions", "evaluation_options"]
