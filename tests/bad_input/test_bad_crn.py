"""CRN's scripts on bad input."""

import math
import shlex
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from crn import demo_data, export, score, sweep, train
from tests.bad_input import spoil
from tests.bad_input.cases import (
    State,
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

# train.py trains on textures, or on road images, or scores the textures.
MAINS = {
    "train": train.main,
    "train road": train.main,
    "train inference": train.main,
    "score": score.main,
    "sweep": sweep.main,
    "export": export.main,
    "demo_data": demo_data.main,
}
LONG = "n" * 300
SWEEP = b"""\
method: grid
metric: {name: metrics/score, goal: maximize}
parameters: {dataset: {value: MVTec}, dataset-path: {value: data}, lr: {values: [0.1, 0.01]}}
"""


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A texture with masks and a model trained on it, its scores; pairs of road images; a sweep file."""
    place = tmp_path_factory.mktemp("crn") / "place"
    make_texture(place / "data")
    random = np.random.default_rng(0)
    for name, count in (("good_ones", 3), ("bad_ones", 2)):
        for kind in ("intensity_files", "height_files"):
            (place / "road" / name / kind).mkdir(parents=True)
            for k in range(count):
                Image.fromarray(random.integers(0, 255, (32, 32), np.uint8)).save(
                    place / f"road/{name}/{kind}/{k:03d}.png"
                )
    (place / "sweep.yml").write_bytes(SWEEP)
    for name in ("train", "train inference", "score"):
        assert MAINS[name](arguments(name, place)) == 0
    return State(place)


def arguments(script, place):
    place = shlex.quote(str(place))
    brick = f"--dataset MVTec --dataset-path {place}/data/brick"
    road = f"--dataset RoadImages --dataset-path {place}/road"
    outputs = f"--log-dir {place}/logs --log-file {place}/log.log --image-output-path {place}/pictures"
    train = f"--mode train {outputs} --imsize 32 --ngf 1 --num-competitive-units 1 --batch-size 2 --epochs 1"
    line = {
        "train": f"{train} {brick} --checkpoint-path {place}/ck",
        "train road": f"{train} {road} --checkpoint-path {place}/ck",
        "train inference": f"--mode inference {outputs} {brick} --ngf 1 --model-input {place}/{LAST} "
        f"--anomaly-score-file {place}/scores.csv",
        "score": f"--images {place}/data/brick/test/good --model-input {place}/{LAST} --output {place}/scored",
        "export": f"--model-input {place}/{LAST}",
        "sweep": f"sweep.yml --output {place}/sweeps",
        "demo_data": f"--dataset Panorama --output {place}/drawn --good 1 --bad 1",
    }[script]
    return shlex.split(line)


LAST, IMAGE, MASK = "ck/last.ckpt", "data/brick/train/good/000.png", "data/brick/ground_truth/blur/000_mask.png"
HEIGHT = "road/good_ones/height_files/001.png"


def lightning(**more):
    """As the authors' checkpoints, with whatever else."""
    return spoil.stored(lambda content: {"state_dict": content["model"], **more})


def moments(change):
    """Another state of the first optimizer's first parameter."""
    return spoil.stored(lambda content: change(content["optimizer"][0]["state"][0]))


def yml(text):
    return spoil.holding(text.encode())


def replaced(old, new=""):
    return yml(SWEEP.decode().replace(old, new))


def parameter(text):
    return replaced("{values: [0.1, 0.01]}", text)


# Nine lists of nine times the one before.
BOMB = "a: &a [x]\n" + "".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi"))
# Forty mappings that each merge the one before twice.
MERGED = "a0: &a0 {x: 1}\n" + "".join(f"a{n + 1}: &a{n + 1} {{<<: [*a{n}, *a{n}]}}\n" for n in range(40))
# What needs the package pyyaml to be told.
YAML = {
    **some(spoil.ANY, "empty", "zeros", "web page"),
    "null": yml("null"), "list": yml("[1, 2]"), "unfinished": yml("method: ["), "tabs": yml("a:\n\t- b"),
    "deep": yml("[" * 1500), "5000 digits": yml("method: " + "9" * 5000),
    "an impossible date": yml("method: 2020-13-77"),
    "code": yml("!!python/object/apply:os.system [exit]"), "NUL": yml("method: \0"),
    "bomb": yml(BOMB), "merged bomb": yml(MERGED),
    "a bomb for a method": yml(SWEEP.decode().replace("grid", "[*i]").replace("method", BOMB + "method", 1)),
    "no method": replaced("method: grid"), "no goal": replaced(", goal: maximize"),
    "an unknown method": replaced("grid", "guess"), "an unknown goal": replaced("maximize", "best"),
    "a number for the metric": replaced("metrics/score", "3"), "a list for the method": replaced("grid", "[grid]"),
    "no value": parameter("{}"), "no values": parameter("{values: []}"),
    "a number for values": parameter("{values: 3}"), "lists for values": parameter("{values: [[1], [2]]}"),
    "null for a value": parameter("{value: null}"), "a bare value": parameter("0.1"),
    "a value that is none": parameter("{values: [0.1, nan]}"),
    "an option that is none": replaced("lr:", "learnrate:"), "no data set": replaced("dataset: {value: MVTec}, "),
}  # fmt: skip
CALIBRATION = {name: [math.nan] for name in ("inference", "validation", "map")}
CASES = [
    *options(
        "train",
        ("--improved maybe", "--improved"), "--lr-scheduler linear", "--lr-steps -1", "--imsize 100", "--imsize 16",
        ("--model dagan --imsize 96", "multiple of 64"), "--batch-size 0", ("--batch-size 39", "fewer than a batch"),
        "--lr nan", "--momentum 1", "--calibration-share 1", "--ngf 2000", "--norm layer", "--seed -1",
        "--reconstruction-weight nan", ("--batchsize 3", "--batch-size"), ("--precision fp16", "fp16"),
        ("--sync-bn", "--sync-bn"), "--mode test", ("--dataset-path {place}/none", "none"),
        ("--dataset-path {place}/sweep.yml", "sweep.yml"), ("--dataset-path=", "--dataset-path"),
        (f"--dataset-path {LONG}", "too long"), ("--log-file {place}/data", "data"),
        ("--image-output-path {place}/sweep.yml/x", "sweep.yml"), ("--log-dir {place}/sweep.yml", "sweep.yml"),
        ("--model-input {place}/none.ckpt --resume no", "none.ckpt"), ("--lr 0.1", "lr 0.0001, not 0.1"),
        ("--ngf 2", "ngf 1, not 2"), ("--device toaster", "toaster"), ("--device cuda:x", "cuda:x"),
    ),
    *files("train", IMAGE, {
        **spoil.ANY,
        **some(spoil.IMAGE, "bomb", "zero-sized", "flipped bit", "float pixels", "truncated JPEG", "program"),
    }),
    *files("train", MASK, {
        **some(spoil.ANY, "empty", "unreadable"), "another size": spoil.holding(spoil.png(9, 9, bytes(90))),
    }),
    *files("train", LAST, {
        **some(spoil.ANY, "empty", "truncated", "folder", "unreadable", "noise"),
        **some(spoil.CHECKPOINT, "malicious pickle", "malicious pickle in torch's archive"),
        **{name: spoil.without(name) for name in ("optimizer", "scaler", "history", "fingerprint", "bookkeeping")},
        "epoch 7": (entry("epoch", 7), "7 epochs"), "step is text": entry("step", "1"),
        "step 9": entry("step", 9), "history of nothing": entry("history", [{}]),
        "too few optimizers": entry("optimizer", [{}, {}]), "scaler of text": entry("scaler", {"scale": "x"}),
        "other images": entry("fingerprint", "0"), "seconds are NaN": entry("seconds", math.nan),
        "moments are NaN": moments(lambda one: one["exp_avg"].fill_(math.nan) is None),
        "moments of another shape": moments(lambda one: one.update(exp_avg=torch.zeros(7))),
        "authors' checkpoint": lightning(best_gen=0, best_disc=0),
    }),
    *places("train", {
        "real images among generated ones": (
            lambda place: shutil.copy(place / IMAGE, place / "data/brick/test/good/mine.png"), "mine.png",
        ),
        "other images": (
            lambda place: (
                (place / "data/brick/SYNTHETIC").unlink(),
                shutil.copy(place / IMAGE, place / "data/brick/test/good/mine.png"),
            ),
            "other data",
        ),
        "checkpoints that cannot be written": (lambda place: (place / "ck").chmod(0o500), "cannot write"),
        "logs that cannot be written": (lambda place: (place / "logs/version_0").chmod(0o500), "version_0"),
    }, more="--epochs 2"),
    *files("train road", HEIGHT, {
        **some(spoil.ANY, "empty", "folder", "truncated", "unreadable"), **some(spoil.IMAGE, "bomb", "zero-sized"),
        "another size": spoil.holding(spoil.png(9, 9, bytes(90))),
    }, "height_files"),
    *places("train road", {
        "no heights": (lambda place: shutil.rmtree(place / "road/bad_ones/height_files"), "height_files"),
        "one good one": (
            lambda place: [path.unlink() for path in place.glob("road/good_ones/*/00[12].png")], "good_ones",
        ),
    }),
    *options(
        "train inference",
        ("--ngf 3", "ngf"), ("--model dagan", "--model"), ("--model-input=", "--model-input"),
        ("--model-input {place}/none.ckpt", "none.ckpt"), ("--model-input {place}/data", "folder"),
        ("--anomaly-score-file {place}/data", "--anomaly-score-file"), "--anomaly-score-file x.json",
        ("--anomaly-score-file {place}/sweep.yml/x.csv", "sweep.yml"), ("--imsize 33", "--imsize 33"), "--fpr 1",
        ("--max-network-depth 5", "max-network-depth 8, not 5"),
    ),
    *files("train inference", LAST, {
        **spoil.ANY, **spoil.CHECKPOINT, **spoil.OURS, **spoil.parameters("model"),
        "levels are text": entry("levels", "x"), "levels are many": entry("levels", 31),
        "bookkeeping is empty": entry("bookkeeping", {}),
        "best unit is none": spoil.stored(lambda c: c["bookkeeping"].update(best_gen=5)),
        "calibration is NaN": entry("calibration", CALIBRATION), "calibration is a list": entry("calibration", [1]),
        "settings is a list": entry("settings", []), "norm is a list": setting(norm=["batch"]),
        "millions of units": setting(num_competitive_units=10**7), "no units": setting(num_competitive_units=0),
        "channels beyond the limit": setting(ngf=10**9), "image size of text": setting(imsize="32"),
        "image size 33": setting(imsize=33), "image size beyond the limit": setting(imsize=2**20),
        "unknown model": setting(model="vae"), "unknown data set": setting(dataset="../../etc"),
        "improved is text": setting(improved="maybe"),
        "authors', without best units": lightning(),
        "authors', best unit of text": lightning(best_gen="x", best_disc=0),
        "authors', best unit 7": lightning(best_gen=7, best_disc=0),
        "authors', of other things": lightning(state_dict={"a": 1}, best_gen=0, best_disc=0),
    }),
    *options(
        "score",
        ("--images {place}/none", "none"), ("--images {place}/ck", "no images"), ("--images 'ä\nö'", "ä ö"),
        ("--images {place}/data/brick/train", "other images"), ("--output {place}/sweep.yml", "sweep.yml"),
        ("--output {place}/data/brick/test/good/out", "--output"), "--fpr nan", ("--imsize 33", "--imsize 33"),
        ("--model-input {place}/none.ckpt", "none.ckpt"), ("--dataset RoadImages", "intensity_files"),
        ("--modelinput x", "--model-input"), ("--device toaster", "toaster"),
    ),
    *files("score", LAST, {
        **some(spoil.ANY, "empty", "truncated", "unreadable", "web page"),
        **some(spoil.CHECKPOINT, "malicious pickle", "malicious pickle in torch's old format"),
        "authors'": lightning(best_gen=0, best_disc=0),
    }),
    *files("score", "scored/results.json", {**spoil.CONTENT, **spoil.JSON, **spoil.each_of("images")}, "scored"),
    *files("score", "scored/progress.jsonl", some(spoil.ANY, "unreadable", "folder", "link loop")),
    *places("score", {"results cannot be written": (lambda place: (place / "scored").chmod(0o500), "cannot write")}),
    *options(
        "export",
        "--fpr nan", ("--imsize 33", "--imsize 33"), "--imsize 5000", ("--model-input {place}/none.ckpt", "none.ckpt"),
        ("--model-input {place}/ck", "folder"), ("--model-input {place}/" + IMAGE, "000.png"), "--batch-size 4",
    ),
    *exports("export", LAST),
    *files("export", LAST, {
        **some(spoil.ANY, "empty", "truncated"), **some(spoil.CHECKPOINT, "malicious pickle", "another's parameters"),
        **some(spoil.OURS, "newer format", "no kind"), "other units": setting(num_competitive_units=2),
    }),
    *files("export", LAST, {"authors', without --dataset": lightning(best_gen=0, best_disc=0)}, "--dataset"),
    *files(
        "export", LAST, {"authors', another size": lightning(best_gen=0, best_disc=0)},
        more="--dataset MVTec --imsize 32",
    ),
    *options(
        "sweep",
        "--trials 0", "--workers 65", "--seed -1", "--trails 3", ("more.yml", "more.yml"), "--name", "--storage",
        ("--name 'a\0b'", "NUL"), "--trials " + "9" * 5000,
    ),
    *files("sweep", "sweep.yml", some(spoil.ANY, "missing", "folder", "link loop", "unreadable", "noise", "utf-16")),
    *options(
        "demo_data",
        "--good 0", "--good 1e3", "--bad", "--dataset MVTec", "--datset Panorama", ("more", "more"),
        ("--output 'a\0b'", "NUL"), ("--output {place}/road", "road"), ("--output {place}/sweep.yml", "sweep.yml"),
        (f"--output {{place}}/{LONG}", "too long"), "--good 9" + "9" * 5000,
    ),
]  # fmt: skip


@parametrised(CASES)
def test_bad_input(case, place, capfd):
    case.check(place, capfd, MAINS, arguments(case.script, place))


@parametrised(files("sweep", "sweep.yml", YAML))
def test_bad_sweeps(case, place, capfd):
    pytest.importorskip("yaml")
    case.check(place, capfd, MAINS, arguments(case.script, place))


@pytest.mark.slow
def test_damaged_files(good, capfd):
    files = [good.place / name for name in (LAST,)]
    check_damage(capfd, score.main, arguments("score", good.place), files, good.place / "scored/scores.csv")
