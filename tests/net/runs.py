"""Tiny runs of every method through its scripts' command lines, what they wrote, and how it is compared.

Only what users rely on is named here: scripts, options, files and the names of numbers in them. A command is
"<module of the script> <options>", with {at} for the folder that holds data/ and run/.
"""

import csv
import hashlib
import importlib
import json
import math
import os
import platform
import re
import signal
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from scipy.io import savemat

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Case:
    """One method. Paths are relative to run/.

    stop: the backward pass at which the training is interrupted, amid its second and last epoch; weights: the file of
    the final ones; state: files from which an interrupted training continues; models: those that are scored with;
    after: commands that test and score; results: files of numbers.
    """

    make_data: Callable[[Path], None]
    train: str
    stop: int
    weights: str
    state: tuple[str, ...]
    models: tuple[str, ...]
    after: tuple[str, ...]
    results: tuple[str, ...]


def pattern(height: int, width: int, number: int) -> np.ndarray:
    """A bright wave with noise, (height, width) uint8, by integers alone: the same bytes everywhere."""
    rows, columns = np.ogrid[:height, :width]
    wave = np.abs((columns * 9 + rows * 2 + number * 5) % 64 - 32)
    noise = ((rows * 7919 + columns * 104729 + number * 1299709) * 40503 >> 7) % 17
    return (90 + 3 * wave + noise).astype(np.uint8)


def _save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)  # BMP: no compression, whose bytes would depend on versions


def make_images(data: Path) -> None:
    """MVTec AD's layout, 64 x 64: defects are dark squares."""
    for number in range(10):
        _save(data / f"brick/train/good/{number:03d}.bmp", np.stack([pattern(64, 64, number)] * 3, axis=2))
    for number in range(3):
        _save(data / f"brick/test/good/{number:03d}.bmp", np.stack([pattern(64, 64, 20 + number)] * 3, axis=2))
        image, mask = np.stack([pattern(64, 64, 30 + number)] * 3, axis=2), np.zeros((64, 64), np.uint8)
        place = slice(10 + 8 * number, 32 + 8 * number)
        image[place, place], mask[place, place] = (5, 0, 60), 255
        _save(data / f"brick/test/hole/{number:03d}.bmp", image)
        _save(data / f"brick/ground_truth/hole/{number:03d}_mask.bmp", mask)


def make_streets(data: Path) -> None:
    """RoadImages' layout, 32 x 32: the bad ones are dark in the middle."""
    for part, count in (("good_ones", 12), ("bad_ones", 3)):
        for number in range(count):
            for kind, first in (("intensity_files", 0), ("height_files", 40)):
                image = pattern(32, 32, first + number)
                if part == "bad_ones":
                    image[8:24, 8:24] //= 8
                _save(data / f"{part}/{kind}/{number:03d}.bmp", image)


def make_digits(data: Path) -> None:
    """MNIST's files: the digit 1 is a wave, 3 is a wave with a dark square; half of the tested ones are 3."""
    for name, count in (("train", 12), ("t10k", 20)):
        images = np.stack([pattern(28, 28, number) for number in range(count)])
        digits = np.ones(count, np.uint8)
        if name == "t10k":
            digits[::2], images[::2, 8:20, 8:20] = 3, 0
        header = struct.pack(">IIII", 2051, count, 28, 28), struct.pack(">II", 2049, count)
        path = data / f"MNIST/raw/{name}-images-idx3-ubyte"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(header[0] + images.tobytes())
        path.with_name(f"{name}-labels-idx1-ubyte").write_bytes(header[1] + digits.tobytes())
        for number in range(count):
            _save(data / f"{name}/{number:03d}.bmp", images[number])


def make_videos(data: Path) -> None:
    """Moving waves, 16 x 16; frames 10 to 13 of the test video are white."""
    for part, name, frames in (("Train", "a", 18), ("Train", "b", 18), ("Test", "c", 24)):
        for frame in range(frames):
            image = pattern(16, 16, 2 * frame + ord(name))
            if part == "Test" and 10 <= frame < 14:
                image[:] = 255
            _save(data / f"stripes/{part}/{name}/{frame + 1:03d}.bmp", image)
    path = data / "stripes/Test_gt/c.mat"
    path.parent.mkdir()
    savemat(path, {"l": np.array([[10 <= frame < 14 for frame in range(24)]], np.float64)})
    path.write_bytes(b"MATLAB 5.0 MAT-file".ljust(116) + path.read_bytes()[116:])  # without the date


def make_boards(data: Path) -> None:
    """Five cycles of three boards of 14 x 10 mm with six pads."""
    pads = range(1, 7)
    (data / "spi_measurement").mkdir(parents=True)
    job = {
        "PCBInfo": {"PCBLenth": [14.25], "PCBWidth": [10]},
        "Pad": {"ID": list(pads), "ShapeID": [f"shape{pad % 2}" for pad in pads]},
    }
    (data / "job.json").write_text(json.dumps(job))
    for board in range(15):
        pad_info = [
            {
                "PosX": 0.5 + 2 * pad,
                "PosY": 3.25 + pad % 3,
                "Volume": 50 + 5 * pad + (board * 29 + pad * 13 + board * pad * 7) % 31 / 16,
                "PadID": pad,
            }
            for pad in pads
        ]
        (data / f"spi_measurement/spi_{board:03d}.json").write_text(json.dumps({"PADINFO": pad_info}))


def _crrn(protocol: str, folder: str) -> Case:
    common = f"--data {{at}}/data --cycle 3 --result {{at}}/run --cpu --n_layers 1 --protocol {protocol}"
    model = f"{folder}/model_dictionary.pt"
    return Case(
        make_boards,
        f"crrn.1_train {common} --num_instance 6 --batch_size 2 --num_epochs 2",
        5, model, (model,), (model,),
        (
            f"crrn.2_test_model {common}",
            f"crrn.3_score_boards {common} --boards {{at}}/data --output {{at}}/run/scored",
        ),
        (f"{folder}/training.json", f"{folder}/results.json", "scored/pads.csv", "scored/results.json"),
    )  # fmt: skip


def _memae(name: str, options: str, stop: int) -> Case:
    common = f"--DataRoot {{at}}/data --Dataset stripes --ModelRoot {{at}}/run/models {options} --cpu"
    model, state, results = f"models/{name}.pt", f"models/model_{name}/{name}_resume.pt", f"results/res_{name}"
    tested = f"{common} --OutRoot {{at}}/run/results --WorstFrames 1"
    return Case(
        make_videos,
        f"memae.script_training {common} --BatchSize 2 --EpochNum 2 --IsTbLog no",
        stop, model, (state,), (model,),
        (f"memae.script_testing {tested}", f"memae.script_eval_video {tested}"),
        (f"models/model_{name}/training.json", f"{results}/results.json", f"{results}/scores.csv"),
    )  # fmt: skip


def _crn(model: str, make_data: Callable, data: str, dataset: str, score: str, stop: int) -> Case:
    logs = "--log-dir {at}/run/log --log-file {at}/run/log.txt --image-output-path {at}/run/pictures"
    common = f"--model {model} --dataset {dataset} --dataset-path {{at}}/{data} --cpu {logs}"
    scored = "--anomaly-score-file {at}/run/inference.csv"
    last = "--model-input {at}/run/ck/last.ckpt"
    return Case(
        make_data,
        f"crn.train --mode train {common} --demo --ngf 2 --epochs 2 --checkpoint-path {{at}}/run/ck",
        stop, "ck/last.ckpt", ("ck/last.ckpt",), ("ck/last.ckpt", "ck/best.ckpt"),
        (
            f"crn.train --mode inference {common} {last} {scored}",
            f"crn.score --images {{at}}/{score} {last} --cpu --output {{at}}/run/scored",
        ),
        ("log/version_0/results.json", "log/version_0/metrics.csv", "inference.json", "inference.csv",
         "scored/scores.csv"),
    )  # fmt: skip


def _riad(make_data: Callable, options: str, stop: int, chosen: str, scored: str) -> Case:
    best = f"Checkpoint/model_2_best_{chosen}.pth"
    saved = ("Checkpoint/resume.pth", "Checkpoint/model_1_best_loss.pth", best)
    return Case(
        make_data,
        f"riad.run --cpu {options} --epochs 2 --figures_every 0 --output {{at}}/run",
        stop, "Checkpoint/model_0_finepoch.pth", saved, (best,),
        (f"riad.score --cpu --images {{at}}/{scored} --checkpoint {{at}}/run/{best} --output {{at}}/run/scored",),
        ("result.json", "results_tr/history.csv", "results_te/test_model_0_finepoch.csv", "scored/scores.csv"),
    )  # fmt: skip


_MEMAE = "MemAE_Conv3DSpar_stripes_MemDim8_EntW0.0002_ShrThres0.0025_Seed1_Non"
CASES = {
    "csflow": Case(
        make_images,
        "csflow.main --dataset_path {at}/data --feature_path {at}/features --class_name brick --modelname m --cpu "
        "--extractor lite0 --n_scales 2 --img_size 64 --fc_internal 8 --kernel_sizes 3 --batch_size 4 --lr_init 1e-3 "
        "--hide_tqdm_bar True --meta_epochs 2 --sub_epochs 1 --output_path {at}/run",
        5, "models/tmp/m", ("models/tmp/m",), ("models/tmp/m",),
        (
            "csflow.score --modelname m --cpu --output_path {at}/run --images {at}/data/brick/test "
            "--output {at}/run/scored",
        ),
        ("results/m/results.json", "results/m/scores.csv", "scored/scores.csv"),
    ),
    "crrn_drawn": _crrn("drawn", "ConvConjLSTM"),
    "crrn_measured": _crrn("measured", "ConvConjLSTM_measured"),
    "memae": _memae(_MEMAE, "--MemDim 8", 5),
    "ae": _memae("AE_Conv3D_stripes_Non", "--ModelName AE --ModelSetting Conv3D", 4),
    "crn": _crn("crn", make_images, "data/brick", "MVTec", "data/brick/test", 27),
    "dagan": _crn("dagan", make_streets, "data", "RoadImages", "data/bad_ones", 11),
    "riad_repo": _riad(
        make_digits,
        "--dataset mnist --data_path {at}/data --filters 4 8 8 8 --batch 4 --lr 1e-4",
        26, "auroc", "data/t10k",
    ),
    "riad_paper": _riad(
        make_images,
        "--algorithm paper --dataset mvtec --data_path {at}/data/brick --img_size 32 --filters 4 4 4 4 4 --smooth 5 "
        "--lr 1e-3",
        3, "val_loss", "data/brick/test",
    ),
}  # fmt: skip


def call(command: str, at: Path) -> int:
    """Run the script's main; returns its exit status."""
    module, *argv = (word.format(at=at) for word in command.split())
    return importlib.import_module(module).main(argv)


@contextmanager
def interrupted(number: int) -> Iterator[None]:
    """Ctrl-C comes right after the backward pass of this number, from 1."""
    backward, count = torch.Tensor.backward, 0

    def counted(*args: Any, **options: Any) -> None:
        nonlocal count
        backward(*args, **options)
        count += 1
        if count == number:
            signal.raise_signal(signal.SIGINT)

    torch.Tensor.backward = counted
    try:
        yield
    finally:
        torch.Tensor.backward = backward


def interrupted_training(case: Case, at: Path) -> None:
    """Start the training and interrupt it."""
    with interrupted(case.stop):
        assert call(case.train, at) == 130


# -- what was written ------------------------------------------------------------------------------------------------


def weights_of(path: Path) -> dict[str, torch.Tensor]:
    """The parameters and buffers in a checkpoint of any method."""
    content = torch.load(path, weights_only=True)
    return content.get("model", content.get("state_dict", content))


def digest_of(weights: dict[str, torch.Tensor]) -> str:
    """sha256 of all values, in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(name.encode() + weights[name].contiguous().numpy().tobytes())
    return digest.hexdigest()


def summary_of(weights: dict[str, torch.Tensor]) -> dict[str, list[float]]:
    """Of each parameter or buffer: how many values, their sum and the sum of their squares."""
    wide = {name: value.double() for name, value in weights.items()}
    return {name: [value.numel(), value.sum().item(), (value**2).sum().item()] for name, value in wide.items()}


def frozen(value: Any) -> Any:
    """Nested content as values that are equal where every bit is; without times."""
    if isinstance(value, torch.Tensor):
        return str(value.dtype), tuple(value.shape), hashlib.sha256(value.contiguous().numpy().tobytes()).hexdigest()
    if isinstance(value, dict):
        return {key: frozen(item) for key, item in value.items() if not re.search("time|seconds", str(key))}
    if isinstance(value, (list, tuple)):
        return [frozen(item) for item in value]
    return repr(value)


def contents(run: Path) -> dict[str, Any]:
    """All checkpoints and tables below a folder, `frozen`."""
    found = {}
    for path in sorted(run.rglob("*")):
        if path.suffix in (".pt", ".pth", ".ckpt") or path.parent.name == "tmp":
            found[str(path.relative_to(run))] = frozen(torch.load(path, weights_only=True))
        elif path.suffix in (".json", ".csv"):
            found[str(path.relative_to(run))] = frozen(_read(path))
    return found


def _read(path: Path) -> Any:
    if path.suffix == ".json":
        return json.loads(path.read_text())
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {name: [_number(row[name]) for row in rows] for name in rows[0]}


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def numbers_of(case: Case, run: Path) -> dict[str, float | None]:
    """All numbers in the results, but for times and settings: "<file>: <name>.<name>" -> value."""
    found: dict[str, float | None] = {}

    def walk(value: Any, name: str) -> None:
        if isinstance(value, dict):
            for key, item in value.items():
                if not re.search("time|seconds|^settings$|^tested_with$|^versions$", key):
                    walk(item, f"{name}.{key}")
        elif isinstance(value, list):
            for number, item in enumerate(value):
                walk(item, f"{name}.{number}")
        elif value is None or isinstance(value, (int, float)):
            found[name] = None if value is None or math.isnan(value) else float(value)

    for file in case.results:
        walk(_read(run / file), f"{file}:")
    return {name.replace(":.", ": "): value for name, value in found.items()}


def digest_of_files(folder: Path) -> str:
    """sha256 of the names and bytes of all files below a folder."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(str(path.relative_to(folder)).encode() + path.read_bytes())
    return digest.hexdigest()


def machine() -> dict[str, str]:
    """What bits depend on: where all of this agrees, so do the weights' digests."""
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else platform.processor()
    named = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in info.splitlines())}
    return {
        "processor": named.get("model name", info[:100]),
        "flags_sha256": hashlib.sha256(named.get("flags", "").encode()).hexdigest(),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "isa": os.environ.get("ONEDNN_MAX_CPU_ISA", ""),
        "threads": str(torch.get_num_threads()),
    }


@contextmanager
def without_pictures() -> Iterator[None]:
    """Figures are not drawn, which takes more time than all else; one thread computes."""
    savefig, threads = Figure.savefig, torch.get_num_threads()
    Figure.savefig = lambda *_, **__: None
    torch.set_num_threads(1)
    try:
        yield
    finally:
        Figure.savefig = savefig
        torch.set_num_threads(threads)


def trained(case: Case, at: Path) -> str:
    """Make the data and train without an interruption; returns the digest of the data."""
    case.make_data(at / "data")
    data = digest_of_files(at / "data")
    assert call(case.train, at) == 0
    return data


def measured(case: Case, at: Path, data: str) -> dict[str, Any]:
    """Test and score what is trained in run/: all that is recorded."""
    weights = weights_of(at / "run" / case.weights)
    for command in case.after:
        assert call(command, at) == 0, command
    return {
        "machine": machine(),
        "data_sha256": data,
        "weights_sha256": digest_of(weights),
        "weights": summary_of(weights),
        "numbers": numbers_of(case, at / "run"),
    }
