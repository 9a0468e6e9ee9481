"""Preparation, index files, labels and clips, on tiny videos; what is wrong with them is said in one line."""

import json
import os
import shutil
import struct
import sys
import time
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import loadmat, savemat

from common import cli
from common.cli import MAX_PIXELS
from common.files import UserError, locked
from common.images import set_max_pixels, synthetic
from memae import script_img_prep, script_index_gen
from memae.data import VideoDataset, VideoDatasetOneDir, demo_videos, video_datasets
from memae.data.video_datasets import load_batches, read_index, subfolders
from memae.options import TestOptions
from memae.options.base_options import HERE
from memae.script_img_prep import labels_from_intervals, labels_from_masks, read_intervals
from tests.helpers import refused


def grey(value, size=(16, 16)):
    return Image.fromarray(np.full(size, value, np.uint8))


def make_video(folder, frames, first=1, size=(16, 16), suffix=".png", digits=3):
    """Frame k has the grey level k (modulo 256)."""
    folder.mkdir(parents=True)
    for k in range(first, first + frames):
        grey(k % 256, size).save(folder / f"{k:0{digits}d}{suffix}")
    return folder


def prep(*argv):
    return script_img_prep.main([str(part) for part in argv])


def test_preparation_of_ucsd_layout(tmp_path, capsys):
    make_video(tmp_path / "ucsd/Train/Train001", 20, suffix=".tif", size=(24, 36))
    test = make_video(tmp_path / "ucsd/Test/Test001", 18, suffix=".tif", size=(24, 36))
    (test / "._001.tif").write_text("left by a Mac")
    masks = tmp_path / "ucsd/Test/Test001_gt"
    masks.mkdir()
    for k in range(1, 19):
        mask = np.zeros((24, 36), np.uint8)
        mask[3, 3] = k in (5, 6)
        Image.fromarray(mask).save(masks / f"{k:03d}.bmp")
    root = tmp_path / "out"
    assert prep("--Input", tmp_path / "ucsd", "--DataRoot", root, "--Dataset", "d", "--Size", 32) == 0
    assert "1 training videos, 1 test videos, 1 with labels" in capsys.readouterr().out
    frames = sorted((root / "d/Test/Test001").iterdir())
    assert [frame.name for frame in frames] == [f"{k:03d}.jpg" for k in range(1, 19)]
    image = Image.open(frames[4])
    assert image.mode == "L" and image.size == (32, 32) and abs(int(np.asarray(image)[5, 5]) - 5) <= 1
    label = loadmat(root / "d/Test_gt/Test001.mat")["l"]
    assert label.shape == (1, 18) and np.flatnonzero(label).tolist() == [4, 5]

    # A second run with the same settings finds all done; another size is refused.
    before = frames[0].stat().st_mtime_ns
    assert prep("--Input", tmp_path / "ucsd", "--DataRoot", root, "--Dataset", "d", "--Size", 32) == 0
    assert frames[0].stat().st_mtime_ns == before
    refused(
        capsys, script_img_prep.main,
        ["--Input", tmp_path / "ucsd", "--DataRoot", root, "--Dataset", "d", "--Size", 64], "another --Dataset",
    )  # fmt: skip


def test_an_interrupted_preparation_resumes(tmp_path, capsys, monkeypatch):
    for name in ("one", "two"):
        make_video(tmp_path / "v" / name, 3)
    argv = ["--Train", tmp_path / "v", "--DataRoot", tmp_path / "out", "--Dataset", "d", "--Size", 16]
    whole, train = script_img_prep.prepare_video, tmp_path / "out/d/Train"

    def stopped(video, output, *more):
        if video.name == "two":
            output.mkdir()
            (output / "777.jpg").write_text("half")
            raise KeyboardInterrupt
        return whole(video, output, *more)

    with monkeypatch.context() as patch:
        patch.setattr(script_img_prep, "prepare_video", stopped)
        assert prep(*argv) == 130
    assert "progress is saved in" in (told := capsys.readouterr().out) and "run the same command" in told
    assert sorted(path.name for path in train.iterdir()) == [".making-two", "one"]
    assert prep(*argv) == 0 and sorted(path.name for path in train.iterdir()) == ["one", "two"]
    assert [len(list(folder.iterdir())) for folder in train.iterdir()] == [3, 3]


def test_resizing_is_bicubic_with_antialiasing(tmp_path):
    """A chessboard of single pixels becomes even grey; without antialiasing it would be black or white."""
    (tmp_path / "v").mkdir()
    board = (np.indices((64, 64)).sum(axis=0) % 2 * 255).astype(np.uint8)
    Image.fromarray(board).save(tmp_path / "v/1.png")
    assert prep("--Test", tmp_path / "v", "--DataRoot", tmp_path, "--Dataset", "d", "--Size", 16) == 0
    pixels = np.asarray(Image.open(tmp_path / "d/Test/v/001.jpg"))
    assert abs(pixels.astype(int) - 127).max() <= 3


def test_colour_frames_keep_their_colour_only_with_three_channels(tmp_path):
    (tmp_path / "v").mkdir()
    Image.fromarray(np.full((16, 16, 3), (200, 30, 30), np.uint8)).save(tmp_path / "v/frame10.png")
    Image.fromarray(np.full((16, 16, 3), (30, 200, 30), np.uint8)).save(tmp_path / "v/frame9.png")
    argv = ["--Test", tmp_path / "v", "--DataRoot", tmp_path, "--Size", 16]
    assert prep(*argv, "--Dataset", "grey") == 0 and prep(*argv, "--Dataset", "rgb", "--ImgChnNum", 3) == 0
    assert Image.open(tmp_path / "grey/Test/v/001.jpg").mode == "L"
    first = np.asarray(Image.open(tmp_path / "rgb/Test/v/001.jpg"))  # frame9 comes before frame10
    assert first[8, 8, 1] > first[8, 8, 0] + 100


def test_the_published_interval_file(tmp_path):
    videos = [f"Test{k:03d}" for k in range(1, 13)]
    found = read_intervals(HERE / "data/UCSDped2.m", videos)
    assert found["Test001"] == [(61, 180)] and found["Test009"] == [(1, 120)] and found["Test012"] == [(88, 180)]
    (tmp_path / "x.m").write_text("T{end+1}.gt_frame = [5:90, 140:200];\nT{end+1}.gt_frame = [];\n")
    assert read_intervals(tmp_path / "x.m", ["a", "b"]) == {"a": [(5, 90), (140, 200)], "b": []}
    # Of those that are there, by the numbers in their names.
    assert read_intervals(HERE / "data/UCSDped2.m", ["Test002", "Test009"]) == {
        "Test002": [(95, 180)], "Test009": [(1, 120)],
    }  # fmt: skip
    assert any("labels of 12 videos, 2 are tested: the lines [2, 9] are theirs" in line for line in cli.notes())
    with pytest.raises(UserError, match="12 videos, there are 1 test videos"):
        read_intervals(HERE / "data/UCSDped2.m", ["morning"])
    (tmp_path / "y.txt").write_text("a: 5-90\nother: 1-2\n")
    assert read_intervals(tmp_path / "y.txt", ["a"]) == {"a": [(5, 90)]}
    assert any("1 video not among those to test, such as other" in line for line in cli.notes())
    assert labels_from_intervals([(2, 3)], range(1, 5), "a").tolist() == [0, 1, 1, 0]
    with pytest.raises(
        UserError, match="frames 51 to 54, of which there are none: the next ones have the numbers 50 and 55"
    ):
        labels_from_intervals([(50, 50), (51, 54)], [45, 50, 55, 60], "a")


def test_uneven_sources_are_said(tmp_path, capsys):
    make_video(tmp_path / "v/a", 3, size=(16, 32))
    make_video(tmp_path / "v/b", 3)
    make_video(tmp_path / "v/straight_gt", 3)
    (tmp_path / "v/a/notes").mkdir()
    assert prep("--Test", tmp_path / "v", "--DataRoot", tmp_path / "out", "--Dataset", "d", "--Size", "16") == 0
    out = capsys.readouterr().out
    assert "left out" in out and "such as straight_gt" in out and "b is 16 x 16 pixels" in out and "a 32 x 16" in out
    assert sorted(path.name for path in (tmp_path / "out/d/Test").iterdir()) == ["a", "b"]


def test_the_last_number_of_a_name_need_not_count(tmp_path):
    (tmp_path / "v").mkdir()
    for k in (9, 8, 10):
        grey(k).save(tmp_path / f"v/{k}_cam3.png")
    names = [(number, path.stem) for number, path in script_img_prep.source_frames(tmp_path / "v").items()]
    assert names == [(8, "8_cam3"), (9, "9_cam3"), (10, "10_cam3")]
    (tmp_path / "v/9_cam3.png").unlink()
    grey(1).save(tmp_path / "v/11_cam3.png")
    with pytest.raises(UserError, match=r"jump from 8_cam3\.png to 10_cam3\.png"):
        script_img_prep.source_frames(tmp_path / "v")
    grey(1).save(tmp_path / "v/cover.png")
    with pytest.raises(UserError, match=r"1 of the 4 frames in .* have no number, such as cover\.png"):
        script_img_prep.source_frames(tmp_path / "v")


def test_a_failed_preparation_is_in_nobodys_way_and_changed_sources_are_noticed(tmp_path, capsys):
    frame = make_video(tmp_path / "v/a", 2, size=(300, 300), suffix=".bmp") / "002.bmp"
    content, labels = frame.read_bytes(), tmp_path / "labels"
    argv = ["--Test", tmp_path / "v", "--DataRoot", tmp_path / "out", "--Dataset", "d", "--Size", "16"]
    frame.write_bytes(content[:200])
    refused(capsys, script_img_prep.main, argv, "002.bmp")
    frame.write_bytes(content)
    assert prep(*argv) == 0 and prep(*argv) == 0
    assert json.loads((tmp_path / "out/d/prepared.json").read_text())["videos"] == {"Test/a": [[1, 3, 1]]}
    labels.write_text("a: 1")
    refused(capsys, script_img_prep.main, [*argv, "--Labels", labels], "Labels differs", "another --Dataset")
    argv = [*argv, "--Labels", labels, "--Dataset", "e"]
    assert prep(*argv) == 0
    labels.write_text("a: 1-2")
    refused(capsys, script_img_prep.main, argv, "labels differs")
    labels.write_text("a: 1")
    frame.write_bytes(content[:80_000] + bytes([content[80_000] + 1]) + content[80_001:])
    refused(capsys, script_img_prep.main, argv, "sources differs")


def test_training_videos_that_are_tested_on(tmp_path, capsys):
    make_video(tmp_path / "v/a", 3)
    make_video(tmp_path / "w/a", 3)
    argv = ["--DataRoot", tmp_path, "--Size", "16", "--Test", tmp_path / "v", "--Train"]
    for train, same in (("v", True), ("w", False)):
        assert prep(*argv, tmp_path / train, "--Dataset", train + "1") == 0
        assert ("scores mean little" in capsys.readouterr().out) == same
        assert json.loads((tmp_path / f"{train}1/prepared.json").read_text())["same_videos"] == same


def test_what_systems_put_into_folders_is_no_data(tmp_path, capsys):
    make_video(tmp_path / "v/a", 5)
    for name in ("v/@eaDir/a", "v/a/@eaDir", "v/__MACOSX/a", "v/.thumbnails"):
        make_video(tmp_path / name, 3, first=9)
    for name in ("v/Thumbs.db", "v/a/.hidden.png", "v/a/desktop.ini"):
        (tmp_path / name).write_text("x")
    assert prep("--Test", tmp_path / "v", "--DataRoot", tmp_path, "--Dataset", "d", "--Size", 16) == 0
    assert "left out" not in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "d/Test").iterdir()] == ["a"]
    assert len(list((tmp_path / "d/Test/a").iterdir())) == 5
    (tmp_path / "d/Test/@eaDir").mkdir()
    (tmp_path / "d/Test/a/~$1.jpg").write_text("x")
    (tmp_path / "d/Test/a/006.heic").write_text("x")
    assert len(VideoDataset(None, tmp_path / "d/Test", 2).clips) == 4
    assert "1 file in" in (said := capsys.readouterr().out) and "left out, such as 006.heic" in said


def test_frames_are_ordered_by_the_date_and_time_in_their_names(tmp_path, capsys):
    for folder, names in {
        "year first": ("2024-01-31_23-59-59", "2024-02-01_00-00-00", "2024-02-01_00-00-07"),
        "year last": ("cam 31.12.2023 10h00m01", "cam 01.01.2024 09h00m00", "cam 02.01.2024 00h00m09"),
        "in a row": ("IMG_20240131235959", "IMG_20240201000000_2", "IMG_20240201000000_10"),
    }.items():
        (tmp_path / folder).mkdir()
        for name in names:
            grey(1).save(tmp_path / folder / f"{name}.png")
        found = script_img_prep.source_frames(tmp_path / folder)
        assert {number: path.stem for number, path in found.items()} == dict(enumerate(names, start=1))
        assert f"date and time, from {names[0]}.png to {names[-1]}.png" in capsys.readouterr().out
    assert not script_img_prep._time("cam12_00012345") and not script_img_prep._time("2024-13-31_10-00-00")


def prepared(root, *argv):
    """Exit status of a preparation of `root`/v as test videos of 16 x 16."""
    return prep("--Test", root / "v", "--DataRoot", root, "--Dataset", "d", "--Size", 16, *argv)


def test_labels_are_numbers_of_files(tmp_path, capsys):
    def video(name, numbers):
        (tmp_path / "v" / name).mkdir(parents=True)
        for k in numbers:
            grey(1).save(tmp_path / "v" / name / f"{k:03d}_cam1.png")

    video("from0", range(20))
    video("steps", range(5, 105, 5))
    make_video(tmp_path / "v/usual", 20)
    labels = tmp_path / "labels"
    labels.write_bytes("\ufefffrom0: 0-2, 5-10\nsteps: 50-60\nsteps: 98-100\nusual: 5-10".encode())
    assert prepared(tmp_path, "--Labels", labels) == 0
    assert "the first abnormal frame of from0 is number 0, 000_cam1.png" in capsys.readouterr().out
    found = {name: np.flatnonzero(loadmat(tmp_path / f"d/Test_gt/{name}.mat")["l"]) for name in ("from0", "steps")}
    assert found["from0"].tolist() == [0, 1, 2, 5, 6, 7, 8, 9, 10] and found["steps"].tolist() == [9, 10, 11, 19]
    assert np.flatnonzero(loadmat(tmp_path / "d/Test_gt/usual.mat")["l"]).tolist() == [4, 5, 6, 7, 8, 9]
    numbers = {name: video_datasets.file_numbers(tmp_path / "d/Test" / name, 20).tolist() for name in found}
    assert numbers == {"from0": list(range(20)), "steps": list(range(5, 105, 5))}
    for text, words in (
        ("steps: 4-9", "begin at frame 4"),
        ("steps: 7-9", "frames 7 to 9"),
        ("from0: 19-20", "reach to frame 20"),
    ):
        labels.write_text(text)
        refused(capsys, script_img_prep.main, ["--Test", tmp_path / "v", "--Labels", labels], words, "numbers")


def test_labels_as_arrays(tmp_path, capsys):
    make_video(tmp_path / "v/01_0014", 4)
    make_video(tmp_path / "v/b", 3)
    wanted = {"01_0014": [0, 1, 1, 0], "b": [0, 0, 1]}
    (tmp_path / "masks").mkdir()
    np.save(tmp_path / "masks/01_0014.npy", np.array(wanted["01_0014"], np.int8))
    savemat(tmp_path / "masks/b.mat", {"l": np.array([wanted["b"]])})
    np.save(tmp_path / "masks/other.npy", np.zeros(3))
    np.save(tmp_path / "all.npy", np.array([wanted["01_0014"] + wanted["b"]], bool))
    for path in ("masks", "all.npy"):
        shutil.rmtree(tmp_path / "d", ignore_errors=True)
        assert prepared(tmp_path, "--Labels", tmp_path / path) == 0
        assert {name: loadmat(tmp_path / f"d/Test_gt/{name}.mat")["l"].ravel().tolist() for name in wanted} == wanted
    assert "1 file of no test video left out" in (said := capsys.readouterr().out) and "other.npy" in said
    assert "the first abnormal frame of 01_0014 is number 2, 002.png" in said
    argv = ["--Test", tmp_path / "v", "--Labels"]
    np.save(tmp_path / "all.npy", np.zeros(8))
    refused(capsys, script_img_prep.main, [*argv, tmp_path / "all.npy"], "8 labels", "7 frames")
    np.save(tmp_path / "all.npy", np.arange(7))
    refused(capsys, script_img_prep.main, [*argv, tmp_path / "all.npy"], "all.npy", "0 and 1")
    np.save(tmp_path / "all.npy", np.array([{}] * 7), allow_pickle=True)
    refused(capsys, script_img_prep.main, [*argv, tmp_path / "all.npy"], "all.npy is broken")
    np.save(tmp_path / "masks/01_0014.npy", np.zeros(5))
    refused(capsys, script_img_prep.main, [*argv, tmp_path / "masks"], "5 labels", "4 frames of 01_0014")
    shutil.rmtree(tmp_path / "v/01_0014")
    make_video(tmp_path / "v/a", 4)
    savemat(tmp_path / "two.mat", {"a": np.array([1, 0, 0, 0]), "b": np.array([0, 0, 1])})
    shutil.rmtree(tmp_path / "d")
    assert prepared(tmp_path, "--Labels", tmp_path / "two.mat") == 0
    assert loadmat(tmp_path / "d/Test_gt/a.mat")["l"].ravel().tolist() == [1, 0, 0, 0]


def test_long_labels_are_read_in_linear_time(tmp_path):
    labels = tmp_path / "labels"
    started = time.monotonic()
    for text in ("a: 1" + " " * 200_000 + "x", "a:" + " -" * 100_000, " " * 200_000 + "gt_frame" + " " * 200_000):
        labels.write_text(text)
        with pytest.raises(UserError):
            read_intervals(labels, ["a"])
    labels.write_text("a: 1" + " " * 200_000 + "-" + " " * 200_000 + "3")
    assert read_intervals(labels, ["a"]) == {"a": [(1, 3)]} and time.monotonic() - started < 10


def test_videos_in_subfolders_and_behind_links(tmp_path, capsys):
    make_video(tmp_path / "v/day1/x", 3)
    make_video(tmp_path / "v/day2/deep/x", 4)
    make_video(tmp_path / "v/day1/x_gt", 3)
    make_video(tmp_path / "store/z", 5)
    (tmp_path / "v/day3").symlink_to(tmp_path / "store")
    (tmp_path / "v/day1/loop").symlink_to(tmp_path / "v")
    (tmp_path / "v/empty").mkdir()
    for name in ("a.heic", "b.heic"):
        (tmp_path / "v/day1/x" / name).write_text("x")
    assert prepared(tmp_path) == 0
    said = capsys.readouterr().out
    counts = {path.name: len(list(path.iterdir())) for path in (tmp_path / "d/Test").iterdir()}
    assert counts == {"day1_x": 3, "day2_deep_x": 4, "day3_z": 5}
    assert "videos in a supported format (2)" in said and "such as day1/x/a.heic" in said
    assert "folders without videos (1), such as empty" in said and "read once: 1 folder in" in said
    assert (tmp_path / "d/Test_gt/day1_x.mat").is_file()
    stored = json.loads((tmp_path / "d/prepared.json").read_text())["notes"]
    assert any("day1/x/a.heic" in line for line in stored)
    make_video(tmp_path / "v/day1_x", 3)
    refused(capsys, script_img_prep.main, ["--Test", tmp_path / "v"], "both become the video day1_x")


def test_names_that_are_no_utf8_are_prepared_once(tmp_path, capsys):
    name = os.fsdecode(b"caf\xe9")
    try:
        make_video(tmp_path / "v" / name, 3)
    except OSError:
        pytest.skip("no such names on this file system")
    assert prepared(tmp_path) == 0 and prepared(tmp_path) == 0
    assert [path.name for path in (tmp_path / "d/Test").iterdir()] == ["caf\\udce9"]
    assert index(tmp_path / "d", "--FrameNum", 2) == 0 and len(
        VideoDataset(tmp_path / "d/Test_idx", tmp_path / "d/Test", 2)
    )


def test_two_preparations_of_one_data_set_do_not_mix(tmp_path, capsys):
    make_video(tmp_path / "v/a", 18)
    argv = ["--Test", tmp_path / "v", "--DataRoot", tmp_path, "--Dataset", "d", "--Size", 16]
    with locked(tmp_path / "d"):
        refused(capsys, script_img_prep.main, argv, "another run is writing to")
    assert prep(*argv) == 0
    with locked(tmp_path / "d"):
        refused(capsys, script_index_gen.main, ["--DataRoot", tmp_path, "--Dataset", "d"], "another run is writing to")
    (tmp_path / "d/Test/a/018.jpg").unlink()
    refused(capsys, script_img_prep.main, argv, "d/Test/a has 17 frames", "made 18")
    with pytest.raises(UserError, match="has 17 frames"):
        VideoDataset(None, tmp_path / "d/Test")
    for runs in (5, [[1]], [[1, 2, 0]], [[1, "2", 1]], [[2**63, 2**63 + 17, 1]], [[0, 2**64 - 1, 1]]):
        (tmp_path / "d/prepared.json").write_text(json.dumps({"videos": {"Test/a": runs}}))
        with pytest.raises(UserError, match=r"prepared\.json is damaged|script_img_prep\.py has made"):
            VideoDataset(None, tmp_path / "d/Test")


def test_an_unfinished_preparation_is_not_used(tmp_path, capsys):
    for video in ("Train/a", "Train/b", "Test/c"):
        make_video(tmp_path / "v" / video, 3)
    argv, root = ["--DataRoot", tmp_path, "--Dataset", "d"], tmp_path / "d"
    assert prep("--Input", tmp_path / "v", "--Size", 16, *argv) == 0
    whole = json.loads((root / "prepared.json").read_text())
    shutil.rmtree(root / "Train/b")
    assert subfolders(root / "Train") == ["a"]
    assert "1 prepared video is not in" in capsys.readouterr().out  # removed on purpose
    (root / "Train/.making-b").mkdir()
    with pytest.raises(UserError, match=r"Train/b is missing.* run script_img_prep\.py again"):
        subfolders(root / "Train")
    (root / "Train/.making-b").rmdir()
    (root / "prepared.json").write_text(json.dumps(whole | {"videos": {"Train/a": whole["videos"]["Train/a"]}}))
    shutil.rmtree(root / "Test")
    refused(capsys, script_index_gen.main, argv, "Train/b is missing")
    make_video(root / "Train/b", 3)
    refused(capsys, script_index_gen.main, argv, "Test/c is missing")


def test_frames_of_12_bits(tmp_path, capsys):
    (tmp_path / "v").mkdir()
    Image.fromarray(np.full((16, 16), 2048, np.uint16)).save(tmp_path / "v/1.png")
    assert prepared(tmp_path) == 0
    assert "try --max_value 4095" in capsys.readouterr().out
    argv = ["--Test", tmp_path / "v", "--DataRoot", tmp_path, "--Size", 16, "--max_value"]
    for option in ("4095", "auto"):
        assert prep(*argv, option, "--Dataset", option) == 0
        assert abs(int(np.asarray(Image.open(tmp_path / option / "Test/v/001.jpg"))[5, 5]) - 128) < 2
    refused(capsys, script_img_prep.main, [*argv, "4095", "--Dataset", "d"], "max_value differs")
    try:
        refused(capsys, script_img_prep.main, [*argv[:-1], "--max_pixels", "200"], "--max_pixels", "1.png")
    finally:
        set_max_pixels(MAX_PIXELS["default"])


class StandIn:
    """PyAV's interface as far as it is used: a file of grey frames, some packets damaged."""

    class error:
        class FFmpegError(Exception):
            strerror = "damaged"

        class InvalidDataError(FFmpegError):
            pass

    class VideoFrame:
        rotation = 0

        def __init__(self, image, rotation=0, is_corrupt=False):
            self.image, self.rotation, self.is_corrupt = image, rotation, is_corrupt

        def to_image(self):
            return self.image.convert("RGB")

    def __init__(self, packets, ends_early=False):
        self.packets, self.ends_early = packets, ends_early

    @contextmanager
    def open(self, path, options):
        packets = [SimpleNamespace(decode=lambda packet=packet: self._decode(packet)) for packet in self.packets]

        def demux(stream):
            yield from packets
            if self.ends_early:
                raise self.error.FFmpegError

        streams = SimpleNamespace(video=[SimpleNamespace(frames=len(packets))])
        yield SimpleNamespace(streams=streams, demux=demux)

    def _decode(self, packet):
        if packet is None:
            raise self.error.InvalidDataError
        return packet


def test_damaged_packets_cost_their_frames_only(tmp_path, capsys, monkeypatch):
    frame = StandIn.VideoFrame
    frames = [[frame(grey(10 * k))] for k in range(1, 9)]
    frames[2], frames[5] = None, [frame(grey(0), is_corrupt=True)]
    monkeypatch.setitem(sys.modules, "av", StandIn(frames))
    (tmp_path / "v").mkdir()
    (tmp_path / "v/a.mp4").write_text("x")
    (tmp_path / "labels").write_text("a: 4-5, 8")
    assert prepared(tmp_path, "--Labels", tmp_path / "labels") == 0
    said = capsys.readouterr().out
    assert said.count("2 damaged frames of") == 1 and "a.mp4 left out, the first of them frame 3" in said
    files = sorted((tmp_path / "d/Test/a").iterdir())
    assert [round(np.asarray(Image.open(file)).mean() / 10) for file in files] == [1, 2, 4, 5, 7, 8]
    assert video_datasets.file_numbers(tmp_path / "d/Test/a", 6).tolist() == [1, 2, 4, 5, 7, 8]
    assert loadmat(tmp_path / "d/Test_gt/a.mat")["l"].ravel().tolist() == [0, 0, 1, 1, 0, 1]
    assert "the first abnormal frame of a is number 4" in said
    monkeypatch.setitem(sys.modules, "av", StandIn(frames[:2], ends_early=True))
    assert prep("--Test", tmp_path / "v", "--DataRoot", tmp_path, "--Dataset", "e", "--Size", 16) == 0
    assert "a.mp4 cannot be read beyond frame 2: damaged" in capsys.readouterr().out
    monkeypatch.setitem(sys.modules, "av", StandIn([None, None]))
    refused(capsys, script_img_prep.main, ["--Test", tmp_path / "v"], "a.mp4 holds no frame that can be read")


def test_rotation_in_a_videos_header_is_applied(tmp_path, monkeypatch):
    """Turned by a quarter clockwise, what is at the upper left comes to the upper right."""
    image = Image.new("L", (32, 16))
    image.paste(255, (0, 0, 8, 8))
    monkeypatch.setitem(sys.modules, "av", StandIn([[StandIn.VideoFrame(image, rotation=-90)]]))
    (tmp_path / "a.mp4").write_text("x")
    assert script_img_prep.frame_shape(tmp_path / "a.mp4") == (32, 16)
    ((_, turned),) = script_img_prep.read_frames(tmp_path / "a.mp4", "")
    assert turned.getpixel((12, 3)) == (255, 255, 255) and turned.getpixel((3, 3)) == (0, 0, 0)


def encoded(path):
    """A video file of 20 frames of 64 x 48, which get lighter, each with a white corner at the upper left."""
    av = pytest.importorskip("av")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for k in range(20):
            pixels = np.full((48, 64, 3), 10 * k, np.uint8)
            pixels[:10, :10] = 255
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    with av.open(str(path)) as container:
        return [(packet.pos, packet.size) for packet in container.demux(video=0)]


def test_rotation_and_damage_of_a_real_file(tmp_path, capsys):
    places = encoded(tmp_path / "a.mp4")
    content = bytearray((tmp_path / "a.mp4").read_bytes())
    for start, size in places[5:7]:
        content[start : start + size] = bytes(size)
    upright = struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    at = content.index(upright, content.index(b"tkhd"))
    content[at : at + 36] = struct.pack(">9i", 0, 1 << 16, 0, -1 << 16, 0, 0, 48 << 16, 0, 1 << 30)
    (tmp_path / "a.mp4").write_bytes(content)
    found = list(script_img_prep.read_frames(tmp_path / "a.mp4", ""))
    assert [number for number, image in found if image is None] == [6, 7] and len(found) == 20
    assert "2 damaged frames of" in (said := capsys.readouterr().out) and "the first of them frame 6" in said
    image = found[0][1]
    assert image.size == (48, 64) and image.getpixel((45, 2))[0] > 200 > 60 > image.getpixel((2, 2))[0]


def test_video_files_need_pyav(tmp_path, capsys, monkeypatch):
    (tmp_path / "a.mp4").write_text("x")
    monkeypatch.setitem(sys.modules, "av", None)
    argv = ["--Test", tmp_path / "a.mp4", "--DataRoot", tmp_path, "--Dataset", "d"]
    refused(capsys, script_img_prep.main, argv, "pip install av", "a.mp4")


def test_video_files(tmp_path, capsys):
    encoded(tmp_path / "clip.mp4")
    encoded(tmp_path / "whole.avi")
    argv = ["--DataRoot", tmp_path, "--Size", 32, "--Test"]
    assert prep(*argv, tmp_path / "clip.mp4", "--Dataset", "d") == 0
    frames = sorted((tmp_path / "d/Test/clip").iterdir())
    assert len(frames) == 20 and abs(int(np.asarray(Image.open(frames[10]))[15, 15]) - 100) < 12
    (tmp_path / "broken.mp4").write_bytes(b"no video" * 100)
    refused(capsys, script_img_prep.main, [*argv, tmp_path / "broken.mp4"], "broken.mp4: invalid data")
    content = (tmp_path / "whole.avi").read_bytes()
    (tmp_path / "cut.avi").write_bytes(content[: (content.index(b"movi") + content.index(b"idx1")) // 2])
    assert prep(*argv, tmp_path / "cut.avi", "--Dataset", "cut") == 0
    count = len(list((tmp_path / "cut/Test/cut").iterdir()))
    assert count < 20 and f"cut.avi announces 20 frames, only {count} can be read" in capsys.readouterr().out


def test_a_frame_with_any_marked_pixel_is_abnormal(tmp_path):
    (tmp_path / "m").mkdir()
    for k, value in enumerate((0, 1, 2, 100, 255), start=1):
        mask = np.zeros((16, 16), np.uint8)
        mask[3, 5] = value
        Image.fromarray(mask).save(tmp_path / f"m/{k:03d}.png")
    assert labels_from_masks(tmp_path / "m").tolist() == [0, 1, 1, 1, 1]


@pytest.fixture
def root(tmp_path):
    """A prepared data set: two training videos of 20 and 17 frames, one of 5."""
    for name, frames in (("a", 20), ("b", 17), ("short", 5)):
        make_video(tmp_path / "d/Train" / name, frames)
    return tmp_path / "d"


def index(root, *argv):
    return script_index_gen.main(["--DataRoot", str(root.parent), "--Dataset", root.name, *map(str, argv)])


def test_index_files(root, capsys):
    assert index(root) == 0
    out = capsys.readouterr().out
    assert "short is skipped: it has 5 frames" in out and "7 clips in Train_idx" in out
    names = sorted(path.name for path in (root / "Train_idx/a").iterdir())
    assert names == [f"a_i{k:03d}.mat" for k in range(1, 6)]
    content = loadmat(root / "Train_idx/a/a_i003.mat")
    assert content["v_name"][0] == "a" and content["idx"][0].tolist() == list(range(3, 19))
    assert not (root / "Train_idx/short").exists()
    assert index(root, "--Stride", 4) == 0
    assert len(list((root / "Train_idx/a").iterdir())) == 2
    refused(capsys, script_index_gen.main, ["--DataRoot", root.parent, "--Dataset", "none"], "script_img_prep.py")
    refused(capsys, script_index_gen.main, ["--DataRoot", root.parent, "--Dataset", "d", "--Stride", "0"], "--Stride")


def test_clips_with_and_without_index_files(root):
    without = VideoDataset(None, root / "Train")
    assert index(root) == 0
    with_files = VideoDataset(root / "Train_idx", root / "Train")
    assert len(without) == len(with_files) == 7 and without.clips == with_files.clips
    assert without.fingerprint() == with_files.fingerprint()
    number, clip = with_files[5]
    assert number == 5 and clip.shape == (1, 16, 16, 16) and clip.dtype == torch.float32
    expected = (torch.arange(1, 17) / 255 - 0.5) / 0.5  # the first clip of b
    torch.testing.assert_close(clip[0, :, 3, 3], expected)
    assert with_files.batch([5, 0]).dtype == torch.uint8 and with_files.batch([5, 0]).shape == (2, 1, 16, 16, 16)
    one = VideoDatasetOneDir(root / "Train_idx/a", root / "Train/a")
    assert len(one) == 5 and torch.equal(one[2][1], with_files[2][1])
    raw = VideoDataset(None, root / "Train", transform=lambda frames: frames[:, 0])
    assert raw[1][1].shape == (1, 16, 16) and raw[1][1].unique().item() == 2


def test_each_frame_is_decoded_once(root, monkeypatch):
    read = []
    original = video_datasets.read_image
    monkeypatch.setattr(video_datasets, "read_image", lambda path: (read.append(path), original(path))[1])
    dataset = VideoDataset(None, root / "Train")
    for _ in range(2):
        for i in range(len(dataset)):
            dataset[i]
    assert len(read) == len(set(read)) == 37


@pytest.mark.parametrize("reserved", [True, False])
def test_frames_beyond_the_limit_lie_in_a_file(root, monkeypatch, reserved):
    if not reserved:
        monkeypatch.delattr("os.posix_fallocate")  # macOS and Windows
    inside, outside = VideoDataset(None, root / "Train"), VideoDataset(None, root / "Train", limit_gib=1e-6)
    assert isinstance(outside.store, np.memmap) and not isinstance(inside.store, np.memmap)
    assert all(torch.equal(inside[i][1], outside[i][1]) for i in range(len(inside)))
    assert {path.name for path in root.iterdir()} == {"Train"}  # without a name


def test_frames_can_be_decoded_later(root):
    dataset = VideoDatasetOneDir(None, root / "Train/a", decode=False)
    assert dataset.size == (16, 16) and len(dataset) == 5 and not hasattr(dataset, "store")
    whole = VideoDatasetOneDir(None, root / "Train/a")
    dataset.decode()
    assert torch.equal(dataset[0][1], whole[0][1])
    dataset.decode(range(2, 4))
    assert len(dataset.store) == 17 and all(torch.equal(dataset[i][1], whole[i][1]) for i in (2, 3))


def test_order_is_by_number(tmp_path):
    make_video(tmp_path / "long", 1)
    for k in range(2, 1021):
        os.link(tmp_path / "long/001.png", tmp_path / f"long/{k:03d}.png")
    names = [path.name for path in video_datasets.frame_files(tmp_path / "long")]
    assert names[999] == "1000.png" and names[1019] == "1020.png"
    (tmp_path / "idx/long").mkdir(parents=True)
    for k in (1001, 999, 1000):
        savemat(tmp_path / f"idx/long/long_i{k:03d}.mat", {"v_name": "long", "idx": range(k, k + 16)})
    clips = video_datasets.clips_of(tmp_path / "idx", "long", 1020, 16)
    assert [clip[0] for clip in clips] == [999, 1000, 1001]


def test_batches_come_in_order_whatever_the_threads(root):
    dataset = VideoDataset(None, root / "Train")
    batches = [[3, 1], [0], [5, 6, 2], [4]]
    expected = [dataset.batch(batch) for batch in batches]
    for threads in (0, 1, 3):
        found = list(load_batches(dataset, batches, threads))
        assert len(found) == 4 and all(torch.equal(one, other) for one, other in zip(found, expected))


@pytest.mark.parametrize(
    ("idx", "words"),
    [
        (range(6, 22), "frame 021"), (range(16), "frame 000"), (range(2, 17), "lists 15 frames"),
        (np.arange(2, 18) + 0.5, "no frame numbers"), ([*range(2, 17), 20], "do not follow each other"),
        ("frames", "no frame numbers"),
    ],
)  # fmt: skip
def test_bad_index_files(tmp_path, idx, words):
    savemat(tmp_path / "a_i002.mat", {"v_name": "a", "idx": idx})
    with pytest.raises(UserError, match=words):
        read_index(tmp_path / "a_i002.mat", "a", 20, 16)


def test_demo_videos(tmp_path):
    demo_videos.make_videos(tmp_path / "one", frames=10)
    assert synthetic(tmp_path / "one")
    video = demo_videos.draw_video(10, "vehicle", np.random.default_rng([0, True, 1]))  # the same in all runs
    files = sorted((tmp_path / "one/Test/Test001").iterdir())
    assert all(np.array_equal(Image.open(file), frame) for file, (frame, _) in zip(files, video, strict=True))
    areas = []
    for k in range(1, 5):
        masks = [np.asarray(Image.open(p)) for p in sorted((tmp_path / f"one/Test/Test{k:03d}_gt").iterdir())]
        areas.append(max((mask > 0).sum() for mask in masks))
        assert not masks[0].any()
    vehicle, runner, thrown, nothing = areas
    assert vehicle > runner > thrown > 20 and nothing == 0
    frame = Image.open(tmp_path / "one/Train/Train001/001.tif")
    assert frame.size == (128, 96) and frame.mode == "L" and np.asarray(frame).std() > 10


def test_the_stand_in_is_prepared_marked_and_guarded(tmp_path, monkeypatch, capsys):
    opt = TestOptions().parse([])
    opt.DataRoot = tmp_path / "dataset"
    monkeypatch.setattr(demo_videos, "make_prepared", partial(demo_videos.make_prepared, frames=25))
    opt = demo_videos.with_data(opt)
    folder = tmp_path / "dataset" / demo_videos.DATASET
    assert opt.Dataset == demo_videos.DATASET and synthetic(folder)
    assert "UCSD_P2_256 is not in" in capsys.readouterr().out
    assert len(list((folder / "Train").iterdir())) == 3 and len(list((folder / "Test_gt").iterdir())) == 4
    abnormal = [loadmat(path)["l"].sum() for path in sorted((folder / "Test_gt").iterdir())]
    assert abnormal[3] == 0 and all(5 < count < 20 for count in abnormal[:3])
    assert script_index_gen.main(["--DataRoot", str(folder.parent), "--Dataset", folder.name]) == 0
    assert synthetic(folder)  # the index of generated videos is generated
    (folder / "Train/mine").mkdir()
    grey(3).save(folder / "Train/mine/001.jpg")
    with pytest.raises(UserError, match="mine"):
        synthetic(folder)

    # Videos prepared from generated ones are marked, too.
    argv = ["--Input", tmp_path / "dataset" / demo_videos.RAW, "--DataRoot", tmp_path, "--Dataset", "x", "--Size", 16]
    assert prep(*argv) == 0 and synthetic(tmp_path / "x")
    # A data set asked for by name is never replaced.
    opt = TestOptions().parse(["--Dataset", "UCSD_P2_256"])
    assert demo_videos.with_data(opt) is opt
