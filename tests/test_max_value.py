"""--max_value: 12-bit data in 16-bit files gives the scores of the same data in 8 bits, in training and in score.py."""

import csv
import importlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from common import cli
from common.cli import MAX_PIXELS
from common.demo_data import make_textures
from riad import options
from riad.source import datamanager
from tests.common.test_image_decoding import write_png
from tests.helpers import refused


@pytest.fixture(scope="session")
def places(tmp_path_factory):
    """Folders named 12 and 8 with data/brick, the same images in 12 bits (grey and colour) and scaled to 8."""
    root = tmp_path_factory.mktemp("bits")
    make_textures(root / "made", size=64, n_train=6, n_good=3, n_defect=1)
    generator = np.random.default_rng(0)
    for number, path in enumerate(sorted((root / "made/brick").glob("t*/*/*.png"))):
        with Image.open(path) as image:
            colours = np.asarray(image.convert("RGB")).astype(int)
        values = colours * 16 + generator.integers(0, 16, colours.shape)
        kind = 2
        if number % 2:
            values, kind = values[..., :1], 0
        for bits in ("12", "8"):
            new = root / bits / "data/brick" / path.relative_to(root / "made/brick")
            new.parent.mkdir(parents=True, exist_ok=True)
            if bits == "12":
                write_png(new, values, 16, kind)
            else:
                write_png(new, (values * 255 + 2047) // 4095, 8, kind)
    return root


TRAININGS = {
    "csflow": "--dataset_path data --feature_path features --class_name brick --modelname m --cpu --n_scales 2 "
    "--img_size 64 --fc_internal 8 --kernel_sizes 3 --batch_size 4 --extractor lite0 --hide_tqdm_bar True "
    "--sub_epochs 1 --meta_epochs 1 --output_path csflow",
    "crn": "--mode train --dataset MVTec --dataset-path data/brick --ngf 2 --cpu --batch-size 2 --imsize 32 "
    "--num-competitive-units 2 --checkpoint-path crn --log-dir lm --log-file log --image-output-path oi --epochs 1",
    "riad": "--cpu --filters 2 4 4 4 --mode_optim adam --dataset mvtec --data_path data/brick --img_size 32 --batch 4 "
    "--output riad --figures_every 0 --epochs 1",
}
PROGRAMS = {"csflow": "csflow.main", "crn": "crn.train", "riad": "riad.run"}
SCORING = {
    "csflow": "--output_path csflow --modelname m --cpu --hide_tqdm_bar True",
    "crn": "--model-input crn/last.ckpt --cpu",
    "riad": "--checkpoint riad/Checkpoint/model_0_finepoch.pth --cpu",
}


def call(module: str, words: str, *more: object) -> int:
    return importlib.import_module(module).main([*words.split(), *map(str, more)])


def scores(method: str) -> list[float]:
    assert call(f"{method}.score", SCORING[method], "--images", "data/brick/test", "--output", f"{method}_scored") == 0
    with Path(f"{method}_scored/scores.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) > 5
    return [float(row["score"]) for row in rows]


@pytest.mark.parametrize(
    "method", ["riad", pytest.param("crn", marks=pytest.mark.slow), pytest.param("csflow", marks=pytest.mark.slow)]
)
def test_12_bit_images_have_the_scores_of_their_8_bit_twins(method, places, monkeypatch, capsys):
    monkeypatch.chdir(places / "8")
    assert call(PROGRAMS[method], TRAININGS[method]) == 0
    assert "max_value" not in capsys.readouterr().out
    expected = scores(method)
    monkeypatch.chdir(places / "12")
    assert call(PROGRAMS[method], TRAININGS[method], "--max_value", "auto") == 0
    assert "--max_value auto: 4095" in capsys.readouterr().out
    assert scores(method) == expected
    # What is stored is a number: with another one, the training is another.
    refused(capsys, importlib.import_module(PROGRAMS[method]).main, TRAININGS[method].split(), "4095, not 65535")


def test_dark_16_bit_images_are_told(places, capsys):
    settings = options.parse(["--dataset", "mvtec", "--img_size", "32", "--data_path", str(places / "12/data/brick")])
    cli._notes.clear()
    datamanager.load(settings)
    said = capsys.readouterr().out
    assert said.count("of 65535: try --max_value 4095") == 1


@pytest.mark.slow
def test_checkpoints_of_older_versions_mean_65535(places, monkeypatch, capsys):
    monkeypatch.chdir(places / "8")
    assert call("riad.run", TRAININGS["riad"], "--output", "older") == 0
    for path in Path("older/Checkpoint").glob("*.pth"):
        content = torch.load(path, weights_only=True)
        if "settings" in content:
            del content["settings"]["max_value"], content["settings"]["max_pixels"]
            content["fingerprint"] = content["fingerprint"][:16]
            torch.save(content, path)
    capsys.readouterr()
    assert call("riad.run", TRAININGS["riad"].replace("--epochs 1", "--epochs 2"), "--output", "older") == 0
    assert "older version" in capsys.readouterr().out
    assert len(torch.load("older/Checkpoint/resume.pth", weights_only=True)["fingerprint"]) == 32
    assert json.loads(Path("older/result.json").read_text())["settings"]["max_value"] == 65535


@pytest.mark.parametrize("method", TRAININGS)
def test_max_pixels_is_refused_or_obeyed(method, places, monkeypatch, capsys):
    monkeypatch.chdir(places / "8")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", MAX_PIXELS["default"])  # to be restored
    main = importlib.import_module(PROGRAMS[method]).main
    limited = [*TRAININGS[method].split(), "--max_pixels", "4095"]
    refused(capsys, main, limited, "4096 pixels, more than the limit of 4095", "--max_pixels")
    refused(capsys, main, [*limited[:-1], "0"], "max_pixels")
