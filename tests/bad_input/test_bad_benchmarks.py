"""The benchmarks' scripts on bad input."""

import pytest

from benchmarks import demo, growth, nearest_neighbour, speed
from tests.bad_input import spoil
from tests.bad_input.cases import State, options, places

MAINS = {"demo": demo.main, "growth": growth.main, "nearest_neighbour": nearest_neighbour.main, "speed": speed.main}


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A folder with results of something."""
    place = tmp_path_factory.mktemp("benchmarks") / "place"
    spoil.put(place / "results/speed.json", b"{}")
    return State(place)


@pytest.fixture
def place(case, good, monkeypatch):
    monkeypatch.chdir(good.place)
    yield good.place
    good.renew_after(case)


FILE = (
    ("--output {place}/results", "--output"),
    ("--output {place}/results/speed.json/x.json", "speed.json"),
    (f"--output {{place}}/{'n' * 300}/x", "too long"),
)
CLOSED = {"results that cannot be written": (lambda place: (place / "results").chmod(0o500), "cannot write in")}
CASES = [
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
        ("--device toaster", "toaster"), ("--classname x", "--class_name"),
    ),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=str)
def test_bad_input(case, place, capfd):
    case.check(place, capfd, MAINS, [])
