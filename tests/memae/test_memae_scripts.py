"""MemAE's scripts as a user runs them: every file they promise, kill and resume, bad input."""

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

from common.files import digest
from memae import script_eval_video, script_testing, script_training
from memae.data import demo_videos
from memae.models import AutoEncoderCov3D
from memae.options import TestOptions, TrainOptions
from memae.script_eval_video import Scored, aucs, middle_frames, scaled, spans
from memae.script_testing import worst_clips
from memae.utils import clip_errors, load_scorer, setting_name
from tests.helpers import Report, refused, run_readme

ROOT = Path(__file__).resolve().parents[2]
SMALL = ["--MemDim", "8", "--UseCUDA", "no"]


@pytest.fixture(scope="session")
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


def paths(videos, place, *more, script="train"):
    roots = ["--DataRoot", videos, "--Dataset", "stripes", "--ModelRoot", place / "models"]
    roots += ["--BatchSize", "3"] if script == "train" else ["--OutRoot", place / "results"]
    return [str(part) for part in [*roots, *SMALL, *more]]


@pytest.fixture(scope="session")
def trained(videos, tmp_path_factory):
    place = tmp_path_factory.mktemp("trained")
    assert script_training.main(paths(videos, place, "--EpochNum", "3")) == 0
    return place


NAME = "MemAE_Conv3DSpar_stripes_MemDim8_EntW0.0002_ShrThres0.0025_Seed1_Non"


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
    assert TrainOptions().parse(["--UseCUDA"]).UseCUDA is True
    # the original's own command lines
    line = "--BatchSize 10 --EntropyLossWeight 0.0002 --ShrinkThres 0.0025"
    opt = TrainOptions().parse([*line.split(), "--DataRoot", "./datasets/processed/", "--ModelRoot", "./results/"])
    assert opt.DataRoot / "x" == Path("datasets/processed/x")
    opt = TrainOptions().parse(["--ModelName", "AE", "--ModelSetting", "Conv3D"])
    assert setting_name(opt) == "AE_Conv3D_UCSD_P2_256_Non"


def test_frames_in_memory(videos, trained, tmp_path):
    argv = paths(videos, trained, "--OutRoot", tmp_path, script="test")
    assert script_testing.main(argv) == 0
    given = f'DataRoot="{videos}", Dataset="stripes", ModelRoot="{trained / "models"}", MemDim=8, UseCUDA="no"'
    names = run_readme("memae", ("memae/dataset/mine/Test/x", f"{videos}/stripes/Test/c"), ('Dataset="mine"', given))
    assert names["scores"] == pytest.approx(np.load(tmp_path / f"res_{NAME}/c.npy"), rel=1e-5)
    assert names["maps"].shape == (9, 16, 16)
    model = names["load"](**eval(f"dict({given})"))
    for wrong in (np.zeros((15, 16, 16), np.uint8), np.zeros((16, 16, 16)), np.zeros((16, 16, 16, 3), np.uint8)):
        with pytest.raises(ValueError, match="expected uint8"):
            names["score_frames"](wrong, model)


def test_generated_videos_are_made_where_they_are_asked_for(tmp_path, monkeypatch, capsys):
    made = []
    monkeypatch.setattr(demo_videos, "make_prepared", lambda root: made.append(root) or root / demo_videos.DATASET)
    opt = TestOptions().parse(["--Dataset", demo_videos.DATASET, "--DataRoot", str(tmp_path)])
    assert demo_videos.with_data(opt) is opt
    assert made == [tmp_path] and "not real data" in capsys.readouterr().out
    (tmp_path / demo_videos.DATASET).mkdir()
    demo_videos.with_data(opt)
    assert len(made) == 1


def test_setting_names():
    assert setting_name(TrainOptions().parse([])) == (
        "MemAE_Conv3DSpar_UCSD_P2_256_MemDim2000_EntW0.0002_ShrThres0.0025_Seed1_Non"
    )
    names = {
        setting_name(TestOptions().parse(argv))
        for argv in (
            [],
            ["--Backbone", "csn"],
            ["--Backbone", "csn", "--BackboneDepth", "50"],
            ["--Backbone", "slowonly"],
        )
    }
    assert len(names) == 4 and any("csn152" in name for name in names)
    one, same = (TrainOptions().parse(["--Backbone", "slowonly", *more]) for more in ([], ["--BackboneDepth", "18"]))
    assert one.BackboneDepth == same.BackboneDepth == 18


def test_training_writes_everything(trained, videos):
    folder, logs = trained / f"models/model_{NAME}", trained / f"models/log_{NAME}"
    names = {path.name for path in folder.iterdir()}
    assert names == {f"{NAME}_epoch_{k:04d}.pt" for k in range(3)} | {
        f"{NAME}_epoch_0002_final.pt", f"{NAME}_snap.pt", f"{NAME}_resume.pt", "training.json",
    }  # fmt: skip
    final = torch.load(trained / f"models/{NAME}.pt", weights_only=True)
    last = torch.load(folder / f"{NAME}_epoch_0002_final.pt", weights_only=True)
    first = torch.load(folder / f"{NAME}_epoch_0000.pt", weights_only=True)
    assert all(torch.equal(final[key], last[key]) for key in final)
    assert not torch.equal(final["mem_rep.memory.weight"], first["mem_rep.memory.weight"])
    rows = list(csv.DictReader((logs / "log.csv").open()))
    assert [(row["epoch"], row["iteration"]) for row in rows] == [(str(k // 2), str(k)) for k in range(6)]
    assert float(rows[-1]["loss"]) < float(rows[0]["loss"])
    for row in rows:
        total = float(row["recon_loss"]) + 0.0002 * float(row["entropy_loss"])
        assert float(row["loss"]) == pytest.approx(total, rel=1e-5)
    assert Image.open(logs / "x_x_rec_0000000.jpg").size == (6 * 16, 32)
    assert Image.open(logs / "loss.png").width > 500
    stored = json.loads((folder / "training.json").read_text())
    assert stored["data"] == str(videos / "stripes") and stored["device"] == "cpu" and stored["clips"] == 5
    assert len(stored["history"]) == 3 and stored["settings"]["MemDim"] == 8 and stored["saved"] == "last epoch"


def test_a_finished_training_is_not_repeated_and_can_go_on(videos, tmp_path, capsys):
    argv = paths(videos, tmp_path, "--IsTbLog", "no", "--SaveCheckInterval", "2", "--NumWorker", "0")
    assert script_training.main([*argv, "--EpochNum", "1"]) == 0
    file = tmp_path / f"models/{NAME}.pt"
    before = file.read_bytes()
    assert script_training.main([*argv, "--EpochNum", "1"]) == 0
    assert "is trained for 1 epochs already" in capsys.readouterr().out and file.read_bytes() == before
    assert script_training.main([*argv, "--EpochNum", "3"]) == 0
    refused(capsys, script_training.main, [*argv, "--EpochNum", "2"], "trained for 3 epochs", "--resume no")
    whole = tmp_path / "whole"
    assert script_training.main(paths(videos, whole, "--EpochNum", "3")) == 0
    assert (whole / f"models/{NAME}.pt").read_bytes() == file.read_bytes()
    refused(
        capsys, script_training.main, [*argv, "--EpochNum", "3", "--LR", "1e-3"], "LR 0.0001, not 0.001", "--Suffix"
    )
    assert script_training.main([*argv, "--EpochNum", "1", "--LR", "1e-3", "--resume", "no"]) == 0
    assert len((tmp_path / f"models/log_{NAME}/log.csv").read_text().splitlines()) == 3


def test_testing_and_evaluation(videos, trained, tmp_path, capsys):
    argv = paths(videos, trained, "--OutRoot", tmp_path, script="test")
    assert script_testing.main(argv) == 0
    assert "tiny is skipped: it has 9 frames" in capsys.readouterr().out
    folder = tmp_path / f"res_{NAME}"
    scores = np.load(folder / "c.npy")
    assert scores.shape == (9,) and (scores > 0).all()
    assert Image.open(folder / "maps/c.jpg").width > 300
    tested = json.loads((folder / "testing.json").read_text())
    assert tested["videos"]["c"]["frames"] == 24 and tested["videos"]["c"]["scored_frames"] == list(range(9, 18))
    assert not (folder / "progress.json").exists()
    assert script_testing.main([*argv, "--BatchSize", "4", "--WorstFrames", "0"]) == 0
    np.testing.assert_allclose(np.load(folder / "c.npy"), scores, rtol=1e-4)
    assert not (folder / "maps/c.jpg").exists()  # not left over from the run before

    assert script_eval_video.main([*argv, "--report"]) == 0
    report = Report(folder / "report.html")
    assert (
        len(report.captions) == 7 and f"{json.loads((folder / 'results.json').read_text())['auc']:.4g}" in report.texts
    )
    out = capsys.readouterr().out
    results = json.loads((folder / "results.json").read_text())
    assert results["frames"] == 9 and results["abnormal_frames"] == 4 and results["chosen_on"] == "last epoch"
    assert f"{results['auc']:.4f}" in out and f"{results['baseline_auc']:.4f}" in out
    assert (folder / "acc.txt").read_text() == f"{videos / 'stripes'}\nAUC: {results['auc']}\n"
    rows = list(csv.DictReader((folder / "scores.csv").open()))
    assert [row["frame"] for row in rows] == [str(k) for k in range(9, 18)]
    assert [row["label"] for row in rows] == ["0"] * 2 + ["1"] * 4 + ["0"] * 3
    assert float(rows[3]["regularity"]) == pytest.approx(1 - float(rows[3]["error_scaled"]))
    assert loadmat(folder / "c_label.mat")["l"].ravel().tolist() == [0, 0, 1, 1, 1, 1, 0, 0, 0]
    np.testing.assert_allclose(loadmat(folder / "c_score.mat")["score"].ravel(), np.load(folder / "c.npy"))
    assert Image.open(folder / "plots/c.png").width > 500

    # New scores take the place of all that was made of the old ones, and say which model they are of.
    assert script_testing.main([*argv, "--ModelFilePath", str(trained / f"models/{NAME}.pt")]) == 0
    assert {path.name for path in folder.rglob("*.*")} == {"c.npy", "c.jpg", "testing.json"}
    assert script_eval_video.main(argv) == 0
    assert json.loads((folder / "results.json").read_text())["chosen_on"] == "by --ModelFilePath"


def test_an_interrupted_testing_goes_on(videos, trained, tmp_path, capsys, monkeypatch):
    shutil.copytree(videos / "stripes", tmp_path / "data/stripes")
    shutil.copytree(tmp_path / "data/stripes/Test/c", tmp_path / "data/stripes/Test/d")
    argv = paths(tmp_path / "data", trained, "--OutRoot", tmp_path, "--WorstFrames", "0", script="test")
    folder, original, scored = tmp_path / f"res_{NAME}", script_testing.score_video, []

    def interrupted_at(video):
        def score(model, dataset, *more):
            if dataset.videos == [video]:
                raise KeyboardInterrupt
            scored.append(dataset.videos[0])
            return original(model, dataset, *more)

        monkeypatch.setattr(script_testing, "score_video", score)

    interrupted_at("d")
    assert script_testing.main(argv) == 130 and scored == ["c"]
    before = (folder / "unfinished/c.npy").stat().st_mtime_ns
    assert script_testing.main([*argv, "--BatchSize", "2"]) == 130 and scored == ["c", "c"]  # another command
    assert (folder / "unfinished/c.npy").stat().st_mtime_ns != before
    interrupted_at("nothing")
    capsys.readouterr()
    assert script_testing.main([*argv, "--BatchSize", "2"]) == 0 and scored == ["c", "c", "d"]
    assert "1 of 2 videos are scored already" in capsys.readouterr().out and not (folder / "unfinished").exists()
    assert np.array_equal(np.load(folder / "c.npy"), np.load(folder / "d.npy"))
    (folder / "results.json").write_text("{}")
    assert (
        script_testing.main([*argv, "--BatchSize", "2", "--NumWorker", "0"]) == 0 and len(scored) == 3
    )  # all is there
    assert (folder / "results.json").is_file() and not (folder / "unfinished").exists()

    whole = {path: path.read_bytes() for path in folder.iterdir()}
    interrupted_at("d")
    assert script_testing.main(argv) == 130
    assert whole and all(path.read_bytes() == content for path, content in whole.items())  # until the others are whole
    Image.fromarray(np.zeros((16, 16), np.uint8)).save(tmp_path / "data/stripes/Test/c/024.jpg")
    assert script_testing.main(argv) == 130 and scored[-2:] == ["c", "c"]  # its frames are others now


@pytest.fixture
def stopped(videos, trained, tmp_path, monkeypatch):
    """A testing of two videos, c and d, that was stopped before d: its command line, folder, and a function that goes
    on, which returns the videos whose scores it makes."""
    shutil.copytree(videos / "stripes", tmp_path / "data/stripes")
    shutil.copytree(tmp_path / "data/stripes/Test/c", tmp_path / "data/stripes/Test/d")
    argv = paths(tmp_path / "data", trained, "--OutRoot", tmp_path, "--WorstFrames", "0", script="test")
    original, scored, last = script_testing.score_clips, [], ["d"]

    def score(model, dataset, *more):
        if dataset.videos == last:
            raise KeyboardInterrupt
        scored.append((dataset.videos[0], more[0]))
        return original(model, dataset, *more)

    def go_on(*more, stop_at="d"):
        scored.clear()
        last[:] = [stop_at]
        assert script_testing.main([*argv, *more]) == (130 if stop_at else 0)
        return list(scored)

    monkeypatch.setattr(script_testing, "score_clips", score)
    assert go_on() == [("c", range(9))]
    return argv, tmp_path / f"res_{NAME}", go_on


def test_options_that_scores_do_not_depend_on_keep_what_is_scored(stopped, trained, monkeypatch):
    _, folder, go_on = stopped
    monkeypatch.chdir(trained)
    more = ["--NumWorker", "0", "--report", "--FrameNum", "16", "--CacheGiB", "1", "--WorstFrames", "2"]
    assert go_on(*more, "--ModelFilePath", f"models/{NAME}.pt") == [] and (folder / "unfinished/maps/c.jpg").is_file()
    assert go_on("--precision", "bf16") == [("c", range(9))]


def test_names_that_are_no_utf8_are_scored_once(videos, trained, tmp_path, monkeypatch):
    name = os.fsdecode(b"caf\xe9")
    try:
        shutil.copytree(videos / "stripes/Test/c", tmp_path / "stripes/Test" / name)
    except OSError:
        pytest.skip("no such names on this file system")
    argv = paths(tmp_path, trained, "--OutRoot", tmp_path, script="test")
    draw, stops = script_testing.draw_worst, [KeyboardInterrupt]

    def stopped_once(*args):
        if stops:
            raise stops.pop()
        draw(*args)

    monkeypatch.setattr(script_testing, "draw_worst", stopped_once)
    assert script_testing.main(argv) == 130
    monkeypatch.setattr(script_testing, "score_clips", None)
    assert script_testing.main(argv) == 0 and script_eval_video.main(argv) == 0
    assert len((tmp_path / f"res_{NAME}/scores.csv").read_text().splitlines()) == 10


@pytest.mark.parametrize("spoil", [lambda c: b"", lambda c: c[:-8], lambda c: c[:-1] + bytes([c[-1] ^ 1])])
def test_damaged_scores_are_made_again(stopped, capsys, spoil):
    argv, folder, go_on = stopped
    content = (folder / "unfinished/c.npy").read_bytes()
    (folder / "unfinished/c.npy").write_bytes(spoil(content))
    assert go_on() == [("c", range(9))] and "c.npy is damaged or gone: scored again" in capsys.readouterr().out
    assert go_on(stop_at=None) == [("d", range(9))] and (folder / "c.npy").read_bytes() == content
    (folder / "c.npy").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    refused(capsys, script_eval_video.main, argv, "c.npy has changed since")


def test_damaged_scores_of_a_video_that_was_begun(stopped, capsys, monkeypatch):
    _, folder, go_on = stopped
    monkeypatch.setattr(script_testing, "PART", 2)
    begun, scores = folder / "unfinished/d.scoring", np.load(folder / "unfinished/c.npy")
    go_on(stop_at=None)
    whole = np.stack([scores, script_testing._checks(scores)], axis=1).tobytes()
    flipped = bytearray(whole)
    flipped[83] ^= 1
    for content, first, damaged in ((whole[: 16 * 5 + 3], 4, False), (flipped, 4, True), (b"?" * 40, 0, True)):
        (folder / "testing.json").unlink(missing_ok=True)  # of a finished run
        go_on("--precision", "bf16", stop_at="c")  # removes what is there
        assert go_on() == [("c", range(k, min(k + 2, 9))) for k in range(0, 9, 2)]
        begun.write_bytes(content)
        capsys.readouterr()
        made = go_on(stop_at=None)
        assert made == [("d", range(k, min(k + 2, 9))) for k in range(first, 9, 2)]
        assert ("d.scoring is damaged" in capsys.readouterr().out) == damaged
        assert np.array_equal(np.load(folder / "d.npy"), scores)


def test_results_tell_the_numbers_of_the_files_and_what_was_left_out(stopped, trained, tmp_path, monkeypatch):
    argv, folder, go_on = stopped
    root = tmp_path / "data/stripes"
    record = {"videos": {"Test/c": [[0, 240, 10]], "Test/d": [[1, 6, 1], [7, 26, 1]]}, "notes": ["1 frame was lost"]}
    (root / "prepared.json").write_text(json.dumps(record))
    (tmp_path / "other.pt").write_bytes((trained / f"models/{NAME}.pt").read_bytes())
    (tmp_path / "none").mkdir()
    go_on("--ModelFilePath", str(tmp_path / "other.pt"), "--ModelRoot", str(tmp_path / "none"), stop_at=None)
    drawn = []
    monkeypatch.setattr(script_eval_video.report, "write", lambda *a: drawn.append(a[-1](a[2][0], 1)))
    assert script_eval_video.main([*argv, "--ModelRoot", str(tmp_path / "none"), "--report"]) == 0
    assert [name for _, _, name, _ in drawn] == ["c, frame 90"]
    rows = list(csv.DictReader((folder / "scores.csv").open()))
    assert [int(row["frame"]) for row in rows if row["video"] == "c"] == list(range(80, 170, 10))
    assert [int(row["frame"]) for row in rows if row["video"] == "d"] == list(range(10, 19))
    assert [row["label"] for row in rows[:9]] == ["0"] * 2 + ["1"] * 4 + ["0"] * 3
    assert loadmat(folder / "c_score.mat")["frame"].ravel().tolist() == list(range(80, 170, 10))
    found = json.loads((folder / "results.json").read_text())["notes"]
    assert found[0] == "1 frame was lost" and "tiny is skipped: it has 9 frames, a clip 16" in found


def test_all_test_videos_are_checked_before_the_first_is_scored(videos, trained, tmp_path, capsys):
    shutil.copytree(videos / "stripes", tmp_path / "stripes")
    shutil.copytree(tmp_path / "stripes/Test/c", tmp_path / "stripes/Test/d")
    argv = paths(tmp_path, trained, "--OutRoot", tmp_path / "out", script="test")
    for size, words in (((20, 16), ["020.jpg is 20 x 16"]), ((16, 20), ["020.jpg is 16 x 20"])):
        Image.fromarray(np.zeros(size[::-1], np.uint8)).save(tmp_path / "stripes/Test/d/020.jpg")
        refused(capsys, script_testing.main, argv, *words)
    shutil.copy(tmp_path / "stripes/Test/d/001.jpg", tmp_path / "stripes/Test/d/020.jpg")
    damaged = tmp_path / "stripes/Test/d/024.jpg"
    damaged.write_bytes(damaged.read_bytes()[:-100])
    refused(capsys, script_testing.main, argv, "cannot read 1 of 24 images", damaged)
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").write_text("a file")
    shutil.rmtree(tmp_path / "stripes/Test/d")
    refused(capsys, script_testing.main, argv, "cannot write in", "out")


def test_evaluation_without_labels(videos, trained, tmp_path, capsys):
    shutil.copytree(videos / "stripes", tmp_path / "data/stripes")
    shutil.rmtree(tmp_path / "data/stripes/Test_gt")
    argv = paths(tmp_path / "data", trained, "--OutRoot", tmp_path, script="test")
    assert script_testing.main(argv) == 0 and script_eval_video.main([*argv, "--report"]) == 0
    assert "no labels" in capsys.readouterr().out
    assert len(Report(tmp_path / f"res_{NAME}/report.html").captions) == 3  # training frames, curve, worst frames
    results = json.loads((tmp_path / f"res_{NAME}/results.json").read_text())
    assert results["unlabelled_videos"] == ["c"] and "auc" not in results
    assert len((tmp_path / f"res_{NAME}/scores.csv").read_text().splitlines()) == 10


def test_autoencoder_without_memory(videos, tmp_path):
    more = ["--ModelName", "AE", "--ModelSetting", "Conv3D"]
    assert script_training.main(paths(videos, tmp_path, *more, "--EpochNum", "1")) == 0
    argv = paths(videos, tmp_path, *more, script="test")
    assert script_testing.main([*argv, "--BatchSize", "4"]) == 0 and script_eval_video.main(argv) == 0
    assert np.load(tmp_path / "results/res_AE_Conv3D_stripes_Non/c.npy").shape == (9,)  # each clip of a batch counts


def test_index_files_choose_the_clips(videos, trained, tmp_path):
    shutil.copytree(videos / "stripes", tmp_path / "data/stripes")
    folder = tmp_path / "data/stripes/Test_idx/c"
    folder.mkdir(parents=True)
    for number, first in enumerate((1, 5), start=1):
        savemat(folder / f"c_i{number:03d}.mat", {"v_name": "c", "idx": list(range(first, first + 16))})
    argv = paths(tmp_path / "data", trained, "--OutRoot", tmp_path, script="test")
    assert script_testing.main(argv) == 0 and script_eval_video.main(argv) == 0
    rows = list(csv.DictReader((tmp_path / f"res_{NAME}/scores.csv").open()))
    assert [(row["frame"], row["label"]) for row in rows] == [("9", "0"), ("13", "1")]


def test_bfloat16_stays_close(videos, trained, tmp_path):
    argv = paths(videos, trained, "--OutRoot", tmp_path, script="test")
    assert script_testing.main(argv) == 0
    exact = np.load(tmp_path / f"res_{NAME}/c.npy")
    assert script_testing.main([*argv, "--precision", "bf16"]) == 0
    rounded = np.load(tmp_path / f"res_{NAME}/c.npy")
    np.testing.assert_allclose(rounded, exact, rtol=0.02)
    assert (rounded != exact).any()
    assert script_training.main(paths(videos, tmp_path, "--EpochNum", "1", "--precision", "bf16")) == 0


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


def test_bad_training_data(videos, tmp_path, capsys):
    shutil.copytree(videos / "stripes", tmp_path / "stripes")
    argv = paths(tmp_path, tmp_path, "--EpochNum", "1")
    assert script_training.main(argv) == 0
    frame = tmp_path / "stripes/Train/a/003.jpg"
    content = frame.read_bytes()
    Image.fromarray(np.zeros((16, 16), np.uint8)).save(frame)
    refused(capsys, script_training.main, argv, "other data", "--resume no")
    frame.write_bytes(content[: len(content) // 2])
    refused(capsys, script_training.main, argv, "003.jpg")
    frame.unlink()
    refused(capsys, script_training.main, argv, "frame 003 is missing")
    frame.write_bytes(content)
    (tmp_path / "stripes/Train_idx").mkdir()
    refused(capsys, script_training.main, argv, "no index of a")
    (tmp_path / "stripes/Train_idx").rmdir()
    state = tmp_path / f"models/model_{NAME}/{NAME}_resume.pt"
    state.write_bytes(state.read_bytes()[:1000])
    refused(capsys, script_training.main, argv, "_resume.pt", "broken")
    (tmp_path / "file").write_text("x")
    refused(capsys, script_training.main, [*argv, "--ModelRoot", tmp_path / "file"], "file")
    Image.fromarray(np.zeros((16, 20), np.uint8)).save(frame)
    refused(capsys, script_training.main, argv, "003.jpg is 20 x 16", "16 x 16")


def test_bad_testing(videos, trained, tmp_path, capsys):
    argv = paths(videos, trained, "--OutRoot", tmp_path / "out", script="test")
    model = trained / f"models/{NAME}.pt"
    for more, words in (
        (["--MemDim", "9"], ["MemDim9", "no checkpoint"]),
        (["--MemDim", "9", "--ModelFilePath", model], ["8 items", "--MemDim 9"]),
        (["--ModelName", "AE", "--ModelFilePath", model], ["has a memory", "--ModelName MemAE"]),
        (["--Backbone", "resnet3d", "--ModelFilePath", model], ["another encoder", "resnet3d"]),
        (["--ImgChnNum", "3", "--ModelFilePath", model], ["does not fit", "(96, 1, 3, 3, 3)"]),
        (["--ModelFilePath", tmp_path], [tmp_path]),
        (["--ModelFilePath", trained / f"models/model_{NAME}/{NAME}_resume.pt"], ["continuing a training"]),
        (["--ModelFilePath", videos / "stripes/Train/a/001.jpg"], ["001.jpg"]),
        (["--Dataset", "none", "--ModelFilePath", model], ["none/Test"]),
        (["--Mode", "train"], ["--Mode"]),
        (["--WorstFrames", "-1"], ["--WorstFrames"]),
        (["--BatchSize", "x"], ["--BatchSize"]),
        (["--OutRot", "x"], ["--OutRoot"]),
        (["--FrameNum", "32"], ["32 frames"]),
        (["--precision", "fp64"], ["--precision"]),
    ):
        refused(capsys, script_testing.main, [*argv, *more], *words)
    state = torch.load(model, weights_only=True)
    state["decoder.9.bias"] = torch.full((1,), 3e38)  # its square is infinite
    torch.save(state, tmp_path / "huge.pt")
    refused(capsys, script_testing.main, [*argv, "--ModelFilePath", tmp_path / "huge.pt"], "c are not finite")
    del state["mem_rep.memory.weight"]
    torch.save(state, tmp_path / "ae.pt")
    refused(capsys, script_testing.main, [*argv, "--ModelFilePath", tmp_path / "ae.pt"], "no memory")


def test_bad_evaluation(videos, trained, tmp_path, capsys):
    shutil.copytree(videos / "stripes", tmp_path / "stripes")
    argv = paths(tmp_path, trained, "--OutRoot", tmp_path, script="test")
    refused(capsys, script_eval_video.main, argv, "no scores", "script_testing.py")
    assert script_testing.main([*argv, "--WorstFrames", "0"]) == 0
    folder, labels = tmp_path / f"res_{NAME}", tmp_path / "stripes/Test_gt/c.mat"
    scores = np.load(folder / "c.npy")

    def with_labels(values, *words):
        savemat(labels, {"l": values})
        refused(capsys, script_eval_video.main, argv, "c.mat", *words)

    with_labels(np.zeros((1, 20)), "20 frames", "24")
    with_labels(np.full((1, 24), 2), "0 and 1")
    with_labels(np.full((1, 24), np.nan), "0 and 1")
    savemat(labels, {"gt": np.zeros((1, 24))})
    refused(capsys, script_eval_video.main, argv, "no variable 'l'")
    labels.write_bytes(b"MATLAB 5.0")
    refused(capsys, script_eval_video.main, argv, "c.mat is broken")
    savemat(labels, {"l": np.zeros((1, 24))})

    def with_scores(values, *words, **options):
        np.save(folder / "c.npy", values, **options)
        refused(capsys, script_eval_video.main, argv, "c.npy", *words)

    with_scores(scores[:-1], "8 scores", "9 clips")
    with_scores(np.append(scores[:-1], np.nan), "nan")
    with_scores(scores[None], "one score per clip")
    with_scores(np.array(["a"] * 9), "one score per clip")
    with_scores(np.array([{}] * 9), "broken", allow_pickle=True)
    (folder / "c.npy").write_bytes(b"")
    refused(capsys, script_eval_video.main, argv, "c.npy")
    (folder / "c.npy").unlink()
    refused(capsys, script_eval_video.main, argv, "c.npy", "script_testing.py")
    np.save(folder / "c.npy", scores)
    stored = json.loads((folder / "testing.json").read_text())

    def with_tested(content, *words):
        (folder / "testing.json").write_text(json.dumps(content))
        refused(capsys, script_eval_video.main, argv, "testing", *words)

    for content in ([], {}, None, stored | {"videos": None}, stored | {"settings": []}):
        with_tested(content, "damaged")
    for frames in (None, "all", [True] * 9, [*range(9, 17), 17.0], list(range(-9, 0)), list(range(8, 17)), [18]):
        with_tested(stored | {"videos": {"c": {"scored_frames": frames}}}, "frames 9 to 17 of c")
    with_tested(stored | {"videos": {}}, "frames 9 to 17 of c")
    (folder / "testing.json").write_text(json.dumps(stored))
    refused(capsys, script_eval_video.main, [*argv, "--FrameNum", "8"], "16 frames, not of --FrameNum 8")
    (folder / "testing.json").write_text("{")
    refused(capsys, script_eval_video.main, argv, "testing.json")
    (folder / "testing.json").unlink()  # the original's results have none
    capsys.readouterr()
    assert script_eval_video.main(argv) == 0  # no abnormal frame at all: no AUC, but scores and plots
    assert "no AUC: all 9 labelled frames are normal" in capsys.readouterr().out
    assert json.loads((folder / "results.json").read_text())["chosen_on"] == "unknown"


def test_a_loss_that_is_not_finite_keeps_what_was_saved(videos, tmp_path, capsys):
    assert script_training.main(paths(videos, tmp_path, "--EpochNum", "1")) == 0
    state = tmp_path / f"models/model_{NAME}/{NAME}_resume.pt"
    content = torch.load(state, weights_only=True)
    content["model"]["decoder.9.bias"].fill_(3e38)  # its square is infinite
    torch.save(content, state)
    before = state.read_bytes()
    argv = paths(videos, tmp_path, "--EpochNum", "2")
    refused(capsys, script_training.main, argv, "epoch 2, step 1", "learning rate")
    assert state.read_bytes() == before


def test_weights_that_are_not_finite_are_not_saved(videos, tmp_path, capsys):
    """After a fine loss, the step itself ruins them."""
    argv = paths(videos, tmp_path, "--EpochNum", "1", "--LR", "1e39")
    refused(capsys, script_training.main, argv, "parameters are not finite", "learning rate")
    assert not list((tmp_path / "models").rglob("*.pt"))
    assert script_training.main(paths(videos, tmp_path, "--EpochNum", "1")) == 0


def test_damaged_training_states(videos, trained, tmp_path, capsys):
    shutil.copytree(trained / "models", tmp_path / "models")
    state = tmp_path / f"models/model_{NAME}/{NAME}_resume.pt"
    argv = paths(videos, tmp_path, "--EpochNum", "4")
    content = torch.load(state, weights_only=True)
    for name, value in (
        ("scaler", None), ("scaler", {"scale": "much"}), ("settings", []), ("model", None), ("optimizer", 3),
        ("epoch", -1), ("step", True), ("log_end", None), ("seconds", float("nan")),
        ("sums", {"loss": None}), ("history", [{}]), ("fingerprint", 5), ("optimizer", {}), ("step", 7),
    ):  # fmt: skip
        torch.save(content | {name: value}, state)
        refused(capsys, script_training.main, argv, "_resume.pt")
    torch.save({key: value for key, value in content.items() if key != "scaler"}, state)
    refused(capsys, script_training.main, argv, "damaged", "'scaler'")


def test_the_backbones_weights_belong_to_the_training(videos, tmp_path, capsys, monkeypatch):
    """With a small network in the backbone's place."""
    shutil.copytree(videos / "stripes", tmp_path / "stripes")
    shutil.rmtree(tmp_path / "stripes/Train/b")
    for path in (tmp_path / "stripes/Train").rglob("*.jpg"):
        Image.open(path).resize((32, 32)).save(path)
    loaded = []
    monkeypatch.setattr(script_training, "make_model", lambda opt: AutoEncoderCov3D(1))
    monkeypatch.setattr(script_training, "load_backbone", lambda model, path, channels: loaded.append(path))
    file, other = tmp_path / "pretrained.pth", tmp_path / "other.pth"
    file.write_text("weights")
    other.write_text("other weights")
    argv = paths(tmp_path, tmp_path, "--Backbone", "slowonly", "--ModelName", "AE", "--EpochNum", "1")
    assert script_training.main([*argv, "--BackboneWeights", str(file)]) == 0 and loaded == [file]
    (record,) = (tmp_path / "models").glob("model_*/training.json")
    assert json.loads(record.read_text())["settings"]["BackboneWeights_sha256"] == digest(file)
    refused(capsys, script_training.main, argv, "BackboneWeights_sha256", "not None")
    refused(capsys, script_training.main, [*argv, "--BackboneWeights", other], "BackboneWeights_sha256", "--Suffix")
    refused(capsys, script_training.main, [*argv, "--BackboneWeights", tmp_path / "no"], "no checkpoint")
    file.rename(other)  # with the same content, or with the file gone, the training goes on
    for epochs, place in ((2, file), (3, other)):
        assert script_training.main([*argv, "--BackboneWeights", str(place), "--EpochNum", str(epochs)]) == 0
    assert json.loads(record.read_text())["settings"]["BackboneWeights_sha256"] == digest(other) and len(loaded) == 1


@pytest.mark.parametrize("prefix", ["module.", ""])
def test_checkpoints_of_others(videos, trained, tmp_path, capsys, prefix):
    model = trained / f"models/{NAME}.pt"
    state = {prefix + name: value for name, value in torch.load(model, weights_only=True).items()}
    torch.save(state, tmp_path / "other.pt")
    argv = paths(videos, trained, "--OutRoot", tmp_path, "--ModelFilePath", tmp_path / "other.pt", script="test")
    assert script_testing.main([*argv, "--WorstFrames", "0"]) == 0
    for value, words in ((torch.tensor(1.0), ["()"]), (torch.ones(8), ["(8,)"]), (torch.ones(7, 256), ["7 items"])):
        torch.save(state | {f"{prefix}mem_rep.memory.weight": value}, tmp_path / "other.pt")
        refused(capsys, script_testing.main, argv, "other.pt", *words)
    (tmp_path / "other.pt").write_text("notes\n")
    refused(capsys, script_testing.main, argv, "no checkpoint")


def test_deterministic_algorithms_are_asked_for(trained):
    before = torch.are_deterministic_algorithms_enabled()
    try:
        for text in ("yes", "no"):
            load_scorer(
                TestOptions().parse(["--UseCUDA", "no", "--IsDeter", text, "--MemDim", "8"]),
                trained / f"models/{NAME}.pt",
            )
            assert torch.are_deterministic_algorithms_enabled() == (text == "yes")
    finally:
        torch.use_deterministic_algorithms(before, warn_only=True)


@pytest.mark.slow
def test_two_processes_do_what_one_does(videos, trained, tmp_path):
    """Gradients (batch norms in eval mode), training, and scores; the first process alone speaks and saves."""
    program = Path(__file__).with_name("two_processes.py")
    argv = paths(videos, tmp_path, "--EpochNum", "1")
    tested = paths(videos, trained, "--OutRoot", tmp_path / "two", "--BatchSize", "2", script="test")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", program, tmp_path]
    ended = subprocess.run(
        [*command, json.dumps([argv, tested])], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("epoch    0: loss") == 1 and ended.stdout.count("scores of 9 clips") == 1
    for rank in range(2):
        assert json.loads((tmp_path / f"furthest_{rank}.json").read_text()) < 1e-5
    one = tmp_path / "one"
    assert script_testing.main([*tested, "--OutRoot", str(one)]) == 0
    scores = [np.load(place / f"res_{NAME}/c.npy") for place in (one, tmp_path / "two")]
    np.testing.assert_allclose(scores[1], scores[0], rtol=1e-5)
    assert len((tmp_path / f"models/log_{NAME}/log.csv").read_text().splitlines()) == 3
    assert script_training.main([*argv, "--EpochNum", "2"]) == 0  # one process goes on
    assert len((tmp_path / f"models/log_{NAME}/log.csv").read_text().splitlines()) == 5


def copy_of_the_repository(tmp_path):
    for name in ("common", "memae"):
        ignore = shutil.ignore_patterns("dataset", "results", "model_*", "log_*", "*.pt", "__pycache__")
        shutil.copytree(ROOT / name, tmp_path / "repo" / name, ignore=ignore)
    return tmp_path / "repo"


def test_defaults_on_a_fresh_clone_and_ctrl_c(tmp_path):
    """No data, no options, from the root: it makes its videos, says so, and can be stopped."""
    repo = copy_of_the_repository(tmp_path)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-u", "memae/script_training.py"],
        cwd=repo, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
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


@pytest.mark.parametrize(
    ("place", "script"),
    [("", "img_prep"), ("memae", "eval_video")],  # the others start in other tests
)
def test_help_from_anywhere(place, script):
    path = f"script_{script}.py" if place else f"memae/script_{script}.py"
    ended = subprocess.run(
        [sys.executable, path, "--help"], cwd=ROOT / place, capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == 0 and "--Dataset" in ended.stdout and not ended.stderr
