"""Write a trained model as an ONNX file: python export.py --modelname dummy_test

Extractor and flow in one: image (batch, 3, height, width), RGB in 0..1 at the model's img_size (the normalisation is
inside), to score (batch,) and map (batch, height, width), score.py's for images of that size. The file's metadata tell
how images are resized, and the thresholds of the verdicts. Takes those options of main.py that say which model it is
and how it scores. Needs the packages onnx, onnxscript and onnxruntime.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.cli import script
from common.onnx_export import SMOOTHED, examples, export
from csflow.config import MODEL_SETTINGS, Config, build_parser
from csflow.model import CSFlow, FeatureExtractor
from csflow.score import load
from csflow.utils import anomaly_maps, image_scores

OPTIONS = {"modelname", "output_path", *MODEL_SETTINGS, "extractor_weights", "score", "fpr"}


class Scorer(nn.Module):
    """Images (B, 3, H, W), RGB in 0..1 -> scores (B,) and maps (B, H, W)."""

    def __init__(self, extractor: FeatureExtractor, flow: CSFlow, config: Config):
        super().__init__()
        self.extractor, self.flow, self.score = extractor, flow, config.score
        self.register_buffer("mean", torch.tensor(config.norm_mean)[:, None, None])
        self.register_buffer("std", torch.tensor(config.norm_std)[:, None, None])

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """See the class."""
        z, _ = self.flow(self.extractor((images - self.mean) / self.std))
        maps = F.interpolate(anomaly_maps(z)[:, None], images.shape[2:], mode="bilinear", align_corners=False)
        return image_scores(z)[self.score], maps[:, 0]


@script
def main(argv: list[str] | None = None) -> None:
    """Export config.modelname."""
    parser = build_parser(
        "Write a saved model, with its extractor, as an ONNX file.",
        "python csflow/export.py --modelname bottle",
        OPTIONS,
    )
    add = parser.add_argument_group("ONNX").add_argument
    add("--output", type=Path, help="the file; unset: results/<modelname>/<modelname>.onnx")
    options = vars(parser.parse_args(argv))
    output = options.pop("output", None)
    model = load(**options, cpu=True)
    config = model.config
    output = output or config.result_dir / f"{config.modelname}.onnx"
    export(
        output, config.model_file, Scorer(model.extractor, model.flow, config), examples(3, *config.img_size), "image",
        ["score", "map"], "CS-Flow", "RGB", SMOOTHED, model.threshold, score=config.score,
        extractor=config.extractor,
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
