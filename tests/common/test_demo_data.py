"""The demonstration data: the same bytes each time, disjoint training and test images, masks that fit the defects."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage import data

from common import demo_data
from common.demo_data import DEFECTS, TEXTURES, make_textures
from common.files import UserError
from common.images import mvtec_samples, read_mask, synthetic
from tests.helpers import refused

FEW = {"size": 64, "n_train": 3, "n_good": 2, "n_defect": 2}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("textures")
    assert make_textures(root, **FEW) == ["brick", "grass", "gravel"]
    return root


def contents(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_same_seed_same_bytes_other_seed_others(made, tmp_path):
    make_textures(tmp_path / "again", **FEW)
    assert contents(tmp_path / "again") == contents(made)
    make_textures(tmp_path / "other", seed=1, **FEW)
    other = contents(tmp_path / "other")
    assert other.keys() == contents(made).keys()
    assert not {v for k, v in other.items() if "mask" not in k} & {v for k, v in contents(made).items()}


@pytest.mark.parametrize("texture", TEXTURES)
def test_layout(made, texture):
    folder = made / texture
    assert synthetic(folder)
    first_line = (folder / "SYNTHETIC").read_text().splitlines()[0]
    assert first_line.startswith("python common/demo_data.py --seed 0 --size 64")
    train, _ = mvtec_samples(folder, "train")
    test, names = mvtec_samples(folder, "test")
    assert names == ["good", *DEFECTS] and len(train) == 3 and len(test) == 2 + 2 * len(DEFECTS)
    for sample in train + test:
        with Image.open(sample.path) as image:
            assert (image.mode, image.size, image.format) == ("L", (64, 64), "PNG")
        assert bool(sample.mask) == (sample.label > 0)
        if sample.mask:
            assert sample.mask[0].name == f"{sample.path.stem}_mask.png"
            assert set(np.unique(Image.open(sample.mask[0]))) == {0, 255}
            assert 0.005 <= read_mask(sample.mask, (64, 64)).mean() < 0.2
    assert len({sample.path.read_bytes() for sample in train + test}) == len(train + test)


@pytest.mark.parametrize("size", [64, 192])
def test_training_and_test_images_share_no_pixel(tmp_path, monkeypatch, size):
    # A texture whose brightness is its column tells where each pixel comes from; mirroring and brightness stay off.
    columns = np.broadcast_to(np.arange(512) // 2, (512, 512)).astype(np.uint8)
    for name in TEXTURES:
        monkeypatch.setattr(data, name, lambda: columns)
    rng = np.random.default_rng

    class Plain:
        """A generator that draws places at random, no mirroring and no change of brightness."""

        def __init__(self, seed):
            self.integers = rng(seed).integers

        def random(self):
            return 1.0

        def uniform(self, low, high):
            return (low + high) / 2

    monkeypatch.setattr(np.random, "default_rng", Plain)
    make_textures(tmp_path, size=size, n_train=20, n_good=20, n_defect=0)
    seen = {}
    for part in ("train", "test"):
        images = [np.asarray(Image.open(path)) for path in (tmp_path / "brick" / part).rglob("*.png")]
        assert len(images) == 20
        seen[part] = set(np.unique(images))
    assert max(seen["train"]) < 160 <= min(seen["test"])  # columns 0..319 and 320..511


@pytest.mark.parametrize("kind", DEFECTS)
@pytest.mark.parametrize("texture", ["brick", *(pytest.param(t, marks=pytest.mark.slow) for t in ("grass", "gravel"))])
def test_masks_are_where_the_image_changed(texture, kind):
    areas = []
    for seed in range(5):
        rng = np.random.default_rng(seed)
        image = demo_data._crop(demo_data._texture(texture)[:, demo_data.TEST_COLUMNS], 128, rng)
        foreign = demo_data._crop(demo_data._texture(TEXTURES[texture]), 128, rng)
        damaged, mask = demo_data._damage(image, kind, foreign, rng)
        change = np.abs(damaged - image)
        assert not change[~mask].any()
        assert (change[mask] >= 3).mean() > 0.8 and change[mask].mean() > 8
        assert damaged.min() >= 0 and damaged.max() <= 255
        areas.append(mask.mean())
    assert len(set(areas)) == 5 and min(areas) > 0.005 and max(areas) < 0.15


def test_what_is_there_is_kept_and_other_options_and_real_files_are_refused(made, tmp_path, capsys):
    before = contents(made)
    stamp = (made / "brick/SYNTHETIC").stat().st_mtime_ns
    make_textures(made, **FEW)
    assert capsys.readouterr().out.count("is there already\n") == 3
    with pytest.raises(UserError, match="--seed 0 --size 64"):
        make_textures(made, **{**FEW, "seed": 5})
    assert contents(made) == before and (made / "brick/SYNTHETIC").stat().st_mtime_ns == stamp
    (tmp_path / "grass").mkdir()
    (tmp_path / "grass/mine.png").write_text("mine")
    for words in ("grass already holds files", "real files beside generated ones"):
        with pytest.raises(UserError, match=words):
            make_textures(tmp_path, **FEW)
        (tmp_path / "brick/more.png").touch()
    assert contents(tmp_path / "grass") == {"mine.png": b"mine"}


def test_interrupted_making_leaves_nothing(tmp_path, monkeypatch):
    def fail(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(demo_data, "_damage", fail)
    with pytest.raises(KeyboardInterrupt):
        make_textures(tmp_path, **FEW)
    assert list(tmp_path.iterdir()) == []


def test_script(tmp_path, monkeypatch, capsys):
    for wrong in (["--size", "63"], ["--size", "193"], ["--seed", "-1"]):
        refused(capsys, demo_data.main, ["--output", tmp_path, *wrong], wrong[0])
    (tmp_path / "file").touch()
    refused(capsys, demo_data.main, ["--output", tmp_path / "file"], "cannot make")
    refused(capsys, demo_data.main, [], "--output")
    calls = []
    monkeypatch.setattr(demo_data, "make_textures", lambda *arguments: calls.append(arguments))
    options = ["--output", str(tmp_path), "--seed", "3", "--size", "96", "--train", "9", "--good", "7"]
    assert demo_data.main(options) == 0 and calls == [(tmp_path, 3, 96, 9, 7, 8)]
