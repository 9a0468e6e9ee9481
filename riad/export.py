"""Write a trained network as an ONNX file: python export.py --checkpoint Checkpoint/model_2_best_auroc.pth

Masks, network and map in one: image (batch, channels, side, side), RGB or grey in 0..1 at the training's size (what the
algorithm does to the values is inside), to score (batch,) and map (batch, side, side). The masks are score.py's, made
of the image's pixels as 8-bit numbers. Computes in float32. The file's metadata tell how images are resized, and the
threshold of the verdicts. Needs the packages onnx, onnxscript and onnxruntime.
"""

import sys
from argparse import Namespace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common.cli import ArgumentParser, answer_early, say, script, share


def parse(argv: list[str] | None) -> Namespace:
    """The options."""
    parser = ArgumentParser(
        description="Write a trained network as an ONNX file.",
        example="python riad/export.py --checkpoint bottle/Checkpoint/model_2_best_val_loss.pth",
    )
    add = parser.add_argument_group("files").add_argument
    add("--checkpoint", type=Path, help="trained network; unset: the one that validation chose, in riad/Checkpoint")
    add("--output", type=Path, help="the file; unset: the checkpoint's name with .onnx")
    add = parser.add_argument_group("verdicts").add_argument
    add("--fpr", type=share, help="share of good images that the threshold may call defective; unset: as in training")
    return parser.parse_args(argv)


answer_early(__name__, parse)

import torch
from torch import Tensor, nn

from common.scoring import SMOOTHED, Exported, examples, export
from riad.score import chosen_checkpoint, load
from riad.source.agent import Agent


class Scorer(nn.Module):
    """Images (B, C, H, W) in 0..1 -> scores (B,) and maps (B, H, W)."""

    def __init__(self, agent: Agent):
        super().__init__()
        self.network, self.agent = agent.network, agent

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        _, maps = self.agent.maps((images * 255).round())
        return maps.amax(dim=(1, 2)), maps


def scorer(options: Namespace) -> Exported:
    """The network in --checkpoint, as it is exported."""
    file = options.checkpoint or chosen_checkpoint()
    model = load(file, torch.device("cpu"), options.fpr, "fp32")
    agent, stored = model.agent, model.stored
    if stored["settings"]["precision"] != "fp32":
        say(f"the file computes in float32; training and threshold are of {stored['settings']['precision']}")
    about = {"method": "RIAD", "channels": "RGB" if stored["channels"] == 3 else "grey", "resizing": SMOOTHED}
    about["algorithm"] = stored["settings"]["algorithm"]
    inputs = examples(stored["channels"], *agent.size)
    return Exported(file, options.output, Scorer(agent), inputs, ["score", "map"], about, model.threshold)


@script
def main(argv: list[str] | None = None) -> None:
    """Export one checkpoint."""
    export(scorer(parse(argv)))


if __name__ == "__main__":
    sys.exit(main())
