"""Write a trained model as an ONNX file: python export.py --modelname dummy_test

Extractor and flow in one: image (batch, 3, height, width), RGB in 0..1 at the model's img_size (the normalisation is
inside), to score (batch,) and map (batch, height, width), score.py's for images of that size. The file's metadata tell
how images are resized, and the thresholds of the verdicts. Takes those options of main.py that say which model it is
and how it scores. Needs the packages onnx, onnxscript and onnxruntime.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common.cli import answer_early, script
from csflow.config import Config, parse_export

answer_early(__name__, parse_export)

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


def scorer(options: Config) -> Exported:
    """The model that the options name, as it is exported."""
    model = load(**{name: getattr(options, name) for name in options.given}, cpu=True)
    config, network = model.config, Scorer(model.features.network, model.flow, model.config)
    metadata = {"method": "CS-Flow", "channels": "RGB", "resizing": SMOOTHED, "score": config.score}
    metadata["extractor"] = config.extractor
    output = options.output or config.result_dir / f"{config.modelname}.onnx"
    return Exported(
        config.model_file, output, network, examples(3, *config.img_size), ["score", "map"], metadata, model.threshold
    )


@script
def main(argv: list[str] | None = None) -> None:
    """Export config.modelname."""
    export(scorer(parse_export(argv)))


if __name__ == "__main__":
    sys.exit(main())
