"""CRRN's scripts on bad input."""

import importlib
import math
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from crrn import checkpoints
from tests.bad_input import spoil
from tests.bad_input.cases import State, at, check_damage, files, options, parametrised, places, some
from tests.bad_input.spoil import entry, setting

NAMES = ("0_preprocessing", "1_train", "2_test_model", "3_score_boards", "compare", "demo_boards")
SCRIPTS = {name: importlib.import_module(f"crrn.{name}") for name in NAMES}
MAINS = {name: script.main for name, script in SCRIPTS.items()}
LONG = "n" * 300
TRAINED = ["--num_epochs", "1", "--num_instance", "1", "--batch_size", "1"]


def run_here(command, check):
    """A script in this process, for compare.py."""
    return subprocess.CompletedProcess(command, MAINS[Path(command[1]).stem](command[2:]))


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """Two cycles of three boards, a model trained and tested by compare.py; new boards and their scores."""
    place = tmp_path_factory.mktemp("crrn") / "place"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoints, "CHANNELS", [1, 4, 4])
        patch.setattr(subprocess, "run", run_here)
        for script in SCRIPTS.values():
            for name in ("draw_precision_recall", "draw_errors", "draw_boards"):  # what takes longest
                if hasattr(script, name):
                    patch.setattr(script, name, lambda *_, **__: None)
        for name, run in (("data", 0), ("new", 1)):
            assert MAINS["demo_boards"](["--output", str(place / name), "--boards", "6", "--run", str(run)]) == 0
        for name in ("compare", "3_score_boards"):
            assert MAINS[name](arguments(name, place)) == 0
        yield State(place)


def arguments(script, place):
    data = ["--data", str(place / "data"), "--cycle", "3"]
    model = [*data, "--mode", "ConvLSTM", "--n_layers", "1", "--result", str(place / "data/compare/seed0"), "--cpu"]
    compared = ["--models", "ConvLSTM", "--protocols", "drawn", "--seeds", "0", "--n_layers", "1", "--cpu", *TRAINED]
    return {
        "0_preprocessing": data,
        "1_train": [*model, *TRAINED],
        "2_test_model": model,
        "3_score_boards": [*model, "--boards", str(place / "new"), "--output", str(place / "scored")],
        "compare": [*data, *compared],
        "demo_boards": ["--output", str(place / "data"), "--boards", "2"],
    }[script]


JOB, BOARD, TABLE = "data/job.json", "data/spi_measurement/spi_003.json", "data/df_info.csv"
MODEL, NEW = "data/compare/seed0/ConvLSTM/model_dictionary.pt", "new/spi_measurement/spi_001.json"


def optimizer(change):
    """Another state of the optimizer's first parameter."""
    return spoil.stored(lambda content: change(content["optimizer"]["state"][0]))


def tensor(change):
    """Another tensor in the file."""
    return lambda path: spoil.saved(change(torch.load(path, weights_only=True)))(path)


def first_pad(**values):
    return spoil.edited(lambda board: board["PADINFO"][0].update(values))


def pads_of(part, value):
    """Another list in job.json, its first entry being `value`."""
    return spoil.edited(lambda job: job["Pad"][part].__setitem__(0, value))


def each_board(folder, change):
    """All boards in a folder, changed."""
    return lambda place: [spoil.edited(change)(path) for path in (place / folder / "spi_measurement").iterdir()]


def own(change):
    """The data are the user's own, and changed."""
    return lambda place: ((place / "data/SYNTHETIC").unlink(), change(place))


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
    "no pads": (spoil.edited(lambda board: {"PADINFO": []}), "PADINFO"),
    "numbers for pads": (spoil.edited(lambda board: {"PADINFO": [1, 2]}), "PADINFO[0]"),
    "a pad less": (spoil.edited(lambda board: board["PADINFO"].pop() and None), " pads"),
    "a pad twice": (spoil.edited(lambda board: board["PADINFO"].append(board["PADINFO"][0])), "more than once"),
}
CASES = [
    *options(
        "0_preprocessing",
        ("--cycle 20", "fewer than one cycle of 20"), "--cycle 1", "--cycle x", "--cycle", "--seed -1",
        ("--data none", "--data none"), ("--data no/where", "no/where"), ("--data 'a\0b'", "NUL"),
        (f"--data {LONG}/", "too long"), ("--data ä/ö/", "ä/ö"), ("--date x", "--data"),
        ("--data {place}/data/job.json", "job.json"), ("--data {place}/new/spi_measurement", "job.json"),
        ("--cycle 9" + "9" * 300, "cycle"),
    ),
    *files("0_preprocessing", JOB, {**spoil.ANY, **spoil.JSON}),
    *files("0_preprocessing", JOB, {
        **told("PCBInfo", spoil.each_of("PCBInfo") | spoil.each_of("PCBInfo", "PCBLenth", 0)),
        **told("Pad.", spoil.each_of("Pad", "ID", 0) | spoil.each_of("Pad", "ShapeID")),
        "a side of 3000 mm": spoil.edited(lambda job: job["PCBInfo"].update(PCBWidth=[3000])),
        "a side of NaN": spoil.edited(lambda job: job["PCBInfo"].update(PCBWidth=[math.nan])),
        "a pad twice": spoil.edited(lambda job: job["Pad"]["ID"].__setitem__(0, job["Pad"]["ID"][1])),
        "a shape less": spoil.edited(lambda job: job["Pad"]["ShapeID"].pop() and None),
        "a pad's number beyond floats": pads_of("ID", 10**30), "no shape": pads_of("ShapeID", [1]),
        "a shape of 131,073 characters": pads_of("ShapeID", "x" * 131_073),
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
            own(lambda place: shutil.copy(place / BOARD, (place / BOARD).with_name("spi_0003.json"))), "spi_0003.json",
        ),
        "a gap among the boards": (own(lambda place: (place / BOARD).unlink()), "spi_003.json"),
        "one volume everywhere": (
            each_board("data", lambda board: [pad.update(Volume=7.0) for pad in board["PADINFO"]] and None),
            "no pad's volume changes",
        ),
        "an unreadable folder of boards": (lambda place: (place / "data/spi_measurement").chmod(0), "spi_measurement"),
        "a folder that cannot be written": (lambda place: (place / "data").chmod(0o500), "data"),
        "an unreadable mark": (at("data/SYNTHETIC", spoil.ANY["unreadable"]), "SYNTHETIC"),
        "an empty mark": (at("data/SYNTHETIC", spoil.ANY["empty"]), "SYNTHETIC"),
        "a link loop for the data": (at("data", spoil.ANY["link loop"]), "data"),
    }),
    *options(
        "1_train",
        ("--mode ConvGridLSTM", "ConvGridLSTM"), "--batch_size 0", ("--batch_size 2", "--num_instance 1"),
        "--num_epochs " + "9" * 400, "--n_layers 101", "--lr nan", "--lr 0", "--init_tr 1.5", "--seed -1",
        "--held_out 1", "--gates own", "--precision fp8", "--protocol made", "--batchsize 5", "--gpu_ids x",
        "--gpu_ids -1", ("--device cpu", "--device"), ("--sync_bn", "--sync_bn"), ("--precision fp16", "fp16"),
        ("--seed 1", "seed 0, not 1"), ("--cycle 2", "cycles of 3 boards"), ("--data none", "--data none"),
        ("--result {place}/data/job.json", "job.json"), (f"--result {{place}}/{LONG}", "too long"),
    ),
    *files("1_train", MODEL, {
        **some(spoil.ANY, "empty", "truncated", "folder", "unreadable", "link to its folder", "noise"),
        **some(spoil.CHECKPOINT, "malicious pickle", "malicious pickle in torch's archive"),
        **{
            f"no {name}": spoil.without(name)
            for name in ("optimizer", "scaler", "history", "fingerprint", "state_dict", "sums")
        },
        "step beyond the epoch": entry("step", 10**6), "step is text": entry("step", "1"),
        "sums are infinite": entry("sums", {"loss": math.inf}), "epoch is true": entry("epoch", True),
        "losses are text": entry("history", [{"loss": "a", "test_loss": 1.0}]),
        "scaler of text": entry("scaler", {"scale": "x"}),
        "moments of another shape": optimizer(lambda one: one.update(exp_avg=torch.zeros(3))),
        "moments are NaN": optimizer(lambda one: one["exp_avg"].fill_(math.nan) is None),
        "squares below 0": optimizer(lambda one: one["exp_avg_sq"].fill_(-1) is None),
        "optimizer without groups": entry("optimizer", {"state": {}, "param_groups": []}),
        "settings without a mode": spoil.stored(lambda content: content["settings"].pop("mode") and None),
        "lists in settings": setting(lr=[1]), "other boards": entry("fingerprint", "0" * 16),
    }),
    *files("1_train", "data/pcb_info.pt", {
        **spoil.CONTENT, **spoil.CHECKPOINT,
        "no mean": spoil.without("mean"), "means are NaN": entry("mean", [math.nan] * 3),
        "means are text": entry("mean", ["0"] * 3), "one mean": entry("mean", [0.0]),
        "negative deviations": entry("std", [-1.0] * 3), "height is text": entry("height", "25"),
        "height is huge": entry("height", 10**9 + 1), "other boards": entry("inputs", "0" * 16),
    }, "data"),
    *files("1_train", "data/test_pcbs.pt", {
        **spoil.CONTENT,
        **some(
            spoil.CHECKPOINT, "malicious pickle", "malicious pickle in torch's archive", "list", "tensor", "program",
        ),
        "double": tensor(torch.Tensor.double), "complex": tensor(torch.Tensor.cfloat),
        "zeros alone": tensor(torch.zeros_like), "NaN": tensor(lambda t: t * math.nan),
        "transposed": tensor(lambda t: t.mT.contiguous()), "sparse": tensor(torch.Tensor.to_sparse),
        "a sequence less": tensor(lambda t: t[:1].clone()),
    }),
    *options(
        "2_test_model",
        "--batch_size 0", "--seed -1", "--test_set own", "--tst_set drawn", ("--mode ConvConjLSTM", "1_train.py"),
        ("--gates textbook", "1_train.py"), ("--n_layers 2", "n_layers 1, not 2"), ("--precision fp16", "fp16"),
        ("--result {place}/none", "1_train.py"), ("--data none", "--data none"), "--held_out 0",
        ("--cycle 9", "cycles of 3 boards"), "--gpu_ids 0 x",
    ),
    *files("2_test_model", MODEL, {
        **{name: one for name, one in spoil.ANY.items() if "link loop" not in name}, **spoil.CHECKPOINT,
        **spoil.parameters("state_dict"),
        **some(spoil.OURS, "newer format", "kind is a number", "format is text"),
        **{f"no {name}": spoil.without(name) for name in ("settings", "epoch", "test_loss", "step")},
        "epoch is NaN": entry("epoch", math.nan), "epoch below 0": entry("epoch", -5),
        "losses are NaN": entry("test_loss", [math.nan]), "losses too many": entry("test_loss", [1.0, 2.0]),
        "settings is a list": entry("settings", []), "another grid": setting(height=13),
        "parameters in a list": entry("state_dict", []), "another cell": setting(mode="ConvConjLSTM"),
        "parameters by number": entry("state_dict", {1: torch.zeros(1)}),
    }),
    *files("2_test_model", TABLE, {
        **spoil.CONTENT, **spoil.CSV,
        "a volume is text": spoil.cell(3, 4, "x"), "a volume is NaN": spoil.cell(3, 4, "nan"),
        "a volume is infinite": spoil.cell(3, 4, "inf"), "a place below 0": spoil.cell(1, 2, "-1"),
        "a place off the grid": spoil.cell(1, 2, "99"), "a pad twice": spoil.cell(1, 1, "1"),
        "a pad's number is huge": spoil.cell(1, 1, "1e300"), "a pad's number is halved": spoil.cell(1, 1, "0.5"),
        "a board's number": spoil.cell(9, 0, "2"), "an age": spoil.cell(9, 7, "2"),
        "another column": spoil.lines(lambda rows: [rows[0].replace("Vol,", "Weight,"), *rows[1:]]),
        "a column twice": spoil.lines(lambda rows: [rows[0].replace("Group", "Vol"), *rows[1:]]),
    }),
    *places("2_test_model", {
        "a board has changed": (at(BOARD, first_pad(Volume=1.0)), "changed"),
        "boards are gone": (
            own(lambda place: [path.unlink() for path in (place / BOARD).parent.glob("spi_00[345].json")]),
            "with 6 boards",
        ),
        "job.json is gone": (own(lambda place: (place / JOB).unlink()), "job.json"),
        "results that cannot be written": (lambda place: (place / MODEL).parent.chmod(0o500), "cannot write in"),
    }),
    *options(
        "3_score_boards",
        "--fpr 0", "--fpr 0.9", "--batch_size 0", ("--boards {place}/none", "none"),
        ("--boards {place}/data/compare", "no boards"), ("--boards {place}/data/job.json", "job.json"),
        (f"--boards {LONG}", "too long"), ("--boards 'ä\nö'", "ä ö"), ("--boards {place}/data", "other boards"),
        ("--output {place}/new/spi_measurement/out", "--output"), ("--output {place}/data/job.json", "job.json"),
        ("--output {place}/data/compare/seed0/ConvLSTM", "holds a model"), "--outptu x",
        ("--protocol measured", "1_train.py"), ("--data none", "--data none"), ("--checkpoint {place}/m.pt", "/m.pt\n"),
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
        "other pads": (each_board("new", lambda board: board["PADINFO"].pop() and None), "pad 1"),
    }),
    *options(
        "compare",
        "--models LSTM", "--models ConvLSTM_textbook_a", "--models ''", "--protocols own", "--seeds 1.5", "--seeds",
        ("--mode ConvLSTM", "--models"), ("--gates=textbook", "--models"), ("--protocol drawn", "--protocols"),
        ("--seed 3", "--seeds"), ("--test_set drawn", "--protocols"), ("--data none", "--data none"), "--cycle 1",
        ("--cycle 2", "cycles of 3"), "--lr x", "--num_epcohs 3",
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
        (f"--output {{place}}/{LONG}", "too long"), "--output", ("--output 'a\0b'", "NUL"), "--boards 0",
        "--boards 10000", "--boards 1e3", "--seed -1", "--run -1", ("--outptu x", "--output"), ("more", "more"),
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
