"""Options that MemAE's scripts share, in the original's spelling and with its defaults. Imports no torch."""

import sys
from argparse import SUPPRESS, Namespace
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from common.cli import PRECISIONS, YES_NO, ArgumentParser, folder_name, multiple_of, number, whole
from common.files import UserError

HERE = Path(__file__).resolve().parents[1]  # memae/: default paths lie here wherever a script is started
# Of the backbones that can take the encoder's place, the default first.
DEPTHS = {"slowonly": (18, 34, 50, 101, 152), "csn": (152, 50, 101), "resnet3d": (18, 34, 50, 101, 152)}


class BaseOptions:
    """The options of all scripts. Those outside `only` keep their defaults: they are refused, or, with `silent`, taken
    without being shown, so that two scripts can be started with the same options."""

    def __init__(self, description: str, example: str, only: Collection[str] | None = None, silent: bool = False):
        self.parser, self.only, self.silent = ArgumentParser(description=description, example=example), only, silent
        add = self.group("data")
        add("--data", type=_data_folder, help="folder of a prepared data set; unset: <DataRoot>/<Dataset>")
        add("--DataRoot", type=Path, default=HERE / "dataset", help="folder of the prepared data sets")
        add("--Dataset", type=folder_name, default="UCSD_P2_256", help="folder in DataRoot, part of the setting's name")
        add("--ImgChnNum", type=int, choices=(1, 3), default=1, help="channels of the frames: 1 grey, 3 colour")
        frames = "frames of a clip, a multiple of 8 (the network halves time three times)"
        add("--FrameNum", type=multiple_of(8, 2**20), default=16, help=frames)

        add = self.group("network")
        add("--ModelName", choices=("MemAE", "AE"), default="MemAE", help="with or without memory")
        of_setting = "part of the setting's name (Conv3D for the original's AE)"
        add("--ModelSetting", type=folder_name, default="Conv3DSpar", help=of_setting)
        add("--Backbone", choices=("conv3d", *DEPTHS), default="conv3d", help="the encoder")
        add("--BackboneDepth", type=whole(0, 152), default=0, help="0: 18 for slowonly and resnet3d, 152 for csn")
        add("--MemDim", type=whole(1), default=2000, help="items of the memory")
        add("--ShrinkThres", type=number(0), default=0.0025, help="shrinkage threshold (lambda); 0: none")
        add("--EntropyLossWeight", type=number(0), default=0.0002, help="weight of the sparsity loss (alpha)")
        add("--Seed", "--seed", type=whole(0, 2**32 - 1), default=1, help="of initial weights and order of the clips")
        add("--Suffix", type=folder_name, default="Non", help="end of the setting's name")

        add = self.group("machine")
        add("--UseCUDA", **YES_NO, default=True, help="compute on the GPU; without one, on the CPU, saying so")
        add("--cpu", **YES_NO, default=False, help="use the CPU even where there is a GPU")
        add("--device", help="auto, cpu, cuda, cuda:1 or mps; unset: as --UseCUDA says")
        add("--IsDeter", "--deterministic", **YES_NO, default=True, help="on a GPU: the same numbers every time")
        add("--precision", choices=PRECISIONS, default="fp32", help="of the convolutions")
        add("--NumWorker", type=whole(0, 1024), default=1, help="threads that assemble batches ahead; 0: none")
        add("--CacheGiB", type=number(0), default=4.0, help="decoded frames beyond this lie in a temporary file")

    def group(self, title: str) -> Callable[..., None]:
        """What adds options to a new group of --help."""
        group = self.parser.add_argument_group(title)

        def add(name: str, *more: str, **options: Any) -> None:
            if self.only is None or name[2:] in self.only:
                group.add_argument(name, *more, **options)
            elif self.silent:
                group.add_argument(name, *more, **options | {"help": SUPPRESS})
            else:
                self.parser.set_defaults(**{name[2:]: options.get("default")})

        return add

    def parse(self, argv: list[str] | None = None) -> Namespace:
        """Settings of a command line (`sys.argv` unless given), and `given`, the names of the options on it.

        DataRoot and Dataset are those of --data, BackboneDepth is the one that 0 stands for (0 for conv3d), device the
        one that all options ask for. UserError for what makes no sense.
        """
        opt = self.parser.parse_args(argv)
        words = sys.argv[1:] if argv is None else argv
        given = {word[2:].split("=")[0] for word in words if word.startswith("--")}
        changed: dict[str, Any] = {"device": _device(opt, given), "BackboneDepth": _depth(opt)}
        if opt.data:
            if given & {"DataRoot", "Dataset"}:
                raise UserError("--data and --DataRoot or --Dataset contradict one another: give one of them")
            given |= {"DataRoot", "Dataset"}
            changed |= {"DataRoot": opt.data.parent, "Dataset": opt.data.name}
        return Namespace(**vars(opt) | changed, given=sorted(given))


def _data_folder(text: str) -> Path:
    path = Path(text).absolute()
    folder_name(path.name)
    return path


def _device(opt: Namespace, given: Collection[str]) -> str:
    asked = {"--cpu": "cpu"} if opt.cpu else {}
    if "UseCUDA" in given:
        asked[f"--UseCUDA {'yes' if opt.UseCUDA else 'no'}"] = "cuda" if opt.UseCUDA else "cpu"
    if opt.device and opt.device != "auto":
        asked[f"--device {opt.device}"] = opt.device
    if len({name.split(":")[0] for name in asked.values()}) > 1:
        raise UserError(f"{' and '.join(asked)} contradict one another: give one of them")
    return [opt.device or "cuda", *asked.values()][-1]  # --device alone may name one of several GPUs


def _depth(opt: Namespace) -> int:
    if opt.Backbone == "conv3d":
        if opt.BackboneDepth:
            raise UserError(f"--BackboneDepth {opt.BackboneDepth}: only {', '.join(DEPTHS)} have several depths")
        return 0
    depths = DEPTHS[opt.Backbone]
    depth = opt.BackboneDepth or depths[0]
    if depth not in depths:
        raise UserError(f"--BackboneDepth {depth}: {opt.Backbone} has the depths {', '.join(map(str, sorted(depths)))}")
    return depth
