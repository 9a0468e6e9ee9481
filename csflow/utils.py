"""Data, loss and scores of CS-Flow: what training, evaluation and scoring share."""

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision import transforms

from common import distributed
from common.files import UserError
from common.images import Sample, fingerprint, mvtec_dataset, note_squeezed, read_image
from common.runtime import autocast
from csflow.config import Config
from csflow.model import FeatureExtractor

FeatureBatch = list[Tensor]  # per scale s: (B, C, H / 32 / 2^s, W / 32 / 2^s), float32


@dataclass
class Dataset:
    """The images of one class folder: samples of both parts, class names by label, and what they are."""

    root: Path
    train: list[Sample]  # the last `held_out` of them are never trained on
    held_out: int
    test: list[Sample]
    class_names: list[str]
    synthetic: bool
    fingerprint: str

    @property
    def data(self) -> str:
        """What results say they were computed on: "synthetic", or the folder."""
        return "synthetic" if self.synthetic else str(self.root.resolve())

    def name(self, sample: Sample) -> str:
        """The sample's path within the class folder, with forward slashes."""
        return sample.path.relative_to(self.root).as_posix()

    def split(self, config: Config) -> tuple[list[int], list[int]]:
        """Indices of `train` to train on, and of the images held out to set the threshold."""
        count = len(self.train) - self.held_out
        rows, held = split_calibration(count, config.calibration_share, config.seed)
        return rows, held + list(range(count, len(self.train)))


def load_dataset(config: Config) -> Dataset:
    """List the images of config.class_name and check that each can be read; resolves config.max_value. UserError names
    what is wrong."""
    root = config.dataset_path / config.class_name
    found = mvtec_dataset(root, config.max_value)
    config.max_value = found.max_value
    note_squeezed(found.paths, config.img_size, "--img_size takes a height and a width")
    train, mark = found.train + found.held_out, fingerprint(found.paths, root)
    return Dataset(root, train, len(found.held_out), found.test, found.class_names, found.synthetic, mark)


def load_images(images: Sequence[Path | np.ndarray], config: Config) -> Tensor:
    """Images, files or arrays (H, W, 3) uint8, as the extractor wants them: (B, 3, H, W), resized to config.img_size
    and normalised."""
    transform = transforms.Compose(
        [
            transforms.Resize(config.img_size),  # bilinear, antialiased
            transforms.ToTensor(),
            transforms.Normalize(config.norm_mean, config.norm_std),
        ]
    )

    def load(image: Path | np.ndarray) -> Tensor:
        return transform(read_image(image, config.max_value) if isinstance(image, Path) else Image.fromarray(image))

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return torch.stack(list(pool.map(load, images)))


@dataclass
class StoredFeatures:
    """Extracted features, mapped from their files: only the rows of a batch are ever in memory."""

    maps: list[np.memmap]  # per scale (N, C, h, w)
    weights: str  # checksum of the extractor's weights

    def __len__(self) -> int:
        return len(self.maps[0])

    def batch(self, indices: Sequence[int]) -> FeatureBatch:
        """Features of the images `indices`, on the CPU. UserError names a file that holds nan or infinite values."""
        found = [array[np.asarray(indices)] for array in self.maps]
        for array, features in zip(self.maps, found):
            if not np.isfinite(features).all():
                raise UserError(f"{array.filename} holds nan or infinite values: extract the features anew")
        return [torch.from_numpy(features) for features in found]


@dataclass
class ComputedFeatures:
    """Features computed from the images, files or arrays, whenever they are asked for (pre_extracted False)."""

    images: Sequence[Path | np.ndarray]
    config: Config
    extractor: FeatureExtractor
    device: torch.device

    @property
    def weights(self) -> str:
        """Checksum of the extractor's weights."""
        return self.extractor.checksum()

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, indices: Sequence[int]) -> FeatureBatch:
        """Features of the images `indices`, on the device."""
        images = load_images([self.images[index] for index in indices], self.config)
        return self.extractor(images.to(self.device))


Features = StoredFeatures | ComputedFeatures


def require_same_weights(features: Features, about: Mapping[str, Any], path: Path) -> None:
    """UserError unless the model in `path`, with `about` stored beside it, was trained on this extractor's features."""
    if about.get("weights") not in (None, features.weights):  # None: an authors' state dict, which does not tell
        raise UserError(
            f"{path} was trained on features of other weights of the extractor (checksum {about['weights']}, not "
            f"{features.weights}): use the --extractor_weights it was trained with, and extract the features anew"
        )


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
    """Mean over channels of z^2 at the finest scale: (B, h, w) with h, w = config.map_size."""
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
def run_flow(
    model: Callable[[FeatureBatch], tuple[list[Tensor], list[Tensor]]],
    features: Features,
    indices: Sequence[int],
    config: Config,
    device: torch.device,
) -> dict[str, np.ndarray]:
    """Score images: "std" and "mean" (N,), "map" (N, h, w), and "loss" (N,), each image's negative log-likelihood.

    Raises UserError where any of these is not finite: such a score ranks nowhere.
    """
    if not len(indices):
        return dict.fromkeys(("std", "mean", "loss"), np.empty(0)) | {"map": np.empty((0, *config.map_size))}
    autocast(device, "fp32")  # in a training with tf32, too: scores and thresholds of all devices belong together
    rows: dict[str, list[Tensor]] = {"std": [], "mean": [], "map": [], "loss": []}
    own = distributed.share(indices)
    # A process for which nothing is left scores the first image, to be left out: networks take no empty batch.
    for batch in torch.tensor(own if len(own) else indices[:1]).split(config.batch_size):
        z, log_det = model([x.to(device) for x in features.batch(batch.tolist())])
        scores = image_scores(z)
        rows["std"].append(scores["std"])
        rows["mean"].append(scores["mean"])
        rows["map"].append(anomaly_maps(z))
        rows["loss"].append(image_losses(z, log_det))
    scored = {
        name: distributed.gathered(torch.cat(values)[: len(own)].float().cpu().numpy()) for name, values in rows.items()
    }
    if not all(np.isfinite(values).all() for values in scored.values()):
        raise UserError("the scores are not finite: the model is diverged or the features are damaged")
    return scored
