"""Prepare videos: frames of one size, numbered from 001, in <DataRoot>/<Dataset>/{Train,Test}/<video>/, and labels.

    python script_img_prep.py --Input UCSDped2 --Dataset UCSD_P2_256                 UCSD's layout: Train, Test, *_gt
    python script_img_prep.py --Train normal_videos --Test other_videos --Dataset mine

Each of --Train and --Test is a folder of videos or one video. A video is a folder of frames or, where PyAV is
installed, a video file. Labels of the test videos come from masks (UCSD's <video>_gt folders) or from --Labels, a file
of frame intervals. A run that was interrupted goes on where it stopped.
"""

import re
import shutil
import sys
import zlib
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from PIL import Image
from scipy.io import savemat

from common.files import UserError, atomic_write, read_json, reason, regular, write_json
from common.images import EXTENSIONS, MARK, fingerprint, mark_synthetic, read_image
from common.runtime import ArgumentParser, goes_on, progress, say, script
from memae.data.video_datasets import frame_size
from memae.options.base_options import HERE

VIDEO_FILES = frozenset([
    ".3gp", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".ogv", ".ts", ".webm",
    ".wmv",
])  # fmt: skip
# No playlists, which would name files elsewhere.
CONTAINERS = "3gp,asf,avi,flv,m4v,matroska,mov,mp4,mpeg,mpegts,mpegvideo,ogg,webm"
MAX_SIZE = 4096
# Of the JPEG files. At 75, MATLAB's default, the noise of compression is as large as what moves between two frames: on
# Ped2, the AUC of the frame-difference baseline falls from 0.88 to 0.77.
QUALITY = 100


def natural(path: Path) -> list:
    """Sorting key that orders numbers in a name by value."""
    parts = re.split(r"([0-9]+)", path.name)  # every other one is a number; "²" counts as a digit, but is none
    return [(int(part), "") if place % 2 else (-1, part) for place, part in enumerate(parts)]


def _visible(folder: Path) -> list[Path]:
    return sorted((path for path in folder.iterdir() if not path.name.startswith(".")), key=natural)


def _frames_in(folder: Path) -> list[Path]:
    # A link into nothing is a frame that cannot be read, not one to be left out.
    return [path for path in _visible(folder) if path.suffix.lower() in EXTENSIONS and not path.is_dir()]


def find_videos(place: Path) -> dict[str, Path]:
    """Videos by name: `place` itself, or those in it, folders of frames and video files (not masks, <video>_gt).

    UserError where there is none, two have one name, or frames lie beside videos.
    """
    if not place.exists():
        raise UserError(f"there is no file or folder {place}")
    if place.is_file():
        if place.suffix.lower() not in VIDEO_FILES:
            raise UserError(f"{place} is no video file ({', '.join(sorted(VIDEO_FILES))})")
        return {place.stem: place}
    frames, videos, masks = _frames_in(place), {}, []
    for path in _visible(place):
        folder = path.is_dir() and (not frames or _frames_in(path))  # beside frames, folders of other things may lie
        if not folder and not (path.is_file() and path.suffix.lower() in VIDEO_FILES):
            continue
        name = path.name if folder else path.stem
        if frames:
            raise UserError(
                f"{place} holds frames, such as {frames[0].name}, beside videos, such as {path.name}: a folder is one "
                "video or holds videos, put the frames elsewhere"
            )
        if folder and name.endswith("_gt"):
            masks.append(path)
            continue
        if name in videos:
            raise UserError(f"{videos[name]} and {path} would both become the video {name}: rename one")
        videos[name] = path
    if frames:
        return {place.resolve().name: place}
    for path in masks:
        if path.name.removesuffix("_gt") not in videos:
            say(f"{path} is left out: folders ending in _gt hold masks, and there is no video of theirs")
    if not videos:
        raise UserError(f"there are no videos in {place}: expected folders of frames, or video files")
    return videos


def source_frames(video: Path) -> list[Path] | None:
    """The frame files of a folder in order of their numbers, None for a video file.

    UserError where there is none, or a number is there twice or left out: a gap would look like a jump of everything
    in view.
    """
    if video.is_file():
        return None
    files = _frames_in(video)
    if not files:
        raise UserError(f"there are no frames in {video}")
    numbers = [re.findall(r"[0-9]+", path.stem) for path in files]
    steps = np.diff([int(found[-1]) for found in numbers]) if all(numbers) else np.empty(0)
    # In names such as 001_v2.png, 002_v2.png, the last number does not count the frames.
    counted = steps.any() or len({path.stem for path in files}) < len(files)
    if counted and not steps.all():
        i = int(np.flatnonzero(steps == 0)[0])
        raise UserError(f"{files[i].name} and {files[i + 1].name} have the same number in {video}: keep one")
    if counted and (steps != steps.min()).any():
        i = int(np.flatnonzero(steps != steps.min())[0])
        raise UserError(
            f"the numbers jump from {files[i].name} to {files[i + 1].name} in {video}: add the missing frames, or make "
            "two videos of it"
        )
    return files


@contextmanager
def _opened(video: Path) -> Iterator[tuple[Any, Any]]:
    """PyAV's container and stream of a video file. UserError where PyAV is missing or cannot read it."""
    try:
        import av
    except ImportError as error:
        raise UserError(
            f"to read {video}, install PyAV (pip install av), or extract its frames into a folder"
        ) from error
    try:
        with av.open(str(video), options={"format_whitelist": CONTAINERS}) as container:
            if not container.streams.video:
                raise UserError(f"{video} holds no video")
            yield container, container.streams.video[0]
    except av.error.FFmpegError as error:
        raise UserError(f"cannot read video {video}: {reason(error)}") from error


def frame_shape(video: Path) -> tuple[int, int]:
    """Height and width of the frames, as far as they can be told without decoding.

    UserError where the video cannot be read, or the frames of a folder have unlike sizes.
    """
    files = source_frames(video)
    if files is not None:
        return frame_size(files)
    with _opened(video) as (_, stream):
        return stream.height, stream.width


def read_frames(video: Path, title: str) -> Iterator[Image.Image]:
    """The frames of a folder or a video file as RGB images, with progress. UserError where one cannot be read.

    A video file that announces more frames than it holds is named.
    """
    files = source_frames(video)
    if files is not None:
        yield from (read_image(path) for path in progress(files, title))
        return
    with _opened(video) as (container, stream):
        stream.thread_type = "AUTO"
        total, count = stream.frames or None, 0
        for frame in progress(container.decode(stream), title, total):
            count += 1
            yield frame.to_image()
        if total and count < total:
            say(f"{video} announces {total} frames, only {count} can be read: it seems to be cut off")


def prepare_video(
    video: Path,
    output: Path,
    size: int,
    channels: int,
    part: tuple[int, int | None] = (1, None),
    before: Callable[[], None] = lambda: None,
) -> int:
    """Write the frames of `video` as `output`/001.jpg and so on, all or none of them; return their number.

    size: their width and height in pixels, bicubic with antialiasing; channels: 1 grey, 3 colour; part: first and last
    frame to take, from 1, inclusive; before: called when all are made, before they get their place. Frames that are
    there already are counted, not made again. UserError for frames that cannot be read or have unlike sizes.
    """
    if output.is_dir():
        return len(_frames_in(output))
    making = output.parent / f".making-{output.name}"
    shutil.rmtree(making, ignore_errors=True)
    making.mkdir(parents=True)
    count, like = 0, None
    first, last = part
    for number, image in enumerate(read_frames(video, output.name), start=1):
        like = like or image.size
        if image.size != like:
            raise UserError(
                f"frame {number} of {video} is {image.width} x {image.height} pixels, frame 1 {like[0]} x {like[1]}: "
                "all frames of a video have one size"
            )
        if number < first or (last is not None and number > last):
            continue
        count += 1
        image = image.convert("L") if channels == 1 else image
        image = image.resize((size, size), Image.Resampling.BICUBIC)
        image.save(making / f"{count:03d}.jpg", quality=QUALITY)
    if not count:
        raise UserError(f"{video} holds no frames")
    before()
    making.rename(output)
    return count


def labels_from_masks(folder: Path) -> np.ndarray:
    """1 for each frame whose mask, scaled to 0..1, sums to at least 1, else 0. UserError where masks are unreadable."""
    masks = source_frames(folder)
    return np.array([np.asarray(read_image(path).convert("L")).sum() >= 255 for path in masks], np.uint8)


def read_intervals(path: Path, videos: list[str]) -> dict[str, list[tuple[int, int]]]:
    """Abnormal intervals (first and last frame, from 1) of each video from a text file in one of two forms.

    The published .m files': one line `...gt_frame = [61:180, 200:210];` per test video, in their order; or lines
    `Test001: 61-180, 200-210` by name, videos left out having none. UserError names what is wrong.
    """
    try:
        lines = regular(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the labels {path}: {error}") from error
    lines = [line for line in (re.split("[%#]", line)[0].strip() for line in lines) if line]
    ordered = [line for line in lines if re.search(r"gt_frame\s*=", line)]
    intervals: dict[str, list[tuple[int, int]]] = {}
    if ordered:
        if len(ordered) != len(videos):
            raise UserError(f"{path} has intervals for {len(ordered)} videos, there are {len(videos)} test videos")
        pairs = [(video, line.split("=", 1)[1].strip(" ;[]")) for video, line in zip(videos, ordered)]
    else:
        pairs = [tuple(part.strip() for part in line.partition(":")[::2]) for line in lines]
    for video, text in pairs:
        if video not in videos:
            raise UserError(f"{path}: there is no test video {video!r} (there are {', '.join(videos[:5])} ...)")
        intervals[video] = []
        for part in filter(None, re.split(r"[,;\s]+", re.sub(r"\s*([:-])\s*", r"\1", text))):
            match = re.fullmatch(r"([0-9]{1,18})(?:[:-]([0-9]{1,18}))?", part)
            first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
            if not 1 <= first <= last:
                raise UserError(f"{path}: {part!r} of {video} is no interval of frames, such as 61:180")
            intervals[video].append((first, last))
    return intervals


def labels_from_intervals(intervals: list[tuple[int, int]], frames: int, video: str) -> np.ndarray:
    """Labels (frames,) with 1 in the intervals. UserError where they reach beyond the video."""
    labels = np.zeros(frames, np.uint8)
    for first, last in intervals:
        if last > frames:
            raise UserError(f"the labels of {video} reach to frame {last}, the video has {frames} frames")
        labels[first - 1 : last] = 1
    return labels


def save_labels(path: Path, labels: np.ndarray) -> None:
    """Write <video>.mat with l (1 x frames)."""
    with atomic_write(path) as file:
        savemat(file, {"l": labels.reshape(1, -1).astype(np.float64)})


def prepare(opt: Namespace) -> Path:
    """Everything this script does; returns <DataRoot>/<Dataset>. opt: see `build_parser`."""
    train, test = opt.Train, opt.Test
    if opt.Input:
        if train or test:
            raise UserError("give --Input, or --Train and --Test, not both")
        train, test = opt.Input / "Train", opt.Input / "Test"
    if not train and not test:
        raise UserError("nothing to prepare: give --Input, or --Train and --Test")
    root = opt.DataRoot / opt.Dataset
    train_videos = find_videos(train) if train else {}
    test_videos = find_videos(test) if test else {}
    # What can be refused is refused before anything is written.
    _say_unlike_shapes({video: frame_shape(video) for video in (*train_videos.values(), *test_videos.values())})
    labels = _labels(opt, test, test_videos)
    openings = {name: _opening(name, labels, train_videos) for name in opt.Openings}  # normal frames at the start

    settings = {name: str(getattr(opt, name)) for name in ("Size", "ImgChnNum", "Openings")}
    places = {"Train": train, "Test": test, "Labels": opt.Labels}
    settings |= {name: str(place and place.resolve()) for name, place in places.items()}
    settings["same_videos"] = settings["Train"] == settings["Test"]
    settings["labels"] = {name: zlib.crc32(values.tobytes()) for name, values in labels.items()}
    settings["sources"] = _fingerprints("Train", train_videos) | _fingerprints("Test", test_videos)
    if settings["same_videos"]:
        say("--Train and --Test are the same videos: what is scored has been trained on, the scores mean little")
    record = root / "prepared.json"
    begun = [path for part in ("Train", "Test") if (root / part).is_dir() for path in _visible(root / part)]
    others = [path for path in _visible(root) if path.name not in ("Train", "Test", MARK)] if root.is_dir() else []
    if (begun or others) and not record.exists():
        raise UserError(f"{root} already holds files that this script did not make: use another --Dataset")
    if begun and (other := _differing(read_json(record), settings)):
        raise UserError(
            f"{root} was prepared from other videos or settings ({record}: {other} differs): use another --Dataset, or "
            f"remove {root} to prepare it anew"
        )
    made_by = next((mark for place in (train, test) if place for mark in _marks(place)), None)
    command = f"python memae/script_img_prep.py --Dataset {opt.Dataset}, from generated videos"

    def before() -> None:
        """The record and the mark come with the first video: a preparation that made none is in nobody's way."""
        if not record.exists() or read_json(record) != settings:
            if made_by:
                mark_synthetic(root, command)
            write_json(record, settings)

    for name, video in train_videos.items():
        prepare_video(video, root / "Train" / name, opt.Size, opt.ImgChnNum, before=before)
    for name, video in test_videos.items():
        opening = openings.get(name, 0)
        if opening:
            prepare_video(video, root / "Train" / name, opt.Size, opt.ImgChnNum, (1, opening), before)
        count = prepare_video(video, root / "Test" / name, opt.Size, opt.ImgChnNum, (opening + 1, None), before)
        if name in labels:
            if len(labels[name]) - opening != count:
                raise UserError(f"{name} has {count} frames but labels for {len(labels[name]) - opening}")
            save_labels(root / "Test_gt" / f"{name}.mat", labels[name][opening:])
    if made_by:
        mark_synthetic(root, command)
    return root


def _say_unlike_shapes(shapes: dict[Path, tuple[int, int]]) -> None:
    first, (height, width) = next(iter(shapes.items()))
    for video, (h, w) in shapes.items():
        if abs(h * width / (w * height) - 1) > 0.02:
            say(f"{video} is {w} x {h} pixels, {first} {width} x {height}: both become squares, things look unlike")
            return


def _fingerprints(part: str, videos: dict[str, Path]) -> dict[str, str]:
    """Of each source: tells whether it has changed."""
    return {
        f"{part}/{name}": fingerprint(source_frames(video) or [video], video.parent) for name, video in videos.items()
    }


def _differing(before: Any, settings: dict[str, Any]) -> str | None:
    """Which entry of a preparation's record is another than `settings`'."""
    before = before if isinstance(before, dict) else {}
    for name in settings:
        if before.get(name) != settings[name]:
            return name
    return None


def _opening(name: str, labels: dict[str, np.ndarray], train_videos: dict[str, Path]) -> int:
    """How many frames of a test video come before the first abnormal one."""
    if name not in labels:
        raise UserError(f"--Openings {name}: there is no labelled test video of that name")
    if name in train_videos:
        raise UserError(f"--Openings {name}: --Train has a video of that name")
    abnormal = np.flatnonzero(labels[name])
    if not len(abnormal) or not abnormal[0]:
        raise UserError(f"--Openings {name}: the video has no normal opening before an abnormal frame")
    return int(abnormal[0])


def _marks(place: Path) -> list[Path]:
    """The marks of generated data in `place` or a folder above it."""
    place = place.resolve()
    return [folder / MARK for folder in (place, *place.parents) if (folder / MARK).is_file()]


def _labels(opt: Namespace, test: Path | None, videos: dict[str, Path]) -> dict[str, np.ndarray]:
    """Labels of the test videos as far as there are any."""
    if opt.Labels:
        intervals = read_intervals(opt.Labels, list(videos))
        return {
            name: labels_from_intervals(intervals.get(name, []), _count(video), name) for name, video in videos.items()
        }
    masks = {name: test / f"{name}_gt" for name in videos if test.is_dir() and (test / f"{name}_gt").is_dir()}
    labels = {}
    for name, folder in masks.items():
        labels[name] = labels_from_masks(folder)
        if len(labels[name]) != (count := _count(videos[name])):
            raise UserError(f"{folder} has {len(labels[name])} masks for the {count} frames of {name}")
    if masks and len(masks) < len(videos):
        missing = sorted(videos.keys() - masks.keys())
        say(f"no masks for {', '.join(missing)}: without labels")
    return labels


def _count(video: Path) -> int:
    files = source_frames(video)
    # What a video file announces need not be true.
    return len(files) if files is not None else sum(1 for _ in read_frames(video, f"counting {video.name}"))


def build_parser() -> ArgumentParser:
    """The options of this script."""
    parser = ArgumentParser(
        description="Prepare videos for MemAE: frames of one size, numbered, and labels.",
        example="python memae/script_img_prep.py --Train my_normal_videos --Test my_videos --Dataset mine",
    )
    add = parser.add_argument_group("videos").add_argument
    add("--Input", type=Path, help="folder with Train and Test in UCSD's layout; unset: --Train and --Test say")
    add("--Train", type=Path, help="normal videos to learn from: a folder of videos, or one video; unset: none")
    add("--Test", type=Path, help="videos to score; unset: none")
    add("--Labels", type=Path, help="file of the test videos' abnormal frames, such as data/UCSDped2.m; unset: none")
    add("--Openings", nargs="+", default=[], help="test videos to train on up to the first abnormal frame; unset: none")

    add = parser.add_argument_group("prepared data").add_argument
    add("--DataRoot", type=Path, default=HERE / "dataset", help="folder of the prepared data sets")
    add("--Dataset", default="UCSD_P2_256", help="name of the folder to make in DataRoot")
    add("--Size", type=int, default=256, help="width and height of the frames, a multiple of 16 (of 32 for backbones)")
    add("--ImgChnNum", type=int, choices=(1, 3), default=1, help="1: grey, 3: colour")
    return parser


@script
def main(argv: list[str] | None = None) -> None:
    """Prepare the videos."""
    opt = build_parser().parse_args(argv)
    if not 16 <= opt.Size <= MAX_SIZE or opt.Size % 16:
        raise UserError(f"--Size {opt.Size}: expected a multiple of 16 from 16 to {MAX_SIZE}")
    if not opt.Dataset or opt.Dataset.startswith(".") or set(opt.Dataset) & set("/\\\0"):
        raise UserError(f"--Dataset {opt.Dataset}: expected a plain name without slashes")
    with goes_on(opt.DataRoot / opt.Dataset):
        root = prepare(opt)
    counts = {
        part: len(_visible(root / part)) if (root / part).is_dir() else 0 for part in ("Train", "Test", "Test_gt")
    }
    say(f"{root}: {counts['Train']} training videos, {counts['Test']} test videos, {counts['Test_gt']} with labels")


if __name__ == "__main__":
    sys.exit(main())
