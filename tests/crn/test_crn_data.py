"""CRN's data sets: which images they have, how they are read, what is left out or refused."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common.files import UserError
from common.images import synthetic
from crn import train
from crn.training.dataset import load_dataset, read, unlabelled
from tests.crn.conftest import FOLDERS, training
from tests.helpers import refused


def test_bad_data(place, capsys):
    shutil.copytree("datasets/roadimages", "road")
    Path("road/SYNTHETIC").unlink()
    argv = [word.replace("datasets/roadimages", "road") for word in training()]
    heights = Path("road/bad_ones/height_files")
    (heights / "003.png").rename(heights / "900.png")
    refused(capsys, train.main, argv, "road/bad_ones", "partner", "intensity_files (003.png)", "height_files (900.png)")
    (heights / "900.png").unlink()
    (heights / "003.png").write_bytes((heights / "004.png").read_bytes()[:300])
    (heights / "005.png").write_text("hello")
    refused(capsys, train.main, argv, "003.png", "005.png")  # all of them, before anything is computed
    Image.fromarray(np.full((96, 96), np.nan, np.float32)).save(heights / "003.tiff")
    (heights / "003.png").unlink()
    refused(capsys, train.main, argv, "003.tiff", "nan")
    argv = [word.replace("datasets/panorama", "datasets/roadimages") for word in training("Panorama")]
    refused(capsys, train.main, argv, "--dataset RoadImages")
    assert not Path("ck").exists()


def test_depths_of_road_images(tmp_path):
    """8 bits are scaled to 0..1, other depths stay as they are; only the first channel counts."""
    folders = [tmp_path / name for name in ("intensity_files", "height_files")]
    for folder in folders:
        folder.mkdir()
    Image.fromarray(np.dstack([np.full((4, 6), value, np.uint8) for value in (51, 7, 9)])).save(folders[0] / "a.png")
    Image.fromarray(np.full((4, 6), 0.25, np.float32)).save(folders[1] / "a.tiff")
    (item,) = unlabelled([tmp_path], "RoadImages")
    assert read(item, "RoadImages")[:, 0, 0].tolist() == pytest.approx([0.25, 0.2, 0.2])
    Image.fromarray(np.full((4, 6), 40000, np.uint16)).save(folders[1] / "a.tiff")
    assert read(item, "RoadImages")[0, 0, 0] == 40000


def make_pairs(folder, intensities, heights):
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
        with pytest.raises(UserError, match=r"intensity_files \(.*height_files \("):
            unlabelled([tmp_path], "RoadImages")
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
    others = ("new_ones/1.png", "good_ones/4.png", "bad_ones/depth/1.png", "good_ones/height_files/5.heic", "@eaDir/x")
    for name in others:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    load_dataset("RoadImages", tmp_path)
    told = capsys.readouterr().out
    assert "not scaled" not in told and "@eaDir" not in told
    Image.fromarray(np.full((4, 4), 40000, np.uint16)).save(good / "height_files/3.png")
    load_dataset("RoadImages", tmp_path, limit=1, max_value="auto")
    told += capsys.readouterr().out
    for words in (
        f"left out: 1 file or folder in {tmp_path} beside good_ones and bad_ones, such as new_ones",
        f"left out: 1 file or folder in {good} beside intensity_files and height_files, such as 4.png",
        f"left out: 1 file or folder in {bad} beside intensity_files and height_files, such as depth",
        "5.heic",
        "2 of 2 test images, copies of training images",
        "values up to 40000 in 1 of 4 pairs, such as good_ones/intensity_files/3.png",
        "--max-value auto has no effect",
        "--demo uses at most 1 each of 2 images to train on and 2 to test on",
    ):
        assert words in told


def test_splits(place, capsys):
    road = load_dataset("RoadImages", Path(FOLDERS["RoadImages"]))
    assert (len(road.train), [item.label for item in road.test]) == (17, [0] * 8 + [1] * 8)
    shutil.copytree(FOLDERS["Panorama"], "p")
    Path("p/SYNTHETIC").unlink()
    for path in sorted(Path("p/good_ones").iterdir())[5:]:
        path.unlink()
    few = load_dataset("Panorama", Path("p"))
    assert (len(few.train), len(few.test)) == (3, 2 + 6)  # twice as many bad ones as training ones
    assert "images in p/bad_ones are left out, such as" in capsys.readouterr().out
    for path in Path("p/bad_ones").iterdir():
        path.unlink()
    assert len(load_dataset("Panorama", Path("p")).test) == 2
    assert "p has no bad images: there is no AUROC" in capsys.readouterr().out
    brick = load_dataset("MVTec", Path(FOLDERS["MVTec"]))
    assert len(brick.train) == 20 and [i.name for i in brick.test] == sorted(i.name for i in brick.test)
    assert brick.data == "synthetic"


def test_the_demo_draws_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    argv = "--mode train --dataset MVTec --demo --cpu --dataset-path new/grass --output out --training-steps 2 --ngf 2"
    assert train.main(argv.split()) == 0
    assert synthetic(Path("new/grass")) and Path("out/model_checkpoints/last.ckpt").exists()
    assert {path.name for path in Path("out").iterdir()} == {
        "log.log", "logged_metrics", "model_checkpoints", "output_images",
    }  # fmt: skip
