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
from common.files import UserError, digest, locked, read_json, write_json
from common.images import Sample
from csflow import dummy_data, evaluate, extract_features, main, score, utils
from csflow.model import FeatureExtractor
from tests.helpers import Report, refused, run_readme

ROOT = Path(__file__).resolve().parents[2]
SMALL = ["--img_size", "128", "--batch_size", "4", "--hide_tqdm_bar", "--cpu"]
LITE = [*SMALL, "--extractor", "lite0"]
MORE = "--fc_internal 8 --kernel_sizes 3 --meta_epochs 2 --sub_epochs 2 --lr_init 1e-3"
TRAINED = [*LITE, *MORE.split()]


@pytest.fixture(scope="module")
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


@pytest.fixture
def undrawn(monkeypatch):
    """Pictures take most of the time."""
    monkeypatch.setattr(evaluate, "_draw_scores", lambda *_: None)
    monkeypatch.setattr(evaluate, "_draw_maps", lambda *_: None)


@pytest.fixture(scope="module")
def first_training(bricks, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(csflow.config, "HERE", folder)
        assert main.main(options(bricks, folder, *TRAINED)) == 0
    return folder


@pytest.fixture
def trained(first_training, place, undrawn):
    """A folder with a trained model, its features, results and pictures; later pictures are not drawn."""
    return shutil.copytree(first_training, place, dirs_exist_ok=True)


@pytest.fixture
def data(bricks, tmp_path):
    """A copy of the bricks, as if they were the user's own: data/brick."""
    shutil.copytree(bricks / "brick", tmp_path / "data/brick", ignore=shutil.ignore_patterns("SYNTHETIC"))
    return tmp_path / "data"


def options(data, place, *more, name="brick"):
    paths = ["--dataset_path", str(data), "--feature_path", str(place / "features"), "--class_name", name]
    return [*paths, "--modelname", "m", *more]


def results(place, name="m"):
    return json.loads((place / f"results/{name}/results.json").read_text())


def rows(path):
    with Path(path).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_without_defective_test_images(data, place, undrawn, capsys):
    brick = data / "brick"
    shutil.rmtree(brick / "ground_truth")
    shutil.copytree(brick / "test/hole", brick / "validation/good")  # MVTec LOCO's further good images
    Image.new("RGB", (97, 64)).save(brick / "train/good/000.png")
    everything = shutil.copytree(brick / "test", place / "everything")
    for kept, line in {"hole": "only defective", "good": "only good", None: "no"}.items():
        shutil.rmtree(brick / "test")
        shutil.copytree(everything / kept, brick / f"test/{kept}") if kept else (brick / "test").mkdir()
        shutil.rmtree(place / "features", ignore_errors=True)
        argv = options(data, place, *TRAINED, "--meta_epochs", "1", "--sub_epochs", "1", "--report", "--resume", "no")
        assert main.main(argv) == 0
        said = capsys.readouterr().out
        assert ("no masks" in said) == ("viz/maps" in said) == (kept == "hole") and ("pictures: " in said) == bool(kept)
        assert f"has {line} test images: there is no AUROC" in said and "no image AUROC" in said and "nan" not in said
        assert "of 97 x 64 pixels: --img_size takes a height and a width" in said
        assert results(place)["image_auroc"] is None and results(place)["threshold"]["images"] == 1 + 1
        Report(place / "results/m/report.html")
    assert score.main(["--images", str(brick / "train"), "--modelname", "m", "--cpu"]) == 0
    assert "defective" in capsys.readouterr().out


def test_main_writes_everything(bricks, trained, capsys):
    result = results(trained)
    assert result["data"] == result["trained_on"] == "synthetic" and result["extractor"] == "lite0"
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
    defects = ("blur", "foreign", "hole", "scratch", "stain")
    pictures = {path.name for path in (trained / "viz/scores/m").iterdir()}
    assert pictures == {"score_histogram.png", "all.png"} | {f"{defect}.png" for defect in defects}
    assert [path.name for path in (trained / "viz/maps/m").iterdir()] == ["0.jpg"]

    # evaluate.py comes to the same numbers from the file alone; the settings are those of the training.
    (trained / "results/m/results.json").unlink()
    features = ["--feature_path", str(trained / "features"), "--cpu"]
    assert evaluate.main([*features, "--checkpoint", str(trained / "models/tmp/m"), "--report"]) == 0
    assert all(results(trained)[name] == result[name] for name in ("image_auroc", "aupro", "threshold", "history"))
    report = Report(trained / "results/m/report.html")
    assert len(report.captions) == 6 and "AUPRO" in report.texts and "synthetic" in " ".join(report.texts)
    assert "held out for the threshold" in " ".join(report.texts)
    more = ["--data", str(bricks / "brick"), "--score", "mean", "--fpr", "0.6"]
    assert evaluate.main([*features, "--modelname", "m", *more]) == 0
    assert results(trained)["image_auroc"] == result["image_auroc_mean"]
    assert results(trained)["threshold"]["promised_fpr"] == 0.5

    # A second main.py does not train again.
    capsys.readouterr()
    assert main.main(options(bricks, trained, *TRAINED)) == 0
    assert "already" in capsys.readouterr().out


def test_a_training_of_so_many_minutes_is_finished(bricks, trained, capsys):
    argv = [*options(bricks, trained, *TRAINED), "--modelname", "short"]
    assert main.main([*argv, "--minutes", "1e-6"]) == 0 and results(trained, "short")["epochs_trained"] == 1
    evaluation = ["--feature_path", str(trained / "features"), "--modelname", "short", "--cpu"]
    assert evaluate.main(evaluation) == 0
    assert "not finished" not in capsys.readouterr().out
    file = trained / "models/tmp/short"
    content = torch.load(file)
    torch.save({**content, "settings": {**content["settings"], "minutes": 60.0}}, file)  # stopped before
    assert evaluate.main(evaluation) == 0
    assert "the model's training is not finished: 1 epoch" in capsys.readouterr().out


def test_a_file_of_the_first_version_is_resumed_and_used(bricks, trained, capsys):
    """They had no scaler and no checksum of the extractor's weights, and other names for precisions (tests/net has
    files of the version before this one)."""
    path = trained / "models/tmp/m"
    content = torch.load(path, weights_only=True)
    content |= {"optimizer": content["optimizer"][0], "loss_sum": 1.0}
    content["settings"]["precision"] = "float32"
    del content["scaler"], content["sums"], content["weights"], content["settings"]["max_value"]
    torch.save(content, path)
    assert evaluate.main(options(bricks, trained, "--cpu")) == 0
    assert main.main(options(bricks, trained, *TRAINED, "--meta_epochs", "3")) == 0
    assert "after epoch 4" in capsys.readouterr().out and len(results(trained)["history"]) == 3


def test_features_have_the_promised_layout_and_are_read_row_by_row(trained, bricks):
    config = csflow.config.parse(options(bricks, trained, *LITE))
    dataset = utils.load_dataset(config.root, 65535, config.img_size)
    parts = extract_features.open_features(config.feature_dir, dataset, config.extraction)
    for count, part in zip((8, 9), parts):
        assert [array.shape for array in part.maps] == [(count, 192, size, size) for size in (4, 2, 1)]
        assert all(isinstance(array, np.memmap) for array in part.maps) and part.extractor == "lite0"
    batch = parts[0].batch([2, 0])
    assert torch.equal(batch[0][1], torch.tensor(np.array(parts[0].maps[0][0])))
    assert batch[0].untyped_storage().nbytes() == 2 * 192 * 16 * 4  # these rows, not the file
    assert np.load(trained / "features/brick/brick_labels.npy").tolist() == [0] * 4 + [1, 2, 3, 4, 5]
    paths = np.load(trained / "features/brick/brick_image_paths.npy")
    assert paths[0].startswith("test/good/") and paths[-1].startswith("test/stain/")


def test_interrupted_extraction_resumes(bricks, place, monkeypatch, capsys):
    argv = ["--data", str(bricks / "brick"), "--feature_path", str(place / "features"), *LITE, "--batch_size", "3"]
    assert extract_features.main([*argv, "--output", str(place / "whole")]) == 0
    real, calls = FeatureExtractor.forward, []

    def fail_at(number):
        calls.clear()

        def forward(self, images):
            calls.append(len(images))
            if len(calls) == number:
                raise KeyboardInterrupt
            return real(self, images)

        monkeypatch.setattr(FeatureExtractor, "forward", forward)

    monkeypatch.setattr(extract_features, "SAVE_EVERY", 0)
    folder = place / "features/brick"
    for number in (3, 4):  # within train, then within test; what lies behind the last save is cut off
        fail_at(number)
        assert extract_features.main(argv) == 130
        with (folder / "brick_scale_0_train.npy.part").open("ab") as file:
            file.write(b"half a row" if number == 3 else b"")
        assert not (folder / "brick_features.json").exists()
    fail_at(100)
    capsys.readouterr()
    assert extract_features.main(argv) == 0
    assert "resuming an interrupted extraction after 8 training and 6 test images" in capsys.readouterr().out
    assert calls == [3]
    names = sorted(path.name for path in folder.iterdir())
    assert names == sorted(path.name for path in (place / "whole/brick").iterdir())
    for name in names:
        if name.endswith(".npy"):
            assert np.array_equal(np.load(folder / name), np.load(place / "whole/brick" / name)), name

    # Files that are missing or cut off are extracted again.
    fail_at(5)
    assert extract_features.main(argv) == 130
    (folder / "brick_scale_1_train.npy.part").unlink()
    os.truncate(folder / "brick_scale_2_test.npy.part", 100)
    fail_at(2)
    assert extract_features.main(argv) == 130
    # Nor are the rows of one that ends before it has saved taken for those that were counted before.
    fail_at(1)
    assert extract_features.main([*argv, "--n_scales", "2"]) == 130
    fail_at(100)
    assert extract_features.main(argv) == 0 and sum(calls) == 17
    for name in names:
        if name.endswith(".npy"):
            assert np.array_equal(np.load(folder / name), np.load(place / "whole/brick" / name)), name


def test_one_run_at_a_time(bricks, trained, capsys):
    with locked(trained / "results/m"):
        refused(capsys, main.main, options(bricks, trained, *TRAINED), "another run")
        refused(capsys, evaluate.main, options(bricks, trained, "--cpu"), "another run")
    with locked(trained / "features/brick"):
        argv = ["--data", bricks / "brick", "--feature_path", trained / "features", *LITE]
        refused(capsys, extract_features.main, argv, "another run")


@pytest.mark.parametrize(("more", "tolerance"), [("--pre_extracted False", 1e-4), ("--precision bf16", 0.02)])
def test_it_trains_alike(more, tolerance, bricks, trained):
    before = results(trained)["history"][-1]["train_loss"]
    assert main.main(options(bricks, trained, *TRAINED, "--resume", "no", *more.split())) == 0
    assert results(trained)["history"][-1]["train_loss"] == pytest.approx(before, rel=tolerance)


def test_calibration_share_zero_gives_no_verdict(bricks, trained, capsys):
    more = ["--calibration_share", "0", "--modelname", "all", "--save_model", "no"]
    assert main.main(options(bricks, trained, *TRAINED, *more)) == 0
    assert results(trained, "all")["threshold"] is None and "no verdicts" in capsys.readouterr().out
    assert {row["verdict"] for row in rows(trained / "results/all/scores.csv")} == {""}
    assert not (trained / "models/tmp/all").exists()


def test_score_folder(bricks, trained, tmp_path):
    folder, output = tmp_path / "mine", tmp_path / "out"
    shutil.copytree(bricks / "brick/test/good", folder / "a b")
    (folder / "broken é?.png").write_text("no image")
    argv = ["--images", str(folder), "--output", str(output), "--modelname", "m", "--cpu", "--maps", "full"]
    assert score.main(argv) == 1
    table = {row["path"]: row for row in rows(output / "scores.csv")}
    assert len(table) == 5 and "cannot" in table.pop("broken é?.png")["error"]
    known = {Path(row["path"]).name: row for row in rows(trained / "results/m/scores.csv") if row["class"] == "good"}
    summary = json.loads((output / "results.json").read_text())
    for name, row in table.items():
        assert float(row["score"]) == pytest.approx(float(known[Path(name).name]["score_std"]), rel=1e-4)
        assert row["verdict"] == known[Path(name).name]["verdict"]
        anomaly_map = np.asarray(Image.open(output / "maps" / f"{name}.tiff"))
        mask = np.asarray(Image.open(output / "masks" / f"{name}.png"))
        assert anomaly_map.shape == (64, 64) and ((mask == 255) == (anomaly_map > summary["threshold"]["pixel"])).all()
        assert Image.open(output / "overlays" / f"{name}.jpg").size == (64, 64)
    assert summary["settings"]["extractor"] == "lite0" and summary["settings"]["img_size"] == [128, 128]
    # Several images, a threshold of one's own; in Python, the same.
    chosen = [str(folder / "a b/000.png"), str(folder / "a b/001.png")]
    assert score.main(["--images", *chosen, *argv[2:], "--output", str(tmp_path / "two"), "--threshold", "1e9"]) == 0
    two = rows(tmp_path / "two/scores.csv")
    assert [(row["path"], row["verdict"], row["threshold"]) for row in two] == [
        ("000.png", "good", "1000000000.0"), ("001.png", "good", "1000000000.0"),
    ]  # fmt: skip
    found = run_readme("csflow", ("image.png", chosen[0]), ('"bottle"', '"m"'))["found"]
    assert (found.score, found.verdict) == (pytest.approx(float(two[0]["score"])), table["a b/000.png"]["verdict"])
    assert found.map.shape == (4, 4)


def test_only_the_first_process_removes_old_pictures(bricks, tmp_path, monkeypatch):
    (tmp_path / "99.jpg").write_text("of an evaluation with more images")
    (tmp_path / "0.jpg").write_text("old")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    for rank in ("1", "0"):
        monkeypatch.setenv("RANK", rank)
        test = [Sample(next((bricks / "brick/test/hole").glob("*.png")), 1, "hole")]
        dataset = SimpleNamespace(test=test, name=lambda sample: "test/hole/000.png", max_value=65535)
        evaluate._draw_maps(tmp_path, dataset, np.ones((1, 4, 4), np.float32), [np.array([0])], "title", None, True)
        assert (tmp_path / "99.jpg").exists() == (rank == "1")
        assert ((tmp_path / "0.jpg").read_bytes() == b"old") == (rank == "1")


def test_bad_data_are_found_before_anything_is_computed(data, place, capsys):
    argv, text = options(data, place, *TRAINED), data / "brick/test/good/text.png"
    whole, mask = (next((data / "brick" / part).rglob("*.png")) for part in ("train/good", "ground_truth"))
    whole.write_bytes(whole.read_bytes()[:99])
    text.write_text("hello")
    refused(capsys, main.main, argv, whole.name, "text.png")  # all of them
    whole.unlink()
    text.unlink()
    (data / "brick/test/good").rename(data / "brick/test/ok")
    refused(capsys, main.main, argv, "test/ok", "rename")
    (data / "brick/test/ok").rename(data / "brick/test/good")
    content = mask.read_bytes()
    mask.write_text("hello")
    refused(capsys, main.main, argv, mask)
    mask.write_bytes(content)
    (place / "results").write_text("a file where a folder should be")
    refused(capsys, main.main, argv, place / "results/m")
    assert not (place / "features").exists() and not list(place.glob("models/tmp/*"))


def test_names_that_are_not_utf8(data, trained, tmp_path):
    for part in ("test/good", "test/hole"):
        image = sorted((data / "brick" / part).iterdir())[0]
        image.rename(os.fsdecode(os.fsencode(image.parent) + b"/b\xff.png"))
    more = ["--modelname", "names", "--map_every", "1", "--feature_path", str(tmp_path / "features2")]
    assert main.main(options(data, trained, *TRAINED, *more)) == 0
    assert any("b\\udcff" in row["path"] for row in rows(trained / "results/names/scores.csv"))
    argv = ["--modelname", "m", "--cpu", "--images", str(data / "brick/test/good"), "--output", str(tmp_path / "out")]
    assert score.main(argv) == 0
    assert len(rows(tmp_path / "out/scores.csv")) == 4 and len(list((tmp_path / "out/overlays").iterdir())) == 4


def test_results_name_the_data_they_were_computed_on(bricks, trained, tmp_path, capsys):
    real = tmp_path / "real"
    shutil.copytree(bricks / "grass", real / "brick", ignore=shutil.ignore_patterns("SYNTHETIC"))
    shutil.rmtree(trained / "features")
    assert evaluate.main(options(real, trained, "--cpu")) == 0
    result = results(trained)
    assert (result["data"], result["trained_on"]) == (str(real / "brick"), "synthetic")
    # The training's own evaluations were on other images.
    assert result["history"] == [] and "best_auroc" not in result and "last" not in capsys.readouterr().out
    assert result["epochs_trained"] == 4


def test_features_of_something_else(data, bricks, trained, monkeypatch, capsys):
    argv = options(bricks, trained, *TRAINED)
    refused(capsys, main.main, [*argv, "--img_size", "256"], "img_size", "extract")
    refused(capsys, main.main, [*argv, "--extractor", "effnetB5"], "lite0", "extract")
    array = trained / "features/brick/brick_scale_1_train.npy"
    whole, metadata = array.read_bytes(), array.with_name("brick_features.json")
    array.write_bytes(whole[:1000] + bytes([whole[1000] ^ 1]) + whole[1001:])
    refused(capsys, main.main, argv, "brick_scale_1_train.npy is not what was extracted")
    array.write_bytes(whole)
    write_json(metadata, {name: value for name, value in read_json(metadata).items() if name != "digests"})
    assert evaluate.main(options(bricks, trained, "--cpu")) == 0
    assert "damage to them is not seen" in capsys.readouterr().out
    some = next((data / "brick/test/good").glob("*.png"))
    shutil.copyfile(some, some.with_name("more.png"))
    refused(capsys, main.main, options(data, trained, *TRAINED), "other images")
    monkeypatch.setattr(FeatureExtractor, "checksum", lambda self: "0badc0de")
    for call, more in ((evaluate.main, []), (main.main, TRAINED)):
        refused(capsys, call, options(bricks, trained, *more, "--pre_extracted", "no"), "other weights", "0badc0de")
    refused(capsys, score.main, ["--images", bricks / "brick", "--modelname", "m"], "other weights", "0badc0de")


def test_extractor_weights_from_a_file(bricks, place, tmp_path, capsys):
    """EfficientNet-B5 with weights of the user's own; features of one file are not taken for another's."""
    torch.manual_seed(0)
    torch.save(efficientnet_b5().state_dict(), tmp_path / "b5.pt")
    argv = ["--data", str(bricks / "brick"), "--feature_path", str(place), *SMALL]
    argv += ["--img_size", "32", "--n_scales", "1", "--extractor", "effnetB5", "--extractor_weights"]
    assert extract_features.main([*argv, str(tmp_path / "b5.pt")]) == 0
    assert np.load(place / "brick/brick_scale_0_train.npy", mmap_mode="r").shape == (8, 304, 1, 1)
    (tmp_path / "b5.pt").write_text("hello")
    for name in ("b5.pt", "none.pt"):
        refused(capsys, extract_features.main, [*argv, str(tmp_path / name)], name)


def test_extractor_named_but_not_to_be_had(bricks, place, tmp_path, monkeypatch, capsys):
    def offline(*_, **__):
        raise urllib.error.URLError("no network")

    (tmp_path / "cut_off").write_bytes(b"the first bytes")
    argv = ["--data", str(bricks / "brick"), "--feature_path", str(place), *SMALL, "--extractor"]
    with monkeypatch.context() as patch:
        patch.setenv("TORCH_HOME", str(tmp_path))
        patch.setattr("torch.hub.urlopen", lambda _: urllib.request.urlopen((tmp_path / "cut_off").as_uri()))
        assert extract_features.main([*argv, "effnetB5"]) == 2
        error = capsys.readouterr().err.splitlines()[-1]  # after torch's bar
        assert "invalid hash value" in error and "--extractor lite0" in error
    monkeypatch.setattr("csflow.model._download_b5", offline)
    refused(capsys, extract_features.main, [*argv, "effnetB5"], "--extractor lite0", "no network")
    assert extract_features.main([*argv, "auto"]) == 0
    assert "instead" in capsys.readouterr().out
    assert json.loads((place / "brick/brick_features.json").read_text())["extractor"] == "lite0"


def test_values_that_are_not_finite_are_neither_saved_nor_scores(bricks, trained, monkeypatch, capsys):
    path = trained / "models/tmp/m"
    before, longer = path.read_bytes(), options(bricks, trained, *TRAINED, "--meta_epochs", "3")

    def extracted(part, change):
        """Change the extracted features."""
        array = trained / f"features/brick/brick_scale_0_{part}.npy"
        np.save(array, change(np.load(array)).astype(np.float32))
        metadata = read_json(array.with_name("brick_features.json"))
        metadata["digests"][array.name] = digest(array)
        write_json(array.with_name("brick_features.json"), metadata)

    # Parameters: the loss is computed before the step; Ctrl-C after it would save what no later loss has shown.
    def spoil(parameters, limit):
        signal.raise_signal(signal.SIGINT)
        for parameter in parameters:
            parameter.grad.fill_(float("nan"))

    with monkeypatch.context() as patch:
        patch.setattr(torch.nn.utils, "clip_grad_norm_", spoil)
        assert main.main(longer) == 2
    error = capsys.readouterr().err
    assert (
        "the parameters are not finite in epoch 5" in error
        and "(--lr_init) or --clamp" in error
        and "Traceback" not in error
    )
    # The loss: sums of such features are beyond float32.
    extracted("train", lambda features: np.full_like(features, 3e38))
    refused(capsys, main.main, longer, "epoch 5, step 1", "training stops")
    assert path.read_bytes() == before
    extracted("test", lambda features: np.where(np.arange(9)[:, None, None, None] == 1, 3e38, features))
    refused(capsys, evaluate.main, options(bricks, trained), "not finite")


def run_in_a_copy(folder, *command):
    """csflow/main.py, started in the folder of a copy of the code, where the default folders are empty."""
    ignored = shutil.ignore_patterns("data", "models", "viz", "results", "__pycache__")
    for name in ("csflow", "common"):
        shutil.copytree(ROOT / name, folder / "repo" / name, ignore=ignored)
    here = folder / "repo/csflow"
    done = subprocess.run([sys.executable, *command], cwd=here, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return here, done.stdout


@pytest.mark.slow
def test_main_without_data_draws_its_own(tmp_path):
    small = "--img_size 128 --fc_internal 8 --extractor lite0"
    here, said = run_in_a_copy(tmp_path, "main.py", *small.split())
    assert "drew the dummy data" in said and "not real data" in said
    assert "training on 3 good images of dummy_data, 1 held out" in said
    result = results(here, "dummy_test")
    assert "60 epochs are enough for the dummy data" in said and result["epochs_trained"] == 60
    assert result["data"] == "synthetic" and result["images"] == {"good": 8, "defective": 8}
    assert (here / "viz/scores/dummy_test/all.png").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["repo"]


@pytest.mark.slow
def test_two_processes_train_like_one(bricks, trained, tmp_path, monkeypatch, capsys):
    argv = options(bricks, trained, *TRAINED, "--batch_size", "3", "--meta_epochs", "2", "--sub_epochs", "1")
    assert main.main([*argv, "--modelname", "one"]) == 0
    launch = ["-m", "torch.distributed.run", "--nproc_per_node=2", "main.py"]
    _, together = run_in_a_copy(tmp_path, *launch, *argv, "--modelname", "two", "--output", str(trained))
    assert together.count("(std score)") == 1 and together.count("results: ") == 1  # one process speaks
    one, two = (torch.load(trained / "models/tmp" / name, weights_only=True) for name in ("one", "two"))
    for key, value in one["model"].items():
        assert torch.allclose(value, two["model"][key], atol=1e-5), key
    for entry, other in zip(one["history"], two["history"]):
        assert other | {"seconds": 0} == pytest.approx(entry | {"seconds": 0}, abs=1e-4)
    scores = [[float(row["score_std"]) for row in rows(trained / f"results/{m}/scores.csv")] for m in ("one", "two")]
    assert scores[1] == pytest.approx(scores[0], rel=1e-3)
    # What two processes saved, one continues.
    capsys.readouterr()
    assert main.main([*argv, "--modelname", "two", "--meta_epochs", "3"]) == 0
    assert "resuming" in capsys.readouterr().out


def test_dummy_data(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(dummy_data, "FOLDER", tmp_path / "data/images/dummy_data")
    one = tmp_path / "data/images/dummy_data"
    for folder in (one, one, tmp_path / "elsewhere"):
        dummy_data.ensure_dummy_data(folder)
    assert capsys.readouterr().out.count("drew the dummy data") == 1
    dummy_data.make_dummy_data(tmp_path / "two")
    images = sorted(one.rglob("*.png"))
    assert [len(list((one / part).iterdir())) for part in dummy_data.PARTS] == [4, 8, 8]
    for path in images:
        assert path.read_bytes() == (tmp_path / "two" / path.relative_to(one)).read_bytes()
        image = Image.open(path)
        black = (np.asarray(image)[..., 0] == 0).sum()
        assert image.size == (448, 448) and image.mode == "RGBA"
        assert black == (pytest.approx(4 * np.pi * 30**2, rel=0.02) if "anomaly" in path.parts else 4 * 52**2)


def test_settings(tmp_path, monkeypatch):
    config = csflow.config.complete({"output_path": "cs", "img_size": 256, "n_coupling_blocks": 3})
    assert config.model_file == Path("cs/models/tmp/dummy_test") and config.img_size == [256, 256]
    assert config.kernel_sizes == [3, 3, 5] and csflow.config.DEFAULTS["kernel_sizes"] is None
    config = csflow.config.parse_evaluate(["--checkpoint", "a/bottle"])
    assert (config.model_file, config.result_dir.name) == (Path("a/bottle"), "bottle")
    monkeypatch.chdir(tmp_path)
    config = csflow.config.parse(["--data", "."])
    assert (config.root, config.class_name, config.output_path) == (tmp_path, tmp_path.name, None)
    assert csflow.config.parse(["--output", "x"]).output_path == Path("x")
    with pytest.raises(UserError, match="--class_name"):
        csflow.config.parse(["--data", ".", "--class_name", "x"])
    with pytest.raises(TypeError, match="no settings sore"):
        score.load(sore="std")
