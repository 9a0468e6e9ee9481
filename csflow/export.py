"""Write a trained model as an ONNX file: python export.py --modelname dummy_test

Extractor and flow in one: image (batch, 3, height, width), RGB in 0..1 at the model's img_size (the normalisation is
inside), to score (batch,) and map (batch, height, width), score.py's for images of that size. The file's metadata tell
how images are resized, and the thresholds of the verdicts. Takes those options of main.py that say which model it is
and how it scores. Needs the packages onnx, onnxscript and onnxruntime.
"""

import sys
from argparse import Namespace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common.cli import answer_early, script
from csflow.config import MODEL_SETTINGS, Config, build_parser

OPTIONS = {"modelname", "output_path", *MODEL_SETTINGS, "extractor_weights", "score", "fpr"}


def parse(argv: list[str] | None) -> Namespace:
    """The options, of which `output` need not be there."""
    parser = build_parser(
        "Write a saved model, with its extractor, as an ONNX file.",
        "python csflow/export.py --modelname bottle",
        OPTIONS,
    )
    add = parser.add_argument_group("ONNX").add_argument
    add("--output", type=Path, help="the file; unset: results/<modelname>/<modelname>.onnx")
    return parser.parse_args(argv)


answer_early(__name__, parse)

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.scoring import SMOOTHED, Exported, examples, export
from csflow.model import CSFlow, FeatureExtractor
from csflow.score import load
from csflow.utils import anomaly_maps, image_scores


class Scorer(nn.Module):
    """Images (B, 3, H, W), RGB in 0..1 -> scores (B,) and maps (B, H, W)."""

    def __init__(self, extractor: FeatureExtractor, flow: CSFlow, config: Config):
        super().__init__()
        self.extractor, self.flow, self.score = extractor, flow, config.score
        self.register_buffer("mean", torch.tensor(config.norm_mean)[:, None, None])
        self.register_buffer("std", torch.tensor(config.norm_std)[:, None, None])

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        z, _ = self.flow(self.extractor((images - self.mean) / self.std))
        maps = F.interpolate(anomaly_maps(z)[:, None], images.shape[2:], mode="bilinear", align_corners=False)
        return image_scores(z)[self.score], maps[:, 0]


def scorer(options: Namespace) -> Exported:
    """The model that the options name, as it is exported."""
    given = vars(options)
    output = given.pop("output", None)
    model = load(**given, cpu=True)
    config, network = model.config, Scorer(model.extractor, model.flow, model.config)
    about = {"method": "CS-Flow", "channels": "RGB", "resizing": SMOOTHED, "score": config.score}
    about["extractor"] = config.extractor
    output = output or config.result_dir / f"{config.modelname}.onnx"
    return Exported(
        config.model_file, output, network, examples(3, *config.img_size), ["score", "map"], about, model.threshold
    )


@script
def main(argv: list[str] | None = None) -> None:
    """Export config.modelname."""
    export(scorer(parse(argv)))


if __name__ == "__main__":
    sys.exit(main())
