"""RIAD's scripts as a user runs them: tiny networks, real digits, every file they promise, bad input."""

import csv
import gzip
import http.client
import json
import math
import shutil
import signal
import struct
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from common import checkpoint
from common.demo_data import make_textures
from common.metrics import image_auroc
from riad import options, run, score
from riad.source import datamanager, procedure
from riad.source.agent import Agent
from tests.helpers import Report, refused, run_readme

ROOT = Path(__file__).resolve().parents[2]
TINY = ["--cpu", "--filters", "2", "4", "4", "4", "--mode_optim", "adam", "--lr", "1e-2"]
DIGITS = [*TINY, "--dataset", "digits", "--train_images", "20", "--eval_images", "40"]
PAPER = [
    "--cpu", "--algorithm", "paper", "--dataset", "mvtec", "--img_size", "32", "--filters", "4", "4", "4", "4", "4",
    "--lr", "1e-2", "--epochs", "2", "--smooth", "5", "--figures_every", "2",
]  # fmt: skip


@pytest.fixture(scope="session")
def bricks(tmp_path_factory):
    """Demo textures with masks: brick in MVTec's layout."""
    root = tmp_path_factory.mktemp("data")
    make_textures(root, size=64, n_train=10, n_good=4, n_defect=1)
    return root / "brick"


@pytest.fixture(scope="session")
def textures(bricks, tmp_path_factory):
    """A finished training of the paper's variant on them; not to be changed."""
    output = tmp_path_factory.mktemp("textures")
    assert run.main([*PAPER, "--data_path", str(bricks), "--output", str(output), "--report"]) == 0
    return output


@pytest.fixture(scope="session")
def digits(tmp_path_factory):
    """A finished training of the seed's variant on scikit-learn's digits; not to be changed."""
    output = tmp_path_factory.mktemp("digits")
    assert run.main([*DIGITS, "--epochs", "4", "--figures_every", "3", "--output", str(output), "--report"]) == 0
    return output


@pytest.mark.parametrize("kept", ["good", "hole", None])
def test_without_defective_test_images(bricks, tmp_path, capsys, kept):
    shutil.copytree(bricks, tmp_path / "plain", ignore=shutil.ignore_patterns("SYNTHETIC", "ground_truth"))
    for folder in (tmp_path / "plain/test").iterdir() if kept else [tmp_path / "plain/test"]:
        if folder.name != kept:
            shutil.rmtree(folder)
    shutil.copytree(bricks / "test/hole", tmp_path / "plain/validation/good")  # MVTec LOCO's further good images
    Image.new("RGB", (97, 64)).save(tmp_path / "plain/train/good/000.png")
    output = tmp_path / "out"
    assert run.main([*PAPER, "--data_path", str(tmp_path / "plain"), "--output", str(output), "--report"]) == 0
    said = capsys.readouterr().out
    assert (
        f"has {'only good' if kept == 'good' else 'only defective' if kept else 'no'} test images: there is no AUROC"
        in said
    )
    assert "no image AUROC" in said and "nan" not in said
    assert "of 97 x 64 pixels: RIAD takes squares" in said
    assert result_of(output)["auroc"] is None and result_of(output)["threshold"]["images"] == 2 + 1
    Report(output / "report.html")


def rows(path):
    with Path(path).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def result_of(output):
    return json.loads((output / "result.json").read_text())


def test_run_writes_everything(digits):
    result = result_of(digits)
    seeds = {
        "name_best": "model_2_best_auroc.pth", "select_norm": 1, "masking_mode": "disjoint_mask", "disjoint_n": 3,
        "nn": 2000, "dim_h": 28, "dim_w": 28, "dim_c": 1, "ksize": 3, "mode_optim": "adam", "learning_rate": 1e-2,
        "mode_lr": 0, "path_ckpt": "Checkpoint", "ngpu": 1, "device": "cpu", "filters": "[1, 2, 4, 4, 4]",
    }  # fmt: skip
    assert {name: result[name] for name in seeds} == seeds
    assert result["data"] == "scikit-learn's digits, 8 x 8, scaled up"
    assert result["images"] == {"train": 20, "validation": 40, "test": 299}
    names = {path.name for path in (digits / "Checkpoint").iterdir() if path.suffix == ".pth"}
    models = ["model_0_finepoch", "model_1_best_loss", "model_2_best_auroc"]
    assert names == {"base.pth", "resume.pth", *(f"{name}.pth" for name in models)}
    for name in models:
        table = rows(digits / f"results_te/test_{name}.csv")
        assert len(table) == 299 and all((row["label"] == "0") == (row["class"] == "1") for row in table)
        labels, scores = ([float(row[key]) for row in table] for key in ("label", "score"))
        entry = result["models"][f"{name}.pth"]
        assert entry["auroc"] == pytest.approx(image_auroc(labels, scores), abs=1e-9)
        assert entry["loss"] == pytest.approx(np.mean([s for s, label in zip(scores, labels) if not label]), rel=1e-5)
        assert [row["verdict"] == "defective" for row in table].count(True) > 0 or name != models[2]
        assert (digits / f"results_te/auroc_{name}.png").exists()
    assert result["auroc"] == result["models"][result["name_best"]]["auroc"]
    report = Report(digits / "report.html")
    assert len(report.captions) == 6 and f"{result['auroc']:.4g}" in report.texts

    history = rows(digits / "results_tr/history.csv")
    assert list(history[0]) == ["epoch", "time", "loss", "l2", "ssim", "msgms", "rate", "auroc"]
    assert [row["epoch"] for row in history] == ["1", "2", "3", "4"]
    assert float(history[-1]["loss"]) < float(history[0]["loss"])

    def last_best(key, best):
        values = [float(row[key]) for row in history]
        return len(values) - values[::-1].index(best(values))  # ties go to the later epoch

    epochs = [result["models"][f"{name}.pth"]["epoch"] for name in models]
    assert epochs == [4, last_best("l2", min), last_best("auroc", max)]
    pictures = {path.name for path in (digits / "results_tr").rglob("*.png")}
    drawn = {f"{kind}_{epoch:08d}.png" for kind in ("generation", "auroc") for epoch in (3, 4)}
    assert pictures == {"masks.png", "masked.png", "history.png"} | drawn


def test_ties_go_to_the_later_epoch():
    history = [{"l2": 1.0, "auroc": 0.5}, {"l2": 1.0, "auroc": 0.5}]
    assert procedure.best_now(history, "auroc") == [procedure.LOWEST_L2, procedure.BEST["auroc"]]
    assert procedure.best_now([*history, {"l2": 1.1, "auroc": 0.4}], "auroc") == []


def test_papers_variant_on_textures(bricks, textures):
    result = result_of(textures)
    assert result["data"] == "synthetic" and result["name_best"] == "model_2_best_val_loss.pth"
    report = Report(textures / "report.html")
    assert len(report.captions) == 6 and f"{result['aupro']:.4g}" in report.texts
    assert result["images"] == {"train": 8, "validation": 2, "test": 9} and result["dim_c"] == 3
    for name in ("auroc", "pixel_auroc", "aupro"):
        assert 0 <= result[name] <= 1
    assert result["threshold"]["images"] == 2 and result["threshold"]["promised_fpr"] == pytest.approx(1 / 3)
    limit = result["threshold"]["image"]
    for row in rows(textures / "results_te/test_model_2_best_val_loss.csv"):
        assert (bricks / row["image"]).is_file() and row["image"].split("/")[1] == row["class"]
        assert row["verdict"] == ("defective" if float(row["score"]) > limit else "good")
    history = rows(textures / "results_tr/history.csv")
    best = min(history, key=lambda row: float(row["val_loss"]))
    assert result["models"][result["name_best"]]["epoch"] == int(best["epoch"])


def test_score_folder(bricks, textures, tmp_path, capsys):
    folder, output = tmp_path / "mine", tmp_path / "out"
    shutil.copytree(bricks / "test", folder / "a b")
    (folder / "broken é?.png").write_text("no image")
    file = textures / "Checkpoint/model_2_best_val_loss.pth"
    argv = ["--images", str(folder), "--checkpoint", str(file), "--output", str(output), "--cpu", "--batch_score", "4"]
    argv += ["--maps", "full"]
    assert score.main(argv) == 1
    table = {row["path"]: row for row in rows(output / "scores.csv")}
    assert len(table) == 10 and "cannot" in table["broken é?.png"]["error"]
    limit = json.loads((output / "results.json").read_text())["threshold"]["image"]
    # The same scores as in the test, whatever lies beside an image.
    for known in rows(textures / "results_te/test_model_2_best_val_loss.csv"):
        name = known["image"].replace("test/", "a b/", 1)
        assert float(table[name]["score"]) == pytest.approx(float(known["score"]), rel=1e-4)
        assert table[name]["verdict"] == known["verdict"]
        anomaly_map = np.asarray(Image.open(output / "maps" / f"{name}.tiff"))
        mask = np.asarray(Image.open(output / "masks" / f"{name}.png"))
        assert anomaly_map.shape == (64, 64) and ((mask > 0) == (anomaly_map > limit)).all()
        assert Image.open(output / "overlays" / f"{name}.jpg").size == (64, 64)
    chosen = [str(folder / "a b/good/000.png"), str(folder / "a b/good/001.png")]
    assert score.main(["--images", *chosen, *argv[2:], "--output", str(tmp_path / "two"), "--threshold", "9"]) == 0
    two = rows(tmp_path / "two/scores.csv")
    assert [(row["path"], row["verdict"]) for row in two] == [("000.png", "good"), ("001.png", "good")]
    names = ("image.png", chosen[0]), ("riad/bottle/Checkpoint/model_2_best_val_loss.pth", str(file))
    found = run_readme("riad", *names)["found"]
    assert (found.score, found.verdict) == (float(two[0]["score"]), table["a b/good/000.png"]["verdict"])
    assert found.map.shape == (32, 32) and found.map.max() == np.float32(found.score)
    (folder / "broken é?.png").unlink()
    assert score.main([*argv, "--fpr", "0.9"]) == 0
    assert json.loads((output / "results.json").read_text())["threshold"]["promised_fpr"] == pytest.approx(2 / 3)
    refused(capsys, score.main, [*argv, "--output", folder / "out"], "--output")
    refused(capsys, score.main, [*argv, "--images", bricks], "other images")
    refused(capsys, score.main, ["--images", tmp_path / "none"], "none")


def test_tested_again_with_another_filter(bricks, textures, tmp_path):
    """score.py follows the last test: maps and threshold are of one filter."""
    output = tmp_path / "out"
    shutil.copytree(textures, output)
    argv = [*PAPER, "--data_path", str(bricks), "--output", str(output), "--figures_every", "0", "--batch_score", "3"]
    assert run.main([*argv, "--smooth", "9", "--fpr", "0.5"]) == 0
    name = "model_2_best_val_loss"
    stored = procedure.load(output / f"Checkpoint/{name}.pth")
    assert (stored["settings"]["smooth"], stored["settings"]["fpr"]) == (9, 0.5)
    tested, before = (
        {row["image"]: float(row["score"]) for row in rows(folder / f"results_te/test_{name}.csv")}
        for folder in (output, textures)
    )
    agent = score.load(output / f"Checkpoint/{name}.pth", torch.device("cpu")).agent
    image = next(iter(tested))
    batch = datamanager.to_tensor(Image.open(bricks / image).convert("RGB"), 32)[None]
    assert agent.score(batch)[1].max().item() == pytest.approx(tested[image], rel=1e-4)
    assert tested[image] != pytest.approx(before[image], rel=1e-3)


def test_validation_loss_does_not_depend_on_the_batch():
    """Neither the memory that is there nor an interruption may change what chooses the epoch."""
    agent = Agent(options.parse([*PAPER, "--data", ".", "--list_k", "2", "16"]), 3, torch.device("cpu"))
    images = torch.randint(256, (11, 3, 32, 32), dtype=torch.uint8)

    def loss(images, batch_score=8):
        part = datamanager._good(images, [""] * len(images), 0)
        return procedure.validate(agent, part, "val_loss", [1, 1, 1], batch_score)[0]

    of_all, of_first = loss(images), loss(images[:8])
    assert [loss(images, size) for size in (1, 3, 64)] == pytest.approx([of_all] * 3, rel=1e-5)
    agent.list_k = [16]  # of the second eight
    assert of_all == pytest.approx((8 * of_first + 3 * loss(images[8:])) / 11, rel=1e-5)


def test_digits_network_scores_pictures(digits, tmp_path):
    found = load_digits().images[:3]
    for number, image in enumerate(found):
        Image.fromarray((image * 15.9).astype(np.uint8)).resize((28, 28)).save(tmp_path / f"{number}.png")
    argv = ["--images", str(tmp_path), "--checkpoint", str(digits / "Checkpoint/model_2_best_auroc.pth"), "--cpu"]
    output = tmp_path.parent / "scored"
    assert score.main([*argv, "--output", str(output)]) == 0
    assert all(row["verdict"] for row in rows(output / "scores.csv"))
    # Before run.py has tested a network, there is no threshold.
    argv[3] = str(digits / "Checkpoint/base.pth")
    assert score.main([*argv, "--output", str(tmp_path.parent / "base")]) == 0
    assert {row["verdict"] for row in rows(tmp_path.parent / "base/scores.csv")} == {""}


def write_mnist(root: Path) -> None:
    """scikit-learn's digits in MNIST's files."""
    found = load_digits()
    images = np.kron(found.images[:, None], np.ones((1, 1, 3, 3)))[:, 0] * 15
    images = np.pad(images, ((0, 0), (2, 2), (2, 2))).astype(np.uint8)
    folder = root / "MNIST/raw"
    folder.mkdir(parents=True)
    for name, part in (("train", slice(0, 100)), ("t10k", slice(100, 200))):
        header = struct.pack(">IIII", 2051, 100, 28, 28)
        (folder / f"{name}-images-idx3-ubyte").write_bytes(header + images[part].tobytes())
        labels = found.target[part].astype(np.uint8).tobytes()
        (folder / f"{name}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 2049, 100) + labels)


def test_mnist_from_its_files(tmp_path, capsys):
    write_mnist(tmp_path / "data")
    argv = [*TINY, "--data_path", str(tmp_path / "data"), "--epochs", "1", "--figures_every", "0"]
    assert run.main([*argv, "--output", str(tmp_path / "out"), "--nn", "1000", "--select_norm", "3"]) == 0
    result = result_of(tmp_path / "out")
    target = load_digits().target
    assert result["data"] == "MNIST" and result["nn"] == 1000
    assert result["images"] == {"train": int((target[:100] == 3).sum()), "validation": 50, "test": 50}
    test = rows(tmp_path / "out/results_te/test_model_0_finepoch.csv")
    assert [row["class"] for row in test] == [str(digit) for digit in target[100:150]]  # the first half
    assert not list((tmp_path / "out/results_tr").rglob("gen/*.png"))

    label = tmp_path / "data/MNIST/raw/t10k-labels-idx1-ubyte"
    for content in (b"", b"hello", label.read_bytes()[:-10], gzip.compress(b"x")):
        label.write_bytes(content)
        refused(capsys, run.main, [*argv, "--output", tmp_path / "no"], "MNIST")  # damaged files are never replaced
    label.unlink()
    refused(capsys, run.main, [*argv, "--output", tmp_path / "no"], "MNIST")
    assert not (tmp_path / "no").exists()


def test_without_mnist_digits_stand_in(tmp_path, monkeypatch, capsys):
    def offline(*_, **__):
        raise RuntimeError("no mirror:\nno network")  # as torchvision puts it

    monkeypatch.setattr(datamanager, "MNIST", offline)
    argv = [*TINY, "--data_path", str(tmp_path / "data"), "--output", str(tmp_path / "out"), "--epochs", "1"]
    refused(capsys, run.main, [*argv, "--dataset", "mnist"], "no network", "--dataset digits", "MNIST/raw")
    assert not (tmp_path / "out").exists() and not list((tmp_path / "data").iterdir())
    assert run.main([*argv, "--train_images", "16", "--eval_images", "40", "--figures_every", "0"]) == 0
    assert "no mirror: no network" in (said := capsys.readouterr().out) and "stand in" in said
    assert "stand-in" in result_of(tmp_path / "out")["data"]


@pytest.mark.parametrize("kind", [RuntimeError, http.client.BadStatusLine, ConnectionResetError])
def test_download_is_whole_or_not_there(kind, tmp_path, monkeypatch):
    def download(root, train=True, download=False):
        write_mnist(Path(root))
        raise kind("connection lost")

    settings = options.parse(["--data_path", str(tmp_path), "--dataset", "mnist"])
    monkeypatch.setattr(datamanager, "MNIST", download)
    with pytest.raises(datamanager.UserError, match="connection lost"):
        datamanager.load(settings)
    assert not list(tmp_path.iterdir())


def test_bad_data(bricks, tmp_path, capsys):
    argv = [*PAPER, "--output", tmp_path / "out", "--data_path"]
    refused(capsys, run.main, argv[:-1], "--data_path")
    refused(capsys, run.main, [*argv, tmp_path / "nowhere"], "nowhere")
    data = tmp_path / "data"
    shutil.copytree(bricks, data)
    (data / "SYNTHETIC").unlink()
    whole = next((data / "train/good").iterdir())
    content = whole.read_bytes()
    for damaged in (content[: len(content) // 2], b"", b"hello"):
        whole.write_bytes(damaged)
        refused(capsys, run.main, [*argv, data], whole.name)
    whole.write_bytes(content)
    mask = next((data / "ground_truth").rglob("*.png"))
    Image.new("L", (9, 9)).save(mask)
    refused(capsys, run.main, [*argv, data], mask)
    mask.unlink()
    (data / "test/empty").mkdir()
    refused(capsys, run.main, [*argv, data], "empty")
    (data / "test/good").rename(data / "test/ok")
    refused(capsys, run.main, [*argv, data], "test/ok", "rename")
    shutil.rmtree(data / "test/ok")
    for path in list((data / "train/good").iterdir())[1:]:
        path.unlink()
    shutil.copytree(bricks / "test/good", data / "test/good")
    (data / "test/empty").rmdir()
    refused(capsys, run.main, [*argv, data], "1 good image")
    refused(capsys, run.main, [*argv, data / "train/good"], "train")
    refused(capsys, run.main, [*argv, data, "--select_norm", "3"], "--select_norm 3")
    forgotten = ["--cpu", "--data_path", bricks, "--output", tmp_path / "out"]  # and MNIST downloaded into it
    refused(capsys, run.main, forgotten, "--dataset mvtec")
    assert not (tmp_path / "out").exists()


def test_results_of_another_run_stay(digits, tmp_path, capsys):
    output = tmp_path / "copy"
    shutil.copytree(digits, output)
    before = {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}
    same = [*DIGITS, "--output", output, "--epochs", "4"]
    for more in (["--lr", "1e-3"], ["--seed", "1"], ["--list_k", "4"], ["--select_norm", "2"], ["--precision", "bf16"]):
        refused(capsys, run.main, [*same, *more], more[0][2:], "--resume no")
    refused(capsys, run.main, [*same, "--epochs", "3"], "more than the 3 asked for")
    (output / "Checkpoint/resume.pth").rename(tmp_path / "resume.pth")
    refused(capsys, run.main, same, "--output", "--resume no")
    (tmp_path / "resume.pth").rename(output / "Checkpoint/resume.pth")
    assert all(path.read_bytes() == content for path, content in before.items())
    content = (output / "Checkpoint/resume.pth").read_bytes()
    for damaged in (b"", b"hello", content[: len(content) // 2]):
        (output / "Checkpoint/resume.pth").write_bytes(damaged)
        refused(capsys, run.main, same, "resume.pth")
    stored = torch.load(digits / "Checkpoint/resume.pth", weights_only=True)
    damage = [(name, None) for name in ("optimizer", "settings")]
    damage += [("history", [{}]), ("history", stored["history"][:1]), ("channels", True)]
    for name, value in [*damage, ("step", 10**6), ("seconds", float("nan"))]:
        torch.save({**stored, name: value}, output / "Checkpoint/resume.pth")
        refused(capsys, run.main, same, "resume.pth", name)
    # An optimizer's moments that do not fit, or are not numbers, are not trained with.
    stored["optimizer"][0]["state"][0]["exp_avg"].fill_(float("nan"))
    torch.save(stored, output / "Checkpoint/resume.pth")
    refused(capsys, run.main, [*same, "--epochs", "5"], "optimizer")
    file = output / "Checkpoint/model_2_best_auroc.pth"
    stored = torch.load(file, weights_only=True)
    for name, value in (
        ("img_size", None),
        ("precision", "int8"),
        ("list_k", [4.5]),
        ("nn", 5),
        ("algorithm", "--cpu"),
    ):
        torch.save({**stored, "settings": {**stored["settings"], name: value}}, output / "bad.pth")
        refused(capsys, score.main, ["--images", digits, "--checkpoint", output / "bad.pth", "--cpu"], "bad.pth", name)
    for name, value in (("calibration", []), ("calibration", [float("nan")]), ("model", {})):
        torch.save({**stored, name: value}, output / "bad.pth")
        refused(capsys, score.main, ["--images", digits, "--checkpoint", output / "bad.pth", "--cpu"], "bad.pth")
    checkpoint.save(file, "csflow", model={})
    refused(capsys, score.main, ["--images", digits, "--checkpoint", file, "--cpu"], "csflow")


def test_more_epochs_continue(digits, tmp_path, capsys):
    """Two epochs and two more are four; a finished training is only tested again."""
    argv = [*DIGITS, "--output", str(tmp_path), "--figures_every", "0"]
    assert run.main([*argv, "--epochs", "2"]) == 0
    assert run.main([*argv, "--epochs", "4"]) == 0
    assert "resuming" in capsys.readouterr().out
    assert_same_training(tmp_path, digits)
    assert run.main([*argv, "--epochs", "4"]) == 0
    assert "already" in capsys.readouterr().out
    assert result_of(tmp_path)["auroc"] == result_of(digits)["auroc"]


def assert_same_training(one: Path, other: Path) -> None:
    """Bit-identical weights, optimizer and logs, but for times."""
    for name in ("model_0_finepoch", "model_1_best_loss", "model_2_best_auroc", "resume"):
        a, b = (torch.load(folder / f"Checkpoint/{name}.pth", weights_only=True) for folder in (one, other))
        assert a["epoch"] == b["epoch"]
        assert all(torch.equal(a["model"][key], b["model"][key]) for key in b["model"])
        states = [content.get("optimizer", [{"state": {}}])[0]["state"] for content in (a, b)]
        for number, entry in states[1].items():
            assert all(torch.equal(states[0][number][key], value) for key, value in entry.items())
    histories = [[{**row, "time": ""} for row in rows(folder / "results_tr/history.csv")] for folder in (one, other)]
    assert histories[0] == histories[1]
    scores = [(folder / "results_te/test_model_2_best_auroc.csv").read_text() for folder in (one, other)]
    assert scores[0] == scores[1]


def test_stopped_training_ends_with_the_same_numbers(digits, tmp_path, monkeypatch, capsys):
    """Ctrl-C in the middle of an epoch and in its last batch, each followed by the same command."""
    argv = [*DIGITS, "--epochs", "4", "--output", str(tmp_path / "out"), "--save_every", "0", "--figures_every", "0"]
    passes = Agent.training_passes
    logged = {}  # {scalar's name: epochs}, of what TensorBoard was given before each flush

    class Writer:
        def __init__(self, folder, purge_step):
            assert folder == str(tmp_path / "out/Checkpoint")
            self.new = []

        def add_scalar(self, name, value, epoch):
            assert math.isfinite(value)
            self.new.append((name, epoch))

        def flush(self):
            for name, epoch in self.new:
                logged.setdefault(name, []).append(epoch)
            self.new = []

        def close(self):
            self.flush()

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", SimpleNamespace(SummaryWriter=Writer))
    for stop_at in ((2, 0), (3, 1)):  # of two batches

        def pass_and_stop(self, images, rows, epoch, stop_at=stop_at):
            if (epoch, int(len(rows) < 16)) == stop_at:
                signal.raise_signal(signal.SIGINT)
            return passes(self, images, rows, epoch)

        monkeypatch.setattr(Agent, "training_passes", pass_and_stop)
        assert run.main(argv) == 130
        text = capsys.readouterr().out
        assert ("resuming" in text) == (stop_at[0] == 3) and "resume.pth; run the same command to resume" in text
    assert logged["loss"] == logged["auroc"] == [1, 2, 3, 4]  # each once
    monkeypatch.undo()
    assert run.main(argv) == 0
    assert_same_training(tmp_path / "out", digits)


def test_ngpu_is_answered_with_torchrun_unless_it_is_in_use(monkeypatch, capsys):
    with pytest.raises(run.UserError, match="--cpu and --gpu 0 contradict"):
        run.device_of("auto", "0", 1, cpu=True)
    assert run.device_of("auto", None, 2, cpu=True).type == run.device_of("cpu", None, 1, cpu=False).type == "cpu"
    assert "torchrun --nproc_per_node=2" in capsys.readouterr().out
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    assert run.device_of("auto", None, 2, cpu=True).type == "cpu" and capsys.readouterr().out == ""


@pytest.mark.slow  # tests/test_distributed_gradients.py has its gradients in the default run
def test_two_processes_do_what_one_does(tmp_path, capsys):
    """Uneven shares; one process speaks; scores are those of one process, which can go on."""
    argv = [*DIGITS, "--batch", "7", "--epochs", "1", "--figures_every", "0", "--output", str(tmp_path)]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", str(ROOT / "riad/run.py"), *argv]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("epoch    1: loss") == 1 and ended.stdout.count("results: ") == 1
    table = tmp_path / "results_te/test_model_2_best_auroc.csv"
    together, auroc = rows(table), result_of(tmp_path)["auroc"]
    assert run.main(argv) == 0  # tests again
    assert "already" in capsys.readouterr().out
    assert [float(row["score"]) for row in together] == pytest.approx(
        [float(row["score"]) for row in rows(table)], rel=1e-4
    )
    assert result_of(tmp_path)["auroc"] == pytest.approx(auroc, abs=1e-3)
    assert run.main([*argv, "--epochs", "2"]) == 0


def test_networks_that_diverge_are_not_saved(bricks, tmp_path, monkeypatch, capsys):
    """After a fine loss, the last step may spoil the validation loss, or the weights."""
    argv = [*PAPER, "--data_path", bricks, "--batch", "16", "--output"]
    refused(
        capsys,
        run.main,
        [*argv, tmp_path / "one", "--mode_optim", "sgd", "--lr", "1e30"],
        "validation",
        "learning rate",
    )
    passes = Agent.training_passes

    def spoil(self, images, rows, epoch):
        yield from passes(self, images, rows, epoch)
        if epoch == 1:
            next(self.network.parameters()).data[0] = float("nan")

    monkeypatch.setattr(Agent, "training_passes", spoil)
    refused(capsys, run.main, [*argv, tmp_path / "two", "--save_every", "0"], "validation loss is nan", "epoch 2")
    for name, epoch in (("one", 0), ("two", 1)):
        stored = torch.load(tmp_path / name / "Checkpoint/resume.pth", weights_only=True)
        assert stored["epoch"] == epoch and all(value.isfinite().all() for value in stored["model"].values())
        assert (tmp_path / name / "Checkpoint/model_2_best_val_loss.pth").exists() == bool(epoch)


def test_non_finite_loss_keeps_what_is_saved(tmp_path, capsys):
    argv = [*DIGITS, "--output", str(tmp_path), "--figures_every", "0", "--mode_optim", "sgd", "--lr", "1e30"]
    refused(capsys, run.main, [*argv, "--epochs", "3"], "epoch", "learning rate")
    stored = torch.load(tmp_path / "Checkpoint/resume.pth", weights_only=True)
    assert all(value.isfinite().all() for value in stored["model"].values())


def test_folders_that_cannot_be_written(tmp_path, capsys):
    (tmp_path / "results_te").write_text("a file where a folder should be")
    refused(capsys, run.main, [*DIGITS, "--output", tmp_path], tmp_path / "results_te")
    assert not (tmp_path / "Checkpoint/resume.pth").exists()


def test_bfloat16_stays_close(tmp_path):
    argv = [*DIGITS, "--epochs", "1", "--figures_every", "0", "--lr", "1e-4", "--output"]
    for name in ("bf16", "fp32"):
        assert run.main([*argv, str(tmp_path / name), "--precision", name]) == 0
    ours, exact = (float(rows(tmp_path / f"{name}/results_tr/history.csv")[0]["loss"]) for name in ("bf16", "fp32"))
    assert ours == pytest.approx(exact, rel=0.02) and ours != exact
