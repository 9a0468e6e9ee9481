"""The dummy data of the published fork, drawn instead of shipped: four squares are good, four circles are a defect."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from common.cli import say
from common.images import new_synthetic_folder
from csflow.config import HERE

SIZE = 448  # px
FOLDER, EPOCHS = HERE / "data/images/dummy_data", 60  # its place, and how long to train on it
PARTS = {"train/good": 4, "test/good": 8, "test/anomaly": 8}  # images


def ensure_dummy_data(folder: Path) -> None:
    """Draw the dummy data where `folder`, which is asked for, is their default place and not there yet."""
    if folder == FOLDER and not folder.exists():
        make_dummy_data(folder)
        say(f"drew the dummy data: {folder}")


def make_dummy_data(folder: Path, seed: int = 0) -> None:
    """Write 448 x 448 RGBA images: four black squares of 52 px on white, or four circles of 60 px as defects."""
    random = np.random.default_rng(seed)
    with new_synthetic_folder(folder, "python csflow/main.py") as new:
        for part, count in PARTS.items():
            (new / part).mkdir(parents=True)
            for number in range(count):
                draw_image(random, circles=part == "test/anomaly").save(new / part / f"{number:03d}.png")


def draw_image(random: np.random.Generator, circles: bool) -> Image.Image:
    """One image with four shapes at random places that do not touch."""
    image = Image.new("RGBA", (SIZE, SIZE), "white")
    draw = ImageDraw.Draw(image)
    side = 60 if circles else 52  # px
    corners: list[tuple[int, int]] = []
    while len(corners) < 4:
        x, y = (int(value) for value in random.integers(0, SIZE - side, 2))
        if all(max(abs(x - x2), abs(y - y2)) > side + 4 for x2, y2 in corners):
            corners.append((x, y))
            shape = draw.ellipse if circles else draw.rectangle
            shape((x, y, x + side - 1, y + side - 1), fill="black")
    return image
