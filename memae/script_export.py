"""Write a trained network as an ONNX file: python script_export.py [--ModelFilePath FILE] [--Size 256]

clip (batch, ImgChnNum, FrameNum, Size, Size), grey levels or RGB in 0..1 (the normalisation is inside), to score
(batch,), script_testing.py's, and error (batch, FrameNum, Size, Size), the map of each frame. Takes those options of
script_testing.py that say which model it is. Needs the packages onnx, onnxscript and onnxruntime.
"""

import sys
from argparse import Namespace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common.cli import answer_early, script, whole
from memae.options import TestOptions

OPTIONS = {
    "data", "Dataset", "ImgChnNum", "FrameNum", "ModelName", "ModelSetting", "Backbone", "BackboneDepth", "MemDim",
    "ShrinkThres", "EntropyLossWeight", "Seed", "Suffix", "ModelRoot",
}  # fmt: skip


def parse(argv: list[str] | None) -> Namespace:
    """The options."""
    options = TestOptions(
        "Write a trained model as an ONNX file.", "python memae/script_export.py --Dataset mine --Size 256", OPTIONS
    )
    add = options.parser.add_argument_group("ONNX").add_argument
    add("--Size", type=whole(16, 4096), default=256, help="width and height of the frames in pixels")
    checkpoint = "trained model; unset: <ModelRoot>/<setting>.pt"
    add("--ModelFilePath", "--checkpoint", dest="ModelFilePath", type=Path, help=checkpoint)
    add("--output", type=Path, help="the file; unset: the checkpoint's name with .onnx")
    return options.parse(argv)


answer_early(__name__, parse)

from torch import Tensor, nn

from common.scoring import Exported, examples, export
from memae.utils import error_maps, load_weights, make_model, model_path, reconstruct, require_fitting


class Scorer(nn.Module):
    """Clips (B, C, T, H, W) in 0..1 -> scores (B,) and error maps (B, T, H, W)."""

    def __init__(self, model: nn.Module, name: str):
        super().__init__()
        self.model, self.name = model, name

    def forward(self, clips: Tensor) -> tuple[Tensor, Tensor]:
        x = (clips - 0.5) / 0.5
        errors = error_maps(reconstruct(self.model, x)[0], x, self.name)
        return errors.flatten(1).mean(dim=1), errors


def scorer(opt: Namespace) -> Exported:
    """The model that the options name, as it is exported."""
    require_fitting((opt.Size, opt.Size), opt.Backbone)
    path, model = model_path(opt), make_model(opt)
    load_weights(model, path)
    about = {"method": opt.ModelName, "channels": "RGB" if opt.ImgChnNum == 3 else "grey"}
    about["resizing"] = "bicubic, antialiased (Pillow's resize of 8-bit images)"
    inputs, network = examples(opt.ImgChnNum, opt.FrameNum, opt.Size, opt.Size), Scorer(model, opt.ModelName)
    return Exported(path, opt.output, network, inputs, ["score", "error"], about, input_name="clip")


@script(memory="a smaller --Size")
def main(argv: list[str] | None = None) -> None:
    """Export one model."""
    export(scorer(parse(argv)))


if __name__ == "__main__":
    sys.exit(main())
