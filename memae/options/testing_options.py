"""Options of script_testing.py, script_eval_video.py and script_export.py."""

from argparse import SUPPRESS
from collections.abc import Collection
from pathlib import Path

from common.cli import REPORT_HELP, YES_NO, share, whole
from memae.options.base_options import HERE, BaseOptions

# What script_eval_video.py uses; it takes the rest, too.
EVALUATION = {
    "data", "DataRoot", "Dataset", "ImgChnNum", "FrameNum", "ModelName", "ModelSetting", "Backbone", "BackboneDepth",
    "MemDim", "ShrinkThres", "EntropyLossWeight", "Seed", "Suffix", "UseCUDA", "cpu", "device", "IsDeter", "precision",
    "ModelRoot", "ModelFilePath", "OutRoot", "report", "fpr",
}  # fmt: skip


class TestOptions(BaseOptions):
    """The original's testing options, and more."""

    __test__ = False  # not a test case, whatever pytest makes of the name

    def __init__(
        self,
        description: str = "Score the videos in <DataRoot>/<Dataset>/Test with a trained model.",
        example: str = "python memae/script_testing.py --Dataset mine --BatchSize 8",
        only: Collection[str] | None = None,
        silent: bool = False,
    ):
        super().__init__(description, example, only, silent)
        add = self.group("testing")
        add("--Mode", choices=("eval",), default="eval", help=SUPPRESS)  # the original's, unused
        add("--BatchSize", type=whole(1), default=1, help="clips per pass")
        add("--ModelRoot", type=Path, default=HERE / "models", help="folder of the trained models")
        add("--ModelFilePath", "--checkpoint", type=Path, help="trained model; unset: <ModelRoot>/<setting>.pt")

        add = self.group("output")
        add("--OutRoot", "--output", type=Path, default=HERE / "results", help="folder of the results")
        worst = "frames per video to draw with their error maps; 0: none"
        add("--WorstFrames", type=whole(0, 1000), default=6, help=worst)
        # script_testing.py takes it, too, so that both can be started with the same options.
        alarms = "share of normal clips that may raise an alarm; its threshold comes from the videos in Normal"
        add("--fpr", type=share, default=0.01, help=alarms if only else SUPPRESS)
        add("--report", **YES_NO, default=False, help=REPORT_HELP if only else SUPPRESS)


def evaluation_options() -> TestOptions:
    """Of script_eval_video.py."""
    return TestOptions(
        "Evaluate the scores of script_testing.py, with the same options.",
        "python memae/script_eval_video.py --Dataset mine --report",
        only=EVALUATION,
        silent=True,
    )
