"""Clips of consecutive frames, in the original's layout. `root` is <DataRoot>/<Dataset>:

    root/Train/<video>/001.jpg ...               frames, numbered from 1 without gaps
    root/Train_idx/<video>/<video>_i001.mat ...  one per clip: v_name, and idx, its frame numbers; not needed
    root/Test, root/Test_idx                     the same, to be scored
    root/Test_gt/<video>.mat                     l: 1 x frames, 1 = abnormal; not needed

Clips overlap by all frames but one. Each frame is decoded once in a run, into one array of bytes; a clip is a slice.
"""

import os
import tempfile
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from common.cli import note, number_of, progress
from common.files import UserError, plain, read_json, reason
from common.images import EXTENSIONS, fingerprint, image_size, is_junk, read_image, require_readable, visible
from memae.data.matlab import read_mat


def subfolders(folder: Path) -> list[str]:
    """Names of the visible folders in `folder`, sorted. UserError where it is missing, holds none, or lacks some."""
    require_prepared(folder)
    names = [entry.name for entry in visible(folder) if entry.is_dir()]
    if not names:
        raise UserError(f"there are no folders of videos in {folder}")
    return names


def require_prepared(folder: Path) -> None:
    """UserError where script_img_prep.py has not come to the end of its videos of `folder`, root/Train or root/Test.

    Those that were removed after that are said to be left out. Older versions tell of no videos.
    """
    path = folder.parent / "prepared.json"
    try:
        record = read_json(path) if path.is_file() else {}
        sources, made = (list(record.get(key, ())) for key in ("sources", "videos"))
        keys = [key for key in sources if key.startswith(f"{folder.name}/") and "videos" in record]
    except (AttributeError, TypeError):
        raise UserError(f"{path} is damaged: it does not tell the videos of {folder}") from None
    gone = [key for key in keys if not (folder.parent / key).is_dir()]
    for key in gone:
        if key not in made or (folder / f".making-{key.partition('/')[2]}").is_dir():
            missing = folder.parent / key
            raise UserError(f"{missing} is missing: its preparation was interrupted: run script_img_prep.py again")
    if gone:
        number = number_of(len(gone), "prepared video is", "prepared videos are")
        note(f"{number} not in {folder} any more and left out, such as {gone[0].partition('/')[2]}")


def frame_files(folder: Path) -> list[Path]:
    """The frames of a prepared video, ordered by number: the k-th has number k.

    UserError where there is none, a number is missing or there twice, or a name is not a number.
    """
    entries = visible(folder)
    if others := [path for path in entries if path.suffix.lower() not in EXTENSIONS]:
        number = number_of(len(others), "file")
        note(f"{number} in {folder} left out, such as {others[0].name}: not in a supported image format")
    numbered: dict[int, Path] = {}
    for path in (path for path in entries if path not in others):
        if not (path.stem.isascii() and path.stem.isdigit()) or int(path.stem) == 0:
            raise UserError(f"{path} is not named by its number, from 001.jpg on: script_img_prep.py numbers frames")
        if (number := int(path.stem)) in numbered:
            raise UserError(f"{numbered[number]} and {path} have the same number")
        numbered[number] = path
    if not numbered:
        raise UserError(f"there are no frames in {folder}")
    if missing := next((number for number in range(1, len(numbered) + 1) if number not in numbered), None):
        raise UserError(f"frame {missing:03d} is missing in {folder}: frames are numbered from 001 without gaps")
    return [numbered[number] for number in range(1, len(numbered) + 1)]


def file_numbers(folder: Path, frames: int) -> np.ndarray:
    """Numbers (frames,) that the frames of the prepared video `folder` had in the files that they were made of.

    From prepared.json, which script_img_prep.py writes; without it 1, 2, and so on. UserError where that tells of more
    or fewer frames.
    """
    record, name = folder.parent.parent / "prepared.json", plain(f"{folder.parent.name}/{folder.name}")
    try:
        videos = read_json(record).get("videos", {}) if record.is_file() else {}
        if name not in videos:
            return np.arange(1, frames + 1)
        runs = [range(*run) for run in videos[name]]
        if (made := sum(map(len, runs))) == frames:
            return np.concatenate([np.array(run, np.int64) for run in runs])
    except (AttributeError, TypeError, ValueError, OverflowError):
        raise UserError(f"{record} is damaged: it does not tell the frames of {folder}") from None
    raise UserError(f"{folder} has {frames} frames, script_img_prep.py has made {made}: remove it and prepare it again")


def recorded(numbers: Sequence[int]) -> list[tuple[int, int, int]]:
    """Increasing `numbers` as prepared.json holds them: arguments of ranges, one after another."""
    steps = np.diff(numbers)
    step = int(steps.min()) if len(steps) else 1
    parts = np.split(np.asarray(numbers), np.flatnonzero(steps != step) + 1)
    return [(int(part[0]), int(part[-1]) + 1, step) for part in parts]


def require_labels(values: np.ndarray, source: Path) -> np.ndarray:
    """`values`, read from `source`, flattened to bool. UserError where they are something else than 0 and 1."""
    if values.dtype.kind not in "buif" or not np.isin(values, (0, 1)).all():
        raise UserError(f"{source} holds something else than the labels 0 and 1")
    return values.astype(bool).ravel()


def read_npy(path: Path) -> np.ndarray:
    """The array in a .npy file. UserError where the file is missing or broken."""
    if not path.is_file():
        raise UserError(f"there is no file {path}")
    try:
        # Mapped first: what a damaged file tells of its shape is compared with its size before memory is taken.
        return np.array(np.load(path, mmap_mode="r", allow_pickle=False))
    except Exception as error:  # on damaged files, NumPy's reader raises nearly anything
        raise UserError(f"{path} is broken or not a NumPy array: {error}") from error


def read_index(path: Path, video: str, frames: int, frame_num: int) -> list[int]:
    """Frame numbers of one clip from its index file. UserError where they do not fit the video."""
    name, values = (value.ravel() for value in read_mat(path, "v_name", "idx"))
    name = "".join(map(str, name))
    if name != video:
        raise UserError(f"{path} belongs to the video {name!r}, not to {video!r}")
    if values.dtype.kind not in "iuf" or not np.isfinite(values).all() or (values % 1 != 0).any():
        raise UserError(f"{path}: idx holds no frame numbers")
    numbers = [int(value) for value in values]
    if len(numbers) != frame_num:
        raise UserError(f"{path} lists {len(numbers)} frames, not --FrameNum {frame_num}: run script_index_gen.py")
    if outside := [number for number in numbers if not 1 <= number <= frames]:
        raise UserError(f"{path} asks for frame {outside[0]:03d}, which {video} does not have (it has {frames})")
    if (np.diff(numbers) != 1).any():
        raise UserError(f"{path} lists frames that do not follow each other: a clip is consecutive frames, in order")
    return numbers


def index_root(root: Path, part: str) -> Path | None:
    """The folder of index files of `part` (Train or Test) of a data set, None where there is none."""
    return folder if (folder := root / f"{part}_idx").is_dir() else None


def windows(frames: int, frame_num: int, stride: int = 1) -> list[list[int]]:
    """Frame numbers, from 1, of all clips of `frame_num` consecutive frames; none where the video is too short."""
    return [list(range(start, start + frame_num)) for start in range(1, frames - frame_num + 2, stride)]


def clips_of(idx_root: Path | None, video: str, frames: int, frame_num: int) -> list[list[int]]:
    """Frame numbers of a video's clips: from its index files, ordered by number, or all windows without `idx_root`.

    None, in one line, for a video shorter than a clip. UserError where index files are missing or unsound.
    """
    if frames < frame_num:
        note(f"{video} is skipped: it has {frames} frames, a clip {frame_num}")
        return []
    if idx_root is None:
        return windows(frames, frame_num)
    files = [path for path in (idx_root / video).glob("*.mat") if not is_junk(path.name)]
    if not files:
        raise UserError(f"there is no index of {video} in {idx_root}: run script_index_gen.py")

    def number(path: Path) -> int:
        digits = path.stem.removeprefix(f"{video}_i")
        if not (digits.isascii() and digits.isdigit()):
            raise UserError(f"{path}: expected a name such as {video}_i001.mat")
        return int(digits)

    return [read_index(path, video, frames, frame_num) for path in sorted(files, key=number)]


def decode_frames(paths: Sequence[Path], channels: int, limit_gib: float, spill: Path) -> np.ndarray:
    """Frames of one size, (N, H, W, C) uint8: in memory up to `limit_gib`, else in a temporary file in the folder
    `spill` that ends with the run.

    UserError names frames that cannot be read, have another size, or colour where channels is 1.
    """
    size = image_size(paths[0])
    shape = (len(paths), *size, channels)
    total = int(np.prod(shape))
    if total <= limit_gib * 2**30:
        frames = np.empty(shape, np.uint8)
    else:
        # Without a name from the start: it vanishes with the process, however that ends.
        with tempfile.TemporaryFile(dir=spill) as file:
            try:
                # Where the system can (Linux), the room is taken at once: a full disk shows here, not as a crash.
                if hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(file.fileno(), 0, total)
                else:
                    file.truncate(total)
            except OSError as error:
                gib = total / 2**30
                raise UserError(f"no room for {gib:.1f} GiB of frames in {spill}: {reason(error)}") from error
            frames = np.memmap(file, np.uint8, "r+", shape=shape)

    def decode(number: int) -> None:
        frames[number] = read_frame(paths[number], channels, size, paths[0])

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in progress(pool.map(decode, range(len(paths))), "decoding frames", total=len(paths)):
            pass
    return frames


def frame_size(paths: Sequence[Path]) -> tuple[int, int]:
    """Height and width of the frames `paths`, not decoded. UserError where they differ or one is no image."""
    size = image_size(paths[0])
    for path in progress(paths, "checking frames"):
        _require_size(path, image_size(path), size, paths[0])
    return size


def _require_size(path: Path, size: tuple[int, int], wanted: tuple[int, int], like: Path) -> None:
    if size != wanted:
        raise UserError(
            f"{path} is {size[1]} x {size[0]} pixels, {like} {wanted[1]} x {wanted[0]}: make a video of the frames of "
            "each size, in a folder of its own; script_img_prep.py brings all videos to one size"
        )


def read_frame(path: Path, channels: int, size: tuple[int, int] | None = None, like: Path | None = None) -> np.ndarray:
    """One frame as (H, W, channels) uint8. UserError unless it has `size`, that of `like`, and no unwanted colour."""
    pixels = np.asarray(read_image(path))
    if size is not None:
        _require_size(path, pixels.shape[:2], size, like)
    if channels == 3:
        return pixels
    if not ((pixels[..., 0] == pixels[..., 1]) & (pixels[..., 0] == pixels[..., 2])).all():
        raise UserError(f"{path} is in colour: use --ImgChnNum 3, or prepare it in grey with script_img_prep.py")
    return pixels[..., :1]


class VideoDataset(Dataset):
    """All clips of all videos in `frame_root`."""

    def __init__(
        self,
        idx_root: str | Path | None,
        frame_root: str | Path,
        frame_num: int = 16,
        channels: int = 1,
        transform: Callable[[Tensor], Tensor] = lambda clip: clip.float().div(255).sub(0.5).div(0.5),
        limit_gib: float = 4.0,
        videos: Sequence[str] | None = None,
        decode: bool = True,
    ):
        """idx_root: folder of index files, None for all windows of `frame_num` consecutive frames; transform: from
        (C, T, H, W) uint8 to the clip, default to float32 in [-1, 1]; videos: names, default all in `frame_root`;
        decode: False leaves the frames, which are checked, for `decode` to read.

        Raises UserError for missing or unsound frames and index files. Videos shorter than a clip are named, skipped.
        """
        self.root, self.channels, self.transform, self.limit_gib = Path(frame_root), channels, transform, limit_gib
        self.videos = list(videos) if videos is not None else subfolders(self.root)
        self.numbers: dict[str, np.ndarray] = {}  # of each video's frames in their source, see `file_numbers`
        self.clips: list[tuple[str, list[int]]] = []  # video and frame numbers of each
        self.first: dict[str, int] = {}  # row of each video's frame 1 among all frames
        self.paths: list[Path] = []
        for video in self.videos:
            files = frame_files(self.root / video)
            self.numbers[video] = file_numbers(self.root / video, len(files))
            clips = clips_of(Path(idx_root) if idx_root else None, video, len(files), frame_num)
            self.first[video] = len(self.paths)
            self.clips += [(video, clip) for clip in clips]
            self.paths += files if clips else []
        if self.clips and decode:
            self.decode()
        elif self.clips:
            require_readable(self.paths)
            self.size = frame_size(self.paths)  # height and width
            for video in {video for video, _ in self.clips}:  # one in colour is so from its first frame on
                read_frame(self.paths[self.first[video]], channels)

    def _rows_of(self, clip: int) -> np.ndarray:
        """Rows of a clip's frames among all frames."""
        video, numbers = self.clips[clip]
        return self.first[video] + np.asarray(numbers) - 1

    def decode(self, clips: Sequence[int] | None = None) -> None:
        """Read all frames, or those of these clips alone; UserError where one is unsound."""
        self.decoded = np.arange(len(self.paths))
        if clips is not None:
            self.decoded = np.unique(np.concatenate([self._rows_of(clip) for clip in clips]))
        paths = [self.paths[row] for row in self.decoded]
        self.store = decode_frames(paths, self.channels, self.limit_gib, spill=self.root.parent)
        self.size = self.store.shape[1:3]

    def forget(self) -> None:
        """Give the memory of the decoded frames back."""
        vars(self).pop("store", None)

    def fingerprint(self) -> str:
        """Tells whether two data sets have the same clips of the same frames, wherever they lie."""
        clips = zlib.crc32(repr(self.clips).encode())
        return f"{fingerprint(self.paths, self.root)}-{clips:08x}"

    def __len__(self) -> int:
        return len(self.clips)

    def frames(self, index: int) -> Tensor:
        """The frames of one clip, (C, T, H, W) uint8."""
        rows = np.searchsorted(self.decoded, self._rows_of(index))
        return torch.from_numpy(self.store[rows]).permute(3, 0, 1, 2)

    def batch(self, indices: Sequence[int]) -> Tensor:
        """The frames of several clips, (B, C, T, H, W) uint8."""
        return torch.stack([self.frames(index) for index in indices])

    def __getitem__(self, index: int) -> tuple[int, Tensor]:
        return index, self.transform(self.frames(index))


class VideoDatasetOneDir(VideoDataset):
    """The clips of one video: the folder `frame_root`, with its index files in `idx_dir`."""

    def __init__(self, idx_dir: str | Path | None, frame_root: str | Path, **options):
        """As `VideoDataset`, for one video."""
        frame_root = Path(frame_root)
        idx_root = Path(idx_dir).parent if idx_dir else None
        super().__init__(idx_root, frame_root.parent, videos=[frame_root.name], **options)


def load_batches(
    dataset: VideoDataset, batches: Iterable[Sequence[int]], threads: int, pin: bool = False
) -> Iterator[Tensor]:
    """`dataset.batch` of each of `batches`, in order, assembled ahead by `threads` threads; 0: when asked for.

    pin: in page-locked memory, from which copies to the GPU overlap with computing.
    """

    def load(indices: Sequence[int]) -> Tensor:
        batch = dataset.batch(indices)
        return batch.pin_memory() if pin else batch

    if threads == 0:
        yield from map(load, batches)
        return
    ahead: deque = deque()
    with ThreadPoolExecutor(threads) as pool:
        for indices in batches:
            ahead.append(pool.submit(load, indices))
            if len(ahead) > threads:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
