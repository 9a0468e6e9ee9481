"""Options of script_testing.py and script_eval_video.py."""

from pathlib import Path

from common.report import REPORT_HELP
from memae.options.base_options import HERE, BaseOptions, add_yes_no


class TestOptions(BaseOptions):
    """The original's testing options, and Backbone, BackboneDepth, precision, CacheGiB, WorstFrames, report."""

    __test__ = False  # not a test case, whatever pytest makes of the name
    description = "Score the videos in <DataRoot>/<Dataset>/Test with a trained model, or evaluate the scores."

    def __init__(self):
        super().__init__()
        add = self.parser.add_argument
        add("--Mode", choices=("eval",), default="eval", help="always eval")
        add("--BatchSize", type=int, default=1, help="clips per pass")
        add("--ModelFilePath", type=Path, help="checkpoint; unset: <ModelRoot>/<setting>.pt")
        add("--OutRoot", type=Path, default=HERE / "results", help="folder of the results")
        add("--WorstFrames", type=int, default=6, help="frames per video to draw with their error maps; 0: none")
        add_yes_no(self.parser, "--report", False, f"script_eval_video.py: {REPORT_HELP}")

    def parse(self, argv=None):
        """As `BaseOptions.parse`."""
        opt = super().parse(argv)
        self._require(opt, "WorstFrames", opt.WorstFrames >= 0, "at least 0")
        return opt
