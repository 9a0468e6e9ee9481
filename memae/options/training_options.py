"""Options of script_training.py."""

from argparse import SUPPRESS, Namespace
from pathlib import Path

from common.cli import MINUTES, YES_NO, number, positive, whole
from common.files import UserError
from memae.options.base_options import HERE, BaseOptions


class TrainOptions(BaseOptions):
    """The original's training options, and more."""

    def __init__(self):
        super().__init__(
            "Train MemAE or AE on the videos in <DataRoot>/<Dataset>/Train.",
            "python memae/script_training.py --Dataset mine --BatchSize 6 --EpochNum 40",
        )
        add = self.group("training")
        add("--Mode", choices=("train",), default="train", help=SUPPRESS)  # the original's, unused
        add("--BatchSize", type=whole(1), default=14, help="clips per step")
        add("--LR", type=positive, default=1e-4, help="Adam's learning rate")
        add("--EpochNum", type=whole(1), default=100, help="passes over the clips")
        add("--BackboneWeights", type=Path, help="checkpoint of mmaction2 to start the backbone from; unset: at random")
        add("--sync_bn", action="store_true", help="with torchrun on GPUs: batch norms over all processes' clips")
        add("--resume", "--Resume", **YES_NO, default=True, help="continue an interrupted training; no: start again")

        add = self.group("output")
        add("--ModelRoot", "--output", type=Path, default=HERE / "models", help="folder of checkpoints and logs")
        add("--save_every", type=number(0), default=60.0, help="seconds between saves for resuming")
        add("--minutes", **MINUTES)
        add("--SaveCheckInterval", type=whole(1), default=1, help="epochs between checkpoints")
        add("--SnapInterval", type=whole(1), default=100, help="iterations between snapshots")
        add("--TextLogInterval", type=whole(1), default=1, help="iterations between lines of the text log")
        add("--IsTbLog", **YES_NO, default=True, help="TensorBoard logs, where tensorboard is installed")
        add("--TBImgLogInterval", type=whole(1), default=200, help="iterations between pictures of x and x_rec")

    def parse(self, argv: list[str] | None = None) -> Namespace:
        """As `BaseOptions.parse`."""
        opt = super().parse(argv)
        if opt.BackboneWeights and opt.Backbone == "conv3d":
            raise UserError("--BackboneWeights needs a --Backbone of mmaction2: slowonly, csn or resnet3d")
        return opt
