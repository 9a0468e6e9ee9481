"""The benchmarks' scripts on bad input."""

import shutil

import pytest

from benchmarks import compare, demo, growth, nearest_neighbour, speed
from tests.bad_input import spoil
from tests.bad_input.cases import State, at, make_texture, options, parametrised, places

MAINS = {
    "compare": compare.main,
    "demo": demo.main,
    "growth": growth.main,
    "nearest_neighbour": nearest_neighbour.main,
    "speed": speed.main,
}


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A data set, and a folder with results of something."""
    place = tmp_path_factory.mktemp("benchmarks") / "place"
    make_texture(place / "data")
    spoil.put(place / "results/speed.json", b"{}")
    return State(place)


FILE = (
    ("--output {place}/results", "--output"),
    ("--output {place}/results/speed.json/x.json", "speed.json"),
    (f"--output {{place}}/{'n' * 300}/x", "too long"),
)
CLOSED = {"results that cannot be written": (lambda place: (place / "results").chmod(0o500), "cannot write in")}
CASES = [
    *options(
        "compare",
        ("--data {place}/none", "none"), ("--data {place}/results", "holds none"),
        ("--data {place}/results/speed.json", "speed.json"),
        "--methods", "--methods memae", "--seeds x", "--seeds", "--img_size 100", "--img_size 0", "--epochs 0",
        "--networks large",
        "--held_out 0", "--held_out nan", "--precision fp8", "--extractor resnet",
        ("--csflow_options '\"'", "--csflow_options"),
        ("--crn_options '--imsize 64'", "--crn_options"), ("--riad_options '--lr nan'", "--lr nan"),
        ("--csflow_options='--fc 3'", "--fc"),
        ("--crn_options=--ngf=0", "--ngf"), "--seeds -1", FILE[1], FILE[2],
    ),
    *places("compare", {
        "no defective images": (
            lambda place: [
                shutil.rmtree(path) for path in (place / "data/brick/test").iterdir() if path.name != "good"
            ],
            "good images only",
        ),
        "no test images": (lambda place: shutil.rmtree(place / "data/brick/test"), "test"),
        "one good image": (
            lambda place: [(place / f"data/brick/train/good/00{k}.png").unlink() for k in (1, 2)], "one image",
        ),
        "an unreadable image": (at("data/brick/test/good/000.png", spoil.ANY["unreadable"]), "000.png"),
        "an image that is a link loop": (at("data/brick/test/good/000.png", spoil.ANY["link loop"]), "000.png"),
    }),
    *options("demo", "--only", "--only none", "--outptu x", "--output", FILE[1], FILE[2], "more"),
    *places("demo", CLOSED, more="--output {place}/results/demo"),
    *options("growth", "--only", "--only none", "--divice cpu", ("--device toaster", "toaster"), *FILE),
    *places("growth", CLOSED, more="--output {place}/results/growth.json"),
    *options(
        "speed",
        "--only none", "--tasks sleep", "--precisions fp8", "--layouts round", "--repeats 4", "--repeats x",
        "--threads -1",
        "--threads 1025", ("--device toaster", "toaster"), ("--device cpu --precisions fp16", "fp16"),
        ("--large 3", "unknown option 3"),
        *FILE,
    ),
    *places("speed", CLOSED, more="--output {place}/results/speed.json"),
    *options(
        "nearest_neighbour",
        "--img_size 100", "--n_scales 0", ("--dataset_path {place}/none", "none"), "--class_name ../x", "--seed x",
        ("--device toaster", "toaster"), ("--classname x", "--class_name"), ("--fpr 0.1", "--fpr"),
    ),
]  # fmt: skip


@parametrised(CASES)
def test_bad_input(case, place, capfd):
    argv = ["--data", str(place / "data"), "--output", str(place / "results/new")] if case.script == "compare" else []
    case.check(place, capfd, MAINS, argv)
