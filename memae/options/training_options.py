"""Options of script_training.py."""

import math
from argparse import Namespace
from pathlib import Path

from common.cli import YES_NO
from common.files import UserError
from memae.options.base_options import BaseOptions


class TrainOptions(BaseOptions):
    """The original's training options, and Backbone, BackboneDepth, BackboneWeights, cpu, precision,
    CacheGiB, sync_bn, resume."""

    def __init__(self):
        super().__init__(
            "Train MemAE or AE on the videos in <DataRoot>/<Dataset>/Train.",
            "python memae/script_training.py --Dataset mine --BatchSize 6 --EpochNum 40",
        )
        add = self._group("training")
        add("--Mode", choices=("train",), default="train", help="accepted, unused")
        add("--BatchSize", type=int, default=14, help="clips per step")
        add("--LR", type=float, default=1e-4, help="Adam's learning rate")
        add("--EpochNum", type=int, default=100, help="passes over the clips")
        add("--BackboneWeights", type=Path, help="checkpoint of mmaction2 to start the backbone from; unset: at random")
        add("--sync_bn", action="store_true", help="with torchrun on GPUs: batch norms over all processes' clips")
        add("--resume", "--Resume", **YES_NO, default=True, help="continue an interrupted training; no: start anew")

        add = self._group("output")
        add("--SaveCheckInterval", type=int, default=1, help="epochs between checkpoints")
        add("--SnapInterval", type=int, default=100, help="iterations between snapshots")
        add("--TextLogInterval", type=int, default=1, help="iterations between lines of the text log")
        add("--IsTbLog", **YES_NO, default=True, help="TensorBoard logs, where tensorboard is installed")
        add("--TBImgLogInterval", type=int, default=200, help="iterations between pictures of x and x_rec")

    def parse(self, argv: list[str] | None = None) -> Namespace:
        """As `BaseOptions.parse`."""
        opt = super().parse(argv)
        for name in ("EpochNum", "TextLogInterval", "SnapInterval", "TBImgLogInterval", "SaveCheckInterval"):
            self._require(opt, name, getattr(opt, name) >= 1, "at least 1")
        if opt.BackboneWeights and opt.Backbone == "conv3d":
            raise UserError("--BackboneWeights needs a --Backbone of mmaction2: slowonly, csn or resnet3d")
        self._require(opt, "LR", 0 < opt.LR < math.inf, "a number above 0")
        return opt
