"""Small data sets in the folders of the seed's commands, and models trained on them."""

import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from common.demo_data import make_textures
from crn import demo_data, train

FOLDERS = {"RoadImages": "datasets/roadimages", "Panorama": "datasets/panorama", "MVTec": "datasets/mvtec/brick"}
OUTPUTS = ["--log-dir", "lm", "--log-file", "l.log", "--image-output-path", "oi", "--anomaly-score-file", "a.csv"]


def training(kind="RoadImages", *more):
    """Two epochs and a part of the third, of 3, 4 or 5 batches."""
    words = (
        f"--mode train --dataset {kind} --dataset-path {FOLDERS[kind]} --imsize 32 --max-network-depth 3 --cpu --ngf 2"
    )
    words += " --num-competitive-units 3 --batch-size 4 --seed 41020 --training-steps 22 --checkpoint-path ck"
    return [*words.split(), *OUTPUTS, *more]


def inference(kind="RoadImages", *more):
    words = f"--mode inference --dataset {kind} --dataset-path {FOLDERS[kind]} --model-input ck/last.ckpt --cpu"
    return [*words.split(), *OUTPUTS, *more]


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    for kind in ("RoadImages", "Panorama"):
        demo_data.draw_streets(kind, root / FOLDERS[kind], 25, 8, "a test")
    make_textures(root / "datasets/mvtec", size=64, n_train=20, n_good=3, n_defect=1)
    return root


@pytest.fixture(scope="session")
def trained(data, tmp_path_factory):
    """A function from the arguments of `training` to the folder in which that was called, once for each."""
    found = {}

    def train_once(kind, *more):
        if (kind, *more) not in found:
            place, before = tmp_path_factory.mktemp("trained"), Path.cwd()
            (place / "datasets").symlink_to(data / "datasets")
            os.chdir(place)
            try:
                assert train.main(training(kind, *more)) == 0
            finally:
                os.chdir(before)
            found[kind, *more] = place
        return found[kind, *more]

    return train_once


@pytest.fixture
def place(data, tmp_path, monkeypatch):
    """Where the user stands: beside the data."""
    (tmp_path / "datasets").symlink_to(data / "datasets")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def after_training(place, trained):
    """A function that puts what a training of that kind has written where the user stands."""

    def put(kind="RoadImages", *more):
        shutil.copytree(trained(kind, *more), place, symlinks=True, dirs_exist_ok=True, ignore=lambda *_: ["datasets"])

    return put


@pytest.fixture
def trials(monkeypatch):
    """The learning rates that sweeps' trials were given, and a list of the statuses with which the next ones are to
    end, in place of trainings; None: Ctrl-C comes while the trial runs; "no AUROC": 0, and nan in the table."""
    from crn import sweep

    rates, statuses = [], []

    class Trial:
        def __init__(self, command, **_):
            options = train.parse(command[2:])
            rates.append(options.lr)
            self.returncode, self.folder = statuses.pop(0), options.log_dir

        def communicate(self):
            if self.returncode is None:
                raise KeyboardInterrupt
            (self.folder / "version_0").mkdir(parents=True)
            score = rates[-1] if self.returncode != "no AUROC" else "nan"
            self.returncode = self.returncode if isinstance(self.returncode, int) else 0
            (self.folder / "version_0/metrics.csv").write_text(f"metrics/score\n{score}\n")
            return "words\n", None

        def terminate(self):
            pass

    monkeypatch.setattr(sweep, "subprocess", SimpleNamespace(Popen=Trial, PIPE=None, STDOUT=None))
    return rates, statuses
