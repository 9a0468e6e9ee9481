"""CRRN's scripts on bad input."""

import importlib
import math
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from crrn import compare, demo_boards
from tests.bad_input import spoil
from tests.bad_input.cases import State, at, check_damage, files, options, parametrised, places, some
from tests.bad_input.spoil import entry, setting

NAMES = ("0_preprocessing", "1_train", "2_test_model", "3_score_boards")
SCRIPTS = {name: importlib.import_module(f"crrn.{name}") for name in NAMES}
MAINS = {
    **{name: script.main for name, script in SCRIPTS.items()},
    "compare": compare.main,
    "demo_boards": demo_boards.main,
}
LONG = "n" * 300
TRAINED = ["--num_epochs", "1", "--num_instance", "1", "--batch_size", "1"]


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """Two cycles of three boards, a model trained and tested by compare.py; new boards and their scores."""
    place = tmp_path_factory.mktemp("crrn") / "place"
    for name, run in (("data", 0), ("new", 1)):
        assert demo_boards.main(["--output", str(place / name), "--boards", "6", "--run", str(run)]) == 0

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subprocess, "run", run_here)
        for script in SCRIPTS.values():
            for name in ("draw_precision_recall", "draw_errors", "draw_boards"):  # what takes longest
                if hasattr(script, name):
                    patch.setattr(script, name, lambda *_, **__: None)
        assert compare.main(arguments("compare", place)) == 0
        assert SCRIPTS["3_score_boards"].main(arguments("3_score_boards", place)) == 0
    return State(place)


def run_here(command, check):
    """A script in this process, for compare.py."""
    return subprocess.CompletedProcess(command, MAINS[Path(command[1]).stem](command[2:]))


@pytest.fixture
def place(place, monkeypatch):
    monkeypatch.setattr(subprocess, "run", run_here)
    return place


def arguments(script, place):
    data = ["--data", str(place / "data"), "--cycle", "3"]
    model = [*data, "--mode", "ConvLSTM", "--n_layers", "1", "--result", str(place / "data/compare/seed0"), "--cpu"]
    return {
        "0_preprocessing": data,
        "1_train": [*model, *TRAINED],
        "2_test_model": model,
        "3_score_boards": [*model, "--boards", str(place / "new"), "--output", str(place / "scored")],
        "compare": [
            *data,
            "--models",
            "ConvLSTM",
            "--protocols",
            "drawn",
            "--seeds",
            "0",
            "--n_layers",
            "1",
            "--cpu",
            *TRAINED,
        ],
        "demo_boards": ["--output", str(place / "data"), "--boards", "2"],
    }[script]


JOB, BOARD, TABLE = "data/job.json", "data/spi_measurement/spi_003.json", "data/df_info.csv"
MODEL, NEW = "data/compare/seed0/ConvLSTM/model_dictionary.pt", "new/spi_measurement/spi_001.json"


def optimizer(change):
    """Another state of the optimizer's first parameter."""
    return spoil.stored(lambda content: change(content["optimizer"]["state"][0]))


def tensor(change):
    """Another tensor in the file."""

    def spoiler(path):
        spoil.saved(change(torch.load(path, weights_only=True)))(path)

    return spoiler


def first_pad(**values):
    return spoil.edited(lambda board: board["PADINFO"][0].update(values))


def job(change):
    return spoil.edited(lambda content: change(content))


def one_volume(place):
    """All pads have one volume on all boards."""
    for path in (place / "data/spi_measurement").iterdir():
        spoil.edited(lambda board: [pad.update(Volume=7.0) for pad in board["PADINFO"]] and None)(path)


def told(word, table):
    """These spoilers, with a word of the error."""
    return {name: (spoiler, word) for name, spoiler in table.items()}


VOLUMES = spoil.each_of("PADINFO", 0, "Volume")
WRONG_BOARD = {
    **told("PADINFO", spoil.each_of("PADINFO")),
    **told("PADINFO[0]", spoil.each_of("PADINFO", 0, "PosX") | spoil.each_of("PADINFO", 0, "PadID")),
    **told("PADINFO[0].Volume", some(VOLUMES, *(name for name in VOLUMES if not name.endswith("-1")))),
    "volume is NaN": (first_pad(Volume=math.nan), "PADINFO[0].Volume is nan"),
    "volume is infinite": (first_pad(Volume=-math.inf), "PADINFO[0].Volume is -inf"),
    "volume beyond a float": (first_pad(Volume=10**400), "a number of 1329 bits"),
    "volume is true": (first_pad(Volume=True), "PADINFO[0].Volume is True"),
    "pad off the grid": (first_pad(PosX=33.0), "off the grid of 33 x 25 pixels"),
    "pad below the grid": (first_pad(PosY=-0.1), "off the grid"),
    "pad of no number": (first_pad(PadID=10**6), "PADINFO[0].PadID is 1000000"),
    "pad's number is halved": (first_pad(PadID=1.5), "PADINFO[0].PadID is 1.5"),
    "no pads": (spoil.edited(lambda board: {"PADINFO": []}), "PADINFO is empty"),
    "numbers for pads": (spoil.edited(lambda board: {"PADINFO": [1, 2]}), "PADINFO[0]"),
    "a pad less": (spoil.edited(lambda board: board["PADINFO"].pop() and None), " pads"),
    "a pad twice": (spoil.edited(lambda board: board["PADINFO"].append(board["PADINFO"][0])), "more than once"),
}
CASES = [
    *options(
        "0_preprocessing",
        ("--cycle 20", "fewer than one cycle of 20"), "--cycle 1", "--cycle -3", "--cycle x", "--cycle 2.5", "--cycle",
        "--seed -1", "--seed 18446744073709551616", "--seed x", ("--data none", "--data none"),
        ("--data no/where", "no/where"),
        ("--data 'a\0b'", "NUL"), (f"--data {LONG}/", "too long"), ("--data ä/ö/", "ä/ö"),
        ("--date x", "--data"), ("--data {place}/data/job.json", "job.json"),
        ("--data {place}/new/spi_measurement", "job.json"),
        ("--cycle 9" + "9" * 300, "cycle"),
    ),
    *files("0_preprocessing", JOB, {**spoil.ANY, **spoil.JSON}),
    *files("0_preprocessing", JOB, {
        **told("PCBInfo", spoil.each_of("PCBInfo") | spoil.each_of("PCBInfo", "PCBLenth", 0)),
        **told("Pad.", spoil.each_of("Pad", "ID", 0) | spoil.each_of("Pad", "ShapeID")),
        "a side of 3000 mm": job(lambda c: c["PCBInfo"].update(PCBWidth=[3000])),
        "a side of NaN": job(lambda c: c["PCBInfo"].update(PCBWidth=[math.nan])),
        "a pad twice": job(lambda c: c["Pad"]["ID"].__setitem__(0, c["Pad"]["ID"][1])),
        "a shape less": job(lambda c: c["Pad"]["ShapeID"].pop() and None),
        "a pad's number beyond floats": job(lambda c: c["Pad"]["ID"].__setitem__(0, 10**30)),
        "a shape of 131,073 characters": job(lambda c: c["Pad"]["ShapeID"].__setitem__(0, "x" * 131_073)),
        "no shape": job(lambda c: c["Pad"]["ShapeID"].__setitem__(0, [1])),
    }),
    *files("0_preprocessing", BOARD, {**spoil.ANY, **spoil.JSON, **WRONG_BOARD}),
    *files("0_preprocessing", BOARD, {"a volume too large": first_pad(Volume=1e300)}, "pad 1"),
    *places("0_preprocessing", {
        "no boards": (lambda place: [p.unlink() for p in (place / "data/spi_measurement").iterdir()], "missing"),
        "no folder of boards": (lambda place: shutil.rmtree(place / "data/spi_measurement"), "missing"),
        "one board too many": (
            lambda place: shutil.copy(place / BOARD, place / "data/spi_measurement/spi_006.json"), "spi_006.json"
        ),
        "two boards of one number": (
            lambda place: (
                (place / "data/SYNTHETIC").unlink(),
                shutil.copy(place / BOARD, place / "data/spi_measurement/spi_0003.json"),
            ),
            "spi_0003.json",
        ),
        "a gap among the boards": (
            lambda place: ((place / "data/SYNTHETIC").unlink(), (place / BOARD).unlink()), "spi_003.json",
        ),
        "one volume everywhere": (one_volume, "no pad's volume changes"),
        "an unreadable folder of boards": (lambda place: (place / "data/spi_measurement").chmod(0), "spi_measurement"),
        "a folder that cannot be written": (lambda place: (place / "data").chmod(0o500), "data"),
        "an unreadable mark": (at("data/SYNTHETIC", spoil.ANY["unreadable"]), "SYNTHETIC"),
        "an empty mark": (at("data/SYNTHETIC", spoil.ANY["empty"]), "SYNTHETIC"),
        "a link loop for the data": (at("data", spoil.ANY["link loop"]), "data"),
    }),
    *options(
        "1_train",
        ("--mode ConvGridLSTM", "ConvGridLSTM"), ("--mode LSTM", "LSTM"), "--batch_size 0", "--num_instance 0",
        "--num_epochs 0",
        "--num_epochs " + "9" * 400, "--n_layers 0", "--n_layers 101", "--lr nan", "--lr 0", "--lr -1", "--init_tr 1.5",
        "--final_tr nan",
        "--seed -1", "--held_out 1", "--held_out nan", "--gates own", "--precision fp8", "--protocol made",
        "--batchsize 5", "--gpu_ids x",
        ("--precision fp16", "fp16"), ("--sync_bn", "--sync_bn"), ("--seed 1", "seed 0, not 1"), ("--lr 1e-3", "lr"),
        ("--cycle 2", "cycles of 3 boards"), ("--result {place}/data/job.json", "job.json"),
        ("--data none", "--data none"),
        (f"--result {{place}}/{LONG}", "too long"), ("--n_layers 2", "n_layers 1, not 2"),
    ),
    *files("1_train", MODEL, {
        **some(spoil.ANY, "empty", "truncated", "folder", "unreadable", "link to its folder", "noise"),
        **some(spoil.CHECKPOINT, "malicious pickle", "malicious pickle in torch's archive"),
        **{
            f"no {name}": spoil.without(name) for name in (
                "optimizer", "scaler", "history", "fingerprint", "state_dict",
            )
        },
        "step beyond the epoch": entry("step", 10**6), "step is text": entry("step", "1"),
        "sums are infinite": entry("sums", {"loss": math.inf}),
        "epoch is true": entry("epoch", True), "losses are text": entry("history", [{"loss": "a", "test_loss": 1.0}]),
        "scaler of text": entry("scaler", {"scale": "x"}),
        "moments of another shape": optimizer(lambda one: one.update(exp_avg=torch.zeros(3))),
        "moments are NaN": optimizer(lambda one: one["exp_avg"].fill_(math.nan) is None),
        "squares below 0": optimizer(lambda one: one["exp_avg_sq"].fill_(-1) is None),
        "step of the optimizer is text": optimizer(lambda one: one.update(step="x")),
        "optimizer without groups": entry("optimizer", {"state": {}, "param_groups": []}),
        "settings without a mode": spoil.stored(lambda content: content["settings"].pop("mode") and None),
        "lists in settings": setting(lr=[1]), "other boards": entry("fingerprint", "0" * 16),
    }),
    *files("1_train", "data/pcb_info.pt", {
        **spoil.CONTENT, **spoil.CHECKPOINT,
        "no mean": spoil.without("mean"), "means are NaN": entry("mean", [math.nan] * 3),
        "means are text": entry("mean", ["0"] * 3),
        "negative deviations": entry("std", [-1.0] * 3), "height is text": entry("height", "25"),
        "height is huge": entry("height", 10**9 + 1),
        "one mean": entry("mean", [0.0]), "a pad's mean is NaN": entry("pcb_mean", torch.full((160,), math.nan)),
        "pads' means in a table": entry("pcb_mean", torch.zeros(2, 2)),
        "pads are fewer": entry("pcb_std", torch.ones(2)),
        "other boards": entry("inputs", "0" * 16),
    }, "data"),
    *files("1_train", "data/test_pcbs.pt", {
        **spoil.CONTENT,
        **some(
            spoil.CHECKPOINT, "malicious pickle", "malicious pickle in torch's archive", "list", "tensor", "program",
        ),
        "double": tensor(torch.Tensor.double), "integers": tensor(torch.Tensor.int),
        "complex": tensor(torch.Tensor.cfloat),
        "zeros alone": tensor(torch.zeros_like), "NaN": tensor(lambda t: t * math.nan),
        "transposed": tensor(lambda t: t.mT.contiguous()),
        "sparse": tensor(torch.Tensor.to_sparse), "a sequence less": tensor(lambda t: t[:1].clone()),
    }),
    *options(
        "2_test_model",
        "--batch_size 0", "--batch_size x", "--seed -1", "--test_set own", "--tst_set drawn",
        ("--mode ConvConjLSTM", "1_train.py"),
        ("--is_attn", "1_train.py"), ("--gates textbook", "1_train.py"), ("--n_layers 2", "n_layers 1, not 2"),
        ("--precision fp16", "fp16"),
        ("--result {place}/none", "1_train.py"), ("--data none", "--data none"), "--held_out 0",
        ("--cycle 9", "cycles of 3 boards"),
        "--gpu_ids 0 x",
    ),
    *files("2_test_model", MODEL, {
        **{name: one for name, one in spoil.ANY.items() if "link loop" not in name}, **spoil.CHECKPOINT,
        **spoil.parameters("state_dict"),
        **some(spoil.OURS, "newer format", "kind is a number", "format is text"),
        **{f"no {name}": spoil.without(name) for name in ("settings", "epoch", "test_loss", "step")},
        "epoch is NaN": entry("epoch", math.nan), "epoch below 0": entry("epoch", -5),
        "losses are NaN": entry("test_loss", [math.nan]),
        "losses too many": entry("test_loss", [1.0, 2.0]), "settings is a list": entry("settings", []),
        "another grid": setting(height=13),
        "parameters in a list": entry("state_dict", []),
        "parameters by number": entry("state_dict", {1: torch.zeros(1)}),
        "another cell": setting(mode="ConvConjLSTM"),
    }),
    *files("2_test_model", TABLE, {
        **spoil.CONTENT, **spoil.CSV,
        "a volume is text": spoil.cell(3, 4, "x"), "a volume is NaN": spoil.cell(3, 4, "nan"),
        "a volume is infinite": spoil.cell(3, 4, "inf"),
        "a place below 0": spoil.cell(1, 2, "-1"), "a place off the grid": spoil.cell(1, 2, "99"),
        "a pad twice": spoil.cell(1, 1, "1"),
        "a pad's number is huge": spoil.cell(1, 1, "1e300"), "a pad's number is halved": spoil.cell(1, 1, "0.5"),
        "a board's number": spoil.cell(9, 0, "2"),
        "an age": spoil.cell(9, 7, "2"),
        "another column": spoil.lines(lambda rows: [rows[0].replace("Vol,", "Weight,"), *rows[1:]]),
        "a column twice": spoil.lines(lambda rows: [rows[0].replace("Group", "Vol"), *rows[1:]]),
    }),
    *places("2_test_model", {
        "a board has changed": (at(BOARD, first_pad(Volume=1.0)), "changed"),
        "boards are gone": (
            lambda place: (
                (place / "data/SYNTHETIC").unlink(),
                [(place / f"data/spi_measurement/spi_00{k}.json").unlink() for k in (3, 4, 5)],
            ),
            "with 6 boards",
        ),
        "job.json is gone": (lambda place: ((place / "data/SYNTHETIC").unlink(), (place / JOB).unlink()), "job.json"),
        "results that cannot be written": (
            lambda place: (place / "data/compare/seed0/ConvLSTM").chmod(0o500), "cannot write in",
        ),
    }),
    *options(
        "3_score_boards",
        "--fpr 0", "--fpr 0.9", "--fpr nan", "--fpr x", "--batch_size 0", ("--boards {place}/none", "none"),
        ("--boards {place}/data/compare", "no boards"),
        ("--boards {place}/data/job.json", "job.json"), (f"--boards {LONG}", "too long"), ("--boards 'ä\nö'", "ä ö"),
        ("--output {place}/new/spi_measurement/out", "--output"),
        ("--output {place}/data/compare/seed0/ConvLSTM", "holds a model"),
        ("--output {place}/data/job.json", "job.json"), ("--boards {place}/data", "other boards"),
        "--outptu x", ("--protocol measured", "1_train.py"), ("--data none", "--data none"),
    ),
    *files(
        "3_score_boards", NEW,
        {**some(spoil.ANY, "empty", "truncated", "folder", "unreadable", "link loop", "missing"), **WRONG_BOARD},
        more="--output {place}/other",
    ),
    *files("3_score_boards", NEW, {"a volume too large": first_pad(Volume=1e300)}),
    *files(
        "3_score_boards", "scored/results.json", {**spoil.CONTENT, **spoil.JSON, **spoil.each_of("boards")}, "scored",
    ),
    *files(
        "3_score_boards", MODEL, some(spoil.CHECKPOINT, "malicious pickle", "malicious pickle in torch's old format"),
    ),
    *places("3_score_boards", {
        "results that cannot be written": (lambda place: (place / "scored").chmod(0o500), "scored"),
        "an output that is a link loop": (at("scored", spoil.ANY["link loop"]), "scored"),
        "other pads": (
            lambda place: [
                spoil.edited(
                    lambda b: b["PADINFO"].pop() and None
                )(p) for p in (place / "new/spi_measurement").iterdir()
            ],
            "pad 1",
        ),
    }),
    *options(
        "compare",
        "--models LSTM", "--models ConvLSTM_b", "--models ConvLSTM_textbook_a", "--models", "--models ''",
        "--protocols own", "--seeds x", "--seeds 1.5", "--seeds",
        ("--mode ConvLSTM", "--models"), ("--is_attn", "--models"), ("--gates=textbook", "--models"),
        ("--protocol drawn", "--protocols"), ("--seed 3", "--seeds"),
        ("--test_set drawn", "--protocols"), ("--data none", "--data none"), "--cycle 1",
        ("--cycle 2", "cycles of 3"),
    ),
    *files("compare", JOB, some(spoil.ANY, "empty", "unreadable", "missing")),
    *files("compare", "data/compare/seed0/ConvLSTM/results.json", spoil.CONTENT),
    *places(
        "compare",
        {"results that cannot be written": (lambda place: (place / "data/compare").chmod(0o500), "data/compare")},
    ),
    *options(
        "demo_boards",
        ("--output {place}/data", "already holds files"), ("--output {place}/data/job.json", "job.json"),
        (f"--output {{place}}/{LONG}", "too long"), "--output",
        ("--output 'a\0b'", "NUL"), ("--output {place}/x --boards 0", "--boards"),
        ("--output {place}/x --boards -3", "--boards"),
        ("--output {place}/x --boards 10000", "--boards"), "--boards x", "--boards 1e3",
        ("--output {place}/x --seed -1", "--seed"), "--seed x",
        ("--output {place}/x --run -1", "--run"), "--run x", ("--outptu x", "--output"), ("more", "more"),
        "--boards " + "9" * 5000,
    ),
    *places("demo_boards", {
        "a link loop in its place": (at("data", spoil.ANY["link loop"]), "data"),
        "a folder that cannot be written": (
            lambda place: (shutil.rmtree(place / "data"), place.chmod(0o500)), "permission denied",
        ),
    }),
]  # fmt: skip


@parametrised(CASES)
def test_bad_input(case, place, capfd):
    case.check(place, capfd, MAINS, arguments(case.script, place))


@pytest.mark.slow
def test_damaged_files(good, capfd):
    files = [good.place / name for name in (MODEL, "data/pcb_info.pt")]
    check_damage(
        capfd, MAINS["3_score_boards"], arguments("3_score_boards", good.place), files, good.place / "scored/pads.csv"
    )
