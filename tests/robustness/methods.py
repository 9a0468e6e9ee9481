"""The five methods' trainings and scorings, as small as their options allow, and how to tell whether two of them ended
alike."""

import csv
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from common.demo_data import make_textures
from common.files import UNFINISHED
from crn.demo_data import ensure_data
from tests.crrn.test_crrn_scripts import CYCLE, write_boards
from tests.robustness.processes import Script

TIMES = {"time", "seconds", "training_seconds", "seconds_per_image", "metrics/traintime"}


@dataclass
class Method:
    """A training in {place}/run, its data beside it, and how items in {place}/images are scored into {place}/out."""

    name: str
    module: str
    training: str  # its options, of {place} and {epochs}
    state: str  # the checkpoint from which it resumes, in run
    lower: str  # the option that lowers the need of memory
    make_data: Callable[[Path], None]
    scorer: str
    scoring: str
    make_items: Callable[[Path], None]
    growing: str = "progress.jsonl"  # the file that grows while the script scores, in out

    def argv(self, place: Path, epochs: int) -> list[str]:
        """The training's."""
        return self.training.format(place=place, epochs=epochs).split()


def _bricks(place: Path) -> None:
    make_textures(place / "data", size=64, n_train=8, n_good=3, n_defect=1)


def _more_bricks(place: Path) -> None:
    make_textures(place / "new", size=64, n_train=12, n_good=1, n_defect=1)
    shutil.move(place / "new/brick/train/good", place / "images")


def _videos(place: Path) -> None:
    for video, frames in (("a", 18), ("b", 17)):
        write_video(place / "data/stripes/Train" / video, frames)


def write_video(folder: Path, frames: int) -> None:
    """Moving stripes, 16 x 16."""
    folder.mkdir(parents=True)
    for k in range(frames):
        row = 128 + 80 * np.sin((np.arange(16) + k) * 0.8)
        Image.fromarray(np.tile(row, (16, 1)).astype(np.uint8)).save(folder / f"{k + 1:03d}.jpg")


def _pairs(place: Path) -> None:
    for kind in ("intensity_files", "height_files"):
        shutil.copytree(place / "data/good_ones" / kind, place / "images" / kind)


CRRN = f"--data {{place}}/data --cycle {CYCLE} --result {{place}}/run/result --cpu --n_layers 1 "
MEMAE = "--DataRoot {place}/data --Dataset stripes --ModelRoot {place}/run/models --MemDim 8 --UseCUDA no "
MODEL = "MemAE_Conv3DSpar_stripes_MemDim8_EntW0.0002_ShrThres0.0025_Seed1_Non"
METHODS = [
    Method(
        "csflow", "csflow.main",
        "--dataset_path {place}/data --feature_path {place}/features --class_name brick --modelname m --cpu "
        "--output_path {place}/run --n_scales 2 --img_size 64 --fc_internal 8 --kernel_sizes 3 --batch_size 4 "
        "--extractor lite0 --hide_tqdm_bar True --sub_epochs 1 --save_every 0 --meta_epochs {epochs}",
        "models/tmp/m", "--batch_size", _bricks,
        "csflow.score",
        "--output_path {place}/run --modelname m --images {place}/images --output {place}/out --cpu "
        "--hide_tqdm_bar True",
        _more_bricks,
    ),
    Method(
        "crn", "crn.train",
        "--mode train --dataset RoadImages --dataset-path {place}/data --demo --ngf 2 --cpu --batch-size 16 "
        "--checkpoint-path ck --log-dir lm --log-file {place}/log --image-output-path oi --save-every 0 "
        "--training-steps 1000000 --epochs {epochs}",
        "ck/last.ckpt", "--batch-size", lambda place: ensure_data("RoadImages", place / "data"),
        "crn.score", "--images {place}/images --model-input {place}/run/ck/last.ckpt --output {place}/out --cpu",
        _pairs,
    ),
    Method(
        "crrn", "crrn.1_train", CRRN + "--num_instance 4 --batch_size 2 --num_epochs {epochs}",
        "result/ConvConjLSTM/model_dictionary.pt", "--batch_size", lambda place: write_boards(place / "data") and None,
        "crrn.3_score_boards", CRRN + "--boards {place}/images --output {place}/out",
        lambda place: write_boards(place / "images", boards=13, seed=1) and None,
    ),
    Method(
        "memae", "memae.script_training",
        MEMAE + "--BatchSize 2 --save_every 0 --SaveCheckInterval 99 --EpochNum {epochs}",
        f"models/model_{MODEL}/{MODEL}_resume.pt", "--BatchSize", _videos,
        "memae.script_testing", MEMAE + "--OutRoot {place}/out --BatchSize 8",
        lambda place: write_video(place / "data/stripes/Test/long", 400), "*/progress.jsonl",
    ),
    Method(
        "riad", "riad.run",
        "--cpu --filters 2 4 4 4 --mode_optim adam --lr 1e-2 --dataset mvtec --data_path {place}/data/brick "
        "--img_size 32 --batch 4 --output {place}/run --save_every 0 --figures_every 0 --epochs {epochs}",
        "Checkpoint/resume.pth", "--batch", _bricks,
        "riad.score",
        "--images {place}/images --checkpoint {place}/run/Checkpoint/model_0_finepoch.pth --output {place}/out --cpu "
        "--batch_score 2",
        _more_bricks,
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
    """Tensors as arrays, mappings as dictionaries without what differs between equal runs."""
    if isinstance(value, torch.Tensor):
        return value.numpy()
    if isinstance(value, dict):
        return {key: without_times(item) for key, item in value.items() if key not in TIMES | {"version"}}
    return [without_times(item) for item in value] if isinstance(value, (list, tuple)) else value


def assert_same(one: Path, other: Path) -> None:
    """Bit-identical weights, optimizers, logs, results and pictures, but for times."""
    ours, theirs = files_of(one), files_of(other)
    assert ours.keys() == theirs.keys()
    for name, path in ours.items():
        np.testing.assert_equal(content_of(path), content_of(theirs[name]), name)  # nan is equal to nan


class Training:
    """One method's training in `run`, and an undisturbed one in `whole`."""

    def __init__(self, method: Method, place: Path, epochs: int):
        self.method, self.place, self.epochs = method, place, epochs
        self.run, self.whole = place / "run", place / "whole"
        self.state = self.run / method.state
        method.make_data(place)
        self.finish()
        self.run.rename(self.whole)

    @property
    def argv(self) -> list[str]:
        """Of the whole training."""
        return self.method.argv(self.place, self.epochs)

    def start(self, *preparations: Any, more: int = 0) -> Script:
        """A process that trains `more` epochs than the whole."""
        return Script(self.method.module, self.method.argv(self.place, self.epochs + more), self.run, *preparations)

    def finish(self, argv: list[str] | None = None) -> str:
        """Run the command to its end; returns what it says."""
        script = Script(self.method.module, argv or self.argv, self.run)
        assert script.end() == 0, script.errors
        return script.output

    def wait_for_saves(self, script: Script, count: int) -> None:
        """Until the state has been written `count` times, or the training has ended."""
        deadline, before = time.monotonic() + 60, None
        while count and script.running():
            assert time.monotonic() < deadline
            now = self.state.stat().st_mtime_ns if self.state.exists() else None
            count, before = count - (now != before), now
            time.sleep(0.001)
