"""What trained models are used for: the scoring of images that nobody has labelled, and ONNX files."""

import hashlib
import importlib
import os
import time
import warnings
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from common.cli import (
    complain,
    note,
    notes,
    number_of,
    out_of_memory,
    printable,
    progress,
    resumable,
    say,
)
from common.files import (
    UserError,
    append_text,
    atomic_write,
    digest,
    first_process,
    locked,
    marked_line,
    plain,
    read_json,
    read_marked_lines,
    require_writable,
    write_json,
)
from common.images import (
    EXTENSIONS,
    image_files,
    image_size,
    is_junk,
    note_left_out,
    note_squeezed,
    resolve_max_value,
)
from common.metrics import say_promise, upsample, verdict_of, write_scores
from common.report import outlined, overlay

RESULTS, PROGRESS = "results.json", "progress.jsonl"
LONGEST_JPEG = 65500  # pixels of a side, the most that the format's library writes
MARKED, MARKED_HOTTEST = 255, 128  # in masks: above the threshold of pixels; the highest hundredth without such pixels
WHITE, YELLOW = (255, 255, 255), (255, 220, 0)  # the outlines of both
IMAGE_ERRORS = (UserError, MemoryError, RuntimeError)  # of one image; RuntimeErrors other than of memory are raised


class Scored(NamedTuple):
    """What a method finds in an image: its score, "good" or "defective" ("" without a threshold), and the anomaly map
    (h, w) float32 at the network's resolution, which `upsample` brings to the image's."""

    score: float
    verdict: str
    map: np.ndarray


def scored(
    images: np.ndarray | Sequence[np.ndarray],
    score: Callable[[list[np.ndarray]], Iterable[tuple[float, np.ndarray]]],
    threshold: Mapping[str, Any] | None,
    floats: tuple[float, float] | None = None,
) -> Scored | list[Scored]:
    """What `score` finds in one image, or in each of several, (H, W, 3) uint8 each, or finite floats in the range
    `floats`, which it gets as float32. ValueError for other arrays."""
    one = isinstance(images, np.ndarray) and images.ndim == 3
    listed = [_checked(image, floats) for image in ([images] if one else images)]
    found = [Scored(float(value), verdict_of(value, threshold), amap) for value, amap in score(listed)]
    return found[0] if one else found


def _checked(image: np.ndarray, floats: tuple[float, float] | None) -> np.ndarray:
    """The image as `scored` promises it, contiguous."""
    image = np.asarray(image)
    if image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise ValueError(f"image of shape {image.shape}: expected (height, width, 3)")
    if image.dtype == np.uint8:
        return np.ascontiguousarray(image)
    if floats is None or image.dtype.kind != "f":
        raise ValueError(f"image of {image.dtype}: expected uint8{'' if floats is None else ' or floats'}")
    image = np.ascontiguousarray(image, np.float32)
    if not np.isfinite(image).all() or image.min() < floats[0] or image.max() > floats[1]:
        raise ValueError(f"image of floats: expected finite ones from {floats[0]:g} to {floats[1]:g}")
    return image


def named_images(images: Sequence[Path]) -> dict[str, Path]:
    """The images of --images by name, the path relative to the folder that holds all. UserError as `image_files`."""
    if len(images) > 1:  # the shell's folder/* names whatever lies there
        unlike = {path for path in images if path.is_file() and path.suffix.lower() not in EXTENSIONS}
        others = [path for path in images if is_junk(path.name) or path in unlike]
        note_left_out(others, "of --images that are hidden, the system's own, or not in a supported image format")
        images = [path for path in images if path not in others]
        if not images:
            raise UserError("--images names no image: expected files such as .png, .jpg or .tif, or their folders")
    paths = [_absolute(source) / path.relative_to(source) for source in images for path in image_files(source)]
    root = _root(images)
    return {path.relative_to(root).as_posix(): path for path in paths}


def _absolute(path: Path) -> Path:
    return path.resolve() if path.is_dir() else path.parent.resolve() / path.name


def _root(images: Sequence[Path]) -> Path:
    return Path(os.path.commonpath([_absolute(path if path.is_dir() else path.parent) for path in images]))


def _source_of(images: Sequence[Path]) -> Path:
    """The one file or folder of --images, or the folder that holds all of several."""
    return images[0].resolve() if len(images) == 1 else _root(images)


def default_output(folder: Path, images: Sequence[Path]) -> Path:
    """folder/<name of the images' folder>; where that has results of other images, with its parent's name before it,
    and else with a digest of its path behind it, too."""
    source = _source_of(images)
    both = f"{source.parent.name}_{source.name}"
    last = folder / f"{both}_{hashlib.sha256(os.fsencode(source)).hexdigest()[:8]}"
    return next((path for path in (folder / source.name, folder / both) if is_of(path, images=source)), last)


def is_of(output: Path, **source: Path) -> bool:
    """Whether `output` holds no results of anything else than `source`, such as images=folder."""
    found = [read_json(output / RESULTS)] if (output / RESULTS).exists() else []
    found += [line for line in read_marked_lines(output / PROGRESS)[:1] if line is not None]
    wanted = plain(source).items()
    return all(isinstance(content, dict) and content.items() >= wanted for content in found)


class Journal:
    """progress.jsonl in the folder `output`, with which an interrupted scoring resumes: a line for what the results
    depend on (`key`: source, model, settings), then one for each part that is scored, whatever the method keeps of it.

        with locked(output):
            journal = Journal(output, key, boards=folder)  # UserError where it holds results of others
            journal.start(rows)                            # those of journal.lines that still hold
            for ...:
                journal.add(row)

    lines: what earlier calls have added, if with the same key, but for damaged lines; before: the file's own key, None
    where it is damaged; all_lines: what was added with that one.
    """

    def __init__(self, output: Path, key: Mapping[str, Any], **source: Path):
        if not is_of(output, **source):
            [(name, place)] = source.items()
            raise UserError(f"{output} holds results of other {name} than {place}: choose another --output")
        self.path, self.key = output / PROGRESS, plain(key)
        self.before, *lines = read_marked_lines(self.path) or [self.key]
        if damaged := lines.count(None):
            note(f"{number_of(damaged, 'damaged line')} in {self.path}: scored again")
        self.all_lines = [line for line in lines if line is not None]

    @property
    def lines(self) -> list[Any]:
        return self.all_lines if self.before == self.key else []

    def start(self, rows: Iterable[Any]) -> None:
        """Write the key and these rows in place of what is there."""
        with atomic_write(self.path, "w") as file:
            file.writelines(map(marked_line, [self.key, *rows]))

    def add(self, *rows: Any) -> None:
        """Add rows, at once and whole."""
        append_text(self.path, "".join(map(marked_line, rows)))


class _Row(NamedTuple):
    """What progress.jsonl keeps of an image."""

    name: str
    digests: list[str]  # of its files
    score: float | None = None
    map: str | None = None  # digest of its map's file, where it has one
    drawn: list[Any] | None = None  # what overlay and mask depend on (`_Pictures.state`), where it has them
    error: str = ""


class _Pictures(NamedTuple):
    """Which images get a map, an overlay and a mask, and what these show."""

    folder: Path
    which: str  # "all", "defective" or "none"
    full: bool  # maps of the images' size, not the network's
    threshold: Mapping[str, Any] | None

    def shows(self, score: float) -> bool:
        return self.which == "all" or (self.which, verdict_of(score, self.threshold)) == ("defective", "defective")

    def state(self, score: float) -> list[Any]:
        threshold = self.threshold or {}
        return [threshold.get("pixel"), threshold.get("usual"), verdict_of(score, self.threshold)]

    def map_file(self, name: str) -> Path:
        return self.folder / "maps" / f"{name}.tiff"

    def overlay_file(self, name: str) -> Path:
        return self.folder / "overlays" / f"{name}.jpg"

    def mask_file(self, name: str) -> Path:
        return self.folder / "masks" / f"{name}.png"

    def stored(self, row: _Row, images: list[np.ndarray]) -> list[Scored]:
        """What was found in an image before."""
        with Image.open(self.map_file(row.name), formats=("TIFF",)) as stored:
            return [Scored(row.score, "", np.array(stored))]

    def entered(self, row: _Row, found: tuple[np.ndarray, Scored] | str) -> _Row:
        """The row with what was found, once its pictures are written."""
        if isinstance(found, str):
            return row._replace(error=found)
        image, (score, _, anomaly_map) = found
        row = row._replace(score=score)
        try:
            if not self.shows(score):
                for path in (self.overlay_file(row.name), self.mask_file(row.name)):
                    path.unlink(missing_ok=True)  # of another threshold
                return row._replace(drawn=None)
            self.draw(row.name, image, anomaly_map, score)
            return row._replace(map=digest(self.map_file(row.name)), drawn=self.state(score))
        except IMAGE_ERRORS as error:
            return row._replace(error=_words(error))

    def draw(self, name: str, image: np.ndarray, anomaly_map: np.ndarray, score: float) -> None:
        """Write the three files. Colours run from the median of good images to the threshold of pixels."""
        limit, usual, verdict = self.state(score)
        upsampled = upsample(anomaly_map, image.shape[:2])
        _save(Image.fromarray(upsampled if self.full else anomaly_map), self.map_file(name), "TIFF")
        low, high = float(np.median(anomaly_map)) if usual is None else usual, float(upsampled.max())
        marks = np.zeros(upsampled.shape, np.uint8)
        if limit is not None:
            marks[upsampled > limit] = MARKED
            high = limit if limit > low else high
        if verdict == "defective" and not marks.any():  # score and map are tested apart: show the reason all the same
            marks[upsampled >= np.quantile(upsampled, 0.99)] = MARKED_HOTTEST
        if limit is None:
            self.mask_file(name).unlink(missing_ok=True)  # of another threshold
        else:
            _save(Image.fromarray(marks), self.mask_file(name), "PNG")
        if image.dtype != np.uint8:
            image = np.rint(image.clip(0, 1) * 255).astype(np.uint8)
        if max(image.shape) > LONGEST_JPEG:
            size = [max(1, round(side * LONGEST_JPEG / max(image.shape))) for side in image.shape[1::-1]]
            image = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))
            marks = np.asarray(Image.fromarray(marks).resize(size, Image.Resampling.NEAREST))
        blended = overlay(image, upsampled, low, max(low, high))
        colour = YELLOW if marks.max() == MARKED_HOTTEST else WHITE
        _save(Image.fromarray(outlined(blended, marks > 0, colour)), self.overlay_file(name), "JPEG")


@dataclass(frozen=True)
class FolderScorer:
    """What `score_folder` scores images with.

    file: the model's; score(images): what is found in each image (H, W, 3), uint8 or float in 0..1; metadata: for
    results.json, of all that the scores depend on beside the model's file, such as the score's name; threshold: as
    `metrics.thresholds` gives it; size: (height, width) that the network takes, and max_value: white in 16-bit images,
    to say which images do not fit them.
    """

    file: Path
    score: Callable[[list[np.ndarray]], Sequence[Scored]]
    metadata: Mapping[str, Any]
    threshold: Mapping[str, Any] | None
    batch_size: int = 1
    size: tuple[int, int] | None = None
    max_value: int | None = None
    hide: bool = False  # the progress bar


def score_folder(
    options: Namespace,
    output: Path,
    scorer: FolderScorer,
    files: Mapping[str, Sequence[Path]],
    read: Callable[[str], np.ndarray],
) -> int:
    """Score images in batches; returns the exit status, 1 where some could not be scored.

    options: those of `add_scoring_options`; files: of each image by its name, a relative path; read(name): the image.
    Writes to `output`, as `options.pictures` says, per image its map (maps/, float32 TIFF at the resolution of --maps),
    its overlay (overlays/, JPEG) and, with a threshold, its mask (masks/, PNG: 255 for pixels above the threshold; in
    an image that is called defective without such pixels, 128 for its highest hundredth); when all are done, scores.csv
    (`write_scores`) and results.json; an earlier call's are removed before. Threads read and draw images beside the
    network. A `Journal` keeps what is scored: the same call goes on where it was interrupted, computes what is new or
    has changed, and judges the rest by the threshold of now. UserError where `output` holds results of other images.
    """
    threshold = with_given(scorer.threshold, options.threshold, options.pixel_threshold)
    for folder in options.images:
        if folder.is_dir() and output.resolve().is_relative_to(folder.resolve()):
            raise UserError(f"--output {output} lies in --images {folder}: its pictures would be scored the next time")
    if options.pictures == "defective" and (threshold is None or threshold["image"] is None):
        raise UserError("--pictures defective needs a threshold to call images defective: give --threshold")
    source = _source_of(options.images)
    key = {"images": source, "model_sha256": digest(scorer.file), **scorer.metadata, "maps": options.maps}
    pictures = _Pictures(output, options.pictures, options.maps == "full", threshold)
    require_writable(output)
    with locked(output), resumable(output), ThreadPoolExecutor(2) as threads:
        journal = Journal(output, key, images=source)
        rows = _rows_before(journal, pictures, files)
        journal.start(rows.values())
        left = [name for name in files if name not in rows]
        if len(left) < len(files):
            say(f"resuming after {len(files) - len(left)} of {number_of(len(files), 'image')}: {output}")
        _note_unfit([paths[0] for paths in files.values()], scorer.size, scorer.max_value)
        work = [(left[i : i + scorer.batch_size], scorer.score) for i in range(0, len(left), scorer.batch_size)]
        before = [rows[name] for name in files if name in rows]
        outdated = [
            row for row in before if row.drawn != (pictures.state(row.score) if pictures.shows(row.score) else None)
        ]
        work += [([row.name], partial(pictures.stored, row)) for row in outdated if row.map]
        told = read_json(output / RESULTS) if (output / RESULTS).exists() else {}
        if work:  # the pictures change: what an earlier call has found is not true of them
            for name in ("scores.csv", RESULTS):
                (output / name).unlink(missing_ok=True)
        drawn: list[Future] = []  # the rows of the batch before, whose pictures are being written
        reduced: list[str] = []  # images whose overlays are
        digests: dict[str, list[str]] = {}

        def read_noted(name: str) -> np.ndarray:
            digests[name] = _digests(files[name])  # before it is read: a change of the file meanwhile is noticed later
            return read(name)

        start = time.monotonic()
        try:
            for names, find, images in progress(
                _read_ahead(threads, read_noted, work), "scoring", len(work), scorer.hide
            ):
                found = _found(names, images, find)
                new = [rows.get(name) or _Row(name, digests[name]) for name in names]
                read_well = [(name, one[0]) for name, one in zip(names, found) if not isinstance(one, str)]
                reduced += [name for name, image in read_well if max(image.shape) > LONGEST_JPEG]
                _enter(journal, rows, drawn)
                drawn += [threads.submit(pictures.entered, *pair) for pair in zip(new, found)]
        finally:  # of an interruption, too: what is computed is kept
            _enter(journal, rows, drawn)
        if reduced and options.pictures != "none":
            note(
                f"reduced {number_of(len(reduced), 'overlay')} to {LONGEST_JPEG} pixels, the most that a JPEG file can "
                f"hold, such as {reduced[0]}"
            )
        if others := [name for name in rows if name not in files]:
            words = number_of(len(others), "image scored before is", "images scored before are")
            note(f"{words} not among those given now and left out, such as {others[0]}")
        done = [rows[name] for name in files]
        verdicts = [verdict_of(row.score, threshold) for row in done]
        images = [(row.name, "", "") for row in done]
        scores = {"score": [row.score for row in done]}
        write_scores(output / "scores.csv", images, scores, threshold, [row.error for row in done])
        counts = {
            "scored": sum(row.score is not None for row in done),
            "defective": verdicts.count("defective"),
            "failed": sum(row.error != "" for row in done),
            # Of those of this call; where there are none, of the last one that had some.
            "seconds_per_image": (time.monotonic() - start) / len(left) if left else told.get("seconds_per_image"),
        }
        summary = {**journal.key, "model": str(scorer.file), "threshold": threshold, "finished": True, **counts}
        write_json(output / RESULTS, {**summary, "notes": notes()})
    defective = f", {counts['defective']} defective" if threshold and threshold["image"] is not None else ""
    pace = f" ({1000 * counts['seconds_per_image']:.0f} ms each)" if left else ""
    say(f"{number_of(counts['scored'], 'image')} scored{pace}{defective}: {output}")
    if counts["failed"] and first_process():
        complain(f"{number_of(counts['failed'], 'image')} could not be scored, or not shown: scores.csv says why")
    return 1 if counts["failed"] else 0


def _read_ahead(
    threads: ThreadPoolExecutor, read: Callable[[str], np.ndarray], work: Sequence[tuple[Sequence[str], Any]]
) -> Iterator[tuple[Sequence[str], Any, list[Future]]]:
    """The work with the images of each batch, which are read while the batch before is computed."""
    ahead = [threads.submit(read, name) for name in work[0][0]] if work else []
    for number, (names, find) in enumerate(work, start=1):
        images, ahead = ahead, [threads.submit(read, name) for name in (work[number][0] if number < len(work) else ())]
        yield names, find, images


def _enter(journal: Journal, rows: dict[str, _Row], drawn: list[Future]) -> None:
    """Move the rows whose pictures are written to the table and the journal."""
    while drawn:
        row = drawn.pop(0).result()
        rows[row.name] = row
        journal.add(row)


def with_given(threshold: dict[str, Any] | None, image: float | None, pixel: float | None) -> dict[str, Any] | None:
    """`threshold` with what --threshold and --pixel_threshold put in its place, which promises no error rate."""
    given = {name: value for name, value in (("image", image), ("pixel", pixel)) if value is not None}
    if threshold and len(given) < 2:
        say_promise(threshold)
    if not given:
        return threshold
    kept = {name: (threshold or {}).get(name) for name in ("image", "pixel", "usual")}
    return {**kept, **given, "given": list(given)}


def _note_unfit(paths: Sequence[Path], size: tuple[int, int] | None, max_value: int | None) -> None:
    if max_value:
        resolve_max_value(paths, max_value)
    readable = []
    for path in paths if size else ():
        with suppress(UserError):  # its row tells
            image_size(path)
            readable.append(path)
    if readable:
        note_squeezed(readable, size, "scores mean little unless the training images were of that shape, too")


def _rows_before(journal: Journal, pictures: _Pictures, files: Mapping[str, Sequence[Path]]) -> dict[str, _Row]:
    """What calls with the same model and settings have found in images, by name, but for images that have changed since
    or could not be scored, and those whose map is missing to draw them."""
    enlarged = journal.key == {**journal.key, "maps": "full"} and journal.before == {**journal.key, "maps": "network"}
    if journal.before != journal.key and not enlarged:
        note(f"the scores in {pictures.folder} are of another model or other settings, or damaged: scoring all again")
        return {}
    names = {plain(name): name for name in files}  # that are no UTF-8 are kept in the form in which they are written
    found = [_Row(names.get(line[0], line[0]), *line[1:]) for line in journal.all_lines]
    rows = {row.name: row for row in found if not row.error}
    if enlarged:  # maps are to be drawn again: [] is the state of no picture
        rows = {name: row._replace(drawn=[]) for name, row in rows.items()}

    def unchanged(row: _Row) -> bool:
        maps = {pictures.map_file(row.name): row.map} if row.map else {}
        return _digests([*files[row.name], *maps]) == [*row.digests, *maps.values()]

    same = {name: row for name, row in rows.items() if name not in files or unchanged(row)}
    if changed := [name for name in rows if name not in same]:
        note(f"{number_of(len(changed), 'image')} changed, or maps of theirs, such as {changed[0]}: scored again")
    return {name: row for name, row in same.items() if row.map or name not in files or not pictures.shows(row.score)}


def _digests(paths: Sequence[Path]) -> list[str]:
    """Of each file; none where one cannot be read."""
    try:
        return [digest(path) for path in paths]
    except UserError:
        return []


def _found(
    names: Sequence[str], images: Sequence[Future], score: Callable[[list[np.ndarray]], Sequence[Scored]]
) -> list[tuple[np.ndarray, Scored] | str]:
    """Each image and what is found in it, or why nothing is."""
    read: dict[str, np.ndarray | str] = {}
    for name, image in zip(names, images):
        try:
            read[name] = image.result()
        except IMAGE_ERRORS as error:
            read[name] = _words(error)
    good = {name: image for name, image in read.items() if not isinstance(image, str)}
    try:
        results = score(list(good.values())) if good else []
    except IMAGE_ERRORS as error:
        results, words = None, _words(error)
    if results is not None:
        return [*{**read, **dict(zip(good, zip(good.values(), results)))}.values()]
    if len(names) == 1:
        return [words]
    return [one for pair in zip(names, images) for one in _found(*([part] for part in pair), score)]


def _words(error: Exception) -> str:
    """What an image's row says of an error; those of the program itself are raised."""
    if not isinstance(error, UserError) and not out_of_memory(error):
        raise error
    return printable(str(error)) if isinstance(error, UserError) else "not enough memory for this image"


def _save(image: Image.Image, path: Path, format: str) -> None:
    with atomic_write(path) as file:
        image.save(file, format)


PACKAGES = ("onnx", "onnxscript", "onnxruntime")  # what the export needs beside the project's own
TOLERANCE = 1e-3  # of the largest value of an output
LARGEST = 2 * 2**30 - 2**24  # bytes of parameters: such an ONNX file has less than 2 GiB in all
SMOOTHED = "bilinear, antialiased (Pillow's resize of 8-bit images)"


@dataclass(frozen=True)
class Exported:
    """A trained network as `export` takes it: one tensor, whose first dimension is free, to a tuple of tensors.

    checkpoint: its file, which stays; output: the ONNX file, unset: the checkpoint's name with .onnx; inputs: at least
    three examples; metadata: method, channels (such as RGB), resizing (how images come to the network's size), and what
    else users of the file need to know.
    """

    checkpoint: Path
    output: Path | None
    network: nn.Module
    inputs: Tensor
    outputs: Sequence[str]
    metadata: Mapping[str, str]
    threshold: Mapping[str, Any] | None = None
    input_name: str = "image"


def examples(channels: int, *sides: int) -> Tensor:
    """Three smooth random images (3, channels, *sides) in steps of 1/255 from 0 to 1; sides: of space, or time and
    space."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(3, channels, *(max(side // 16, 2) for side in sides), generator=generator)
    fine = F.interpolate(coarse, sides, mode="bilinear" if len(sides) == 2 else "trilinear")
    return (fine * 255).round() / 255


@torch.no_grad()
def export(model: Exported) -> None:
    """Write a network as an ONNX file, which runs without PyTorch and without this project, once ONNX Runtime gives the
    same outputs for its example inputs.

    The file's metadata hold `model.metadata`, values (the inputs' range, 0..1), size (height x width), threshold and
    pixel_threshold ("none" where there is none). The old file survives every failure. UserError where a package is
    missing, the network is too large, the file cannot be written, or outputs differ by more than TOLERANCE.
    """
    path, network, inputs = model.output or model.checkpoint.with_suffix(".onnx"), model.network.eval(), model.inputs
    if path.is_dir():
        raise UserError(f"{path} is a folder: give a file, such as --output {path / 'model.onnx'}")
    if path.exists() and path.samefile(model.checkpoint):
        raise UserError(f"{path} is the checkpoint itself: give another file as --output")
    require_writable(path.parent)
    for name in PACKAGES:  # after all that can be wrong without them
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise UserError(f"the export needs the package {name}: pip install {' '.join(PACKAGES)}") from error
    import onnxruntime

    say(f"exporting to {path}, which takes a minute")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter's own affairs
        program = torch.onnx.export(
            network, (inputs[:2],), dynamo=True, verbose=False, input_names=[model.input_name],
            output_names=list(model.outputs), dynamic_shapes=({0: torch.export.Dim("batch")},),
        )  # fmt: skip
    limits = model.threshold or {"image": "none", "pixel": "none"}
    metadata = {**model.metadata, "values": "0..1", "size": " x ".join(map(str, inputs.shape[-2:]))}
    metadata |= {"threshold": str(limits["image"]), "pixel_threshold": str(limits["pixel"])}
    program.model.metadata_props.update(metadata)
    size = sum(value.const_value.nbytes for value in program.model.graph.initializers.values())
    if size > LARGEST:
        raise UserError(f"the network's parameters take {size / 2**30:.1f} GiB, an ONNX file holds less than 2")
    content = program.model_proto.SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    found = session.run(None, {model.input_name: inputs.numpy()})
    difference = largest_difference(found, [value.numpy() for value in network(inputs)])
    if not difference <= TOLERANCE:
        raise UserError(f"ONNX Runtime's outputs are off by {difference:.1e} of the largest value: nothing is written")
    with atomic_write(path) as file:
        file.write(content)
    shapes = [f"{name} (batch, {', '.join(map(str, value.shape[1:]))})" for name, value in zip(model.outputs, found)]
    say(f"{path} ({path.stat().st_size / 2**20:.1f} MiB): {', '.join(shapes)}")
    say(f"ONNX Runtime agrees with PyTorch to {difference:.0e} of the largest value")


def largest_difference(found: Sequence[np.ndarray], wanted: Sequence[np.ndarray]) -> float:
    """The largest difference between outputs, each as a share of the largest value wanted of it; nan where any is."""
    shares = [np.abs(a - b).max() / max(np.abs(b).max(), 1e-12) for a, b in zip(found, wanted, strict=True)]
    return float(np.max(shares))
