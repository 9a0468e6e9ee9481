"""CRN's programs as a user runs them: the seed's commands at small sizes, every file they promise, bad input."""

import contextlib
import csv
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats

import crn.inference
from common.cli import notes
from common.files import UserError, locked
from common.images import synthetic
from common.metrics import image_auroc
from crn import demo_data, score, sweep, train
from crn.options import UNUSED, build_parser, parse
from crn.training.dataset import Images, load_dataset, read, unlabelled
from crn.training.utils import load_model, make_model
from tests.crn.test_crn_parity import names_without_norms
from tests.helpers import Report, refused, run_readme

ROOT = Path(__file__).resolve().parents[2]
SMALL = ["--cpu", "--ngf", "2"]
FOLDERS = {"RoadImages": "datasets/roadimages", "Panorama": "datasets/panorama", "MVTec": "datasets/mvtec/brick"}


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """The three stand-ins, in the folders of the seed's commands."""
    root = tmp_path_factory.mktemp("data")
    for kind, folder in FOLDERS.items():
        demo_data.ensure_data(kind, root / folder)
    return root


@pytest.fixture
def place(data, tmp_path, monkeypatch):
    """Where the user stands: beside the data; the programs' default folders are here too."""
    (tmp_path / "datasets").symlink_to(data / "datasets")
    monkeypatch.chdir(tmp_path)
    return tmp_path


OUTPUTS = ["--log-dir", "lm", "--log-file", "l.log", "--image-output-path", "oi", "--anomaly-score-file", "a.csv"]


def training(kind="RoadImages", *more):
    words = f"--mode train --dataset {kind} --dataset-path {FOLDERS[kind]} --model crn --demo --seed 41020"
    return [*words.split(), "--training-steps", "20", "--checkpoint-path", "ck", *SMALL, *OUTPUTS, *more]


def inference(kind="RoadImages", *more):
    words = f"--mode inference --dataset {kind} --dataset-path {FOLDERS[kind]} --model crn --model-input ck/last.ckpt"
    return [*words.split(), *SMALL[:1], *OUTPUTS, *more]


def rows(path):
    with Path(path).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def load(path):
    return torch.load(path, weights_only=True)


@pytest.mark.parametrize("kind", FOLDERS)
def test_train_and_inference(place, kind, capsys):
    """The seed's commands: files where it says, numbers that fit each other."""
    assert train.main(training(kind, "--num-workers", "4", "--training-steps", "84", "--log-level", "debug")) == 0
    printed = capsys.readouterr().out
    assert "not real data" in printed and "chosen on the test set" in printed
    table = rows("lm/version_0/metrics.csv")
    assert [int(row["epoch"]) for row in table][-1] == 2 and table[-1]["batch"] == "42"
    assert list(table[0])[2:4] == ["metrics/score", "metrics/max_roc_auc"]
    aurocs = [float(row["metrics/score"]) for row in table]
    assert [float(row["metrics/max_roc_auc"]) for row in table] == list(np.maximum.accumulate(aurocs))
    assert sum(name.startswith("unit_losses/loss_") for name in table[0]) == 3
    result = json.loads(Path("lm/version_0/results.json").read_text())
    assert result["data"] == "synthetic" and result["best_chosen_on"] == "test set"
    assert (result["last_auroc"], result["best_auroc"]) == (aurocs[-1], max(aurocs))
    pictures = sorted(path.name for path in Path("oi").iterdir())
    assert "version_0_epoch_0000_batch_000010.png" in pictures and "version_0_epoch_0000_end.png" in pictures
    assert Image.open(f"oi/{pictures[0]}").size == (2 * 32, 3 * 32)  # a batch of two, three rows
    assert "batch 10" in Path("l.log").read_text()

    last = load("ck/last.ckpt")
    assert last["settings"]["imsize"] == 32 and last["levels"] == 5
    assert all(name.startswith("competitive_units.") for name in last["model"])
    assert load("ck/best.ckpt")["batch"] in {int(row["batch"]) for row in table}

    Path("oi/diff").mkdir()
    Path("oi/diff/mine.txt").write_text("stays")
    assert train.main(inference(kind, "--image-output-path", "oi", "--report")) == 0
    report = Report(Path("a.html"))
    assert len(report.captions) == 6 and "image AUROC" in report.texts and "synthetic" in " ".join(report.texts)
    scores = rows("a.csv")
    assert list(scores[0])[:2] == ["file_name", "anomaly_score"]
    dataset = load_dataset(kind, Path(FOLDERS[kind]))
    assert [row["file_name"] for row in scores] == [item.name for item in dataset.test + dataset.train]
    tested = [row for row in scores if row["part"] == "test"]
    labels = [int(row["label"]) for row in tested]
    result = json.loads(Path("a.json").read_text())
    assert result["image_auroc"] == image_auroc(labels, [float(row["anomaly_score"]) for row in tested])
    validated = image_auroc(labels, [float(row["validation_score"]) for row in tested])
    assert result["image_auroc_validation"] == validated
    assert ("pixel_auroc" in result) == (kind == "MVTec")
    limit = result["threshold"]["image"]
    assert all((float(row["anomaly_score"]) > limit) == (row["verdict"] == "defective") for row in scores)
    for item in dataset.test[:: len(dataset.test) - 1]:
        assert Image.open(f"oi/inference/{item.name}.png").size == (3 * 32, 32)
        assert Image.open(f"oi/diff/{item.name}.png").size == Image.open(item.path).size
    assert Path("oi/diff/mine.txt").read_text() == "stays"


def test_dagan(place, capsys):
    argv = ["--model", "dagan", "--checkpoint-path", "ckd"]
    assert train.main(training("MVTec", *argv)) == 0
    state = load("ckd/best.ckpt")["model"]
    assert {name.split(".")[0] for name in state} == {"generator", "discriminator"}
    table = rows("lm/version_0/metrics.csv")
    assert table[-1]["batch"] == "10" and "unit_losses/loss_0" not in table[0]
    refused(capsys, train.main, inference("MVTec", "--model-input", "ckd/last.ckpt"), "--model dagan")
    assert train.main(inference("MVTec", "--model-input", "ckd/last.ckpt", "--model", "dagan")) == 0
    refused(capsys, train.main, training("MVTec", "--checkpoint-path", "ckd"), "model dagan, not crn", "--resume no")


def test_a_step_changes_the_two_units_drawn_and_best_ones_have_trained():
    torch.manual_seed(0)
    opt = parse([*training(), "--num-competitive-units", "4"])
    model = make_model(opt).train()
    optimizers = [torch.optim.Adam(unit.parameters(), 1e-3) for unit in model.networks]
    before = [[p.clone() for p in unit.parameters()] for unit in model.networks]
    model.training_step(torch.rand(2, 3, 32, 32), optimizers, (3, 1), torch.amp.GradScaler("cpu", enabled=False))
    changed = [
        all(not torch.equal(p, old) for p, old in zip(unit.parameters(), olds))
        for unit, olds in zip(model.networks, before)
    ]
    untouched = [
        all(torch.equal(p, old) for p, old in zip(unit.parameters(), olds))
        for unit, olds in zip(model.networks, before)
    ]
    assert changed == [False, True, False, True] and untouched == [True, False, True, False]
    model.choose_best()
    assert {model.best_gen, model.best_disc} <= {1, 3}
    model.reconstruction_losses, model.advantages = [0.4, 0.3, 0.5, 0.6], [-0.1, 0.2, 0.3, 0.1]
    model.choose_best()
    assert (model.best_gen, model.best_disc) == (1, 2)


def test_the_discriminators_loss_does_not_reach_the_generator():
    """Without weights for the generator's own losses, no unit learns from being one."""
    torch.manual_seed(0)
    opt = parse([*training(), "--num-competitive-units", "2"])
    for weight, moves in ((0.0, False), (1.0, True)):
        model = make_model(opt).train()
        model.weights = 0.0, 0.0, weight
        x = torch.rand(2, 3, 32, 32)
        kept = {}
        optimizers = [torch.optim.SGD(unit.parameters(), 1.0) for unit in model.networks]
        for index, unit in enumerate(model.networks):
            kept[index] = {name: p.clone() for name, p in unit.named_parameters()}
        model.training_step(x, optimizers, (0, 1), torch.amp.GradScaler("cpu", enabled=False))
        for index, unit in enumerate(model.networks):
            with torch.no_grad():
                fresh = make_model(opt).train()
                fresh.competitive_units[0].load_state_dict({**unit.state_dict(), **kept[index]})
                fresh.competitive_units[1].load_state_dict(
                    {**model.networks[1 - index].state_dict(), **kept[1 - index]}
                )
            rec = fresh.competitive_units[1](x).detach()
            loss = -weight * (fresh.competitive_units[0](rec) - rec).abs().mean()  # as discriminator, alone
            loss.backward()
            for name, p in fresh.competitive_units[0].named_parameters():
                step = dict(unit.named_parameters())[name] - kept[index][name]
                torch.testing.assert_close(step, -p.grad, rtol=1e-3, atol=1e-5)
            assert any(p.grad.abs().max() > 0 for p in fresh.competitive_units[0].parameters()) == moves


def test_initial_weights_bring_the_size_of_their_images(place):
    argv = training("RoadImages", "--num-competitive-units", "1", "--training-steps", "1")
    assert train.main([*argv, "--imsize", "64", "--max-network-depth", "6"]) == 0
    assert train.main([*argv, "--model-input", "ck/last.ckpt", "--checkpoint-path", "other"]) == 0
    content = load("other/last.ckpt")
    assert (content["settings"]["imsize"], content["settings"]["max_network_depth"], content["levels"]) == (64, 6, 6)
    assert Image.open("oi/version_1_epoch_0000_end.png").size == (2 * 64, 3 * 64)


def test_too_few_images_to_hold_some_out():
    opt = parse([*training(), "--batch-size", "1"])
    assert train.split_calibration(2, opt) in (([0], [1]), ([1], [0]))
    with pytest.raises(UserError, match="--calibration-share 0"):
        train.split_calibration(1, opt)
    with pytest.raises(UserError, match="--batch-size 2 or less"):
        train.split_calibration(3, parse([*training(), "--batch-size", "4"]))


def test_one_unit_plays_both_roles(place):
    assert train.main(training("RoadImages", "--num-competitive-units", "1", "--training-steps", "6")) == 0
    table = rows("lm/version_0/metrics.csv")
    assert (table[-1]["batch"], table[-1]["best_gen"], table[-1]["best_disc"]) == ("6", "0", "0")


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
    other = {"crn": "dagan", "dagan": "crn"}[kind]
    refused(capsys, train.main, [*argv, "--model", other], f"--model {kind}")
    refused(capsys, train.main, [*argv, "--imsize", "64", "--max-network-depth", "6"], "does not fit", "--imsize")
    images = ["--images", "datasets/roadimages/bad_ones", "--model-input", "theirs.ckpt", "--cpu"]
    refused(capsys, score.main, images, "--dataset")
    if kind == "crn":
        del content["best_gen"]
        torch.save(content, "theirs.ckpt")
        refused(capsys, train.main, argv, "best_gen")

        class Evil:
            def __reduce__(self):
                return os.mkdir, ("owned",)

        torch.save({**content, "best_gen": Evil()}, "theirs.ckpt")
        refused(capsys, train.main, argv, "refused")
        assert not Path("owned").exists()


def test_score_folder(place, capsys):
    assert train.main(training("MVTec")) == 0
    assert train.main(inference("MVTec")) == 0
    known = {row["file_name"]: row for row in rows("a.csv")}
    shutil.copytree("datasets/mvtec/brick/test/hole", "mine/a b")
    Path("mine/broken é?.png").write_text("no image")
    argv = ["--images", "mine", "--output", "out", "--model-input", "ck/last.ckpt", "--cpu", "--maps", "full"]
    assert score.main(argv) == 1
    table = {row["path"]: row for row in rows("out/scores.csv")}
    assert len(table) == 9 and "cannot" in table["broken é?.png"]["error"]
    limit = json.loads(Path("out/results.json").read_text())["threshold"]
    for name, row in table.items():
        if row["error"]:
            continue
        other = known[f"test/hole/{Path(name).name}"]
        assert float(row["score_inference"]) == pytest.approx(float(other["anomaly_score"]), rel=1e-4)
        assert row["verdict"] == other["verdict"] != ""
        difference = np.asarray(Image.open(f"out/maps/{name}.tiff"))
        mask = np.asarray(Image.open(f"out/masks/{name}.png"))
        assert difference.shape == (128, 128) and ((mask > 0) == (difference > limit["pixel"])).all()
        assert Image.open(f"out/overlays/{name}.jpg").size == (128, 128)
    chosen = sorted(map(str, Path("mine/a b").iterdir()))[:2]
    assert score.main(["--images", *chosen, *argv[2:], "--output", "two", "--threshold", "9"]) == 0
    two = rows("two/scores.csv")
    assert [(row["path"], row["verdict"]) for row in two] == [(Path(name).name, "good") for name in chosen]
    found = run_readme("crn", ("image.png", chosen[0]), ("crn/ck/last.ckpt", "ck/last.ckpt"))["found"]
    assert found.score == float(two[0]["score_inference"]) and found.map.shape == (32, 32)
    assert found.verdict == table[f"a b/{two[0]['path']}"]["verdict"]
    Path("mine/broken é?.png").unlink()
    assert score.main([*argv, "--score", "validation", "--imsize", "64"]) == 0
    told = capsys.readouterr().out
    assert "though" in told and "no verdicts" in told and "--imsize 32" in told  # scores of other sizes do not compare
    assert {row["verdict"] for row in rows("out/scores.csv")} == {""}
    refused(capsys, score.main, [*argv, "--images", "mine/a b"], "other images", "--output")
    refused(capsys, score.main, [*argv, "--output", "mine/out"], "--output")
    refused(capsys, score.main, [*argv, "--images", "nowhere"], "nowhere")
    refused(capsys, score.main, [*argv, "--imsize", "33"], "--imsize 33")


def test_an_interrupted_inference_leaves_complete_results(place, monkeypatch):
    assert train.main(training("MVTec")) == 0
    assert train.main(inference("MVTec")) == 0
    whole, picture = Path("a.csv").read_bytes(), crn.inference._save_pictures
    for after in (0, 3):
        count = iter(range(1000))

        def interrupted(*arguments, count=count, after=after):
            if next(count) == after:
                raise KeyboardInterrupt
            picture(*arguments)

        monkeypatch.setattr(crn.inference, "_save_pictures", interrupted)
        assert train.main(inference("MVTec")) == 130
        assert Path("a.csv").read_bytes() == whole
        assert len(rows("a.unfinished.csv")) == after + 1
    monkeypatch.setattr(crn.inference, "_save_pictures", picture)
    assert train.main(inference("MVTec")) == 0
    assert Path("a.csv").read_bytes() == whole and not Path("a.unfinished.csv").exists()


def test_a_model_of_road_images_on_other_images(place, capsys):
    """As in the seed, whose inference is on panoramas; and on pairs without labels."""
    assert train.main(training()) == 0
    capsys.readouterr()
    assert train.main(inference("Panorama")) == 0
    told = capsys.readouterr().out
    assert "trained on RoadImages, not on Panorama" in told and "no verdicts" in told
    assert {row["verdict"] for row in rows("a.csv")} == {""} and "threshold" not in json.loads(
        Path("a.json").read_text()
    )
    argv = ["--images", "datasets/roadimages/bad_ones", "--output", "out", "--model-input", "ck/best.ckpt", "--cpu"]
    assert score.main(argv) == 0
    assert rows("out/scores.csv")[0]["path"] == "intensity_files/000.png"


@pytest.mark.parametrize(
    "line",
    [
        "--mode train --training-steps 20000 --model crn --dataset MVTec --auto-set-name "
        "--dataset-path=datasets/mvtec/cable --seed 41020",
        "--mode train --dataset Panorama --dataset-path datasets/panorama --model crn --seed 41020",
        "--mode train --dataset RoadImages --dataset-path datasets/roadimages --model crn --seed 41020",
        "--mode train --dataset RoadImages --dataset-path datasets/roadimages --model crn --demo --num-workers 4 --cpu "
        "--seed 41020",
        "--mode train --dataset RoadImages --dataset-path datasets/roadimages --model crn --checkpoint-path "
        "model_checkpoints",
        "--mode inference --dataset Panorama --dataset-path datasets/panorama_converted --model crn "
        '--model-input "model_checkpoints/last.ckpt" --image-output-path inference_images/',
    ],
)
def test_the_seeds_commands_parse(line):
    """As printed there."""
    words = shlex.split(line)
    opt = parse(words)
    given = [word.lstrip("-").split("=")[0].replace("-", "_") for word in words if word.startswith("--")]
    assert opt.given == set(given) and opt.model == "crn"
    assert (opt.experiment == "crn_MVTec_cable") == ("--auto-set-name" in words)


def test_options_that_must_parse(capsys):
    assert parse([*training(), "--lr-scheduler", "--cpu"]).lr_scheduler == ""
    opt = parse([*training(), "--improved=1", "--lr-scheduler=", "--use-dropout", "no", "--auto-set-name"])
    assert (opt.improved, opt.lr_scheduler, opt.use_dropout, opt.experiment) == (True, "", False, "crn_RoadImages")
    assert parse([*training(), "--improved", "False", "--lr-scheduler", "None"]).improved is False
    assert parse([*training(), "--lr-steps", "3", "6"]).lr_steps == [3, 6]
    assert parse([*training("MVTec"), "--auto-set-name"]).experiment == "crn_MVTec_brick"
    capsys.readouterr()
    parse([*training(), "--pipeline", "x", "--generator-network-depth=4", "--wandb-hyperparameter-sweep"])
    assert capsys.readouterr().out.count("no effect") == len(UNUSED)
    opt = build_parser().parse_args(["--mode", "train", "--dataset", "MVTec"])
    assert (opt.training_steps, opt.batch_size, opt.num_competitive_units, opt.imsize) == (20000, 64, 12, 128)
    demo = parse(["--mode", "train", "--dataset", "MVTec", "--demo"])
    assert (demo.batch_size, demo.max_network_depth, demo.imsize, demo.num_competitive_units) == (2, 3, 32, 3)
    assert demo.training_steps == 2 * 50
    assert train.plan(opt=demo, count=50, steps_per_batch=2) == (5, 50)


def test_bad_data(place, tmp_path, capsys):
    shutil.copytree("datasets/roadimages", "road")
    Path("road/SYNTHETIC").unlink()
    argv = [word.replace("datasets/roadimages", "road") for word in training()]
    heights = Path("road/bad_ones/height_files")
    (heights / "003.png").rename(heights / "900.png")
    refused(capsys, train.main, argv, "road/bad_ones", "partner", "intensity_files (003.png)", "height_files (900.png)")
    (heights / "900.png").unlink()
    refused(capsys, train.main, argv, "1 in intensity_files (003.png)")
    shutil.copyfile(heights / "004.png", heights / "003.png")
    Image.new("L", (9, 9)).save(heights / "003.png")
    refused(capsys, train.main, argv, "bad_ones/height_files/003.png", "size")
    (heights / "003.png").write_bytes((heights / "004.png").read_bytes()[:300])
    (heights / "005.png").write_text("hello")
    refused(capsys, train.main, argv, "003.png", "005.png")  # all of them, before anything is computed
    Image.fromarray(np.full((96, 96), np.nan, np.float32)).save(heights / "003.tiff")
    (heights / "003.png").unlink()
    refused(capsys, train.main, argv, "003.tiff", "nan")
    shutil.rmtree(heights)
    refused(capsys, train.main, argv, "height_files")
    shutil.rmtree("road/good_ones")
    refused(capsys, train.main, argv, "good_ones")
    argv = [word.replace("datasets/panorama", "datasets/roadimages") for word in training("Panorama")]
    refused(capsys, train.main, argv, "--dataset RoadImages")
    assert not Path("ck").exists()

    shutil.copytree("datasets/mvtec/brick", "brick")
    argv = [word.replace("datasets/mvtec/brick", "brick") for word in training("MVTec")]
    shutil.copyfile("brick/test/good/000.png", "brick/test/good/more.png")
    refused(capsys, train.main, argv, "SYNTHETIC")  # real files beside generated ones


@pytest.mark.parametrize("kept", ["good", "hole", None])
def test_without_defective_test_images(place, capsys, kept):
    shutil.copytree("datasets/mvtec/brick", "brick", ignore=shutil.ignore_patterns("SYNTHETIC", "ground_truth"))
    for folder in Path("brick/test").iterdir() if kept else [Path("brick/test")]:
        if folder.name != kept:
            shutil.rmtree(folder)
    shutil.copytree("datasets/mvtec/brick/test/hole", "brick/validation/good")  # MVTec LOCO's further good images
    Image.new("RGB", (97, 64)).save("brick/train/good/000.png")
    further = len(list(Path("brick/validation/good").iterdir()))
    for argv in (training, inference):
        words = [word.replace("datasets/mvtec/brick", "brick") for word in argv("MVTec")]
        assert train.main(words) == 0
        said = capsys.readouterr().out
        kind = "only good" if kept == "good" else "only defective" if kept else "no"
        assert f"brick has {kind} test images: there is no AUROC" in said
        assert "of 97 x 64 pixels: CRN takes squares" in said
    assert "no image AUROC" in said and "nan" not in said
    trained, tested = json.loads(Path("lm/version_0/results.json").read_text()), json.loads(Path("a.json").read_text())
    assert (
        trained["best_auroc"] is None and tested["image_auroc"] is None and tested["threshold"]["images"] == 4 + further
    )
    assert train.main([word.replace("datasets/mvtec/brick", "brick") for word in training("MVTec")]) == 0  # goes on


def test_depths_of_road_images(place):
    """8 bits are scaled to 0..1, other depths stay as they are; only the first channel counts."""
    folders = [Path("r") / name for name in ("intensity_files", "height_files")]
    for folder in folders:
        folder.mkdir(parents=True)
    Image.fromarray(np.dstack([np.full((4, 6), value, np.uint8) for value in (51, 7, 9)])).save(folders[0] / "a.png")
    Image.fromarray(np.full((4, 6), 0.25, np.float32)).save(folders[1] / "a.tiff")
    (item,) = unlabelled([Path("r")], "RoadImages")
    assert read(item, "RoadImages")[:, 0, 0].tolist() == pytest.approx([0.25, 0.2, 0.2])
    Image.fromarray(np.full((4, 6), 40000, np.uint16)).save(folders[1] / "a.tiff")
    assert read(item, "RoadImages")[0, 0, 0] == 40000


def make_pairs(folder, intensities, heights):
    shutil.rmtree(folder, ignore_errors=True)
    for kind, names in (("intensity_files", intensities), ("height_files", heights)):
        for name in names:
            path = folder / kind / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (4, 4)).save(path)


@pytest.mark.parametrize(
    ("intensities", "heights", "partners"),
    [
        ([f"{k:03d}.png" for k in range(1, 13)], [f"{k}.png" for k in range(1, 13)], range(12)),
        (["b_9.png", "b_10.png"], ["b_9.png", "b_10.tif"], [1, 0]),  # by name, in the order of the intensity files
        (["a/01.png", "b/01.png"], ["b/1.png", "a/1.png"], None),  # each number twice
        (["a1_2.png", "a1_3.png"], ["height_1_3.png", "height_1_2.png"], [1, 0]),
        (["left.png"], ["right.png"], None),
        (["1.png", "2.png"], ["1.png", "1.tif"], None),
    ],
)
def test_pairs_of_road_images(tmp_path, capsys, intensities, heights, partners):
    make_pairs(tmp_path, intensities, heights)
    if partners is None:
        with pytest.raises(UserError) as error:
            unlabelled([tmp_path], "RoadImages")
        assert "intensity_files (" in str(error.value) and "height_files (" in str(error.value)
        return
    items = unlabelled([tmp_path], "RoadImages")
    assert [item.name for item in items] == sorted(f"intensity_files/{name}" for name in intensities)
    assert [item.height.name for item in items] == [heights[k] for k in partners]
    assert ("by the numbers" in capsys.readouterr().out) == (intensities[0] != heights[0])


def test_what_is_left_out_of_road_images_is_said(tmp_path, capsys):
    """Beside the folders of the layout, and by the images' readers; copies among the tested ones are counted."""
    good, bad = tmp_path / "good_ones", tmp_path / "bad_ones"
    make_pairs(good, ["1.png", "2.png", "3.png"], ["1.png", "2.png", "3.png"])
    make_pairs(bad, ["1.png"], ["1.png"])
    for name in (
        "new_ones/1.png",
        "good_ones/4.png",
        "bad_ones/depth/1.png",
        "good_ones/height_files/5.heic",
        "@eaDir/x",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    load_dataset("RoadImages", tmp_path)
    told = capsys.readouterr().out
    assert "not scaled" not in told
    Image.fromarray(np.full((4, 4), 40000, np.uint16)).save(good / "height_files/3.png")
    load_dataset("RoadImages", tmp_path, limit=1, max_value="auto")
    told += (after := capsys.readouterr().out)
    assert "values up to 40000 in 1 of 4 pairs, such as good_ones/intensity_files/3.png" in after
    assert "--max-value auto has no effect" in after
    assert "--demo uses at most 1 each of 2 images to train on and 2 to test on" in after
    for words in (
        f"left out: 1 file or folder in {tmp_path} beside good_ones and bad_ones, such as new_ones",
        f"left out: 1 file or folder in {good} beside intensity_files and height_files, such as 4.png",
        f"left out: 1 file or folder in {bad} beside intensity_files and height_files, such as depth",
        "5.heic",
        "2 of 2 test images, copies of training images",
    ):
        assert words in told
    assert "@eaDir" not in told


def test_splits(place, capsys):
    road = load_dataset("RoadImages", Path(FOLDERS["RoadImages"]))
    assert (len(road.train), len(road.test)) == (42, 18 + 24)
    assert [item.label for item in road.test] == [0] * 18 + [1] * 24
    shutil.copytree(FOLDERS["Panorama"], "p")
    Path("p/SYNTHETIC").unlink()
    for path in sorted(Path("p/good_ones").iterdir())[7:]:
        path.unlink()
    few = load_dataset("Panorama", Path("p"))
    assert (len(few.train), len(few.test)) == (4, 3 + 8)  # twice as many bad ones as training ones
    assert "images in p/bad_ones are left out, such as" in capsys.readouterr().out
    for path in Path("p/bad_ones").iterdir():
        path.unlink()
    assert len(load_dataset("Panorama", Path("p")).test) == 3
    assert "p has no bad images: there is no AUROC" in capsys.readouterr().out
    brick = load_dataset("MVTec", Path(FOLDERS["MVTec"]))
    assert len(brick.train) == 40 and [i.name for i in brick.test] == sorted(i.name for i in brick.test)
    assert synthetic(Path(FOLDERS["MVTec"]))


def test_checkpoint_of_something_else(place, capsys):
    assert train.main(training()) == 0
    before = Path("ck/last.ckpt").read_bytes()
    for option, value in (("--lr", "0.1"), ("--ngf", "3"), ("--seed", "5"), ("--imsize", "64")):
        refused(capsys, train.main, training("RoadImages", option, value), option[2:], "--resume no")
    refused(capsys, train.main, inference("RoadImages", "--ngf", "3"), "ngf")
    capsys.readouterr()
    assert train.main(inference("RoadImages", "--imsize", "64")) == 0
    assert "--imsize 64, though" in capsys.readouterr().out
    assert Path("ck/last.ckpt").read_bytes() == before
    content = load("ck/last.ckpt")
    for change, word in [
        ({"levels": "x"}, "levels"),
        ({"bookkeeping": {}}, "reconstruction_losses"),
        ({"model": {}}, "missing"),
        ({"calibration": [1]}, "damaged"),
        ({"calibration": {key: [float("nan")] for key in ("inference", "validation", "map")}}, "finite"),
        ({"kind": "csflow"}, "csflow"),
    ]:
        torch.save({**content, **change}, "ck/last.ckpt")
        refused(capsys, train.main, inference(), word)
    for change, word in [
        ({"epoch": 7}, "epoch 7"),
        ({"history": [{}]}, "batch"),
        ({"optimizers": [{}] * 3}, "optimizer"),
    ]:
        torch.save({**content, **change}, "ck/last.ckpt")
        refused(capsys, train.main, training(), word)
    moments = content["optimizers"][0]
    moments["state"][0]["exp_avg"] = torch.full_like(moments["state"][0]["exp_avg"], float("nan"))
    torch.save(content, "ck/last.ckpt")
    refused(capsys, train.main, training(), "optimizer")
    Path("ck/last.ckpt").write_bytes(before[: len(before) // 2])
    refused(capsys, train.main, training(), "broken")


def test_settings_without_effect_do_not_keep_a_training_from_going_on(place, capsys):
    dagan = ["--model", "dagan", "--checkpoint-path", "ckd"]
    few = ["--training-steps", "4"]
    assert train.main(training("RoadImages", *few)) == train.main(training("MVTec", *dagan, *few)) == 0
    idle = ["--momentum", "0.5", "--lr-factor", "0.2", "--lr-steps", "1", "--validation-interval", "2"]
    idle += ["--training-steps", "6"]
    weights = ["--contextual-loss-weight", "3", "--adversarial-loss-weight", "3"]
    networks = ["--num-competitive-units", "5", "--max-network-depth", "4", "--improved", "no"]
    capsys.readouterr()
    assert train.main(training("RoadImages", *idle, *weights)) == 0
    assert train.main(training("MVTec", *idle, *networks, *dagan)) == 0
    load_model(parse(inference("MVTec", *networks, *dagan[:2], "--model-input", "ckd/last.ckpt")))
    assert capsys.readouterr().out.count("continuing ck") == 2
    more = ["--training-steps", "8"]
    refused(capsys, train.main, training("RoadImages", *networks[:2], *more), "num-competitive-units 3, not 5")
    refused(capsys, train.main, training("MVTec", *weights, *dagan, *more), "contextual-loss-weight 40.0, not 3.0")
    refused(capsys, train.main, training("MVTec", "--optimizer", "sgd", *dagan, *more), "optimizer adam, not sgd")


@pytest.mark.parametrize("optimizer", ["adamw", "radam", "nadam", "rmsprop", "sgd"])
def test_optimizers_resume(place, optimizer):
    """Half and half again is a whole training, for each optimizer, for bfloat16 and with dropout."""
    more = ["--optimizer", optimizer, "--lr-scheduler", "exponential", "--lr-factor", "0.5", "--batch-size", "8"]
    more += ["--precision", "bf16"] if optimizer == "radam" else []
    more += ["--use-dropout", "--imsize", "64", "--max-network-depth", "6"] if optimizer == "nadam" else []
    assert train.main(training("Panorama", *more, "--checkpoint-path", "whole")) == 0
    for steps in ("6", "20"):
        assert train.main(training("Panorama", *more, "--training-steps", steps)) == 0
    whole, parts = load("whole/last.ckpt"), load("ck/last.ckpt")
    assert parts["batch"] == 10
    assert all(torch.equal(whole["model"][name], parts["model"][name]) for name in whole["model"])


def test_every_batch_and_process_has_dropout_of_its_own(place, monkeypatch):
    drawn = []

    class Enough(Exception):
        pass

    def step(model, *args):
        drawn.append(torch.rand(1).item())
        if len(drawn) % 2 == 0:
            raise Enough
        return {}

    monkeypatch.setattr(train.make_model(parse(training())).__class__, "training_step", step)
    for rank in (0, 1, 0):
        monkeypatch.setattr(train.distributed, "rank", lambda rank=rank: rank)
        with pytest.raises(Enough):
            train.main([word for word in training("RoadImages", "--batch-size", "8") if word != "--demo"])
    assert len(set(drawn)) == 4 and drawn[:2] == drawn[4:]  # whenever they are made


def test_parameters_that_a_step_spoils_are_not_saved(place, capsys, monkeypatch):
    """The loss is computed before the step: the one after which it would show never comes."""
    assert train.main(training("RoadImages", "--training-steps", "4")) == 0
    before = {path.name: path.read_bytes() for path in Path("ck").iterdir()}
    step = train.make_model(parse(training())).__class__.training_step

    def spoil(model, *args):
        losses = step(model, *args)
        with torch.no_grad():
            next(model.networks[args[2][0]].parameters())[0] = float("nan")
        return losses

    monkeypatch.setattr("crn.training.crn.CompetitiveReconstructionNetwork.training_step", spoil)
    refused(capsys, train.main, training("RoadImages", "--training-steps", "6"), "parameters", "not finite", "ck keeps")
    assert {path.name: path.read_bytes() for path in Path("ck").iterdir()} == before


def test_non_finite_loss_keeps_the_model(place, capsys):
    assert train.main(training("RoadImages", "--training-steps", "4")) == 0
    before = Path("ck/last.ckpt").read_bytes()
    content = load("ck/last.ckpt")
    for name, value in content["model"].items():
        if name.endswith("model.model.4.weight"):
            value.fill_(3e38)
    torch.save(content, "ck/last.ckpt")
    refused(capsys, train.main, training(), "not finite", "batch 2", "--lr")
    Path("ck/last.ckpt").write_bytes(before)
    assert train.main(training()) == 0


def test_older_names_without_norms(place):
    """A training without norms from when their places were kept goes on, and scores as before."""
    argv = training("RoadImages", "--norm", "none")
    assert train.main([*argv, "--training-steps", "8"]) == 0
    assert train.main(inference()) == 0
    shutil.copytree("ck", "older")
    content = load("ck/last.ckpt")
    names = [
        f"competitive_units.{unit}.{name}" for unit in range(3) for name in names_without_norms(5, True, gaps=True)
    ]
    assert len(names) == len(content["model"]) and names != list(content["model"])
    torch.save({**content, "model": dict(zip(names, content["model"].values()))}, "older/last.ckpt")
    assert train.main(inference("RoadImages", "--model-input", "older/last.ckpt", "--anomaly-score-file", "b.csv")) == 0
    assert rows("a.csv") == rows("b.csv")
    for folder in ("ck", "older"):
        assert train.main([*argv, "--checkpoint-path", folder]) == 0
    one, other = load("ck/last.ckpt")["model"], load("older/last.ckpt")["model"]
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_optional_packages_that_are_missing(place, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    refused(capsys, train.main, training("RoadImages", "--wandb"), "pip install wandb")
    for package in ("optuna", "yaml"):
        monkeypatch.setitem(sys.modules, package, None)
    refused(capsys, sweep.main, [str(ROOT / "crn/wandb_sweep.yml")], "pip install optuna")


def test_wandb_offline(place, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert train.main(training("RoadImages", "--wandb")) == 0
    assert list(Path("lm/version_0/wandb").glob("offline-run-*/*.wandb"))


def test_sweep_files(tmp_path):
    yaml = pytest.importorskip("yaml")
    search = sweep.read_sweep(ROOT / "crn/hyperparameter_optimization_sweep.yml")
    assert search["metric"] == "metrics/max_roc_auc" and search["method"] == "bayes"
    grid = sweep.read_sweep(ROOT / "crn/wandb_sweep.yml")
    assert len(grid["parameters"]["dataset-path"]) == 15
    for found in (search, grid):
        values = {name: values[0] for name, values in found["parameters"].items()}
        opt = parse(sweep.trial_command(found, values, Path("x"), [])[2:])  # every parameter is an option of train.py
        assert opt.dataset == "MVTec" and opt.save is False
    (tmp_path / "s.yml").write_text("method: grid\nparameters: {lr: {values: [0.1, 0.2]}}\n")
    assert sweep.read_sweep(tmp_path / "s.yml")["metric"] == search["metric"] and "has no metric" in notes()[-1]
    (tmp_path / "s.yml").write_text("method: bayes\nparameters: {lr: {values: [0.1, 0.2]}}\n")
    with pytest.raises(UserError, match="expected method, metric"):
        sweep.read_sweep(tmp_path / "s.yml")
    content = yaml.safe_load((ROOT / "crn/wandb_sweep.yml").read_text())
    assert content["command"][-1] == "${args}" and "--wandb" in content["command"]


HEAD = "metric: {name: metrics/score, goal: maximize}\n"


def sweep_file(text, method="random", parameters="lr: {value: 0.1}, dataset: {value: MVTec}, dataset-path: {value: d}"):
    Path("s.yml").write_text(f"method: {method}\n{HEAD}parameters: {{{parameters}}}\n{text}")
    return sweep.read_sweep(Path("s.yml"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["--mode=train", "--model=crn", "--auto-set-name", "--lr=0.1", "--dataset=MVTec", "--dataset-path=d"]),
        (
            "program: crn/train.py\n"
            "command: ['${env}', python3, crn/train.py, --mode=train, --wandb, '${args}', --seed, 7, --model=dagan]",
            ["--mode=train", "--lr=0.1", "--dataset=MVTec", "--dataset-path=d", "--seed", "7", "--model=dagan"],
        ),
    ],
)
def test_the_command_of_a_sweep_file(place, capsys, monkeypatch, text, words):
    pytest.importorskip("yaml")
    monkeypatch.setattr("common.cli._notes", [])
    command = sweep.trial_command(sweep_file(text), {"lr": 0.1, "dataset": "MVTec", "dataset-path": "d"}, Path("x"), [])
    assert command[:2] == [sys.executable, str(ROOT / "crn/train.py")]
    assert command[5:] == words and all(word.startswith("--") for word in command[2:5])
    assert ("--wandb in the command is left out" in capsys.readouterr().out) == ("--wandb" in text)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("program: other.py", "other.py"),
        ("command: [torchrun, '${program}', '${args}']", "torchrun"),
        ("command: ['${program}', '--x=${envvar:X}', '${args}']", "${envvar:X}"),
        ("command: ['${program}', '${args_no_hyphens}']", "${args_no_hyphens}"),
        ("command: ['${program}', --mode=train]", "${args}"),
        ("command: ['${program}', --mode=inference, --model-input=x, '${args}']", "--mode inference"),
        ("command: ['${program}', --mode=train, --log-dir=x, '${args}']", "--log-dir x"),
        ("command: 3", "'3'"),
        ("command: ['${program}', --mode=train, '${args}', --lr=3]", "--lr behind the parameters"),
        ("early_terminate: {type: hyperband, min_iter: 3}", "early_terminate is not supported here\n"),
        ("run_cap: 10", "run_cap"),
        ("name: mine\nproject: p\nrun_cap: 10", "run_cap"),
    ],
)
def test_what_sweeps_do_not_support_is_named(place, capsys, text, named):
    pytest.importorskip("yaml")
    parameters = "lr: {values: [0.1, 0.2]}, dataset: {value: MVTec}, dataset-path: {value: d}"
    with contextlib.suppress(UserError):
        sweep_file(text, parameters=parameters)
    refused(capsys, sweep.main, ["s.yml"], "s.yml", named)
    sweep_file("", parameters=parameters)
    refused(capsys, sweep.main, ["s.yml", "--", "--dataset-path=x", "--lr", "3"], "--lr behind the parameters")


def quantiles(entry, count=2000):
    found = sweep_file("", parameters=f"x: {entry}")["parameters"]["x"]
    return np.array([sweep.quantile(found, (k + 0.5) / count) for k in range(count)])


@pytest.mark.parametrize(
    ("entry", "distribution", "of"),
    [
        ("{min: 0.5, max: 2}", stats.uniform(0.5, 1.5), np.asarray),
        ("{min: 1, max: 4}", stats.randint(1, 5), np.asarray),
        ("{distribution: uniform, min: -1, max: 3}", stats.uniform(-1, 4), np.asarray),
        ("{distribution: log_uniform, min: -7, max: -2}", stats.uniform(-7, 5), np.log),
        ("{distribution: log_uniform_values, min: 1.0e-5, max: 0.1}", stats.loguniform(1e-5, 0.1), np.asarray),
        ("{distribution: normal, mu: 3, sigma: 2}", stats.norm(3, 2), np.asarray),
        ("{distribution: log_normal}", stats.norm(0, 1), np.log),
    ],
)
def test_ranges_have_the_distributions_of_weights_and_biases(place, entry, distribution, of):
    pytest.importorskip("yaml")
    values = of(quantiles(entry))
    expected = distribution.ppf((np.arange(2000) + 0.5) / 2000)
    assert values == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_rounded_ranges_and_grids(place):
    pytest.importorskip("yaml")
    values, counts = np.unique(quantiles("{distribution: q_uniform, min: 0, max: 40, q: 16}"), return_counts=True)
    assert values.tolist() == [0, 16, 32] and counts.tolist() == [400, 800, 800] and values.dtype == int
    values = quantiles("{distribution: q_log_uniform_values, min: 1, max: 100, q: 0.5}")
    assert values == pytest.approx(np.round(2 * 100 ** ((np.arange(2000) + 0.5) / 2000)) / 2)
    assert isinstance(sweep_file("", parameters="x: {min: 2, max: 4}")["parameters"]["x"]["examples"][1], int)
    assert sweep_file("", "grid", "x: {min: 2, max: 4}")["parameters"] == {"x": [2, 3, 4]}


@pytest.mark.parametrize(
    ("entry", "named"),
    [
        ("{values: [1, 2], probabilities: [0.1, 0.9]}", "probabilities"),
        ("{parameters: {lr: {value: 1}}}", "'parameters'"),
        ("{distribution: beta, a: 1}", "'beta'"),
        ("{distribution: inv_log_uniform, min: 1, max: 2}", "'inv_log_uniform'"),
        ("{distribution: [], min: 1, max: 2}", "distribution"),
        ("{min: 1}", "min"),
        ("{min: 1e-5, max: 0.1}", "1.0e-5"),
        ("{min: 2, max: 1}", "min is above max"),
        ("{min: 0.0, max: .inf}", "inf"),
        ("{distribution: log_uniform_values, min: 0, max: 1}", "log_uniform_values"),
        ("{distribution: log_uniform, min: 0, max: 1000}", "1000"),
        ("{distribution: q_uniform, min: 0, max: 1, q: 0}", "'q': 0"),
        ("{distribution: int_uniform, min: 0.5, max: 2}", "0.5"),
        ("{distribution: normal, sigma: 0}", "'sigma': 0"),
    ],
)
def test_ranges_that_are_none(place, capsys, entry, named):
    pytest.importorskip("yaml")
    with pytest.raises(UserError, match=r"s\.yml: parameter x") as error:
        sweep_file("", parameters=f"x: {entry}")
    assert named in str(error.value)
    with pytest.raises(UserError, match="grid"):
        sweep_file("", "grid", "x: {min: 0.0, max: 1.0}")
    with pytest.raises(UserError, match="a grid of more than 10000 trials"):  # 1000^1500, more than Python prints
        sweep_file("", "grid", ", ".join(f"x{number}: {{min: 1, max: 1000}}" for number in range(1500)))


def test_sweep_of_a_range(place, trials, capsys):
    """Drawn within the range, shown and passed on as they are, and the same sweep when it goes on."""
    pytest.importorskip("optuna")
    rates, statuses = trials
    lr = "lr: {distribution: log_uniform_values, min: 0.001, max: 0.1}"
    for method in ("random", "bayes"):
        statuses += [0] * 6
        for count in ("3", "6"):
            sweep_file(
                "",
                method,
                f"{lr}, batch-size: {{min: 1, max: 4}}, dataset: {{value: MVTec}}, dataset-path: {{value: d}}",
            )
            argv = ["s.yml", "--output", "sw", "--name", method, "--trials", count, "--seed", "1"]
            assert sweep.main(argv) == 0
        told = capsys.readouterr().out
        assert all(0.001 < rate < 0.1 and f"lr={rate}" in told for rate in rates[-6:]) and len({*rates[-6:]}) == 6
        assert f"'lr': {max(rates[-6:])}" in told.splitlines()[-1]
        sweep_file("", method, "lr: {min: 0.0, max: 0.1}, dataset: {value: MVTec}, dataset-path: {value: d}")
        refused(capsys, sweep.main, argv, "s.yml", "--name")


def test_sweep_with_two_workers(place, capsys):
    pytest.importorskip("optuna")
    Path("s.yml").write_text(
        "method: bayes\nmetric: {name: metrics/max_roc_auc, goal: maximize}\n"
        "parameters: {lr: {values: [0.01, 0.001]}, improved: {value: 1}, dataset: {value: RoadImages}}\n"
    )
    more = ["--", "--demo", "--dataset-path=datasets/roadimages", "--cpu", "--ngf=2", "--training-steps=4"]
    assert sweep.main(["s.yml", "--trials", "2", "--workers", "2", "--output", "sw", *more]) == 0
    assert "best of 2 trials" in capsys.readouterr().out
    assert len(list(Path("sw/s").glob("trial_*/version_0/metrics.csv"))) == 2
    assert sweep.main(["s.yml", "--trials", "2", "--output", "sw", *more]) == 0
    assert "2 of 2 trials finished" in capsys.readouterr().out
    Path("s.yml").write_text("method: bayes")
    refused(capsys, sweep.main, ["s.yml"], "s.yml", "parameters")
    refused(capsys, sweep.main, ["none.yml"], "none.yml")


@pytest.fixture
def trials(monkeypatch):
    """The learning rates that sweeps' trials were given, and a list of the statuses with which the next ones are to
    end, in place of trainings; None: Ctrl-C comes while the trial runs."""
    rates, statuses = [], []

    class Trial:
        def __init__(self, command, **_):
            options = parse(command[2:])
            rates.append(options.lr)
            self.returncode, self.folder = statuses.pop(0), options.log_dir

        def communicate(self):
            if self.returncode is None:
                raise KeyboardInterrupt
            (self.folder / "version_0").mkdir(parents=True)
            (self.folder / "version_0/metrics.csv").write_text(f"metrics/score\n{rates[-1]}\n")
            return "words\n", None

        def terminate(self):
            pass

    monkeypatch.setattr(sweep, "subprocess", SimpleNamespace(Popen=Trial, PIPE=None, STDOUT=None))
    return rates, statuses


def write_sweep(method, rates):
    Path("s.yml").write_text(
        f"method: {method}\nmetric: {{name: metrics/score, goal: maximize}}\n"
        f"parameters: {{lr: {{values: {rates}}}, dataset: {{value: MVTec}}, dataset-path: {{value: d}}}}\n"
    )


def test_stopped_before_the_training(place, capsys, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "Training", stop)
    words = training()
    without = words[: words.index("--checkpoint-path")] + words[words.index("--checkpoint-path") + 2 :]
    assert train.main(without) == 130 and "before there was anything to save" in capsys.readouterr().out
    assert train.main([*without, "--save", "no"]) == 130 and "(--save no)" in capsys.readouterr().out
    assert train.main(words) == 130 and "before there was anything to save" in capsys.readouterr().out
    Path("ck").mkdir(exist_ok=True)
    Path("ck/last.ckpt").touch()
    assert train.main(words) == 130
    (command,) = re.findall("To continue: (.*)", capsys.readouterr().out)
    assert command.count("--checkpoint-path ck") == 1


@pytest.mark.parametrize("status", [130, None])
def test_a_grid_comes_back_to_the_trial_that_was_stopped(place, trials, capsys, status):
    pytest.importorskip("optuna")
    rates, statuses = trials
    write_sweep("grid", [0.1, 0.01, 0.001])
    argv = ["s.yml", "--output", "sw"]
    statuses += [0, status]
    assert sweep.main(argv) == 130
    assert "To continue: " in capsys.readouterr().out
    statuses += [1, 0]  # what fails by itself is not tried again
    assert sweep.main(argv) == 0
    told = capsys.readouterr().out
    assert "1 of 3 trials finished" in told and "best of 2 trials" in told
    assert sorted({*rates}) == [0.001, 0.01, 0.1] and rates.count(rates[1]) == 2 and not statuses
    write_sweep("grid", [0.1, 0.2])
    refused(capsys, sweep.main, argv, "s.yml", "--name")
    statuses += [0]
    assert sweep.main([*argv, "--name", "part", "--trials", "1"]) == 0 and not statuses


def test_the_seed_of_a_sweep(place, trials):
    pytest.importorskip("optuna")
    rates, statuses = trials
    write_sweep("random", [10.0**-power for power in range(9)])
    chosen = []
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        statuses += [0] * 6
        for count in ("3", "6"):  # what is continued does not repeat its beginning
            argv = ["s.yml", "--output", "sw", "--name", name, "--trials", count, "--seed", seed]
            assert sweep.main(argv) == 0
        chosen.append(rates[-6:])
    assert chosen[0] == chosen[1] != chosen[2] and chosen[0][:3] != chosen[0][3:]


@pytest.mark.slow  # tests/test_distributed_gradients.py has its gradients in the default run
def test_two_processes_train_like_one(place, capsys):
    """Also with a share of images that does not divide, and for what is scored in parts."""
    argv = training("RoadImages", "--norm", "none", "--optimizer", "sgd", "--lr", "0.01", "--batch-size", "3")
    argv += ["--training-steps", "14"]
    program = ["torch.distributed.run", "--nproc_per_node=2", ROOT / "crn/train.py", *argv]
    done = subprocess.run([sys.executable, "-m", *program], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("image AUROC") == done.stdout.count("results: ") == 1  # one process speaks
    assert train.main([*argv, "--checkpoint-path", "one", "--log-dir", "l1"]) == 0
    one, two = load("one/last.ckpt"), load("ck/last.ckpt")
    for key, value in one["model"].items():
        assert torch.allclose(value, two["model"][key], atol=1e-5), key
    assert [two["bookkeeping"][name] for name in ("best_gen", "best_disc")] == [
        one["bookkeeping"][name] for name in ("best_gen", "best_disc")
    ]
    for before, after in zip(one["history"], two["history"]):
        del before["metrics/traintime"], after["metrics/traintime"]
        assert after == pytest.approx(before, abs=1e-4)
    for name, scores in one["calibration"].items():
        assert len(scores) == 4 and two["calibration"][name] == pytest.approx(scores, abs=1e-5)
    assert not Path("lm/version_1").exists()
    capsys.readouterr()
    assert train.main([*argv, "--training-steps", "16"]) == 0  # what two processes saved, one continues
    assert "continuing ck/last.ckpt after 7 of 8" in capsys.readouterr().out


def test_interrupting_without_a_checkpoint_path_tells_where_it_is(place, monkeypatch, capsys):
    class Stop(contextlib.nullcontext):
        def __enter__(self):
            return lambda: True

    monkeypatch.setattr(train, "stop_on_request", Stop)
    argv = training("RoadImages", "--num-competitive-units", "9", "--resume", "no")
    at = argv.index("--checkpoint-path")
    del argv[at : at + 2]
    assert train.main(argv) == 130
    told = capsys.readouterr().out
    assert "--checkpoint-path lm/version_0 --resume yes" in told
    stored = load("lm/version_0/last.ckpt")["bookkeeping"]
    trained = {unit for unit, loss in enumerate(stored["reconstruction_losses"]) if np.isfinite(loss)}
    assert len(trained) == 2 and 0 not in trained and {stored["best_gen"], stored["best_disc"]} <= trained
    monkeypatch.undo()
    os.chdir(place)
    assert train.main([*argv, "--checkpoint-path", "lm/version_0", "--resume", "yes"]) == 0
    assert "continuing lm/version_0/last.ckpt after 1 of 10 batches" in capsys.readouterr().out
    assert len(rows("lm/version_0/metrics.csv")) >= 1 and not Path("lm/version_1").exists()


def test_places_that_do_not_fit(place, monkeypatch, capsys):
    """Fewer steps than were trained, another log folder, and a second run into the same folder."""
    assert train.main(training()) == 0
    refused(capsys, train.main, training("RoadImages", "--training-steps", "4"), "10 batches already")
    Path("other/version_0").mkdir(parents=True)
    Path("other/version_0/metrics.csv").write_text("another run's")
    assert train.main(training("RoadImages", "--training-steps", "24", "--log-dir", "other")) == 0
    assert Path("other/version_0/metrics.csv").read_text() == "another run's"
    assert [row["batch"] for row in rows("other/version_1/metrics.csv")] == ["10", "12"]
    with locked("ck"):
        refused(capsys, train.main, training("RoadImages", "--training-steps", "24"), "another run", "ck")


def test_models_have_folders_of_their_own():
    assert score.model_name(Path("a/ck/last.ckpt")) == "ck_last" != score.model_name(Path("a/ck/best.ckpt"))
