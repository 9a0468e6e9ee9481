"""Write a trained network as an ONNX file: python script_export.py [--ModelFilePath FILE] [--Size 256]

clip (batch, ImgChnNum, FrameNum, Size, Size), grey levels or RGB in 0..1 (the normalisation is inside), to score
(batch,), script_testing.py's, and error (batch, FrameNum, Size, Size), the map of each frame. Takes those options of
script_testing.py that say which model it is. Needs the packages onnx, onnxscript and onnxruntime.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from torch import Tensor, nn

from common.cli import script
from common.files import UserError
from common.onnx_export import examples, export
from memae.options import TestOptions
from memae.utils import error_maps, load_weights, make_model, require_fitting, setting_name

OPTIONS = {
    "Dataset", "ImgChnNum", "FrameNum", "ModelName", "ModelSetting", "Backbone", "BackboneDepth", "MemDim",
    "ShrinkThres", "EntropyLossWeight", "Seed", "Suffix", "ModelRoot", "ModelFilePath",
}  # fmt: skip


class Scorer(nn.Module):
    """Clips (B, C, T, H, W) in 0..1 -> scores (B,) and error maps (B, T, H, W)."""

    def __init__(self, model: nn.Module, name: str):
        super().__init__()
        self.model, self.name = model, name

    def forward(self, clips: Tensor) -> tuple[Tensor, Tensor]:
        """See the class."""
        x = (clips - 0.5) / 0.5
        out = self.model(x)
        errors = error_maps(out["output"] if isinstance(out, dict) else out, x, self.name)
        return errors.flatten(1).mean(dim=1), errors


@script(memory="a smaller --Size")
def main(argv: list[str] | None = None) -> None:
    """Export one model."""
    options = TestOptions(
        "Write a trained model as an ONNX file.", "python memae/script_export.py --Dataset mine --Size 256", OPTIONS
    )
    add = options.parser.add_argument_group("ONNX").add_argument
    add("--Size", type=int, default=256, help="width and height of the frames in pixels")
    add("--output", type=Path, help="the file; unset: the checkpoint's name with .onnx")
    opt = options.parse(argv)
    if not 16 <= opt.Size <= 4096:
        raise UserError(f"--Size {opt.Size}: expected 16 to 4096")
    require_fitting((opt.Size, opt.Size), opt)
    path = opt.ModelFilePath or opt.ModelRoot / f"{setting_name(opt)}.pt"
    model = make_model(opt)
    load_weights(model, path, opt)
    inputs = examples(opt.ImgChnNum, opt.FrameNum, opt.Size, opt.Size)
    output = opt.output or path.with_suffix(".onnx")
    channels = "RGB" if opt.ImgChnNum == 3 else "grey"
    resizing = "bicubic, antialiased (Pillow's resize of 8-bit images)"
    network = Scorer(model, opt.ModelName)
    export(output, path, network, inputs, "clip", ["score", "error"], opt.ModelName, channels, resizing)


if __name__ == "__main__":
    sys.exit(main())
