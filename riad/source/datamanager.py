"""MNIST, scikit-learn's digits, and folders in MVTec AD's layout: images to train, to validate and to test on."""

import os
import socket
import zlib
from argparse import Namespace
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor
from torchvision.datasets import MNIST

from common.cli import progress, say
from common.files import UserError, reason, temporary_folder
from common.images import Sample, fingerprint, mvtec_dataset, note_squeezed, read_image
from riad.options import HERE


@dataclass
class InFiles:
    """Images that are read when they are needed, as RGB of `side` x `side` pixels."""

    paths: list[Path]
    side: int
    max_value: int

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, rows: Sequence[int]) -> Tensor:
        """(len(rows), 3, side, side) uint8."""
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            images = pool.map(lambda row: read_image(self.paths[row], self.max_value), rows)
            return torch.stack([to_tensor(image, self.side) for image in images])


Images = Tensor | InFiles  # images[rows]: (len(rows), C, H, W) uint8


def to_tensor(image: Image.Image, side: int) -> Tensor:
    """An RGB image, resized (bilinear, antialiased), as (3, side, side) uint8."""
    resized = np.array(image.resize((side, side), Image.Resampling.BILINEAR))
    return torch.from_numpy(resized).permute(2, 0, 1)


@dataclass
class Part:
    """Images with their classes: `labels` 0 is good and any other value is not; `classes` index `class_names`."""

    images: Images
    classes: np.ndarray
    labels: np.ndarray
    names: list[str]
    samples: list[Sample] | None = None  # mvtec: with the defects' masks


@dataclass
class DataSet:
    """train: the good images to learn from; validation: labelled (MNIST, repo) or further good ones; test."""

    train: Tensor
    validation: Part
    test: Part
    class_names: list[str]
    data: str  # what results say they were computed on
    fingerprint: str

    @property
    def criterion(self) -> str:
        """What chooses the epoch: "auroc" where the validation images are labelled, else "val_loss"."""
        return "auroc" if self.validation.labels.any() else "val_loss"

    @property
    def channels(self) -> int:
        """Of each image."""
        return self.train.shape[1]


def load(settings: Namespace) -> tuple[DataSet, Namespace]:
    """The data that the options of run.py name, and the options with dataset and max_value as the data decided them.

    Raises UserError where images are missing or unreadable.
    """
    if settings.dataset == "mvtec":
        return _mvtec(settings)
    asked, root, name, data = settings.dataset is not None, settings.data_path or HERE / "data", "mnist", "MNIST"
    if not asked and (root / "train/good").is_dir() and not (root / "MNIST").exists():
        raise UserError(f"--data {root} looks like a category in MVTec's layout, not MNIST: add --dataset mvtec")
    try:
        arrays = _mnist(root) if settings.dataset != "digits" else None
    except UserError as error:
        if asked or (root / "MNIST").exists():  # files that are broken are no reason to take others
            raise
        say(f"{error}; scikit-learn's digits stand in for it")
        arrays = None
    if arrays is None:
        arrays, name = _digits(), "digits"
        data = "scikit-learn's digits, 8 x 8, scaled up" + ("" if asked else " (a stand-in for MNIST)")
    return _of_digits(settings, *arrays, data), Namespace(**{**vars(settings), "dataset": name})


def _mnist(root: Path) -> tuple[Tensor, np.ndarray, Tensor, np.ndarray]:
    """MNIST's training and test images (N, 28, 28) uint8 with their digits, downloaded where they are not in `root`."""
    if not (root / "MNIST").exists():
        _download(root)
    try:
        parts = [MNIST(root, train=train, download=False) for train in (True, False)]
        arrays = [(part.data, part.targets.numpy()) for part in parts]
        for images, digits in arrays:
            if images.ndim != 3 or images.dtype != torch.uint8 or not 1 < len(images) == len(digits):
                raise ValueError("other images than MNIST's")
            if digits.min() < 0 or digits.max() > 9:
                raise ValueError("other labels than digits")
    except Exception as error:  # torchvision's reader asserts, unpacks and indexes whatever it finds
        raise UserError(
            f"cannot read MNIST in {root / 'MNIST/raw'}: its files are missing or damaged; remove {root / 'MNIST'}, or "
            "give another --data"
        ) from error
    return (*arrays[0], *arrays[1])


def _download(root: Path) -> None:
    say(f"no MNIST in {root}: downloading it")
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(30)  # seconds; without it, a silent server would hold us forever
    try:
        with temporary_folder(root) as temporary:
            MNIST(temporary, download=True)
            (temporary / "MNIST").rename(root / "MNIST")
    except (OSError, HTTPException, RuntimeError) as error:
        words = reason(error) if isinstance(error, OSError) else " ".join(str(error).split())  # torchvision's lines
        raise UserError(
            f"MNIST is not in {root} and cannot be downloaded ({words}): put its four files into {root / 'MNIST/raw'}, "
            "or use --dataset digits"
        ) from error
    finally:
        socket.setdefaulttimeout(before)


def _digits() -> tuple[Tensor, np.ndarray, Tensor, np.ndarray]:
    """scikit-learn's 1797 digits, two of three to train on: (N, 28, 28) uint8 and the digits, twice."""
    found = load_digits()
    small = torch.from_numpy(found.images).float()[:, None] / 16  # (N, 1, 8, 8), 0..1
    large = F.interpolate(small, 28, mode="bilinear", align_corners=False)[:, 0]
    images, third = (large * 255).round().byte(), np.arange(len(large)) % 3 == 2
    return images[~third], found.target[~third], images[third], found.target[third]


def _of_digits(
    settings: Namespace, images: Tensor, digits: np.ndarray, test_images: Tensor, test_digits: np.ndarray, data: str
) -> DataSet:
    """settings.select_norm is good. Test: the first half of the test images. Validation: the second half, or, where no
    labels may choose the epoch (--algorithm paper), a share of the training images."""
    normal, rows = settings.select_norm, np.flatnonzero(digits == settings.select_norm)[: settings.train_images or None]
    if not len(rows):
        raise UserError(f"--select_norm {normal}: there is no such digit to train on")

    def part(images: Tensor, digits: np.ndarray, rows: np.ndarray, name: str) -> Part:
        labels, names = (digits[rows] != normal).astype(int), [f"{name}/{row}" for row in rows]
        return Part(_sized(images[rows], settings.img_size), digits[rows], labels, names)

    first, second = np.split(np.arange(len(test_digits)), [len(test_digits) // 2])
    test = part(test_images, test_digits, first, "test")
    if settings.algorithm == "repo":
        validation = part(test_images, test_digits, second[: settings.eval_images or None], "test")
        if validation.labels.all() or not validation.labels.any():
            raise UserError(f"--eval_images {settings.eval_images}: too few, all of them are of one class")
    else:
        rows, held = split(rows, settings.validation_share, settings.seed)
        validation = part(images, digits, held, "train")
    train = _sized(images[rows], settings.img_size)
    mark = zlib.crc32(test.images.numpy().tobytes(), zlib.crc32(train.numpy().tobytes()))
    return DataSet(train, validation, test, [str(digit) for digit in range(10)], data, f"{mark:08x}")


def _sized(images: Tensor, side: int) -> Tensor:
    """(N, h, w) uint8 to (N, 1, side, side) uint8, bilinear where sizes differ."""
    images = images[:, None]
    if images.shape[2:] == (side, side):
        return images.contiguous()
    resized = F.interpolate(images.float(), (side, side), mode="bilinear", align_corners=False, antialias=True)
    return resized.round().clamp(0, 255).byte()


def _mvtec(settings: Namespace) -> tuple[DataSet, Namespace]:
    root, side = settings.data_path, settings.img_size
    found = mvtec_dataset(root, settings.max_value)
    note_squeezed(found.paths, (side, side), "RIAD takes squares, cut them into such first")
    good = found.train[: settings.train_images or None]
    rows, held = split(np.arange(len(good)), settings.validation_share, settings.seed)
    held_out = [*(good[row] for row in held), *found.held_out]

    def decoded(samples: Sequence[Sample]) -> Tensor:  # once, N * 3 * side^2 bytes
        files = InFiles([sample.path for sample in samples], side, found.max_value)
        images = torch.empty((len(files), 3, side, side), dtype=torch.uint8)
        for start in progress(range(0, len(files), 64), "reading images"):
            images[start : start + 64] = files[range(start, min(start + 64, len(files)))]
        return images

    def part(samples: list[Sample], images: Images) -> Part:
        classes = np.array([sample.label for sample in samples], int)
        names = [sample.path.relative_to(root).as_posix() for sample in samples]
        return Part(images, classes, (classes > 0).astype(int), names, samples)

    data = DataSet(
        decoded([good[row] for row in rows]),
        part(held_out, decoded(held_out)),
        part(found.test, InFiles([sample.path for sample in found.test], side, found.max_value)),
        found.class_names,
        "synthetic" if found.synthetic else str(root.resolve()),
        fingerprint(found.paths, root),
    )
    return data, Namespace(**{**vars(settings), "max_value": found.max_value})


def split(rows: np.ndarray, validation_share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """`rows` to train on and to validate on, both at least one; the draw depends on the seed alone."""
    if len(rows) < 2:
        raise UserError(f"{len(rows)} good image to train on: two are needed, one of them for validation")
    held = min(max(round(validation_share * len(rows)), 1), len(rows) - 1)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)).numpy()
    return np.sort(rows[order[held:]]), np.sort(rows[order[:held]])
