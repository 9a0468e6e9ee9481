"""RIAD's scripts as a user runs them: tiny networks, real digits, every file they promise."""

import csv
import gzip
import http.client
import json
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

from common.demo_data import make_textures
from common.metrics import image_auroc
from riad import options, run, score
from riad.source import datamanager, procedure
from riad.source.agent import Agent
from tests.helpers import Report, refused, run_readme

ROOT = Path(__file__).resolve().parents[2]
TINY = ["--cpu", "--filters", "2", "4", "4", "4", "--mode_optim", "adam", "--lr", "1e-2", "--figures_every", "0"]
DIGITS = [*TINY, "--dataset", "digits", "--train_images", "20", "--eval_images", "40", "--list_k", "7"]
PAPER = ["--algorithm", "paper", "--dataset", "mvtec", "--img_size", "32", "--filters", "4", "4", "4", "4", "4"]
PAPER += ["--lr", "1e-2", "--epochs", "2", "--smooth", "5", "--figures_every", "0", "--device", "cpu"]
MODELS = ("model_0_finepoch", "model_1_best_loss", "model_2_best_auroc")
CHOSEN = "model_2_best_val_loss"


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
    assert run.main([*PAPER, "--data", str(bricks), "--output", str(output), "--report"]) == 0
    return output


@pytest.fixture(scope="session")
def digits(tmp_path_factory):
    """A finished training of the seed's variant on scikit-learn's digits; not to be changed."""
    output = tmp_path_factory.mktemp("digits")
    assert run.main([*DIGITS, "--epochs", "3", "--figures_every", "2", "--output", str(output), "--report"]) == 0
    return output


def rows(path):
    with Path(path).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def result_of(output, name="result.json"):
    return json.loads((output / name).read_text())


@pytest.mark.parametrize("kept", ["good", "hole", None])
def test_without_defective_or_good_test_images(bricks, tmp_path, capsys, kept):
    shutil.copytree(bricks, tmp_path / "plain", ignore=shutil.ignore_patterns("SYNTHETIC", "ground_truth"))
    for folder in (tmp_path / "plain/test").iterdir() if kept else [tmp_path / "plain/test"]:
        if folder.name != kept:
            shutil.rmtree(folder)
    shutil.copytree(bricks / "test/hole", tmp_path / "plain/validation/good")  # MVTec LOCO's further good images
    Image.new("RGB", (97, 64)).save(tmp_path / "plain/train/good/000.png")
    argv = [*PAPER, "--epochs", "1", "--data_path", str(tmp_path / "plain"), "--output", str(tmp_path), "--report"]
    assert run.main(argv) == 0
    said, words = capsys.readouterr().out, {"good": "only good", "hole": "only defective", None: "no"}
    assert f"has {words[kept]} test images: there is no AUROC" in said
    assert "no image AUROC" in said and "nan" not in said
    assert "of 97 x 64 pixels: RIAD takes squares" in said
    assert result_of(tmp_path)["auroc"] is None and result_of(tmp_path)["threshold"]["images"] == 2 + 1
    Report(tmp_path / "report.html")


def test_run_writes_everything(digits):
    result, common = result_of(digits), result_of(digits, "results.json")
    seeds = {
        "name_best": "model_2_best_auroc.pth", "select_norm": 1, "masking_mode": "disjoint_mask", "disjoint_n": 3,
        "nn": 2000, "dim_h": 28, "dim_w": 28, "dim_c": 1, "ksize": 3, "mode_optim": "adam", "learning_rate": 1e-2,
        "mode_lr": 0, "path_ckpt": "Checkpoint", "ngpu": 1, "device": "cpu", "filters": "[1, 2, 4, 4, 4]",
        "images": {"train": 20, "validation": 40, "test": 299}, "auroc": common["image_auroc"],
    }  # fmt: skip
    assert {name: result[name] for name in seeds} == seeds
    assert common["data"] == common["trained_on"] == "scikit-learn's digits, 8 x 8, scaled up"
    assert common["chosen_on"] == "highest AUROC on the validation half" and common["best_f1_chosen_on"] == "test set"
    names = {path.name for path in (digits / "Checkpoint").iterdir() if path.suffix == ".pth"}
    assert names == {"base.pth", "resume.pth", *(f"{name}.pth" for name in MODELS)}
    for name in MODELS:
        table = rows(digits / f"results_te/test_{name}.csv")
        assert len(table) == 299 and all((row["label"] == "0") == (row["class"] == "1") for row in table)
        labels, scores = ([float(row[key]) for row in table] for key in ("label", "score"))
        entry = result["models"][f"{name}.pth"]
        assert entry["auroc"] == pytest.approx(image_auroc(labels, scores), abs=1e-9)
        assert entry["loss"] == pytest.approx(np.mean([s for s, label in zip(scores, labels) if not label]), rel=1e-5)
        assert {row["verdict"] for row in table} <= {"good", "defective"}
        assert (digits / f"results_te/auroc_{name}.png").exists()
    report = Report(digits / "report.html")
    assert len(report.captions) == 6 and f"{result['auroc']:.4g}" in report.texts

    history = rows(digits / "results_tr/history.csv")
    assert (
        list(history[0])
        == list(result["history"][0])
        == ["epoch", "time", "loss", "l2", "ssim", "msgms", "rate", "auroc"]
    )
    assert [row["epoch"] for row in history] == ["1", "2", "3"]
    assert float(history[-1]["loss"]) < float(history[0]["loss"])

    def last_best(key, best):
        values = [float(row[key]) for row in history]
        return len(values) - values[::-1].index(best(values))  # ties go to the later epoch

    assert procedure.best_now([{"l2": 1.0, "auroc": 0.5}] * 2, "auroc") == [f"{name}.pth" for name in MODELS[1:]]
    epochs = [result["models"][f"{name}.pth"]["epoch"] for name in MODELS]
    assert epochs == [3, last_best("l2", min), last_best("auroc", max)]
    pictures = {path.name for path in (digits / "results_tr").rglob("*.png")}
    drawn = {f"{kind}_{epoch:08d}.png" for kind in ("generation", "auroc") for epoch in (2, 3)}
    assert pictures == {"masks.png", "masked.png", "history.png"} | drawn


def test_papers_variant_on_textures(bricks, textures):
    result = result_of(textures)
    assert result["data"] == "synthetic" and result["name_best"] == f"{CHOSEN}.pth"
    report = Report(textures / "report.html")
    assert len(report.captions) == 6 and f"{result['aupro']:.4g}" in report.texts
    assert result["images"] == {"train": 8, "validation": 2, "test": 9} and result["dim_c"] == 3
    assert all(0 <= result[name] <= 1 for name in ("auroc", "image_best_f1", "pixel_auroc", "aupro"))
    assert result["threshold"]["images"] == 2 and result["threshold"]["promised_fpr"] == pytest.approx(1 / 3)
    limit = result["threshold"]["image"]
    for row in rows(textures / f"results_te/test_{CHOSEN}.csv"):
        assert (bricks / row["path"]).is_file() and row["path"].split("/")[1] == row["class"]
        assert row["verdict"] == ("defective" if float(row["score"]) > limit else "good")
    best = min(rows(textures / "results_tr/history.csv"), key=lambda row: float(row["val_loss"]))
    assert result["models"][result["name_best"]]["epoch"] == int(best["epoch"])


def test_score_folder(bricks, textures, tmp_path, capsys):
    folder, output, file = tmp_path / "mine", tmp_path / "out", textures / f"Checkpoint/{CHOSEN}.pth"
    shutil.copytree(bricks / "test", folder / "a b")
    (folder / "broken é?.png").write_text("no image")
    argv = ["--images", str(folder), "--checkpoint", str(file), "--output", str(output), "--cpu", "--batch_score", "4"]
    assert score.main([*argv, "--maps", "full"]) == 1
    table = {row["path"]: row for row in rows(output / "scores.csv")}
    assert len(table) == 10 and "cannot" in table["broken é?.png"]["error"]
    limit = result_of(output, "results.json")["threshold"]["image"]
    # The same scores as in the test, whatever lies beside an image.
    for known in rows(textures / f"results_te/test_{CHOSEN}.csv"):
        name = known["path"].replace("test/", "a b/", 1)
        assert float(table[name]["score"]) == pytest.approx(float(known["score"]), rel=1e-4)
        assert table[name]["verdict"] == known["verdict"]
        anomaly_map = np.asarray(Image.open(output / "maps" / f"{name}.tiff"))
        mask = np.asarray(Image.open(output / "masks" / f"{name}.png"))
        assert anomaly_map.shape == (64, 64) and ((mask == 255) == (anomaly_map > limit)).all()
    good = "a b/good/000.png"
    paths = ("image.png", str(folder / good)), (f"riad/bottle/Checkpoint/{CHOSEN}.pth", str(file))
    found = run_readme("riad", *paths)["found"]
    assert (found.score, found.verdict) == (pytest.approx(float(table[good]["score"])), table[good]["verdict"])
    assert found.map.shape == (32, 32) and found.map.max() == np.float32(found.score)
    (folder / "broken é?.png").unlink()
    assert score.main([*argv, "--fpr", "0.9", "--maps", "full"]) == 0
    assert result_of(output, "results.json")["threshold"]["promised_fpr"] == pytest.approx(2 / 3)
    assert score.main([*argv, "--threshold", "9", "--precision", "bf16"]) == 0
    assert {row["verdict"] for row in rows(output / "scores.csv")} == {"good"}


def test_tested_again_with_another_filter(bricks, textures, tmp_path):
    """score.py follows the last test: maps and threshold are of one filter."""
    output = tmp_path / "out"
    shutil.copytree(textures, output)
    argv = [*PAPER, "--data_path", str(bricks), "--output", str(output), "--batch_score", "3"]
    assert run.main([*argv, "--smooth", "9", "--fpr", "0.5"]) == 0
    model = score.load(output / f"Checkpoint/{CHOSEN}.pth", torch.device("cpu"))
    assert (model.stored["settings"]["smooth"], model.threshold["fpr"]) == (9, 0.5)
    tested, before = (
        {row["path"]: float(row["score"]) for row in rows(folder / f"results_te/test_{CHOSEN}.csv")}
        for folder in (output, textures)
    )
    image = next(iter(tested))
    batch = datamanager.to_tensor(Image.open(bricks / image).convert("RGB"), 32)[None]
    assert model.agent.score(batch)[1].max().item() == pytest.approx(tested[image], rel=1e-4)
    assert tested[image] != pytest.approx(before[image], rel=1e-3)


def test_validation_loss_does_not_depend_on_the_batch():
    """Neither the memory that is there nor an interruption may change what chooses the epoch."""
    agent = Agent(options.parse([*PAPER, "--data", ".", "--list_k", "2", "16"]), 3, torch.device("cpu"))
    images = torch.randint(256, (11, 3, 32, 32), dtype=torch.uint8)

    def loss(images, batch_score=8):
        part = datamanager.Part(images, np.zeros(len(images)), np.zeros(len(images)), [])
        return procedure.validate(agent, part, "val_loss", [1, 1, 1], batch_score)[0]

    of_all, of_first = loss(images), loss(images[:8])
    assert [loss(images, size) for size in (1, 3, 64)] == pytest.approx([of_all] * 3, rel=1e-5)
    agent.list_k = [16]  # of the second eight
    assert of_all == pytest.approx((8 * of_first + 3 * loss(images[8:])) / 11, rel=1e-5)


def test_digits_network_scores_pictures(digits, tmp_path):
    for number, image in enumerate(load_digits().images[:3]):
        Image.fromarray((image * 15.9).astype(np.uint8)).resize((28, 28)).save(tmp_path / f"{number}.png")
    for name, verdicts in (("model_2_best_auroc", {"good", "defective"}), ("base", {""})):  # base: not tested by run.py
        output = tmp_path.parent / name
        argv = ["--images", tmp_path, "--checkpoint", digits / f"Checkpoint/{name}.pth", "--cpu", "--output", output]
        assert score.main(list(map(str, argv))) == 0
        assert {row["verdict"] for row in rows(output / "scores.csv")} <= verdicts


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
    argv = [*TINY, "--data_path", str(tmp_path / "data"), "--epochs", "1"]
    assert run.main([*argv, "--output", str(tmp_path / "out"), "--nn", "1000", "--select_norm", "3"]) == 0
    result, target = result_of(tmp_path / "out"), load_digits().target
    assert result["data"] == "MNIST" and result["nn"] == 1000
    assert result["images"] == {"train": int((target[:100] == 3).sum()), "validation": 50, "test": 50}
    test = rows(tmp_path / "out/results_te/test_model_0_finepoch.csv")
    assert [row["class"] for row in test] == [str(digit) for digit in target[100:150]]  # the first half
    assert not list((tmp_path / "out/results_tr").rglob("gen/*.png"))
    label = tmp_path / "data/MNIST/raw/t10k-labels-idx1-ubyte"
    label.write_bytes(gzip.compress(b"x"))
    refused(capsys, run.main, [*argv, "--output", tmp_path / "no"], "MNIST")  # damaged files are never replaced
    assert not (tmp_path / "no").exists()


def test_without_mnist_digits_stand_in(tmp_path, monkeypatch, capsys):
    def offline(*_, **__):
        raise RuntimeError("no mirror:\nno network")  # as torchvision puts it

    monkeypatch.setattr(datamanager, "MNIST", offline)
    argv = [*TINY, "--data_path", str(tmp_path / "data"), "--output", str(tmp_path / "out"), "--epochs", "1"]
    refused(capsys, run.main, [*argv, "--dataset", "mnist"], "no network", "--dataset digits", "MNIST/raw")
    assert not (tmp_path / "out").exists() and not list((tmp_path / "data").iterdir())
    assert run.main([*argv, "--train_images", "16", "--eval_images", "40"]) == 0
    assert "no mirror: no network" in (said := capsys.readouterr().out) and "stand in" in said
    assert "stand-in" in result_of(tmp_path / "out")["data"]


@pytest.mark.parametrize("kind", [RuntimeError, http.client.BadStatusLine, ConnectionResetError])
def test_download_is_whole_or_not_there(kind, tmp_path, monkeypatch):
    def download(root, train=True, download=False):
        write_mnist(Path(root))
        raise kind("connection lost")

    monkeypatch.setattr(datamanager, "MNIST", download)
    with pytest.raises(datamanager.UserError, match="connection lost"):
        datamanager.load(options.parse(["--data_path", str(tmp_path), "--dataset", "mnist"]))
    assert not list(tmp_path.iterdir())


def test_data_that_cannot_be_used(bricks, tmp_path, capsys):
    argv = [*PAPER, "--output", tmp_path / "out", "--data"]
    refused(capsys, run.main, argv[:-1], "needs --data")
    refused(capsys, run.main, [*argv, bricks / "train/good"], "train")
    forgotten = ["--cpu", "--data_path", bricks, "--output", tmp_path / "out"]  # and MNIST downloaded into it
    refused(capsys, run.main, forgotten, "--dataset mvtec")
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    (tmp_path / "out/results_te").write_text("a file where a folder should be")
    refused(capsys, run.main, [*DIGITS, "--output", tmp_path / "out"], tmp_path / "out/results_te")


def test_results_of_another_run_stay(digits, tmp_path, capsys):
    output = tmp_path / "copy"
    shutil.copytree(digits, output)
    same, state = [*DIGITS, "--output", output, "--epochs", "3"], output / "Checkpoint/resume.pth"
    for more in ("--lr 1e-3", "--seed 1", "--list_k 4 7", "--select_norm 2", "--precision bf16"):
        refused(capsys, run.main, [*same, *more.split()], more[2:].split()[0], "--resume no", keeps=output)
    refused(capsys, run.main, [*same, "--epochs", "2"], "more than the 2 asked for", keeps=output)
    state.unlink()
    refused(capsys, run.main, same, "--output", "--resume no", keeps=output)


def assert_same_training(one: Path, other: Path) -> None:
    """Bit-identical weights, optimizer and logs, but for times."""
    for name in (*MODELS, "resume"):
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


def test_stopped_and_longer_trainings_end_with_the_same_numbers(digits, tmp_path, monkeypatch, capsys):
    """Ctrl-C within an epoch and in its last batch, each followed by the same command, the last for more epochs."""
    argv = [*DIGITS, "--output", str(tmp_path / "out"), "--save_every", "0", "--epochs"]
    passes = Agent.training_passes
    logged = []  # by TensorBoard: (scalar's name, epoch)

    class Writer:
        def __init__(self, folder, purge_step):
            assert folder == str(tmp_path / "out/Checkpoint")

        def add_scalar(self, name, value, epoch):
            logged.append((name, epoch))

        def flush(self):
            pass

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", SimpleNamespace(SummaryWriter=Writer))
    for stop_at in ((0, 16), (1, 4)):  # epoch, images of one of its two batches

        def pass_and_stop(self, images, rows, epoch, stop_at=stop_at):
            if (epoch, len(rows)) == stop_at:
                signal.raise_signal(signal.SIGINT)
            return passes(self, images, rows, epoch)

        monkeypatch.setattr(Agent, "training_passes", pass_and_stop)
        assert run.main([*argv, "2"]) == 130
        text = capsys.readouterr().out
        assert ("resuming" in text) == (stop_at[0] == 1) and "resume.pth; run the same command to resume" in text
    monkeypatch.setattr(Agent, "training_passes", passes)
    for epochs, word in (("2", "already"), ("3", "resuming"), ("3", "already")):
        assert run.main([*argv, epochs]) == 0
        assert word in capsys.readouterr().out
    assert_same_training(tmp_path / "out", digits)
    assert [epoch for name, epoch in logged if name == "auroc"] == [1, 2, 3]  # each once


def test_ngpu_is_answered_with_torchrun_unless_it_is_in_use(monkeypatch, capsys):
    with pytest.raises(run.UserError, match="--cpu and --gpu 0 contradict"):
        run.device_of("auto", "0", 1, cpu=True)
    assert run.device_of("auto", None, 2, cpu=True).type == run.device_of("cpu", None, 1, cpu=False).type == "cpu"
    assert "torchrun --nproc_per_node=2" in capsys.readouterr().out
    run.device_of("auto", None, 1, cpu=False)
    assert "instead of" not in capsys.readouterr().out  # no GPU was asked for
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    assert run.device_of("auto", None, 2, cpu=True).type == "cpu" and capsys.readouterr().out == ""


@pytest.mark.slow  # tests/test_distributed_gradients.py has its gradients in the default run
def test_two_processes_do_what_one_does(tmp_path, capsys):
    """Uneven shares; one process speaks; scores are those of one process, which can go on."""
    argv = [*DIGITS, "--batch", "7", "--epochs", "1", "--output", str(tmp_path)]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", str(ROOT / "riad/run.py"), *argv]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("epoch    1: loss") == 1 and ended.stdout.count("results: ") == 1
    table = tmp_path / "results_te/test_model_2_best_auroc.csv"
    together, auroc = rows(table), result_of(tmp_path)["auroc"]
    assert run.main(argv) == 0  # tests again
    assert "already" in capsys.readouterr().out
    alone = [float(row["score"]) for row in rows(table)]
    assert [float(row["score"]) for row in together] == pytest.approx(alone, rel=1e-4)
    assert result_of(tmp_path)["auroc"] == pytest.approx(auroc, abs=1e-3)
    assert run.main([*argv, "--epochs", "2"]) == 0


def test_networks_that_are_not_finite_but_score_are_not_saved(bricks, tmp_path, monkeypatch, capsys):
    """The outputs are clamped: an infinite bias gives finite scores."""
    passes = Agent.training_passes

    def spoil(self, images, rows, epoch):
        yield from passes(self, images, rows, epoch)
        [*self.network.parameters()][-1].data[0] = float("inf")

    monkeypatch.setattr(Agent, "training_passes", spoil)
    argv = [*PAPER, "--data_path", bricks, "--batch", "16", "--output", tmp_path]
    refused(capsys, run.main, argv, "parameters are not finite", "epoch 1, step")
    assert not (tmp_path / f"Checkpoint/{CHOSEN}.pth").exists()


def test_networks_that_diverge_are_not_saved(bricks, tmp_path, monkeypatch, capsys):
    """After a finite loss, the last step of an epoch may spoil the parameters."""
    passes = Agent.training_passes

    def spoil(self, images, rows, epoch):
        yield from passes(self, images, rows, epoch)
        if epoch == 1:
            next(self.network.parameters()).data[0] = float("nan")

    monkeypatch.setattr(Agent, "training_passes", spoil)
    argv = [*PAPER, "--data_path", bricks, "--batch", "16", "--save_every", "0", "--output", tmp_path]
    refused(capsys, run.main, argv, "validation loss is nan", "epoch 2, step 1", "(--lr)")
    for name in ("resume", CHOSEN):
        stored = torch.load(tmp_path / f"Checkpoint/{name}.pth", weights_only=True)
        assert stored["epoch"] == 1 and all(value.isfinite().all() for value in stored["model"].values())
