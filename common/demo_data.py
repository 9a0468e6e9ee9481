"""Small demonstration data: real textures from scikit-image in MVTec AD's layout, with defects painted on them.

    python common/demo_data.py --output DIR

makes DIR/brick, DIR/grass and DIR/gravel. It needs no download and shows that a method works; its scores say nothing
about real defects, so each folder carries a file SYNTHETIC.
"""

import sys
from argparse import Namespace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common.cli import ArgumentParser, answer_early, say, script, whole

DEFECTS = ("blur", "foreign", "hole", "scratch", "stain")
SIZES = (64, 192)  # smaller crops may show no structure at all, larger ones do not fit into the test columns
MOST = 100_000  # images of one part


def parse(argv: list[str] | None = None) -> Namespace:
    """The options."""
    parser = ArgumentParser(
        description="Make small demonstration data sets out of scikit-image's textures.",
        example="python common/demo_data.py --output my_data",
    )
    add = parser.add_argument_group("data").add_argument
    add("--output", type=Path, required=True, help="folder to make brick, grass and gravel in")
    add("--seed", type=whole(0, 2**32 - 1), default=0, help="of the random crops and defects")
    add("--size", type=whole(*SIZES), default=128, help=f"side of the images in pixels, {SIZES[0]} to {SIZES[1]}")
    add("--train", type=whole(1, MOST), default=40, help="images to train on, of each texture")
    add("--good", type=whole(1, MOST), default=15, help="good images to test on")
    add("--defective", type=whole(0, MOST), default=8, help=f"images of each of the {len(DEFECTS)} defects")
    return parser.parse_args(argv)


answer_early(__name__, parse)

import numpy as np
from PIL import Image, ImageDraw
from skimage import data
from skimage.filters import gaussian

from common.files import UserError
from common.images import made_by, new_synthetic_folder, synthetic

# Texture (512 x 512, 8-bit grey): the texture that a patch of foreign material in it shows. Gravel on grass and grass
# on gravel are too much alike for people to notice.
TEXTURES = {"brick": "grass", "grass": "brick", "gravel": "brick"}
TRAIN_COLUMNS = slice(0, 320)  # of the source image; the crops for testing come from the rest
TEST_COLUMNS = slice(320, 512)
VISIBLE = 4  # change in grey levels, averaged over a few pixels, from which on people notice it


def make_textures(
    root: str | Path, seed: int = 0, size: int = 128, n_train: int = 40, n_good: int = 15, n_defect: int = 8
) -> list[str]:
    """Make the folders root/brick, root/grass and root/gravel, each a data set in MVTec AD's layout; return the names.

    size: side of the images in pixels, 64 to 192; n_train: images in train/good; n_good: in test/good; n_defect: in
    test/<defect>, for each of five kinds, with exact masks. All are 8-bit grey PNG files, byte for byte the same for
    the same arguments. Training images are crops of the source's columns 0..319, test images of 320..511: they share
    no pixel. Half of the crops are mirrored left to right, and brightness varies by 6 %. A texture generated earlier
    is left as it is. Raises UserError where it was made with other arguments, or real files are in the way.
    """
    options = f"--seed {seed} --size {size}"
    command = f"python common/demo_data.py {options} ({n_train} training, {n_good} good, {n_defect} of each defect)"
    for number, (texture, foreign_name) in enumerate(TEXTURES.items()):
        folder = Path(root) / texture
        if synthetic(folder):
            if (other := made_by(folder)) != command:
                raise UserError(f"{folder} was made by {other!r}: remove it, or make this one elsewhere")
            say(f"{folder} is there already")
            continue
        rng = np.random.default_rng([seed, number])
        source, foreign = _texture(texture), _texture(foreign_name)
        with new_synthetic_folder(folder, command) as made:
            for i in range(n_train):
                _save(_crop(source[:, TRAIN_COLUMNS], size, rng), made / f"train/good/{i:03d}.png")
            for i in range(n_good):
                _save(_crop(source[:, TEST_COLUMNS], size, rng), made / f"test/good/{i:03d}.png")
            for kind in DEFECTS:
                for i in range(n_defect):
                    image = _crop(source[:, TEST_COLUMNS], size, rng)
                    image, mask = _damage(image, kind, _crop(foreign, size, rng), rng)
                    _save(image, made / f"test/{kind}/{i:03d}.png")
                    _save(mask * 255.0, made / f"ground_truth/{kind}/{i:03d}_mask.png")
        say(f"made {folder}: {n_train} training images, {n_good} good and {len(DEFECTS) * n_defect} defective ones")
    return list(TEXTURES)


def _texture(name: str) -> np.ndarray:
    return getattr(data, name)().astype(np.float64)  # (512, 512), 0..255


def _save(image: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.rint(image).astype(np.uint8)).save(path)


def _crop(source: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    top, left = (rng.integers(length - size + 1) for length in source.shape)
    image = source[top : top + size, left : left + size]
    if rng.random() < 0.5:
        image = image[:, ::-1]
    return np.clip(image * rng.uniform(0.94, 1.06), 0, 255)


def _damage(
    image: np.ndarray, kind: str, foreign: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """`image` (H, W) with a defect, and the defect's mask, bool (H, W); outside the mask nothing changes."""
    size, mean, contrast = len(image), image.mean(), image.std()
    if kind == "scratch":
        opacity = _stroke(size, rng)
        # Away from what lies below it, so that it shows on light and on dark ground.
        sign = 1 if image[opacity > 0.5].mean() < mean + contrast else -1
        defect = (image + mean) / 2 + sign * rng.uniform(2.2, 3.2) * contrast
    elif kind == "hole":
        opacity = rng.uniform(0.75, 0.95) * _blob(size, rng.uniform(0.05, 0.11), 0.35, rng)
        defect = np.full_like(image, rng.uniform(0.15, 0.35) * mean)
    elif kind == "stain":
        opacity = _blob(size, rng.uniform(0.10, 0.18), 0.3, rng)
        # A film: shifts the brightness and lets less of the structure through.
        defect = mean + 0.5 * (image - mean) + rng.choice([-1, 1]) * rng.uniform(1.1, 1.6) * contrast
    elif kind == "blur":
        opacity = _blob(size, rng.uniform(0.11, 0.18), 0.2, rng)
        defect = gaussian(image, rng.uniform(2.5, 4), preserve_range=True)
    else:
        opacity = rng.uniform(0.8, 1) * _blob(size, rng.uniform(0.10, 0.16), 0.2, rng)
        # As bright as its surroundings: the structure gives it away, not the brightness.
        defect = foreign - foreign.mean() + mean
    damaged = np.clip(image + opacity * (defect - image), 0, 255)
    # A blurred patch of plain brick looks as before, and so does the faint rim of a spot: neither is a defect.
    mask = (opacity > 0.1) & (gaussian(np.abs(damaged - image), 1.5) >= VISIBLE)
    if mask.mean() < 0.005:
        return _damage(image, kind, foreign, rng)  # elsewhere
    return np.where(mask, damaged, image), mask


def _blob(size: int, radius: float, softness: float, rng: np.random.Generator) -> np.ndarray:
    """Opacity 0..1 (size, size) of a roundish spot; radius as a share of size, softness of the edge of radius."""
    radius = radius * size
    y, x = np.mgrid[:size, :size] - rng.uniform(1.2 * radius, size - 1.2 * radius, (2, 1, 1))
    angle = np.arctan2(y, x)
    outline = np.ones_like(angle)
    for waves in (2, 3, 5):
        outline += 0.3 / waves * rng.uniform(-1, 1) * np.cos(waves * angle + rng.uniform(0, 2 * np.pi))
    return np.clip((outline - np.hypot(x, y) / radius) / softness + 0.5, 0, 1)


def _stroke(size: int, rng: np.random.Generator) -> np.ndarray:
    """Opacity 0..1 (size, size) of a thin quadratic Bézier curve; drawn four times larger for smooth edges."""
    fine = 4
    centre = rng.uniform(0.3, 0.7, 2) * size
    angle = rng.uniform(0, np.pi)
    along = np.array([np.cos(angle), np.sin(angle)]) * rng.uniform(0.15, 0.3) * size
    across = np.array([-along[1], along[0]]) * rng.uniform(-0.6, 0.6)
    start, bend, end = centre - along, centre + 2 * across, centre + along
    t = np.linspace(0, 1, 60)[:, None]
    points = (1 - t) ** 2 * start + 2 * t * (1 - t) * bend + t**2 * end
    drawing = Image.new("L", (fine * size, fine * size))
    width = round(fine * size / 128 * rng.uniform(1.6, 3))
    ImageDraw.Draw(drawing).line([tuple(point) for point in fine * points], fill=255, width=width, joint="curve")
    return np.asarray(drawing.reduce(fine)) / 255


@script
def main(argv: list[str] | None = None) -> None:
    """Make the demonstration data."""
    options = parse(argv)
    make_textures(options.output, options.seed, options.size, options.train, options.good, options.defective)


if __name__ == "__main__":
    sys.exit(main())
