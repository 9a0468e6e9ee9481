"""Data, loss and scores of CS-Flow: what training, evaluation and scoring share."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision import transforms

from common import distributed
from common.files import UserError
from common.images import Category, Sample, fingerprint, mvtec_dataset, note_squeezed, read_image
from common.runtime import autocast
from csflow.model import FeatureExtractor

FeatureBatch = list[Tensor]  # per scale s: (B, C, H / 32 / 2^s, W / 32 / 2^s), float32


@dataclass(frozen=True)
class Dataset(Category):
    """The images of the class folder `root`, and what tells whether others are the same."""

    root: Path
    fingerprint: str

    @property
    def good(self) -> list[Sample]:
        """All good images to learn from; the last ones are never trained on (MVTec LOCO's validation/good)."""
        return self.train + self.held_out

    @property
    def data(self) -> str:
        """What results say they were computed on: "synthetic", or the folder."""
        return "synthetic" if self.synthetic else str(self.root.resolve())

    def name(self, sample: Sample) -> str:
        """The sample's path within the class folder, with forward slashes."""
        return sample.path.relative_to(self.root).as_posix()

    def split(self, calibration_share: float, seed: int) -> tuple[list[int], list[int]]:
        """Indices of `good` to train on, and of the images held out to set the threshold."""
        rows, held = split_calibration(len(self.train), calibration_share, seed)
        return rows, held + list(range(len(self.train), len(self.good)))


def load_dataset(root: Path, max_value: int | str, img_size: Sequence[int]) -> Dataset:
    """List the images of a class folder and check that each can be read; max_value: "auto" or a number, img_size:
    (height, width) to which they will be resized. UserError names what is wrong."""
    category = mvtec_dataset(root, max_value)
    note_squeezed(category.paths, img_size, "--img_size takes a height and a width")
    return Dataset(**vars(category), root=root, fingerprint=fingerprint(category.paths, root))


@dataclass
class StoredFeatures:
    """Extracted features, mapped from their files: only the rows of a batch are ever in memory."""

    maps: list[np.memmap]  # per scale (N, C, h, w)
    extractor: str  # its name
    weights: str  # their checksum

    def __len__(self) -> int:
        return len(self.maps[0])

    def batch(self, indices: Sequence[int]) -> FeatureBatch:
        """Features of the images `indices`, on the CPU. UserError names a file that holds nan or infinite values."""
        batch = [array[np.asarray(indices)] for array in self.maps]
        for array, features in zip(self.maps, batch):
            if not np.isfinite(features).all():
                raise UserError(f"{array.filename} holds nan or infinite values: extract the features again")
        return [torch.from_numpy(features) for features in batch]


@dataclass
class ComputedFeatures:
    """Features computed from the images, files or arrays (H, W, 3) uint8, whenever they are asked for."""

    images: Sequence[Path | np.ndarray]
    network: FeatureExtractor
    device: torch.device
    img_size: Sequence[int]  # height, width
    norm_mean: Sequence[float]
    norm_std: Sequence[float]
    max_value: int  # white in 16-bit images

    def __post_init__(self):
        """Make what brings an image to the extractor's size and range."""
        self.extractor = self.network.name
        self.transform = transforms.Compose(
            [
                transforms.Resize(self.img_size),  # bilinear, antialiased
                transforms.ToTensor(),
                transforms.Normalize(self.norm_mean, self.norm_std),
            ]
        )

    @property
    def weights(self) -> str:
        """Checksum of the extractor's weights."""
        return self.network.checksum()

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, indices: Sequence[int]) -> FeatureBatch:
        """Features of the images `indices`, on the device."""
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            images = torch.stack(list(pool.map(self._load, [self.images[index] for index in indices])))
        return self.network(images.to(self.device))

    def _load(self, image: Path | np.ndarray) -> Tensor:
        image = read_image(image, self.max_value) if isinstance(image, Path) else Image.fromarray(image)
        return self.transform(image)  # (3, height, width), normalised


Features = StoredFeatures | ComputedFeatures


def image_losses(z: list[Tensor], log_det: list[Tensor]) -> Tensor:
    """Each image's negative log-likelihood per element, up to a constant, (B,) (paper, equation 6).

    (0.5 * sum z^2 - sum log-det) over all scales, divided by the number of elements of one image's z.
    """
    squares = sum(0.5 * (z_s**2).sum(dim=(1, 2, 3)) for z_s in z)
    return (squares - sum(log_det)) / sum(z_s[0].numel() for z_s in z)


def get_loss(z: list[Tensor], log_det: list[Tensor]) -> Tensor:
    """The training loss: mean of `image_losses` over the batch."""
    return image_losses(z, log_det).mean()


def image_scores(z: list[Tensor]) -> dict[str, Tensor]:
    """Both anomaly scores of each image, (B,): over v = z^2 / 2 at all scales, "std" (the published fork's,
    population standard deviation) and "mean" (the paper's, section 3.4)."""
    v = torch.cat([(0.5 * z_s**2).flatten(1) for z_s in z], dim=1)
    return {"std": v.std(dim=1, correction=0), "mean": v.mean(dim=1)}


def anomaly_maps(z: list[Tensor]) -> Tensor:
    """Mean over channels of z^2 at the finest scale: (B, h, w), 1/32 of the image's size."""
    return (z[0] ** 2).mean(dim=1)


def split_calibration(count: int, share: float, seed: int) -> tuple[list[int], list[int]]:
    """Indices of the training images to train on, and of those held out to set the threshold.

    A share above 0 holds out at least one image and leaves at least one.
    """
    if share == 0:
        return list(range(count)), []
    if count < 2:
        raise UserError(
            "train/good has one image, none can be held out for the threshold: add images or use --calibration_share 0"
        )
    held = min(max(round(share * count), 1), count - 1)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()
    return sorted(order[held:]), sorted(order[:held])


@torch.no_grad()
def run_flow(model: nn.Module, features: Features, indices: Sequence[int], batch_size: int) -> dict[str, np.ndarray]:
    """Score images: "std" and "mean" (N,), "map" (N, h, w), and "loss" (N,), each image's negative log-likelihood.

    Raises UserError where any of these is not finite: such a score ranks nowhere.
    """
    if not len(indices):
        return dict.fromkeys(("std", "mean", "loss"), np.empty(0)) | {"map": np.empty((0, 0, 0))}
    device = next(model.parameters()).device
    autocast(device, "fp32")  # in a training with tf32, too: scores and thresholds of all devices belong together
    rows: dict[str, list[Tensor]] = {"std": [], "mean": [], "map": [], "loss": []}
    rank_indices = distributed.share(indices)
    # A process for which nothing is left scores the first image, to be left out: networks take no empty batch.
    for batch in torch.tensor(rank_indices if len(rank_indices) else indices[:1]).split(batch_size):
        z, log_det = model([x.to(device) for x in features.batch(batch.tolist())])
        scores = image_scores(z) | {"map": anomaly_maps(z), "loss": image_losses(z, log_det)}
        for name, values in scores.items():
            rows[name].append(values)
    scored = {
        name: distributed.gathered(torch.cat(values)[: len(rank_indices)].float().cpu().numpy())
        for name, values in rows.items()
    }
    if not all(np.isfinite(values).all() for values in scored.values()):
        raise UserError("the scores are not finite: the model is diverged or the features are damaged")
    return scored
