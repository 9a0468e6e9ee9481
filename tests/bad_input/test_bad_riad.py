"""RIAD's scripts on bad input."""

import math
import shutil

import numpy as np
import pytest
import torch

from riad import export, run, score
from riad.source import datamanager
from tests.bad_input import spoil
from tests.bad_input.cases import (
    State,
    at,
    check_damage,
    exports,
    files,
    make_texture,
    options,
    parametrised,
    places,
    some,
)
from tests.bad_input.spoil import entry, setting

MAINS = {"run": run.main, "run mvtec": run.main, "score": score.main, "export": export.main}
LONG = "n" * 300
TINY = "--cpu --filters 1 1 1 1 --mode_optim adam --batch 8 --epochs 1 --figures_every 0 --list_k 4"


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """MNIST's files with other digits, a network trained on them; a texture, and scores of its good test images."""
    place = tmp_path_factory.mktemp("riad") / "place"
    make_texture(place / "data")
    random = np.random.default_rng(0)
    for name in ("train", "t10k"):
        images, digits = random.integers(0, 255, (20, 28, 28), np.uint8), np.arange(20, dtype=np.uint8) % 3
        spoil.put(place / f"mnist/MNIST/raw/{name}-images-idx3-ubyte", spoil.idx(images))
        spoil.put(place / f"mnist/MNIST/raw/{name}-labels-idx1-ubyte", spoil.idx(digits))
    for name in ("run", "score"):
        assert MAINS[name](arguments(name, place)) == 0
    return State(place)


@pytest.fixture
def place(place, monkeypatch):
    def offline(*_, **__):
        raise OSError("no network in tests")

    monkeypatch.setattr(datamanager.MNIST, "download", offline)
    return place


def arguments(script, place):
    scoring = f"--cpu --images {place}/data/brick/test/good --checkpoint {place}/{BEST} --output {place}/scored"
    mvtec = f"--dataset mvtec --img_size 32 --data {place}/data/brick --output {place}/new"
    lines = {
        "run": f"{TINY} --dataset mnist --data {place}/mnist --output {place}/out",
        "run mvtec": f"{TINY} {mvtec}", "score": scoring, "export": f"--checkpoint {place}/{BEST}",
    }  # fmt: skip
    return lines[script].split()


RAW, BEST, STATE = "mnist/MNIST/raw", "out/Checkpoint/model_2_best_auroc.pth", "out/Checkpoint/resume.pth"
IMAGE, MASK = "data/brick/train/good/000.png", "data/brick/ground_truth/blur/000_mask.png"
PAPER = "--algorithm paper --filters 1 1 1 1 1"


def numbers(array, kind=8):
    return spoil.holding(spoil.idx(array, kind))


IDX = {
    "200 dimensions": spoil.holding(b"\0\0\x08\xc8" + bytes(900)), "one dimension": numbers(np.zeros(20, np.uint8)),
    "floats": numbers(np.zeros((20, 28, 28), ">f4"), 13), "an image less": numbers(np.zeros((19, 28, 28), np.uint8)),
    "more than there is": spoil.holding(b"\0\0\x08\x03" + b"\xff\xff\xff\xff" * 3 + bytes(100)),
}  # fmt: skip
DIGITS = {"digit 10": numbers(np.full(20, 10, np.uint8)), "two dimensions": numbers(np.zeros((20, 2), np.uint8))}
NETWORK = {  # of score.py's and export.py's --checkpoint
    **spoil.ANY, **some(spoil.CHECKPOINT, "malicious pickle", "malicious pickle in torch's archive", "program"),
    **some(spoil.OURS, "newer format", "no kind"),
    **{f"no {name}": spoil.without(name) for name in ("settings", "model", "data", "channels")},
    "image size is none": setting(img_size=None), "unknown network": setting(nn=5),
    "calibration is NaN": entry("calibration", [math.nan]), "two channels": entry("channels", 2),
}  # fmt: skip
CASES = [
    *options(
        "run",
        ("--mode_optim lion", "lion"), ("--disjoint_n 50", "49 cells"), ("--list_k 4 29", "1 cells of 29"), "--ksize 4",
        ("--nn 1000 --algorithm paper", "--nn"), (f"--smooth 20 {PAPER}", "--smooth 20"), "--smooth 21", "--lr nan",
        (f"--img_size 40 {PAPER}", "multiple of 16"), (f"--img_size 16 {PAPER}", "32 to"), "--img_size 15", "--gpu x",
        (f"--eval_images 9 {PAPER}", "repo"), "--filters 1 2", "--weights 0 0 0", "--learning_rate 1",
        ("--device tpu", "tpu"), ("--select_norm 10", "10"), ("--select_norm 7", "7"), ("--eval_images 1", "1"),
        ("--validation_share 0.3", "--eval_images"), ("--precision fp16", "fp16"), ("--sync_bn", "--sync_bn"),
        ("--data_path here --dataset digits", "--data_path"), ("--max_value 4095", "mvtec"),
        ("--lr 1e-3", "lr 0.0005, not 0.001"), ("--select_norm 2", "select_norm 1, not 2"),
        ("--output {place}/data/brick/SYNTHETIC", "SYNTHETIC"), (f"--output {LONG}", "too long"),
        ("--data_path {place}/none", "none"), ("--data {place}/data/brick/SYNTHETIC", "SYNTHETIC"),
        ("--dataset mvtec --data_path {place}/none", "none"), ("--output 'a\0b'", "NUL"),
    ),
    *options("run mvtec", ("--select_norm 3", "train/good"), ("--data ''", "train")),
    *files("run", f"{RAW}/train-images-idx3-ubyte", {**spoil.ANY, **IDX}, RAW),
    *files("run", f"{RAW}/t10k-labels-idx1-ubyte", {**spoil.CONTENT, **DIGITS}, RAW),
    *files("run", STATE, {
        **some(spoil.ANY, "empty", "truncated", "folder", "unreadable", "noise"), **spoil.CHECKPOINT, **spoil.OURS,
        **spoil.parameters("model"),
        **{f"no {name}": spoil.without(name) for name in ("optimizer", "scaler", "sums", "settings", "fingerprint")},
        "history of nothing": entry("history", [{}]), "history is shorter": entry("history", []),
        "channels is true": entry("channels", True), "step beyond the epoch": entry("step", 10**6),
        "seconds are NaN": entry("seconds", math.nan), "other images": entry("fingerprint", "0"),
        "moments are NaN": spoil.stored(lambda c: c["optimizer"][0]["state"][0]["exp_avg"].fill_(math.nan) is None),
        "scaler of text": entry("scaler", {"scale": "x"}),
    }),
    *places("run", {
        "results without a training": (lambda place: (place / STATE).unlink(), "--resume no"),
        "results that cannot be written": (lambda place: (place / "out/Checkpoint").chmod(0o500), "cannot write in"),
        "a link loop for MNIST": (at("mnist/MNIST/raw", spoil.ANY["link loop"]), RAW),
        "a link loop for the results": (at("out", spoil.ANY["link loop"]), "out"),
    }),
    *files("run mvtec", IMAGE, {**spoil.ANY, **spoil.IMAGE}),
    *files("run mvtec", MASK, {
        **some(spoil.ANY, "empty", "link loop", "unreadable", "web page"),
        "another size": spoil.holding(spoil.png(9, 9, bytes(90))),
    }),
    *places("run mvtec", {
        "an empty kind of defect": (lambda place: (place / "data/brick/test/none").mkdir(), "test/none"),
        "no good test images": (lambda place: shutil.rmtree(place / "data/brick/test/good"), "test/good"),
        "one good image": (
            lambda place: [
                (place / f"data/brick/{name}").unlink()
                for name in ("SYNTHETIC", "train/good/001.png", "train/good/002.png")
            ],
            "1 good image",
        ),
    }),
    *options(
        "score",
        ("--images {place}/none", "none"), ("--images {place}/mnist", "no images"), (f"--images {LONG}", "too long"),
        ("--images 'ä\nö'", "ä ö"), ("--images {place}/data/brick/train", "other images"),
        ("--output {place}/data/brick/test/good/out", "--output"),
        ("--output {place}/data/brick/SYNTHETIC", "SYNTHETIC"), "--fpr 0", "--precision int8",
        ("--precision fp16", "fp16"), ("--checkpoint {place}/none.pth", "none.pth"),
        ("--checkpoint {place}/out", "folder"), ("--checkpoint {place}/" + IMAGE, "000.png"), "--batch_score 0",
        ("--chekpoint x", "--checkpoint"), "--ngpu x",
    ),
    *files("score", BEST, {
        **NETWORK, "no epoch": spoil.without("epoch"), **some(spoil.CHECKPOINT, "of another method"),
        "unknown precision": setting(precision="int8"), "half cells": setting(list_k=[4.5]),
        "no cells": setting(list_k=[]),
        "an option for a value": setting(img_size="--cpu"), "an option in a list": setting(list_k=[4, 7, "--help"]),
        "a number of 400 digits": entry("calibration", [10**400]), "a long text": setting(algorithm="x" * 10**6),
        "channels beyond the limit": setting(filters=[10**9] * 4), "a path for a value": setting(algorithm="../../etc"),
        "calibration is empty": entry("calibration", []), "calibration is text": entry("calibration", "high"),
        "parameters are empty": entry("model", {}), "settings is a list": entry("settings", []),
        "a tensor for settings": entry("settings", torch.zeros(2)), "images of a terapixel": setting(img_size=10**6),
    }),
    *files("score", BEST, {"a terabyte of weights": setting(filters=[65536] * 4)}, "does not fit the model"),
    *options("export", "--fpr 0", ("--checkpoint {place}/none.pth", "none.pth"), "--precision bf16"),
    *exports("export", BEST),
    *files("export", BEST, {
        **NETWORK, **some(spoil.parameters("model"), "NaN among parameters", "a parameter is missing"),
    }),
    *files("score", "scored/results.json", {**spoil.CONTENT, **spoil.JSON, **spoil.each_of("images")}, "scored"),
    *places("score", {
        "a table that cannot be read": (at("scored/progress.jsonl", spoil.ANY["unreadable"]), "progress.jsonl"),
        "results that cannot be written": (lambda place: (place / "scored").chmod(0o500), "cannot write in"),
    }),
]  # fmt: skip


@parametrised(CASES)
def test_bad_input(case, place, capfd):
    case.check(place, capfd, MAINS, arguments(case.script, place))


@pytest.mark.slow
def test_damaged_files(good, capfd):
    scores = good.place / "scored/scores.csv"
    check_damage(capfd, score.main, arguments("score", good.place), [good.place / BEST], scores)
