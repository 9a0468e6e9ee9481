"""Generated stand-in videos, as of a surveillance camera: people walk in two lanes on textured ground.

In the upper lane all walk to the left, in the lower lane to the right. Abnormal, in some test videos: a fast vehicle, a
runner against the flow of the lane, a thrown object; with frame labels and pixel masks, in UCSD's layout.
"""

from argparse import Namespace
from pathlib import Path

import numpy as np
from PIL import Image
from skimage import data as textures

from common.cli import say
from common.images import new_synthetic_folder, synthetic
from memae.options import PreparationOptions

DATASET = "Walkers_64"  # the data set that stands in for one that is missing
RAW = "Walkers_raw"
HEIGHT, WIDTH = 96, 128  # px
LANES = ((40, -1), (68, 1))  # y of the feet, px, and direction
EVENTS = ("vehicle", "runner", "thrown")
TRAIN_VIDEOS, TEST_VIDEOS = 3, 4
EPOCHS = 20  # enough for the stand-in data


def with_data(opt: Namespace) -> Namespace:
    """`opt`, naming the stand-in where the default data set is asked for and missing; it is made if need be.

    Asked for by its name, the stand-in is made in DataRoot, if need be.
    """
    if "Dataset" in opt.given and opt.Dataset == DATASET and not (opt.DataRoot / DATASET).exists():
        folder = make_prepared(opt.DataRoot)
        say(f"made generated videos in {folder} (not real data)")
    if "Dataset" in opt.given or "DataRoot" in opt.given or (opt.DataRoot / opt.Dataset).exists():
        return opt
    folder = opt.DataRoot / DATASET
    if not folder.exists():
        make_prepared(opt.DataRoot)
    say(f"{opt.Dataset} is not in {opt.DataRoot}: using generated videos instead, {folder} (not real data)")
    return Namespace(**vars(opt) | {"Dataset": DATASET})


def make_prepared(data_root: Path, frames: int = 80, size: int = 64, seed: int = 0) -> Path:
    """Make <data_root>/Walkers_raw in UCSD's layout with masks, and <data_root>/Walkers_64 by script_img_prep."""
    from memae import script_img_prep  # a script that prepares is part of the way from videos to clips

    raw = data_root / RAW
    if not synthetic(raw):
        make_videos(raw, frames, seed)
    folder = data_root / DATASET
    if not synthetic(folder):
        with new_synthetic_folder(folder, "python memae/script_training.py") as new:
            argv = ["--Input", str(raw), "--DataRoot", str(new.parent), "--Dataset", new.name, "--Size", str(size)]
            script_img_prep.prepare(PreparationOptions().parse(argv))
    return folder


def make_videos(folder: Path, frames: int = 80, seed: int = 0) -> None:
    """Write {Train,Test}/{Train,Test}NNN/NNN.tif and Test/TestNNN_gt/NNN.bmp, 8-bit grey, 128 x 96 pixels.

    Byte for byte the same for the same arguments. The first test videos have one event each, in this order: vehicle,
    runner, thrown; the last one has none. UserError where `folder` holds files.
    """
    with new_synthetic_folder(folder, "python memae/script_training.py") as new:
        for part, videos in (("Train", TRAIN_VIDEOS), ("Test", TEST_VIDEOS)):
            for number in range(1, videos + 1):
                random = np.random.default_rng([seed, part == "Test", number])
                event = EVENTS[number - 1] if part == "Test" and number <= len(EVENTS) else None
                place = new / part / f"{part}{number:03d}"
                masks = place.with_name(f"{place.name}_gt")
                place.mkdir(parents=True)
                if part == "Test":
                    masks.mkdir()
                for i, (frame, mask) in enumerate(draw_video(frames, event, random), start=1):
                    Image.fromarray(frame).save(place / f"{i:03d}.tif")
                    if part == "Test":
                        Image.fromarray(mask.astype(np.uint8) * 255).save(masks / f"{i:03d}.bmp")


def draw_video(frames: int, event: str | None, random: np.random.Generator) -> list[tuple[np.ndarray, np.ndarray]]:
    """Frames (96, 128) uint8, each with the mask of what is abnormal in it, bool (96, 128)."""
    ground = textures.gravel()[: HEIGHT * 2, : WIDTH * 2].reshape(HEIGHT, 2, WIDTH, 2).mean(axis=(1, 3))
    ground = 150 + 0.35 * (ground - ground.mean())
    walkers = []
    for y, direction in LANES:
        for slot in range(4):
            x, feet = slot * WIDTH / 4 + random.uniform(-8, 8), y + random.uniform(-5, 5)
            speed = direction * random.uniform(0.6, 1.0)  # px per frame
            height, grey, phase = random.uniform(14, 18), random.uniform(30, 80), random.uniform(0, 2 * np.pi)
            walkers.append((feet, x, speed, height, grey, phase))
    first, last = round(0.4 * frames), round(0.8 * frames)  # of the event
    lane = int(random.integers(2))
    video = []
    for t in range(frames):
        image, mask = ground.copy(), np.zeros((HEIGHT, WIDTH), bool)
        for feet, x, speed, height, grey, phase in sorted(walkers):  # the nearest last
            _person(image, (x + speed * t + 10) % (WIDTH + 20) - 10, feet, height, grey, phase + 0.45 * t)
        if event and first <= t < last:
            done = (t - first) / (last - first)  # 0..1
            y, direction = LANES[lane]
            if event == "vehicle":
                _vehicle(image, _along(done, direction, 24), y + 4, mask)
            elif event == "runner":
                _person(image, _along(done, -direction, 8), y, 18, 20, 1.3 * t, mask, stride=2.0)
            else:
                _disc(image, 8 + done * (WIDTH - 16), 70 - 220 * done * (1 - done), 4, 245, mask)
        noisy = image + random.normal(0, 2, image.shape)
        video.append((np.clip(np.rint(noisy), 0, 255).astype(np.uint8), mask))
    return video


def _along(done: float, direction: int, outside: float) -> float:
    """x after a share `done` of the way, from and to so many pixels outside of the picture."""
    x = -outside + done * (WIDTH + 2 * outside)
    return x if direction > 0 else WIDTH - x


def _paint(image: np.ndarray, covered: np.ndarray, grey: float, mask: np.ndarray | None) -> None:
    image[covered] = grey
    if mask is not None:
        mask |= covered


def _disc(
    image: np.ndarray, x: float, y: float, radius: float, grey: float, mask: np.ndarray | None, tall: float = 1.0
) -> None:
    rows, columns = np.ogrid[: image.shape[0], : image.shape[1]]
    _paint(image, (columns - x) ** 2 + ((rows - y) / tall) ** 2 <= radius**2, grey, mask)


def _person(
    image: np.ndarray, x: float, feet: float, height: float, grey: float, phase: float,
    mask: np.ndarray | None = None, stride: float = 1.0,
) -> None:  # fmt: skip
    """Head, body and two legs that swing with `phase`."""
    _disc(image, x, feet - 0.88 * height, 0.12 * height, grey + 25, mask)
    _disc(image, x, feet - 0.57 * height, 0.14 * height, grey, mask, tall=1.6)
    for side in (-1, 1):
        swing = side * stride * 0.16 * height * np.sin(phase)
        for part in np.linspace(0, 1, 8):
            _disc(image, x + part * swing, feet - (1 - part) * 0.38 * height, 1.2, grey, mask)


def _vehicle(image: np.ndarray, x: float, ground: float, mask: np.ndarray) -> None:
    """A van with two wheels, 40 px long."""
    rows, columns = np.ogrid[: image.shape[0], : image.shape[1]]
    body = (abs(columns - x) <= 20) & (rows <= ground - 2) & (rows >= ground - 18)
    _paint(image, body, 215, mask)
    _paint(image, (abs(columns - x - 2) <= 11) & (rows <= ground - 11) & (rows >= ground - 16), 60, mask)
    for wheel in (-12, 12):
        _disc(image, x + wheel, ground - 1, 4, 25, mask)
