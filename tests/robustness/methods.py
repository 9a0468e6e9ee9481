"""The five trainings, as small as their options allow, and how to tell whether two of them ended alike."""

import csv
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from common.demo_data import make_textures
from common.files import UNFINISHED
from crn.demo_data import ensure_data
from tests.crrn.test_crrn_scripts import CYCLE, write_boards

TIMES = {"time", "seconds", "training_seconds", "metrics/traintime"}


@dataclass
class Method:
    """A method's training in the folder `run`, its data beside it."""

    name: str
    module: str
    state: str  # the checkpoint from which it continues
    lower: str  # the option that lowers the need of memory
    make_data: Callable[[Path], None]
    arguments: Callable[[Path, int], str]  # of the folder that holds data and `run`, and of the epochs

    def argv(self, place: Path, epochs: int) -> list[str]:
        return self.arguments(place, epochs).split()

    def state_file(self, run: Path) -> Path:
        """The checkpoint in the folder `run`."""
        return run / self.state


def _bricks(place: Path) -> None:
    make_textures(place / "data", size=64, n_train=8, n_good=3, n_defect=1)


def _videos(place: Path) -> None:
    for video, frames in (("a", 18), ("b", 17)):
        write_video(place / "data/stripes/Train" / video, frames)


def write_video(folder: Path, frames: int) -> None:
    """Moving stripes, 16 x 16."""
    folder.mkdir(parents=True)
    for k in range(frames):
        row = 128 + 80 * np.sin((np.arange(16) + k) * 0.8)
        Image.fromarray(np.tile(row, (16, 1)).astype(np.uint8)).save(folder / f"{k + 1:03d}.jpg")


METHODS = [
    Method(
        "csflow", "csflow.main", "models/tmp/m", "--batch_size", _bricks,
        lambda place, epochs: (
            f"--dataset_path {place}/data --feature_path {place}/features --class_name brick --modelname m --cpu "
            "--n_scales 2 --img_size 64 --fc_internal 8 --kernel_sizes 3 --batch_size 4 --extractor lite0 "
            f"--hide_tqdm_bar True --sub_epochs 1 --save_every 0 --meta_epochs {epochs}"
        ),
    ),
    Method(
        "crn", "crn.train", "ck/last.ckpt", "--batch-size",
        lambda place: ensure_data("RoadImages", place / "data"),
        lambda place, epochs: (
            f"--mode train --dataset RoadImages --dataset-path {place}/data --demo --ngf 2 --cpu --batch-size 16 "
            f"--checkpoint-path ck --log-dir lm --log-file {place}/log --image-output-path oi --save-every 0 "
            f"--training-steps 1000000 --epochs {epochs}"
        ),
    ),
    Method(
        "crrn", "crrn.1_train", "result/ConvConjLSTM/model_dictionary.pt", "--batch_size",
        lambda place: write_boards(place / "data") and None,
        lambda place, epochs: (
            f"--data {place}/data --cycle {CYCLE} --result {place}/run/result --cpu --n_layers 1 --num_instance 4 "
            f"--batch_size 2 --num_epochs {epochs}"
        ),
    ),
    Method(
        "memae", "memae.script_training",
        "models/model_{0}/{0}_resume.pt".format("MemAE_Conv3DSpar_stripes_MemDim8_EntW0.0002_ShrThres0.0025_Seed1_Non"),
        "--BatchSize", _videos,
        lambda place, epochs: (
            f"--DataRoot {place}/data --Dataset stripes --ModelRoot {place}/run/models --MemDim 8 --UseCUDA no "
            f"--BatchSize 2 --SnapInterval 2 --SaveCheckInterval 99 --EpochNum {epochs}"
        ),
    ),
    Method(
        "riad", "riad.run", "Checkpoint/resume.pth", "--batch", _bricks,
        lambda place, epochs: (
            f"--cpu --filters 2 4 4 4 --mode_optim adam --lr 1e-2 --dataset mvtec --data_path {place}/data/brick "
            f"--img_size 32 --batch 4 --output {place}/run --save_every 0 --figures_every 0 --epochs {epochs}"
        ),
    ),
]  # fmt: skip


def files_of(run: Path) -> dict[str, Path]:
    """What a training has written, by relative path. CRN's version_N is the last one's: a training that is killed
    before its first checkpoint starts anew in the next."""
    files = {path.relative_to(run).as_posix(): path for path in sorted(run.rglob("*")) if path.is_file()}
    files = {name: path for name, path in files.items() if not path.name.startswith(UNFINISHED)}
    if (run / "ck").is_dir():
        last = f"version_{torch.load(run / 'ck/last.ckpt', weights_only=True)['version']}"
        files = {n: path for n, path in files.items() if "version_" not in n or last in n}
        files = {n.replace(last, "version_N"): path for n, path in files.items()}
    return files


def content_of(path: Path) -> Any:
    """Checkpoints, JSON and CSV as values, without times; other files as bytes. Fails on what is not whole."""
    if path.suffix in (".pt", ".pth", ".ckpt") or path.parent.name == "tmp":
        return without_times(torch.load(path, weights_only=True))
    if path.suffix == ".json":
        return without_times(json.loads(path.read_text()))
    if path.suffix == ".csv":
        assert path.read_bytes().endswith(b"\n"), path
        with path.open(newline="") as file:
            return [without_times(row) for row in csv.DictReader(file)]
    return path.read_bytes()


def without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_times(item) for key, item in value.items() if key not in TIMES | {"version"}}
    if isinstance(value, (list, tuple)):
        return [without_times(item) for item in value]
    return value


def assert_same(one: Path, other: Path) -> None:
    """Bit-identical weights, optimizers, logs, results and pictures, but for times."""
    ours, theirs = files_of(one), files_of(other)
    assert ours.keys() == theirs.keys()
    for name, path in ours.items():
        assert_equal(content_of(path), content_of(theirs[name]), name)


def assert_equal(one: Any, other: Any, name: str) -> None:
    if isinstance(one, torch.Tensor):
        # nan is equal to nan here
        assert one.dtype == other.dtype and torch.equal(one.nan_to_num(0.25), other.nan_to_num(0.25)), name
    elif isinstance(one, dict):
        assert list(one) == list(other), name
        for key in one:
            assert_equal(one[key], other[key], f"{name}: {key}")
    elif isinstance(one, list):
        assert len(one) == len(other), name
        for number, (mine, its) in enumerate(zip(one, other)):
            assert_equal(mine, its, f"{name}: {number}")
    else:
        assert one == pytest.approx(other, rel=0, abs=0, nan_ok=True) if isinstance(one, float) else one == other, name
