"""MemAE's scripts as a user runs them: every file they promise, interruptions, what they refuse."""

import csv
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import loadmat, savemat

from common.files import UserError, digest, locked
from memae import report, script_eval_video, script_testing, script_training
from memae.data import demo_videos
from memae.options import PreparationOptions, TestOptions, TrainOptions, evaluation_options
from memae.scoring import load
from memae.script_eval_video import Scored, aucs, middle_frames, scaled, spans
from memae.script_testing import worst_clips
from memae.utils import clip_errors, setting_name
from tests.helpers import Report, refused, run_readme

ROOT = Path(__file__).resolve().parents[2]
NAME = "MemAE_Conv3DSpar_stripes_MemDim8_EntW0.0002_ShrThres0.0025_Seed1_Non"


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """A prepared data set of 16 x 16 frames: moving stripes, and in the test video frames of noise."""
    root = tmp_path_factory.mktemp("videos")
    random = np.random.default_rng(0)
    for part, name, frames in (("Train", "a", 18), ("Train", "b", 17), ("Test", "c", 24), ("Test", "tiny", 9)):
        folder = root / "stripes" / part / name
        folder.mkdir(parents=True)
        for k in range(frames):
            pixels = 128 + 80 * np.sin((np.arange(16)[None] + k + np.zeros((16, 1))) * 0.8)
            if part == "Test" and 10 <= k < 14:
                pixels = random.uniform(0, 255, (16, 16))
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{k + 1:03d}.jpg", quality=95)
    labels = np.zeros((1, 24))
    labels[0, 10:14] = 1
    (root / "stripes/Test_gt").mkdir()
    savemat(root / "stripes/Test_gt/c.mat", {"l": labels})
    return root


def training(videos, place, *more):
    roots = ["--data", videos / "stripes", "--ModelRoot", place / "models", "--BatchSize", "3"]
    return [str(part) for part in [*roots, "--MemDim", "8", "--UseCUDA", "no", *more]]


def scoring(videos, place, output, *more):
    roots = ["--DataRoot", videos, "--Dataset", "stripes", "--ModelRoot", place / "models", "--OutRoot", output]
    return [str(part) for part in [*roots, "--MemDim", "8", "--cpu", "--WorstFrames", "0", *more]]


def results(output, name=NAME):
    return json.loads((output / f"res_{name}/results.json").read_text())


def rows_of(path):
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def trained(videos, tmp_path_factory):
    place = tmp_path_factory.mktemp("trained")
    assert script_training.main(training(videos, place, "--EpochNum", "2")) == 0
    return place


@pytest.fixture(scope="module")
def tested(videos, trained, tmp_path_factory):
    """The folder of the trained model's scores."""
    place = tmp_path_factory.mktemp("tested")
    assert script_testing.main(scoring(videos, trained, place)) == 0
    return place / f"res_{NAME}"


@pytest.fixture
def copied(videos, tmp_path):
    """The data set, to be changed, with a second test video, d, like the first."""
    shutil.copytree(videos / "stripes", tmp_path / "data/stripes")
    shutil.copytree(tmp_path / "data/stripes/Test/c", tmp_path / "data/stripes/Test/d")
    return tmp_path / "data"


def test_options_are_the_originals():
    opt = TrainOptions().parse([])
    defaults = {
        "Mode": "train", "UseCUDA": True, "NumWorker": 1, "ModelName": "MemAE", "ModelSetting": "Conv3DSpar",
        "Seed": 1, "IsDeter": True, "IsTbLog": True, "Dataset": "UCSD_P2_256", "ImgChnNum": 1, "FrameNum": 16,
        "BatchSize": 14, "LR": 1e-4, "EpochNum": 100, "MemDim": 2000, "EntropyLossWeight": 0.0002,
        "ShrinkThres": 0.0025, "TextLogInterval": 1, "SnapInterval": 100, "TBImgLogInterval": 200,
        "SaveCheckInterval": 1, "Suffix": "Non",
    }  # fmt: skip
    assert {name: getattr(opt, name) for name in defaults} == defaults
    assert opt.DataRoot == ROOT / "memae/dataset" and opt.ModelRoot == ROOT / "memae/models"
    test = TestOptions().parse([])
    assert (test.Mode, test.BatchSize, test.ModelFilePath, test.OutRoot) == ("eval", 1, None, ROOT / "memae/results")
    for text, value in (("t", True), ("Y", True), ("1", True), ("no", False), ("F", False), ("0", False)):
        assert TrainOptions().parse(["--IsDeter", text]).IsDeter is value
    # the original's own command lines
    line = (
        "--BatchSize 10 --EntropyLossWeight 0.0002 --ShrinkThres 0.0025 --DataRoot ./datasets/ --ModelRoot ./results/"
    )
    assert TrainOptions().parse(line.split()).DataRoot / "x" == Path("datasets/x")
    opt = TrainOptions().parse(["--ModelName", "AE", "--ModelSetting", "Conv3D"])
    assert setting_name(opt) == "AE_Conv3D_UCSD_P2_256_Non"


def test_words_that_all_methods_have():
    opt = TrainOptions().parse(
        ["--data", "/x/y", "--seed", "3", "--output", "m", "--save_every", "5", "--device", "cuda:1"]
    )
    assert (opt.DataRoot, opt.Dataset, opt.Seed, opt.ModelRoot) == (Path("/x"), "y", 3, Path("m"))
    assert opt.device == "cuda:1" and opt.save_every == 5
    opt = evaluation_options().parse(["--data", "y", "--output", "o", "--checkpoint", "w.pt", "--BatchSize", "8"])
    assert (opt.DataRoot, opt.OutRoot, opt.ModelFilePath) == (Path.cwd(), Path("o"), Path("w.pt"))
    assert PreparationOptions().parse(["--data", "/x/y", "--Input", "u"]).Train == Path("u/Train")


@pytest.mark.parametrize(
    ("line", "device"),
    [("", "cuda"), ("--UseCUDA no", "cpu"), ("--cpu", "cpu"), ("--device auto", "auto"), ("--cpu --device auto", "cpu"),
     ("--UseCUDA yes --device cuda:1", "cuda:1"), ("--UseCUDA yes --cpu", None), ("--UseCUDA no --device cuda", None),
     ("--cpu --device mps", None)],
)  # fmt: skip
def test_devices(line, device):
    if device:
        assert TestOptions().parse(line.split()).device == device
    else:
        with pytest.raises(UserError, match="contradict one another"):
            TestOptions().parse(line.split())


def test_setting_names():
    assert setting_name(TrainOptions().parse([])) == (
        "MemAE_Conv3DSpar_UCSD_P2_256_MemDim2000_EntW0.0002_ShrThres0.0025_Seed1_Non"
    )
    lines = ("", "--Backbone csn", "--Backbone csn --BackboneDepth 50", "--Backbone slowonly")
    names = {setting_name(TestOptions().parse(line.split())) for line in lines}
    assert len(names) == 4 and any("csn152" in name for name in names)
    assert TrainOptions().parse(["--Backbone", "slowonly"]).BackboneDepth == 18


def test_training_writes_everything(trained, videos):
    folder, logs = trained / f"models/model_{NAME}", trained / f"models/log_{NAME}"
    names = {path.name for path in folder.iterdir() if path.name[0] != "."}
    assert names == {f"{NAME}_epoch_{k:04d}.pt" for k in range(2)} | {
        f"{NAME}_epoch_0001_final.pt", f"{NAME}_snap.pt", f"{NAME}_resume.pt", "training.json",
    }  # fmt: skip
    files = trained / f"models/{NAME}.pt", folder / f"{NAME}_epoch_0001_final.pt", folder / f"{NAME}_epoch_0000.pt"
    final, last, first = (torch.load(file, weights_only=True) for file in files)
    assert all(torch.equal(final[key], last[key]) for key in final)
    assert not torch.equal(final["mem_rep.memory.weight"], first["mem_rep.memory.weight"])
    rows = rows_of(logs / "log.csv")
    assert [(row["epoch"], row["iteration"]) for row in rows] == [(str(k // 2), str(k)) for k in range(4)]
    assert float(rows[-1]["loss"]) < float(rows[0]["loss"])
    for row in rows:
        total = float(row["recon_loss"]) + 0.0002 * float(row["entropy_loss"])
        assert float(row["loss"]) == pytest.approx(total, rel=1e-5)
    mean = (3 * float(rows[2]["loss"]) + 2 * float(rows[3]["loss"])) / 5
    assert float(rows_of(logs / "history.csv")[1]["loss"]) == pytest.approx(mean)
    assert Image.open(logs / "x_x_rec_0000000.jpg").size == (6 * 16, 32)
    assert Image.open(logs / "loss.png").width > 500
    stored = json.loads((folder / "training.json").read_text())
    assert stored["data"] == str(videos / "stripes") and stored["device"] == "cpu" and stored["clips"] == 5
    assert [entry["epoch"] for entry in stored["history"]] == [0, 1] and stored["saved"] == "last epoch"


def test_a_finished_training_is_not_repeated_and_can_go_on(videos, trained, tmp_path, capsys):
    argv = training(videos, tmp_path, "--IsTbLog", "no", "--SaveCheckInterval", "2", "--NumWorker", "0")
    assert script_training.main([*argv, "--EpochNum", "1"]) == 0
    file, log = tmp_path / f"models/{NAME}.pt", tmp_path / f"models/log_{NAME}/log.csv"
    before = file.read_bytes()
    assert script_training.main([*argv, "--EpochNum", "1"]) == 0
    assert "is trained for 1 epoch already" in capsys.readouterr().out and file.read_bytes() == before
    with log.open("a") as lines:
        lines.write("0,9,of steps that were not saved\n")
    assert script_training.main([*argv, "--EpochNum", "2"]) == 0
    assert file.read_bytes() == (trained / f"models/{NAME}.pt").read_bytes()
    assert log.read_text() == (trained / f"models/log_{NAME}/log.csv").read_text()
    refused(capsys, script_training.main, [*argv, "--EpochNum", "1"], "trained for 2 epochs", "--resume no")
    for more in (["--LR", "1e-3"], ["--precision", "bf16"]):
        refused(capsys, script_training.main, [*argv, "--EpochNum", "2", *more], f"{more[0][2:]} ", "--Suffix")
    assert script_training.main([*argv, "--EpochNum", "1", "--precision", "bf16", "--resume", "no"]) == 0
    assert len(log.read_text().splitlines()) == 3


def test_other_frames_are_another_training(copied, tmp_path, capsys):
    argv = training(copied, tmp_path, "--EpochNum", "1")
    assert script_training.main(argv) == 0
    Image.fromarray(np.zeros((16, 16), np.uint8)).save(copied / "stripes/Train/a/003.jpg")
    refused(capsys, script_training.main, argv, "other data", "--resume no")


def test_what_is_not_finite_is_not_saved(videos, trained, tmp_path, capsys):
    argv = training(videos, tmp_path, "--EpochNum", "1", "--LR", "1e39")  # the step itself spoils the parameters
    refused(capsys, script_training.main, argv, "parameters are not finite", "learning rate (--LR)")
    assert not list((tmp_path / "models").rglob("*.pt"))
    shutil.copytree(trained / "models", tmp_path / "models", dirs_exist_ok=True)
    state = tmp_path / f"models/model_{NAME}/{NAME}_resume.pt"
    content = torch.load(state, weights_only=True)
    content["model"]["decoder.9.bias"].fill_(3e38)  # its square is infinite
    torch.save(content, state)
    before = state.read_bytes()
    refused(capsys, script_training.main, training(videos, tmp_path, "--EpochNum", "3"), "epoch 3, step 1", state)
    assert state.read_bytes() == before


def test_the_backbones_weights_belong_to_the_training(copied, tmp_path, capsys, monkeypatch):
    """With a small network in place of all."""
    shutil.rmtree(copied / "stripes/Train/b")
    for k in range(1, 19):
        path = copied / f"stripes/Train/a/{k:03d}.jpg"
        Image.open(path).resize((32, 32)).save(path)
        path.unlink() if k > 16 else None
    loaded = []
    monkeypatch.setattr(script_training, "make_model", lambda opt: torch.nn.Conv3d(1, 1, 3, padding=1))
    monkeypatch.setattr(script_training, "load_backbone", lambda model, path, channels: loaded.append(path))
    file, other = tmp_path / "pretrained.pth", tmp_path / "other.pth"
    file.write_text("weights")
    other.write_text("other weights")
    argv = training(copied, tmp_path, "--Backbone", "slowonly", "--ModelName", "AE", "--EpochNum", "1")
    assert script_training.main([*argv, "--BackboneWeights", str(file)]) == 0 and loaded == [file]
    (record,) = (tmp_path / "models").glob("model_*/training.json")
    assert json.loads(record.read_text())["settings"]["BackboneWeights_sha256"] == digest(file)
    refused(capsys, script_training.main, argv, "BackboneWeights_sha256", "not None")
    refused(capsys, script_training.main, [*argv, "--BackboneWeights", other], "BackboneWeights_sha256", "--Suffix")
    refused(capsys, script_training.main, [*argv, "--BackboneWeights", tmp_path / "no"], "no checkpoint")
    file.rename(other)  # with the same content, or with the file gone, the training resumes
    for epochs, place in ((2, file), (3, other)):
        assert script_training.main([*argv, "--BackboneWeights", str(place), "--EpochNum", str(epochs)]) == 0
    assert json.loads(record.read_text())["settings"]["BackboneWeights_sha256"] == digest(other) and len(loaded) == 1


def test_testing_and_evaluation(videos, trained, tmp_path, capsys):
    argv = scoring(videos, trained, tmp_path, "--WorstFrames", "6")
    assert script_testing.main(argv) == 0
    assert "tiny is skipped: it has 9 frames" in capsys.readouterr().out
    folder = tmp_path / f"res_{NAME}"
    scores = np.load(folder / "c.npy")
    assert scores.shape == (9,) and (scores > 0).all() and Image.open(folder / "maps/c.jpg").width > 300
    stored = json.loads((folder / "testing.json").read_text())
    assert stored["videos"]["c"]["frames"] == 24 and stored["videos"]["c"]["scored_frames"] == list(range(9, 18))

    with locked(folder):
        for main in (script_testing.main, script_eval_video.main):
            refused(capsys, main, argv, "another run is writing to")
    assert script_eval_video.main([*argv, "--report"]) == 0
    found, report = results(tmp_path), Report(folder / "report.html")
    assert len(report.captions) == 7 and f"{found['auc']:.4g}" in report.texts
    out = capsys.readouterr().out
    assert found["frames"] == 9 and found["abnormal_frames"] == 4 and found["chosen_on"] == "last epoch"
    assert found["image_auroc"] == found["auc"] and found["images"] == {"good": 5, "defective": 4}
    assert found["trained_on"] == str(videos / "stripes") and found["best_f1_chosen_on"] == "test set"
    assert f"{found['auc']:.4f}" in out and f"{found['baseline_auc']:.4f}" in out
    assert (folder / "acc.txt").read_text() == f"{videos / 'stripes'}\nAUC: {found['auc']}\n"
    rows = rows_of(folder / "scores.csv")
    assert [row["frame"] for row in rows] == [str(k) for k in range(9, 18)]
    assert [row["label"] for row in rows] == ["0"] * 2 + ["1"] * 4 + ["0"] * 3
    assert float(rows[3]["regularity"]) == pytest.approx(1 - float(rows[3]["score_scaled"]))
    assert loadmat(folder / "c_label.mat")["l"].ravel().tolist() == [0, 0, 1, 1, 1, 1, 0, 0, 0]
    np.testing.assert_allclose(loadmat(folder / "c_score.mat")["score"].ravel(), scores)
    assert Image.open(folder / "plots/c.png").width > 500

    # The same scores keep all; new ones take the place of all that was made of the old ones.
    assert script_testing.main([*argv, "--NumWorker", "0"]) == 0 and (folder / "results.json").is_file()
    assert script_testing.main([*argv, "--BatchSize", "4", "--WorstFrames", "0"]) == 0
    np.testing.assert_allclose(np.load(folder / "c.npy"), scores, rtol=1e-4)
    assert {path.name for path in folder.rglob("*.*") if path.name[0] != "."} == {
        "c.npy", "testing.json", "progress.jsonl"
    }  # fmt: skip


def test_the_alarm_comes_from_normal_videos(copied, trained, tmp_path, capsys):
    shutil.copytree(copied / "stripes/Train/a", copied / "stripes/Normal/n")
    argv = scoring(copied, trained, tmp_path, "--fpr", "0.34")
    folder = tmp_path / f"res_{NAME}"
    assert script_testing.main(argv) == 0 and np.load(folder / "Normal/n.npy").shape == (3,)
    assert script_eval_video.main([*argv, "--report"]) == 0
    alarm, normal = results(tmp_path)["alarm"], np.sort(np.load(folder / "Normal/n.npy"))
    assert alarm["image"] == normal[2] and (alarm["images"], alarm["normal_videos"]) == (3, 1)
    for row in rows_of(folder / "scores.csv"):
        assert row["verdict"] == ("defective" if float(row["score"]) > alarm["image"] else "good")
    assert alarm["detection_rate"] == 1 and alarm["fpr_on_test_good"] <= 1  # the frames of noise are all far above
    told, page = "of 1 normal video (--fpr 0.34)", (folder / "report.html").read_text()
    assert told in capsys.readouterr().out and told in page
    assert "is behind the frame difference, which trains nothing" in page  # a training of seconds
    worse = {"method": "MemAE", "auc": 0.2, "baseline_auc": 0.3}
    assert "train longer" in report.behind_sentence(worse) and not report.behind_sentence({})
    # A video that is taken away counts no more.
    for change in (shutil.copytree(copied / "stripes/Test/c", copied / "stripes/Normal/odd"), None):
        assert script_testing.main(argv) == 0 and script_eval_video.main(argv) == 0
        assert results(tmp_path)["alarm"]["normal_videos"] == (2 if change else 1)
        shutil.rmtree(copied / "stripes/Normal/odd", ignore_errors=True)


def test_frames_in_memory(videos, trained, tested):
    given = f'DataRoot="{videos}", Dataset="stripes", ModelRoot="{trained / "models"}", MemDim=8, UseCUDA="no"'
    names = run_readme("memae", ("memae/dataset/mine/Test/x", f"{videos}/stripes/Test/c"), ('Dataset="mine"', given))
    assert names["scores"] == pytest.approx(np.load(tested / "c.npy"), rel=1e-5)
    assert names["maps"].shape == (9, 16, 16)
    model = names["load"](**eval(f"dict({given})"))
    for wrong in (np.zeros((15, 16, 16), np.uint8), np.zeros((16, 16, 16)), np.zeros((16, 16, 16, 3), np.uint8)):
        with pytest.raises(ValueError, match="expected uint8"):
            names["score_frames"](wrong, model)


@pytest.fixture
def resumed(copied, trained, tmp_path, monkeypatch):
    """A testing of two videos, c and d, in parts of two clips: its command line, folder, and a function that runs it
    up to a part, returning the parts that are scored."""
    argv = scoring(copied, trained, tmp_path)
    original, scored, stop = script_testing.score_clips, [], []

    def score_clips(scorer, dataset, clips):
        part = dataset.videos[0], clips.start
        if part in stop:
            raise KeyboardInterrupt
        scored.append(part)
        return original(scorer, dataset, clips)

    def run(*more, stop_at=None):
        scored.clear()
        stop[:] = [stop_at]
        assert script_testing.main([*argv, *more]) == (130 if stop_at else 0)
        return list(scored)

    monkeypatch.setattr(script_testing, "score_clips", score_clips)
    monkeypatch.setattr(script_testing, "PART", 2)
    return argv, tmp_path / f"res_{NAME}", run


C, D = ([(video, start) for start in range(0, 9, 2)] for video in "cd")


def test_an_interrupted_testing_resumes(resumed, copied, tested, trained, tmp_path, capsys, monkeypatch):
    argv, folder, run = resumed
    assert run(stop_at=("d", 4)) == [*C, *D[:2]]
    assert "run the same command to resume" in capsys.readouterr().out and not list(folder.glob("*.npy"))
    monkeypatch.chdir(trained)
    more = ["--NumWorker", "0", "--report", "--FrameNum", "16", "--CacheGiB", "1", "--checkpoint", f"models/{NAME}.pt"]
    assert run(*more, stop_at=("d", 6)) == D[2:3]  # scores do not depend on these
    assert run() == D[3:] and run() == []
    assert "resuming: 18 of 18" in capsys.readouterr().out
    assert np.array_equal(np.load(folder / "c.npy"), np.load(folder / "d.npy"))
    np.testing.assert_allclose(np.load(folder / "c.npy"), np.load(tested / "c.npy"))

    (folder / "results.json").write_text("{}")
    whole = {path: path.read_bytes() for path in folder.glob("*.npy")}
    assert run("--BatchSize", "2", stop_at=("d", 0)) == C  # another command: results stay until the others are whole
    assert whole and all(path.read_bytes() == content for path, content in whole.items())
    Image.fromarray(np.zeros((16, 16), np.uint8)).save(copied / "stripes/Test/c/024.jpg")
    assert run("--BatchSize", "2") == [*C, *D] and not (folder / "results.json").exists()
    np.save(folder / "c.npy", np.load(folder / "c.npy") + 1)
    refused(capsys, script_eval_video.main, argv, "c.npy has changed since")


@pytest.mark.parametrize(("line", "again"), [(3, C[2:]), (9, D[3:])])
def test_damaged_progress_is_scored_again(resumed, capsys, line, again):
    _, folder, run = resumed
    run()
    lines = (folder / "progress.jsonl").read_text().splitlines(keepends=True)
    lines[line] = lines[line].replace("0.", "1.", 1)
    (folder / "progress.jsonl").write_text("".join(lines[:-1]))  # the last one says that all is there
    scores = np.load(folder / "c.npy")
    assert run() == again
    assert "damaged line" in capsys.readouterr().out and np.array_equal(np.load(folder / "c.npy"), scores)


def test_results_tell_the_numbers_of_the_files_and_what_was_left_out(copied, trained, tmp_path, monkeypatch):
    record = {"videos": {"Test/c": [[0, 240, 10]], "Test/d": [[1, 6, 1], [7, 26, 1]]}, "notes": ["1 frame was lost"]}
    (copied / "stripes/prepared.json").write_text(json.dumps(record))
    argv = scoring(copied, tmp_path, tmp_path, "--ModelFilePath", trained / f"models/{NAME}.pt")
    assert script_testing.main(argv) == 0
    drawn, folder = [], tmp_path / f"res_{NAME}"
    monkeypatch.setattr(script_eval_video.report, "write", lambda *a: drawn.append(a[-1](a[1][0], 1)))
    assert script_eval_video.main([*argv[:-2], "--report"]) == 0  # by the model that gave the scores
    assert [name for _, _, name, _ in drawn] == ["c, frame 90"]
    rows = rows_of(folder / "scores.csv")
    assert [int(row["frame"]) for row in rows if row["path"] == "c"] == list(range(80, 170, 10))
    assert [int(row["frame"]) for row in rows if row["path"] == "d"] == list(range(10, 19))
    assert [row["label"] for row in rows[:9]] == ["0"] * 2 + ["1"] * 4 + ["0"] * 3
    assert loadmat(folder / "c_score.mat")["frame"].ravel().tolist() == list(range(80, 170, 10))
    found = results(tmp_path)
    assert found["notes"][0] == "1 frame was lost" and found["chosen_on"] == "by --ModelFilePath"
    assert "tiny is skipped: it has 9 frames, a clip 16" in found["notes"]


def test_names_that_are_no_utf8(videos, trained, tmp_path):
    try:
        shutil.copytree(videos / "stripes/Test/c", tmp_path / "stripes/Test" / os.fsdecode(b"caf\xe9"))
    except OSError:
        pytest.skip("no such names on this file system")
    argv = scoring(tmp_path, trained, tmp_path)
    assert script_testing.main(argv) == 0 and script_eval_video.main(argv) == 0
    assert len((tmp_path / f"res_{NAME}/scores.csv").read_text().splitlines()) == 10


def test_all_test_videos_are_checked_before_the_first_is_scored(copied, trained, tmp_path, capsys):
    argv, frame = scoring(copied, trained, tmp_path / "out"), copied / "stripes/Test/d/020.jpg"
    Image.fromarray(np.zeros((20, 16), np.uint8)).save(frame)
    refused(capsys, script_testing.main, argv, "020.jpg is 16 x 20")
    shutil.copy(copied / "stripes/Test/d/001.jpg", frame)
    frame.write_bytes(frame.read_bytes()[:-100])
    refused(capsys, script_testing.main, argv, "cannot read 1 of 24 images", frame)
    assert not (tmp_path / "out").exists()


def test_evaluation_without_labels_and_without_abnormal_frames(copied, trained, tmp_path, capsys):
    shutil.rmtree(copied / "stripes/Test_gt")
    argv = scoring(copied, trained, tmp_path)
    assert script_testing.main([*argv, "--WorstFrames", "1"]) == 0 and script_eval_video.main([*argv, "--report"]) == 0
    assert "no labels" in capsys.readouterr().out
    assert len(Report(tmp_path / f"res_{NAME}/report.html").captions) == 5  # training frames, 2 curves, worst frames
    assert results(tmp_path)["unlabelled_videos"] == ["c", "d"] and "auc" not in results(tmp_path)
    assert len((tmp_path / f"res_{NAME}/scores.csv").read_text().splitlines()) == 19
    (copied / "stripes/Test_gt").mkdir()
    savemat(copied / "stripes/Test_gt/c.mat", {"l": np.zeros((1, 24))})
    (tmp_path / f"res_{NAME}/testing.json").unlink()  # the original's results have none
    assert script_eval_video.main(argv) == 0
    assert "no AUC: all 9 labelled frames are normal" in capsys.readouterr().out
    assert results(tmp_path)["chosen_on"] == "unknown" and results(tmp_path)["auc"] is None


def test_autoencoder_without_memory(videos, tmp_path):
    more = ["--ModelName", "AE", "--ModelSetting", "Conv3D"]
    assert script_training.main(training(videos, tmp_path, *more, "--EpochNum", "1")) == 0
    argv = scoring(videos, tmp_path, tmp_path, *more)
    assert script_testing.main([*argv, "--BatchSize", "4"]) == 0 and script_eval_video.main(argv) == 0
    assert np.load(tmp_path / "res_AE_Conv3D_stripes_Non/c.npy").shape == (9,)  # each clip of a batch counts


def test_index_files_choose_the_clips(copied, trained, tmp_path):
    for video in "cd":
        folder = copied / f"stripes/Test_idx/{video}"
        folder.mkdir(parents=True)
        for number, first in enumerate((1, 5), start=1):
            idx = list(range(first, first + 16))
            savemat(folder / f"{video}_i{number:03d}.mat", {"v_name": video, "idx": idx})
    argv = scoring(copied, trained, tmp_path)
    assert script_testing.main(argv) == 0 and script_eval_video.main(argv) == 0
    rows = rows_of(tmp_path / f"res_{NAME}/scores.csv")
    assert [(row["frame"], row["label"]) for row in rows[:2]] == [("9", "0"), ("13", "1")] and len(rows) == 4


def test_bfloat16_stays_close(videos, trained, tested, tmp_path):
    assert script_testing.main(scoring(videos, trained, tmp_path, "--precision", "bf16")) == 0
    exact, rounded = np.load(tested / "c.npy"), np.load(tmp_path / f"res_{NAME}/c.npy")
    np.testing.assert_allclose(rounded, exact, rtol=0.02)
    assert (rounded != exact).any()


@pytest.mark.parametrize("prefix", ["module.", ""])
def test_checkpoints_of_others(videos, trained, tmp_path, capsys, prefix):
    state = torch.load(trained / f"models/{NAME}.pt", weights_only=True)
    state = {prefix + name: value for name, value in state.items()}
    file = tmp_path / "other.pt"
    argv = scoring(videos, trained, tmp_path, "--ModelFilePath", file)
    torch.save(state, file)
    assert script_testing.main(argv) == 0
    memory = f"{prefix}mem_rep.memory.weight"
    for value, words in ((torch.tensor(1.0), "()"), (torch.ones(8), "(8,)"), (torch.ones(7, 256), "(7, 256)")):
        torch.save(state | {memory: value}, file)
        refused(capsys, script_testing.main, argv, "other.pt", words)
    torch.save(state | {f"{prefix}decoder.9.bias": torch.full((1,), 3e38)}, file)  # its square is infinite
    refused(capsys, script_testing.main, argv, "c are not finite")
    torch.save({name: value for name, value in state.items() if name != memory}, file)
    refused(capsys, script_testing.main, argv, "--ModelName")


def test_deterministic_algorithms_are_asked_for(trained):
    before = torch.are_deterministic_algorithms_enabled()
    try:
        for asked in (True, False):
            load(cpu=True, IsDeter=asked, MemDim=8, checkpoint=trained / f"models/{NAME}.pt")
            assert torch.are_deterministic_algorithms_enabled() == asked
    finally:
        torch.use_deterministic_algorithms(before, warn_only=True)


def test_generated_videos_are_made_where_they_are_asked_for(tmp_path, monkeypatch, capsys):
    made = []
    monkeypatch.setattr(demo_videos, "make_prepared", lambda root: made.append(root) or root / demo_videos.DATASET)
    opt = TestOptions().parse(["--Dataset", demo_videos.DATASET, "--DataRoot", str(tmp_path)])
    assert demo_videos.with_data(opt) is opt
    assert made == [tmp_path] and "not real data" in capsys.readouterr().out
    (tmp_path / demo_videos.DATASET).mkdir()
    assert demo_videos.with_data(opt) is opt and len(made) == 1


def test_the_hand_worked_example():
    """Two clips' videos by hand: 20 frames have 5 clips, whose scores belong to frames 9 to 13."""
    assert middle_frames(20, 16).tolist() == [9, 10, 11, 12, 13] == list(range(1, 21))[8:-7]
    assert middle_frames(16, 16).tolist() == [9] and not len(middle_frames(15, 16))
    assert middle_frames(10, 8).tolist() == [5, 6, 7]
    labels = np.zeros(20, bool)
    labels[9:11] = True  # frames 10 and 11
    one = Scored("one", np.arange(9, 14), np.array([1.0, 3.0, 5.0, 2.0, 1.0]), labels[8:-7], labels, None)
    assert scaled(one.scores).tolist() == [0, 0.5, 1, 0.25, 0]
    # within "one", both abnormal frames rank above all three normal ones
    assert aucs([one]) == {"auc": 1.0, "auc_raw": 1.0}
    constant = Scored("constant", np.arange(9, 11), np.array([4.0, 4.0]), np.array([False, True]), None, None)
    assert scaled(constant.scores).tolist() == [0, 0]
    # 3 abnormal, scaled 0.5, 1, 0; 4 normal, scaled 0, 0.25, 0, 0: 4 + 4 + (3 ties / 2 + 0) = 9.5 of 12 pairs
    assert aucs([one, constant])["auc"] == pytest.approx(9.5 / 12)
    # raw: abnormal 3, 5, 4; normal 1, 2, 1, 4: 3 + 4 + (3 + 1 / 2) = 10.5 of 12
    assert aucs([one, constant])["auc_raw"] == pytest.approx(10.5 / 12)
    normal = Scored("normal", np.arange(9, 12), np.array([0.0, 10.0, 20.0]), np.zeros(3, bool), None, None)
    # raw: 3, 5 against 1, 2, 1, 0, 10, 20 win 4 each; scaled: 0.5, 1 against 0, 0.25, 0, 0, 0.5, 1 win 4.5 and 5.5
    assert aucs([one, normal])["auc_raw"] == pytest.approx(8 / 12)
    assert aucs([one, normal])["auc"] == pytest.approx(10 / 12)
    assert spans(labels) == [(10, 11)] and spans(np.array([True, False, True])) == [(1, 1), (3, 3)]
    assert np.isnan(aucs([normal])["auc"])


def test_scores_of_clips():
    """By hand: errors of 0.2 in one channel and 0.1 in the other, in [-1, 1]."""
    x = torch.zeros(1, 2, 1, 1, 2)
    output = torch.tensor([[[[[0.3, 0.0]]], [[[0.4, 0.0]]]]])
    assert clip_errors(output, x, "MemAE").item() == pytest.approx((0.5 + 0) / 2)
    assert clip_errors(output, x, "AE").item() == pytest.approx((0.15**2 + 0.2**2) / 4)


def test_baseline_is_the_mean_difference(videos):
    folder = videos / "stripes/Test/c"
    frames = [np.asarray(Image.open(path), float) for path in sorted(folder.iterdir())]
    steps = [np.abs(b - a).mean() for a, b in itertools.pairwise(frames)]
    expected = [np.mean(steps[k : k + 15]) for k in range(9)]
    np.testing.assert_allclose(script_eval_video.difference_scores(folder, np.arange(9, 18), 1, 16), expected)


def test_worst_clips_are_apart():
    scores = np.array([1, 9, 8, 7, 2, 6, 0.5])
    assert worst_clips(scores, 3, 2) == [1, 3, 5]
    assert worst_clips(scores, 9, 1) == [1, 2, 3, 5, 4, 0, 6] and worst_clips(scores, 0, 1) == []


@pytest.mark.slow
def test_two_processes_do_what_one_does(videos, trained, tested, tmp_path):
    """Gradients (batch norms in eval mode), training, and scores; the first process alone speaks and saves."""
    program = Path(__file__).with_name("two_processes.py")
    argv = training(videos, tmp_path, "--EpochNum", "1")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", program, tmp_path]
    ended = subprocess.run(
        [*command, json.dumps([argv, scoring(videos, trained, tmp_path, "--BatchSize", "2")])],
        cwd=ROOT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("epoch    0: loss") == 1 and ended.stdout.count("scores of 9 clips") == 1
    for rank in range(2):
        assert json.loads((tmp_path / f"furthest_{rank}.json").read_text()) < 1e-5
    np.testing.assert_allclose(np.load(tmp_path / f"res_{NAME}/c.npy"), np.load(tested / "c.npy"), rtol=1e-5)
    assert len((tmp_path / f"models/log_{NAME}/log.csv").read_text().splitlines()) == 3
    assert script_training.main([*argv, "--EpochNum", "2"]) == 0  # one process resumes
    assert len((tmp_path / f"models/log_{NAME}/log.csv").read_text().splitlines()) == 5


@pytest.mark.slow
def test_defaults_on_a_fresh_clone_and_ctrl_c(tmp_path):
    """No data, no options, from the root: it makes its videos, says so, and can be stopped."""
    repo = tmp_path / "repo"
    for name in ("common", "memae"):
        ignore = shutil.ignore_patterns("dataset", "results", "model_*", "log_*", "*.pt", "__pycache__")
        shutil.copytree(ROOT / name, repo / name, ignore=ignore)
    process = subprocess.Popen(
        [sys.executable, "-u", "memae/script_training.py"], cwd=repo, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    lines = []
    for line in process.stdout:
        lines.append(line)
        if "training MemAE" in line:
            time.sleep(1.0)
            process.send_signal(signal.SIGINT)
            break
    rest, error = process.communicate(timeout=120)
    output = "".join(lines) + rest
    assert process.returncode == 130 and "Traceback" not in error, error
    assert "UCSD_P2_256 is not in" in output and "not real data" in output and "--EpochNum" in output
    assert "run the same command to resume" in output or "nothing was saved yet" in output
    assert (repo / "memae/dataset/Walkers_64/SYNTHETIC").is_file()
    assert {path.name for path in repo.iterdir()} == {"common", "memae"}
