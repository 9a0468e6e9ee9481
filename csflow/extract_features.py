"""Extract the features of all images of a class and store them: python extract_features.py --class_name bottle

Writes to feature_path/<class>/: <class>_scale_{0,1,2}_{train,test}.npy, <class>_labels.npy and <class>_image_paths.npy
(of the test part), and <class>_features.json, which says how and from what they were made.
"""

import io
import os
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import IO

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch

from common.checkpoint import versions
from common.cli import note, progress, say, script, stop_on_request
from common.files import UserError, atomic_write, digest, locked, naming, read_json, regular, write_json
from common.images import same_images
from common.runtime import pick_device
from csflow.config import Config, parse
from csflow.dummy_data import ensure_dummy_data
from csflow.model import N_FEAT, FeatureExtractor, load_extractor
from csflow.utils import Dataset, StoredFeatures, load_dataset, load_images

SAVE_EVERY = 20.0  # seconds between the moments from which an interrupted extraction goes on


def feature_file(config: Config, name: str) -> Path:
    """feature_path/<class>/<class>_<name>."""
    return config.feature_path / config.class_name / f"{config.class_name}_{name}"


def extract(config: Config, dataset: Dataset, device: torch.device) -> None:
    """Extract and store the features of both parts; what is stored counts only when all of them are computed.

    Interrupted, the next extraction of the same images with the same extractor goes on where this one was.
    KeyboardInterrupt after Ctrl-C, when what was computed is on the disk.
    """
    extractor, name = load_extractor(config, device)
    parts = {"train": dataset.train, "test": dataset.test}
    about = {
        "extractor": name,
        "weights": extractor.checksum(),
        **_preparation(config),
        "fingerprint": dataset.fingerprint,
        "data": dataset.data,
        "counts": {part: len(samples) for part, samples in parts.items()},
        "versions": versions(),
    }
    folder, progress_file = feature_file(config, "features.json").parent, feature_file(config, "extracting.json")
    kept = "what is extracted so far is kept"
    with locked(folder), naming(folder, kept), stop_on_request() as stop:
        done = _done_before(progress_file, about)
        if not any(done.values()):  # or, killed soon, this extraction would leave its rows to another one's count
            progress_file.unlink(missing_ok=True)
        for part, samples in parts.items():
            shapes = [_shape(config, name, len(samples), scale) for scale in range(config.n_scales)]
            paths = [feature_file(config, f"scale_{scale}_{part}.npy.part") for scale in range(config.n_scales)]
            with ExitStack() as stack:
                files = [stack.enter_context(_open_at(path, shape, done[part])) for path, shape in zip(paths, shapes)]
                starts = range(done[part], len(samples), config.batch_size)
                saved = time.monotonic()
                for start in progress(starts, f"features of {part}", hide=config.hide_tqdm_bar):
                    batch = samples[start : start + config.batch_size]
                    for file, features in zip(files, _features(batch, config, extractor, device)):
                        file.write(np.ascontiguousarray(features, dtype="<f4").data)
                    done[part] += len(batch)
                    if stop() or time.monotonic() - saved > SAVE_EVERY or done[part] == len(samples):
                        for file in files:
                            file.flush()
                            os.fsync(file.fileno())
                        write_json(progress_file, {"about": about, "done": done})
                        saved = time.monotonic()
                    if stop():
                        say(f"{_counted(done)} are done; the same command goes on from there")
                        raise KeyboardInterrupt
        # From here to the last line, an interruption leaves features that count as missing, never as others.
        progress_file.unlink()
        feature_file(config, "features.json").unlink(missing_ok=True)
        digests = {}
        for part in parts:
            for scale in range(config.n_scales):
                path = feature_file(config, f"scale_{scale}_{part}.npy")
                path.with_name(f"{path.name}.part").replace(path)
                digests[path.name] = digest(path)
        _write_array(feature_file(config, "labels.npy"), np.array([sample.label for sample in dataset.test]))
        _write_array(feature_file(config, "image_paths.npy"), np.array([dataset.name(s) for s in dataset.test]))
        write_json(feature_file(config, "features.json"), {**about, "digests": digests})
    say(f"features of {_counted(done)} ({name}) are in {config.feature_path}")


def _counted(images: dict[str, int]) -> str:
    return f"{images['train']} training and {images['test']} test images"


def _done_before(path: Path, about: dict) -> dict[str, int]:
    """How many images of each part an interrupted extraction has stored; none where it was another one."""
    none = dict.fromkeys(about["counts"], 0)
    if not path.is_file():
        return none
    stored = read_json(path)
    done = stored.get("done") if isinstance(stored, dict) and stored.get("about") == about else None
    sound = isinstance(done, dict) and all(
        type(done.get(part)) is int and 0 <= done[part] <= count for part, count in about["counts"].items()
    )
    if not sound:
        return none
    say(f"continuing an interrupted extraction after {_counted(done)}")
    return {part: done[part] for part in none}


def _open_at(path: Path, shape: tuple[int, ...], row: int) -> IO:
    """The array's file, with its header, open for writing from `row` on; whatever lay behind it is cut off.

    UserError where the file does not hold that many rows, or cannot be written.
    """
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": shape})
    end = len(header.getvalue()) + 4 * row * int(np.prod(shape[1:]))
    try:
        file = path.open("r+b" if row else "w+b")
    except FileNotFoundError:
        raise UserError(f"{path} of an interrupted extraction is missing: delete {path.parent} to start anew") from None
    if not row:
        file.write(header.getvalue())
    if file.seek(0, os.SEEK_END) < end:
        file.close()
        raise UserError(f"{path} of an interrupted extraction is cut off: delete {path.parent} to start anew")
    file.truncate(end)
    file.seek(end)
    return file


def _features(batch: list, config: Config, extractor: FeatureExtractor, device: torch.device) -> list[np.ndarray]:
    images = load_images([sample.path for sample in batch], config)
    return [features.cpu().numpy() for features in extractor(images.to(device))]


def _shape(config: Config, extractor: str, count: int, scale: int) -> tuple[int, int, int, int]:
    height, width = config.map_size
    return count, N_FEAT[extractor], height >> scale, width >> scale


def _write_array(path: Path, array: np.ndarray) -> None:
    with atomic_write(path) as file:
        np.save(file, array, allow_pickle=False)


def _preparation(config: Config) -> dict:
    settings = config.as_dict()
    return {name: settings[name] for name in ("img_size", "n_scales", "norm_mean", "norm_std", "max_value")}


def features_exist(config: Config) -> bool:
    """Whether an extraction for this class was ever completed."""
    return feature_file(config, "features.json").is_file()


def open_features(config: Config, dataset: Dataset) -> tuple[StoredFeatures, StoredFeatures, str]:
    """Stored features of train and test part, mapped into memory, and the extractor's name.

    Raises UserError unless they belong to these images, this extractor and this size.
    """
    path = feature_file(config, "features.json")
    again = "extract them anew with extract_features.py and the same options"
    about = read_json(path)
    wanted = _preparation(config)
    if config.extractor != "auto":
        wanted["extractor"] = config.extractor
    about = {"max_value": 65535, **about} if isinstance(about, dict) else {}  # which older versions do not tell
    names = [about.get(name) for name in ("extractor", "weights")]
    if not all(isinstance(name, str) for name in names) or names[0] not in N_FEAT:
        raise UserError(f"{path} does not describe features of ours: {again}")
    differing = [f"{name} {about.get(name)}, not {value}" for name, value in wanted.items() if about.get(name) != value]
    if differing:
        raise UserError(f"the features in {path.parent} were made with {'; '.join(differing)}: {again}")
    if not same_images(str(about.get("fingerprint")), dataset.fingerprint):
        raise UserError(f"the features in {path.parent} are of other images than {dataset.root} holds now: {again}")
    digests = about.get("digests")
    if not isinstance(digests, dict):
        note(f"the features in {path.parent} are of an older version of this program: damage to them is not seen")
    parts = []
    for part, samples in {"train": dataset.train, "test": dataset.test}.items():
        maps = []
        for scale in range(config.n_scales):
            file = feature_file(config, f"scale_{scale}_{part}.npy")
            shape = _shape(config, about["extractor"], len(samples), scale)
            maps.append(_map_array(file, shape, again))
            if isinstance(digests, dict) and digests.get(file.name) != digest(file):
                raise UserError(f"{file} is not what was extracted: {again}")
        parts.append(StoredFeatures(maps, about["weights"]))
    return parts[0], parts[1], about["extractor"]


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


@script(memory="a smaller --batch_size")
def main(argv: list[str] | None = None) -> None:
    """Extract the features of config.class_name."""
    does = "Extract and store the features of all images of a class."
    config = parse(argv, does, "python csflow/extract_features.py --dataset_path my_data --class_name bottle")
    device = pick_device(config.device, config.gpu_ids, config.cpu)
    ensure_dummy_data(config)
    extract(config, load_dataset(config), device)


if __name__ == "__main__":
    sys.exit(main())
