"""Score images without labels: python score.py --images FOLDER [--checkpoint FILE]

Writes to --output (default: scores/<folder's name> beside the checkpoint's folder): scores.csv with one row per image
(score, threshold, verdict, error), and per image the anomaly map (maps/, float32 TIFF), its overlay (overlays/, JPEG)
and the binary mask of defective pixels (masks/, PNG; only with a threshold), under the image's relative path.
"""

import sys
from argparse import Namespace
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from PIL import Image

from common import checkpoint
from common.files import UserError
from common.images import image_files, read_image
from common.memory import reuse_memory
from common.runtime import PRECISIONS, ArgumentParser, autocast, say, script
from common.scoring import Scored, score_folder, thresholds
from riad.run import device_of
from riad.source import options, procedure
from riad.source.agent import Agent
from riad.source.datamanager import to_tensor


@script(memory="a smaller --batch_score, or --precision bf16")
def main(argv: list[str] | None = None) -> int:
    """Score every image of a folder; exit status 1 where some could not be read."""
    parser = ArgumentParser(
        description="Score a folder of images without labels with a trained network.",
        example="python riad/score.py --images my_new_images "
        "--checkpoint bottle/Checkpoint/model_2_best_val_loss.pth --output scores",
    )
    add = parser.add_argument_group("what to score").add_argument
    add("--images", type=Path, required=True, help="folder of images, or one image")
    add("--checkpoint", type=Path, help="trained network; unset: the one that validation chose, in riad/Checkpoint")
    add("--output", type=Path, help="folder for the results; unset: scores/<folder's name> beside the checkpoint's")

    add = parser.add_argument_group("verdicts and precision").add_argument
    add("--fpr", type=float, help="share of good images that the threshold may call defective; unset: as in training")
    add("--precision", choices=PRECISIONS, help="of the network's passes; unset: as in training, and as the threshold")
    options.add_machine_options(parser)
    given = parser.parse_args(argv)
    device = device_of(given.gpu, given.ngpu, given.cpu)
    if device.type == "cpu":
        reuse_memory()
    paths = image_files(given.images)
    root = given.images if given.images.is_dir() else given.images.parent
    file = given.checkpoint or chosen_checkpoint()
    agent, stored = load_agent(file, given, device)
    calibration = stored.get("calibration")
    if calibration is None:
        say("no threshold, no verdicts: the network was not tested by run.py, which sets it")
    threshold = thresholds(calibration, calibration, agent.settings.fpr) if calibration else None

    def score(numbers: Sequence[int]) -> list[Scored | UserError]:
        found: dict[int, Any] = {}
        for number in numbers:
            try:
                found[number] = np.asarray(read_image(paths[number]))  # (H, W, 3) uint8
            except UserError as error:
                found[number] = error
        images = {number: image for number, image in found.items() if not isinstance(image, UserError)}
        if images:
            for number, anomaly_map in zip(images, agent.score(_batch(images.values(), agent, stored["channels"]))[1]):
                image = images[number]
                upsampled = procedure.upsample(anomaly_map.cpu(), image.shape[:2])
                found[number] = (float(anomaly_map.max()), image, upsampled)
        return list(found.values())

    return score_folder(
        given.images,
        given.output or file.absolute().parent.parent / "scores" / given.images.resolve().name,
        file,
        [path.relative_to(root).as_posix() for path in paths],
        score,
        agent.settings.batch_score,
        {"trained_on": stored["data"], "precision": agent.settings.precision},
        threshold,
    )


def chosen_checkpoint() -> Path:
    """The network that the default training's validation chose; UserError where there is none, or two."""
    folder = options.HERE / procedure.PATH_CKPT
    files = [folder / name for name in procedure.BEST.values() if (folder / name).exists()]
    if not files:
        raise UserError(f"there is no trained network in {folder}: train one with run.py, or give --checkpoint FILE")
    if len(files) > 1:
        raise UserError(f"{folder} holds networks of two trainings: give one of {files[0]} and {files[1]}")
    return files[0]


def load_agent(path: Path, given: Namespace, device: torch.device) -> tuple[Agent, dict[str, Any]]:
    """The network in `path` with the settings it was trained with, and the rest of the file.

    given: "fpr", "precision" and "batch_score" take precedence unless None. Raises UserError where the file is missing
    or damaged, or given values make no sense.
    """
    stored = procedure.load(path)
    settings = options.from_stored(stored["settings"], path)
    for name in ("fpr", "precision", "batch_score"):
        if getattr(given, name) is not None:
            setattr(settings, name, getattr(given, name))
    options.check(settings)
    autocast(device, settings.precision)  # refuses what this device cannot do
    agent = Agent(settings, stored["channels"], 1, device)
    checkpoint.load_parameters(agent.network, stored["model"], path)
    return agent, stored


def _batch(images: Iterable[np.ndarray], agent: Agent, channels: int) -> torch.Tensor:
    """(B, C, side, side) uint8 from images (H, W, 3) of any sizes."""
    batch = torch.stack([to_tensor(Image.fromarray(image), agent.settings.img_size) for image in images])
    if channels == 1:  # as MNIST's
        batch = batch.float().mean(dim=1, keepdim=True).round().byte()
    return batch


if __name__ == "__main__":
    sys.exit(main())
