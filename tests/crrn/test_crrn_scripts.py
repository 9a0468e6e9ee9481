"""CRRN's scripts as a user runs them: tiny boards, every file they promise, interruption, what is refused."""

import csv
import importlib
import json
import math
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from common import scoring as journals
from common.cli import notes
from common.files import UserError, digest, locked
from common.images import mark_synthetic
from crrn import boards, checkpoints, compare, demo_boards, report
from crrn import scoring as verdicts
from crrn.boards import cycle_of, data_folder, grid_side, is_synthetic, read_boards, read_layout
from crrn.model.ConvRRN import CELLS, ST_EncDec
from crrn.options import MODES
from crrn.pictures import draw_boards, draw_errors, draw_precision_recall
from crrn.preprocess import load_prepared
from crrn.scoring import score_boards
from crrn.utils import corrupt, device_of, draw_sequences, inject, make_colormaps, place
from tests.bad_input.cases import obeying_permissions
from tests.helpers import Report, refused, run_readme

ROOT = Path(__file__).resolve().parents[2]
preprocessing, training, testing, scoring = (
    importlib.import_module(f"crrn.{name}") for name in ("0_preprocessing", "1_train", "2_test_model", "3_score_boards")
)
CYCLE, PADS = 3, 6
TRAINED = ["--num_epochs", "2", "--num_instance", "4", "--batch_size", "2", "--lr", "1e-3"]
MODEL = "result/ConvConjLSTM/model_dictionary.pt"


def write_boards(folder: Path, boards: int = 9, seed: int = 0) -> Path:
    """Boards of 14 x 10 mm, a grid of 17 x 13, with 6 pads; job.json lists them backwards."""
    rng = np.random.default_rng(seed)
    (folder / "spi_measurement").mkdir(parents=True)
    job = {
        "PCBInfo": {"PCBLenth": [14.2], "PCBWidth": [10]},
        "Pad": {"ID": list(range(PADS, 0, -1)), "ShapeID": [f"shape{k % 2}" for k in range(PADS, 0, -1)]},
    }
    (folder / "job.json").write_text(json.dumps(job))
    for n in range(boards):
        pads = [
            {"PosX": 2.5 + 2 * k, "PosY": 3.4 + k % 3, "Volume": 50 + 5 * k + rng.normal(), "PadID": k + 1}
            for k in range(PADS)
        ]
        (folder / f"spi_measurement/spi_{n:03d}.json").write_text(json.dumps({"PADINFO": pads}))
    return folder


def change(path: Path, edit) -> None:
    """Rewrite a JSON file after `edit` has changed its content in place."""
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


def change_pad(data: Path, board: int, number: int, **values) -> None:
    """Give a pad of one board other values."""
    change(data / f"spi_measurement/spi_{board:03d}.json", lambda content: content["PADINFO"][number].update(values))


def args(data: Path, *more: object) -> list[str]:
    return ["--data", str(data), "--cycle", str(CYCLE), *map(str, more)]


def cpu(data: Path, *more: object) -> list[str]:
    return args(data, "--cpu", *more)


def measured(data: Path, *more: object) -> list[str]:
    return cpu(data, "--mode", "ConvLSTM", "--protocol", "measured", *more)


def rows(path):
    with Path(path).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def read(path: Path):
    return json.loads(path.read_text())


def content_of(path: Path) -> dict:
    return torch.load(path, weights_only=True)


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.fixture(scope="module", autouse=True)
def small_networks():
    """Of 4 channels instead of 64."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoints, "CHANNELS", [1, 4, 4])
        yield


@pytest.fixture
def with_pictures():
    """Drawing is what takes longest: only tests with this fixture do it."""


@pytest.fixture(autouse=True)
def no_pictures(request, monkeypatch):
    for script in (preprocessing, testing, scoring) if "with_pictures" not in request.fixturenames else ():
        for name in ("draw_preprocessing", "draw_precision_recall", "draw_errors", "draw_boards"):
            if hasattr(script, name):
                monkeypatch.setattr(script, name, lambda *_, **__: None)


@pytest.fixture
def data(tmp_path):
    return write_boards(tmp_path / "mine")


@pytest.fixture(scope="module")
def trained_once(tmp_path_factory, small_networks):
    data = write_boards(tmp_path_factory.mktemp("trained") / "mine")
    assert training.main(cpu(data, *TRAINED)) == 0
    return data


@pytest.fixture
def trained(trained_once, tmp_path):
    """A copy, to be changed freely."""
    return Path(shutil.copytree(trained_once, tmp_path / "mine"))


# ------------------------------------------------------------------------------------------------------ preprocessing


def test_preprocessing_writes_everything(tmp_path, with_pictures):
    """Also where names cannot be drawn or decoded: mathematics that is none, bytes that are no UTF-8, surrogates."""
    assert [grid_side(v) for v in (33, 34, 36, 36.5, 12)] == [37, 37, 37, 41, 13]
    data = write_boards(tmp_path / os.fsdecode(b"caf\xe9 $^$"))
    for number, shape in enumerate(["$x^{$", "\ud800", "=1+1"]):
        change(data / "job.json", lambda job, n=number, s=shape: job["Pad"]["ShapeID"].__setitem__(n, s))
    assert preprocessing.main(args(data)) == 0
    files = sorted((data / "spi_measurement").iterdir())
    volume = np.array([[pad["Volume"] for pad in read(path)["PADINFO"]] for path in files])
    normalised = (volume - volume.mean(0)) / volume.std(0)
    info = content_of(data / "pcb_info.pt")
    assert set(info) == {"mean", "std", "height", "width", "pcb_mean", "pcb_std", "inputs"}
    assert (info["height"], info["width"]) == (13, 17)
    for age in range(CYCLE):
        assert info["mean"][age] == pytest.approx(normalised[age::CYCLE].mean())
        assert info["std"][age] == pytest.approx(normalised[age::CYCLE].std(ddof=1))
    np.testing.assert_allclose(info["pcb_mean"], volume.mean(0))
    np.testing.assert_allclose(info["pcb_std"], volume.std(0))
    table = rows(data / "df_info.csv")
    assert list(table[0]) == ["Timestep", "PadID", "X", "Y", "Vol", "Group", "Vol_norm", "Age"]
    assert len(table) == 9 * PADS
    row = table[4 * PADS + 1]
    assert (row["Timestep"], row["PadID"], row["Age"], row["Group"]) == ("4", "1", "1", "shape0")
    assert float(row["Vol"]) == volume[4, 1] and float(row["Vol_norm"]) == pytest.approx(normalised[4, 1])
    prepared, on = load_prepared(data), torch.zeros(13, 17, dtype=torch.bool)
    tests = prepared.test_pcbs
    on[[3, 4, 5, 3, 4, 5], [2, 4, 6, 8, 10, 12]] = True
    assert tests.shape == (3, CYCLE, 1, 13, 17) and (tests[..., on] != 0).all() and not tests[..., ~on].any()
    for name in ("vol.pdf", "norm_vol.pdf", "norm_all_vol.pdf", "norm_norm_vol.pdf", "auto.png", "group.png"):
        assert (data / name).read_bytes()[:4] in (b"%PDF", b"\x89PNG")
    draw_errors(tmp_path / "errors.png", {"fine": np.zeros(3)}, data.name)
    draw_precision_recall(tmp_path / "curves.png", {}, {}, data.name)
    draw_boards(tmp_path / "boards.png", {"": np.zeros((1, 13, 17))}, ["a"], np.ones((13, 17), bool), data.name, 1.0)

    train, held, mean, std = prepared.measured_cycles(0.3)  # the last ones are held out
    assert train.shape == (2, CYCLE, 1, 13, 17) and held.shape == (1, CYCLE, 1, 13, 17) and std.shape == (PADS,)
    torch.testing.assert_close(mean, prepared.volume[:6].mean(0))
    expected = (prepared.volume[7, 4] - mean[4]) / prepared.volume[:6, 4].std(correction=0)
    assert held[0, 1, 0, 4, 10].item() == pytest.approx(expected.item(), rel=1e-5)


def test_sequences_follow_each_boards_own_positions_and_enter_the_network_so(data, monkeypatch):
    change_pad(data, 4, 0, PosX=0.2, PosY=12.9)
    assert training.main(cpu(data, *TRAINED)) == 0
    prepared = load_prepared(data)
    tests, off = prepared.test_pcbs, ~prepared.mask
    assert tests[1, 1, 0, 12, 0] != 0 and tests[1, 1, 0, 3, 2] == 0
    assert tests[1, 0, 0, 12, 0] == 0 and tests[1, 0, 0, 3, 2] != 0
    assert prepared.mask[3, 2] and off[12, 0]
    seen = []
    monkeypatch.setattr(testing, "reconstruct", lambda model, images, **_: seen.append(images) or images * 0)
    assert testing.main(cpu(data)) == 0
    assert all(torch.equal(images[..., off], tests[: len(images)][..., off]) for images in seen)
    changed = (seen[0] != tests)[..., prepared.mask]
    assert 0 < changed.float().mean() < 0.3  # the anomalies, at a rate of 0.1


def test_incomplete_cycles_constant_pads_and_mixed_order(data, capsys):
    for n in range(9):
        change_pad(data, n, 3, Volume=7.1)
    argv = args(data, "--cycle", "4")
    assert preprocessing.main(argv) == 0
    output = capsys.readouterr().out
    assert f"2 cycles of 4 and 1 more, left out, from {data}/spi_measurement/spi_008.json on" in output
    assert "the same volume on all boards, so that its normalised volume is 0: pad 4\n" in output
    table = rows(data / "df_info.csv")
    assert len(table) == 8 * PADS and {row["Vol_norm"] for row in table if row["PadID"] == "3"} == {"0.0"}
    before = (data / "df_info.csv").read_text()
    change(data / "spi_measurement/spi_002.json", lambda board: board["PADINFO"].reverse())
    assert preprocessing.main(argv) == 0
    assert (data / "df_info.csv").read_text() == before


def test_constant_pads(data, capsys):
    for n in range(6):
        change_pad(data, n, 3, Volume=7.0)
    assert training.main(measured(data, *TRAINED)) == 0
    words = "constant in the training cycles, so normalised by 1 instead of its deviation: pad 4\n"
    assert words in capsys.readouterr().out
    for n in range(6):
        for number in range(PADS):
            change_pad(data, n, number, Volume=7.0)
    assert preprocessing.main(args(data)) == 0
    again = measured(data, *TRAINED, "--result", data / "new")
    refused(capsys, training.main, again, "no pad's volume changes in the training cycles")


def test_boards_are_ordered_by_number_and_what_is_no_board_is_said(data, capsys):
    folder = data / "spi_measurement"
    assert preprocessing.main(args(data)) == 0
    before = (data / "df_info.csv").read_bytes()
    for n in range(9):
        (folder / f"spi_{n:03d}.json").rename(folder / f"spi_{n:0{1 + n % 3}d}.json")  # spi_0, spi_01, spi_002, ...
    for n in range(9, 11):
        shutil.copy(folder / "spi_002.json", folder / f"spi_{n}.json")
    for name in ("Thumbs.db", ".DS_Store", "._spi_0.json", "spi_4.json.bak", "spi_a.json"):
        (folder / name).touch()
    (folder / "@eaDir").mkdir()
    change(data / "job.json", lambda job: (job["Pad"]["ID"].append(77), job["Pad"]["ShapeID"].append("x")))
    (data / "job.json").write_bytes(b"\xef\xbb\xbf" + (data / "job.json").read_bytes())
    capsys.readouterr()
    assert preprocessing.main(args(data)) == 0
    assert (data / "df_info.csv").read_bytes() == before
    assert "no board has 1 pad of job.json, such as pad 77" in capsys.readouterr().out
    (data / "df_info.csv").write_bytes(b"\xef\xbb\xbf" + before)  # as a spreadsheet saves it
    assert training.main(cpu(data, *TRAINED)) == 0
    assert read((data / MODEL).with_name("training.json"))["notes"] == [
        f"{folder}: 2 files not called spi_<number>.json, so left out, such as spi_4.json.bak",
        f"11 boards are 3 cycles of 3 and 2 more, left out, from {folder}/spi_9.json on",
    ]


def test_changed_boards_are_noticed(trained, capsys):
    folder = trained / "spi_measurement"
    (folder / "spi_notes.json").write_text("{}")  # no board
    (folder / "spi_009.json").write_bytes((folder / "spi_000.json").read_bytes())  # beyond the last whole cycle
    assert load_prepared(trained, CYCLE).cycle == CYCLE
    change_pad(trained, 4, 0, Volume=48.0)
    refused(capsys, testing.main, cpu(trained), "boards have changed", f"--data {trained} --cycle 3 makes it again")
    assert preprocessing.main(args(trained)) == 0
    info = content_of(trained / "pcb_info.pt")
    del info["inputs"]  # as the authors' files
    torch.save(info, trained / "pcb_info.pt")
    assert load_prepared(trained).cycle == CYCLE


def test_boards_in_a_folder_that_can_only_be_read(data, tmp_path, capsys):
    where = cpu(data, "--result", tmp_path / "out")
    before = sorted(data.rglob("*"))
    data.chmod(0o500)
    with obeying_permissions() as obeying:
        if not obeying:
            pytest.skip("this user may write everywhere")
        refused(capsys, training.main, cpu(data, *TRAINED), "cannot write", data)
        assert training.main([*where, *TRAINED, "--num_epochs", "1"]) == 0
    assert sorted(data.rglob("*")) == before and (tmp_path / "out/pcb_info.pt").is_file()
    told = f"cannot write in {data}: permission denied; the preprocessed boards lie in {tmp_path / 'out'}"
    assert told in read(tmp_path / "out/ConvConjLSTM/training.json")["notes"]
    change_pad(data, 1, 0, Volume=48.0)
    with obeying_permissions():
        refused(capsys, testing.main, where, "have changed", f"remove {tmp_path / 'out/pcb_info.pt'}")


def test_names_and_paths_of_data(tmp_path, monkeypatch):
    monkeypatch.setattr("common.cli._notes", [])
    monkeypatch.setattr(boards, "HERE", tmp_path / "crrn")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "crrn/own").mkdir(parents=True)
    (tmp_path / "here").mkdir()
    assert data_folder("ekra") == data_folder("ekra/") == data_folder(None) == tmp_path / "crrn/ekra"
    assert data_folder("own") == tmp_path / "crrn/own"
    assert data_folder("here") == data_folder("here/") == data_folder("./here") == Path("here")
    (tmp_path / "ekra").mkdir()  # what exists is the user's
    assert data_folder("ekra/") == Path("ekra") and data_folder(None) == tmp_path / "crrn/ekra" and not notes()
    (tmp_path / "own").mkdir()
    assert data_folder("own") == Path("own") and notes() == [f"--data own is {tmp_path}/own, not {tmp_path}/crrn/own"]
    (tmp_path / "jabil").touch()
    for name in ("none", "jabil"):
        with pytest.raises(UserError, match=rf"neither .*{name} nor .*crrn/{name} is a folder"):
            data_folder(name)
    cycles = [cycle_of(*pair) for pair in (("ekra", None), ("jabil", None), ("x/y", None), ("jabil", 7))]
    assert cycles == [20, 10, 20, 7]


def test_demo_boards(tmp_path, capsys):
    for name, run in (("one", 0), ("two", 0), ("three", 1)):
        demo_boards.make_boards(tmp_path / name, boards=42, run=run)
    files = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*.json"))
    assert len(files) == 43 and is_synthetic(tmp_path / "one")
    assert all((tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes() for name in files)
    folders = [tmp_path / name for name in ("one", "three")]
    one, three = (read_boards(path / "spi_measurement", read_layout(path / "job.json")) for path in folders)
    assert (one.layout.height, one.layout.width) == (25, 33)
    x, y = one.x.astype(int), one.y.astype(int)
    pixels = set(zip(y[0].tolist(), x[0].tolist()))
    assert len(pixels) == len(one.pad_ids) > 100 and len(set(one.groups)) == 6
    assert (y == y[0]).all() and (x == x[0]).all() and (three.y.astype(int) == y).all()
    assert not np.isclose(three.volume, one.volume).any(axis=1).all()
    relative = one.volume / one.volume.mean(0) - 1
    near = np.hypot(*(a[0][:, None] - a[0] for a in (one.x, one.y)))
    correlation = np.corrcoef(relative.T)
    assert correlation[(near > 0) & (near < 2)].mean() > 0.5 > correlation[near > 20].mean() + 0.2
    (tmp_path / "one/spi_measurement/spi_200.json").write_text("{}")
    with pytest.raises(UserError, match="real files beside generated ones"):
        is_synthetic(tmp_path / "one")


def test_without_data_boards_are_made(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(boards, "HERE", tmp_path / "crrn")
    argv = ["--num_epochs", "1", "--num_instance", "2", "--batch_size", "2", "--mode", "ConvLSTM", "--gpu_ids", "99"]
    assert training.main(argv) == 0
    output = capsys.readouterr().out
    for word in ("making boards", "generated stand-ins", "not preprocessed yet", "epoch 1/1: loss"):
        assert word in output
    assert torch.cuda.is_available() or "no CUDA GPU here: running on the CPU" in output
    assert (tmp_path / "crrn/ekra/SYNTHETIC").is_file()
    assert read(tmp_path / "crrn/ekra/result/ConvLSTM/training.json")["data"] == "synthetic"
    refused(capsys, testing.main, ["--mode", "ConvSTLSTM"], "1_train.py --mode ConvSTLSTM makes it")


def test_a_training_of_minutes(data, capsys):
    assert training.main(cpu(data, *TRAINED, "--minutes", "1e-9")) == 0
    assert len(read((data / MODEL).with_name("training.json"))["train_loss"]) == 1  # the first epoch is cut short
    assert testing.main(cpu(data)) == 0
    assert "of a training stopped after 1 of 2 epochs" in capsys.readouterr().out


# ------------------------------------------------------------------------------------------------ training and testing


def test_training_and_testing_write_everything(data, capsys, with_pictures):
    assert training.main(cpu(data, *TRAINED)) == 0
    folder = (data / MODEL).parent
    content = content_of(data / MODEL)
    assert content["epoch"] == 1 and len(content["test_loss"]) == 2 and set(content["optimizer"]) > {"state"}
    assert content["state_dict"].keys() == ST_EncDec("ConvConjLSTM", [1, 4, 4], [5, 5], 2).state_dict().keys()
    summary = read(folder / "training.json")
    assert summary["data"] == str(data) and summary["last_test_loss"] == content["test_loss"][-1]
    assert summary["best_test_loss"] == min(content["test_loss"])
    assert [entry["loss"] for entry in content["history"]] == summary["train_loss"]

    argv = cpu(data, "--batch_size", "5")
    assert testing.main([*argv, "--report"]) == 0
    results = read(folder / "results.json")
    assert results["model_sha256"] == digest(data / MODEL)
    for kind, letter in (("excessive", "e"), ("insufficient", "i")):
        for k in range(1, 6):
            curve = content_of(folder / f"pr_info_{letter}_{k}.pt")
            assert set(curve) == {"Precision", "Recall", "F1"} and 0 < len(curve["F1"]) <= 51
            for p, r, f1 in zip(*curve.values()):
                assert f1 == pytest.approx(2 / (1 / p + 1 / r))
            one = results[kind][f"0.{k}"]
            assert one["best_f1"] == max(curve["F1"]) and 0 < one["average_precision"] <= 1
            assert 0.5 < one["z_score"]["best_f1"] <= 1  # shifts of 2 to 5 standard deviations
    for name in ("precision_recall_excessive.png", "precision_recall_insufficient.png", "errors.png", "boards.png"):
        assert (folder / name).read_bytes().startswith(b"\x89PNG")
    page = Report(folder / "report.html")
    assert len(page.captions) == 6 and f"{results['excessive']['0.1']['best_f1']:.4g}" in page.texts
    with locked(folder):
        refused(capsys, testing.main, argv, "another run is writing", folder)
        refused(capsys, training.main, cpu(data, *TRAINED), "another run is writing", folder)

    capsys.readouterr()
    before = (data / MODEL).read_bytes()
    assert training.main(cpu(data, *TRAINED)) == 0
    assert "trained for 2 epochs already" in capsys.readouterr().out
    assert (data / MODEL).read_bytes() == before


def test_reduced_precision_and_other_networks_train(data, capsys):
    losses = []
    for kind in ("fp32", "bf16"):
        assert training.main(cpu(data, *TRAINED, "--precision", kind, "--result", data / kind)) == 0
        content = content_of(data / kind / "ConvConjLSTM/model_dictionary.pt")
        losses.append(content["history"][0]["loss"])
        assert all(value.dtype != torch.bfloat16 for value in content["state_dict"].values())
    assert losses[0] != losses[1] and losses[1] == pytest.approx(losses[0], rel=0.05)  # norms over a few pixels
    assert set(MODES) == set(CELLS)
    more = ["--mode", "ConvSTLSTM", "--is_attn", "--gates", "textbook", "--protocol", "measured"]
    assert training.main(cpu(data, *more, *TRAINED)) == 0
    assert testing.main(cpu(data, *more)) == 0
    assert read(data / "result/ConvSTLSTM_a_textbook_measured/results.json")["test_set"] == "measured"


def test_an_authors_checkpoint_is_resumed_and_tested(data, capsys):
    """{epoch, test_loss, state_dict, optimizer} alone, parameters named module.<name>, as their training writes it."""
    torch.manual_seed(0)
    model = ST_EncDec("ConvConjLSTM", [1, 4, 4], [5, 5], 2)
    optimizer = torch.optim.Adam(model.parameters(), 1e-4, weight_decay=1e-5)
    model(torch.zeros(1, 2, 1, 13, 17)).mean().backward()
    optimizer.step()
    state = {f"module.{name}": value for name, value in model.state_dict().items()}
    path = data / MODEL
    path.parent.mkdir(parents=True)
    theirs = {"epoch": 0, "test_loss": [np.float64(1.5)], "state_dict": state, "optimizer": optimizer.state_dict()}
    torch.save(theirs, path)
    assert testing.main(cpu(data)) == 0
    assert read(path.with_name("results.json"))["trained_on"] is None
    assert training.main(cpu(data, *TRAINED)) == 0
    assert "after epoch 1" in capsys.readouterr().out
    content = content_of(path)
    assert content["epoch"] == 1 and content["test_loss"][0] == 1.5 and len(content["test_loss"]) == 2
    assert content["optimizer"]["param_groups"][0]["lr"] == 1e-3  # the option's, not theirs
    steps = {int(value["step"]) for value in content["optimizer"]["state"].values()}
    assert max(steps) == 3  # theirs and two of ours


def test_interrupted_it_ends_with_the_same_numbers(trained, tmp_path, capsys, monkeypatch):
    """tests/net has more; here: after the first step of the last epoch, and right after what the loop itself saves."""
    whole, clip, steps = content_of(trained / MODEL), torch.nn.utils.clip_grad_norm_, []

    def press_in_the_third_step(*given):
        steps.append(clip(*given))
        if len(steps) == 3:
            signal.raise_signal(signal.SIGINT)

    for name, saved in (("stopped", (0, 1)), ("killed", (0, 0))):
        argv = cpu(trained, *TRAINED, "--output", tmp_path / name)
        path = tmp_path / name / "ConvConjLSTM/model_dictionary.pt"
        with monkeypatch.context() as patch:
            if name == "killed":
                patch.setattr(training, "say", lambda text: 1 / 0 if "epoch 1/2" in text else None)
                with pytest.raises(ZeroDivisionError):
                    training.main(argv)
            else:
                patch.setattr(torch.nn.utils, "clip_grad_norm_", press_in_the_third_step)
                assert training.main(argv) == 130
                assert "run the same command to resume" in capsys.readouterr().out
        stored = content_of(path)
        assert (stored["epoch"], stored["step"]) == saved
        if name == "stopped":  # it is told apart
            assert testing.main([*cpu(trained), *argv[-2:]]) == 0
            assert "stopped after 1 of 2 epochs and 1 step\n" in capsys.readouterr().out
            assert "trained for 1 of 2 epochs" in report.in_words(read(path.with_name("results.json")))[1]
        assert training.main(argv) == 0
        assert "resuming" in capsys.readouterr().out
        found = content_of(path)
        assert found["test_loss"] == whole["test_loss"] and len(found["history"]) == 2
        assert all(torch.equal(value, whole["state_dict"][name]) for name, value in found["state_dict"].items())


def test_teacher_ratios_clipping_and_weight_decay(trained, capsys, monkeypatch):
    assert [training.teacher_ratio(k, 5, 0.25, 0.05) for k in range(5)] == pytest.approx([0.25, 0.2, 0.15, 0.1, 0.05])
    assert training.teacher_ratio(0, 1, 0.25, 0.05) == 0.25
    limits, clip = [], torch.nn.utils.clip_grad_norm_
    record = lambda values, limit: (limits.append(limit), clip(values, limit))  # noqa: E731
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", record)
    assert training.main(cpu(trained, *TRAINED, "--num_epochs", "3", "--seed", "0")) == 0
    assert "the teacher ratio followed --num_epochs 2 so far, from here on 3" in capsys.readouterr().out
    assert limits == [0.5, 0.5]
    (group,) = content_of(trained / MODEL)["optimizer"]["param_groups"]
    assert (group["lr"], group["weight_decay"], group["fused"]) == (1e-3, 1e-5, True)
    assert training.main(cpu(trained, *TRAINED, "--seed", 2**32 - 1, "--result", trained / "new")) == 0


@pytest.mark.parametrize("spoiled", ["parameters", "test loss"])
def test_what_is_not_finite_is_never_saved(trained, capsys, monkeypatch, spoiled):
    before = (trained / MODEL).read_bytes()
    if spoiled == "test loss":
        monkeypatch.setattr(training, "evaluate", lambda *_: math.nan)
    else:
        clip = torch.nn.utils.clip_grad_norm_
        monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda values, _: clip(values, math.nan))
    refused(capsys, training.main, cpu(trained, *TRAINED, "--result", trained / "new"), "epoch 1", "stops")
    assert not (trained / "new/ConvConjLSTM/model_dictionary.pt").exists()
    refused(capsys, training.main, cpu(trained, *TRAINED, "--num_epochs", "3"), "epoch 3", "stops", "learning rate")
    assert (trained / MODEL).read_bytes() == before


def test_checkpoints_of_something_else(trained, capsys):
    path, again, before = trained / MODEL, cpu(trained, *TRAINED), (trained / MODEL).read_bytes()
    refused(capsys, training.main, [*again, "--num_epochs", "1"], path, "2 epochs", "--resume no")
    refused(capsys, testing.main, cpu(trained, "--is_attn"), "1_train.py", "--is_attn makes it")
    assert path.read_bytes() == before
    # The same pads on a larger board, on one that is too small; then other volumes, and another training in its place.
    for width, words in ((20, "height 13, not 21"), (8, "9 x 17 pixels are too small")):
        change(trained / "job.json", lambda job, width=width: job["PCBInfo"].update(PCBWidth=[width]))
        assert preprocessing.main(args(trained)) == 0
        refused(capsys, testing.main, cpu(trained), words)
    change(trained / "job.json", lambda job: job["PCBInfo"].update(PCBWidth=[10]))
    change_pad(trained, 1, 0, Volume=1.0)
    assert preprocessing.main(args(trained)) == 0
    refused(capsys, training.main, again, "other data")
    assert training.main([*again, "--num_epochs", "1", "--lr", "1e-2", "--resume", "no"]) == 0
    stored = content_of(path)
    assert stored["epoch"] == 0 and len(stored["history"]) == 1 and stored["settings"]["lr"] == 1e-2


def test_measured_models_belong_to_their_held_out_share_and_boards(data, tmp_path, capsys):
    short = write_boards(tmp_path / "short", boards=CYCLE)
    refused(capsys, training.main, measured(short, *TRAINED), "none can be held out")
    assert training.main(cpu(data, *TRAINED)) == 0
    assert training.main(measured(data, "--held_out", "0.6", *TRAINED)) == 0
    assert testing.main(measured(data)) == 0
    assert read(data / "result/ConvLSTM_measured/results.json")["settings"]["held_out"] == 0.6
    scored = measured(data, "--boards", data, "--output", data / "scores")
    assert scoring.main(scored) == 0
    results = read(data / "scores/results.json")
    assert results["thresholds_by_cycle"][0]["held_out_cycles"] == 2 and results["trained_on_these_boards"] is True
    refused(capsys, testing.main, measured(data, "--held_out", "0.3"), "held_out 0.6, not 0.3")
    for same in (True, False):  # drawn models are used, saying so
        assert testing.main(cpu(data)) == 0
        assert ("was trained on other boards" in capsys.readouterr().out) != same
        assert read(data / "result/ConvConjLSTM/results.json")["trained_on_these_boards"] is same
        change_pad(data, 1, 0, Volume=48.0)
        assert preprocessing.main(args(data)) == 0
    refused(capsys, scoring.main, scored, "other boards")


def test_what_an_earlier_test_wrote_stays(trained, capsys, monkeypatch):
    """Where another test set is tested, and where a test is interrupted."""
    folder = trained / "result/ConvConjLSTM"
    (folder / "report.html").touch()
    assert testing.main(cpu(trained)) == 0
    assert "report.html is of an earlier test" in capsys.readouterr().out
    before = files_of(folder)
    assert testing.main(cpu(trained, "--test_set", "measured")) == 0
    assert read(folder / "test_set_measured/results.json")["test_set"] == "measured"
    calls = []

    def stopped(model, images, **_):
        calls.append(images)
        if len(calls) == 41:  # the boards of the last picture
            raise KeyboardInterrupt
        return images * 0

    monkeypatch.setattr(testing, "reconstruct", stopped)
    assert testing.main(cpu(trained)) == 130
    assert files_of(folder) == before


def test_compare(data, capsys, monkeypatch):
    """It sums up what it trains and tests; longer trainings are tested again."""
    scripts, calls = {"1_train.py": training, "2_test_model.py": testing}, []

    def run_here(command, check):
        calls.append(Path(command[1]).name)
        return subprocess.CompletedProcess(command, scripts[calls[-1]].main(command[2:]))

    monkeypatch.setattr(subprocess, "run", run_here)
    both = ["--seeds", "0", "--cpu", "--held_out", "0.6", "--n_layers", "1", "--precision", "bf16"]
    argv = args(data, "--models", "ConvLSTM_a", "--protocols", "measured", *both, *TRAINED[2:])
    argv += ["--result", str(data / "other")]
    results, summary = data / "other/seed0/ConvLSTM_a_measured/results.json", data / "other/compare.json"
    for epochs in (1, 2, 2):
        assert compare.main([*argv, "--num_epochs", str(epochs)]) == 0
        found = read(results)
        assert found["epochs"] == epochs
        assert found["settings"].items() >= {"held_out": 0.6, "n_layers": 1, "precision": "bf16"}.items()
    assert calls == ["1_train.py", "2_test_model.py"] * 2 + ["1_train.py"]
    assert "| ConvLSTM_a_measured | excessive | 0." in capsys.readouterr().out
    one, single = read(summary)["ConvLSTM_a_measured"]["insufficient"]["0.3"], found["insufficient"]["0.3"]
    assert one["best_f1"] == {"mean": single["best_f1"], "std": 0.0, "seeds": 1}
    assert one["z_score_best_f1"]["mean"] == single["z_score"]["best_f1"]
    # As many epochs of another training, and the same model tested otherwise.
    assert compare.main([*argv, "--num_epochs", "2", "--lr", "1e-2", "--resume", "no"]) == 0
    assert "is of another model" in capsys.readouterr().out and read(results) != found
    assert read(results)["model_sha256"] == digest(results.with_name("model_dictionary.pt"))
    change(results, lambda content: content["settings"].update(seed=1))
    assert compare.main([*argv, "--num_epochs", "2", "--lr", "1e-2"]) == 0
    assert calls[5:] == ["1_train.py", "2_test_model.py"] * 2
    complete = summary.read_bytes()
    for status, words in ((130, "run the same command to resume"), (2, "1_train.py ended with status 2")):
        with monkeypatch.context() as patch:
            patch.setitem(scripts, "1_train.py", SimpleNamespace(main=lambda argv, status=status: status))
            assert compare.main(argv) == status
        shown = capsys.readouterr()
        assert words in shown.out + shown.err and summary.read_bytes() == complete


# ------------------------------------------------------------------------------------------------------------ scoring


def test_scoring_new_boards(trained, tmp_path, with_pictures, monkeypatch):
    new = write_boards(tmp_path / "new", boards=5, seed=1)
    source = new / "spi_measurement"
    change_pad(new, 4, 2, Volume=500.0)
    change_pad(new, 1, 5, Volume=-400.0)
    change(source / "spi_000.json", lambda board: board["PADINFO"].reverse())
    assert scoring.main(cpu(trained, "--boards", source, "--fpr", "0.2")) == 0
    folder = trained / "result/ConvConjLSTM/spi_measurement"
    table = rows(folder / "pads.csv")
    assert len(table) == 5 * PADS
    found = {(row["file"], row["pad_id"]): row for row in table}
    assert found["spi_004.json", "3"]["verdict"] == "excessive" and float(found["spi_004.json", "3"]["volume"]) == 500
    assert found["spi_001.json", "6"]["verdict"] == "insufficient"
    assert found["spi_000.json", "1"]["x"] == "2.5" and found["spi_003.json", "1"]["age"] == "0"
    results = read(folder / "results.json")
    limits = results["thresholds_by_cycle"]
    assert [one["held_out_pads"] for one in limits] == [CYCLE * PADS, 2 * PADS]
    for row in table:
        limit, error = limits[int(row["board"]) // CYCLE], float(row["error"])
        assert error == pytest.approx(float(row["normalised"]) - float(row["expected"]), abs=1e-3)
        expected = "excessive" if error > limit["excessive"] else "fine"
        assert row["verdict"] == ("insufficient" if error < limit["insufficient"] else expected)
    assert results["boards"] == str(source) and results["epochs"] == 2 and results["versions"]
    assert results["chosen_on"] == "last epoch"
    assert results["settings"]["fpr"] == 0.2 and results["settings"]["held_out"] == 0.3
    assert results["pads"]["fine"] == sum(row["verdict"] == "fine" for row in table)
    judged = rows(folder / "scores.csv")
    assert [row["path"] for row in judged] == [f"spi_{n:03d}.json" for n in range(5)]
    for n, row in enumerate(judged):
        pads = [one for one in table if one["board"] == str(n)]
        worst, limit = max(abs(float(one["error"])) for one in pads), limits[n // CYCLE]["board"]
        assert float(row["score"]) == pytest.approx(worst, abs=1e-5) and float(row["threshold"]) == limit
        assert row["verdict"] == ("defective" if worst > limit else "good")
        assert int(row["wrong_pads"]) == sum(one["verdict"] != "fine" for one in pads)
    assert judged[4]["verdict"] == judged[1]["verdict"] == "defective"
    assert results["boards_judged"]["defective"] == sum(row["verdict"] == "defective" for row in judged)
    assert results["trained_on_these_boards"] is False  # only those that the network was trained on are
    assert sorted(path.name for path in folder.glob("*.png")) == ["boards_000.png", "boards_001.png"]
    model = shutil.move(trained / MODEL, tmp_path / "elsewhere.pt")
    where = ["--boards", new, "--checkpoint", model, "--output", tmp_path / "out"]  # the data folder will do, too
    assert scoring.main(cpu(trained, *where, "--fpr", "0.2")) == 0
    assert (tmp_path / "out/pads.csv").read_bytes() == (folder / "pads.csv").read_bytes()
    shutil.move(model, trained / MODEL)

    volumes = [[float(found[f"spi_{n:03d}.json", str(k + 1)]["volume"]) for k in range(PADS)] for n in range(CYCLE)]
    np.savetxt(tmp_path / "volumes.csv", volumes, delimiter=",")
    options = f'data="{trained}", cycle={CYCLE}, cpu=True, fpr=0.2'
    shown = ('data="my_boards", cycle=20, protocol="measured"', options), ("volumes.csv", f"{tmp_path}/volumes.csv")
    names = run_readme("crrn", *shown)
    model, scored = names["model"], names["found"]
    assert model.pad_ids == list(range(1, PADS + 1))
    for n in range(CYCLE):
        for pad, error, verdict in zip(model.pad_ids, scored.error[n].tolist(), scored.verdicts[n]):
            row = found[f"spi_{n:03d}.json", str(pad)]
            assert (float(row["error"]), row["verdict"]) == (pytest.approx(error, abs=1e-6), verdict)
    for wrong in (np.zeros((CYCLE + 1, PADS)), np.zeros((2, PADS - 1)), np.zeros(PADS)):
        with pytest.raises(UserError, match="expected up to 3 boards of 6 pads"):
            score_boards(wrong, model)
    volumes[1][2] = math.nan
    with pytest.raises(UserError, match="board 1, pad 3: its volume cannot be normalised"):
        score_boards(volumes, model)
    with monkeypatch.context() as patch:  # as half precision would, beyond 65504
        patch.setattr(verdicts, "reconstruct", lambda _, images, *rest: images * math.nan)
        volumes[1][2] = 1e7
        with pytest.raises(UserError, match=r"no finite reconstruction in --precision fp32; pad 3 in board 1"):
            score_boards(volumes, model)
    with pytest.raises(TypeError, match="datas: expected"):
        verdicts.load(datas="my_boards")


def test_what_is_kept_of_scores_is_used_only_where_it_is_sound(trained, tmp_path, capsys, monkeypatch):
    new, out = write_boards(tmp_path / "new", boards=7, seed=1), tmp_path / "out"
    argv, lengths = cpu(trained, "--boards", new, "--output", out, "--fpr"), []
    assert scoring.main([*argv, "0.2"]) == 0
    whole, real = files_of(out), verdicts.reconstruct
    # Of a cycle to be judged, 1; all that are held out are one call for each of two lengths of cycles.
    monkeypatch.setattr(
        verdicts, "reconstruct", lambda model, x, *rest: lengths.append(len(x)) or real(model, x, *rest)
    )

    def scores_again(cycles, words, fpr="0.2"):
        lengths.clear()
        capsys.readouterr()
        assert scoring.main([*argv, fpr]) == 0
        assert len(lengths) == 2 + cycles and words in capsys.readouterr().out
        return (out / "pads.csv").read_bytes() == whole["pads.csv"]

    assert scores_again(0, "resuming after 3 cycles of 3") and files_of(out) == whole
    with monkeypatch.context() as patch:  # of several processes, each has another device
        patch.setattr(verdicts, "device_of", lambda *_: torch.device("cpu", 1))
        assert scores_again(0, "resuming after 3 cycles of 3")
    assert not scores_again(0, "resuming after 3 cycles of 3", "0.5")  # judged again
    for spoilt, cycles, words in (
        (lambda lines: [*lines[:2], lines[2].replace(b"1", b"2", 1), *lines[3:]], 1, "1 damaged line in"),
        (lambda lines: [*lines[:3], lines[3][: len(lines[3]) // 2]], 1, "resuming after 2 cycles of 3"),
        (lambda lines: [lines[0][1:], *lines[1:]], 3, "thresholds from"),
        (lambda lines: [], 3, "thresholds from"),
    ):
        (out / "progress.jsonl").write_bytes(b"".join(spoilt(whole["progress.jsonl"].splitlines(keepends=True))))
        assert scores_again(cycles, words)
    # Another scoring that is stopped leaves what was complete.
    assert training.main(cpu(trained, *TRAINED, "--num_epochs", "3")) == 0
    with monkeypatch.context() as patch:
        patch.setattr(journals, "append_text", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert scoring.main([*argv, "0.2"]) == 130 and (out / "pads.csv").read_bytes() == whole["pads.csv"]
    other = write_boards(tmp_path / "other/new", boards=1)
    for boards_, name in ((new, "new"), (other, "other_new"), (new, "new")):  # one folder for each, unless told
        assert scoring.main(cpu(trained, "--boards", boards_)) == 0
        results = read(trained / "result/ConvConjLSTM" / name / "results.json")
        assert results["boards"] == str(boards_ / "spi_measurement")
    refused(capsys, scoring.main, cpu(trained, "--boards", other, "--output", out), "other boards")


def test_outputs_are_their_own(trained, tmp_path, capsys, monkeypatch):
    demo = [write_boards(tmp_path / name, boards=5, seed=seed) for name, seed in (("a", 1), ("b", 2))]
    out, titles = tmp_path / "out", []
    argv = cpu(trained, "--fpr", "0.2", "--output", out)
    monkeypatch.setattr(scoring, "draw_boards", lambda path, *more, **_: (titles.append(more[3]), path.touch()))
    mark_synthetic(demo[0], "a test")
    assert scoring.main([*argv, "--boards", str(demo[0])]) == 0
    assert all(title.startswith("synthetic boards: signed error") for title in titles) and len(titles) == 2
    refused(capsys, scoring.main, [*argv, "--boards", demo[1]], "results of other boards")
    (demo[0] / "SYNTHETIC").unlink()
    for n in (3, 4):
        (demo[0] / f"spi_measurement/spi_{n:03d}.json").unlink()
    (out / "boards_own.png").touch()
    assert scoring.main([*argv, "--boards", str(demo[0])]) == 0
    assert sorted(path.name for path in out.glob("*.png")) == ["boards_000.png", "boards_own.png"]
    assert titles[-1].startswith("signed error")


def test_each_held_out_cycle_is_judged_by_the_others():
    errors = torch.linspace(-1, 1, 100).repeat(3, 1)
    errors[2] *= 2
    found = verdicts.thresholds_of(errors, 0.02)
    assert found["held_out_cycles"] == 3 and found["held_out_pads"] == 300 and "promised_fpr" not in found
    assert found["fpr_of_each_cycle_by_others"][:2] == [0, 0]
    # Limits of +-0.99 at most call half of the pads of the wider cycle wrong.
    assert found["fpr_of_each_cycle_by_others"][2] == pytest.approx(0.5, abs=0.02)
    assert ((errors > found["excessive"]) | (errors < found["insufficient"])).double().mean() <= 0.02
    assert verdicts.describe(found | {"fpr_of_each_cycle_by_others": [0.004, 0.012, 0.5]}) == (
        "thresholds from 3 held-out cycles; each judged by the others: 0.4, 1.2, 50.0 % of fine pads called wrong"
    )
    alone = verdicts.thresholds_of(errors[:1], 0.02)
    assert math.isnan(alone["fpr_of_each_cycle_by_others"][0])
    assert "1 held-out cycle: there is no other one" in verdicts.describe(alone)


# ------------------------------------------------------------------------------------- sequences, devices, processes


def test_corruption_anomalies_and_drawing():
    generator = torch.Generator().manual_seed(0)
    mask = torch.zeros(13, 17, dtype=torch.bool)
    mask[::2, ::2] = True
    torch.manual_seed(0)
    clean = torch.ones(40, 10, 1, 13, 17) * mask
    corrupted = corrupt(clean, mask)
    assert not corrupted[..., ~mask].any()
    dropped = (corrupted == 0)[..., mask]
    assert torch.equal(dropped.all(dim=1), dropped.any(dim=1))  # the same pixels in all frames of a sample
    assert dropped.float().mean().item() == pytest.approx(0.1, abs=0.02)
    kept = corrupted[..., mask][~dropped] * 0.9
    noise = kept[(kept - 1).abs() > 1e-5] - 1
    assert len(noise) / len(kept) == pytest.approx(0.1, abs=0.01)
    assert noise.mean().item() == pytest.approx(0, abs=0.05) and noise.std().item() == pytest.approx(1, abs=0.05)

    added = inject(torch.zeros(50, 20, 30), 0.3, -4, generator)
    assert (added != 0).float().mean().item() == pytest.approx(0.3, abs=0.01)
    assert added[added != 0].mean().item() == pytest.approx(-4, abs=0.01)
    assert added[added != 0].std().item() == pytest.approx(0.1, abs=0.01)

    drawn = draw_sequences(2000, 4, [0.0, 5.0], [1.0, 0.1], generator)
    assert drawn.shape == (2000, 2, 4)
    assert (drawn[:, 1].mean().item(), drawn[:, 1].std().item()) == (
        pytest.approx(5, abs=0.02),
        pytest.approx(0.1, 0.1),
    )
    image = place(torch.tensor([[7.0, 8.0]]), torch.tensor([1, 0]), torch.tensor([2, 0]), 2, 3)
    assert image.tolist() == [[[[8, 0, 0], [0, 0, 7]]]]


def test_make_colormaps():
    colours = make_colormaps(torch.tensor([[[-2.0, -1.0, 0.0, 0.5, 1.0, 9.0]]]))
    assert colours.shape == (1, 3, 1, 6) and colours.dtype == np.float64 and colours[0, :, 0, 2].min() > 0.98
    assert colours[0, :, 0, [0, 1, 4, 5]].tolist() == [[0, 0, 1]] * 2 + [[1, 0, 0]] * 2
    assert 0.4 < colours[0, 1, 0, 3] < 0.6  # halfway to red
    with pytest.raises(ValueError, match="limit 0"):
        make_colormaps(torch.zeros(1, 1, 1), 0)


def test_several_gpus_get_a_process_each(data, monkeypatch, capsys):
    started = []

    def exec_(program, command):
        started.append(command)
        raise KeyboardInterrupt  # a real one does not come back

    monkeypatch.setattr(training.os, "execv", exec_)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    asked = args(data, "--gpu_ids", "1", "2", "7", "2")
    assert training.main(asked) == 130
    assert "--nproc_per_node=2" in started[0] and started[0][-len(asked) :] == asked
    for device in (["--cpu"], ["--device", "cpu"]):
        assert training.main(args(data, *TRAINED, *device)) == 0 and len(started) == 1
    refused(capsys, training.main, args(data, "--gpu_ids", "0", "--cpu"), "--cpu", "not allowed with", "--gpu_ids")
    for asked, device, words in (([1, 2, 7], "cuda:1", "no GPU 7: using GPU 1"), ([5], "cuda:0", "no GPU 5")):
        assert str(device_of(asked)) == device and words in capsys.readouterr().out
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    for local, device in enumerate(("cuda:1", "cuda:2")):
        monkeypatch.setenv("LOCAL_RANK", str(local))
        assert str(device_of([1, 2, 7, 2])) == device
    assert str(device_of([1, 7, 8])) == "cuda:1"  # too few: any


def together(data, script, *more):
    """What the script says that two processes run, with the networks' true size."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", str(ROOT / "crrn" / script)]
    done = subprocess.run([*command, *cpu(data, *more)], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_two_processes(data, tmp_path, monkeypatch):
    """They leave one checkpoint, which one process resumes; they count and judge as one process does."""
    monkeypatch.setattr(checkpoints, "CHANNELS", [1, 64, 64])
    assert training.main(cpu(data, *TRAINED)) == 0
    output = together(data, "1_train.py", *TRAINED, "--num_epochs", "3")
    assert output.count("epoch 3/3: loss") == 1 and "resuming" in output
    assert training.main(cpu(data, *TRAINED, "--num_epochs", "4")) == 0
    assert content_of(data / MODEL)["epoch"] == 3 and len(content_of(data / MODEL)["history"]) == 4

    assert testing.main(cpu(data)) == 0
    alone = read(data / "result/ConvConjLSTM/results.json")
    assert together(data, "2_test_model.py").count("results, curves") == 1
    found = read(data / "result/ConvConjLSTM/results.json")
    for kind in ("excessive", "insufficient"):
        for rate, one in alone[kind].items():
            for key in ("best_f1", "average_precision"):
                assert found[kind][rate][key] == pytest.approx(one[key], abs=1e-3)

    where = ["--boards", write_boards(tmp_path / "new", boards=7, seed=1), "--output"]
    assert scoring.main(cpu(data, *where, tmp_path / "alone")) == 0
    together(data, "3_score_boards.py", *where, tmp_path / "both")
    journal = tmp_path / "both/progress.jsonl"
    journal.write_bytes(b"".join(journal.read_bytes().splitlines(keepends=True)[:2]))
    output = together(data, "3_score_boards.py", *where, tmp_path / "both")
    assert output.count("resuming after 1 cycle of 3") == 1
    alone, both = (rows(tmp_path / name / "pads.csv") for name in ("alone", "both"))
    assert [row["verdict"] for row in both] == [row["verdict"] for row in alone]
    for ours, theirs in zip(both, alone):
        assert float(ours["error"]) == pytest.approx(float(theirs["error"]), abs=1e-4)
