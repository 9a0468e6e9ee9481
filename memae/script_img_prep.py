"""Prepare videos: numbered frames of one size in <DataRoot>/<Dataset>/{Train,Normal,Test}/<video>/, and labels.

    python script_img_prep.py --Input UCSDped2 --Dataset UCSD_P2_256                 UCSD's layout: Train, Test, *_gt
    python script_img_prep.py --Train normal_videos --Normal more_normal_videos --Test other_videos --Dataset mine

Each of --Train, --Normal and --Test is a folder of videos or one video. A video is a folder of frames or, where PyAV is
installed, a video file. Labels of the test videos come from masks (UCSD's <video>_gt folders) or from --Labels: a file
of frame intervals, or arrays of 0 and 1. The same command resumes an interrupted run.
"""

import re
import shutil
import sys
import zlib
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from reprlib import repr as short
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common.cli import answer_early, note, notes, number_of, progress, resumable, say, script
from memae.options import PreparationOptions

answer_early(__name__, PreparationOptions().parse)

import numpy as np
from PIL import Image
from scipy.io import savemat

from common import images
from common.files import UserError, atomic_write, locked, plain, read_json, read_text, reason, write_json
from memae.data.matlab import read_mat
from memae.data.video_datasets import file_numbers, frame_size, read_npy, recorded, require_labels

PARTS = ("Train", "Test", "Normal")
VIDEO_FILES = frozenset([
    ".3gp", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".ogv", ".ts", ".webm",
    ".wmv",
])  # fmt: skip
# No playlists, which would name files elsewhere.
CONTAINERS = "3gp,asf,avi,flv,m4v,matroska,mov,mp4,mpeg,mpegts,mpegvideo,ogg,webm"
# Of names such as 2024-01-31_23-59-59.123 or 31.01.2024 235959.
DATES = (
    r"(?<!\d)(?P<Y>(?:19|20)\d\d)\D?(?P<m>0[1-9]|1[0-2])\D?(?P<d>0[1-9]|[12]\d|3[01])",
    r"(?<!\d)(?P<d>0[1-9]|[12]\d|3[01])\D(?P<m>0[1-9]|1[0-2])\D(?P<Y>(?:19|20)\d\d)",
)
CLOCK = r"\D{0,3}(?P<H>[01]\d|2[0-3])\D?(?P<M>[0-5]\d)\D?(?P<S>[0-6]\d)(?:\D?(?P<f>\d+))?"
# Of the JPEG files. At 75, MATLAB's default, the noise of compression is as large as what moves between two frames: on
# Ped2, the AUC of the frame-difference baseline falls from 0.88 to 0.77.
QUALITY = 100


def natural(path: Path) -> list:
    """Sorting key that orders numbers in a name by value."""
    parts = re.split(r"([0-9]+)", path.name)  # every other one is a number; "²" counts as a digit, but is none
    return [(int(part), "") if place % 2 else (-1, part) for place, part in enumerate(parts)]


def _frames_in(folder: Path) -> list[Path]:
    # A link into nothing is a frame that cannot be read, not one to be left out.
    files = [path for path in images.visible(folder) if path.suffix.lower() in images.EXTENSIONS and not path.is_dir()]
    return sorted(files, key=natural)


def _masks_of(video: Path) -> Path:
    """Where the masks of a video lie if it has any."""
    return video.parent / f"{video.name if video.is_dir() else video.stem}_gt"


def find_videos(place: Path) -> dict[str, Path]:
    """Videos by name: `place` itself, or those in it and below, folders of frames and video files (not masks,
    <video>_gt). The name of day1/x.mp4 is day1_x.

    What is left out is said. UserError where there is none, two have one name, or frames lie beside videos.
    """
    if not place.exists():
        raise UserError(f"there is no file or folder {place}")
    if place.is_file():
        if place.suffix.lower() not in VIDEO_FILES:
            raise UserError(f"{place} is no video file ({', '.join(sorted(VIDEO_FILES))})")
        return {plain(place.stem): place}
    files = images.files_below(place)
    frames = {path.parent: path for path in reversed(files) if path.suffix.lower() in images.EXTENSIONS}  # the first
    clips = [path for path in files if path.suffix.lower() in VIDEO_FILES]
    sources = {path: path.relative_to(place).parts for path in [*frames, *clips]}
    masks = [path for path, parts in sources.items() if any(part.endswith("_gt") for part in parts)]
    videos: dict[str, Path] = {}
    for path in sorted(sources.keys() - masks, key=lambda path: [natural(Path(part)) for part in sources[path]]):
        if holder := next((folder for folder in path.parents if folder in frames), None):
            raise UserError(
                f"{holder} holds frames, such as {frames[holder].name}, beside videos, such as "
                f"{path.relative_to(holder)}: a folder is one video or holds videos, put the frames elsewhere"
            )
        path = path if sources[path] else path.resolve()  # whose name, too, is the video's
        # In the form in which it is written where it is no UTF-8.
        name = plain("_".join([*sources.get(path, ())[:-1], path.stem if path.is_file() else path.name]))
        if name in videos:
            raise UserError(f"{videos[name]} and {path} would both become the video {name}: rename one")
        videos[name] = path
    if not videos:
        raise UserError(f"there are no videos in {place}: expected folders of frames, or video files")
    known, tops = {_masks_of(path) for path in videos.values()}, {parts[:1] for parts in sources.values()}
    kinds = images.EXTENSIONS | VIDEO_FILES
    others = [path for path in files if path.suffix.lower() not in kinds and path.name != images.MARK]
    empty = [path for path in images.visible(place) if path.is_dir() and (path.name,) not in tops]
    for words, left in {
        "files that are neither images nor videos in a supported format": sorted(others),
        "folders of masks (their names end in _gt) of no video": [path for path in masks if path not in known],
        "folders without videos": empty,
    }.items():
        if left:
            note(f"left out in {place}: {words} ({len(left)}), such as {left[0].relative_to(place)}")
    return videos


def source_frames(video: Path) -> dict[int, Path] | None:
    """The frame files of a folder by number, in order; None for a video file.

    The number is the last one of a file's name that is not the same in all; or the place, from 1, where names hold
    none, or date and time, by which they are ordered then, which is said. UserError where there is no frame, or a
    number is there twice or left out: a gap would look like a jump of everything in view.
    """
    if video.is_file():
        return None
    files = _frames_in(video)
    if not files:
        raise UserError(f"there are no frames in {video}")
    times = [_time(path.stem) for path in files]
    if all(times):
        files = [path for _, _, path in sorted(zip(times, range(len(files)), files))]
        note(f"the frames in {video} are ordered by date and time, from {files[0].name} to {files[-1].name}")
        return dict(enumerate(files, start=1))
    found = [[int(number) for number in re.findall(r"[0-9]+", path.stem)] for path in files]
    if not any(found):
        return dict(enumerate(files, start=1))
    if without := [path for path, numbers in zip(files, found) if not numbers]:
        raise UserError(
            f"{len(without)} of the {len(files)} frames in {video} have no number, such as {without[0].name}: number "
            "them, or put them elsewhere"
        )
    # In names such as 001_v2.png, 002_v2.png, the last number does not count the frames.
    columns = list(zip(*found)) if len({len(numbers) for numbers in found}) == 1 else [[n[-1] for n in found]]
    counted = next((column for column in reversed(columns) if len({*column}) > 1), columns[-1])
    if len({*counted}) == 1 < len(files) == len({path.stem for path in files}):
        return dict(enumerate(files, start=1))
    steps = np.diff(counted)
    step = max(steps.min(initial=2**62), 0)
    for one, other, difference in zip(files, files[1:], steps):
        if difference == 0:
            raise UserError(f"{one.name} and {other.name} have the same number in {video}: keep one")
        if difference != step and steps.all():
            raise UserError(
                f"the numbers jump from {one.name} to {other.name} in {video}: add the missing frames, or make two "
                "videos of it"
            )
    return dict(zip(counted if counted[-1] < 2**53 else range(1, len(files) + 1), files))


def _time(stem: str) -> tuple[int, ...]:
    """Year to second, and what follows, of a name that holds date (year first or last) and time; else nothing."""
    found = next(filter(None, (re.search(date + CLOCK, stem, re.ASCII) for date in DATES)), None)
    return tuple(int(found[part] or 0) for part in "YmdHMSf") if found else ()


def frame_shape(video: Path) -> tuple[int, int]:
    """Height and width of a video's frames.

    UserError where the video cannot be read, or the frames of a folder have unlike sizes.
    """
    if frames := source_frames(video):
        return frame_size([*frames.values()])
    for _, image in read_frames(video, f"opening {video.name}"):
        if image:
            return image.height, image.width
    raise UserError(f"{video} holds no frame that can be read")


def read_frames(video: Path, title: str, max_value: int = 65535) -> Iterator[tuple[int, Image.Image | None]]:
    """Numbers and RGB images of a folder's or video file's frames, with progress; None for a frame lost to damage.

    max_value: see `read_image`. What is lost of a video file is said. UserError where one cannot be read, or PyAV is
    missing.
    """
    if frames := source_frames(video):
        yield from ((number, images.read_image(path, max_value)) for number, path in progress(frames.items(), title))
        return
    try:
        import av
    except ImportError:
        av = None
    if not hasattr(getattr(av, "VideoFrame", None), "rotation"):
        raise UserError(
            f"to read {video}, install PyAV (pip install av), version 14 or later, or extract its frames into a folder"
        )
    count, lost = 0, []
    try:
        with av.open(str(video), options={"format_whitelist": CONTAINERS}) as container:
            if not container.streams.video:
                raise UserError(f"{video} holds no video")
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            announced = stream.frames
            for packet in progress(container.demux(stream), title, announced or None):
                try:
                    decoded = packet.decode()
                except av.error.InvalidDataError:
                    decoded = [None]
                for frame in decoded:
                    count += 1
                    if frame is None or frame.is_corrupt:
                        lost.append(count)
                        yield count, None
                    else:
                        yield count, frame.to_image().rotate(frame.rotation, expand=True)
    except av.error.FFmpegError as error:
        if not count:
            raise UserError(f"cannot read video {video}: {reason(error)}") from error
        note(f"{video} cannot be read beyond frame {count}: {reason(error)}")
    if lost:
        note(f"{number_of(len(lost), 'damaged frame')} of {video} left out, the first of them frame {lost[0]}")
    if count < announced:
        note(f"{video} announces {announced} frames, only {count - len(lost)} can be read: it seems to be cut off")


def prepare_video(video: Path, output: Path, size: int, channels: int, max_value: int) -> list[int]:
    """Write the frames of `video` to the new folder `output` as 001.jpg and so on, of size x size pixels and 1 or 3
    channels; return their numbers in the source.

    max_value: see `read_image`. Resizing is bicubic with antialiasing. UserError for frames that cannot be read or have
    unlike sizes.
    """
    output.mkdir(parents=True)
    numbers, like = [], None
    for number, image in read_frames(video, video.name, max_value):
        if image is None:
            continue
        like = like or image.size
        if image.size != like:
            raise UserError(
                f"frame {number} of {video} is {image.width} x {image.height} pixels, others {like[0]} x {like[1]}: "
                "make a video of the frames of each size"
            )
        numbers.append(number)
        image = image.convert("L") if channels == 1 else image
        image.resize((size, size), Image.Resampling.BICUBIC).save(output / f"{len(numbers):03d}.jpg", quality=QUALITY)
    if not numbers:
        raise UserError(f"{video} holds no frames")
    return numbers


def labels_from_masks(folder: Path) -> np.ndarray:
    """Whether each frame's mask marks any pixel, bool. UserError where masks are unreadable."""
    masks = source_frames(folder) or {}
    return np.array([images.read_mask(path, images.image_size(path)).any() for path in masks.values()])


def read_intervals(path: Path, videos: list[str]) -> dict[str, list[tuple[int, int]]]:
    """Abnormal intervals (first and last frame) of each video from a text file in one of two forms.

    The published .m files': one line `...gt_frame = [61:180, 200:210];` per test video, in their order; or lines
    `Test001: 61-180, 200-210` by name, videos left out having none. UserError names what is wrong.
    """
    lines = [line for line in (re.split("[%#]", line)[0].strip() for line in read_text(path).splitlines()) if line]
    ordered = [line for line in lines if re.search(r"gt_frame\s*=", line)]
    if ordered:
        if len(ordered) < len(videos):
            raise UserError(f"{path} has intervals for {len(ordered)} videos, there are {len(videos)} test videos")
        ordered = _lines_of(ordered, videos, path)
        pairs = [(video, line.split("=", 1)[1].strip(" ;[]")) for video, line in zip(videos, ordered)]
    else:
        pairs = [(name.strip().replace("/", "_"), text) for name, _, text in (line.partition(":") for line in lines)]
    intervals: dict[str, list[tuple[int, int]]] = {}
    known, others = set(videos), [name for name, _ in pairs if name not in videos]
    if len(others) == len(pairs) and pairs:
        raise UserError(f"{path}: there is no test video {short(others[0])} (there are {', '.join(videos[:5])} ...)")
    if others:
        note(f"{path} has labels of {number_of(len(others), 'video')} not among those to test, such as {others[0]}")
    for video, text in pairs:
        if video not in known:
            continue
        found = intervals.setdefault(video, [])
        text = "-".join(part.strip() for part in text.replace(":", "-").split("-"))
        for part in filter(None, re.split(r"[,;\s]+", text)):
            match = re.fullmatch(r"([0-9]{1,18})(?:-([0-9]{1,18}))?", part)
            first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
            if first > last:
                raise UserError(f"{path}: {short(part)} of {video} is no interval of frames, such as 61:180")
            found.append((first, last))
    return intervals


def _lines_of(lines: list[str], videos: list[str], path: Path) -> list[str]:
    """Of a published file's lines, one for each test video, those of `videos`: all, or, where some videos are missing,
    those of the numbers in the videos' names (Test003: the third line). UserError where names have no such numbers."""
    if len(lines) == len(videos):
        return lines
    numbers = [int((re.findall(r"[0-9]+", name) or ["0"])[-1]) for name in videos]
    if len(set(numbers)) < len(numbers) or not all(1 <= number <= len(lines) for number in numbers):
        raise UserError(f"{path} has intervals for {len(lines)} videos, there are {len(videos)} test videos")
    note(f"{path} has labels of {len(lines)} videos, {len(videos)} are tested: the lines {numbers} are theirs")
    return [lines[number - 1] for number in numbers]


def labels_from_intervals(intervals: list[tuple[int, int]], numbers: Sequence[int], video: str) -> np.ndarray:
    """Labels, bool, of the frames with these increasing numbers: whether they lie in an interval.

    UserError where intervals reach beyond the video.
    """
    numbers = np.asarray(numbers)
    labels = np.zeros(len(numbers), bool)
    for first, last in intervals:
        if first < numbers[0] or last > numbers[-1]:
            reach = f"reach to frame {last}" if last > numbers[-1] else f"begin at frame {first}"
            raise UserError(f"the labels of {video} {reach}, its frames have the numbers {numbers[0]} to {numbers[-1]}")
        start, end = np.searchsorted(numbers, first), np.searchsorted(numbers, last, "right")
        if start == end:
            near = f"the next ones have the numbers {numbers[start - 1]} and {numbers[start]}"
            raise UserError(f"the labels of {video} name frames {first} to {last}, of which there are none: {near}")
        labels[start:end] = True
    return labels


def read_label_arrays(path: Path, frames: dict[str, int]) -> dict[str, np.ndarray]:
    """Labels, bool, of videos from arrays of 0 and 1, one for each frame. frames: how many each video has.

    path: a folder of <video>.npy or <video>.mat (variable l); a .npy file of all videos, one after another; or a .mat
    file with a variable for each video, or l of the only one. UserError where an array cannot be read.
    """
    if path.is_dir():
        files = {path / f"{name}{suffix}": name for name in frames for suffix in (".mat", ".npy")}
        arrays = {
            name: read_npy(file) if file.suffix == ".npy" else read_mat(file, "l")[0]
            for file, name in files.items()
            if file.is_file()
        }
        if left := [file for file in images.visible(path) if file not in files]:
            note(f"{number_of(len(left), 'file')} of no test video left out in {path}, such as {left[0].name}")
    elif path.suffix.lower() == ".mat":
        arrays = dict(zip(frames, read_mat(path, *(frames if len(frames) > 1 else "l"))))
    else:
        values, ends = read_npy(path).ravel(), np.cumsum([*frames.values()])
        if len(values) != ends[-1]:
            raise UserError(f"{path} has {len(values)} labels, the test videos have {ends[-1]} frames")
        arrays = dict(zip(frames, np.split(values, ends[:-1])))
    if not arrays:
        raise UserError(f"{path} holds no labels of the test videos, such as {next(iter(frames))}.npy")
    return {name: require_labels(values, path) for name, values in arrays.items()}


def read_labels(path: Path | None, videos: Mapping[str, Path]) -> dict[str, np.ndarray]:
    """Labels, bool, of those frames of the test videos that can be read, as far as there are any; path: --Labels."""
    masks = {name: folder for name, video in videos.items() if (folder := _masks_of(video)).is_dir()}
    frames = {name: _readable(video) for name, video in videos.items() if path or name in masks}
    if path is None:
        labels = {name: labels_from_masks(folder) for name, folder in masks.items()}
    elif path.is_dir() or path.suffix.lower() in (".npy", ".mat"):
        labels = read_label_arrays(path, {name: len(numbers) for name, numbers in frames.items()})
    else:
        intervals = read_intervals(path, [*videos])
        labels = {name: labels_from_intervals(intervals.get(name, []), [*frames[name]], name) for name in videos}
    for name, values in labels.items():
        if len(values) != (count := len(frames[name])):
            what = f"{path} has {len(values)} labels" if path else f"{masks[name]} has {len(values)} masks"
            raise UserError(f"{what} for the {count} frames of {name}")
    if labels and (without := [name for name in videos if name not in labels]):
        note(f"{len(without)} of {len(videos)} test videos have no labels, such as {without[0]}")
    if first := next((name for name, values in labels.items() if values.any()), None):
        number = [*frames[first]][int(labels[first].argmax())]
        file = (source_frames(videos[first]) or {}).get(number)
        say(f"labels: the first abnormal frame of {first} is number {number}" + (f", {file.name}" if file else ""))
    return {name: values[[*frames[name].values()]] for name, values in labels.items()}


def _readable(video: Path) -> dict[int, bool]:
    """Whether each frame, by its number, can be read; of a video file, what it announces need not be true."""
    if frames := source_frames(video):
        return dict.fromkeys(frames, True)
    return {number: image is not None for number, image in read_frames(video, f"counting {video.name}")}


def _files(video: Path) -> list[Path]:
    return [*(source_frames(video) or {0: video}).values()]


def prepare(opt: Namespace) -> Path:
    """Everything this script does; returns <DataRoot>/<Dataset>. opt: of `PreparationOptions`."""
    root, places = opt.DataRoot / opt.Dataset, {"Train": opt.Train, "Test": opt.Test, "Normal": opt.Normal}
    parts = {part: find_videos(place) if place else {} for part, place in places.items()}
    sources = {f"{part}/{name}": video for part, videos in parts.items() for name, video in videos.items()}
    # What can be refused is refused before anything is written.
    _note_unlike_shapes({video: frame_shape(video) for video in sources.values()})
    labels = read_labels(opt.Labels, parts["Test"])
    train, *others = ([path for video in videos.values() for path in _files(video)] for videos in parts.values())
    others = [path for files in others for path in files]
    max_value = images.resolve_max_value(train or others, opt.max_value, train and others)
    resolved = {name: place and place.resolve() for name, place in {**places, "Labels": opt.Labels}.items()}
    settings = {"Size": str(opt.Size), "ImgChnNum": str(opt.ImgChnNum), **{k: str(v) for k, v in resolved.items()}}
    settings = {name: value for name, value in settings.items() if (name, value) != ("Normal", "None")}  # as before it
    settings |= {"max_value": max_value, "same_videos": resolved["Train"] == resolved["Test"]}
    settings["labels"] = {name: zlib.crc32(values.tobytes()) for name, values in labels.items()}
    settings["sources"] = {key: images.fingerprint(_files(video), video.parent) for key, video in sources.items()}
    if settings["same_videos"]:
        note("--Train and --Test are the same videos: what is scored has been trained on, the scores mean little")
    folders = [folder for place in places.values() if place for folder in (place.resolve(), *place.resolve().parents)]
    generated = any((folder / images.MARK).is_file() for folder in folders)
    command = f"python memae/script_img_prep.py --Dataset {opt.Dataset}, from generated videos"
    with locked(root):
        record = _begin(root, plain(settings))
        for key, video in sources.items():
            output, name = root / key, key.partition("/")[2]
            making = output.with_name(f".making-{name}")
            if not output.is_dir():
                numbers = prepare_video(video, making, opt.Size, opt.ImgChnNum, max_value)
                # Record and mark come with the first video: a preparation that made none is in nobody's way.
                if generated and not record["videos"]:
                    images.mark_synthetic(root, command)
                record["videos"][key] = recorded(numbers)
                _save(root, record)
                making.rename(output)
            count = len(file_numbers(output, len(_frames_in(output))))
            if key.startswith("Test/") and name in labels:
                if len(labels[name]) != count:
                    raise UserError(f"{name} has {count} frames but labels for {len(labels[name])}")
                with atomic_write(root / "Test_gt" / f"{name}.mat") as file:
                    savemat(file, {"l": labels[name][None].astype(np.float64)})
        _save(root, record)
        if generated:
            images.mark_synthetic(root, command)
    return root


def _save(root: Path, record: dict[str, Any]) -> None:
    record["notes"] = [*dict.fromkeys([*map(str, record["notes"]), *notes()])]
    write_json(root / "prepared.json", record)


def _begin(root: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """The record of what `root` holds: `settings`, and "videos" and "notes" of the runs before this one.

    Removes what a killed run was making. UserError where `root` holds something else.
    """
    path, parts = root / "prepared.json", [root / part for part in PARTS if (root / part).is_dir()]
    begun = [folder for part in parts for folder in images.visible(part)]
    others = [entry for entry in images.visible(root) if entry.name not in (*PARTS, images.MARK)]
    if (begun or others) and not path.exists():
        raise UserError(f"{root} already holds files that this script did not make: use another --Dataset")
    record = read_json(path) if begun else {**settings, "videos": {}, "notes": []}
    record = record if isinstance(record, dict) else {}
    if other := next((name for name in settings if record.get(name) != settings[name]), None):
        raise UserError(
            f"{root} was prepared from other videos or settings ({path}: {other} differs): use another --Dataset, or "
            f"remove {root} to prepare it again"
        )
    if not isinstance(record.get("videos"), dict) or not isinstance(record.get("notes"), list):
        raise UserError(f"{path} is damaged: remove {root} to prepare it again")
    for folder in [folder for part in parts for folder in part.glob(".making-*")]:
        shutil.rmtree(folder)
    return record


def _note_unlike_shapes(shapes: Mapping[Path, tuple[int, int]]) -> None:
    first, (height, width) = next(iter(shapes.items()))
    for video, (h, w) in shapes.items():
        if abs(h * width / (w * height) - 1) > 0.02:
            sizes = f"{video} is {w} x {h} pixels, {first} {width} x {height}"
            note(f"{sizes}: both become squares, so that things do not look alike in them")
            return


@script
def main(argv: list[str] | None = None) -> None:
    """Prepare the videos."""
    opt = PreparationOptions().parse(argv)
    images.set_max_pixels(opt.max_pixels)
    with resumable(opt.DataRoot / opt.Dataset):
        root = prepare(opt)
    parts = ("Train", "Test", "Test_gt", "Normal")
    train, test, labelled, normal = (
        len(images.visible(root / part)) if (root / part).is_dir() else 0 for part in parts
    )
    held_out = f", {number_of(normal, 'normal one')} for the alarm" if normal else ""
    say(f"{root}: {train} training videos, {test} test videos, {labelled} with labels{held_out}")


if __name__ == "__main__":
    sys.exit(main())
