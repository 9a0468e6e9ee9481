"""Networks as ONNX files, which run without PyTorch and without this project."""

import importlib
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.cli import say
from common.files import UserError, atomic_write, require_writable

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
TOLERANCE = 1e-3  # of the largest value of an output
SMOOTHED = "bilinear, antialiased (Pillow's resize of 8-bit images)"
LIMIT = 2 * 2**30 - 2**24  # bytes of parameters: such a file has less than 2 GiB in all


def require_packages() -> None:
    """UserError that names the optional package that is missing."""
    for name in PACKAGES:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise UserError(f"the export needs the package {name}: pip install {' '.join(PACKAGES)}") from error


def examples(channels: int, *sides: int) -> Tensor:
    """Three smooth random images (3, channels, *sides) in steps of 1/255 from 0 to 1; sides: of space, or time and
    space."""
    coarse = torch.rand(
        3, channels, *(max(side // 16, 2) for side in sides), generator=torch.Generator().manual_seed(0)
    )
    fine = F.interpolate(coarse, sides, mode="bilinear" if len(sides) == 2 else "trilinear")
    return (fine * 255).round() / 255


@torch.no_grad()
def export(
    path: Path,
    source: Path,
    network: nn.Module,
    inputs: Tensor,
    input_name: str,
    output_names: Sequence[str],
    method: str,
    channels: str,
    resizing: str,
    threshold: Mapping[str, Any] | None = None,
    **more: str,
) -> None:
    """Write `network`, in eval mode on the CPU, to `path`, once ONNX Runtime gives the same outputs for `inputs`.

    source: the checkpoint, which stays; network: one tensor, whose first dimension is free, to a tuple of tensors;
    inputs: at least three examples, two of which are traced. The file's metadata hold method, channels (such as RGB),
    values (their range, 0..1), size (height x width), resizing (how images come to it), threshold and pixel_threshold
    ("none" where there is none), and `more`. The old file survives every failure. UserError where a package is missing,
    the network is too large, the file cannot be written, or outputs differ by more than TOLERANCE.
    """
    if path.is_dir():
        raise UserError(f"{path} is a folder: give a file, such as --output {path / 'model.onnx'}")
    if path.exists() and path.samefile(source):
        raise UserError(f"{path} is the checkpoint itself: give another file as --output")
    require_writable(path.parent)
    require_packages()  # after all that can be wrong without them
    import onnxruntime

    say(f"exporting to {path}, which takes a minute")
    network.eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter's own affairs
        program = torch.onnx.export(
            network, (inputs[:2],), dynamo=True, verbose=False, input_names=[input_name],
            output_names=list(output_names), dynamic_shapes=({0: torch.export.Dim("batch")},),
        )  # fmt: skip
    limits = threshold or {"image": "none", "pixel": "none"}
    about = {"method": method, "channels": channels, "values": "0..1", "resizing": resizing, **more}
    about |= {"size": " x ".join(map(str, inputs.shape[-2:]))}
    about |= {"threshold": str(limits["image"]), "pixel_threshold": str(limits["pixel"])}
    program.model.metadata_props.update(about)
    size = sum(value.const_value.nbytes for value in program.model.graph.initializers.values())
    if size > LIMIT:
        raise UserError(f"the network's parameters take {size / 2**30:.1f} GiB, an ONNX file holds less than 2")
    content = program.model_proto.SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    found = session.run(None, {input_name: inputs.numpy()})
    difference = largest_difference(found, [output.numpy() for output in network(inputs)])
    if not difference <= TOLERANCE:
        raise UserError(f"ONNX Runtime's outputs are off by {difference:.1e} of the largest value: nothing is written")
    with atomic_write(path) as file:
        file.write(content)
    given = ", ".join(f"{name} {_shape(output)}" for name, output in zip(output_names, found))
    say(f"{path} ({path.stat().st_size / 2**20:.1f} MiB): {input_name} {_shape(inputs)} -> {given}")
    say(f"ONNX Runtime agrees with PyTorch to {difference:.0e} of the largest value")


def largest_difference(found: Sequence[np.ndarray], wanted: Sequence[np.ndarray]) -> float:
    """The largest difference between outputs, each as a share of the largest value wanted of it; nan where any is."""
    shares = [np.abs(a - b).max() / max(np.abs(b).max(), 1e-12) for a, b in zip(found, wanted, strict=True)]
    return float(np.max(shares))


def _shape(values: Tensor | np.ndarray) -> str:
    return f"({', '.join(['batch', *map(str, values.shape[1:])])})"
