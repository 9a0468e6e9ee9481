"""The three data sets: which images train and test, how they are read and normalised, batches of them.

MVTec        root/train/good, root/test/<good or a defect>; all of train/good trains
Panorama     root/good_ones, root/bad_ones; the first int(0.7 n) of the sorted good images train
RoadImages   root/{good_ones,bad_ones}/{intensity_files,height_files}, paired by name or number; split like Panorama
"""

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from common.cli import note, number_of, progress, say
from common.files import UserError
from common.images import (
    MARK,
    Sample,
    fingerprint,
    image_files,
    mvtec_dataset,
    note_copies,
    note_left_out,
    opened_image,
    read_image,
    require_readable,
    resolve_max_value,
    synthetic,
    visible,
)
from common.scoring import named_images

TRAINED_SHARE = 0.7  # of the good images of Panorama and RoadImages
BAD_PER_TRAINED = 2  # at most so many bad images of Panorama for each training image
IMAGENET = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])  # mean and standard deviation of R, G, B
HALF = torch.full((2, 3), 0.5)
ROAD_FOLDERS = ("intensity_files", "height_files")


@dataclass(frozen=True)
class Item:
    """One image: `name` is its path within the data set (RoadImages: the intensity file's), `label` 0 is good."""

    name: str
    path: Path
    label: int = 0
    height: Path | None = None  # RoadImages
    mask: tuple[Path, ...] = ()  # MVTec
    max_value: int = 65535  # of 16-bit images what is white; not of RoadImages

    @property
    def defect(self) -> str:
        """The kind of its defect, or "good": its folder in the data set (MVTec: in test/)."""
        parts = Path(self.name).parts
        return parts[1] if parts[0] == "test" and len(parts) > 2 else parts[0]

    @property
    def paths(self) -> list[Path]:
        """Its files, masks apart."""
        return [self.path, *([self.height] if self.height else [])]


@dataclass
class Dataset:
    """Training and test part of the folder `root`, and what they are."""

    kind: str
    root: Path
    train: list[Item]
    held_out: list[Item]
    test: list[Item]
    data: str  # what results say they were computed on: "synthetic", or the folder
    fingerprint: str
    max_value: int


def load_dataset(kind: str, root: Path, limit: int | None = None, max_value: int | str = 65535) -> Dataset:
    """List the images of a data set, check that each can be read, and keep at most `limit` of each part, evenly spaced.

    max_value: see `common.images.resolve_max_value`; images of RoadImages are read as they are.

    Raises UserError where folders or images are missing, unpaired, or cannot be read.
    """
    if not root.is_dir():
        raise UserError(f"there is no folder {root}: give the data set's with --dataset-path, or try --demo")
    held_out = []
    if kind == "MVTec":
        textures = mvtec_dataset(root, max_value)
        max_value, generated = textures.max_value, textures.synthetic
        train, held_out, test = (_items(part, root) for part in (textures.train, textures.held_out, textures.test))
    else:
        good = _street_items(kind, root, "good_ones", 0)
        some = (root / "bad_ones").is_dir() and visible(root / "bad_ones")
        bad = _street_items(kind, root, "bad_ones", 1) if some else []
        split = int(TRAINED_SHARE * len(good))
        if split < 1 or split == len(good):
            number = number_of(len(good), "image")
            raise UserError(f"{root / 'good_ones'} has {number}: at least 2 are needed to train and to test")
        train = good[:split]
        tested = BAD_PER_TRAINED * split if kind == "Panorama" else len(bad)
        test = good[split:] + bad[:tested]
        if left := bad[tested:]:
            of = f"{len(left)} of {len(bad)} images in {root / 'bad_ones'} are left out, such as {left[0].path.name}"
            note(f"{of}: {BAD_PER_TRAINED} a training image are tested")
        if not bad:
            note(f"{root} has no bad images: there is no AUROC")
        if generated := synthetic(root):
            say(f"the images in {root} are generated stand-ins, not real data")
        others = [path for path in visible(root) if path.name not in ("good_ones", "bad_ones", MARK)]
        note_left_out(others, f"in {root} beside good_ones and bad_ones")
        require_sound(train + test)
        note_copies([item.path for item in train], [item.path for item in test])
        if kind == "Panorama":
            max_value = resolve_max_value([item.path for item in train], max_value, [item.path for item in test])
        elif max_value != 65535:
            note(f"--max-value {max_value} has no effect on RoadImages, whose values are taken as they are")
            max_value = 65535
    if limit and max(len(train), len(test)) > limit:
        note(f"--demo uses at most {limit} each of {len(train)} images to train on and {len(test)} to test on")
    train, test = _thinned(train, limit), _thinned(test, limit)
    paths = [path for item in train + held_out + test for path in item.paths]
    parts = [[replace(item, max_value=max_value) for item in part] for part in (train, held_out, test)]
    data = "synthetic" if generated else str(root.resolve())
    return Dataset(kind, root, *parts, data, fingerprint(paths, root), max_value)


def _thinned(items: list[Item], limit: int | None) -> list[Item]:
    if limit is None or len(items) <= limit:
        return items
    return [items[i * len(items) // limit] for i in range(limit)]


def _items(samples: Sequence[Sample], root: Path) -> list[Item]:
    items = [Item(one.path.relative_to(root).as_posix(), one.path, one.label, mask=one.mask) for one in samples]
    return sorted(items, key=lambda item: item.name)


def _street_items(kind: str, root: Path, part: str, label: int) -> list[Item]:
    if kind == "RoadImages":
        return road_items(root / part, root, label)
    if (root / part / "intensity_files").is_dir():
        raise UserError(f"{root} holds pairs of intensity and height images: use --dataset RoadImages")
    return [Item(path.relative_to(root).as_posix(), path, label) for path in _files(root / part)]


def road_items(folder: Path, root: Path, label: int = 0) -> list[Item]:
    """The pairs of folder/intensity_files and folder/height_files, by the intensity files' order; names are relative to
    `root`. Partners have the same path but for the suffix; where some have not, all have the same numbers in it.

    Raises UserError where files are missing, or one has no partner or several.
    """
    intensities, heights = files = [_files(folder / name) for name in ROAD_FOLDERS]
    others = [path for path in visible(folder) if path.name not in ROAD_FOLDERS]
    note_left_out(others, f"in {folder} beside {' and '.join(ROAD_FOLDERS)}")

    def name(path: Path) -> str:
        return path.relative_to(folder).with_suffix("").as_posix().partition("/")[2]

    def numbers(path: Path) -> tuple[int, ...] | str:
        return tuple(map(int, re.findall("[0-9]+", name(path)))) or name(path)

    def alone(key: Callable[[Path], Any]) -> list[list[Path]]:
        """Of each folder, the files that have not just one partner."""
        counts = [Counter(map(key, paths)) for paths in files]
        return [[path for path in paths if [count[key(path)] for count in counts] != [1, 1]] for paths in files]

    key = min((name, numbers), key=lambda key: sum(map(len, alone(key))))
    if any(unpaired := alone(key)):
        some = [", ".join([path.name for path in paths[:3]] + ["..."] * (len(paths) > 3)) for paths in unpaired]
        named = [f"{len(p)} in {kind} ({names or 'none'})" for p, kind, names in zip(unpaired, ROAD_FOLDERS, some)]
        raise UserError(f"{folder}: images without just one partner of the same name or numbers: {' and '.join(named)}")
    partners = {key(path): path for path in heights}
    pairs = [(path, partners[key(path)]) for path in intensities]
    if key is numbers:
        example = " with ".join(path.relative_to(folder).as_posix() for path in pairs[0])
        note(f"{folder}: {number_of(len(pairs), 'pair')} by the numbers in their names, such as {example}")
    return [Item(path.relative_to(root).as_posix(), path, label, height) for path, height in pairs]


def _files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        parts = "Panorama needs good_ones and bad_ones, RoadImages intensity_files and height_files in each"
        raise UserError(f"there is no folder {folder}: {parts}")
    return image_files(folder)


def unlabelled(images: Sequence[Path], kind: str) -> list[Item]:
    """Images to score, of --images; of RoadImages the pairs in intensity_files and height_files of its one folder.
    Raises UserError where there are none."""
    if kind != "RoadImages":
        return [Item(name, path) for name, path in named_images(images).items()]
    if len(images) > 1:
        raise UserError("--images: a model of RoadImages takes one folder, with intensity_files and height_files")
    return road_items(images[0], images[0])


def require_sound(items: Sequence[Item]) -> None:
    """Raise one UserError that names all images that cannot be read, or height images of other sizes."""
    require_readable([item.path for item in items if not item.height])
    roads = [item for item in items if item.height]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        highest = list(progress(pool.map(_highest, roads), "checking", len(roads)))
    if problems := [str(error) for error in highest if isinstance(error, UserError)]:
        raise UserError(f"{number_of(len(problems), 'image')} cannot be used, repair or remove: {'; '.join(problems)}")
    if beyond := [item.name for item, value in zip(roads, highest) if value > 1]:
        pairs = f"{len(beyond)} of {number_of(len(roads), 'pair')}, such as {beyond[0]}"
        note(
            f"values up to {max(highest):.6g} in {pairs}, where 8 bits have 0 to 1: other depths are not scaled, as "
            "published; in 8 bits both would count alike"
        )


def _highest(item: Item) -> float | UserError:
    """A road image's highest value, or why there is none."""
    try:
        return read(item, "RoadImages").abs().max().item()
    except UserError as error:
        return error


def read(item: Item, kind: str) -> Tensor:
    """The image as the data set has it, (3, H, W): RGB in 0..1, of RoadImages (height, intensity, intensity), each the
    first channel: 8 bits scaled to 0..1, other depths as they are. Raises UserError where it cannot be read."""
    if kind != "RoadImages":
        return torch.from_numpy(np.array(read_image(item.path, item.max_value))).movedim(-1, 0) / 255
    intensity, height = _first_channel(item.path), _first_channel(item.height)
    if intensity.shape != height.shape:
        sizes = " and ".join(f"{channel.shape[1]} x {channel.shape[0]}" for channel in (intensity, height))
        raise UserError(f"{item.path} and {item.height} differ in size: {sizes} pixels")
    return torch.stack((height, intensity, intensity))


def _first_channel(path: Path) -> Tensor:
    """(H, W) float32."""
    with opened_image(path) as image:
        values = np.asarray(image.convert("RGB") if image.mode in ("1", "P") else image)
    values = values[..., 0] if values.ndim == 3 else values
    channel = torch.from_numpy(values.astype(np.float32))
    if not channel.isfinite().all():
        raise UserError(f"cannot read image {path}: it holds nan or infinite values")
    return channel / 255 if values.dtype == np.uint8 else channel


def mean_and_std(kind: str) -> Tensor:
    """(2, 3): what images are normalised by."""
    return IMAGENET if kind == "MVTec" else HALF


def prepare(image: Tensor, kind: str, imsize: int, antialias: bool = False) -> Tensor:
    """Resize (3, H, W) bilinearly to (3, imsize, imsize) and normalise."""
    image = F.interpolate(image[None], (imsize, imsize), mode="bilinear", align_corners=False, antialias=antialias)[0]
    mean, std = mean_and_std(kind)
    return (image - mean[:, None, None]) / std[:, None, None]


def viewable(images: Tensor, kind: str) -> Tensor:
    """Undo the normalisation of (B, 3, H, W): values in 0..1."""
    mean, std = mean_and_std(kind).to(images.device)
    return (images * std[:, None, None] + mean[:, None, None]).clamp(0, 1)


class Images:
    """Prepared images by number, decoded once and kept as long as they fit into `limit_gib`."""

    def __init__(
        self,
        items: Sequence[Item],
        kind: str,
        imsize: int,
        antialias: bool = False,
        threads: int = 0,
        limit_gib: float = 4.0,
    ):
        """threads: that decode images (0: as many as there are processors, and no batch ahead)."""
        self.items, self.kind, self.imsize, self.antialias, self.threads = items, kind, imsize, antialias, threads
        room = min(len(items), int(limit_gib * 2**30 / (3 * imsize * imsize * 4)))  # images
        # One tensor, which takes memory as it fills: small ones between decoded images would leave gaps between them.
        self.kept = torch.empty(room, 3, imsize, imsize)
        self.filled = [False] * room

    def __len__(self) -> int:
        return len(self.items)

    def one(self, index: int) -> Tensor:
        """Image number `index`, (3, imsize, imsize). UserError where it cannot be read."""
        if index < len(self.filled) and self.filled[index]:
            return self.kept[index]
        image = prepare(read(self.items[index], self.kind), self.kind, self.imsize, self.antialias)
        if index < len(self.filled):
            self.kept[index] = image
            self.filled[index] = True
        return image

    def batches(self, batches: Sequence[Sequence[int]]) -> Iterator[Tensor]:
        """The images of each batch of numbers, (B, 3, imsize, imsize); with threads, the next batch is read while
        this one is computed."""
        waiting, ahead = [], 1 if self.threads else 0
        with ThreadPoolExecutor(self.threads or os.cpu_count()) as pool:
            for batch in batches:
                waiting.append([pool.submit(self.one, index) for index in batch])
                if len(waiting) > ahead:
                    yield torch.stack([future.result() for future in waiting.pop(0)])
            for futures in waiting:
                yield torch.stack([future.result() for future in futures])
