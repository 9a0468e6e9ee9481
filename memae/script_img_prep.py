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
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from PIL import Image
from scipy.io import savemat

from common.files import UserError, atomic_write, read_json, write_json
from common.images import EXTENSIONS, MARK, mark_synthetic, read_image
from common.runtime import ArgumentParser, progress, say, script
from memae.options.base_options import HERE

VIDEO_FILES = frozenset([".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv"])
# Of the JPEG files. At 75, MATLAB's default, the noise of compression is as large as what moves between two frames: on
# Ped2, the AUC of the frame-difference baseline falls from 0.88 to 0.77.
QUALITY = 100


def natural(path: Path) -> list:
    """Sorting key that orders numbers in a name by value."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"([0-9]+)", path.name)]


def _visible(folder: Path) -> list[Path]:
    return sorted((path for path in folder.iterdir() if not path.name.startswith(".")), key=natural)


def _frames_in(folder: Path) -> list[Path]:
    return [path for path in _visible(folder) if path.suffix.lower() in EXTENSIONS and path.is_file()]


def find_videos(place: Path) -> dict[str, Path]:
    """Videos by name: `place` itself, or those in it, folders of frames and video files (not masks, <video>_gt).

    UserError where there is none, or two have one name.
    """
    if not place.exists():
        raise UserError(f"there is no file or folder {place}")
    if place.is_file():
        if place.suffix.lower() not in VIDEO_FILES:
            raise UserError(f"{place} is no video file ({', '.join(sorted(VIDEO_FILES))})")
        return {place.stem: place}
    if _frames_in(place):
        return {place.resolve().name: place}
    videos: dict[str, Path] = {}
    for path in _visible(place):
        folder = path.is_dir() and not path.name.endswith("_gt")
        if not folder and path.suffix.lower() not in VIDEO_FILES:
            continue
        name = path.name if path.is_dir() else path.stem
        if name in videos:
            raise UserError(f"{videos[name]} and {path} would both become the video {name}: rename one")
        videos[name] = path
    if not videos:
        raise UserError(f"there are no videos in {place}: expected folders of frames, or video files")
    return videos


def source_frames(video: Path) -> list[Path] | None:
    """The frame files of a folder in order of their numbers, None for a video file.

    UserError where there is none, or a number is left out: a gap would look like a jump of everything in view.
    """
    if video.is_file():
        return None
    files = _frames_in(video)
    if not files:
        raise UserError(f"there are no frames in {video}")
    numbers = [re.findall(r"[0-9]+", path.stem) for path in files]
    if all(numbers):
        last = [int(found[-1]) for found in numbers]
        steps = np.diff(last)
        if len(steps) and (steps != steps.min()).any():
            odd = int(np.flatnonzero(steps != steps.min())[0])
            raise UserError(
                f"the numbers jump from {files[odd].name} to {files[odd + 1].name} in {video}: add the missing frames, "
                "or make two videos of it"
            )
    return files


def read_frames(video: Path) -> Iterator[tuple[Image.Image, int]]:
    """The frames of a folder or a video file as RGB images, each with the number of all frames (0: unknown).

    UserError where one cannot be read, or PyAV is needed and missing.
    """
    files = source_frames(video)
    if files is not None:
        for path in files:
            yield read_image(path), len(files)
        return
    try:
        import av
    except ImportError as error:
        raise UserError(
            f"to read {video}, install PyAV (pip install av), or extract its frames into a folder"
        ) from error
    try:
        with av.open(str(video)) as container:
            if not container.streams.video:
                raise UserError(f"{video} holds no video")
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            for frame in container.decode(stream):
                yield frame.to_image(), stream.frames
    except av.error.FFmpegError as error:
        raise UserError(f"cannot read video {video}: {error}") from error


def prepare_video(video: Path, output: Path, size: int, channels: int, part: tuple[int, int | None] = (1, None)) -> int:
    """Write the frames of `video` as `output`/001.jpg and so on, all or none of them; return their number.

    size: their width and height in pixels, bicubic with antialiasing; channels: 1 grey, 3 colour; part: first and last
    frame to take, from 1, inclusive. Frames that are there already are counted, not made again.
    """
    if output.is_dir():
        return len(_frames_in(output))
    making = output.parent / f".making-{output.name}"
    shutil.rmtree(making, ignore_errors=True)
    making.mkdir(parents=True)
    count = 0
    first, last = part
    for number, (image, _) in enumerate(progress(read_frames(video), output.name), start=1):
        if number < first or (last is not None and number > last):
            continue
        count += 1
        image = image.convert("L") if channels == 1 else image
        image = image.resize((size, size), Image.Resampling.BICUBIC)
        image.save(making / f"{count:03d}.jpg", quality=QUALITY)
    if not count:
        raise UserError(f"{video} holds no frames")
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
        lines = path.read_text(encoding="utf-8").splitlines()
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
            match = re.fullmatch(r"([0-9]+)(?:[:-]([0-9]+))?", part)
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
    labels = _labels(opt, test, test_videos)
    openings = {name: _opening(name, labels, train_videos) for name in opt.Openings}  # normal frames at the start
    for video in [*train_videos.values(), *test_videos.values()]:
        source_frames(video)  # what can be refused is refused before anything is written

    settings = {name: str(getattr(opt, name)) for name in ("Size", "ImgChnNum", "Openings")}
    settings |= {"Train": str(train and train.resolve()), "Test": str(test and test.resolve())}
    record = root / "prepared.json"
    if record.exists():
        if read_json(record) != settings:
            raise UserError(f"{root} was prepared from other videos or settings ({record}): use another --Dataset")
    elif root.exists() and any(root.iterdir()):
        raise UserError(f"{root} already holds files that this script did not make: use another --Dataset")
    made_by = next((mark for place in (train, test) if place for mark in _marks(place)), None)
    command = f"python memae/script_img_prep.py --Dataset {opt.Dataset}, from generated videos"
    if made_by and not record.exists():
        root.mkdir(parents=True, exist_ok=True)
        mark_synthetic(root, command)
    write_json(record, settings)

    for name, video in train_videos.items():
        prepare_video(video, root / "Train" / name, opt.Size, opt.ImgChnNum)
    for name, video in test_videos.items():
        opening = openings.get(name, 0)
        if opening:
            prepare_video(video, root / "Train" / name, opt.Size, opt.ImgChnNum, (1, opening))
        count = prepare_video(video, root / "Test" / name, opt.Size, opt.ImgChnNum, (opening + 1, None))
        if name in labels:
            if len(labels[name]) - opening != count:
                raise UserError(f"{name} has {count} frames but labels for {len(labels[name]) - opening}")
            save_labels(root / "Test_gt" / f"{name}.mat", labels[name][opening:])
    if made_by:
        mark_synthetic(root, command)
    return root


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
    return len(files) if files is not None else sum(1 for _ in read_frames(video))


def build_parser() -> ArgumentParser:
    """The options of this script."""
    parser = ArgumentParser(description="Prepare videos for MemAE: frames of one size, numbered, and labels.")
    add = parser.add_argument
    add("--Input", type=Path, help="folder with Train and Test in UCSD's layout")
    add("--Train", type=Path, help="normal videos to learn from: a folder of videos, or one video")
    add("--Test", type=Path, help="videos to score")
    add("--Labels", type=Path, help="file of abnormal frame intervals of the test videos, such as data/UCSDped2.m")
    add(
        "--Openings",
        nargs="+",
        default=[],
        help="test videos whose frames before the first abnormal one are trained on",
    )
    add("--Dataset", default="UCSD_P2_256", help="name of the folder to make in DataRoot")
    add("--DataRoot", type=Path, default=HERE / "dataset", help="folder of the prepared data sets")
    add("--Size", type=int, default=256, help="width and height of the frames, a multiple of 16 (of 32 for backbones)")
    add("--ImgChnNum", type=int, choices=(1, 3), default=1, help="1: grey, 3: colour")
    return parser


@script
def main(argv: list[str] | None = None) -> None:
    """Prepare the videos."""
    opt = build_parser().parse_args(argv)
    if opt.Size < 16 or opt.Size % 16:
        raise UserError(f"--Size {opt.Size}: expected a multiple of 16")
    if not opt.Dataset or opt.Dataset.startswith(".") or set(opt.Dataset) & set("/\\\0"):
        raise UserError(f"--Dataset {opt.Dataset}: expected a plain name without slashes")
    root = prepare(opt)
    counts = {
        part: len(_visible(root / part)) if (root / part).is_dir() else 0 for part in ("Train", "Test", "Test_gt")
    }
    say(f"{root}: {counts['Train']} training videos, {counts['Test']} test videos, {counts['Test_gt']} with labels")


if __name__ == "__main__":
    sys.exit(main())
