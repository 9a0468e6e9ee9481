"""CRN's programs as a user runs them: the seed's commands at small sizes, every file they promise, bad input."""

import csv
import json
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import crn.inference
from common.files import locked
from common.metrics import image_auroc
from crn import score, train
from crn.options import UNUSED, build_parser, model_name, parse
from crn.training.crn import CompetitiveReconstructionNetwork
from crn.training.dataset import Images, load_dataset
from crn.training.utils import make_model
from tests.crn.conftest import FOLDERS, inference, training
from tests.crn.test_crn_parity import make_step
from tests.helpers import Report, refused, run_readme

ROOT = Path(__file__).resolve().parents[2]


def rows(path):
    with Path(path).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def load(path):
    return torch.load(path, weights_only=True)


def same_parameters(one, other):
    one, other = load(one)["model"], load(other)["model"]
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("kind", FOLDERS)
def test_train_and_inference(place, after_training, kind, capsys):
    """The seed's commands: files where it says, numbers that fit each other."""
    after_training(kind, "--num-workers", "4", "--log-level", "debug")
    table = rows("lm/version_0/metrics.csv")
    steps = {"RoadImages": 4, "Panorama": 4, "MVTec": 5}[kind]
    assert [(int(row["epoch"]), int(row["batch"])) for row in table][-2:] == [(2, 2 * steps), (11 // steps, 11)]
    aurocs = [float(row["metrics/score"]) for row in table]
    assert [float(row["metrics/max_roc_auc"]) for row in table] == list(np.maximum.accumulate(aurocs))
    assert all(float(row["generator"]) > 0 and float(row["metrics/traintime"]) > 0 for row in table)
    assert sum(name.startswith("unit_losses/loss_") for name in table[0]) == 3
    result = json.loads(Path("lm/version_0/results.json").read_text())
    assert result["data"] == "synthetic" and result["best_chosen_on"] == "test set"
    assert (result["last_auroc"], result["best_auroc"]) == (aurocs[-1], max(aurocs))
    pictures = sorted(path.name for path in Path("oi").iterdir())
    assert f"version_0_epoch_{9 // steps:04d}_batch_000010.png" in pictures
    assert "version_0_epoch_0000_end.png" in pictures
    assert Image.open("oi/version_0_epoch_0001_end.png").size[1] == 3 * 32  # three rows
    assert "batch 10" in Path("l.log").read_text()
    last, best = load("ck/last.ckpt"), load("ck/best.ckpt")
    assert last["settings"]["imsize"] == 32 and last["levels"] == 5 and best["chosen_on"] == "test set"
    assert all(name.startswith("competitive_units.") for name in last["model"])
    assert best["batch"] in {int(row["batch"]) for row in table}

    Path("oi/diff").mkdir()
    Path("oi/diff/mine.txt").write_text("stays")
    capsys.readouterr()
    assert train.main(inference(kind, *(["--report"] if kind == "MVTec" else []))) == 0
    told = capsys.readouterr().out
    assert "not real data" in told and "chosen on the test set" in told and "(inference score)" in told
    if kind == "MVTec":
        report = Report(Path("a.html"))
        assert len(report.captions) == 6 and "image AUROC" in report.texts and "synthetic" in " ".join(report.texts)
    scores = rows("a.csv")
    assert list(scores[0])[:2] == ["file_name", "anomaly_score"]
    dataset = load_dataset(kind, Path(FOLDERS[kind]))
    assert [row["file_name"] for row in scores] == [item.name for item in dataset.test + dataset.train]
    tested = [row for row in scores if row["part"] == "test"]
    labels = [int(row["label"]) for row in tested]
    result = json.loads(Path("a.json").read_text())
    assert result == json.loads(Path("results.json").read_text())
    assert result["image_auroc"] == image_auroc(labels, [float(row["anomaly_score"]) for row in tested])
    validated = image_auroc(labels, [float(row["validation_score"]) for row in tested])
    assert result["image_auroc_validation"] == validated
    assert ("pixel_auroc" in result) == (kind == "MVTec") and "image_best_f1" in result
    limit = result["threshold"]["image"]
    assert all((float(row["anomaly_score"]) > limit) == (row["verdict"] == "defective") for row in scores)
    for item in dataset.test[:: len(dataset.test) - 1]:
        assert Image.open(f"oi/inference/{item.name}.png").size == (3 * 32, 32)
        assert Image.open(f"oi/diff/{item.name}.png").size == Image.open(item.path).size
    assert Path("oi/diff/mine.txt").read_text() == "stays"


def test_dagan(place, capsys):
    argv = training("MVTec", "--model", "dagan", "--training-steps", "4", "--max-value", "auto")
    assert train.main(argv) == 0
    assert {name.split(".")[0] for name in load("ck/best.ckpt")["model"]} == {"generator", "discriminator"}
    table = rows("lm/version_0/metrics.csv")
    assert table[-1]["batch"] == "2" and "unit_losses/loss_0" not in table[0] and float(table[0]["contextual"]) > 0
    refused(capsys, train.main, inference("MVTec"), "--model dagan")
    assert train.main(inference("MVTec", "--model", "dagan")) == 0
    refused(capsys, train.main, training("MVTec"), "--resume no", "ck/last.ckpt")
    # What another model or norm alone uses does not bind.
    idle = "--num-competitive-units 5 --max-network-depth 4 --improved no --momentum 0.5 --lr-factor 0.2 --lr-steps 1"
    assert train.main([*argv, *idle.split(), "--training-steps", "6", "--validation-interval", "2"]) == 0
    assert "resuming ck/last.ckpt after epoch 0, step 2" in capsys.readouterr().out
    refused(capsys, train.main, [*argv, "--contextual-loss-weight", "3"], "contextual_loss_weight 40.0, not 3.0")


def test_the_best_units():
    model = make_model(parse(training("RoadImages", "--num-competitive-units", "4"))).train()
    make_step(model, [torch.optim.Adam(unit.parameters()) for unit in model.networks], (3, 1), torch.rand(2, 3, 32, 32))
    assert {model.best_gen, model.best_disc} <= {1, 3}  # have trained
    model.reconstruction_losses, model.advantages = [0.4, 0.3, 0.5, 0.6], [-0.1, 0.2, 0.3, 0.1]
    model.choose_best()
    assert (model.best_gen, model.best_disc) == (1, 2)


def test_initial_weights_bring_the_size_of_their_images(place):
    argv = training("RoadImages", "--num-competitive-units", "1", "--training-steps", "1")
    assert train.main([*argv, "--imsize", "64", "--max-network-depth", "6"]) == 0
    for name in ("--imsize", "--max-network-depth"):
        del argv[argv.index(name) : argv.index(name) + 2]
    assert train.main([*argv, "--checkpoint", "ck/last.ckpt", "--checkpoint-path", "other"]) == 0
    content = load("other/last.ckpt")
    assert (content["settings"]["imsize"], content["settings"]["max_network_depth"], content["levels"]) == (64, 6, 6)
    assert Image.open("oi/version_1_epoch_0000_end.png").size == (4 * 64, 3 * 64)


@pytest.mark.parametrize("kind", ["crn", "dagan"])
def test_lightning_checkpoints_of_the_authors(place, kind, capsys):
    """Their structure: state_dict, NumPy scalars for the best units, and what Lightning adds."""
    torch.manual_seed(1)
    sizes = ["--imsize", "32", "--ngf", "2", "--model", kind]
    model = make_model(parse([*inference(), *sizes, "--num-competitive-units", "3"]))
    content = {"epoch": 3, "global_step": 10, "pytorch-lightning_version": "1.9.0", "state_dict": model.state_dict()}
    content |= {"best_gen": np.argmin([2, 1, 3]), "best_disc": np.int64(2), "optimizer_states": []}
    torch.save(content, "theirs.ckpt")
    argv = inference("RoadImages", *sizes, "--model-input", "theirs.ckpt")
    assert train.main([*argv, "--report", "yes" if kind == "dagan" else "no"]) == 0
    if kind == "dagan":
        told = " ".join(Report(Path("a.html")).texts)
        assert "An unknown number of batches. The score is mse(x, G(x)), the map the mean of |x - G(x)|" in told
    assert "no verdicts" in capsys.readouterr().out
    with torch.no_grad():
        if kind == "crn":
            model.best_gen, model.best_disc = 1, 2
        dataset = load_dataset("RoadImages", Path(FOLDERS["RoadImages"]))
        x = Images(dataset.test[:1], "RoadImages", 32).one(0)[None]
        expected = model.eval().scores(x)["inference"].item()
    assert float(rows("a.csv")[0]["anomaly_score"]) == pytest.approx(expected, rel=1e-4)
    refused(capsys, train.main, [*argv, "--model", "dagan" if kind == "crn" else "crn"], f"--model {kind}")
    refused(capsys, train.main, [*argv, "--imsize", "64", "--max-network-depth", "6"], "does not fit", "--imsize")
    assert train.main(training("RoadImages", *sizes, "--model-input", "theirs.ckpt", "--training-steps", "2")) == 0


def test_score_folder(place, after_training, capsys):
    after_training("MVTec", "--num-workers", "4", "--log-level", "debug")
    assert train.main(inference("MVTec")) == 0
    known = {row["file_name"]: row for row in rows("a.csv")}
    shutil.copytree("datasets/mvtec/brick/test/hole", "mine/a b")
    shutil.copytree("datasets/mvtec/brick/test/good", "mine/a b/good")
    Path("mine/broken é?.png").write_text("no image")
    argv = ["--images", "mine", "--output", "out", "--checkpoint", "ck/last.ckpt", "--cpu", "--maps", "full"]
    assert score.main(argv) == 1
    table = {row["path"]: row for row in rows("out/scores.csv")}
    assert len(table) == 5 and "cannot" in table.pop("broken é?.png")["error"]
    limit = json.loads(Path("out/results.json").read_text())["threshold"]
    for name, row in table.items():
        other = known[f"test/{'good' if 'good' in name else 'hole'}/{Path(name).name}"]
        assert float(row["score"]) == pytest.approx(float(other["anomaly_score"]), rel=1e-4)
        assert row["verdict"] == other["verdict"] != ""
        difference = np.asarray(Image.open(f"out/maps/{name}.tiff"))
        mask = np.asarray(Image.open(f"out/masks/{name}.png"))
        assert difference.shape == (64, 64) and ((mask == 255) == (difference > limit["pixel"])).all()
        assert Image.open(f"out/overlays/{name}.jpg").size == (64, 64)
    chosen = sorted(map(str, Path("mine/a b/good").iterdir()))[:2]
    assert score.main(["--images", *chosen, *argv[2:], "--output", "two", "--threshold", "9"]) == 0
    two = rows("two/scores.csv")
    assert [(row["path"], row["verdict"]) for row in two] == [(Path(name).name, "good") for name in chosen]
    found = run_readme("crn", ("image.png", chosen[0]), ("crn/ck/last.ckpt", "ck/last.ckpt"))["found"]
    assert found.score == float(two[0]["score"]) and found.map.shape == (32, 32)
    assert found.verdict == table[f"a b/good/{two[0]['path']}"]["verdict"]
    Path("mine/broken é?.png").unlink()
    assert score.main([*argv, "--score", "validation", "--imsize", "64"]) == 0
    told = capsys.readouterr().out
    assert "though" in told and "no verdicts" in told and "--imsize 32" in told  # scores of other sizes do not compare
    assert {row["verdict"] for row in rows("out/scores.csv")} == {""}
    assert model_name(Path("a/ck/last.ckpt")) == "ck_last" != model_name(Path("a/ck/best.ckpt"))


def test_an_interrupted_inference_leaves_complete_results(place, after_training, monkeypatch, capsys):
    after_training()
    assert train.main(inference()) == 0
    whole, picture = Path("a.csv").read_bytes(), crn.inference._save_pictures
    count = iter(range(1000))

    def interrupted(*arguments):
        if next(count) == 3:
            raise KeyboardInterrupt
        picture(*arguments)

    monkeypatch.setattr(crn.inference, "_save_pictures", interrupted)
    assert train.main(inference()) == 130
    assert Path("a.csv").read_bytes() == whole and len(rows("a.unfinished.csv")) == 4
    with locked("."):
        refused(capsys, train.main, inference(), "another run")
    monkeypatch.setattr(crn.inference, "_save_pictures", picture)
    assert train.main(inference()) == 0
    assert Path("a.csv").read_bytes() == whole and not Path("a.unfinished.csv").exists()


def test_a_model_of_road_images_on_other_images(place, after_training, capsys):
    """As in the seed, whose inference is on panoramas; at another size; and on pairs without labels."""
    after_training()
    for other, words in (
        (inference("Panorama"), "trained on RoadImages, not on Panorama"),
        (inference("RoadImages", "--imsize", "64"), "--imsize 64, though"),
    ):
        assert train.main(other) == 0
        told = capsys.readouterr().out
        assert words in told and "no verdicts" in told
        assert {row["verdict"] for row in rows("a.csv")} == {""}
        assert json.loads(Path("a.json").read_text())["threshold"] is None
    argv = ["--images", "datasets/roadimages/bad_ones", "--output", "out", "--model-input", "ck/best.ckpt", "--cpu"]
    assert score.main(argv) == 0
    assert rows("out/scores.csv")[0]["path"] == "intensity_files/000.png"


def test_the_seeds_commands_parse():
    """As printed there."""
    road = "--dataset RoadImages --dataset-path datasets/roadimages --model crn"
    for line in (
        "--mode train --training-steps 20000 --model crn --dataset MVTec --auto-set-name "
        "--dataset-path=datasets/mvtec/cable --seed 41020",
        "--mode train --dataset Panorama --dataset-path datasets/panorama --model crn --seed 41020",
        f"--mode train {road} --demo --num-workers 4 --cpu --seed 41020",
        f"--mode train {road} --checkpoint-path model_checkpoints",
        "--mode inference --dataset Panorama --dataset-path datasets/panorama_converted --model crn "
        '--model-input "model_checkpoints/last.ckpt" --image-output-path inference_images/',
    ):
        words = shlex.split(line)
        opt = parse(words)
        given = {word.lstrip("-").split("=")[0].replace("-", "_") for word in words if word.startswith("--")}
        assert opt.given == given and opt.model == "crn"
        assert (opt.experiment == "crn_MVTec_cable") == ("--auto-set-name" in words)


def test_options_that_must_parse(place, capsys):
    assert parse([*training(), "--lr-scheduler", "--cpu"]).lr_scheduler == ""
    opt = parse([*training(), "--improved=1", "--lr-scheduler=", "--use-dropout", "no", "--auto-set-name"])
    assert (opt.improved, opt.lr_scheduler, opt.use_dropout, opt.experiment) == (True, "", False, "crn_RoadImages")
    assert parse([*training(), "--improved", "False", "--lr-scheduler", "None"]).improved is False
    assert parse([*training(), "--lr-steps", "3", "6"]).lr_steps == [3, 6]
    idle = ["--pipeline", "x", "--generator-network-depth=4", "--wandb-hyperparameter-sweep"]
    refused(capsys, train.main, [*training(), *idle, "--data", "none"], "none")
    assert train.main([*training(), *idle, "--training-steps", "2"]) == 0
    assert capsys.readouterr().out.count("no effect") == len(UNUSED)
    opt = build_parser().parse_args(["--mode", "train", "--dataset", "MVTec"])
    assert (opt.training_steps, opt.batch_size, opt.num_competitive_units, opt.imsize) == (20000, 64, 12, 128)
    demo = parse(["--mode", "train", "--dataset", "MVTec", "--demo"])
    assert (demo.batch_size, demo.max_network_depth, demo.imsize, demo.num_competitive_units) == (2, 3, 32, 3)
    assert demo.training_steps == 2 * 50
    assert train.plan(50, demo.batch_size, demo.training_steps, demo.epochs, 2) == (5, 50)


@pytest.mark.parametrize("kept", ["good", "hole", None])
def test_without_defective_test_images(place, capsys, kept):
    shutil.copytree("datasets/mvtec/brick", "brick", ignore=shutil.ignore_patterns("SYNTHETIC", "ground_truth"))
    for folder in Path("brick/test").iterdir() if kept else [Path("brick/test")]:
        if folder.name != kept:
            shutil.rmtree(folder)
    shutil.copytree("datasets/mvtec/brick/test/hole", "brick/validation/good")  # MVTec LOCO's further good images
    Image.new("RGB", (97, 64)).save("brick/train/good/000.png")
    argv = [word.replace("datasets/mvtec/brick", "brick") for word in training("MVTec", "--training-steps", "4")]
    for words in (argv, [word.replace("datasets/mvtec/brick", "brick") for word in inference("MVTec")]):
        assert train.main(words) == 0
        said = capsys.readouterr().out
        kind = "only good" if kept == "good" else "only defective" if kept else "no"
        assert f"brick has {kind} test images: there is no AUROC" in said
        assert "of 97 x 64 pixels: CRN takes squares" in said
    assert "no image AUROC" in said and "nan" not in said
    trained, tested = json.loads(Path("lm/version_0/results.json").read_text()), json.loads(Path("a.json").read_text())
    assert trained["best_auroc"] is tested["image_auroc"] is None and tested["threshold"]["images"] == 2 + 1
    assert train.main([*argv, "--training-steps", "6"]) == 0  # goes on


def test_checkpoints_that_do_not_fit(place, after_training, capsys):
    after_training()
    before = Path("ck/last.ckpt").read_bytes()
    refused(capsys, train.main, training("RoadImages", "--training-steps", "4"), "ck/last.ckpt", "more than")
    with locked("ck"):
        refused(capsys, train.main, training("RoadImages", "--training-steps", "24"), "another run", "ck")
    assert Path("ck/last.ckpt").read_bytes() == before
    Path("other/version_0").mkdir(parents=True)  # another run's
    assert train.main(training("RoadImages", "--training-steps", "24", "--log-dir", "other")) == 0
    assert [row["batch"] for row in rows("other/version_1/metrics.csv")] == ["4", "8", "11", "12"]


@pytest.mark.parametrize(
    ("optimizer", "more"),
    [
        ("adamw", "--lr-scheduler exponential --lr-factor 0.5"),
        pytest.param("radam", "--precision bf16", marks=pytest.mark.slow),
        ("nadam", "--use-dropout --imsize 64 --max-network-depth 6"),
        ("rmsprop", "--num-competitive-units 1"),  # which plays both roles
        pytest.param("sgd", "--norm none", marks=pytest.mark.slow),
    ],
)
def test_optimizers_resume(place, optimizer, more, monkeypatch):
    """Stopped within an epoch, then cut short, and then to the end is a whole training."""
    argv = training("Panorama", "--optimizer", optimizer, *more.split(), "--training-steps", "14")
    assert train.main([*argv, "--checkpoint-path", "whole"]) == 0
    finish, count = CompetitiveReconstructionNetwork.finish_step, iter(range(100))

    def stop(model, means):
        finish(model, means)
        if next(count) == 1:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(CompetitiveReconstructionNetwork, "finish_step", stop)
    assert train.main([*argv, "--training-steps", "10"]) == 130
    assert train.main([*argv, "--training-steps", "10"]) == train.main(argv) == 0
    assert same_parameters("whole/last.ckpt", "ck/last.ckpt")
    assert [row["batch"] for row in rows("lm/version_1/metrics.csv")][-1] == ("14" if more.endswith("units 1") else "7")


def test_every_batch_and_process_has_dropout_of_its_own(place, monkeypatch):
    drawn = []

    class Enough(Exception):
        pass

    def passes(model, x, g, d):
        drawn.append(((g, d), torch.rand(1).item()))
        if len(drawn) % 2 == 0:
            raise Enough
        return x, x.clone().requires_grad_()

    losses = {"generator": torch.zeros(1, requires_grad=True).sum()}
    monkeypatch.setattr(CompetitiveReconstructionNetwork, "passes", passes)
    monkeypatch.setattr(
        CompetitiveReconstructionNetwork, "losses", lambda *_: losses | {"discriminator": losses["generator"]}
    )
    monkeypatch.setattr(CompetitiveReconstructionNetwork, "orders", lambda _, pair: (pair,))
    monkeypatch.setattr(CompetitiveReconstructionNetwork, "finish_step", lambda *_: None)
    for rank in (0, 1, 0):
        monkeypatch.setattr(train.distributed, "rank", lambda rank=rank: rank)
        with pytest.raises(Enough):
            train.main(training("RoadImages", "--resume", "no"))
    pairs, numbers = zip(*drawn)
    assert len(set(numbers)) == 4 and drawn[:2] == drawn[4:]  # whenever they are made
    assert pairs[:2] == pairs[2:4]  # all processes draw the same pair


def test_parameters_that_a_step_spoils_are_not_saved(place, after_training, capsys, monkeypatch):
    """The loss is computed before the step: the one after which it would show never comes."""
    after_training()
    before = {path.name: path.read_bytes() for path in Path("ck").iterdir()}
    finish = CompetitiveReconstructionNetwork.finish_step

    def spoil(model, means):
        finish(model, means)
        with torch.no_grad():
            next(model.networks[next(iter(means))[0]].parameters())[0] = float("nan")

    monkeypatch.setattr(CompetitiveReconstructionNetwork, "finish_step", spoil)
    refused(capsys, train.main, training("RoadImages", "--training-steps", "24"), "parameters", "not finite", "keeps")
    assert {path.name: path.read_bytes() for path in Path("ck").iterdir()} == before


def test_wandb(place, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "wandb", None)
        refused(capsys, train.main, training("RoadImages", "--wandb"), "pip install wandb")
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert train.main(training("RoadImages", "--wandb", "--training-steps", "2", "--image-output-interval", "1")) == 0
    assert list(Path("lm").glob("version_*/wandb/offline-run-*/*.wandb"))


def test_stopped_without_a_checkpoint_path(place, monkeypatch, capsys):
    """What is printed tells where it is saved, and goes on from there."""
    words = training("RoadImages", "--num-competitive-units", "9", "--resume", "no")
    at = words.index("--checkpoint-path")
    without = words[:at] + words[at + 2 :]
    finish = CompetitiveReconstructionNetwork.finish_step
    monkeypatch.setattr(
        CompetitiveReconstructionNetwork,
        "finish_step",
        lambda *args: (finish(*args), signal.raise_signal(signal.SIGINT)),
    )
    assert train.main([*without, "--save", "no"]) == 130 and "nothing was saved" in capsys.readouterr().out
    assert train.main(without) == 130
    assert "--checkpoint-path lm/version_1 --resume yes" in capsys.readouterr().out
    stored = load("lm/version_1/last.ckpt")["bookkeeping"]
    done = {unit for unit, loss in enumerate(stored["reconstruction_losses"]) if np.isfinite(loss)}
    assert len(done) == 2 and 0 not in done and {stored["best_gen"], stored["best_disc"]} <= done
    assert train.main([*words, "--training-steps", "2", "--checkpoint-path", "lm/version_1", "--resume", "yes"]) == 0
    assert "trained for 0 epochs already" in capsys.readouterr().out
    assert rows("lm/version_1/metrics.csv")[0]["batch"] == "1" and not Path("lm/version_2").exists()


@pytest.mark.slow  # tests/test_distributed_gradients.py has its gradients in the default run
def test_two_processes_train_like_one(place, capsys):
    """Also with a share of images that does not divide, and for what is scored in parts."""
    argv = training("RoadImages", "--norm", "none", "--optimizer", "sgd", "--lr", "0.01", "--batch-size", "3")
    program = ["torch.distributed.run", "--nproc_per_node=2", ROOT / "crn/train.py", *argv]
    done = subprocess.run([sys.executable, "-m", *program], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("image AUROC") == done.stdout.count("results: ") == 1  # one process speaks
    assert train.main([*argv, "--checkpoint-path", "one", "--log-dir", "l1"]) == 0
    one, two = load("one/last.ckpt"), load("ck/last.ckpt")
    for key, value in one["model"].items():
        assert torch.allclose(value, two["model"][key], atol=1e-5), key
    best, times = ("best_gen", "best_disc"), {"metrics/traintime": 0, "seconds": 0}
    assert [two["bookkeeping"][name] for name in best] == [one["bookkeeping"][name] for name in best]
    for before, after in zip(one["history"], two["history"]):
        assert after | times == pytest.approx(before | times, abs=1e-4)
    for name, scores in one["calibration"].items():
        assert len(scores) == 2 and two["calibration"][name] == pytest.approx(scores, abs=1e-5)
    capsys.readouterr()
    assert train.main([*argv, "--training-steps", "24"]) == 0  # what two processes saved, one resumes
    assert "resuming ck/last.ckpt" in capsys.readouterr().out and not Path("lm/version_1").exists()
