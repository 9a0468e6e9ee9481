"""Write a trained model as an ONNX file: python export.py --model-input model_checkpoints/last.ckpt

Best generator and best discriminator in one: image (batch, 3, imsize, imsize), RGB in 0..1 (RoadImages: height,
intensity, intensity; the normalisation is inside), to score (batch,), the inference score, validation_score (batch,)
and map (batch, imsize, imsize), the mean difference over the channels. The file's metadata tell how images are resized,
and the thresholds of the verdicts. Needs the packages onnx, onnxscript and onnxruntime.
"""

import sys
from argparse import Namespace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common.cli import ArgumentParser, answer_early, script, share, whole
from crn.options import DATASETS


def parse(argv: list[str] | None) -> Namespace:
    """The options."""
    parser = ArgumentParser(
        description="Write a trained model as an ONNX file.", example="python crn/export.py --model-input ck/last.ckpt"
    )
    add = parser.add_argument_group("files").add_argument
    checkpoint = "checkpoint, such as model_checkpoints/last.ckpt"
    add("--checkpoint", "--model-input", type=Path, required=True, help=checkpoint)
    add("--output", type=Path, help="the file; unset: the checkpoint's name with .onnx")

    add = parser.add_argument_group("network and verdicts").add_argument
    add("--fpr", type=share, default=0.05, help="share of good images that the threshold may call defective")
    add("--dataset", choices=DATASETS, help="how images are normalised; unset: as the checkpoint says")
    add("--imsize", type=whole(1, 4096), help="side of the images for the network; unset: the training's")
    return parser.parse_args(argv)


answer_early(__name__, parse)

import torch
from torch import Tensor, nn

from common.scoring import Exported, examples, export
from crn.score import load
from crn.training.dataset import mean_and_std
from crn.training.utils import Model


class Scorer(nn.Module):
    """Images (B, 3, imsize, imsize) in 0..1 -> both scores (B,) and maps (B, imsize, imsize)."""

    def __init__(self, model: Model, kind: str):
        super().__init__()
        self.model = model
        mean, std = mean_and_std(kind)[:, :, None, None]
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        scored = self.model.scores((images - self.mean) / self.std)
        return scored["inference"], scored["validation"], scored["difference"].mean(dim=1)


def scorer(options: Namespace) -> Exported:
    """The model in --checkpoint, as it is exported."""
    model = load(options.checkpoint, torch.device("cpu"), "inference", options.fpr, options.dataset, options.imsize)
    settings, smooth = model.settings, "antialiased" if model.settings.antialias else "not antialiased"
    about = {
        "method": settings.model,
        "channels": "height, intensity, intensity" if settings.dataset == "RoadImages" else "RGB",
        "resizing": f"bilinear, {smooth} (PyTorch's interpolate of values in 0..1)",
        "dataset": settings.dataset,
    }
    inputs, outputs = examples(3, settings.imsize, settings.imsize), ["score", "validation_score", "map"]
    network = Scorer(model.model, settings.dataset)
    return Exported(options.checkpoint, options.output, network, inputs, outputs, about, model.threshold)


@script(memory="a smaller --imsize")
def main(argv: list[str] | None = None) -> None:
    """Export one checkpoint."""
    export(scorer(parse(argv)))


if __name__ == "__main__":
    sys.exit(main())
