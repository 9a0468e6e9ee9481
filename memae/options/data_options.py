"""Options of script_img_prep.py and script_index_gen.py."""

from argparse import Namespace
from pathlib import Path

from common.cli import MAX_PIXELS, MAX_VALUE, multiple_of, whole
from common.files import UserError
from memae.options.base_options import BaseOptions


class PreparationOptions(BaseOptions):
    """Of script_img_prep.py."""

    def __init__(self):
        super().__init__(
            "Prepare videos for MemAE, in <DataRoot>/<Dataset>: frames of one size, numbered, and labels.",
            "python memae/script_img_prep.py --Train my_normal_videos --Test my_videos --Dataset mine",
            only={"data", "DataRoot", "Dataset", "ImgChnNum"},
        )
        add = self.parser.add_argument_group("videos").add_argument
        add("--Input", type=Path, help="folder with Train and Test in UCSD's layout; unset: --Train and --Test say")
        add("--Train", type=Path, help="normal videos to learn from: a folder of videos, or one video; unset: none")
        add("--Test", type=Path, help="videos to score; unset: none")
        normal = "normal videos that are not trained on, from which the alarm's threshold comes; unset: none"
        add("--Normal", type=Path, help=normal)
        labels = "labels of the test videos' frames, such as data/UCSDped2.m; unset: masks or none"
        add("--Labels", type=Path, help=labels)
        size = "width and height of the prepared frames, a multiple of 16 (of 32 for backbones)"
        add("--Size", type=multiple_of(16, 4096), default=256, help=size)
        add("--max_value", **MAX_VALUE)
        add("--max_pixels", **MAX_PIXELS)

    def parse(self, argv: list[str] | None = None) -> Namespace:
        """As `BaseOptions.parse`; --Input gives Train and Test."""
        opt = super().parse(argv)
        if opt.Input and (opt.Train or opt.Test):
            raise UserError("give --Input, or --Train and --Test, not both")
        if not (opt.Input or opt.Train or opt.Test or opt.Normal):
            raise UserError("nothing to prepare: give --Input, or --Train and --Test")
        parts = {"Train": opt.Input / "Train", "Test": opt.Input / "Test"} if opt.Input else {}
        train = parts.get("Train", opt.Train)
        if opt.Normal and train and opt.Normal.resolve() == train.resolve():
            raise UserError("--Normal is the folder to train on: the alarm needs normal videos that are not trained on")
        return Namespace(**vars(opt) | parts)


class IndexOptions(BaseOptions):
    """Of script_index_gen.py."""

    def __init__(self):
        super().__init__(
            "Write the index files of all clips of a prepared data set.",
            "python memae/script_index_gen.py --Dataset mine --Stride 2",
            only={"data", "DataRoot", "Dataset"},
        )
        add = self.parser.add_argument_group("clips").add_argument
        add("--FrameNum", type=whole(1), default=16, help="frames of a clip")
        add("--Stride", type=whole(1), default=1, help="frames between the starts of clips")
