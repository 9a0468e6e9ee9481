"""CRRN's scripts as a user runs them: tiny boards, every file they promise, kill and resume, bad input."""

import contextlib
import csv
import importlib
import json
import math
import os
import shutil
import subprocess
import sys
import time
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from common import checkpoint
from common.cli import notes
from common.files import UserError, append_text, digest
from common.images import mark_synthetic
from crrn import compare, demo_boards, pictures, report
from crrn import scoring as verdicts
from crrn.boards import Boards, Layout, cycle_of, data_folder, grid_side, is_synthetic, read_boards, read_layout
from crrn.checkpoints import CHANNELS, KERNELS
from crrn.model.ConvRRN import ST_EncDec
from crrn.pictures import draw_boards, draw_errors, draw_precision_recall
from crrn.preprocess import load_prepared
from crrn.scoring import score_boards
from crrn.utils import Counts, corrupt, device_of, draw_sequences, inject, make_colormaps, place
from tests.bad_input.cases import obeying_permissions
from tests.helpers import Report, refused, run_readme

ROOT = Path(__file__).resolve().parents[2]
preprocessing, training, testing, scoring = (
    importlib.import_module(f"crrn.{name}") for name in ("0_preprocessing", "1_train", "2_test_model", "3_score_boards")
)
CYCLE, PADS = 3, 6
TRAINED = ["--num_epochs", "2", "--num_instance", "4", "--batch_size", "2", "--lr", "1e-3"]


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


def args(data: Path, *more: str) -> list[str]:
    return ["--data", str(data), "--cycle", str(CYCLE), *more]


@pytest.fixture
def data(tmp_path):
    return write_boards(tmp_path / "mine")


@pytest.fixture(scope="module")
def trained_once(tmp_path_factory):
    data = write_boards(tmp_path_factory.mktemp("trained") / "mine")
    assert training.main(args(data, "--cpu", *TRAINED)) == 0
    return data


@pytest.fixture
def trained(trained_once, tmp_path):
    """A copy, to be changed freely."""
    return Path(shutil.copytree(trained_once, tmp_path / "mine"))


def rows(path):
    with Path(path).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_grid_is_the_strictly_next_number_that_is_1_modulo_4():
    assert [grid_side(v) for v in (33, 34, 35, 36, 36.4, 32.5, 32.49, 36.5, 12)] == [37, 37, 37, 37, 37, 37, 33, 41, 13]


def test_preprocessing_writes_everything(data):
    assert preprocessing.main(args(data)) == 0
    volume = np.array(
        [
            [pad["Volume"] for pad in json.loads(path.read_text())["PADINFO"]]
            for path in sorted((data / "spi_measurement").iterdir())
        ]
    )
    normalised = (volume - volume.mean(0)) / volume.std(0)
    info = torch.load(data / "pcb_info.pt", weights_only=True)
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
    row = table[4 * PADS + 2]
    assert (row["Timestep"], row["PadID"], row["Age"], row["Group"]) == ("4", "2", "1", "shape1")
    assert float(row["Vol"]) == volume[4, 2] and float(row["Vol_norm"]) == pytest.approx(normalised[4, 2])

    tests = torch.load(data / "test_pcbs.pt", weights_only=True)
    assert tests.shape == (3, CYCLE, 1, 13, 17) and tests.dtype == torch.float32
    on = torch.zeros(13, 17, dtype=torch.bool)
    on[[3, 4, 5, 3, 4, 5], [2, 4, 6, 8, 10, 12]] = True
    assert (tests[..., on] != 0).all() and not tests[..., ~on].any()
    for name in ("vol.pdf", "norm_vol.pdf", "norm_all_vol.pdf", "norm_norm_vol.pdf"):
        assert (data / name).read_bytes().startswith(b"%PDF")
    for name in ("auto.png", "group.png"):
        assert (data / name).read_bytes().startswith(b"\x89PNG")


def test_test_sequences_follow_each_boards_own_positions(data):
    change(data / "spi_measurement/spi_004.json", lambda board: board["PADINFO"][0].update(PosX=0.2, PosY=12.9))
    assert preprocessing.main(args(data)) == 0
    tests = torch.load(data / "test_pcbs.pt", weights_only=True)
    assert tests[1, 1, 0, 12, 0] != 0 and tests[1, 1, 0, 3, 2] == 0
    assert tests[1, 0, 0, 12, 0] == 0 and tests[1, 0, 0, 3, 2] != 0
    assert load_prepared(data).mask[3, 2] and not load_prepared(data).mask[12, 0]


def test_incomplete_cycles_constant_pads_and_mixed_order(data, capsys, no_pictures):
    for n in range(9):
        change(data / f"spi_measurement/spi_{n:03d}.json", lambda board: board["PADINFO"][3].update(Volume=7.1))
    plain = args(data, "--cycle", "4")
    assert preprocessing.main(plain) == 0
    output = capsys.readouterr().out
    assert f"2 cycles of 4 and 1 more, left out, from {data}/spi_measurement/spi_008.json on" in output
    assert "the same volume on all boards, so that its normalised volume is 0: pad 4\n" in output
    table = rows(data / "df_info.csv")
    assert len(table) == 8 * PADS and {row["Vol_norm"] for row in table if row["PadID"] == "3"} == {"0.0"}
    before = (data / "df_info.csv").read_text()
    change(data / "spi_measurement/spi_002.json", lambda board: board["PADINFO"].reverse())
    assert preprocessing.main(plain) == 0
    assert (data / "df_info.csv").read_text() == before


def test_training_and_testing_write_everything(data, capsys):
    trained = data
    assert training.main(args(data, "--cpu", *TRAINED)) == 0
    folder = trained / "result/ConvConjLSTM"
    content = torch.load(folder / "model_dictionary.pt", weights_only=True)
    assert content["epoch"] == 1 and len(content["test_loss"]) == 2 and "optimizer" in content
    summary = json.loads((folder / "training.json").read_text())
    assert summary["data"] == str(trained) and summary["last_test_loss"] == content["test_loss"][-1]
    assert summary["best_test_loss"] == min(content["test_loss"])

    argv = args(trained, "--cpu", "--batch_size", "5")
    assert testing.main(argv) == 0
    results = json.loads((folder / "results.json").read_text())
    for kind, letter in (("excessive", "e"), ("insufficient", "i")):
        for k in range(1, 6):
            curve = torch.load(folder / f"pr_info_{letter}_{k}.pt", weights_only=True)
            assert set(curve) == {"Precision", "Recall", "F1"} and 0 < len(curve["F1"]) <= 51
            for p, r, f1 in zip(*curve.values()):
                assert f1 == pytest.approx(2 / (1 / p + 1 / r))
            one = results[kind][f"0.{k}"]
            assert one["best_f1"] == max(curve["F1"]) and 0 < one["average_precision"] <= 1
            assert 0.5 < one["z_score"]["best_f1"] <= 1  # shifts of 2 to 5 standard deviations
    for name in ("precision_recall_excessive.png", "precision_recall_insufficient.png", "errors.png", "boards.png"):
        assert (folder / name).read_bytes().startswith(b"\x89PNG")
    assert not (folder / "report.html").exists()
    assert testing.main([*argv, "--report"]) == 0
    page = Report(folder / "report.html")
    assert len(page.captions) == 6 and f"{results['excessive']['0.1']['best_f1']:.4g}" in page.texts
    again = json.loads((folder / "results.json").read_text())
    assert again["excessive"] == results["excessive"]
    assert again["model_sha256"] == digest(folder / "model_dictionary.pt")

    capsys.readouterr()
    before = (folder / "model_dictionary.pt").read_bytes()
    assert training.main(args(trained, "--cpu", *TRAINED)) == 0
    assert "trained for 2 epochs already" in capsys.readouterr().out
    assert (folder / "model_dictionary.pt").read_bytes() == before


def test_measured_protocol_attention_and_textbook_gates(data):
    more = ["--mode", "ConvSTLSTM", "--is_attn", "--gates", "textbook", "--protocol", "measured", "--cpu"]
    assert training.main(args(data, *more, *TRAINED)) == 0
    folder = data / "result/ConvSTLSTM_a_textbook_measured"
    assert testing.main(args(data, *more)) == 0
    assert json.loads((folder / "results.json").read_text())["test_set"] == "measured"


def test_reduced_precision_trains_alike(data, capsys):
    losses = []
    for kind in ("fp32", "bf16"):
        assert training.main(args(data, "--cpu", *TRAINED, "--precision", kind, "--result", str(data / kind))) == 0
        content = torch.load(data / kind / "ConvConjLSTM/model_dictionary.pt", weights_only=True)
        losses.append(content["train_loss"][0])
        assert all(value.dtype != torch.bfloat16 for value in content["state_dict"].values())
    assert losses[0] != losses[1] and losses[1] == pytest.approx(losses[0], rel=0.05)  # norms over a few pixels
    for script in (training, testing):
        refused(capsys, script.main, args(data, "--cpu", "--precision", "fp16"), "fp16", "GPU")
    refused(capsys, training.main, args(data, "--cpu", "--sync_bn"), "--sync_bn", "GPU")


def test_measured_cycles_hold_the_last_ones_out(data):
    assert preprocessing.main(args(data)) == 0
    prepared = load_prepared(data)
    train, held, mean, std = prepared.measured_cycles(0.3)
    assert train.shape == (2, CYCLE, 1, 13, 17) and held.shape == (1, CYCLE, 1, 13, 17)
    torch.testing.assert_close(mean, prepared.volume[:6].mean(0))
    expected = (prepared.volume[7, 4] - mean[4]) / prepared.volume[:6, 4].std(correction=0)
    assert held[0, 1, 0, 4, 10].item() == pytest.approx(expected.item(), rel=1e-5)
    assert std.shape == (PADS,)


def test_scoring_new_boards(trained, tmp_path):
    new = write_boards(tmp_path / "new", boards=5, seed=1) / "spi_measurement"
    change(new / "spi_004.json", lambda board: board["PADINFO"][2].update(Volume=500.0))
    change(new / "spi_001.json", lambda board: board["PADINFO"][5].update(Volume=-400.0))
    change(new / "spi_000.json", lambda board: board["PADINFO"].reverse())
    argv = args(trained, "--cpu", "--boards", str(new), "--fpr", "0.2")
    assert scoring.main(argv) == 0
    folder = trained / "result/ConvConjLSTM/spi_measurement"
    table = rows(folder / "pads.csv")
    assert len(table) == 5 * PADS
    found = {(row["file"], row["pad_id"]): row for row in table}
    assert found["spi_004.json", "3"]["verdict"] == "excessive" and float(found["spi_004.json", "3"]["volume"]) == 500
    assert found["spi_001.json", "6"]["verdict"] == "insufficient"
    assert found["spi_000.json", "1"]["x"] == "2.5" and found["spi_003.json", "1"]["age"] == "0"
    for row in table:
        assert float(row["error"]) == pytest.approx(float(row["normalised"]) - float(row["expected"]), abs=1e-3)
    results = json.loads((folder / "results.json").read_text())
    limits = results["thresholds_by_cycle"]
    assert [one["held_out_pads"] for one in limits] == [CYCLE * PADS, 2 * PADS]
    for row in table:
        limit, error = limits[int(row["board"]) // CYCLE], float(row["error"])
        expected = "excessive" if error > limit["excessive"] else "fine"
        assert row["verdict"] == ("insufficient" if error < limit["insufficient"] else expected)
    assert results["boards"] == str(new) and results["epochs"] == 2 and results["versions"]
    assert results["settings"]["fpr"] == 0.2 and results["settings"]["held_out"] == 0.3
    assert results["pads"]["fine"] == sum(row["verdict"] == "fine" for row in table)
    assert sorted(path.name for path in folder.glob("*.png")) == ["boards_000.png", "boards_001.png"]
    argv = args(trained, "--cpu", "--boards", str(new.parent), "--fpr", "0.2")
    assert scoring.main(argv) == 0  # the data folder will do, too
    assert (trained / "result/ConvConjLSTM/new/pads.csv").read_bytes() == (folder / "pads.csv").read_bytes()

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


def test_what_is_kept_of_scores_is_used_only_where_it_is_sound(trained, tmp_path, capsys, monkeypatch, no_pictures):
    new = write_boards(tmp_path / "new", boards=7, seed=1)
    out = tmp_path / "out"
    argv = args(trained, "--cpu", "--boards", str(new), "--output", str(out), "--fpr")
    assert scoring.main([*argv, "0.2"]) == 0
    whole = {path.name: path.read_bytes() for path in out.iterdir()}
    lengths = []

    def counted(model, images, *rest, real=verdicts.reconstruct):
        lengths.append(len(images))  # of a cycle to be judged, 1; all that are held out are one call, 1 here, too
        return real(model, images, *rest)

    monkeypatch.setattr(verdicts, "reconstruct", counted)
    limits = 2  # calls, for cycles of 3 and of 1

    def scores_again(cycles, fpr="0.2"):
        lengths.clear()
        capsys.readouterr()
        assert scoring.main([*argv, fpr]) == 0
        assert len(lengths) == limits + cycles
        return capsys.readouterr().out

    assert "continuing after 3 cycles of 3" in scores_again(0)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == whole
    for number in (1, 2):  # of several processes, each has another device
        with monkeypatch.context() as patch:
            patch.setattr(verdicts, "device_of", lambda *_, number=number: torch.device("cpu", number))
            assert "continuing after 3 cycles of 3" in scores_again(0)
    scores_again(0, "0.5")  # judged anew
    assert (out / "pads.csv").read_bytes() != whole["pads.csv"]
    for spoilt, cycles, words in (
        (lambda lines: [*lines[:2], lines[2].replace(b"1", b"2", 1), *lines[3:]], 1, "1 lines of"),
        (lambda lines: [*lines[:3], lines[3][: len(lines[3]) // 2]], 1, "continuing after 2 cycles of 3"),
        (lambda lines: [lines[0][1:], *lines[1:]], 3, "1 lines of"),
        (lambda lines: [], 3, "thresholds from"),
    ):
        lines = whole["progress.jsonl"].splitlines(keepends=True)
        (out / "progress.jsonl").write_bytes(b"".join(spoilt(lines)))
        (out / "pads.csv").write_text("damaged")
        assert words in scores_again(cycles)
        assert (out / "pads.csv").read_bytes() == whole["pads.csv"]
    # Another scoring that is stopped leaves what was complete.
    assert training.main(args(trained, "--cpu", *TRAINED, "--num_epochs", "3")) == 0
    monkeypatch.setattr(scoring, "append_text", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    assert scoring.main([*argv, "0.2"]) == 130 and (out / "pads.csv").read_bytes() == whole["pads.csv"]
    other = write_boards(tmp_path / "other/new", boards=1)
    monkeypatch.setattr(scoring, "append_text", append_text)
    for boards, name in ((new, "new"), (other, "other_new"), (new, "new")):  # one folder for each, unless told
        assert scoring.main(args(trained, "--cpu", "--boards", str(boards))) == 0
        found = json.loads((trained / "result/ConvConjLSTM" / name / "results.json").read_text())
        assert found["boards"] == str(boards / "spi_measurement")
    refused(capsys, scoring.main, args(trained, "--cpu", "--boards", str(other), "--output", str(out)), "other boards")


def test_an_authors_checkpoint_is_continued_and_tested(data, capsys, no_pictures):
    """{epoch, test_loss, state_dict, optimizer} alone, parameters named module.<name>, as their training writes it."""
    torch.manual_seed(0)
    model = ST_EncDec("ConvConjLSTM", CHANNELS, KERNELS, 2)
    optimizer = torch.optim.Adam(model.parameters(), 1e-4, weight_decay=1e-5)
    model(torch.zeros(1, 2, 1, 13, 17)).mean().backward()
    optimizer.step()
    state = {f"module.{name}": value for name, value in model.state_dict().items()}
    path = data / "result/ConvConjLSTM/model_dictionary.pt"
    path.parent.mkdir(parents=True)
    theirs = {"epoch": 0, "test_loss": [np.float64(1.5)], "state_dict": state, "optimizer": optimizer.state_dict()}
    torch.save(theirs, path)
    assert testing.main(args(data, "--cpu")) == 0
    assert training.main(args(data, "--cpu", *TRAINED)) == 0
    assert "after epoch 1" in capsys.readouterr().out
    content = torch.load(path, weights_only=True)
    assert content["epoch"] == 1 and content["test_loss"][0] == 1.5 and len(content["test_loss"]) == 2
    assert content["optimizer"]["param_groups"][0]["lr"] == 1e-3  # the option's, not theirs
    steps = {int(value["step"]) for value in content["optimizer"]["state"].values()}
    assert max(steps) == 3  # theirs and two of ours
    del state["module.st_decoder.s_dec.layer.3.bias"]
    torch.save(theirs, path)
    refused(capsys, testing.main, args(data, "--cpu"), path, "s_dec.layer.3.bias is missing")


def test_a_fresh_clone_makes_its_boards(tmp_path):
    """Nothing but code: training from the root makes boards and preprocesses them; the next script, from inside."""
    repo = tmp_path / "repo"
    shutil.copytree(ROOT / "common", repo / "common")
    shutil.copytree(ROOT / "crrn", repo / "crrn", ignore=shutil.ignore_patterns("ekra", "jabil", "__pycache__"))
    more = ["--num_epochs", "1", "--num_instance", "2", "--batch_size", "2", "--mode", "ConvLSTM", "--gpu_ids", "99"]
    first = subprocess.run(
        [sys.executable, "crrn/1_train.py", *more], cwd=repo, capture_output=True, text=True, timeout=100
    )
    assert first.returncode == 0, first.stderr
    for word in ("making boards", "generated stand-ins", "not preprocessed yet", "epoch 1/1: loss"):
        assert word in first.stdout
    if not torch.cuda.is_available():
        assert "no CUDA GPU here: running on the CPU" in first.stdout
    assert (repo / "crrn/ekra/SYNTHETIC").is_file()
    assert (repo / "crrn/ekra/result/ConvLSTM/model_dictionary.pt").is_file()
    assert sorted(path.name for path in repo.iterdir()) == ["common", "crrn"]
    second = subprocess.run(
        [sys.executable, "2_test_model.py", "--mode", "ConvSTLSTM"],
        cwd=repo / "crrn",
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert second.returncode == 2 and second.stderr.count("\n") == 1
    assert "1_train.py --mode ConvSTLSTM makes it" in second.stderr
    (repo / "crrn/ekra/spi_measurement/spi_200.json").write_text("{}")
    with pytest.raises(UserError, match="real files beside generated ones"):
        is_synthetic(repo / "crrn/ekra")


def test_demo_boards(tmp_path, capsys):
    demo_boards.make_boards(tmp_path / "one", boards=42)
    demo_boards.make_boards(tmp_path / "two", boards=42)
    demo_boards.make_boards(tmp_path / "three", boards=42, run=1)
    files = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*.json"))
    assert len(files) == 43 and is_synthetic(tmp_path / "one")
    assert all((tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes() for name in files)
    one, three = (
        read_boards(tmp_path / name / "spi_measurement", read_layout(tmp_path / name / "job.json"))
        for name in ("one", "three")
    )
    assert (one.layout.height, one.layout.width) == (25, 33)
    pixels = set(zip(one.rows[0].tolist(), one.columns[0].tolist()))
    assert len(pixels) == len(one.pad_ids) > 100 and len(set(one.groups)) == 6
    assert (one.rows == one.rows[0]).all() and (one.columns == one.columns[0]).all()
    assert (three.rows == one.rows).all() and not np.isclose(three.volume, one.volume).any(axis=1).all()
    relative = one.volume / one.volume.mean(0) - 1
    near = np.hypot(*(a[0][:, None] - a[0] for a in (one.x, one.y)))
    correlation = np.corrcoef(relative.T)
    assert correlation[(near > 0) & (near < 2)].mean() > 0.5 > correlation[near > 20].mean() + 0.2
    refused(capsys, demo_boards.main, ["--output", str(tmp_path / "one")], "already holds files")
    refused(capsys, demo_boards.main, ["--output", str(tmp_path / "x"), "--boards", "0"], "0 boards")


def test_compare_sums_up(data, capsys, monkeypatch, no_pictures):
    scripts = {"1_train.py": training, "2_test_model.py": testing}

    def run_here(command, check):
        return subprocess.CompletedProcess(command, scripts[Path(command[1]).name].main(command[2:]))

    monkeypatch.setattr(subprocess, "run", run_here)
    argv = args(data, "--models", "ConvLSTM", "--protocols", "drawn", "--seeds", "0", "--cpu", *TRAINED[:4])
    assert compare.main(argv) == 2  # more sequences per step than per epoch
    assert "1_train.py ended with status 2" in capsys.readouterr().err
    assert compare.main([*argv, *TRAINED[4:]]) == 0
    assert "| ConvLSTM | excessive | 0." in capsys.readouterr().out
    summary = json.loads((data / "compare/compare.json").read_text())
    single = json.loads((data / "compare/seed0/ConvLSTM/results.json").read_text())
    one = summary["ConvLSTM"]["insufficient"]["0.3"]
    assert one["best_f1"] == {"mean": single["insufficient"]["0.3"]["best_f1"], "std": 0.0, "seeds": 1}
    assert one["z_score_best_f1"]["mean"] == single["insufficient"]["0.3"]["z_score"]["best_f1"]


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
    assert drawn[:, 1].mean().item() == pytest.approx(5, abs=0.02) and drawn[:, 1].std().item() == pytest.approx(
        0.1, abs=0.01
    )
    image = place(torch.tensor([[7.0, 8.0]]), torch.tensor([1, 0]), torch.tensor([2, 0]), 2, 3)
    assert image.tolist() == [[[[8, 0, 0], [0, 0, 7]]]]


def test_counts_leave_out_thresholds_where_nothing_is_found():
    counts = Counts(1)
    counts.update(torch.tensor([3.05, 1.05, -4.0, 0.55]), torch.tensor([4.0, 0.0, -4.0, 2.0]))
    curve = counts.curve()
    assert len(curve["F1"]) == 31 and max(curve["Threshold"]) == pytest.approx(3.0)
    low, high = (curve["Threshold"].index(min(curve["Threshold"], key=lambda t, v=v: abs(t - v))) for v in (0.5, 2.0))
    assert (curve["Precision"][low], curve["Recall"][low]) == pytest.approx((2 / 3, 1))
    assert (curve["Precision"][high], curve["Recall"][high], curve["F1"][high]) == pytest.approx((1, 0.5, 2 / 3))
    other = Counts(-1)
    other.update(torch.tensor([3.0, 1.0, -4.0]), torch.tensor([4.0, 0.0, -4.0]))
    assert other.curve()["Precision"][10] == pytest.approx(1)
    assert Counts(1).curve()["F1"] == []


def test_make_colormaps():
    maps = torch.tensor([[[-2.0, -1.0, 0.0, 0.5, 1.0, 9.0]]])
    colours = make_colormaps(maps)
    assert colours.shape == (1, 3, 1, 6) and colours.dtype == np.float64
    assert colours.min() >= 0 and colours.max() <= 1
    blue, white, red = colours[0, :, 0, 0], colours[0, :, 0, 2], colours[0, :, 0, 5]
    assert blue.tolist() == [0, 0, 1] and red.tolist() == [1, 0, 0] and white.min() > 0.98
    assert np.array_equal(colours[..., 1], colours[..., 0]) and np.array_equal(colours[..., 4], colours[..., 5])
    assert 0.4 < colours[0, 1, 0, 3] < 0.6  # halfway to red
    assert np.array_equal(make_colormaps(maps, 2.0)[..., 4], colours[..., 3])
    with pytest.raises(ValueError, match="limit 0"):
        make_colormaps(maps, 0)


def test_devices(monkeypatch, capsys):
    assert device_of([0, 1, 2, 3], cpu=True).type == "cpu"
    with pytest.raises(UserError, match="--gpu_ids -1: GPUs are numbered from 0; --cpu means the CPU"):
        device_of([-1], cpu=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert device_of([1, 2, 3], cpu=False) == torch.device("cuda:1")
    assert "no GPU 2, 3: using GPU 1" in capsys.readouterr().out
    assert device_of([5], cpu=False) == torch.device("cuda:0")
    assert "no GPU 5: using GPU 0" in capsys.readouterr().out


def test_names_and_paths_of_data(tmp_path, monkeypatch):
    monkeypatch.setattr("common.cli._notes", [])
    monkeypatch.setattr("crrn.boards.HERE", tmp_path / "crrn")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "crrn/own").mkdir(parents=True)
    (tmp_path / "here").mkdir()
    assert data_folder("ekra") == data_folder(None) == tmp_path / "crrn/ekra"
    assert data_folder("own") == tmp_path / "crrn/own"
    assert data_folder("ekra/") == tmp_path / "crrn/ekra" and data_folder("here/") == Path("here")
    assert data_folder("here") == Path("here") and data_folder("./here") == Path("here")
    with pytest.raises(UserError, match=r"neither .*none nor .*crrn/none is a folder"):
        data_folder("none")
    (tmp_path / "ekra").mkdir()  # what exists is the user's
    assert data_folder("ekra") == data_folder("ekra/") == Path("ekra") and not notes()
    (tmp_path / "own").mkdir()
    assert data_folder("own") == Path("own") and notes() == [f"--data own is {tmp_path}/own, not {tmp_path}/crrn/own"]
    assert data_folder(None) == tmp_path / "crrn/ekra"
    (tmp_path / "jabil").touch()
    with pytest.raises(UserError, match=r"neither .*jabil nor"):
        data_folder("jabil")
    assert (cycle_of("ekra", None), cycle_of("jabil", None), cycle_of("x/y", None), cycle_of("jabil", 7)) == (
        20,
        10,
        20,
        7,
    )


def test_boards_are_ordered_by_number_and_what_is_no_board_is_said(data, capsys, no_pictures):
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
    assert training.main(args(data, "--cpu", *TRAINED)) == 0
    told = json.loads((data / "result/ConvConjLSTM/training.json").read_text())["notes"]
    assert told == [
        f"{folder}: 2 files not called spi_<number>.json, so left out, such as spi_4.json.bak",
        f"11 boards are 3 cycles of 3 and 2 more, left out, from {folder}/spi_9.json on",
    ]
    (folder / "spi_02.json").touch()
    refused(capsys, preprocessing.main, args(data), "spi_002.json and spi_02.json have the same number")


def test_boards_in_a_folder_that_can_only_be_read(data, tmp_path, capsys, no_pictures):
    where = args(data, "--cpu", "--result", str(tmp_path / "out"))
    before = sorted(data.rglob("*"))
    data.chmod(0o500)
    with obeying_permissions() as obeying:
        if not obeying:
            pytest.skip("this user may write everywhere")
        refused(capsys, training.main, args(data, "--cpu", *TRAINED), "cannot write", data)
        assert training.main([*where, *TRAINED, "--num_epochs", "1"]) == 0
    assert sorted(data.rglob("*")) == before and (tmp_path / "out/pcb_info.pt").is_file()
    told = f"cannot write in {data}: permission denied; the preprocessed boards lie in {tmp_path / 'out'}"
    assert told in json.loads((tmp_path / "out/ConvConjLSTM/training.json").read_text())["notes"]
    change(data / "spi_measurement/spi_001.json", pad(0, Volume=48.0))
    with obeying_permissions():
        refused(capsys, testing.main, where, "have changed", f"remove {tmp_path / 'out/pcb_info.pt'} to make it anew")


def test_names_that_cannot_be_drawn_or_decoded(tmp_path):
    """Mathematics that is none, bytes that are no UTF-8, half of a pair of surrogates."""
    data = write_boards(tmp_path / os.fsdecode(b"caf\xe9 $^$"))
    for number, shape in enumerate(["$x^{$", "\ud800", "=1+1", "\x1b[2J"]):
        change(data / "job.json", lambda job, n=number, s=shape: job["Pad"]["ShapeID"].__setitem__(n, s))
    assert preprocessing.main(args(data)) == 0
    assert load_prepared(data).cycle == CYCLE
    draw_errors(tmp_path / "errors.png", {"fine": np.zeros(3)}, data.name)
    draw_precision_recall(tmp_path / "curves.png", {}, {}, data.name)
    draw_boards(tmp_path / "boards.png", {"": np.zeros((1, 13, 17))}, ["a"], np.ones((13, 17), bool), data.name, 1.0)


def test_time_does_not_grow_with_the_square_of_pads_and_shapes(tmp_path):
    count = 30_000
    ids = [*range(count), count - 1]
    job = {"PCBInfo": {"PCBLenth": [200], "PCBWidth": [200]}, "Pad": {"ID": ids, "ShapeID": ids}}
    (tmp_path / "job.json").write_text(json.dumps(job))
    start = time.process_time()
    with pytest.raises(UserError, match=f"pad {count - 1} stands more than once"):
        read_layout(tmp_path / "job.json")
    x = np.arange(4000)[None] % 200.0
    boards = Boards(Layout(201, 201, {}), np.arange(4000), list(range(4000)), x, x, x, [])
    pictures._layout(tmp_path / "group.png", boards)
    assert time.process_time() - start < 8  # 0.8 s; 6 s to count each pad in the list, 30 s for a picture's part each


def pad(number, **values):
    return lambda board: board["PADINFO"][number].update(values)


def test_boards_with_other_pads(data, capsys):
    change(data / "job.json", lambda job: (job["Pad"]["ID"].append(9), job["Pad"]["ShapeID"].append("x")))
    change(data / "spi_measurement/spi_002.json", pad(5, PadID=9))
    refused(capsys, preprocessing.main, args(data), "spi_002.json", "pad 6")


def test_checkpoints_of_something_else(trained, tmp_path, capsys, no_pictures):
    path = trained / "result/ConvConjLSTM/model_dictionary.pt"
    before = path.read_bytes()
    again = args(trained, "--cpu", *TRAINED)
    refused(capsys, training.main, [*again, "--seed", "1"], path, "seed 0, not 1", "--result")
    refused(capsys, training.main, [*again, "--n_layers", "3"], "n_layers 2, not 3")
    refused(capsys, testing.main, args(trained, "--cpu", "--n_layers", "1"), "n_layers 2, not 1")
    refused(capsys, testing.main, args(trained, "--cpu", "--batch_size", "0"), "--batch_size 0")
    refused(capsys, testing.main, args(trained, "--cpu", "--is_attn"), "1_train.py", "--is_attn makes it")
    assert path.read_bytes() == before

    other = trained / "result/ConvLSTM/model_dictionary.pt"
    other.parent.mkdir()
    shutil.copy(path, other)
    refused(capsys, testing.main, args(trained, "--cpu", "--mode", "ConvLSTM"), "mode ConvConjLSTM, not ConvLSTM")
    path.write_bytes(before[: len(before) // 2])
    refused(capsys, testing.main, args(trained, "--cpu"), path, "broken")
    refused(capsys, training.main, again, path, "broken")
    path.write_text("hello")
    refused(capsys, testing.main, args(trained, "--cpu"), path)
    checkpoint.write(path, {"epoch": 3})
    refused(capsys, testing.main, args(trained, "--cpu"), "is missing")
    checkpoint.save(path, "csflow", epoch=0, test_loss=[], state_dict={}, optimizer={})
    refused(capsys, testing.main, args(trained, "--cpu"), "of another method")
    path.write_bytes(before)

    # The same pads on a larger board, then other volumes.
    change(trained / "job.json", lambda job: job["PCBInfo"].update(PCBWidth=[20]))
    assert preprocessing.main(args(trained)) == 0
    refused(capsys, testing.main, args(trained, "--cpu"), "13 x 17 pixels, not 21 x 17")
    change(trained / "job.json", lambda job: job["PCBInfo"].update(PCBWidth=[10]))
    change(trained / "spi_measurement/spi_001.json", pad(0, Volume=1.0))
    assert preprocessing.main(args(trained)) == 0
    refused(capsys, training.main, again, "other boards")


def test_bad_preprocessed_files(trained, capsys):
    argv = args(trained, "--cpu")
    refused(capsys, testing.main, [*argv, "--cycle", "9"], "cycles of 3 boards, not 9")
    for name, content in (("test_pcbs.pt", torch.zeros(2, 2)), ("pcb_info.pt", {"mean": [0.0]})):
        before = (trained / name).read_bytes()
        checkpoint.write(trained / name, content)
        refused(capsys, testing.main, argv, name, "0_preprocessing.py")
        (trained / name).write_bytes(before[:50])
        refused(capsys, testing.main, argv, name)
        (trained / name).write_bytes(before)
    table = trained / "df_info.csv"
    lines = table.read_text().splitlines()
    for broken in (lines[:10], lines[1:], [*lines, "1,2"], [lines[0], *(["x" + lines[1]] + lines[2:])], []):
        table.write_text("\n".join(broken))
        refused(capsys, testing.main, argv, "df_info.csv", "0_preprocessing.py")
    table.write_text("\n".join(lines) + "\n")
    for n in range(9, 12):
        shutil.copy(trained / "spi_measurement/spi_000.json", trained / f"spi_measurement/spi_{n:03d}.json")
    refused(capsys, testing.main, argv, "with 9 boards, now there are 12")


def test_bad_boards_to_score(trained, tmp_path, capsys):
    argv = args(trained, "--cpu", "--boards")
    new = write_boards(tmp_path / "new", boards=2) / "spi_measurement"
    refused(capsys, scoring.main, [*argv, str(tmp_path / "none")], "there is no folder")
    refused(capsys, scoring.main, args(trained), "--boards")
    (tmp_path / "empty").mkdir()
    refused(capsys, scoring.main, [*argv, str(tmp_path / "empty")], "holds no boards")
    for wrong in ("0", "0.9", "nan", "x"):
        refused(capsys, scoring.main, [*argv, str(new), "--fpr", wrong], "--fpr")
    for n in range(2):
        change(new / f"spi_{n:03d}.json", lambda board: board["PADINFO"].pop())
    refused(capsys, scoring.main, [*argv, str(new)], "pad 6", "alike")
    refused(capsys, scoring.main, [*argv, str(new), "--mode", "ConvLSTM"], "1_train.py", "makes it")
    (new / "spi_001.json").write_text('{"PADINFO": [{}]}')
    refused(capsys, scoring.main, [*argv, str(new)], "spi_001.json", "PosX is missing")
    assert not (trained / "result/ConvConjLSTM/spi_measurement").exists()


def test_one_cycle_trains_on_drawn_sequences_only(tmp_path, capsys):
    data = write_boards(tmp_path / "short", boards=CYCLE)
    assert training.main(args(data, "--cpu", *TRAINED)) == 0
    refused(capsys, training.main, args(data, "--cpu", "--protocol", "measured", *TRAINED), "none can be held out")


def test_non_finite_loss_keeps_the_model(trained, capsys):
    path = trained / "result/ConvConjLSTM/model_dictionary.pt"
    content = torch.load(path, weights_only=True)
    content["state_dict"]["st_decoder.s_dec.layer.3.bias"][:] = 3e38  # its square is beyond float32
    torch.save(content, path)
    before = path.read_bytes()
    refused(capsys, training.main, args(trained, "--cpu", *TRAINED, "--num_epochs", "3"), "epoch 3, step 1", "--lr")
    assert path.read_bytes() == before


def test_boards_too_small_for_the_network(data, capsys):
    change(data / "job.json", lambda job: job["PCBInfo"].update(PCBWidth=[8]))
    refused(capsys, training.main, args(data, "--cpu", *TRAINED), "9 x 17 pixels are too small", "13")


MODEL = "result/ConvConjLSTM/model_dictionary.pt"


@pytest.fixture
def no_pictures(monkeypatch):
    """Drawing is what takes longest; other tests look at the pictures."""
    for script in (preprocessing, testing, scoring):
        for name in ("draw_preprocessing", "draw_precision_recall", "draw_errors", "draw_boards"):
            if hasattr(script, name):
                monkeypatch.setattr(script, name, lambda *_, **__: None)


def measured(data: Path, *more: str) -> list[str]:
    return args(data, "--cpu", "--mode", "ConvLSTM", "--protocol", "measured", *more)


def test_volumes_beyond_the_numbers_are_named_not_called_fine(trained, tmp_path, capsys, monkeypatch):
    new = write_boards(tmp_path / "new", boards=5, seed=1) / "spi_measurement"
    argv = args(trained, "--cpu", "--boards", str(new), "--fpr", "0.2")
    real = verdicts.reconstruct
    # As half precision would, beyond 65504.
    monkeypatch.setattr(
        verdicts,
        "reconstruct",
        lambda model, x, *rest: real(model, x, *rest) * (1 if x.abs().max() < 65504 else math.nan),
    )
    for volume, words in (
        (1e300, ["spi_001.json, pad 3", "cannot be normalised"]),
        (1e7, ["no finite reconstruction in --precision fp32", "pad 3 in spi_001.json"]),
    ):
        change(new / "spi_001.json", pad(2, Volume=volume))
        refused(capsys, scoring.main, argv, *words)
        table = trained / "result/ConvConjLSTM/spi_measurement/pads.csv"
        assert not table.exists() or rows(table) == []
    limits = {"excessive": 1.0, "insufficient": -1.0}
    assert [verdicts.verdict_of(error, limits) for error in (0, 2, -2)] == ["fine", "excessive", "insufficient"]
    for error, wrong in ((math.nan, limits), (0.0, limits | {"excessive": math.nan})):
        with pytest.raises(ValueError, match="no verdict"):
            verdicts.verdict_of(error, wrong)


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


def test_measured_models_belong_to_their_held_out_share_and_boards(data, capsys, no_pictures):
    assert training.main(measured(data, "--held_out", "0.6", *TRAINED)) == 0
    folder = data / "result/ConvLSTM_measured"
    assert testing.main(measured(data)) == 0
    assert json.loads((folder / "results.json").read_text())["settings"]["held_out"] == 0.6
    scored = measured(data, "--boards", str(data), "--output", str(data / "scores"))
    assert scoring.main(scored) == 0
    results = json.loads((data / "scores/results.json").read_text())
    assert results["thresholds_by_cycle"][0]["held_out_cycles"] == 2
    for script, argv in ((testing, measured(data)), (scoring, scored)):
        refused(capsys, script.main, [*argv, "--held_out", "0.3"], "held_out 0.6, not 0.3")
    change(data / "spi_measurement/spi_001.json", pad(0, Volume=48.0))
    assert preprocessing.main(args(data)) == 0
    for script, argv in ((testing, measured(data)), (scoring, scored)):
        refused(capsys, script.main, argv, "other boards")


def test_drawn_models_of_other_boards_are_used_saying_so(trained, capsys, no_pictures):
    folder = trained / "result/ConvConjLSTM"
    assert testing.main(args(trained, "--cpu")) == 0
    assert json.loads((folder / "results.json").read_text())["trained_on_these_boards"] is True
    change(trained / "spi_measurement/spi_001.json", pad(0, Volume=48.0))
    assert preprocessing.main(args(trained)) == 0
    capsys.readouterr()
    assert testing.main(args(trained, "--cpu")) == 0
    assert "was trained on other boards" in capsys.readouterr().out
    assert json.loads((folder / "results.json").read_text())["trained_on_these_boards"] is False


def test_another_test_set_leaves_the_usual_results(trained, capsys, no_pictures):
    folder = trained / "result/ConvConjLSTM"
    assert testing.main(args(trained, "--cpu")) == 0
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert testing.main(args(trained, "--cpu", "--test_set", "measured")) == 0
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before
    assert json.loads((folder / "test_set_measured/results.json").read_text())["test_set"] == "measured"
    shutil.rmtree(folder / "test_set_measured")
    (folder / "test_set_measured").write_text("")
    refused(capsys, testing.main, args(trained, "--cpu", "--test_set", "measured"), "cannot write in", "measured")


def test_compare_tests_longer_trainings_again(data, capsys, monkeypatch, no_pictures):
    scripts, calls = {"1_train.py": training, "2_test_model.py": testing}, []

    def run_here(command, check):
        calls.append(Path(command[1]).name)
        return subprocess.CompletedProcess(command, scripts[calls[-1]].main(command[2:]))

    monkeypatch.setattr(subprocess, "run", run_here)
    argv = args(data, "--models", "ConvLSTM_a", "--protocols", "measured", "--seeds", "0", "--cpu", "--held_out", "0.6")
    argv += ["--n_layers", "1", "--precision", "bf16", *TRAINED[2:]]
    argv += ["--result", str(data / "other")]
    results = data / "other/seed0/ConvLSTM_a_measured/results.json"
    for epochs in (1, 2, 2):
        assert compare.main([*argv, "--num_epochs", str(epochs)]) == 0
        found = json.loads(results.read_text())
        assert found["epochs"] == epochs
        assert found["settings"].items() >= {"held_out": 0.6, "n_layers": 1, "precision": "bf16"}.items()
    assert calls == ["1_train.py", "2_test_model.py"] * 2 + ["1_train.py"]
    # As many epochs of another training, and the same model tested otherwise.
    capsys.readouterr()
    assert compare.main([*argv, "--num_epochs", "2", "--lr", "1e-2", "--resume", "no"]) == 0
    assert "is of another model" in capsys.readouterr().out and json.loads(results.read_text()) != found
    found = json.loads(results.read_text())
    assert found["model_sha256"] == digest(results.with_name("model_dictionary.pt"))
    change(results, lambda content: content["settings"].update(seed=1))
    (data / "other/compare.json").unlink()
    assert compare.main([*argv, "--num_epochs", "2", "--lr", "1e-2"]) == 0
    assert calls[5:] == ["1_train.py", "2_test_model.py"] * 2
    summed = json.loads((data / "other/compare.json").read_text())["ConvLSTM_a_measured"]
    assert summed["excessive"]["0.1"]["best_f1"]["mean"] == found["excessive"]["0.1"]["best_f1"]
    summed = (data / "other/compare.json").read_bytes()
    capsys.readouterr()
    with monkeypatch.context() as patch:
        patch.setitem(scripts, "1_train.py", SimpleNamespace(main=lambda argv: 130))
        assert compare.main(argv) == 130
    assert "the same command goes on" in capsys.readouterr().out
    assert (data / "other/compare.json").read_bytes() == summed  # of a comparison that was complete
    for more, words in (
        (["--models", "ConvLSTM", "ConvLSTM_attn"], "--models ConvLSTM_attn"),
        (["--models", "ConvLSTM_textbook_a"], "_a_textbook"),
        (["--mode", "ConvLSTM"], "--models says that"),
        (["--seed=1"], "--seeds says that"),
    ):
        refused(capsys, compare.main, [*argv, *more], words)
    assert len(calls) == 10


def test_an_interrupted_test_keeps_the_results_of_the_last_one(trained, capsys, monkeypatch, no_pictures):
    folder = trained / "result/ConvConjLSTM"
    monkeypatch.setattr(testing, "reconstruct", lambda model, images, *_: images * 0.5)
    (folder / "report.html").touch()
    assert testing.main(args(trained, "--cpu")) == 0
    assert "report.html is of an earlier test" in capsys.readouterr().out
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    calls = []

    def stopped(model, images, *_):
        calls.append(images)
        if len(calls) == 41:  # the boards of the last picture
            raise KeyboardInterrupt
        return images * 0

    monkeypatch.setattr(testing, "reconstruct", stopped)
    assert testing.main(args(trained, "--cpu")) == 130
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize("spoiled", ["weights", "weights at Ctrl-C", "test loss"])
def test_what_is_not_finite_is_never_saved(trained, capsys, monkeypatch, spoiled):
    path = trained / MODEL
    before = path.read_bytes()

    def spoil(parameters, limit):
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad[:] = math.nan

    if spoiled == "test loss":
        monkeypatch.setattr(training, "evaluate", lambda *_: math.nan)
    else:
        monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", spoil)
    if spoiled == "weights at Ctrl-C":
        monkeypatch.setattr(training, "stop_on_request", lambda: contextlib.nullcontext(lambda: True))
    argv = args(trained, "--cpu", *TRAINED, "--num_epochs", "3", "--num_instance", "4", "--batch_size", "4")
    refused(capsys, training.main, [*argv, "--result", str(trained / "new")], "nan at epoch 1, step 1", "--lr")
    assert not (trained / "new/ConvConjLSTM/model_dictionary.pt").exists()
    refused(capsys, training.main, args(trained, "--cpu", *TRAINED, "--num_epochs", "3"), "nan at epoch 3", "--lr")
    assert path.read_bytes() == before


def test_of_a_stopped_training_is_told_apart(trained, capsys, monkeypatch, no_pictures):
    with monkeypatch.context() as patch:
        patch.setattr(training, "stop_on_request", lambda: contextlib.nullcontext(lambda: True))
        assert training.main(args(trained, "--cpu", *TRAINED, "--num_epochs", "3")) == 130
    assert testing.main(args(trained, "--cpu")) == 0
    assert "stopped after 2 of 3 epochs and 1 step\n" in capsys.readouterr().out
    results = json.loads((trained / MODEL).with_name("results.json").read_text())
    assert results["epochs"] == 2 and "trained for 2 of 3 epochs" in report._about(results)[1]


def test_anew_in_the_place_of_another(trained, capsys):
    argv = args(trained, "--cpu", *TRAINED, "--num_epochs", "1", "--lr", "1e-2")
    refused(capsys, training.main, argv, "lr 0.001, not 0.01")
    assert training.main([*argv, "--resume", "no"]) == 0
    stored = content_of(trained / MODEL)
    assert stored["epoch"] == 0 and len(stored["train_loss"]) == 1 and stored["settings"]["lr"] == 1e-2


def content_of(path: Path) -> dict:
    return torch.load(path, weights_only=True)


def together(trained, script, *more):
    """What the script says that two processes run."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", str(ROOT / "crrn" / script)]
    done = subprocess.run([*command, *args(trained, "--cpu", *more)], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_two_processes_train(trained):
    """They leave one checkpoint, which one process continues."""
    output = together(trained, "1_train.py", *TRAINED, "--num_epochs", "3")
    assert output.count("epoch 3/3: loss") == 1 and "continuing" in output
    assert content_of(trained / MODEL)["epoch"] == 2
    assert training.main(args(trained, "--cpu", *TRAINED, "--num_epochs", "4")) == 0
    assert content_of(trained / MODEL)["epoch"] == 3 and len(content_of(trained / MODEL)["train_loss"]) == 4


@pytest.mark.slow
def test_two_processes_test(trained):
    """They count what one process counts."""
    assert testing.main(args(trained, "--cpu")) == 0
    alone = json.loads((trained / "result/ConvConjLSTM/results.json").read_text())
    assert together(trained, "2_test_model.py").count("results, curves") == 1
    found = json.loads((trained / "result/ConvConjLSTM/results.json").read_text())
    for kind in ("excessive", "insufficient"):
        for rate, one in alone[kind].items():
            for key in ("best_f1", "average_precision"):
                assert found[kind][rate][key] == pytest.approx(one[key], abs=1e-3)


@pytest.mark.slow
def test_two_processes_score(trained, tmp_path):
    """They judge as one process does, and go on together."""
    new = write_boards(tmp_path / "new", boards=7, seed=1)
    where = ["--boards", str(new), "--output"]
    assert scoring.main(args(trained, "--cpu", *where, str(tmp_path / "alone"))) == 0
    together(trained, "3_score_boards.py", *where, str(tmp_path / "both"))
    journal = tmp_path / "both/progress.jsonl"
    journal.write_bytes(b"".join(journal.read_bytes().splitlines(keepends=True)[:2]))
    output = together(trained, "3_score_boards.py", *where, str(tmp_path / "both"))
    assert output.count("continuing after 1 cycle of 3") == 1
    alone, both = (rows(tmp_path / name / "pads.csv") for name in ("alone", "both"))
    assert [row["verdict"] for row in both] == [row["verdict"] for row in alone]
    for ours, theirs in zip(both, alone):
        assert float(ours["error"]) == pytest.approx(float(theirs["error"]), abs=1e-4)


DAMAGES = {
    "settings": [{}, [], None],
    "height": [None, "13"],
    "state_dict": [[], {1: torch.zeros(1)}, {}],
    "epoch": ["3", math.nan, -5, True],
    "test_loss": [None, ["a", "b"], [1.0], [math.nan, 1.0]],
    "train_loss": [None, [1.0], 3],
    "data": [None],
    "fingerprint": [7],
    "scaler": [None, {"scale": math.nan}],
    "loss_sum": ["x", math.inf],
    "step": [-1, 1.0, "1"],
}


def test_several_gpus_get_a_process_each(data, monkeypatch, capsys):
    started = []

    def exec_(program, command):
        started.append(command)
        raise KeyboardInterrupt  # a real one does not come back

    monkeypatch.setattr(training.os, "execv", exec_)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    asked = args(data, "--gpu_ids", "1", "2", "7", "2")
    assert training.main(asked) == 130
    (command,) = started
    assert "--nproc_per_node=2" in command and command[-len(asked) :] == list(map(str, asked))
    assert training.main(args(data, *TRAINED, "--cpu")) == 0 and len(started) == 1
    for script in (training, testing, compare):
        refused(capsys, script.main, args(data, "--gpu_ids", "0", "--cpu"), "--cpu", "not allowed with", "--gpu_ids")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    for local, device in enumerate(("cuda:1", "cuda:2")):
        monkeypatch.setenv("LOCAL_RANK", str(local))
        assert str(device_of([1, 2, 7, 2], cpu=False)) == device
    assert str(device_of([1, 7, 8], cpu=False)) == "cuda:1"  # too few: any


def test_the_highest_seed(data):
    assert training.main(args(data, "--cpu", *TRAINED[2:], "--num_epochs", "1", "--seed", str(2**32 - 1))) == 0


def test_damaged_checkpoints(trained, capsys):
    path = trained / MODEL
    sound = content_of(path)
    again = args(trained, "--cpu", *TRAINED, "--num_epochs", "3")
    for name, values in DAMAGES.items():
        for value in values:
            torch.save({**sound, name: value}, path)
            if value != {"scale": math.nan}:  # which a test does not use
                refused(capsys, testing.main, args(trained, "--cpu"), path)
            refused(capsys, training.main, again, path)
        torch.save({key: value for key, value in sound.items() if key != name}, path)
        refused(capsys, testing.main, args(trained, "--cpu"), path, name)

    # What only the training needs.
    torch.save({**sound, "step": 10**6}, path)
    refused(capsys, training.main, again, path, "is damaged")
    for key, value in (
        ("exp_avg", torch.zeros(3)), ("exp_avg", None), ("exp_avg_sq", torch.tensor(math.nan)), ("step", "x"),
        ("step", torch.tensor(-1.0)), ("step", torch.tensor(math.nan)), ("more", 3),
    ):  # fmt: skip
        content = content_of_copy(sound)
        entry = content["optimizer"]["state"][0]
        if isinstance(value, torch.Tensor) and value.dim() == 0 and key != "step":
            value = entry[key].clone().fill_(value)
        entry[key] = value
        torch.save(content, path)
        refused(capsys, training.main, again, path, "optimizer does not fit")
    for optimizer in ({}, {"state": {}, "param_groups": []}, {"state": [], "param_groups": [{"params": [0]}]}):
        torch.save({**sound, "optimizer": optimizer}, path)
        refused(capsys, training.main, again, path, "optimizer does not fit")
    path.unlink()
    path.mkdir()
    refused(capsys, testing.main, args(trained, "--cpu"), path, "is a folder")
    refused(capsys, training.main, again, path, "is a folder")


def content_of_copy(content: dict) -> dict:
    """A copy whose optimizer's entries can be changed."""
    state = {number: dict(entry) for number, entry in content["optimizer"]["state"].items()}
    return {**content, "optimizer": {**content["optimizer"], "state": state}}


@pytest.mark.filterwarnings("ignore:Validating sparse tensor")
def test_damaged_preprocessed_files(trained, capsys):
    argv = args(trained, "--cpu")
    hint = f"0_preprocessing.py --data {trained} --cycle {CYCLE} makes it anew"
    info, tests = (torch.load(trained / name, weights_only=True) for name in ("pcb_info.pt", "test_pcbs.pt"))
    nan = math.nan
    damages = {
        "mean": [None, torch.tensor(0.0), [nan] * 3, ["0"] * 3, [0.0, 0.0]], "std": [None, [-1.0] * 3],
        "height": ["13", 13.0, 14, 10**9], "width": [None],
        "pcb_mean": [None, torch.zeros(2, 2), torch.full((PADS,), nan)],
        "pcb_std": [torch.ones(2)],
    }  # fmt: skip
    for name, values in damages.items():
        for value in values:
            checkpoint.write(trained / "pcb_info.pt", {**info, name: value})
            refused(capsys, testing.main, argv, "pcb_info.pt is damaged", hint)
    checkpoint.write(trained / "pcb_info.pt", [1])
    refused(capsys, testing.main, argv, "pcb_info.pt is damaged", hint)
    checkpoint.write(trained / "pcb_info.pt", info)

    first = tests.clone()
    first[0, 0, 0, 0, 0] = nan
    for wrong in (first, tests.double(), tests.int(), tests * 0, [1]):
        torch.save(wrong, trained / "test_pcbs.pt")
        refused(capsys, testing.main, argv, "test_pcbs.pt", hint)
    torch.save(tests.to_sparse(), trained / "test_pcbs.pt")
    refused(capsys, testing.main, argv, "test_pcbs.pt is refused")
    torch.save(tests, trained / "test_pcbs.pt")

    table = trained / "df_info.csv"
    lines = table.read_text().splitlines()
    for row, column, value in ((1, 2, "-1"), (1, 1, "1"), (1, 1, "1e300"), (9, 1, "5"), (9, 0, "2"), (9, 7, "2")):
        cells = lines[row].split(",")
        cells[column] = value
        table.write_text("\n".join([*lines[:row], ",".join(cells), *lines[row + 1 :]]))
        refused(capsys, testing.main, argv, "df_info.csv", hint)
    table.write_text("\n".join([lines[0], *reversed(lines[1:])]))
    refused(capsys, testing.main, argv, "df_info.csv is damaged", hint)
    table.write_text("\n".join(lines))


def test_changed_boards_are_noticed(trained, capsys, no_pictures):
    folder = trained / "spi_measurement"
    (folder / "spi_notes.json").write_text("{}")  # no board
    (folder / "spi_009.json").write_bytes((folder / "spi_000.json").read_bytes())  # beyond the last whole cycle
    assert testing.main(args(trained, "--cpu")) == 0
    change(folder / "spi_004.json", pad(0, Volume=48.0))
    refused(capsys, testing.main, args(trained, "--cpu"), "boards have changed", f"--data {trained} --cycle 3 makes")
    assert preprocessing.main(args(trained)) == 0
    assert testing.main(args(trained, "--cpu")) == 0
    info = torch.load(trained / "pcb_info.pt", weights_only=True)
    del info["inputs"]  # as the authors' files
    torch.save(info, trained / "pcb_info.pt")
    assert load_prepared(trained).cycle == CYCLE
    (folder / "spi_0004.json").write_text("{}")
    refused(capsys, preprocessing.main, args(trained), "spi_0004.json and spi_004.json have the same number")


def test_test_sequences_enter_the_network_as_they_are(data, monkeypatch, no_pictures):
    """But for the anomalies: pads that lay elsewhere than on the first board stay there."""
    change(data / "spi_measurement/spi_004.json", lambda board: board["PADINFO"][0].update(PosX=0.2, PosY=12.9))
    assert training.main(args(data, "--cpu", *TRAINED)) == 0
    seen = []
    monkeypatch.setattr(testing, "reconstruct", lambda model, images, *_: seen.append(images) or images * 0)
    assert testing.main(args(data, "--cpu")) == 0
    prepared = load_prepared(data)
    off = ~prepared.mask
    assert prepared.test_pcbs[1, 1, 0, 12, 0] != 0 and off[12, 0]
    assert all(torch.equal(images[..., off], prepared.test_pcbs[: len(images)][..., off]) for images in seen)
    changed = (seen[0] != prepared.test_pcbs)[..., prepared.mask.nonzero()[:, 0], prepared.mask.nonzero()[:, 1]]
    assert 0 < changed.float().mean() < 0.3  # the anomalies, at a rate of 0.1


def test_outputs_are_their_own(trained, tmp_path, capsys, monkeypatch):
    demo = [write_boards(tmp_path / name, boards=5, seed=seed) for name, seed in (("a", 1), ("b", 2))]
    out = tmp_path / "out"
    argv = args(trained, "--cpu", "--fpr", "0.2", "--output", str(out))
    titles = []
    monkeypatch.setattr(scoring, "draw_boards", lambda path, *more, **_: (titles.append(more[3]), path.touch()))
    mark_synthetic(demo[0], "a test")
    assert scoring.main([*argv, "--boards", str(demo[0])]) == 0
    assert all(title.startswith("synthetic boards: signed error") for title in titles) and len(titles) == 2
    refused(capsys, scoring.main, [*argv, "--boards", str(demo[1])], "results of other boards")
    (demo[0] / "SYNTHETIC").unlink()
    for n in (3, 4):
        (demo[0] / f"spi_measurement/spi_{n:03d}.json").unlink()
    (out / "boards_own.png").touch()
    assert scoring.main([*argv, "--boards", str(demo[0])]) == 0
    assert sorted(path.name for path in out.glob("*.png")) == ["boards_000.png", "boards_own.png"]
    assert titles[-1].startswith("signed error")
    own = [*argv[:-2], "--boards", str(demo[1]), "--output"]
    refused(capsys, scoring.main, [*own, str(trained / "result/ConvConjLSTM")], "holds a model")
    refused(capsys, scoring.main, [*own, str(demo[1] / "spi_measurement/out")], "among the boards")
    (tmp_path / "file").touch()
    refused(capsys, scoring.main, [*own, str(tmp_path / "file")], "cannot write in")
    refused(capsys, training.main, args(trained, "--cpu", "--result", str(tmp_path / "file")), "cannot write in")


def test_constant_pads(data, capsys, no_pictures):
    for n in range(6):
        change(data / f"spi_measurement/spi_{n:03d}.json", pad(3, Volume=7.0))
    assert training.main(measured(data, *TRAINED)) == 0
    assert "constant in the training cycles, so normalised by 1 instead of its deviation: pad 4\n" in (
        capsys.readouterr().out
    )
    for n in range(6):
        change(data / f"spi_measurement/spi_{n:03d}.json", lambda b: [one.update(Volume=7.0) for one in b["PADINFO"]])
    assert preprocessing.main(args(data)) == 0
    again = measured(data, *TRAINED, "--result", str(data / "new"))
    refused(capsys, training.main, again, "no pad's volume changes in the training cycles")
    for n in range(6, 9):
        change(data / f"spi_measurement/spi_{n:03d}.json", lambda b: [one.update(Volume=7.0) for one in b["PADINFO"]])
    refused(capsys, preprocessing.main, args(data), "every pad has the same volume")


def test_teacher_ratios_clipping_and_weight_decay(trained, capsys, monkeypatch):
    def ratios(epochs: int) -> list[float]:
        options = Namespace(init_tr=0.25, final_tr=0.05, num_epochs=epochs)
        return [training.teacher_ratio(options, epoch) for epoch in range(epochs)]

    assert ratios(5) == pytest.approx([0.25, 0.2, 0.15, 0.1, 0.05]) and ratios(1) == [0.25]
    limits, clip = [], torch.nn.utils.clip_grad_norm_
    monkeypatch.setattr(
        torch.nn.utils, "clip_grad_norm_", lambda values, limit: (limits.append(limit), clip(values, limit))
    )
    capsys.readouterr()
    assert training.main(args(trained, "--cpu", *TRAINED, "--num_epochs", "3")) == 0
    assert "the teacher ratio followed --num_epochs 2 so far, from here on 3" in capsys.readouterr().out
    assert limits == [0.5, 0.5]
    (group,) = content_of(trained / MODEL)["optimizer"]["param_groups"]
    assert (group["lr"], group["weight_decay"], group["fused"]) == (1e-3, 1e-5, True)
