"""Image folders: which files are found, in which order, and that each format is read, checked or refused rightly."""

import os
import runpy
import shutil
import subprocess
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageFile
from scipy import ndimage

from common import cli, images
from common.cli import MAX_PIXELS
from common.files import UserError, atomic_write
from common.images import (
    EXTENSIONS,
    fingerprint,
    image_files,
    image_size,
    mark_synthetic,
    mvtec_dataset,
    mvtec_samples,
    new_synthetic_folder,
    note_squeezed,
    read_image,
    read_mask,
    require_fitting_masks,
    require_readable,
    resolve_max_value,
    same_images,
    set_max_pixels,
    synthetic,
)
from tests.common.test_image_decoding import write_png, write_tiff


def save(path: Path, values=128, **options) -> Path:
    """Save a grey 6 x 5 image, or the given array or image, and return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(values, int):
        values = np.full((5, 6), values, np.uint8)
    image = values if isinstance(values, Image.Image) else Image.fromarray(values)
    image.save(path, **options)
    return path


def noise(height=64, width=48) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def rotated(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return exif


def close(path: Path) -> None:
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user may read everything")


def refused(path: Path, words: str) -> None:
    """Reading the image says why it cannot be read, and so does the check of many."""
    for action in (read_image, lambda path: require_readable([path])):
        with pytest.raises(UserError, match=words) as caught:
            action(path)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.fixture(autouse=True)
def no_notes_before():
    cli._notes.clear()


@pytest.fixture
def mvtec(tmp_path) -> Path:
    for name in ("train/good/b.png", "train/good/a.png", "test/good/0.png", "test/hole/0.png", "test/hole/1.png"):
        save(tmp_path / name)
    save(tmp_path / "test/crack/10.png")
    save(tmp_path / "ground_truth/hole/0_mask.png")
    save(tmp_path / "ground_truth/crack/10.bmp")
    return tmp_path


# Which files


def test_mvtec_samples_order_labels_and_masks(mvtec, capsys):
    save(mvtec / "ground_truth/good/0_mask.png", 0)  # good images have no mask
    samples, names = mvtec_samples(mvtec, "test")
    assert names == ["good", "crack", "hole"]
    truth = mvtec / "ground_truth"
    assert [(str(s.path.relative_to(mvtec)), s.label, s.class_name, s.mask) for s in samples] == [
        ("test/good/0.png", 0, "good", ()),
        ("test/crack/10.png", 1, "crack", (truth / "crack/10.bmp",)),
        ("test/hole/0.png", 2, "hole", (truth / "hole/0_mask.png",)),
        ("test/hole/1.png", 2, "hole", ()),
    ]
    samples, names = mvtec_samples(mvtec, "train")
    assert [sample.path.name for sample in samples] == ["a.png", "b.png"] and names == ["good"]
    capsys.readouterr()
    save(mvtec / "train/scratch/0.png")
    assert mvtec_samples(mvtec, "train") == (samples, names) and "scratch" in capsys.readouterr().out


def test_masks_follow_subfolders_and_prefer_the_suffix(mvtec):
    plain = save(mvtec / "ground_truth/hole/left/x.y.png")
    save(mvtec / "test/hole/left/x.y.png")
    save(mvtec / "ground_truth/hole/x.y_mask.png")  # another folder's

    def mask():
        return {sample.path.name: sample.mask for sample in mvtec_samples(mvtec, "test")[0]}["x.y.png"]

    assert mask() == (plain,)
    assert mask() == (plain,) != (better := save(mvtec / "ground_truth/hole/left/x.y_mask.TIF"))
    assert mask() == (better,)


def test_masks_in_a_folder_for_each_image_are_merged(mvtec):
    first, second = (np.zeros((5, 6), np.uint8) for _ in range(2))
    first[0, 0] = second[4, 5] = 255
    (mvtec / "ground_truth/hole/0_mask.png").unlink()
    paths = [save(mvtec / f"ground_truth/hole/0/00{n}.png", values) for n, values in enumerate((first, second))]
    save(mvtec / "test/hole/0/7.png")  # an image in a folder of that name, whose mask is no part of 0.png's
    save(mvtec / "ground_truth/hole/0/7_mask.png")
    masks = {sample.path: sample.mask for sample in mvtec_samples(mvtec, "test")[0]}
    assert masks[mvtec / "test/hole/0.png"] == tuple(paths)
    assert np.argwhere(read_mask(tuple(paths), (5, 6))).tolist() == [[0, 0], [4, 5]]
    assert masks[mvtec / "test/hole/0/7.png"] == (mvtec / "ground_truth/hole/0/7_mask.png",)
    save(paths[1], np.zeros((6, 5), np.uint8))
    with pytest.raises(UserError, match=r"001\.png is 5 x 6 pixels, its image 6 x 5"):
        read_mask(tuple(paths), (5, 6))


def test_masks_beside_their_images_are_no_images(mvtec, capsys):
    beside = [save(mvtec / f"test/hole/{name}.png") for name in ("0_mask", "1_mask")]
    for name in ("0-Mask", "0 GT", "masks/0", "Ground_Truth/sub/0", "mask/0_mask", "0", "sub/0"):
        save(mvtec / f"test/crack/{name}.png")
    save(mvtec / "ground_truth/crack/masks/10-GT.png")
    alone = save(mvtec / "test/hole/2_mask.png")  # there is no image 2
    masks = {sample.path: sample.mask for sample in mvtec_samples(mvtec, "test")[0]}
    folder = mvtec / "test/crack"
    assert masks[mvtec / "test/hole/0.png"] == (mvtec / "ground_truth/hole/0_mask.png",)
    assert masks[mvtec / "test/hole/1.png"] == (beside[1],)
    assert alone in masks and not masks.keys() & {*beside}
    assert {*masks[folder / "0.png"]} == {folder / f"{n}.png" for n in ("0-Mask", "0 GT", "masks/0", "mask/0_mask")}
    assert masks[folder / "sub/0.png"] == (folder / "Ground_Truth/sub/0.png",)
    assert masks[folder / "10.png"] == (mvtec / "ground_truth/crack/masks/10-GT.png",)
    said = capsys.readouterr().out
    assert "1 image is named like a mask" in said and alone.name in said
    assert f"masks of the images beside them: 2 files in {mvtec}/test/hole, such as 0_mask.png" in said


@pytest.mark.parametrize("name", ["hole/Masks/7.png", "masks/0.png", "good/gt/7.png"])
def test_masks_of_no_image_are_not_taken_for_images(mvtec, name):
    save(mvtec / "test" / name)
    with pytest.raises(UserError, match=f"1 image in folders of masks, such as .*/test/{name}"):
        mvtec_samples(mvtec, "test")


def test_an_image_and_a_mask_of_its_name_beside_it_are_refused(mvtec):
    save(mvtec / "test/hole/0.bmp")
    with pytest.raises(UserError, match=r"2 images in .*hole have the same name.* 0\.bmp: move masks to .*truth/hole"):
        mvtec_samples(mvtec, "test")


@pytest.mark.parametrize(
    ("link", "target"), [("crack2", "crack"), ("hole/crack", "../crack"), ("hole/5.png", "../good/0.png")]
)
def test_no_image_is_in_two_classes(mvtec, link, target):
    (mvtec / "test" / link).symlink_to(target)
    with pytest.raises(UserError, match=r"are the same file, in two classes"):
        mvtec_samples(mvtec, "test")


def test_mvtec_errors_name_folder_and_layout(tmp_path):
    root = tmp_path / "bottle"

    def message(part: str) -> str:
        with pytest.raises(UserError) as caught:
            mvtec_samples(root, part)
        text = str(caught.value)
        assert "\n" not in text and f"{root}/train/good/*.png" in text
        return text.split(": ")[0]

    assert message("train") == f"there is no folder {root}"
    save(root / "train/notes.png")
    assert message("train") == f"there is no folder {root}/train/good"
    assert message("test") == f"there is no folder {root}/test"
    (root / "train/good").mkdir()
    assert message("train") == f"there are no images in {root}/train/good"
    save(root / "test/good/0.png")
    assert mvtec_samples(root, "test")[1] == ["good"]
    (root / "test/hole").mkdir()
    (root / "test/hole/notes.txt").write_text("none")
    assert message("test") == f"there are no images in {root}/test/hole"


def test_image_files_finds_every_kind_and_nothing_else(tmp_path, capsys):
    wanted = ["B.JPEG", "a b.png", "a?.png", "sub/deep/x.Tif", "sub/é漢.webp", "z#1%20.jpe"]
    for name in [*wanted, ".hidden.png", ".cache/x.png", "1.heic", "2.HEIC", "clip.mpg", "png"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert [path.relative_to(tmp_path).as_posix() for path in image_files(tmp_path)] == wanted
    assert f"4 files in {tmp_path}, such as 1.heic (2 .heic): convert" in capsys.readouterr().out
    assert image_files(str(tmp_path / "sub/é漢.webp")) == [tmp_path / "sub/é漢.webp"]
    with pytest.raises(UserError, match=r"no file or folder .*absent"):
        image_files(tmp_path / "absent")
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match="no images in"):
        image_files(tmp_path / "none")
    formats = Image.registered_extensions()
    # Pillow opens MPO, the phones' variant of JPEG, through its JPEG reader.
    assert {extension for extension in EXTENSIONS if formats[extension] not in Image.OPEN} == {".mpo"}


JUNK = [
    "@eaDir/a.png/SYNOPHOTO_THUMB_M.jpg", "__MACOSX/._a.png", "$RECYCLE.BIN/$R1.png", ".AppleDouble/a.png", "Thumbs.db",
    ".thumbnails/a.png", "System Volume Information/a.png", "._a.png", "lost+found/1.png",
]  # fmt: skip


def test_hidden_and_system_files_and_folders_are_no_data(mvtec):
    before = [mvtec_samples(mvtec, part) for part in ("train", "test")]
    for folder in ("train", "train/good", "test", "test/hole", "ground_truth/hole"):
        for name in JUNK:
            (mvtec / folder / name).parent.mkdir(parents=True, exist_ok=True)
            (mvtec / folder / name).touch()
    assert [mvtec_samples(mvtec, part) for part in ("train", "test")] == before
    assert image_files(mvtec / "train") == sorted((mvtec / "train/good").glob("[ab].png"))


@pytest.mark.parametrize("name", ["Good", "good ", "goods", "GOOD_", "ok", "Normal"])
def test_a_second_folder_of_good_images_is_refused_and_another_name_for_it_hinted_at(mvtec, name):
    save(mvtec / "test" / name / "0.png")
    with pytest.raises(UserError, match=f"test/{name} beside .*/test/good: move its images there"):
        mvtec_samples(mvtec, "test")
    shutil.rmtree(mvtec / "test/good")
    with pytest.raises(UserError, match=f"there is no folder .*test/good: if .*test/{name} is meant, rename it"):
        mvtec_samples(mvtec, "test")


def test_what_lies_outside_the_layout_is_said(mvtec, capsys):
    save(mvtec / "test/loose.png")
    save(mvtec / "test/good/0.bmp")
    save(mvtec / "ground_truth/other/0.png")
    mvtec_samples(mvtec, "test")
    said = capsys.readouterr().out
    assert f"left out: 1 file or folder in {mvtec}/test outside the class folders, such as loose.png" in said
    assert f"left out: 1 file or folder in {mvtec}/ground_truth" in said and "such as other" in said
    assert f"2 images in {mvtec}/test/good have the same name but for the extension, such as 0.bmp" in said


def test_pages_after_the_first_are_said(tmp_path, capsys):
    pages = [Image.new("L", (4, 4), value) for value in (1, 2)]
    pages[0].save(tmp_path / "b.tif", save_all=True, append_images=pages[1:])
    save(tmp_path / "a.tif")
    (tmp_path / "c.tif").touch()  # who reads it tells
    for place in (tmp_path, tmp_path / "b.tif"):
        cli._notes.clear()
        image_files(place)
        assert f"several pages or frames, of which the first one is used: 1 file, such as {tmp_path}/b.tif" in (
            capsys.readouterr().out
        )


def test_links_to_folders_are_followed_and_each_folder_counts_once(tmp_path, capsys):
    inside = tmp_path / "images"
    image = save(inside / "b/0.png")
    save(tmp_path / "store/day2/1.png")
    save(tmp_path / "store/day2/deep/2.png")
    (inside / "a_link.png").symlink_to(image)
    (inside / "b/day2").symlink_to("../../store/day2", target_is_directory=True)
    wanted = ["a_link.png", "b/0.png", "b/day2/1.png", "b/day2/deep/2.png"]
    assert [path.relative_to(inside).as_posix() for path in image_files(inside)] == wanted
    assert capsys.readouterr().out == ""
    for name, target in {"again": inside / "b", "b/up": inside, "z": tmp_path / "store"}.items():
        (inside / name).symlink_to(target, target_is_directory=True)
    (tmp_path / "store/back").symlink_to(inside, target_is_directory=True)
    assert [path.relative_to(inside).as_posix() for path in image_files(inside)] == wanted
    assert f"read once: 4 folders in {inside}, such as {inside}/again" in capsys.readouterr().out


@pytest.mark.slow
def test_folders_deeper_than_python_recurses(tmp_path):
    folder = tmp_path
    for _ in range(1100):
        folder /= "d"
        folder.mkdir()
    image = save(folder / "0.png")
    try:
        assert image_files(tmp_path) == [image]
        with atomic_write(tmp_path / "out" / image.relative_to(tmp_path)) as file:
            file.write(b"0")
    finally:
        subprocess.run(["rm", "-r", *map(str, tmp_path.iterdir())], check=True)  # shutil.rmtree recurses


def test_closed_files_and_folders_are_errors(tmp_path):
    path = save(tmp_path / "a.png")
    close(path)
    for action in (read_image, lambda path: fingerprint([path], tmp_path)):
        with pytest.raises(UserError, match="permission denied"):
            action(path)
    close(save(tmp_path / "closed/1.png").parent)
    with pytest.raises(UserError, match=r"cannot read the folder .*closed: permission denied"):
        image_files(tmp_path)


# Reading


@pytest.mark.parametrize(
    "extension", ["bmp", "dib", "gif", "jp2", "pcx", "png", "ppm", "qoi", "sgi", "tga", "tif", "webp"]
)
def test_lossless_formats_read_exactly(tmp_path, extension):
    source = noise().quantize(200).convert("RGB")  # GIF holds no more colours
    path = save(tmp_path / f"a.{extension}", source, **({"lossless": True} if extension == "webp" else {}))
    image = read_image(path)
    assert image.mode == "RGB" and np.array_equal(image, source) and image_size(path) == (64, 48)
    require_readable([path])


@pytest.mark.parametrize("name", ["a.jpg", "a.JPEG", "a.jpe", "a.avif", "a b?é.jpg"])
def test_lossy_formats_read_closely(tmp_path, name):
    path = save(tmp_path / name, np.full((8, 8, 3), (200, 100, 50), np.uint8))
    assert np.abs(np.asarray(read_image(path)).astype(int) - (200, 100, 50)).max() < 6
    require_readable([path])


def test_deep_colours_that_would_be_read_as_8_bits_are_refused(tmp_path):
    ppm = tmp_path / "a.ppm"
    ppm.write_bytes(b"P6 2 1 65535\n" + bytes(12))
    jp2 = save(tmp_path / "a.jp2", noise())
    head, size, rest = jp2.read_bytes().partition(b"\xff\x4f\xff\x51")
    jp2.write_bytes(head + size + rest[:38] + bytes([15, *rest[39:41], 15]) + rest[42:])
    avif = save(tmp_path / "a.avif", noise())
    head, box, rest = avif.read_bytes().replace(b"\3\10\10\10", b"\3\12\12\12").partition(b"av1C")  # bits of pixels
    avif.write_bytes(head + box + rest[:2] + bytes([rest[2] | 64]) + rest[3:])
    for path in (ppm, jp2, avif):
        refused(path, "more than 8 bits in colour is not read: convert it")


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.pgm"])
def test_16_bit_grey_uses_the_full_fixed_scale(tmp_path, name):
    path = save(tmp_path / name, np.array([[0, 257, 25700], [200, 65534, 65535]], np.uint16))
    image = np.asarray(read_image(path))
    assert image.shape == (2, 3, 3) and image[..., 0].tolist() == [[0, 1, 100], [1, 255, 255]]
    require_readable([path])


def test_16_bit_big_endian_32_bit_within_range_and_turned(tmp_path):
    big = Image.frombytes("I;16B", (2, 1), np.array([257, 65535], ">u2").tobytes())
    wide = np.array([[0, 2570]], np.int32)
    for name, values, options, expected in (
        ("b.tif", big, {}, [1, 255]),
        ("i.tif", wide, {}, [0, 10]),
        ("a.png", np.array([[0, 65535]], np.uint16), {"exif": rotated(3)}, [255, 0]),
    ):
        assert np.asarray(read_image(save(tmp_path / name, values, **options)))[0, :, 0].tolist() == expected


@pytest.mark.parametrize(
    ("mode", "name"),
    [
        ("1", "a.png"), ("1", "a.tif"), ("L", "a.jpg"), ("LA", "a.png"), ("RGBA", "a.png"), ("RGBA", "a.tga"),
        ("P", "a.png"), ("CMYK", "a.jpg"), ("CMYK", "a.tif"), ("LAB", "a.tif"),
    ],
)  # fmt: skip
def test_modes_become_rgb(tmp_path, mode, name):
    expected = np.zeros((8, 16, 3), np.uint8)
    expected[:, :8] = 255
    if mode == "LAB":  # lightness, then two colours that are 0 for grey
        source = Image.frombytes("LAB", (16, 8), (expected * np.uint8([1, 0, 0])).tobytes())
    else:
        source = Image.fromarray(expected).convert(mode)
    path = save(tmp_path / name, source)
    with Image.open(path) as stored:
        assert stored.mode == mode
    pixels = np.asarray(read_image(path))
    assert pixels.shape == expected.shape and np.abs(pixels.astype(int) - expected).max() <= 3
    require_readable([path])


def test_transparent_colours_are_kept_and_nothing_is_warned_of(tmp_path):
    palette = Image.new("P", (3, 1))
    palette.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    palette.putdata([0, 1, 2])
    path = save(tmp_path / "a.png", palette, transparency=bytes([0, 128, 255]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.asarray(read_image(path)).tolist() == [[[255, 0, 0], [0, 255, 0], [0, 0, 255]]]
    path = save(tmp_path / "b.png", Image.new("RGBA", (1, 1), (9, 8, 7, 0)))
    assert read_image(path).getpixel((0, 0)) == (9, 8, 7)


def test_animations_give_their_first_frame(tmp_path):
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "lime")]
    for name in ("a.gif", "a.png", "a.webp"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], lossless=True)
        assert read_image(tmp_path / name).getpixel((1, 1)) == (255, 0, 0)


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path, name, orientation):
    source = np.zeros((16, 32, 3), np.uint8)
    source[:8, :8] = 255  # a mark in the upper left corner
    path = save(tmp_path / name, source, exif=rotated(orientation))
    image = np.asarray(read_image(path))
    assert image.shape == ((16, 32, 3) if orientation < 5 else (32, 16, 3))
    assert image_size(path) == image.shape[:2]
    # Where EXIF's table says that the stored image's first row and first column are to be shown.
    bottom, right = orientation in (3, 4, 7, 8), orientation in (2, 3, 6, 7)
    if orientation in (6, 8):
        bottom, right = orientation == 8, orientation == 6
    corner = image[-4 if bottom else 4, -4 if right else 4]
    assert corner.min() > 200 and (image > 200).mean() == pytest.approx(64 / 512, abs=0.01)


def test_damaged_files_are_refused_and_found_beforehand(tmp_path):
    wholes = [
        save(tmp_path / f"whole.{extension}", noise()) for extension in ("jpg", "png", "tif", "webp", "bmp", "gif")
    ]
    for name, mode, options in (("p", "RGB", {"progressive": True}), ("g", "L", {}), ("c", "CMYK", {})):
        wholes.append(save(tmp_path / f"{name}.jpg", noise(200, 300).convert(mode), **options))
    broken = {}
    for path in wholes:
        data = path.read_bytes()
        broken[path.with_name(f"cut_{path.name}")] = ""
        path.with_name(f"cut_{path.name}").write_bytes(data[: len(data) * (9 if path.stem in "pgc" else 5) // 10])
    (tmp_path / "text.png").write_text("not an image")
    (tmp_path / "empty.png").touch()
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere")
    save(tmp_path / "exif.png", noise(), exif=b"Exif\0\0garbage____")
    broken |= {
        tmp_path / "text.png": "empty, damaged or not an image", tmp_path / "empty.png": "not an image",
        tmp_path / "folder.png": "is a directory", tmp_path / "gone.png": "no such file", tmp_path / "exif.png": "",
    }  # fmt: skip
    for path, words in broken.items():
        refused(path, f"cannot read.*{words}")
    require_readable(wholes)
    with pytest.raises(UserError, match=f"^cannot read {len(broken)} of {len(broken) + len(wholes)} images") as caught:
        require_readable([*wholes, *broken])
    assert all(str(path) in str(caught.value) for path in broken) and "whole.png" not in str(caught.value).split()
    with pytest.raises(UserError, match=r"cannot read image .*text\.png"):
        image_size(tmp_path / "text.png")


def test_values_of_16_bit_images_are_scaled_by_max_value(tmp_path, capsys):
    values = np.array([[0, 8, 2048], [4095, 5000, 65535]], np.uint16)
    grey = save(tmp_path / "a.png", values)
    assert np.asarray(read_image(grey, 4095))[..., 0].tolist() == [[0, 0, 128], [255, 255, 255]]
    assert np.asarray(read_image(save(tmp_path / "b.png", (values % 256).astype(np.uint8)), 4095)).max() == 255
    assert capsys.readouterr().out.count("values of 16-bit images above --max_value 4095 are cut to it, first in") == 1
    write_png(tmp_path / "c.png", np.stack([values] * 3, axis=2), 16, 2)
    assert np.array_equal(read_image(tmp_path / "c.png", 4095), read_image(grey, 4095))


def test_max_value_is_found_or_told(tmp_path, capsys):
    def told(option: int | str, tops: list[int], others: Sequence[int] = ()) -> tuple[int, str]:
        cli._notes.clear()
        paths = [save(tmp_path / f"{i}.png", np.array([[3, top]], np.uint16)) for i, top in enumerate([*tops, *others])]
        paths.append(save(tmp_path / "8bit.png"))
        return resolve_max_value(paths[: len(tops)], option, paths[len(tops) :]), capsys.readouterr().out

    value, said = told(65535, [900, 4000], [100])
    assert value == 65535 and "3 images" in said and "above 4000 of 65535" in said and "--max_value 4095" in said
    assert told(65535, [900, 40000]) == (65535, "")
    value, said = told("auto", [900, 4000])
    assert value == 4095 and "4000" in said and said.count("\n") == 1
    assert told(4095, [900, 4095]) == (4095, "")
    value, said = told("auto", [900, 1000], [1023, 1500])
    assert value == 1023 and "1 of 4 images" in said and "3.png" in said and said.count("\n") == 2
    value, said = told(255, [900, 4000])
    assert value == 255 and "2 of 2 images" in said and "0.png" in said
    (tmp_path / "broken.png").write_text("no image")
    eight = [save(tmp_path / "8bit.png"), tmp_path / "broken.png"]
    assert resolve_max_value(eight, "auto") == 65535
    assert resolve_max_value([], 65535) == 65535 and not capsys.readouterr().out
    assert resolve_max_value(eight, 4095) == 4095 and "--max_value 4095 has no effect" in capsys.readouterr().out


def test_packed_12_bits_bring_their_own_scale(tmp_path, capsys):
    write_tiff(tmp_path / "a.tif", np.array([[0, 2048, 4095]])[..., None], 12, 1)
    for max_value in (65535, 4095):
        assert np.asarray(read_image(tmp_path / "a.tif", max_value))[0, :, 0].tolist() == [0, 128, 255]
    assert resolve_max_value([tmp_path / "a.tif"], 65535) == 65535 and not capsys.readouterr().out


@pytest.mark.parametrize("limit", [25, 10])  # Pillow only warns of 30 pixels at the first, and refuses at the second
def test_decompression_bombs_are_refused(tmp_path, monkeypatch, limit):
    path = save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", MAX_PIXELS["default"])  # to be restored
    set_max_pixels(limit)
    refused(path, f"30 pixels, more than the limit of {limit}.*raise --max_pixels")
    with pytest.raises(UserError, match="30 pixels"):
        image_size(path)
    with warnings.catch_warnings():  # without pytest's filters too
        warnings.resetwarnings()
        fresh = runpy.run_path(images.__file__)
        with pytest.raises(UserError, match="30 pixels"):
            fresh["read_image"](path)
    set_max_pixels(30)
    assert read_image(path).size == (6, 5)


def test_what_does_not_fit_into_memory_is_that_images_error(tmp_path, monkeypatch):
    def fail(self):
        raise MemoryError

    monkeypatch.setattr(ImageFile.ImageFile, "load", fail)
    with pytest.raises(UserError, match=r"cannot read image .*a\.png: there is not enough memory"):
        read_image(save(tmp_path / "a.png"))


def test_masks_of_another_size_and_masks_of_no_image_are_named(mvtec, capsys):
    save(mvtec / "ground_truth/hole/1_mask.png", Image.new("L", (3, 4)))
    save(mvtec / "ground_truth/hole/c_old.png")
    samples, _ = mvtec_samples(mvtec, "test")
    assert "masks of no image: 1 of 3 in" in (said := capsys.readouterr().out) and "c_old.png" in said
    with pytest.raises(UserError, match=r"1_mask\.png is 3 x 4 pixels, its image 6 x 5") as caught:
        require_fitting_masks(samples)
    assert "0_mask" not in str(caught.value)


def test_a_category_tells_of_copies_empty_masks_and_images_held_out(mvtec, capsys):
    save(mvtec / "ground_truth/crack/10.bmp", 0)
    save(mvtec / "train/good/c.png", 7)
    held_out = save(mvtec / "validation/good/0.png", 9)
    category = mvtec_dataset(mvtec)
    assert [sample.path for sample in category.held_out] == [held_out] and len(category.train) == 3
    assert category.paths[3] == held_out and len(category.paths) == 8
    said = capsys.readouterr().out
    assert f"held out to set thresholds: 1 more image, of {mvtec}/validation/good" in said
    assert f"empty masks: 1 of 2, such as {mvtec}/ground_truth/crack/10.bmp" in said
    # All of the fixture's images are alike.
    assert f"4 of 4 test images, copies of training or held-out images, such as {mvtec}/test/good/0.png" in said
    assert cli.notes() == said.splitlines()
    copy = save(mvtec / "validation/good/1.png", 7)
    mvtec_dataset(mvtec)
    assert f"1 of 2 held-out images, copies of training images, such as {copy}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("missing", "kind", "classes"),
    [
        (["test/crack", "test/hole"], "only good", ["good"]),
        (["test/good"], "only defective", ["good", "crack", "hole"]),
        (["test/good", "test/crack", "test/hole"], "no", ["good"]),
        (["test"], "no", ["good"]),
    ],
)
def test_a_category_without_good_or_defective_test_images_says_so(mvtec, capsys, missing, kind, classes):
    for name in missing:
        shutil.rmtree(mvtec / name)
    (mvtec / "validation/good").mkdir(parents=True)
    category = mvtec_dataset(mvtec)
    assert category.class_names == classes and category.held_out == []
    said = capsys.readouterr().out
    assert f"{mvtec} has {kind} test images: there is no AUROC" in said
    assert f"there are no images in {mvtec}/validation/good" in said


def test_squeezed_images_are_said(tmp_path, capsys):
    paths = [save(tmp_path / name, Image.new("L", size)) for name, size in (("a.png", (30, 20)), ("b.png", (31, 20)))]
    paths.append(save(tmp_path / "c.png", Image.new("L", (20, 31))))
    note_squeezed(paths, (64, 64), "cut them")
    assert f"2 of 3 images, such as {paths[1]} of 31 x 20" in capsys.readouterr().out
    note_squeezed(paths[:2], (64, 96), "cut them")
    assert capsys.readouterr().out == ""


# Masks


def test_every_pixel_that_is_not_0_is_a_defect(tmp_path):
    numbers = np.array([[0, 1, 2], [100, 255, 0]], np.uint8)  # of classes
    wide = numbers.astype(np.uint16) + np.uint16(65535 - 255) * (numbers == 255)
    palette = Image.fromarray((numbers > 0).astype(np.uint8))
    palette.putpalette([0, 0, 0, 128, 0, 0])
    for name, values, options in (
        ("8.png", numbers, {}),
        ("1_of_255.png", (numbers > 0).astype(np.uint8), {}),
        ("8.bmp", numbers, {}),
        ("16.png", wide, {}),
        ("32.tif", wide.astype(np.int32), {}),
        ("rgb.png", numbers[..., None] * np.uint8([0, 0, 1]), {}),
        ("rgba.png", np.dstack([numbers, 0 * numbers, 0 * numbers, 0 * numbers + 255]), {}),
        ("cmyk.tif", Image.fromarray(numbers).convert("RGB").convert("CMYK"), {}),
        ("1.png", Image.fromarray(numbers > 0), {}),
        ("la.png", Image.fromarray(numbers > 0).convert("L").convert("LA"), {}),
        ("p.png", palette, {}),
        ("lossless.webp", numbers, {"lossless": True}),
    ):
        mask = read_mask(save(tmp_path / name, values, **options), (2, 3))
        assert mask.dtype == bool and np.array_equal(mask, numbers > 0), name
    assert not read_mask(save(tmp_path / "m.png", 0), (5, 6)).any()
    assert not read_mask(save(tmp_path / "m.tif", np.zeros((5, 6), np.uint16)), (5, 6)).any()


def test_masks_in_formats_with_noise(tmp_path):
    expected = np.zeros((40, 40), bool)
    expected[10:30, 13:31] = True
    path = save(tmp_path / "m.jpg", expected.astype(np.uint8) * np.uint8(255), quality=60)
    assert np.count_nonzero(np.asarray(Image.open(path)) % 255) > 20  # there is noise
    assert np.array_equal(read_mask(path, (40, 40)), expected)
    noise_alone = np.random.default_rng(0).integers(0, 8, (40, 40)).astype(np.uint8)
    assert not read_mask(save(tmp_path / "n.jpg", noise_alone, quality=100), (40, 40)).any()
    values = np.zeros((64, 64), np.uint8)  # several values
    values[10:30, 13:31] = 255
    values[45:60, 40:60] = 60  # far from the other, not noise
    for name, quality in (("a.jpg", 75), ("b.jpg", 85), ("c.jpg", 95), ("d.webp", 80), ("e.avif", 70)):
        found = read_mask(save(tmp_path / name, values, quality=quality), (64, 64))
        assert np.array_equal(found, values > 0), name
    one = values == 255  # colours, whose noise lies in larger blocks
    for name, colour in (("r.jpg", (255, 0, 0)), ("b.jpg", (0, 0, 255)), ("m.jpg", (200, 0, 200))):
        image = one[..., None] * np.uint8(colour)
        found = read_mask(save(tmp_path / name, image, quality=75, subsampling="4:2:0"), (64, 64))
        assert ndimage.label(found)[1] == 1, name


def test_palettes_count_by_colour_where_black_is_used_else_by_index(tmp_path):
    indices = np.array([[0, 1], [2, 1]], np.uint8)

    def read(*colours: int, **options) -> list[list[bool]]:
        image = Image.fromarray(indices)
        image.putpalette(colours)
        return read_mask(save(tmp_path / "p.png", image, **options), (2, 2)).tolist()

    assert read(0, 0, 0, 0, 0, 9, 128, 0, 0) == [[False, True], [True, True]]
    assert read(*[0] * 9) == [[False, True], [True, True]]  # class numbers, without a colour for them
    # What shrinks files orders a palette as it likes.
    assert read(255, 255, 255, 0, 0, 0, 9, 9, 9) == [[True, False], [True, False]]
    assert read(68, 1, 84, 33, 145, 140, 253, 231, 37) == [[False, True], [True, True]]  # without black
    # What is fully transparent is good, whatever its colour.
    red_on_nothing = (255, 0, 0, 255, 255, 255, 255, 0, 0)
    assert read(*red_on_nothing, transparency=bytes([255, 0, 3])) == [[True, False], [True, False]]


def test_transparent_pixels_of_masks_are_good(tmp_path):
    colours = np.uint8([[(255,) * 4, (255, 255, 255, 0), (0, 0, 0, 255), (1,) * 4]])
    expected = [[True, False, False, True]]
    assert read_mask(save(tmp_path / "a.png", colours), (1, 4)).tolist() == expected
    assert read_mask(save(tmp_path / "b.png", colours[..., [0, 3]]), (1, 4)).tolist() == expected
    lossless = read_mask(save(tmp_path / "c.webp", colours, lossless=True, exact=True), (1, 4))
    assert lossless.tolist()[0][:3] == expected[0][:3]
    keyed = save(tmp_path / "d.png", np.array([[7, 255, 0]], np.uint8), transparency=7)
    assert read_mask(keyed, (1, 3)).tolist() == [[False, True, False]]


def test_mask_errors(tmp_path):
    path = save(tmp_path / "m.png")
    with pytest.raises(UserError, match=r"m\.png is 6 x 5 pixels, its image 5 x 6"):
        read_mask(path, (6, 5))
    path.write_text("no image")
    with pytest.raises(UserError, match=r"cannot read image .*m\.png"):
        read_mask(path, (5, 6))


# Fingerprints


def test_fingerprint_tells_names_contents_and_order_apart(tmp_path):
    def take(folder: Path, *names: str) -> str:
        return fingerprint([folder / name for name in names], folder)

    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        folder.mkdir()
        (folder / "a.png").write_bytes(b"aaaa")
        (folder / "b.png").write_bytes(b"bbbb")
    first = take(one, "a.png", "b.png")
    assert len(first) == 32 and int(first, 16) >= 0 and take(two, "a.png", "b.png") == first
    assert take(one, "b.png", "a.png") != first and take(one, "a.png") != first
    (two / "c.png").write_bytes(b"bbbb")
    assert take(two, "a.png", "c.png") != first
    (two / "b.png").write_bytes(b"bbbc")
    assert take(two, "a.png", "b.png") != first
    with (one / "b.png").open("ab") as file:
        file.write(bytes(100_000))
    longer = take(one, "a.png", "b.png")
    with (one / "b.png").open("r+b") as file:
        file.seek(90_000)
        file.write(b"1")
    changed = take(one, "a.png", "b.png")
    assert changed != longer and changed[:16] == longer[:16] != first[:16]
    with pytest.raises(UserError, match=r"cannot read image .*gone\.png: no such file"):
        take(one, "gone.png")


def test_fingerprints_of_older_versions_still_fit_and_are_told(tmp_path, capsys):
    (tmp_path / "a.png").write_bytes(b"aaaa")
    now = fingerprint([tmp_path / "a.png"], tmp_path)
    older = "7a166164cf4c8bf8"
    assert same_images(now, now) and same_images(f"{now}-7", f"{now}-7") and not capsys.readouterr().out
    assert same_images(older, now) and "first 64 KiB" in capsys.readouterr().out
    assert same_images(f"{older}-7", f"{now}-7")
    for stored in (now[16:], "0" * 16, "", f"{older}-8", f"{now[:16]}{'0' * 16}"):
        assert not same_images(stored, f"{now}-7") and not same_images(stored, now)


# Generated data


def test_synthetic_folder_is_recognised_until_real_files_join_it(tmp_path):
    folder = tmp_path / "data"
    assert not synthetic(folder)
    save(folder / "train/good/a b.png")
    assert not synthetic(folder)
    mark_synthetic(folder, "make it")
    assert (folder / "SYNTHETIC").read_text() == "make it\ntrain/good/a b.png\n"
    (folder / ".cache").touch()
    assert synthetic(folder)
    (folder / "result.csv").touch()
    assert synthetic(folder, ("train/*",))  # results may lie beside the inputs
    (folder / "result.csv").unlink()
    real = save(folder / "train/good/real.png")
    for inputs in ("*", "train/*"):
        with pytest.raises(UserError, match=r"real files beside generated ones in .*such as train/good/real\.png"):
            synthetic(folder, (inputs,))
    real.unlink()
    (folder / "train/good/a b.png").unlink()
    with pytest.raises(UserError, match=r"train/good/a b\.png is missing"):
        synthetic(folder)
    for content in (b"\xff", b""):
        (folder / "SYNTHETIC").write_bytes(content)
        with pytest.raises(UserError, match="SYNTHETIC"):
            synthetic(folder)


def test_new_synthetic_folder_appears_whole_or_not_at_all(tmp_path):
    folder = tmp_path / "deep/data"
    with new_synthetic_folder(folder, "make it") as made:
        save(made / "train/good/0.png")
        assert not folder.exists()
    assert synthetic(folder) and [entry.name for entry in folder.parent.iterdir()] == ["data"]
    (tmp_path / "plain").mkdir()
    assert folder.stat().st_mode == (tmp_path / "plain").stat().st_mode  # others may read it
    for error in (KeyboardInterrupt(), OSError(28, "No space left")):
        with pytest.raises((KeyboardInterrupt, UserError)), new_synthetic_folder(tmp_path / "new", "make it") as made:
            save(made / "0.png")
            raise error
    (tmp_path / "file").touch()
    for place, words in ((folder, "data already holds files"), (tmp_path / "file", "cannot make")):
        with pytest.raises(UserError, match=words), new_synthetic_folder(place, "make it"):
            pytest.fail("nothing is to be made")
    assert {entry.name for entry in tmp_path.iterdir()} == {"deep", "plain", "file"} and synthetic(folder)
