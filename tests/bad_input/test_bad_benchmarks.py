"""The benchmarks' scripts on bad input."""

import json
import shlex
import shutil

import numpy as np
import pytest
from scipy.io import savemat

from benchmarks import accuracy, compare, demo, nearest_neighbour, speed
from tests.bad_input import spoil
from tests.bad_input.cases import State, at, files, make_texture, options, parametrised, places, some

MAINS = {
    "accuracy": accuracy.main,
    "accuracy avenue": accuracy.main,
    "accuracy visa": accuracy.main,
    "compare": compare.main,
    "demo": demo.main,
    "nearest_neighbour": nearest_neighbour.main,
    "speed": speed.main,
}
SPLIT, MASK, LABELS = "visa/split_csv/1cls.csv", "visa/m.png", "avenue/testing_label_mask/1_label.mat"


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A data set, a folder with results of something; VisA's table with an image and a mask, Avenue's labels."""
    place = tmp_path_factory.mktemp("benchmarks") / "place"
    make_texture(place / "data")
    spoil.put(place / "results/speed.json", b"{}")
    rows = ["object,split,label,image,mask", "pcb,train,normal,0.png,", "pcb,test,normal,0.png,"]
    spoil.put(place / SPLIT, "\n".join([*rows, "pcb,test,anomaly,0.png,m.png", ""]).encode())
    for name in ("0", "m"):
        spoil.put(place / f"visa/{name}.png", spoil.png(2, 2, bytes(6)))
    for name in ("training_videos", "testing_videos", "testing_label_mask"):
        (place / "avenue" / name).mkdir(parents=True)
    masks = np.empty((1, 2), object)
    masks[:] = [[np.zeros((2, 2)), np.ones((2, 2))]]
    savemat(place / LABELS, {"volLabel": masks})
    return State(place)


FILE = ("--output {place}/results/speed.json/x.json", "speed.json"), (f"--output {{place}}/{'n' * 300}/x", "too long")
CLOSED = {"results that cannot be written": (lambda place: (place / "results").chmod(0o500), "cannot write in")}
EXPERIMENT = next(one for one in accuracy.EXPERIMENTS if one.name == "riad, 128 px, small, 12 epochs")


def recorded(content):
    """A record of RIAD's run in the demo, with this content."""
    return lambda place: spoil.put(demo.folder_of("riad", place / "results/demo") / "demo.json", content)


def run_json(**entries):
    """A record of a run of accuracy.py, with other entries."""
    good = {"experiment": EXPERIMENT.name, "settings": accuracy.settings_of(EXPERIMENT)}
    return spoil.holding(json.dumps({**good, "category": "a", "seed": 0, "numbers": {}, **entries}).encode())


def without(place, *kept):
    """Real data of which only what is kept is left."""
    for path in list((place / "data/brick").rglob("*")):
        if path.is_file() and not any(path.match(f"brick/{pattern}") for pattern in kept):
            path.unlink()


CASES = [
    *options(
        "accuracy",
        ("--data visa", "NAME=FOLDER"), ("--data visa={place}/none", "none"), ("--data cats={place}", "cats"),
        ("--data boards={place}", "boards"), ("--data mvtec={place}/results", "train/good"),
        ("--data visa={place}/data", "1cls.csv"), ("--data btad={place}/data", "train/ok"),
        ("--data avenue={place}/data", "training_videos"), ("--data mnist={place}/data", "MNIST/raw"),
        ("--data ped2={place}/data", "Train"), ("--only nothing", "--list"), ("--only 'on visa'", "--data"),
        "--seeds -1", ("--outptu x", "--output"), *FILE, ("--output 'a\0b'", "NUL"),
    ),
    *files("accuracy", "results/new/runs/x/run.json", {
        **some(spoil.ANY, "empty", "noise"), **some(spoil.JSON, "list", "null", "deep"),
        "no category": run_json(category=None), "numbers in a list": run_json(numbers=[0.5]),
        "a number is text": run_json(numbers=dict.fromkeys(EXPERIMENT.numbers, "high")),
    }, more=f"--data mtd={{place}}/data --only {shlex.quote(EXPERIMENT.name)}"),
    *files("accuracy visa", SPLIT, {
        **{name: one for name, one in spoil.ANY.items() if name not in ("truncated", "cut at its start")},
        **some(spoil.CSV, "header alone", "no header", "a row too short", "a cell beyond the limit", "Latin-1"),
        "an object above": spoil.cell(1, 0, "../../results"), "an absolute object": spoil.cell(1, 0, "/tmp"),
        "no object": spoil.cell(1, 0, "."), "an image above": spoil.cell(2, 3, "../data/brick/SYNTHETIC"),
        "an absolute image": spoil.cell(2, 3, "/etc/passwd"), "a mask above": spoil.cell(3, 4, "a/../../m.png"),
        "another split": spoil.cell(1, 1, ".."), "another label": spoil.cell(1, 2, "good"),
    }),
    *files("accuracy visa", SPLIT, {"an image that is not there": spoil.cell(1, 3, "1.png")}, "1.png"),
    *files("accuracy visa", MASK, {**some(spoil.ANY, "missing", "empty", "truncated", "pipe", "unreadable"),
                                   **some(spoil.IMAGE, "bomb", "zero-sized")}),
    *files("accuracy avenue", LABELS, {
        **some(spoil.ANY, "empty", "truncated", "noise", "unreadable", "folder", "link loop"),
        **spoil.mat_table("volLabel", {}), "malicious pickle": spoil.CHECKPOINT["malicious pickle"],
    }),
    *places("accuracy avenue", {
        "labels without a number": (lambda place: (place / LABELS).rename(place / LABELS.replace("1_", "x_")), "<n>"),
        "no labels": (at(LABELS, spoil.remove), "<n>_label.mat"),
        "no videos": (lambda place: (place / "avenue/testing_videos").rmdir(), "testing_videos"),
    }),
    *options(
        "compare",
        ("--data {place}/none", "none"), ("--data {place}/results", "holds none"), "--methods memae", "--seeds -1",
        "--img_size 100", "--epochs 0", "--held_out nan", ("--csflow_options '\"'", "--csflow_options"),
        ("--crn_options '--imsize 64'", "--crn_options"), ("--riad_options '--lr nan'", "--lr"),
        ("--csflow_options='--fc 3'", "--fc"), ("--crn_options=--ngf=0", "--ngf"), *FILE,
    ),
    *places("compare", {
        "no defective images": (lambda place: without(place, "*/good/*"), "there are no images in"),
        "no test images": (lambda place: shutil.rmtree(place / "data/brick/test"), "test"),
        "one good image": (lambda place: without(place, "test/*/*", "train/good/000.png"), "one image"),
        "an unreadable image": (at("data/brick/test/good/000.png", spoil.ANY["unreadable"]), "000.png"),
        "an image that is a link loop": (at("data/brick/test/good/000.png", spoil.ANY["link loop"]), "000.png"),
    }),
    *options("demo", "--only none", ("--only csflow,riad", "csflow,riad"), ("--output 'a\0b'", "NUL"), *FILE),
    *places("demo", {
        **CLOSED, "an output that is a link loop": (at("results/demo", spoil.ANY["link loop"]), "results/demo"),
        "a record is no JSON": (recorded(b"{"), "demo.json"), "a record is a list": (recorded(b"[]"), "demo.json"),
        "a record's steps are text": (recorded(b'{"finished": "1", "seconds": 1}'), "demo.json"),
    }, more="--only riad --output {place}/results/demo"),
    *options(
        "speed",
        "--tasks sleep", "--precisions fp8", "--repeats 4", "--threads -1", ("--device toaster", "toaster"),
        ("--device cpu --precisions fp16", "fp16"), ("--output {place}/results", "--output"), *FILE,
    ),
    *places("speed", CLOSED, more="--output {place}/results/speed.json"),
    *options(
        "nearest_neighbour",
        "--img_size 100", "--n_scales 0", "--calibration_share 1", ("--dataset_path {place}/none", "none"),
        "--class_name ../x", ("--device toaster", "toaster"), ("--classname x", "--class_name"), ("--fpr 1", "--fpr"),
    ),
]  # fmt: skip


@parametrised(CASES)
def test_bad_input(case, place, capfd, monkeypatch):
    def ran(*_):
        raise AssertionError("what should have been refused was run")

    for module in (accuracy, compare, demo):
        monkeypatch.setattr(module, "run", ran)
    output = ["--output", str(place / "results/new")]
    argv = {
        "accuracy": output,
        "accuracy avenue": [*output, "--only", "avenue", "--data", f"avenue={place}/avenue"],
        "accuracy visa": [*output, "--only", "visa", "--data", f"visa={place}/visa"],
        "compare": ["--data", str(place / "data"), *output],
    }.get(case.script, [])
    case.check(place, capfd, MAINS, argv)
