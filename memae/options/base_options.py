"""Options that training and testing share."""

import math
import sys
from argparse import Namespace
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from common.cli import PRECISIONS, YES_NO, ArgumentParser
from common.files import UserError
from memae.models.backbones import PLANS

HERE = Path(__file__).resolve().parents[1]  # memae/: default paths lie here wherever a script is started


class BaseOptions:
    """The common part; `parse` returns the settings, with BackboneDepth resolved (0: none, for conv3d), and `given`,
    the names of those on the command line."""

    def __init__(self, description: str, example: str, only: Collection[str] | None = None):
        """only: the options that the script has, where it has not all; the other settings keep their defaults."""
        self.parser, self.only = ArgumentParser(description=description, example=example), only
        add = self._group("data")
        add("--DataRoot", type=Path, default=HERE / "dataset", help="folder of the prepared data sets")
        add("--Dataset", default="UCSD_P2_256", help="folder in DataRoot, and part of the setting's name")
        add("--ImgChnNum", type=int, choices=(1, 3), default=1, help="channels of the frames")
        add("--FrameNum", type=int, default=16, help="frames of a clip, a multiple of 8")

        add = self._group("network")
        add("--ModelName", choices=("MemAE", "AE"), default="MemAE", help="with or without memory")
        add("--ModelSetting", default="Conv3DSpar", help="part of the setting's name (Conv3D for the original's AE)")
        add("--Backbone", choices=("conv3d", *PLANS), default="conv3d", help="the encoder")
        add("--BackboneDepth", type=int, default=0, help="0: 18 for slowonly and resnet3d, 152 for csn")
        add("--MemDim", type=int, default=2000, help="items of the memory")
        add("--ShrinkThres", type=float, default=0.0025, help="shrinkage threshold (lambda); 0: none")
        add("--EntropyLossWeight", type=float, default=0.0002, help="weight of the sparsity loss (alpha)")
        add("--Seed", type=int, default=1, help="of the initial weights and the order of the clips")
        add("--Suffix", default="Non", help="end of the setting's name")
        add("--ModelRoot", type=Path, default=HERE / "models", help="folder of checkpoints and logs")

        add = self._group("machine")
        add("--UseCUDA", **YES_NO, default=True, help="compute on the GPU; without one, on the CPU, saying so")
        add("--cpu", action="store_true", help="use the CPU even where there is a GPU")
        add("--IsDeter", "--deterministic", **YES_NO, default=True, help="on a GPU: the same numbers every time")
        add("--precision", choices=tuple(PRECISIONS), default="fp32", help="of the convolutions")
        add("--NumWorker", type=int, default=1, help="threads that assemble batches ahead; 0: none")
        add("--CacheGiB", type=float, default=4.0, help="decoded frames beyond this lie in a temporary file")

    def _group(self, title: str) -> Callable:
        """What adds options to a new group of --help."""
        group = self.parser.add_argument_group(title)

        def add(name: str, *more: str, **options: Any) -> None:
            if self.only is None or name[2:] in self.only:
                group.add_argument(name, *more, **options)
            else:
                self.parser.set_defaults(**{name[2:]: options.get("default")})

        return add

    def parse(self, argv: list[str] | None = None) -> Namespace:
        """Settings from the command line (`sys.argv` unless given). UserError for what makes no sense."""
        opt = self.parser.parse_args(argv)
        words = sys.argv[1:] if argv is None else argv
        opt.given = sorted({word[2:].split("=")[0] for word in words if word.startswith("--")})
        for name in ("FrameNum", "MemDim", "BatchSize"):
            self._require(opt, name, getattr(opt, name) >= 1, "at least 1")
        for name in ("NumWorker", "BackboneDepth"):
            self._require(opt, name, getattr(opt, name) >= 0, "at least 0")
        self._resolve_depth(opt)
        for name in ("EntropyLossWeight", "ShrinkThres", "CacheGiB"):
            self._require(opt, name, 0 <= getattr(opt, name) < math.inf, "a number from 0 up")
        self._require(opt, "Seed", 0 <= opt.Seed < 2**32, "from 0 to 2^32 - 1")
        self._require(opt, "FrameNum", opt.FrameNum % 8 == 0, "a multiple of 8, as the network halves time three times")
        for name in ("ModelSetting", "Dataset", "Suffix"):
            value = getattr(opt, name)
            plain = value and not value.startswith(".") and not set(value) & set("/\\\0")
            self._require(opt, name, plain, "a plain name without slashes")
        return opt

    @staticmethod
    def _resolve_depth(opt: Namespace) -> None:
        """The default depth gets its number, so that it and the same number asked for are one setting."""
        if opt.Backbone == "conv3d":
            if opt.BackboneDepth:
                raise UserError(
                    f"--BackboneDepth {opt.BackboneDepth}: conv3d has one depth, use it with {', '.join(PLANS)}"
                )
            return
        plan = PLANS[opt.Backbone]
        opt.BackboneDepth = opt.BackboneDepth or plan.default_depth
        if opt.BackboneDepth not in plan.depths:
            known = ", ".join(map(str, plan.depths))
            raise UserError(f"--BackboneDepth {opt.BackboneDepth}: {opt.Backbone} has the depths {known}")

    @staticmethod
    def _require(opt: Namespace, name: str, fits: bool, expected: str) -> None:
        if not fits:
            raise UserError(f"--{name} {getattr(opt, name)}: expected {expected}")
