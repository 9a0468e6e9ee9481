"""Options of script_testing.py, script_eval_video.py and script_export.py."""

from collections.abc import Collection
from pathlib import Path

from common.cli import REPORT_HELP, YES_NO
from memae.options.base_options import HERE, BaseOptions


class TestOptions(BaseOptions):
    """The original's testing options, and Backbone, BackboneDepth, cpu, precision, CacheGiB, WorstFrames, report."""

    __test__ = False  # not a test case, whatever pytest makes of the name

    def __init__(
        self,
        description: str = "Score the videos in <DataRoot>/<Dataset>/Test with a trained model.",
        example: str = "python memae/script_testing.py --Dataset mine --BatchSize 8",
        only: Collection[str] | None = None,
    ):
        super().__init__(description, example, only)
        add = self._group("testing")
        add("--Mode", choices=("eval",), default="eval", help="accepted, unused")
        add("--BatchSize", type=int, default=1, help="clips per pass")
        add("--ModelFilePath", type=Path, help="checkpoint; unset: <ModelRoot>/<setting>.pt")

        add = self._group("output")
        add("--OutRoot", type=Path, default=HERE / "results", help="folder of the results")
        add("--WorstFrames", type=int, default=6, help="frames per video to draw with their error maps; 0: none")
        add("--report", **YES_NO, default=False, help=f"script_eval_video.py: {REPORT_HELP}")

    def parse(self, argv=None):
        """As `BaseOptions.parse`."""
        opt = super().parse(argv)
        self._require(opt, "WorstFrames", opt.WorstFrames >= 0, "at least 0")
        return opt
