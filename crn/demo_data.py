"""Stand-ins for the three data sets, drawn where --demo finds none: their layout is real, their images are not.

    python crn/demo_data.py --dataset RoadImages --output FOLDER --good 800 --bad 160

draws more of them.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common.cli import answer_early
from crn.options import BAD, GOOD, parse_demo_data

answer_early(__name__, parse_demo_data)

import contextlib
import io

import numpy as np
from PIL import Image, ImageDraw
from skimage.filters import gaussian

from common.cli import say, script
from common.demo_data import TEXTURES, make_textures
from common.files import temporary_folder
from common.images import new_synthetic_folder

SIZE = 96  # px


def ensure_data(kind: str, folder: Path) -> None:
    """Make stand-in data in `folder` where there is none. Raises UserError where it cannot be written."""
    if folder.exists() and any(folder.iterdir()):
        return
    say(f"--demo: there is no data in {folder}, drawing stand-ins")
    if kind == "MVTec":
        _make_textures(folder)
    else:
        draw_streets(kind, folder, GOOD, BAD, f"python crn/train.py --demo --dataset {kind}")


def draw_streets(kind: str, folder: Path, good: int, bad: int, command: str) -> None:
    """Draw so many images of RoadImages or Panorama in the new folder, marked as made by `command`."""
    draw = _draw_road if kind == "RoadImages" else _draw_panorama
    with new_synthetic_folder(folder, command) as made:
        rng = np.random.default_rng(0)
        for number in range(good):
            draw(made / "good_ones", f"{number:03d}.png", False, rng)
        for number in range(bad):
            draw(made / "bad_ones", f"{number:03d}.png", True, rng)


def _make_textures(folder: Path) -> None:
    """The shared textures' set of the folder's name, or the bricks under that name."""
    texture = folder.name if folder.name in TEXTURES else "brick"
    with temporary_folder(folder.parent) as temporary:
        with contextlib.redirect_stdout(io.StringIO()):  # it tells of the temporary folder
            make_textures(temporary)
        if folder.exists():
            folder.rmdir()  # empty
        (temporary / texture).rename(folder)


def _save(values: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.rint(values.clip(0, 1) * 255).astype(np.uint8)).save(path)


def _noise(rng: np.random.Generator, sigma: float, size: int = SIZE) -> np.ndarray:
    """Smooth noise (size, size) of mean 0 and standard deviation 1."""
    values = gaussian(rng.standard_normal((size, size)), sigma, mode="wrap")
    return (values - values.mean()) / values.std()


def _crack(rng: np.random.Generator) -> np.ndarray:
    """Opacity 0..1 (SIZE, SIZE) of a line that wanders across the image."""
    steps = rng.normal(0, 0.35, 40).cumsum() + rng.uniform(0, 2 * np.pi)
    points = rng.uniform(0.2, 0.8, 2) * SIZE + np.cumsum(2.2 * np.stack((np.cos(steps), np.sin(steps)), 1), axis=0)
    drawing = Image.new("L", (4 * SIZE, 4 * SIZE))
    ImageDraw.Draw(drawing).line([tuple(point) for point in 4 * points], fill=255, width=int(rng.integers(5, 10)))
    return np.asarray(drawing.reduce(4)) / 255


def _pothole(rng: np.random.Generator) -> np.ndarray:
    """Opacity 0..1 (SIZE, SIZE) of a roundish hole."""
    y, x = np.mgrid[:SIZE, :SIZE] - rng.uniform(0.25, 0.75, (2, 1, 1)) * SIZE
    radius = rng.uniform(0.08, 0.16) * SIZE * (1 + 0.15 * _noise(rng, 6))
    return np.clip((radius - np.hypot(x, y * rng.uniform(0.8, 1.3))) / 2, 0, 1)


def _draw_road(folder: Path, name: str, bad: bool, rng: np.random.Generator) -> None:
    """A patch of road as a laser scanner sees it: its reflectance and, in the same pixels, its height."""
    intensity = 0.5 + 0.05 * _noise(rng, 0.7) + 0.03 * _noise(rng, 8)
    height = 0.5 + 0.04 * _noise(rng, 20) + 0.006 * rng.standard_normal((SIZE, SIZE))
    if rng.random() < 0.4:  # a lane marking is no damage
        left = int(rng.integers(10, SIZE - 20))
        intensity[:, left : left + 8] += 0.3
    if bad:
        damage = _crack(rng) if rng.random() < 0.5 else _pothole(rng)
        intensity -= 0.25 * damage
        height -= 0.2 * damage
    _save(intensity, folder / "intensity_files" / name)
    _save(height, folder / "height_files" / name)


def _draw_panorama(folder: Path, name: str, bad: bool, rng: np.random.Generator) -> None:
    """A street between sky and houses, in colours, 2 wide by 1 high; damage is on the asphalt."""
    image = np.empty((SIZE, SIZE, 3))
    horizon = int(rng.uniform(0.35, 0.45) * SIZE)
    sky = np.linspace(1, 0.7, horizon)[:, None, None]
    image[:horizon] = sky * np.array([0.65, 0.8, 0.95])
    for left in range(0, SIZE, 16):  # houses
        top = int(horizon * rng.uniform(0.2, 0.7))
        image[top:horizon, left : left + 16] = rng.uniform(0.35, 0.75, 3)
    asphalt = 0.42 + 0.04 * _noise(rng, 0.7) + 0.02 * _noise(rng, 10)
    if bad:
        damage = _crack(rng) if rng.random() < 0.5 else _pothole(rng)
        damage = np.roll(damage, SIZE // 4, axis=0)
        asphalt -= 0.25 * damage
    image[horizon:] = asphalt[horizon:, :, None]
    centre = SIZE // 2 + int(rng.integers(-6, 7))
    for row in range(horizon, SIZE):  # a dashed line that comes closer
        if (row - horizon) // 10 % 2:
            half = 1 + (row - horizon) // 20
            image[row, centre - half : centre + half] = 0.85
    wide = np.asarray(Image.fromarray(np.rint(image.clip(0, 1) * 255).astype(np.uint8)).resize((2 * SIZE, SIZE)))
    _save(wide / 255, folder / name)


@script
def main(argv: list[str] | None = None) -> None:
    """Draw one data set."""
    options = parse_demo_data(argv)
    command = f"python crn/demo_data.py --dataset {options.dataset} --good {options.good} --bad {options.bad}"
    draw_streets(options.dataset, options.output, options.good, options.bad, command)
    say(f"made {options.output}: {options.good} good and {options.bad} damaged images")


if __name__ == "__main__":
    sys.exit(main())
