"""Scoring that is interrupted keeps what was scored; the same command goes on from there and ends with the same files.

The five methods' scripts in processes of their own, with networks as small as their options allow.
"""

import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from common.demo_data import make_textures
from common.files import locked
from tests.crrn.test_crrn_scripts import CYCLE, write_boards
from tests.robustness.methods import METHODS, assert_same, write_video
from tests.robustness.processes import Script, full_disk, stop_at_append


@dataclass
class Scoring:
    """How new images, boards or frames are scored with the network in the folder `run`."""

    module: str
    growing: str  # the file that grows while the script scores, in the folder out
    make_images: Callable[[Path], None]
    arguments: Callable[[Path], str]


def _images(place: Path) -> None:
    make_textures(place / "new", size=64, n_train=12, n_good=1, n_defect=1)
    shutil.move(place / "new/brick/train/good", place / "images")


def _pairs(place: Path) -> None:
    for kind in ("intensity_files", "height_files"):
        shutil.copytree(place / "data/good_ones" / kind, place / "images" / kind)


SCORINGS = {
    "csflow": Scoring(
        "csflow.score", "progress.jsonl", _images,
        lambda place: f"--modelname m --images {place}/images --output {place}/out --cpu --hide_tqdm_bar True",
    ),
    "crn": Scoring(
        "crn.score", "progress.jsonl", _pairs,
        lambda place: f"--images {place}/images --model-input {place}/run/ck/last.ckpt --output {place}/out --cpu",
    ),
    "crrn": Scoring(
        "crrn.3_score_boards", "progress.jsonl",
        lambda place: write_boards(place / "images", boards=13, seed=1) and None,
        lambda place: (
            f"--data {place}/data --cycle {CYCLE} --result {place}/run/result --n_layers 1 --cpu "
            f"--boards {place}/images --output {place}/out"
        ),
    ),
    "memae": Scoring(
        "memae.script_testing", "*/unfinished/long.scoring",
        lambda place: write_video(place / "data/stripes/Test/long", 400),
        lambda place: (
            f"--DataRoot {place}/data --Dataset stripes --ModelRoot {place}/run/models --OutRoot {place}/out "
            "--MemDim 8 --UseCUDA no --BatchSize 8"
        ),
    ),
    "riad": Scoring(
        "riad.score", "progress.jsonl", _images,
        lambda place: (
            f"--images {place}/images --checkpoint {place}/run/Checkpoint/model_0_finepoch.pth --output {place}/out "
            "--cpu --batch_score 2"
        ),
    ),
}  # fmt: skip


@pytest.fixture(scope="module", params=METHODS, ids=lambda method: method.name)
def scored(request, tmp_path_factory):
    """A trained network, images, and what scoring them without an interruption gives in `whole`."""
    method, place = request.param, tmp_path_factory.mktemp(request.param.name)
    scoring = SCORINGS[method.name]
    method.make_data(place)
    training = Script(method.module, method.argv(place, 1), place / "run")
    assert training.end() == 0, training.errors
    scoring.make_images(place)
    script = start(scoring, place)
    assert script.end() == 0, script.errors
    (place / "out").rename(place / "whole")
    return scoring, place


def start(scoring: Scoring, place: Path, *preparations) -> Script:
    return Script(scoring.module, scoring.arguments(place).split(), place / "run", *preparations)


def test_interrupted_scoring_goes_on(scored):
    scoring, place = scored
    kept = 0
    for number in (signal.SIGINT, signal.SIGKILL):
        script = start(scoring, place, (stop_at_append, (2, number)))
        assert script.end() == (130 if number == signal.SIGINT else -number), script.errors
        assert "Traceback" not in script.errors
        if number == signal.SIGINT:
            assert "the same command goes on from there" in script.output
        (file,) = (place / "out").glob(scoring.growing)
        assert file.stat().st_size > max(kept, 75)  # more than a header; nothing is scored twice
        kept = file.stat().st_size
    with locked(file.parents[file.parent.name == "unfinished"]):
        second = start(scoring, place)
        assert second.end() == 2 and "another run is writing to" in second.errors, second.errors
    last = start(scoring, place)
    assert last.end() == 0 and ("continuing after" in last.output or "going on" in last.output), last.errors
    assert_same(place / "out", place / "whole")
    shutil.rmtree(place / "out")


def test_full_disk_keeps_what_is_scored(scored):
    scoring, place = scored
    script = start(scoring, place, (full_disk, 0))
    assert script.end() == 2
    assert script.errors.startswith("error: cannot write") and script.errors.count("\n") == 1, script.errors
    shutil.rmtree(place / "out")
