"""Folders of images: find, check and read them, tell generated stand-in data from real data.

MVTec AD's layout (Bergmann et al., CVPR 2019), where `root` is the folder of one category:

    root/train/good/*.png             images without defects to learn from
    root/test/good/*.png              further images without defects
    root/test/<defect>/*.png          one folder for each kind of defect
    root/ground_truth/<defect>/*.png  masks of the defects: <image's name>_mask.png, or just the image's name
"""

import hashlib
import os
import warnings
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from common.files import UserError, atomic_write, reason, regular, temporary_folder
from common.runtime import progress, say

# fmt: off
EXTENSIONS = frozenset([
    ".apng", ".avif", ".bmp", ".dib", ".gif", ".j2c", ".j2k", ".jfif", ".jp2", ".jpc", ".jpe", ".jpeg", ".jpf", ".jpg",
    ".jpx", ".mpo", ".pbm", ".pcx", ".pgm", ".png", ".pnm", ".ppm", ".qoi", ".sgi", ".tga", ".tif", ".tiff", ".webp",
])
# Whatever a file's name says, only these are decoded: Pillow's others need programs such as Ghostscript, or are rare.
FORMATS = (
    "PNG", "JPEG", "TIFF", "BMP", "GIF", "WEBP", "PPM", "JPEG2000", "AVIF", "DIB", "PCX", "QOI", "SGI", "TGA",
)
# fmt: on
MARK = "SYNTHETIC"  # the file that generated data carries
# What operating systems and network storage put into folders, beside names that begin with a dot; in lower case.
SYSTEM_NAMES = frozenset([
    "#recycle", "#snapshot", "$recycle.bin", "@eadir", "@recently-snapshot", "@recycle", "__macosx", "desktop.ini",
    "ehthumbs.db", "icon\r", "lost+found", "network trash folder", "recycler", "system volume information",
    "temporary items", "thumbs.db", "~snapshot",
])  # fmt: skip

# A file that unpacks to many times its size is refused as soon as Pillow warns, not only at twice that size.
warnings.simplefilter("error", Image.DecompressionBombWarning)
# Notes on damaged entries beside the pixels name no file; where the pixels cannot be read, an error does.
warnings.filterwarnings("ignore", module=r"PIL\.TiffImagePlugin")


@dataclass(frozen=True)
class Sample:
    """One image of a data set: `label` 0 is good; `mask` marks the defect's pixels where there is such a file."""

    path: Path
    label: int
    class_name: str
    mask: Path | None


def is_junk(name: str) -> bool:
    """Whether a file or folder of this name is hidden or the operating system's or storage's own: never data."""
    return name.startswith((".", "~$")) or name.lower() in SYSTEM_NAMES


def mvtec_samples(root: str | Path, part: str) -> tuple[list[Sample], list[str]]:
    """Images of a data set in MVTec AD's layout (see the top of this file).

    part: "train" (the good ones only, whatever else lies there) or "test". Returns the samples, ordered by label and
    then by path, and the class names, which labels index: "good", then the kinds of defects in alphabetical order.
    Subfolders of a class belong to it and links to folders in it are not followed. Raises UserError where folders or
    images are missing.
    """
    root = Path(root)
    layout = f"expected {root}/train/good/*.png and {root}/test/<good or a defect's name>/*.png"
    for folder in (root, root / part, root / part / "good"):
        if not folder.is_dir():
            raise UserError(f"there is no folder {folder}: {layout}")
    defects = sorted(entry.name for entry in visible(root / part) if entry.is_dir() and entry.name != "good")
    if part == "train" and defects:
        say(f"training uses {root / part / 'good'} only, not {', '.join(defects)} beside it")
        defects = []

    class_names = ["good", *defects]
    samples = []
    for label, name in enumerate(class_names):
        folder, masks_folder = root / part / name, root / "ground_truth" / name
        images = _images_below(folder)
        if not images:
            raise UserError(f"there are no images in {folder}: {layout}")
        masks = {}
        if label and masks_folder.is_dir():
            masks = {path.relative_to(masks_folder).with_suffix(""): path for path in _images_below(masks_folder)}
        of_class = []
        for path in images:
            stem = path.relative_to(folder).with_suffix("")
            mask = masks.get(stem.with_name(f"{stem.name}_mask"), masks.get(stem))
            of_class.append(Sample(path, label, name, mask))
        if unused := sorted(set(masks.values()) - {sample.mask for sample in of_class}):
            say(
                f"{len(unused)} of {len(masks)} masks in {masks_folder} belong to no image, such as {unused[0].name}: "
                "expected <image's name>_mask.png or the image's name"
            )
        samples += of_class
    return samples, class_names


def image_files(folder: str | Path) -> list[Path]:
    """All images in `folder` and its subfolders, sorted by their paths in it; for the path of one file just that.

    Junk and files without an image's extension are left out. Raises UserError where there is no image.
    """
    folder = Path(folder)
    if folder.is_file():
        return [folder]
    if not folder.is_dir():
        special = "{} is a pipe, socket or device: give a file or a folder"
        raise UserError((special if folder.exists() else "there is no file or folder {}").format(folder))
    images = _images_below(folder)
    if not images:
        raise UserError(f"there are no images in {folder}: expected files such as .png, .jpg or .tif")
    return images


def visible(folder: Path) -> list[Path]:
    """What lies in `folder`, sorted, but for junk. UserError where it cannot be read."""
    try:
        return sorted(entry for entry in folder.iterdir() if not is_junk(entry.name))
    except OSError as error:
        raise UserError(f"cannot read the folder {folder}: {reason(error)}") from error


def _files_below(folder: Path) -> list[Path]:
    """Files that are no junk, in `folder` and below, sorted by relative path; links to folders are not followed."""

    def fail(error: OSError) -> None:
        raise UserError(f"cannot read the folder {error.filename}: {reason(error)}") from error

    files = []
    for parent, folders, names in os.walk(folder, onerror=fail):
        folders[:] = [name for name in folders if not is_junk(name)]
        files += [Path(parent, name) for name in names if not is_junk(name)]
    return sorted(files, key=lambda path: path.relative_to(folder).as_posix())


def _images_below(folder: Path) -> list[Path]:
    return [path for path in _files_below(folder) if path.suffix.lower() in EXTENSIONS]


@contextmanager
def opened_image(path: str | Path) -> Iterator[Image.Image]:
    """Pillow's lazy image; whatever fails within the block is a UserError that names the file."""
    try:
        with Image.open(regular(path), formats=FORMATS) as image:
            yield image
    except UnidentifiedImageError as error:
        raise UserError(f"cannot read image {path}: empty, damaged or not an image") from error
    except OSError as error:
        raise UserError(f"cannot read image {path}: {reason(error)}") from error
    except Exception as error:  # on damaged files Pillow's decoders raise nearly anything: SyntaxError, struct.error...
        words = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"cannot read image {path}: {words}") from error


def _orientation(image: Image.Image) -> int:
    """EXIF's orientation from the file's header, 1 (upright) to 8."""
    # Pillow would decode a whole PNG in search of EXIF behind the pixels.
    if image.format == "PNG" and not {"exif", "Raw profile type exif"} & image.info.keys():
        return 1
    return image.getexif().get(ExifTags.Base.Orientation, 1)


def _upright(image: Image.Image) -> Image.Image:
    """Decode `image` and turn it as EXIF says, in place."""
    if _orientation(image) != 1:
        ImageOps.exif_transpose(image, in_place=True)
    return image


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise ValueError("floating-point pixels have no fixed range; convert it to 8 or 16 bits per channel")
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError("pixel values outside 0..65535; convert it to 8 or 16 bits per channel")
        image = Image.fromarray(((values + 128) // 257).astype(np.uint8))
    if image.mode == "P":  # straight to RGB, Pillow warns about transparency
        image = image.convert("RGBA")
    return image.convert("RGB")


def read_image(path: str | Path) -> Image.Image:
    """The image as 8-bit RGB, upright as EXIF says; of an animation, the first frame.

    16-bit grey becomes 8-bit by one fixed scale (0..65535 to 0..255), so that all images of a set stay comparable.
    Transparency is dropped. Raises UserError for whatever cannot be read: missing or damaged files, images beyond
    Pillow's limit on pixels, floating-point pixels and integers beyond 16 bits.
    """
    with opened_image(path) as image:
        return _rgb(_upright(image))


def image_size(path: str | Path) -> tuple[int, int]:
    """(height, width) in pixels of what `read_image` returns, without decoding it. Raises UserError as that does."""
    with opened_image(path) as image:
        width, height = image.size
        # Pillow's size of a TIFF is the upright one from the start.
        sideways = image.format != "TIFF" and _orientation(image) >= 5
        return (width, height) if sideways else (height, width)


def read_mask(path: str | Path, size: tuple[int, int]) -> np.ndarray:
    """Mask of a defect, bool (H, W): the pixels above half of the file's maximum; none where all are zero.

    Thus 0/1, 0/255 and JPEG's noise around either are all understood; of colours, the strongest channel counts.
    size: (height, width) of the image it belongs to. Raises UserError where sizes differ or the file is unreadable.
    """
    with opened_image(path) as image:
        _upright(image)
        if image.mode.startswith("I"):  # not scaled to 8 bits, where 0 and 1 would both be 0
            values = np.asarray(image)
        else:
            values = np.asarray(_rgb(image)).max(axis=2)  # (H, W, 3) -> (H, W)
    if values.shape != tuple(size):
        raise UserError(
            f"mask {path} is {values.shape[1]} x {values.shape[0]} pixels, its image {size[1]} x {size[0]}: "
            "they must have the same size"
        )
    return values > values.max() / 2


def check_images(paths: Sequence[Path]) -> list[tuple[Path, str]]:
    """The images that `read_image` would refuse, each with the reason; empty where all is well.

    Much faster than reading them: PNG files by their checksums, JPEG files decoded at an eighth of their size.
    """
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        problems = list(progress(pool.map(_problem, paths), "checking images", total=len(paths)))
    return [(path, problem) for path, problem in zip(paths, problems) if problem]


def _problem(path: Path) -> str | None:
    try:
        with opened_image(path) as image:
            _orientation(image)
            if image.format == "PNG":
                image.verify()
            else:  # verify() does not look at the pixels of other formats
                image.draft(None, (max(1, image.width // 8), max(1, image.height // 8)))
                _rgb(image)
    except UserError as error:
        return str(error).removeprefix(f"cannot read image {path}: ")
    return None


def require_readable(paths: Sequence[Path]) -> None:
    """Raise one UserError that names all images that cannot be read."""
    problems = check_images(paths)
    if problems:
        names = "; ".join(f"{path} ({problem})" for path, problem in problems)
        raise UserError(f"cannot read {len(problems)} of {len(paths)} images, mend or remove them: {names}")


def require_fitting_masks(samples: Sequence[Sample]) -> None:
    """Raise one UserError that names all masks whose size is not that of their images."""
    problems = []
    for sample in samples:
        if sample.mask and (size := image_size(sample.mask)) != (wanted := image_size(sample.path)):
            problems.append(f"{sample.mask} ({size[1]} x {size[0]} pixels, its image {wanted[1]} x {wanted[0]})")
    if problems:
        raise UserError(f"masks must have the size of their images, mend or remove: {'; '.join(problems)}")


def mvtec_dataset(root: Path) -> tuple[list[Sample], list[Sample], list[str], bool]:
    """Both parts of a category, checked: samples to train on and to test, class names by label, and whether they are
    generated stand-ins, which is said.

    Raises UserError as `mvtec_samples` does, and where an image cannot be read or a mask has another size.
    """
    train, _ = mvtec_samples(root, "train")
    test, class_names = mvtec_samples(root, "test")
    require_readable([path for sample in train + test for path in (sample.path, sample.mask) if path])
    require_fitting_masks(test)
    made = synthetic(root)
    if made:
        say(f"the images in {root} are generated stand-ins, not real data")
    return train, test, class_names, made


def fingerprint(paths: Sequence[Path], root: str | Path) -> str:
    """16 hexadecimal digits that tell whether features stored earlier still belong to these images in this order.

    Made of the paths relative to `root`, sizes and checksums of the first 64 KiB. Raises UserError on unreadable files.
    """
    digest = hashlib.sha256()
    for path in paths:
        try:
            with regular(path).open("rb") as file:
                head, size = file.read(65536), os.fstat(file.fileno()).st_size
        except OSError as error:
            raise UserError(f"cannot read image {path}: {reason(error)}") from error
        name = os.fsencode(path.relative_to(root).as_posix())
        digest.update(name + f"\0{size} {zlib.crc32(head)}\0".encode())
    return digest.hexdigest()[:16]


def synthetic(folder: str | Path, inputs: Sequence[str] = ("*",)) -> bool:
    """Whether `folder` holds generated stand-in data, which its file SYNTHETIC tells.

    inputs: patterns (as of fnmatch) of the relative paths that are data, where results are written beside them.
    Raises UserError where it holds more or less than that file lists: results on a mixture would mean nothing.
    """
    folder = Path(folder)
    if not (folder / MARK).is_file():
        return False
    listed = set(_mark_lines(folder)[1:])
    present = {name for name in _names_below(folder) if any(fnmatch(name, pattern) for pattern in inputs)}
    if extra := sorted(present - listed):
        raise UserError(
            f"real files beside generated ones in {folder}, such as {extra[0]}: put yours elsewhere, or remove "
            f"{folder / MARK} and the files it lists"
        )
    if missing := sorted(listed - present):
        raise UserError(f"generated data in {folder} is incomplete, {missing[0]} is missing: remove {folder}")
    return True


def made_by(folder: Path) -> str:
    """The command that made the generated data in `folder`, from its mark. UserError where that cannot be read."""
    return _mark_lines(folder)[0]


def _mark_lines(folder: Path) -> list[str]:
    mark = folder / MARK
    try:
        lines = mark.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"cannot read {mark}: {error}; if the data in {folder} is generated, remove {folder}"
        ) from error
    if not lines:
        raise UserError(f"{mark} is empty: if the data in {folder} is generated, remove {folder}")
    return lines


def _names_below(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in _files_below(folder) if path != folder / MARK}


def mark_synthetic(folder: str | Path, command: str) -> None:
    """Mark all files now in `folder` as made by `command` (one line); raises UserError where it cannot be written."""
    folder = Path(folder)
    with atomic_write(folder / MARK, "w") as file:
        file.writelines(f"{line}\n" for line in [command, *sorted(_names_below(folder))])


@contextmanager
def new_synthetic_folder(folder: str | Path, command: str) -> Iterator[Path]:
    """Make `folder` with generated data as a whole or not at all.

    Yields a folder to fill, which takes its place under the name `folder`, marked as made by `command`, when the block
    ends without an error. Raises UserError where `folder` already holds something or cannot be written.
    """
    folder = Path(folder)
    try:
        if folder.exists() and any(folder.iterdir()):
            raise UserError(f"{folder} already holds files: generated data needs a folder of its own")
        with temporary_folder(folder.parent) as temporary:
            # One level down, because the temporary folder itself is closed to other users.
            made = temporary / "made"
            made.mkdir()
            yield made
            mark_synthetic(made, command)
            made.rename(folder)
    except OSError as error:
        raise UserError(f"cannot make {folder}: {reason(error)}") from error
