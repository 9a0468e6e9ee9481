"""CS-Flow's scripts as a user runs them: tiny settings, real Lite0 features, every file they promise, bad input."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.models import efficientnet_b5

import csflow.config
from common.demo_data import make_textures
from common.files import digest, locked, read_json, write_json
from common.images import Sample
from common.metrics import best_f1
from csflow import dummy_data, evaluate, extract_features, main, score
from csflow.model import FeatureExtractor
from csflow.utils import load_dataset
from tests.helpers import Report, refused, run_readme

ROOT = Path(__file__).resolve().parents[2]
SMALL = ["--img_size", "128", "--fc_internal", "8", "--kernel_sizes", "3", "--batch_size", "4"]
TINY = [*SMALL, "--extractor", "lite0", "--hide_tqdm_bar", "True", "--cpu"]
TRAINED = [*TINY, "--meta_epochs", "2", "--sub_epochs", "2", "--lr_init", "1e-3"]


@pytest.fixture(scope="session")
def bricks(tmp_path_factory):
    """Demo textures with masks: data/brick in MVTec's layout."""
    root = tmp_path_factory.mktemp("data")
    make_textures(root, size=64, n_train=8, n_good=4, n_defect=1)
    return root


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder of its own for models, results and pictures."""
    monkeypatch.setattr(csflow.config, "HERE", tmp_path)
    return tmp_path


def options(data, place, *more, name="brick"):
    paths = ["--dataset_path", str(data), "--feature_path", str(place / "features"), "--class_name", name]
    return [*paths, "--modelname", "m", *more]


def results(place):
    return json.loads((place / "results/m/results.json").read_text())


def test_without_defective_test_images(bricks, place, capsys):
    shutil.copytree(bricks / "brick", place / "plain", ignore=shutil.ignore_patterns("SYNTHETIC", "ground_truth"))
    shutil.copytree(bricks / "brick/test/hole", place / "plain/validation/good")  # MVTec LOCO's further good images
    Image.new("RGB", (97, 64)).save(place / "plain/train/good/000.png")
    everything = shutil.copytree(place / "plain/test", place / "everything")
    for kept, line in {"hole": "only defective", "good": "only good", None: "no"}.items():
        shutil.copytree(everything, place / "plain/test", dirs_exist_ok=True)
        for folder in (place / "plain/test").iterdir() if kept else [place / "plain/test"]:
            if folder.name != kept:
                shutil.rmtree(folder)
        shutil.rmtree(place / "features", ignore_errors=True)
        argv = options(place, place, *TINY, "--meta_epochs", "1", "--sub_epochs", "1", "--report", name="plain")
        assert main.main([*argv, "--resume", "no"]) == 0
        said = capsys.readouterr().out
        assert ("no masks" in said) == ("viz/maps" in said) == (kept == "hole") and ("pictures: " in said) == bool(kept)
        assert f"has {line} test images: there is no AUROC" in said and "no image AUROC" in said and "nan" not in said
        assert "of 97 x 64 pixels: --img_size takes a height and a width" in said
        result = results(place)
        assert result["image_auroc"] is None and result["threshold"]["images"] == 1 + 1
        Report(place / "results/m/report.html")
    assert score.main(["--images", str(place / "plain/train"), "--modelname", "m", "--cpu"]) == 0
    assert "defective" in capsys.readouterr().out


def rows(path):
    with Path(path).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def trained(bricks, place):
    assert main.main(options(bricks, place, *TRAINED)) == 0
    return place


def test_main_writes_everything(bricks, trained, capsys):
    result = results(trained)
    assert result["data"] == "synthetic" and result["extractor"] == "lite0" and result["device"] == "cpu"
    assert 0 <= result["image_auroc"] <= 1 and 0 <= result["aupro"] <= 1 and 0 <= result["pixel_auroc"] <= 1
    assert result["image_auroc"] == result["image_auroc_std"] == result["last_auroc"]
    assert result["best_auroc"] >= result["last_auroc"] and result["best_auroc_chosen_on"] == "test set"
    assert [entry["epoch"] for entry in result["history"]] == [2, 4]
    assert result["history"][1]["train_loss"] < result["history"][0]["train_loss"]
    assert result["threshold"]["images"] == 1 and result["threshold"]["promised_fpr"] == 0.5

    scores = rows(trained / "results/m/scores.csv")
    assert len(scores) == 9
    above = [float(row["score_std"]) > result["threshold"]["image"] for row in scores]
    assert [row["verdict"] == "defective" for row in scores] == above
    assert all(
        (bricks / "brick" / row["path"]).is_file() and row["path"].split("/")[1] == row["class"] for row in scores
    )

    pictures = {path.name for path in (trained / "viz/scores/m").iterdir()}
    assert pictures == {"score_histogram.png", "all.png"} | {
        f"{d}.png" for d in ("blur", "foreign", "hole", "scratch", "stain")
    }
    assert [path.name for path in (trained / "viz/maps/m").iterdir()] == ["0.jpg"]

    # evaluate.py comes to the same numbers from the file alone; the settings are those of the training.
    (trained / "results/m/results.json").unlink()
    assert evaluate.main(options(bricks, trained, "--cpu")) == 0
    again = results(trained)
    for name in ("image_auroc", "aupro", "threshold", "history"):
        assert again[name] == result[name]
    assert evaluate.main(options(bricks, trained, "--cpu", "--score", "mean", "--fpr", "0.6")) == 0
    assert results(trained)["image_auroc"] == result["image_auroc_mean"]
    assert results(trained)["threshold"]["promised_fpr"] == 0.5

    assert not (trained / "results/m/report.html").exists()
    assert evaluate.main(options(bricks, trained, "--cpu", "--report")) == 0
    report = Report(trained / "results/m/report.html")
    assert len(report.captions) == 6 and "AUPRO" in report.texts and "synthetic" in " ".join(report.texts)
    assert "held out for the threshold" in " ".join(report.texts)
    found = rows(trained / "results/m/scores.csv")
    assert len(found) == 9 and any((trained / "viz/maps/m").glob("*.jpg"))

    # A second main.py does not train again.
    capsys.readouterr()
    assert main.main(options(bricks, trained, *TRAINED)) == 0
    assert "already" in capsys.readouterr().out


def test_features_have_the_promised_layout(bricks, place):
    assert extract_features.main(options(bricks, place, *TINY)) == 0
    folder = place / "features/brick"
    for s, size in enumerate((4, 2, 1)):
        assert np.load(folder / f"brick_scale_{s}_train.npy").shape == (8, 192, size, size)
        assert np.load(folder / f"brick_scale_{s}_test.npy").shape == (9, 192, size, size)
    assert np.load(folder / "brick_labels.npy").tolist() == [0] * 4 + [1, 2, 3, 4, 5]
    paths = np.load(folder / "brick_image_paths.npy")
    assert paths[0].startswith("test/good/") and paths[-1].startswith("test/stain/")


def test_interrupted_extraction_goes_on(bricks, place, monkeypatch, capsys):
    argv = options(bricks, place, *TINY, "--batch_size", "3")
    assert extract_features.main([*argv, "--feature_path", str(place / "whole")]) == 0
    real, calls = extract_features._features, []

    def fail_at(number):
        def compute(batch, *rest):
            calls.append(len(batch))
            if len(calls) == number:
                raise KeyboardInterrupt
            return real(batch, *rest)

        monkeypatch.setattr(extract_features, "_features", compute)

    monkeypatch.setattr(extract_features, "SAVE_EVERY", 0)
    folder = place / "features/brick"
    for number in (3, 4):  # within train, then within test; what lies behind the last save is cut off
        calls.clear()
        fail_at(number)
        assert extract_features.main(argv) == 130
        with (folder / "brick_scale_0_train.npy.part").open("ab") as file:
            file.write(b"half a row" if number == 3 else b"")
        assert not (folder / "brick_features.json").exists()
    calls.clear()
    fail_at(100)
    capsys.readouterr()
    assert extract_features.main(argv) == 0
    assert "continuing an interrupted extraction after 8 training and 6 test images" in capsys.readouterr().out
    assert calls == [3]
    names = sorted(path.name for path in folder.iterdir())
    assert names == sorted(path.name for path in (place / "whole/brick").iterdir())
    for name in names:
        if name.endswith(".npy"):
            assert np.array_equal(np.load(folder / name), np.load(place / "whole/brick" / name)), name

    # Other settings start anew; a part that is not there cannot be continued.
    calls.clear()
    fail_at(2)
    assert extract_features.main(argv) == 130
    (folder / "brick_scale_1_train.npy.part").unlink()
    refused(capsys, extract_features.main, argv, "brick_scale_1_train.npy.part", "start anew")
    # Nor are the rows of one that ends before it has saved taken for those that were counted before.
    calls.clear()
    fail_at(1)
    assert extract_features.main([*argv, "--n_scales", "2"]) == 130
    calls.clear()
    fail_at(100)
    assert extract_features.main(argv) == 0 and sum(calls) == 17
    assert extract_features.main([*argv, "--n_scales", "2"]) == 0


def test_one_run_at_a_time(bricks, trained, capsys):
    with locked(trained / "results/m"):
        refused(capsys, main.main, options(bricks, trained, *TRAINED), "another run")
        refused(capsys, evaluate.main, options(bricks, trained, "--cpu"), "another run")
    with locked(trained / "features/brick"):
        refused(capsys, extract_features.main, options(bricks, trained, *TINY), "another run")


def test_computed_features_train_like_stored_ones(bricks, place):
    assert main.main(options(bricks, place, *TRAINED)) == 0
    stored = results(place)
    assert main.main(options(bricks, place, *TRAINED, "--pre_extracted", "False", "--resume", "False")) == 0
    assert results(place)["history"][-1]["train_loss"] == pytest.approx(stored["history"][-1]["train_loss"], rel=1e-4)


def test_bfloat16_stays_close(bricks, place):
    assert main.main(options(bricks, place, *TRAINED)) == 0
    exact = results(place)["history"][-1]["train_loss"]
    assert main.main(options(bricks, place, *TRAINED, "--precision", "bf16", "--resume", "False")) == 0
    assert results(place)["history"][-1]["train_loss"] == pytest.approx(exact, rel=0.02)


def test_calibration_share_zero_gives_no_verdict(bricks, place):
    assert main.main(options(bricks, place, *TRAINED, "--calibration_share", "0")) == 0
    assert results(place)["threshold"] is None
    assert {row["verdict"] for row in rows(place / "results/m/scores.csv")} == {""}


def test_score_folder(bricks, trained, tmp_path):
    folder = tmp_path / "mine"
    shutil.copytree(bricks / "brick/test/good", folder / "a b")
    (folder / "broken é?.png").write_text("no image")
    output = tmp_path / "out"
    argv = ["--images", str(folder), "--output", str(output), "--modelname", "m", "--cpu", "--maps", "full"]
    assert score.main(argv) == 1
    table = {row["path"]: row for row in rows(output / "scores.csv")}
    assert len(table) == 5 and "cannot" in table["broken é?.png"]["error"]
    known = {Path(row["path"]).name: row for row in rows(trained / "results/m/scores.csv") if row["class"] == "good"}
    for name, row in table.items():
        if row["error"]:
            continue
        assert float(row["score_std"]) == pytest.approx(float(known[Path(name).name]["score_std"]), rel=1e-4)
        assert row["verdict"] == known[Path(name).name]["verdict"]
        anomaly_map = np.asarray(Image.open(output / "maps" / f"{name}.tiff"))
        mask = np.asarray(Image.open(output / "masks" / f"{name}.png"))
        limit = json.loads((output / "results.json").read_text())["threshold"]["pixel"]
        assert anomaly_map.shape == (64, 64) and ((mask > 0) == (anomaly_map > limit)).all()
        assert Image.open(output / "overlays" / f"{name}.jpg").size == (64, 64)
    about = json.loads((output / "results.json").read_text())
    assert about["settings"]["extractor"] == "lite0" and about["settings"]["img_size"] == [128, 128]
    # Several images, a threshold of one's own; in Python, the same.
    chosen = [str(folder / "a b/000.png"), str(folder / "a b/001.png")]
    assert score.main(["--images", *chosen, *argv[2:], "--output", str(tmp_path / "two"), "--threshold", "1e9"]) == 0
    two = rows(tmp_path / "two/scores.csv")
    assert [(row["path"], row["verdict"], row["threshold"]) for row in two] == [
        ("000.png", "good", "1000000000.0"), ("001.png", "good", "1000000000.0"),
    ]  # fmt: skip
    found = run_readme("csflow", ("image.png", chosen[0]), ('"bottle"', '"m"'))["found"]
    assert (found.score, found.verdict) == (pytest.approx(float(two[0]["score_std"])), table["a b/000.png"]["verdict"])
    assert found.map.shape == (4, 4)
    (folder / "broken é?.png").unlink()
    assert score.main(argv) == 0


def test_only_the_first_process_removes_old_pictures(bricks, trained, monkeypatch):
    folder = trained / "viz/maps/m"
    (folder / "99.jpg").write_text("of an evaluation with more images")
    (folder / "0.jpg").write_text("old")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    for rank in ("1", "0"):
        monkeypatch.setenv("RANK", rank)
        test = [Sample(next((bricks / "brick/test/hole").glob("*.png")), 1, "hole")]
        dataset = SimpleNamespace(test=test, class_names=["good", "hole"], name=lambda sample: "test/hole/000.png")
        config = csflow.config.parse(options(bricks, trained), "")
        evaluate._draw(config, dataset, {"std": np.ones(1), "map": np.ones((1, 4, 4), np.float32)}, None)
        assert (folder / "99.jpg").exists() == (rank == "1")
        assert ((folder / "0.jpg").read_bytes() == b"old") == (rank == "1")


def test_bad_data(bricks, place, tmp_path, capsys):
    refused(capsys, main.main, options(tmp_path / "nowhere", place), "nowhere")
    data = tmp_path / "data"
    shutil.copytree(bricks / "brick", data / "brick")
    (data / "brick/SYNTHETIC").unlink()
    argv = options(data, place, *TRAINED)
    whole = next((data / "brick/train/good").iterdir())
    content = whole.read_bytes()
    text = data / "brick/test/good/text.png"
    whole.write_bytes(content[: len(content) // 2])
    text.write_text("hello")
    refused(capsys, main.main, argv, whole.name, "text.png")  # all of them, before anything is computed
    assert not (place / "features").exists()
    whole.write_bytes(content)
    text.unlink()
    (data / "brick/test/empty").mkdir()
    refused(capsys, main.main, argv, "empty")
    (data / "brick/test/empty").rmdir()
    (data / "brick/test/good").rename(data / "brick/test/ok")
    refused(capsys, main.main, argv, "test/ok", "rename")


def test_masks_are_checked_before_the_training(bricks, place, tmp_path, capsys):
    data = tmp_path / "data"
    shutil.copytree(bricks / "brick", data / "brick")
    (data / "brick/SYNTHETIC").unlink()
    mask = next((data / "brick/ground_truth").rglob("*.png"))
    for make in (lambda: mask.write_text("hello"), lambda: Image.new("L", (9, 9)).save(mask)):
        make()
        refused(capsys, main.main, options(data, place, *TRAINED), mask)
        assert not (place / "features").exists() and not (place / "models").exists()


def test_folders_that_cannot_be_written_are_found_before_the_training(bricks, place, capsys):
    (place / "results").write_text("a file where a folder should be")
    refused(capsys, main.main, options(bricks, place, *TRAINED), place / "results/m")
    assert not (place / "features").exists()


def test_names_that_are_not_utf8(bricks, trained, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(bricks / "brick", data / "brick")
    (data / "brick/SYNTHETIC").unlink()
    for part in ("test/good", "test/hole"):
        image = sorted((data / "brick" / part).iterdir())[0]
        image.rename(os.fsdecode(os.fsencode(image.parent) + b"/b\xff.png"))
    more = ["--modelname", "names", "--map_every", "1", "--feature_path", str(tmp_path / "features2")]
    assert main.main(options(data, trained, *TRAINED, *more)) == 0
    assert any("b\\udcff" in row["path"] for row in rows(trained / "results/names/scores.csv"))
    output = tmp_path / "scored"
    argv = options(data, trained, *TINY, "--images", str(data / "brick/test/good"), "--output", str(output))
    assert score.main(argv) == 0
    assert len(rows(output / "scores.csv")) == 4 and len(list((output / "overlays").iterdir())) == 4


def test_results_name_the_data_they_were_computed_on(bricks, trained, tmp_path, capsys):
    assert (results(trained)["data"], results(trained)["trained_on"]) == ("synthetic", "synthetic")
    real = tmp_path / "real"
    shutil.copytree(bricks / "grass", real / "brick")
    (real / "brick/SYNTHETIC").unlink()
    shutil.rmtree(trained / "features")
    capsys.readouterr()
    assert evaluate.main(options(real, trained)) == 0
    found = results(trained)
    assert (found["data"], found["trained_on"]) == (str(real / "brick"), "synthetic")
    # The training's own evaluations were on other images.
    assert found["history"] == [] and "best_auroc" not in found and "best" not in capsys.readouterr().out
    assert found["epochs_trained"] == 4


def test_features_of_something_else(bricks, place, tmp_path, capsys):
    data = tmp_path / "data"
    shutil.copytree(bricks, data)
    assert extract_features.main(options(data, place, *TINY)) == 0
    refused(capsys, main.main, options(data, place, *TRAINED, "--img_size", "256"), "img_size", "extract")
    refused(capsys, main.main, options(data, place, *TRAINED, "--extractor", "effnetB5"), "lite0", "extract")
    array = place / "features/brick/brick_scale_1_train.npy"
    flipped = bytearray(array.read_bytes())
    flipped[1000] ^= 1
    whole, about = array.read_bytes(), array.with_name("brick_features.json")
    array.write_bytes(flipped)
    refused(capsys, main.main, options(data, place, *TINY), "brick_scale_1_train.npy is not what was extracted")
    array.write_bytes(whole)
    old = read_json(about)
    write_json(about, {name: value for name, value in old.items() if name != "digests"})
    config = csflow.config.parse(options(data, place, *TINY))
    extract_features.open_features(config, load_dataset(config))
    assert "damage to them is not seen" in capsys.readouterr().out
    write_json(about, old)
    content = array.read_bytes()
    array.write_bytes(content[:-8])
    refused(capsys, main.main, options(data, place, *TRAINED), array.name)
    np.save(array, np.array([{}]), allow_pickle=True)
    refused(capsys, main.main, options(data, place, *TRAINED), array.name)
    array.write_bytes(content)
    some = next((data / "brick/test/good").glob("*.png"))
    shutil.copyfile(some, some.with_name("more.png"))
    refused(capsys, main.main, options(data, place, *TRAINED), "SYNTHETIC")  # real files beside generated ones
    (data / "brick/SYNTHETIC").unlink()
    refused(capsys, main.main, options(data, place, *TRAINED), "other images")


def test_checkpoint_of_something_else(bricks, trained, capsys):
    before = (trained / "models/tmp/m").read_bytes()
    for more in (["--fc_internal", "16"], ["--seed", "1"], ["--clamp", "2"]):
        refused(capsys, main.main, options(bricks, trained, *TRAINED, *more), more[0][2:], "--resume False")
    refused(capsys, evaluate.main, options(bricks, trained, "--fc_internal", "16"), "fc_internal")
    refused(capsys, evaluate.main, ["--modelname", "none"], "no checkpoint")
    assert (trained / "models/tmp/m").read_bytes() == before
    (trained / "models/tmp/m").write_bytes(before[: len(before) // 2])
    refused(capsys, evaluate.main, options(bricks, trained), "broken")


def test_a_file_of_the_first_version_is_continued_and_used(bricks, trained, capsys):
    """They had no scaler and no checksum of the extractor's weights, and other names for precisions."""
    path = trained / "models/tmp/m"
    content = torch.load(path, weights_only=True)
    content["settings"]["precision"] = "float32"
    torch.save({name: value for name, value in content.items() if name not in ("scaler", "weights")}, path)
    assert evaluate.main(options(bricks, trained, "--cpu")) == 0
    assert main.main(options(bricks, trained, *TRAINED, "--meta_epochs", "3")) == 0
    assert "continuing" in capsys.readouterr().out


def test_parameters_that_a_step_spoils_are_not_saved(bricks, trained, capsys, monkeypatch):
    """The loss is computed before the step; Ctrl-C after it would save what no later loss has shown."""
    before = (trained / "models/tmp/m").read_bytes()

    def spoil(parameters, limit):
        signal.raise_signal(signal.SIGINT)
        for parameter in parameters:
            parameter.grad.fill_(float("nan"))

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", spoil)
    argv = options(bricks, trained, *TRAINED, "--meta_epochs", "3")
    capsys.readouterr()
    assert main.main(argv) == 2
    error = capsys.readouterr().err
    assert "the parameters are not finite at epoch 5, step 1" in error and "Traceback" not in error
    assert (trained / "models/tmp/m").read_bytes() == before


def test_features_are_mapped_and_read_row_by_row(bricks, place):
    config = csflow.config.parse(options(bricks, place, *TINY), "")
    dataset = load_dataset(config)
    extract_features.extract(config, dataset, torch.device("cpu"))
    train, test, _ = extract_features.open_features(config, dataset)
    assert all(isinstance(array, np.memmap) for array in (*train.maps, *test.maps))
    batch = train.batch([2, 0])
    assert [tuple(x.shape) for x in batch] == [(2, 192, 4, 4), (2, 192, 2, 2), (2, 192, 1, 1)]
    assert torch.equal(batch[0][1], torch.tensor(np.array(train.maps[0][0])))
    assert batch[0].untyped_storage().nbytes() == 2 * 192 * 16 * 4  # these rows, not the file


def test_features_of_other_weights(bricks, trained, monkeypatch, capsys):
    monkeypatch.setattr(FeatureExtractor, "checksum", lambda self: "0badc0de")
    for call, more in ((evaluate.main, []), (main.main, TRAINED), (score.main, ["--images", str(bricks / "brick")])):
        argv = options(bricks, trained, *more, "--pre_extracted", "False")
        refused(capsys, call, argv, "other weights", "0badc0de")


def test_extractor_weights_from_a_file(bricks, place, tmp_path, capsys):
    """EfficientNet-B5 with weights of the user's own; features of one file are not taken for another's."""
    torch.manual_seed(0)
    torch.save(efficientnet_b5().state_dict(), tmp_path / "b5.pt")
    argv = options(bricks, place, *SMALL, "--cpu", "--extractor", "effnetB5", "--extractor_weights")
    assert extract_features.main([*argv, str(tmp_path / "b5.pt")]) == 0
    assert np.load(place / "features/brick/brick_scale_0_train.npy", mmap_mode="r").shape == (8, 304, 4, 4)
    (tmp_path / "b5.pt").write_text("hello")
    refused(capsys, extract_features.main, [*argv, str(tmp_path / "b5.pt")], "b5.pt")
    refused(capsys, extract_features.main, [*argv, str(tmp_path / "none.pt")], "none.pt")


def test_extractor_named_but_not_to_be_had(bricks, place, tmp_path, monkeypatch, capsys):
    def offline(*_, **__):
        raise urllib.error.URLError("no network")

    (tmp_path / "cut_off").write_bytes(b"the first bytes")
    argv = options(bricks, place, "--img_size", "128", "--hide_tqdm_bar", "True", "--extractor")
    with monkeypatch.context() as patch:
        patch.setenv("TORCH_HOME", str(tmp_path))
        patch.setattr("torch.hub.urlopen", lambda _: urllib.request.urlopen((tmp_path / "cut_off").as_uri()))
        assert extract_features.main([*argv, "effnetB5"]) == 2
        error = capsys.readouterr().err.splitlines()[-1]  # after torch's bar
        assert "invalid hash value" in error and "--extractor lite0" in error
    monkeypatch.setattr("csflow.model._b5_weights", offline)
    refused(capsys, extract_features.main, [*argv, "effnetB5"], "--extractor lite0", "no network")
    assert extract_features.main([*argv, "auto"]) == 0
    assert "instead" in capsys.readouterr().out
    assert json.loads((place / "features/brick/brick_features.json").read_text())["extractor"] == "lite0"


def extracted(path: Path, features: np.ndarray) -> None:
    """Put these in the place of extracted features."""
    np.save(path, features)
    about = read_json(path.with_name("brick_features.json"))
    about["digests"][path.name] = digest(path)
    write_json(path.with_name("brick_features.json"), about)


def test_non_finite_loss_keeps_the_model(bricks, place, capsys):
    assert main.main(options(bricks, place, *TRAINED)) == 0
    before = (place / "models/tmp/m").read_bytes()
    array = place / "features/brick/brick_scale_0_train.npy"
    features = np.load(array)
    extracted(array, np.full_like(features, 3e38))  # sums of them are beyond float32
    refused(capsys, main.main, options(bricks, place, *TRAINED, "--meta_epochs", "3"), "epoch 5, step 1")
    assert (place / "models/tmp/m").read_bytes() == before


def test_values_that_are_not_finite_are_no_scores(bricks, trained, capsys):
    # After the last step, which no later loss would reveal.
    argv = options(bricks, trained, *TINY, "--lr_init", "1e38", "--meta_epochs", "1", "--sub_epochs", "1")
    refused(capsys, main.main, [*argv, "--batch_size", "64", "--modelname", "burst"], "not finite")
    array = trained / "features/brick/brick_scale_0_test.npy"
    features = np.load(array)
    extracted(array, np.where(np.arange(len(features))[:, None, None, None] == 1, np.float32(3e38), features))
    for call in (evaluate.main, main.main):
        refused(capsys, call, options(bricks, trained, *TRAINED), "not finite")
    extracted(array, features)
    stored = torch.load(trained / "models/tmp/m", weights_only=True)
    stored["model"]["blocks.0.s1.gamma0"].fill_(float("nan"))
    torch.save(stored, trained / "models/tmp/m")
    refused(capsys, score.main, options(bricks, trained, "--images", str(bricks / "brick/test")), "gamma0", "nan")


def test_scoring_survives_what_cannot_be_written(bricks, trained, tmp_path, capsys):
    folder = tmp_path / "new"
    shutil.copytree(bricks / "brick/test/good", folder)
    shutil.copyfile(folder / "000.png", folder / ("n" * 251 + ".png"))  # no room for .tiff
    Image.new("RGB", (66000, 2)).save(folder / "wide.png")  # no JPEG can be so wide: it is reduced
    argv = options(bricks, trained, "--cpu", "--images", str(folder), "--output", str(tmp_path / "out"))
    assert score.main(argv) == 1
    table = {row["path"]: row for row in rows(tmp_path / "out/scores.csv")}
    assert len(table) == 6 and all(float(row["score_std"]) > 0 for row in table.values())
    assert [name for name, row in table.items() if row["error"]] == ["n" * 251 + ".png"]
    assert "too long" in table["n" * 251 + ".png"]["error"]


def test_scores_are_not_mixed(bricks, trained, tmp_path, capsys):
    images = tmp_path / "images"
    shutil.copytree(bricks / "brick/test/good", images)
    argv = options(bricks, trained, "--cpu", "--images")
    refused(capsys, score.main, [*argv, str(images), "--output", str(images / "out")], "--output")
    assert score.main([*argv, str(images), "--output", str(tmp_path / "out")]) == 0
    assert score.main([*argv, str(images), "--output", str(tmp_path / "out")]) == 0
    other = [*argv, str(bricks / "brick/test/good"), "--output", str(tmp_path / "out")]
    refused(capsys, score.main, other, "other images", "--output")


@pytest.fixture
def repository(tmp_path):
    """A copy of the code, where the default folders are empty."""
    ignored = shutil.ignore_patterns("data", "models", "viz", "results", "__pycache__")
    for name in ("csflow", "common"):
        shutil.copytree(ROOT / name, tmp_path / "repo" / name, ignore=ignored)
    return tmp_path / "repo"


def test_main_without_data_draws_its_own(repository, tmp_path):
    argv = [
        "--img_size",
        "128",
        "--fc_internal",
        "8",
        "--meta_epochs",
        "2",
        "--sub_epochs",
        "1",
        "--extractor",
        "lite0",
    ]
    done = subprocess.run(
        [sys.executable, str(repository / "csflow/main.py"), *argv],
        cwd=tmp_path, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "drew the dummy data" in done.stdout and "not real data" in done.stdout
    assert "training on 3 good images of dummy_data, 1 held out" in done.stdout
    found = json.loads((repository / "csflow/results/dummy_test/results.json").read_text())
    assert found["data"] == "synthetic" and found["images"] == {"good": 8, "defective": 8}
    assert (repository / "csflow/viz/scores/dummy_test/all.png").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["repo"]


def test_two_processes_train_like_one(bricks, repository, tmp_path, monkeypatch, capsys):
    here = repository / "csflow"
    monkeypatch.setattr(csflow.config, "HERE", here)
    argv = options(bricks, tmp_path, *TINY, "--batch_size", "3", "--meta_epochs", "2", "--sub_epochs", "1")

    assert main.main([*argv, "--modelname", "one"]) == 0
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "main.py", *argv]
    done = subprocess.run([*command, "--modelname", "two"], cwd=here, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    together = done.stdout
    assert together.count("image AUROC 0.") <= 3 and together.count("results: ") == 1  # one process speaks
    one, two = (torch.load(here / "models/tmp" / name, weights_only=True) for name in ("one", "two"))
    for key, value in one["model"].items():
        assert torch.allclose(value, two["model"][key], atol=1e-5), key
    for before, after in zip(one["history"], two["history"]):
        assert after == pytest.approx(before, abs=1e-4)
    scores = [
        [float(row["score_std"]) for row in rows(here / "results" / name / "scores.csv")] for name in ("one", "two")
    ]
    assert scores[1] == pytest.approx(scores[0], rel=1e-3)
    # What two processes saved, one continues.
    capsys.readouterr()
    assert main.main([*argv, "--modelname", "two", "--meta_epochs", "3"]) == 0
    assert "continuing" in capsys.readouterr().out


def test_best_f1_by_hand():
    # F1 = 2 TP / (TP + FP + 2): 2/3 at 0.9, 2/4 at 0.8, 4/6 at 0.7, 4/7 at 0.1; the highest of the two best ones.
    labels, scores = np.array([0, 3, 0, 1, 0]), np.array([0.8, 0.9, 0.7, 0.7, 0.1])
    assert best_f1(labels, scores) == (pytest.approx(2 / 3), 0.9)
    assert best_f1(np.array([0, 0, 1, 1]), np.array([0.1, 0.2, 0.3, 0.4])) == (1.0, 0.3)
    for one_class in (0 * labels, labels + 1):
        assert np.isnan(best_f1(one_class, scores)).all()


def test_dummy_data(tmp_path):
    dummy_data.make_dummy_data(tmp_path / "one")
    dummy_data.make_dummy_data(tmp_path / "two")
    images = sorted((tmp_path / "one").rglob("*.png"))
    assert [len(list((tmp_path / "one" / part).iterdir())) for part in dummy_data.PARTS] == [4, 8, 8]
    for path in images:
        assert path.read_bytes() == (tmp_path / "two" / path.relative_to(tmp_path / "one")).read_bytes()
        image = Image.open(path)
        black = (np.asarray(image)[..., 0] == 0).sum()
        assert image.size == (448, 448) and image.mode == "RGBA"
        if "anomaly" in path.parts:
            assert black == pytest.approx(4 * np.pi * 30**2, rel=0.02)
        else:
            assert black == 4 * 52**2


def test_settings_from_python():
    config = csflow.config.Config(output_path="cs", img_size=256)
    assert config.model_file == Path("cs/models/tmp/dummy_test") and config.img_size == (256, 256)
