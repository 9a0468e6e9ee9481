"""Extract the features of all images of a class and store them: python extract_features.py --class_name bottle

Writes to feature_path/<class>/: <class>_scale_{0,1,2}_{train,test}.npy, <class>_labels.npy and <class>_image_paths.npy
(of the test part), and <class>_features.json, which says how and from what they were made.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common.cli import answer_early
from csflow.config import parse_extract

answer_early(__name__, parse_extract)

import math
import os
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from common.checkpoint import versions
from common.cli import note, progress, say, script, stop_on_request
from common.files import UserError, atomic_write, digest, locked, naming, plain, read_json, regular, write_json
from common.images import same_images, set_max_pixels
from common.runtime import pick_device
from csflow.dummy_data import ensure_dummy_data
from csflow.model import N_FEAT, FeatureExtractor, load_extractor
from csflow.utils import ComputedFeatures, Dataset, Features, Preparation, StoredFeatures, load_dataset

HEADER = 128  # bytes before the rows in an array's file
SAVE_EVERY = 20.0  # seconds between the moments from which an interrupted extraction resumes


def feature_file(folder: Path, name: str) -> Path:
    """folder/<class>_<name>, in the folder of the class's features."""
    return folder / f"{folder.name}_{name}"


def extract(
    folder: Path,
    dataset: Dataset,
    extractor: FeatureExtractor,
    prepare: Preparation,
    batch_size: int,
    device: torch.device,
    hide: bool = False,
) -> None:
    """Extract and store the features of both parts in `folder`; they count only when all of them are computed.

    Interrupted, the next extraction of the same images with the same extractor resumes where this one was.
    KeyboardInterrupt after Ctrl-C, when what was computed is on the disk.
    """
    parts = {"train": dataset.train, "test": dataset.test}
    metadata = {
        "extractor": extractor.name,
        "weights": extractor.checksum(),
        **plain(asdict(prepare)),
        "fingerprint": dataset.fingerprint,
        "data": dataset.data,
        "counts": {part: len(samples) for part, samples in parts.items()},
        "versions": versions(),
    }
    shapes = [_shape(prepare.img_size, extractor.name, scale) for scale in range(prepare.n_scales)]
    progress_file = feature_file(folder, "extracting.json")
    with locked(folder), naming(folder, "what is extracted so far is kept"), stop_on_request() as stop:
        done = _done_before(progress_file, metadata, shapes)
        if not any(done.values()):  # or, killed soon, this extraction would leave its rows to another one's count
            progress_file.unlink(missing_ok=True)
        for part, samples in parts.items():
            features = ComputedFeatures([sample.path for sample in samples], prepare, extractor, device)
            with ExitStack() as stack:
                files = []
                for path, shape in zip(_growing(folder, part, shapes), shapes):
                    file = stack.enter_context(path.open("r+b" if done[part] else "w+b"))
                    header = {"descr": "<f4", "fortran_order": False, "shape": (len(samples), *shape)}
                    np.lib.format.write_array_header_1_0(file, header)
                    file.seek(file.truncate(HEADER + 4 * done[part] * math.prod(shape)))
                    files.append(file)
                saved = time.monotonic()
                for start in progress(range(done[part], len(samples), batch_size), f"features of {part}", hide=hide):
                    done[part] = min(start + batch_size, len(samples))
                    for file, rows in zip(files, features.batch(range(start, done[part]))):
                        file.write(np.ascontiguousarray(rows.cpu().numpy(), dtype="<f4").data)
                    if stop() or time.monotonic() - saved > SAVE_EVERY or done[part] == len(samples):
                        for file in files:
                            file.flush()
                            os.fsync(file.fileno())
                        write_json(progress_file, {"about": metadata, "done": done})
                        saved = time.monotonic()
                    if stop():
                        say(f"{_counted(done)} are done; run the same command to resume")
                        raise KeyboardInterrupt
        # From here to the last line, an interruption leaves features that count as missing, never as others.
        progress_file.unlink()
        feature_file(folder, "features.json").unlink(missing_ok=True)
        files = [path.replace(path.with_suffix("")) for part in parts for path in _growing(folder, part, shapes)]
        _write_array(feature_file(folder, "labels.npy"), np.array([sample.label for sample in dataset.test]))
        _write_array(feature_file(folder, "image_paths.npy"), np.array([dataset.name(s) for s in dataset.test]))
        digests = {path.name: digest(path) for path in files}
        write_json(feature_file(folder, "features.json"), {**metadata, "digests": digests})
    say(f"features of {_counted(done)} ({extractor.name}) are in {folder}")


def _shape(img_size: Sequence[int], extractor: str, scale: int) -> tuple[int, ...]:
    return N_FEAT[extractor], *(side // 32 >> scale for side in img_size)


def _growing(folder: Path, part: str, shapes: Sequence[tuple]) -> list[Path]:
    return [feature_file(folder, f"scale_{scale}_{part}.npy.part") for scale in range(len(shapes))]


def _counted(images: dict[str, int]) -> str:
    return f"{images['train']} training and {images['test']} test images"


def _done_before(path: Path, metadata: dict[str, Any], shapes: Sequence[tuple[int, ...]]) -> dict[str, int]:
    """How many images of each part an interrupted extraction has stored; none where it was another one."""
    done = dict.fromkeys(metadata["counts"], 0)
    stored = read_json(path) if path.is_file() else None
    if not isinstance(stored, dict) or stored.get("about") != metadata or not isinstance(stored.get("done"), dict):
        return done
    for part, count in metadata["counts"].items():
        files = [file for file in _growing(path.parent, part, shapes) if file.is_file()]
        if type(rows := stored["done"].get(part)) is int and len(files) == len(shapes):
            held = [(file.stat().st_size - HEADER) // (4 * math.prod(shape)) for file, shape in zip(files, shapes)]
            done[part] = max(0, min(rows, count, *held))
    if any(done.values()):
        say(f"resuming an interrupted extraction after {_counted(done)}")
    return done


def _write_array(path: Path, array: np.ndarray) -> None:
    with atomic_write(path) as file:
        np.save(file, array, allow_pickle=False)


def open_features(
    folder: Path, dataset: Dataset, prepare: Preparation, extractor: str = "auto"
) -> tuple[StoredFeatures, StoredFeatures]:
    """Features of train and test part that are stored in `folder`, mapped into memory.

    Raises UserError unless they belong to these images, this preparation and this extractor ("auto": any).
    """
    path = feature_file(folder, "features.json")
    again = "extract them again with extract_features.py and the same options"
    metadata = read_json(path)
    metadata = {"max_value": 65535, **metadata} if isinstance(metadata, dict) else {}  # older versions do not tell it
    name, weights, digests = (metadata.get(key) for key in ("extractor", "weights", "digests"))
    if not isinstance(name, str) or not isinstance(weights, str) or name not in N_FEAT:
        raise UserError(f"{path} does not describe features of ours: {again}")
    wanted = plain(asdict(prepare)) | ({} if extractor == "auto" else {"extractor": extractor})
    unlike = [f"{key} {metadata.get(key)}, not {value}" for key, value in wanted.items() if metadata.get(key) != value]
    if unlike:
        raise UserError(f"the features in {folder} were made with {'; '.join(unlike)}: {again}")
    if not same_images(str(metadata.get("fingerprint")), dataset.fingerprint):
        raise UserError(f"the features in {folder} are of other images than {dataset.root} holds now: {again}")
    if not isinstance(digests, dict):
        note(f"the features in {folder} are of an older version of this program: damage to them is not seen")
    parts = []
    for part, samples in {"train": dataset.train, "test": dataset.test}.items():
        maps = []
        for scale in range(prepare.n_scales):
            file = feature_file(folder, f"scale_{scale}_{part}.npy")
            maps.append(_map_array(file, (len(samples), *_shape(prepare.img_size, name, scale)), again))
            if isinstance(digests, dict) and digests.get(file.name) != digest(file):
                raise UserError(f"{file} is not what was extracted: {again}")
        parts.append(StoredFeatures(maps, name, weights))
    return parts[0], parts[1]


def _map_array(path: Path, shape: tuple[int, ...], again: str) -> np.ndarray:
    try:
        array = np.lib.format.open_memmap(regular(path), mode="r")
    except FileNotFoundError:
        raise UserError(f"{path} is missing: {again}") from None
    except OSError:
        raise
    except Exception as error:  # on a damaged header, NumPy's parser raises nearly anything
        raise UserError(f"{path} is broken ({' '.join(str(error).split())}): {again}") from error
    if array.shape != shape or array.dtype != np.float32:
        raise UserError(f"{path} holds {array.dtype} {array.shape}, expected float32 {shape}: {again}")
    return array


def load_features(
    folder: Path,
    dataset: Dataset,
    prepare: Preparation,
    extractor: str,
    extractor_weights: Path | None,
    batch_size: int,
    device: torch.device,
    pre_extracted: bool = True,
    hide: bool = False,
) -> tuple[Features, Features]:
    """Features of train and test part: those stored in `folder`, extracted first where there are none, or, with
    pre_extracted False, computed from the images whenever they are needed."""
    missing = not feature_file(folder, "features.json").is_file()
    if pre_extracted and not missing:
        return open_features(folder, dataset, prepare, extractor)
    network = load_extractor(extractor, extractor_weights, prepare.n_scales, device)
    if not pre_extracted:
        parts = [[sample.path for sample in samples] for samples in (dataset.train, dataset.test)]
        return tuple(ComputedFeatures(paths, prepare, network, device) for paths in parts)
    say(f"no features of {dataset.root.name} in {folder.parent} yet: extracting them")
    extract(folder, dataset, network, prepare, batch_size, device, hide)
    return open_features(folder, dataset, prepare, extractor)


@script(memory="a smaller --batch_size")
def main(argv: list[str] | None = None) -> None:
    """Data, features."""
    options = parse_extract(argv)
    set_max_pixels(options.max_pixels)
    device = pick_device(options.device, options.gpu_ids, options.cpu)
    ensure_dummy_data(options.root)
    dataset = load_dataset(options.root, options.max_value, options.img_size)
    extractor = load_extractor(options.extractor, options.extractor_weights, options.n_scales, device)
    prepare = Preparation(options.img_size, options.n_scales, options.norm_mean, options.norm_std, dataset.max_value)
    extract(options.feature_dir, dataset, extractor, prepare, options.batch_size, device, options.hide_tqdm_bar)


if __name__ == "__main__":
    sys.exit(main())
