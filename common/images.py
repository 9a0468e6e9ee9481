"""Folders of images: find, check and read them, tell generated stand-in data from real data.

MVTec AD's layout (Bergmann et al., CVPR 2019), where `root` is the folder of one category:

    root/train/good/*.png             images without defects to learn from
    root/test/good/*.png              further images without defects
    root/test/<defect>/*.png          one folder for each kind of defect
    root/ground_truth/<defect>/*.png  masks of the defects: <image's name>_mask.png, or just the image's name, or, to be
                                      merged, all in a folder of the image's name (MVTec LOCO)
    root/validation/good/*.png        further images without defects, which set thresholds (MVTec LOCO)
"""

import hashlib
import heapq
import os
import re
import sys
import warnings
import zlib
from collections import Counter
from collections.abc import Container, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from scipy import ndimage

from common.cli import note, notes, number_of, progress, say
from common.files import UserError, atomic_write, digest, read_text, reason, regular, temporary_folder

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
LOSSY = ("JPEG", "MPO", "WEBP", "JPEG2000", "AVIF")  # their pixels may have noise around the values that were saved
PAGED = (".apng", ".avif", ".gif", ".tif", ".tiff", ".webp")  # may hold several pages or frames
MARK = "SYNTHETIC"  # the file that generated data carries
# What operating systems and network storage put into folders, beside names that begin with a dot; in lower case.
SYSTEM_NAMES = frozenset([
    "#recycle", "#snapshot", "$recycle.bin", "@eadir", "@recently-snapshot", "@recycle", "__macosx", "desktop.ini",
    "ehthumbs.db", "icon\r", "lost+found", "network trash folder", "recycler", "system volume information",
    "temporary items", "thumbs.db", "~snapshot",
])  # fmt: skip
MASK_FOLDERS = frozenset(["ground_truth", "groundtruth", "gt", "mask", "masks"])  # in lower case
MASK_NAME = re.compile(r"(?<=.)[ _-](mask|gt)$", re.IGNORECASE)  # what follows the image's name
GOOD = re.compile(r"[\W_]*(goods?|ok|okay|normal)[\W_]*", re.IGNORECASE)  # what others call the folder "good"

# A file that unpacks to many times its size is refused as soon as Pillow warns, not only at twice that size.
warnings.simplefilter("error", Image.DecompressionBombWarning)
# Notes on damaged entries beside the pixels name no file; where the pixels cannot be read, an error does.
warnings.filterwarnings("ignore", module=r"PIL\.TiffImagePlugin")


@dataclass(frozen=True)
class Sample:
    """One image of a data set: `label` 0 is good; `mask`: the files that mark the defect's pixels, if any."""

    path: Path
    label: int
    class_name: str
    mask: tuple[Path, ...] = ()


def is_junk(name: str) -> bool:
    """Whether a file or folder of this name is hidden or the operating system's or storage's own: never data."""
    return name.startswith((".", "~$")) or name.lower() in SYSTEM_NAMES


def mvtec_samples(root: str | Path, part: str) -> tuple[list[Sample], list[str]]:
    """Images of a data set in MVTec AD's layout (see the top of this file).

    part: "train" or "validation" (the good ones only, whatever else lies there) or "test". Returns the samples, ordered
    by label and then by path, and the class names, which labels index: "good", then the kinds of defects in
    alphabetical order. Subfolders of a class belong to it, but for masks in them. Raises UserError where folders or
    images are missing, though not for good ones beside defects to test on, or where masks cannot be told from images.
    """
    root, place = Path(root), Path(root, part)
    layout = f"expected {root}/train/good/*.png and {root}/test/<good or a defect's name>/*.png"
    for folder in (root, place):
        if not folder.is_dir():
            raise UserError(f"there is no folder {folder}: {layout}")
    entries = visible(place)
    defects = [path.name for path in entries if path.is_dir() and path.name != "good"]
    like_good = next((place / name for name in defects if GOOD.fullmatch(name)), None)
    if like_good and (place / "good").is_dir():
        raise UserError(f"{like_good} beside {place / 'good'}: move its images there, or give it a defect's name")
    if not (place / "good").is_dir() and (like_good or part != "test" or not defects):
        hint = f"if {like_good} is meant, rename it" if like_good else layout
        raise UserError(f"there is no folder {place / 'good'}: {hint}")
    note_left_out([path for path in entries if not path.is_dir()], f"in {place} outside the class folders")
    if part != "test" and defects:
        note(f"of {place} only good is used, not {', '.join(defects)} beside it")
        defects = []
    truth = root / "ground_truth"
    if part == "test" and truth.is_dir():
        others = [path for path in visible(truth) if path.name not in defects]
        note_left_out(others, f"in {truth} named after no defect in {place}")

    samples, files = [], {}
    for label, name in enumerate(class_names := ["good", *defects]):
        folder = place / name
        images, masks = _images_and_masks(folder, truth / name, bool(label)) if folder.is_dir() else ([], {})
        if not images and (label or part == "train"):
            raise UserError(f"there are no images in {folder}: {layout}")
        if not images:
            note(f"there are no images in {folder}")
        for path in images:
            if (other := files.setdefault(path.resolve(), path)).relative_to(place).parts[0] != name:
                raise UserError(f"{other} and {path} are the same file, in two classes: remove the links to it")
        samples += [Sample(path, label, name, masks.get(_stem(path, folder), ()) if label else ()) for path in images]
    return samples, class_names


def _images_and_masks(folder: Path, truth: Path, defective: bool) -> tuple[list[Path], dict[Path, tuple[Path, ...]]]:
    """The images of a class, without masks beside them, and the masks by their images' stems."""
    images = {path: _stem(path, folder) for path in _images_below(folder)}
    stems = Counter(images.values())
    beside = [path for path, stem in images.items() if _image_of(stem, stems)]
    if beside:
        number = number_of(len(beside), "file")
        note(f"masks of the images beside them: {number} in {folder}, such as {beside[0].relative_to(folder)}")
        for path in beside:
            del stems[images.pop(path)]
    if strays := [
        path for path in images if MASK_FOLDERS & {*map(str.lower, path.relative_to(folder.parent).parts[:-1])}
    ]:
        raise UserError(
            f"{number_of(len(strays), 'image')} in folders of masks, such as {strays[0]}, with no image of the same "
            f"name in {folder}: expected masks in {truth.parent}/<a defect's name>"
        )
    if alone := [path.name for path, stem in images.items() if MASK_NAME.search(stem.name)]:
        number = number_of(len(alone), "image is named like a mask", "images are named like masks")
        note(f"in {folder} {number}, with no image of the name before that, and not taken for one: {alone[0]}")
    if twins := [path for path, stem in images.items() if stems[stem] > 1]:
        words = f"{len(twins)} images in {folder} have the same name but for the extension, such as {twins[0].name}"
        if defective:
            raise UserError(f"{words}: move masks to {truth}, rename images")
        note(words)
    masks = _masks_of(stems, beside, folder)
    if defective and truth.is_dir():
        masks |= _masks_of(stems, _images_below(truth), truth)
    return [*images], masks


def _stem(path: Path, folder: Path) -> Path:
    return path.relative_to(folder).with_suffix("")


def _image_of(stem: Path, images: Container[Path]) -> Path | None:
    """Of stems, the image that a mask's is named after: "000" for "000_mask" and "masks/000"."""
    folders = [part for part in stem.parent.parts if part.lower() not in MASK_FOLDERS]
    image = Path(*folders, MASK_NAME.sub("", stem.name))
    return image if image != stem and image in images else None


def _masks_of(images: Container[Path], masks: Sequence[Path], folder: Path) -> dict[Path, tuple[Path, ...]]:
    """Each image's masks by its stem: <stem>_mask.png, else <stem>.png, else all <stem>/*.png."""
    ranked: list[dict[Path, list[Path]]] = [{}, {}, {}]
    for mask in masks:
        stem = _stem(mask, folder)
        image = _image_of(stem, images)
        rank = 2 if image else 1 if stem in images else 0
        ranked[rank].setdefault((stem.parent, stem, image)[rank], []).append(mask)
    found = {stem: tuple(paths) for rank in ranked for stem, paths in rank.items() if stem in images}
    if unused := sorted({*masks} - {path for paths in found.values() for path in paths}):
        note(
            f"masks of no image: {len(unused)} of {len(masks)} in {folder}, such as {unused[0].name}: "
            "expected <image's name>_mask.png or the image's name"
        )
    return found


def note_left_out(paths: Sequence[Path], words: str) -> None:
    """Say how many files and folders are left out, if any, and why: "in FOLDER outside the class folders"."""
    if paths:
        number = number_of(len(paths), "file or folder", "files or folders")
        note(f"left out: {number} {words}, such as {paths[0].name}")


def image_files(folder: str | Path) -> list[Path]:
    """All images in `folder` and its subfolders, sorted by their paths in it; for the path of one file just that.

    Junk and files without an image's extension are left out. Raises UserError where there is no image.
    """
    folder = Path(folder)
    if folder.is_file():
        _note_pages([folder])
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


def files_below(folder: Path) -> list[Path]:
    """Files that are no junk, in `folder` and below, sorted by relative path.

    Links to folders are followed, after all folders that lie there, and no folder is read twice, so that loops end.
    """
    files, folders, links, seen, again = [], [folder], [], set(), []
    try:
        while folders or links:
            place = folders.pop() if folders else heapq.heappop(links)
            status = place.stat()
            if (status.st_dev, status.st_ino) in seen:
                again.append(place)
                continue
            seen.add((status.st_dev, status.st_ino))
            for entry in os.scandir(place):
                path = Path(entry.path)
                if is_junk(entry.name):
                    continue
                if entry.is_symlink() and path.is_dir():
                    heapq.heappush(links, path)
                else:
                    (folders if entry.is_dir(follow_symlinks=False) else files).append(path)
    except OSError as error:
        raise UserError(f"cannot read the folder {error.filename}: {reason(error)}") from error
    if again:
        number = number_of(len(again), "folder")
        note(f"linked more than once and read once: {number} in {folder}, such as {min(again)}")
    return sorted(files, key=lambda path: path.relative_to(folder).as_posix())


def _images_below(folder: Path) -> list[Path]:
    files = files_below(folder)
    others = [path for path in files if path.suffix.lower() not in EXTENSIONS and path.name != MARK]
    if others:
        [(kind, count)] = Counter(path.suffix.lower() for path in others).most_common(1)
        first = next(path for path in others if path.suffix.lower() == kind)
        note(
            f"left out, not in a supported image format: {number_of(len(others), 'file')} in {folder}, such as "
            f"{first.name} ({count} {kind or 'without extension'}): convert images to PNG"
        )
    images = [path for path in files if path.suffix.lower() in EXTENSIONS]
    _note_pages(images)
    return images


def _note_pages(paths: Sequence[Path]) -> None:
    several = []
    for path in paths:
        if path.suffix.lower() in PAGED:
            with suppress(UserError), opened_image(path) as image:  # whoever reads it tells
                several += [path] * (getattr(image, "n_frames", 1) > 1)
    if several:
        number = number_of(len(several), "file")
        note(f"several pages or frames, of which the first one is used: {number}, such as {several[0]}")


def set_max_pixels(limit: int) -> None:
    """From now on, refuse images of more than `limit` pixels."""
    Image.MAX_IMAGE_PIXELS = limit


@contextmanager
def opened_image(path: str | Path) -> Iterator[Image.Image]:
    """Pillow's lazy image; whatever fails within the block is a UserError that names the file."""
    try:
        with Image.open(regular(path), formats=FORMATS) as image:
            yield image
    except UnidentifiedImageError as error:
        tiff = Path(path).suffix.lower() in (".tif", ".tiff")
        more = " of a kind that is read: if it is sound, convert it to 8 or 16 bits per channel" if tiff else ""
        raise UserError(f"cannot read image {path}: empty, damaged or not an image{more}") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        size = re.search(r"\d+ pixels", str(error))[0]
        raise UserError(
            f"cannot read image {path}: {size}, more than the limit of {Image.MAX_IMAGE_PIXELS}: if the file is what "
            "it should be, raise --max_pixels"
        ) from error
    except MemoryError as error:
        raise UserError(f"cannot read image {path}: there is not enough memory for it") from error
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


def _tag(image: Image.Image, tag: int) -> Any:
    """Entry of a TIFF; None of other files."""
    return image.tag_v2.get(tag) if image.format == "TIFF" else None


def _wide(image: Image.Image) -> np.ndarray | None:
    """Pixels of a file of more than 8 bits per channel, upright, uint16 (H, W) or (H, W, C); other files are not
    decoded, and None.

    Raises ValueError for what cannot be read at its full depth.
    """
    if image.mode == "F":
        raise ValueError("floating-point pixels have no fixed range; convert it to 8 or 16 bits per channel")
    if image.mode == "L" and _tag(image, ExifTags.Base.SampleFormat) == (2,):  # Pillow takes -1 for 255
        raise ValueError("signed pixels of 8 bits are not read; convert it to 8 or 16 bits per channel without signs")
    if image.mode.startswith("I"):
        values = np.asarray(_upright(image))
        if values.dtype.itemsize > 2 and (values.min() < 0 or values.max() > 65535):
            raise ValueError("pixel values outside 0..65535; convert it to 8 or 16 bits per channel")
        values = values.astype(np.uint16, copy=False)
        # Pillow does not invert 16-bit TIFFs whose white is 0.
        return 65535 - values if _tag(image, ExifTags.Base.PhotometricInterpretation) == 0 else values

    deep = False
    if image.format == "PPM" and image.mode == "RGB" and image.tile[0].codec_name != "raw":
        deep = image.tile[0].args[1] > 255
    elif image.format == "JPEG2000":  # Ssiz, behind the marker SIZ: bits less 1, and the highest bit for signs
        size = re.search(rb"\xff\x4f\xff\x51.{38}(.)", Path(image.filename).read_bytes(), re.DOTALL)
        deep = size and size[1][0] & 127 > 7
    elif image.format == "AVIF":  # the third byte of the box av1C: tier, more than 8 bits, 12 bits, ...
        deep = (box := re.search(rb"av1C..(.)", Path(image.filename).read_bytes(), re.DOTALL)) and box[1][0] & 64
    if deep:  # Pillow reads 8 bits
        raise ValueError(f"{image.format} of more than 8 bits in colour is not read: convert it to a PNG of 16 bits")
    if image.format not in ("PNG", "TIFF", "SGI") or image.mode not in ("L", "RGB", "RGBA"):
        return None
    args = image.tile[0].args
    layout = args if isinstance(args, str) else args[0]  # Pillow's name, such as RGB;16B
    planes = _tag(image, ExifTags.Base.PlanarConfiguration) == 2
    if ";16" not in layout and not (planes and 16 in _tag(image, ExifTags.Base.BitsPerSample)):
        return None
    if planes or layout.startswith("RGBa") or image.format == "SGI":
        kind = "channels in separate planes" if planes else "alpha multiplied in" if image.format == "TIFF" else "SGI"
        raise ValueError(f"16 bits per channel with {kind} are not read: convert it to a PNG of 16 bits")
    # Pillow keeps the upper 8 of 16 bits. The same file read with the bytes of each value swapped gives the lower 8.
    swapped = layout[:-1] + ("B" if layout[-1] == "L" or (layout[-1] == "N" and sys.byteorder == "little") else "L")
    if layout == "LA;16B":
        swapped = "RGBA"  # there is no LA;16L: both bytes of both values as channels
    with Image.open(image.filename, formats=FORMATS) as other:
        other.tile = [
            tile._replace(args=swapped if args is layout else (swapped, *tile.args[1:])) for tile in other.tile
        ]
        lower = np.asarray(_upright(other))
    if layout == "LA;16B":
        return lower.view(">u2").astype(np.uint16)
    return np.asarray(_upright(image)).astype(np.uint16) << 8 | lower


def _cut_to(max_value: int) -> str:
    return f"values of 16-bit images above --max_value {max_value} are cut to it"


def _rgb(image: Image.Image, max_value: int = 65535) -> Image.Image:
    """8-bit RGB, upright; of more than 8 bits, max_value and what is above become 255."""
    wide = _wide(image)
    if wide is not None:
        if _tag(image, ExifTags.Base.BitsPerSample) == (12,):
            max_value = 4095  # as the file itself says
        scaled = (np.arange(65536) * 255 + max_value // 2) // max_value
        colours = wide if wide.ndim == 2 else wide[..., 0] if wide.shape[2] == 2 else wide[..., :3]
        cut = max_value < 65535 and colours.max() > max_value
        if cut and not any(told.startswith(_cut_to(max_value)) for told in notes()):
            note(f"{_cut_to(max_value)}, first in {image.filename}")
        image = Image.fromarray(scaled.clip(max=255).astype(np.uint8)[colours])
    image = _upright(image)
    if image.mode == "P":  # straight to RGB, Pillow warns about transparency
        image = image.convert("RGBA")
    return image.convert("RGB")


def read_image(path: str | Path, max_value: int = 65535) -> Image.Image:
    """The image as 8-bit RGB, upright as EXIF says; of an animation or several pages, the first.

    max_value: the value of 16-bit pixels that becomes 255, as what is above it does; one for all images of a set, so
    that they stay comparable (`resolve_max_value`). Transparency is dropped. Raises UserError for whatever cannot be
    read: missing or damaged files, images beyond the limit on pixels or the memory, floating-point pixels, integers
    beyond 16 bits and rare kinds of TIFF.
    """
    with opened_image(path) as image:
        return _rgb(image, max_value)


def image_size(path: str | Path) -> tuple[int, int]:
    """(height, width) in pixels of what `read_image` returns, without decoding it. Raises UserError as that does."""
    with opened_image(path) as image:
        width, height = image.size
        # Pillow's size of a TIFF is the upright one from the start.
        sideways = image.format != "TIFF" and _orientation(image) >= 5
        return (width, height) if sideways else (height, width)


def resolve_max_value(paths: Sequence[Path], option: int | str, others: Sequence[Path] = ()) -> int:
    """The `max_value` to read a set of images with: `option`, or for "auto" the highest value of the 16-bit images
    `paths`, rounded up to whole bits (1023, 4095, ...; 65535 where there are none).

    A line tells what "auto" found, and which 16-bit images of `paths` and `others` would be nearly black or are cut
    off at it. Images that cannot be read are left to who reads them.
    """
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = dict(zip([*paths, *others], pool.map(_highest_value, [*paths, *others])))
    highest = {path: value for path, value in found.items() if value}
    trained = [highest[path] for path in paths if path in highest]
    value = option if option != "auto" else 2 ** max(trained, default=65535).bit_length() - 1
    if not highest:
        if value != 65535:
            note(f"--max_value {value} has no effect: it is for 16-bit images, and there are none")
        return value
    count = number_of(len(highest), "image of more than 8 bits", "images of more than 8 bits")
    first, top = min(highest), max(highest.values())
    if option == "auto":
        note(f"--max_value auto: {value}; the training images' highest value is {max(trained, default='unknown')}")
    elif value == 65535 and top < 32768:
        bits = 2 ** top.bit_length() - 1
        remedy = f"try --max_value {bits}, from the training on"
        note(f"dark: {count}, such as {first}, no value above {top} of 65535: {remedy}")
    if cut := sorted(path for path in highest if highest[path] > value):
        note(f"{_cut_to(value)}, in {len(cut)} of {count}, such as {cut[0]}")
    return value


def _highest_value(path: Path) -> int | None:
    """Of the pixels of a 16-bit image; None of others."""
    try:
        with opened_image(path) as image:
            wide = None if _tag(image, ExifTags.Base.BitsPerSample) == (12,) else _wide(image)
            if wide is None:
                return None
            return int((wide if wide.ndim == 2 else wide[..., : wide.shape[2] - (wide.shape[2] % 2 == 0)]).max())
    except UserError:  # require_readable and read_image tell
        return None


def read_mask(mask: str | Path | Sequence[Path], size: tuple[int, int]) -> np.ndarray:
    """Mask of a defect, bool (H, W), from one file or several that are merged: every pixel that is not 0 (black).

    Thus class numbers, 0/1, 0/255 and colours are all understood. Fully transparent pixels are good. So is, in formats
    that lose precision (JPEG), what is noise there: values under 10 of 255, and up to half of the highest value within
    7 pixels (15 in colour). A palette's colours count where black is among those used but not alone, else its indices.
    size: (height, width) of the image it belongs to. Raises UserError where sizes differ or a file is unreadable.
    """
    marked = np.zeros(size, bool)
    for path in [mask] if isinstance(mask, (str, Path)) else mask:
        found = _marked(path)
        if found.shape != marked.shape:
            raise UserError(
                f"mask {path} is {found.shape[1]} x {found.shape[0]} pixels, its image {size[1]} x {size[0]}: "
                "they must have the same size"
            )
        marked |= found
    return marked


def _marked(path: str | Path) -> np.ndarray:
    with opened_image(path) as image:
        values = _wide(image)
        if values is None:
            plain = _upright(image)
            transparent = image.has_transparency_data
            if image.mode not in ("1", "L") or transparent:
                plain = image.convert("RGBA" if transparent else "RGB")
            values = np.asarray(plain)
        visible = values[..., -1] > 0 if values.ndim == 3 and values.shape[2] % 2 == 0 else None
        reach = 15  # an edge's noise ends with its block of 8 x 8 pixels
        if values.ndim == 3:
            colours = values[..., : values.shape[2] - (visible is not None)]
            values = colours.max(axis=2)
            if (values != colours.min(axis=2)).any():
                reach = 31  # and of 16 x 16 pixels where colours are stored at half the resolution
        marked = values > 0
        if image.format in LOSSY and not (image.format == "WEBP" and b"VP8L" in Path(path).read_bytes()):  # lossless
            nearby = ndimage.maximum_filter(values, reach)
            marked &= (values >= np.iinfo(values.dtype).max * 10 // 255) & (values > nearby // 2)
        if image.mode == "P" and visible is None and (marked.all() or not any(image.getpalette())):
            marked = np.asarray(image) > 0
        return marked if visible is None else marked & visible


def require_readable(paths: Sequence[Path]) -> None:
    """Raise one UserError that names all images which `read_image` would refuse, each with the reason.

    Much faster than reading them: PNG files by their checksums, JPEG files decoded at an eighth of their size.
    """
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        problems = [*filter(None, progress(pool.map(_problem, paths), "checking images", total=len(paths)))]
    if problems:
        number = number_of(len(paths), "image")
        raise UserError(f"cannot read {len(problems)} of {number}, repair or remove: {'; '.join(problems)}")


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
        return f"{path} ({str(error).removeprefix(f'cannot read image {path}: ')})"
    return None


def require_fitting_masks(samples: Sequence[Sample]) -> None:
    """Raise one UserError that names all masks that cannot be read or have another size than their images; say how
    many mark nothing."""

    def problem(sample: Sample) -> str | None:
        """Why the mask cannot be used; "" where it marks nothing."""
        try:
            return None if read_mask(sample.mask, image_size(sample.path)).any() else ""
        except UserError as error:
            return str(error)

    with_mask = [sample for sample in samples if sample.mask]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = list(progress(pool.map(problem, with_mask), "checking masks", total=len(with_mask)))
    if problems := [*filter(None, found)]:
        number = number_of(len(problems), "mask")
        raise UserError(f"{number} cannot be used, repair or remove: {'; '.join(problems)}")
    if empty := [sample for sample, answer in zip(with_mask, found) if answer == ""]:
        number = f"empty masks: {len(empty)} of {len(with_mask)}, such as {empty[0].mask[0]}"
        note(f"{number}: pixel metrics take the whole image for good")


@dataclass(frozen=True)
class Category:
    """A data set in MVTec AD's layout: samples to train on, good ones held out by it (MVTec LOCO's validation/good),
    samples to test on, class names by label, whether all are generated stand-ins, and `read_image`'s max_value."""

    train: list[Sample]
    held_out: list[Sample]
    test: list[Sample]
    class_names: list[str]
    synthetic: bool
    max_value: int

    @property
    def paths(self) -> list[Path]:
        """All images."""
        return [sample.path for sample in self.train + self.held_out + self.test]


def note_copies(train: Sequence[Path], test: Sequence[Path], held_out: Sequence[Path] = ()) -> None:
    """Say how many test images are copies, byte for byte, of training or held-out images, and how many held-out ones
    of training images. Raises UserError on unreadable files."""
    others = f"test images, copies of training {'or held-out ' if held_out else ''}images"
    for known, paths, words in (
        (train, held_out, "held-out images, copies of training images"),
        ([*train, *held_out], test, others),
    ):
        sizes = {path.stat().st_size for path in known} & {path.stat().st_size for path in paths}
        digests = {digest(path) for path in known if path.stat().st_size in sizes}
        copies = [path for path in paths if path.stat().st_size in sizes and digest(path) in digests]
        if copies:
            number = f"{len(copies)} of {len(paths)} {words}, such as {copies[0]}"
            note(f"{number}: what is measured on them tells nothing of new images")


def note_squeezed(paths: Sequence[Path], size: tuple[int, int], remedy: str) -> None:
    """Say how many images change their aspect ratio by more than 1.5 when they are resized to `size`, (height, width),
    and what the user can do. Raises UserError on unreadable files."""
    sizes = [image_size(path) for path in paths]
    changes = [height * size[1] / (width * size[0]) for height, width in sizes]
    if far := [i for i, change in enumerate(changes) if max(change, 1 / change) > 1.5]:
        height, width = sizes[far[0]]
        words = f"{len(far)} of {number_of(len(paths), 'image')}, such as {paths[far[0]]} of {width} x {height} pixels"
        note(f"aspect ratio changed by more than 1.5 in resizing: {words}: {remedy}")


def mvtec_dataset(root: Path, max_value: int | str = 65535) -> Category:
    """All parts of a category, checked; what is missing or doubtful is said. max_value: see `resolve_max_value`.

    Raises UserError as `mvtec_samples` does (but not for a test part that is missing or empty), and where an image
    cannot be read or a mask has another size.
    """
    train, _ = mvtec_samples(root, "train")
    held_out = mvtec_samples(root, "validation")[0] if (root / "validation/good").is_dir() else []
    some = (root / "test").is_dir() and visible(root / "test")
    test, class_names = mvtec_samples(root, "test") if some else ([], ["good"])
    trained, others = [sample.path for sample in train], [sample.path for sample in held_out + test]
    generated = synthetic(root)
    require_readable(trained + others)
    require_fitting_masks(test)
    if generated:
        say(f"the images in {root} are generated stand-ins, not real data")
    if held_out:
        number = number_of(len(held_out), "more image")
        note(f"held out to set thresholds: {number}, of {root / 'validation/good'}")
    if len(labels := {sample.label > 0 for sample in test}) < 2:
        kind = "no" if not test else "only defective" if True in labels else "only good"
        note(f"{root} has {kind} test images: there is no AUROC")
    note_copies(trained, others[len(held_out) :], others[: len(held_out)])
    highest = resolve_max_value(trained, max_value, others)
    return Category(train, held_out, test, class_names, generated, highest)


def fingerprint(paths: Sequence[Path], root: str | Path) -> str:
    """32 hexadecimal digits that tell whether what was stored still belongs to these images in this order.

    The first 16 are older versions' fingerprint, of the paths relative to `root`, sizes and the first 64 KiB; the
    others are of every byte. Raises UserError on unreadable files.
    """
    start, whole = hashlib.sha256(), hashlib.sha256()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for path, (head, size, content) in zip(paths, pool.map(_contents, paths)):
            name = os.fsencode(path.relative_to(root).as_posix())
            start.update(name + f"\0{size} {head}\0".encode())
            whole.update(name + b"\0" + content)
    return start.hexdigest()[:16] + whole.hexdigest()[:16]


def _contents(path: Path) -> tuple[int, int, bytes]:
    """Checksum of the first 64 KiB, size, and digest of every byte."""
    try:
        with regular(path).open("rb") as file:
            head = zlib.crc32(file.read(65536))
            file.seek(0)
            return head, os.fstat(file.fileno()).st_size, hashlib.file_digest(file, hashlib.blake2b).digest()
    except OSError as error:
        raise UserError(f"cannot read image {path}: {reason(error)}") from error


def same_images(stored: str, now: str) -> bool:
    """Whether a stored `fingerprint` is of the images that have the fingerprint `now`. A line tells where an older
    version stored it, which saw the first 64 KiB of each image only."""
    older = now[:16] + now[32:]  # behind both, what a method adds of its own
    if stored == older != now:
        note("stored by an older version of this program: changes of images are seen in their first 64 KiB only")
    return stored in (now, older)


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
        remedy = f"put yours elsewhere, or remove {folder / MARK} and the files it lists"
        raise UserError(f"real files beside generated ones in {folder}, such as {extra[0]}: {remedy}")
    if missing := sorted(listed - present):
        raise UserError(f"generated data in {folder} is incomplete, {missing[0]} is missing: remove {folder}")
    return True


def made_by(folder: Path) -> str:
    """The command that made the generated data in `folder`, from its mark. UserError where that cannot be read."""
    return _mark_lines(folder)[0]


def _mark_lines(folder: Path) -> list[str]:
    if lines := read_text(folder / MARK).splitlines():
        return lines
    raise UserError(f"{folder / MARK} is empty: if the data in {folder} is generated, remove {folder}")


def _names_below(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in files_below(folder) if path != folder / MARK}


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
            content = temporary / "content"
            content.mkdir()
            yield content
            mark_synthetic(content, command)
            content.rename(folder)
    except OSError as error:
        raise UserError(f"cannot make {folder}: {reason(error)}") from error
