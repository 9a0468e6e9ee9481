"""Write a trained model as an ONNX file: python export.py --model-input model_checkpoints/last.ckpt

Best generator and best discriminator in one: image (batch, 3, imsize, imsize), RGB in 0..1 (RoadImages: height,
intensity, intensity; the normalisation is inside), to score (batch,), the inference score, validation_score (batch,)
and map (batch, imsize, imsize), the mean difference over the channels. The file's metadata tell how images are resized,
and the thresholds of the verdicts. Needs the packages onnx, onnxscript and onnxruntime.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch import Tensor, nn

from common.cli import ArgumentParser, script
from common.onnx_export import examples, export
from crn.score import load
from crn.training.dataset import DATASETS, mean_and_std
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
        """See the class."""
        scored = self.model.scores((images - self.mean) / self.std)
        return scored["inference"], scored["validation"], scored["difference"].mean(dim=1)


@script(memory="a smaller --imsize")
def main(argv: list[str] | None = None) -> None:
    """Export one checkpoint."""
    parser = ArgumentParser(
        description="Write a trained model as an ONNX file.", example="python crn/export.py --model-input ck/last.ckpt"
    )
    add = parser.add_argument_group("files").add_argument
    add("--model-input", type=Path, required=True, help="checkpoint, such as model_checkpoints/last.ckpt")
    add("--output", type=Path, help="the file; unset: the checkpoint's name with .onnx")

    add = parser.add_argument_group("network and verdicts").add_argument
    add("--fpr", type=float, default=0.05, help="share of good images that the threshold may call defective")
    add("--dataset", choices=DATASETS, help="how images are normalised; unset: as the checkpoint says")
    add("--imsize", type=int, help="side of the images for the network; unset: the training's")
    opt = parser.parse_args(argv)
    loaded = load(opt.model_input, torch.device("cpu"), "inference", opt.fpr, opt.dataset, opt.imsize)
    settings, smooth = loaded.settings, "antialiased" if loaded.settings.antialias else "not antialiased"
    channels = "height, intensity, intensity" if settings.dataset == "RoadImages" else "RGB"
    export(
        opt.output or opt.model_input.with_suffix(".onnx"), opt.model_input, Scorer(loaded.model, settings.dataset),
        examples(3, settings.imsize, settings.imsize), "image", ["score", "validation_score", "map"], settings.model,
        channels, f"bilinear, {smooth} (PyTorch's interpolate of values in 0..1)", loaded.threshold,
        dataset=settings.dataset,
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
