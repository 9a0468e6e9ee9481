"""Score images without labels: python score.py --images FOLDER [--checkpoint FILE]

Writes to --output (default: scores/<folder's name> beside the checkpoint's folder): scores.csv with one row per image
(score, threshold, verdict, error), and per image the anomaly map (maps/, float32 TIFF), its overlay (overlays/, JPEG)
and the binary mask of defective pixels (masks/, PNG; only with a threshold), under the image's relative path.
"""

import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from common import checkpoint
from common.figures import overlay
from common.files import UserError, atomic_write, read_json, require_writable, write_csv, write_json
from common.images import image_files, read_image
from common.memory import reuse_memory
from common.runtime import ArgumentParser, progress, say, script
from riad.run import device_of
from riad.source import options, procedure
from riad.source.agent import Agent
from riad.source.datamanager import to_tensor

NO_THRESHOLD = "no threshold, no verdicts: the network was not tested by run.py, which sets it"


@script
def main(argv: list[str] | None = None) -> int:
    """Score every image of a folder; exit status 1 where some could not be read."""
    parser = ArgumentParser(description="Score a folder of images without labels with a trained network.")
    parser.add_argument("--images", type=Path, required=True, help="folder of images, or one image")
    parser.add_argument(
        "--checkpoint", type=Path, help="trained network (unset: the one that validation chose, in riad/Checkpoint)"
    )
    parser.add_argument("--output", type=Path, help="folder for the results")
    parser.add_argument("--fpr", type=float, help="share of good images that the threshold may call defective")
    options.add_machine_options(parser)
    given = parser.parse_args(argv)
    device = device_of(given.gpu, given.ngpu, given.cpu)
    if device.type == "cpu":
        reuse_memory()
    paths = image_files(given.images)
    root = given.images if given.images.is_dir() else given.images.parent
    file = given.checkpoint or _chosen()
    agent, stored = load_agent(file, given, device)
    threshold = procedure.thresholds(stored.get("calibration"), agent.settings.fpr)
    if threshold is None:
        say(NO_THRESHOLD)
    output = given.output or file.parent.parent / "scores" / given.images.resolve().name
    about = {
        "images": str(given.images.resolve()),
        "model": str(file),
        "trained_on": stored["data"],
        "precision": agent.settings.precision,
        "threshold": threshold,
    }
    _require_own(output, given.images, about)

    rows, failed, size = [], 0, agent.settings.batch_score
    try:
        for part in progress([paths[i : i + size] for i in range(0, len(paths), size)], "scoring"):
            images, errors = _read(part)
            maps = _maps(agent, stored["channels"], images)
            for path in part:
                name = path.relative_to(root).as_posix()
                if path in errors:
                    failed += 1
                    rows.append([name, "", "", "", errors[path]])
                    continue
                score, image = float(maps[path].max()), images[path]
                limit = threshold["image"] if threshold else None
                rows.append([name, score, limit, procedure.verdict_of(score, threshold), ""])
                try:
                    _save_pictures(output, name, image, procedure.upsample(maps[path], image.shape[:2]), limit)
                except UserError as error:
                    failed += 1
                    rows[-1][-1] = str(error)
    finally:  # whatever ends this, the scores of the images so far stay
        write_csv(output / "scores.csv", ["path", "score", "threshold", "verdict", "error"], rows)
    write_json(output / "results.json", {**about, "failed": failed})
    found, scored = sum(row[3] == "defective" for row in rows), sum(row[1] != "" for row in rows)
    say(f"{scored} images scored" + (f", {found} defective" if threshold else "") + f": {output}")
    if failed:
        print(f"{failed} images could not be read, or their maps not written; scores.csv says why", file=sys.stderr)
    return 1 if failed else 0


def _chosen() -> Path:
    """The network that the default training's validation chose."""
    folder = options.HERE / procedure.PATH_CKPT
    files = [folder / name for name in procedure.BEST.values() if (folder / name).exists()]
    if not files:
        raise UserError(f"there is no trained network in {folder}: train one with run.py, or give --checkpoint FILE")
    return files[0]


def load_agent(path: Path, given: Namespace, device: torch.device) -> tuple[Agent, dict[str, Any]]:
    """The network in `path` with the settings it was trained with, and the rest of the file.

    given: "fpr" and "batch_score" take precedence unless None. Raises UserError where the file does not fit.
    """
    stored = procedure.load(path)
    changes = {name: value for name in ("fpr", "batch_score") if (value := getattr(given, name)) is not None}
    settings = options.from_stored(stored["settings"] | changes, path)
    agent = Agent(settings, stored["channels"], 1, device)
    checkpoint.load_parameters(agent.network, stored["model"], path)
    return agent, stored


def _read(paths: list[Path]) -> tuple[dict[Path, np.ndarray], dict[Path, str]]:
    """The images (H, W, 3) uint8 that can be read, and why the others cannot."""
    images, errors = {}, {}
    for path in paths:
        try:
            images[path] = np.asarray(read_image(path))
        except UserError as error:
            errors[path] = str(error)
    return images, errors


def _maps(agent: Agent, channels: int, images: dict[Path, np.ndarray]) -> dict[Path, Tensor]:
    if not images:
        return {}
    side = agent.settings.img_size
    batch = torch.stack([to_tensor(Image.fromarray(image), side) for image in images.values()])
    if channels == 1:  # as MNIST's
        batch = batch.float().mean(dim=1, keepdim=True).round().byte()
    return dict(zip(images, agent.score(batch)[1].cpu()))


def _require_own(output: Path, images: Path, about: dict[str, Any]) -> None:
    """UserError where `output` would mix with the images themselves or with the scores of other ones."""
    if images.is_dir() and output.resolve().is_relative_to(images.resolve()):
        raise UserError(f"--output {output} lies in --images {images}: its pictures would be scored the next time")
    if (output / "results.json").exists():
        before = read_json(output / "results.json")
        if not isinstance(before, dict) or before.get("images") != about["images"]:
            raise UserError(f"{output} holds results of other images than {about['images']}: choose another --output")
    require_writable(output)


def _save_pictures(output: Path, name: str, image: np.ndarray, anomaly_map: np.ndarray, limit: float | None) -> None:
    """Map, overlay, and with a threshold the mask of defective pixels."""
    hottest = 2 * limit if limit else max(float(anomaly_map.max()), 1e-6)  # the same for all images where possible
    _save(Image.fromarray(anomaly_map), output / "maps" / f"{name}.tiff", "TIFF")
    _save(Image.fromarray(overlay(image, anomaly_map, 0, hottest)), output / "overlays" / f"{name}.jpg", "JPEG")
    if limit is not None:
        defective = (anomaly_map > limit).astype(np.uint8) * 255
        _save(Image.fromarray(defective), output / "masks" / f"{name}.png", "PNG")


def _save(image: Image.Image, path: Path, format: str) -> None:
    with atomic_write(path) as file:
        image.save(file, format)


if __name__ == "__main__":
    sys.exit(main())
