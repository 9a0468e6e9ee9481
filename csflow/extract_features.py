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
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch

from common.checkpoint import versions
from common.cli import note, progress, say, script, stop_on_request
from common.files import UserError, atomic_write, digest, locked, naming, plain, read_json, regular, write_json
from common.images import same_images, set_max_pixels
from common.runtime import pick_device
from csflow.dummy_data import ensure_dummy_data
from csflow.model import N_FEAT, load_extractor
from csflow.utils import ComputedFeatures, Dataset, Features, StoredFeatures, load_dataset

PREPARATION = ("img_size", "norm_mean", "norm_std", "max_value")  # how images become the extractor's input
HEADER = 128  # bytes before the rows in an array's file
SAVE_EVERY = 20.0  # seconds between the moments from which an interrupted extraction resumes


def feature_file(folder: Path, name: str) -> Path:
    """folder/<class>_<name>, in the folder of the class's features."""
    return folder / f"{folder.name}_{name}"


def compute_features(
    dataset: Dataset,
    device: torch.device,
    *,
    extractor: str,
    extractor_weights: Path | None,
    n_scales: int,
    img_size: Sequence[int],
    norm_mean: Sequence[float],
    norm_std: Sequence[float],
) -> dict[str, ComputedFeatures]:
    """Features of the parts "train" and "test", to be computed from the images."""
    network = load_extractor(extractor, extractor_weights, n_scales, device)
    how = (network, device, img_size, norm_mean, norm_std, dataset.max_value)
    parts = {"train": dataset.good, "test": dataset.test}
    return {part: ComputedFeatures([sample.path for sample in parts[part]], *how) for part in parts}


def extract(
    folder: Path, dataset: Dataset, parts: dict[str, ComputedFeatures], batch_size: int, hide: bool = False
) -> None:
    """Extract and store the features of both parts in `folder`; they count only when all of them are computed.

    Interrupted, the next extraction of the same images with the same extractor resumes where this one was.
    KeyboardInterrupt after Ctrl-C, when what was computed is on the disk.
    """
    first, n_scales = parts["train"], parts["train"].network.n_scales
    metadata = {
        "extractor": first.extractor,
        "weights": first.weights,
        "n_scales": n_scales,
        **plain({name: getattr(first, name) for name in PREPARATION}),
        "fingerprint": dataset.fingerprint,
        "data": dataset.data,
        "counts": {part: len(features) for part, features in parts.items()},
        "versions": versions(),
    }
    shapes = _shapes(first.img_size, n_scales, first.extractor)
    progress_file = feature_file(folder, "extracting.json")
    with locked(folder), naming(folder, "what is extracted so far is kept"), stop_on_request() as stop:
        done = _done_before(progress_file, metadata, shapes)
        if not any(done.values()):  # or, killed soon, this extraction would leave its rows to another one's count
            progress_file.unlink(missing_ok=True)
        for part, features in parts.items():
            count = len(features)
            with ExitStack() as stack:
                files = []
                for path, shape in zip(_growing(folder, part, shapes), shapes):
                    file = stack.enter_context(path.open("r+b" if done[part] else "w+b"))
                    header = {"descr": "<f4", "fortran_order": False, "shape": (count, *shape)}
                    np.lib.format.write_array_header_1_0(file, header)
                    file.seek(file.truncate(HEADER + 4 * done[part] * math.prod(shape)))
                    files.append(file)
                saved = time.monotonic()
                for start in progress(range(done[part], count, batch_size), f"features of {part}", hide=hide):
                    done[part] = min(start + batch_size, count)
                    for file, rows in zip(files, features.batch(range(start, done[part]))):
                        file.write(np.ascontiguousarray(rows.cpu().numpy(), dtype="<f4").data)
                    if stop() or time.monotonic() - saved > SAVE_EVERY or done[part] == count:
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
        labels, paths = [sample.label for sample in dataset.test], [dataset.name(sample) for sample in dataset.test]
        for name, values in (("labels.npy", labels), ("image_paths.npy", paths)):
            with atomic_write(feature_file(folder, name)) as file:
                np.save(file, np.array(values), allow_pickle=False)
        digests = {path.name: digest(path) for path in files}
        write_json(feature_file(folder, "features.json"), {**metadata, "digests": digests})
    say(f"features of {_counted(done)} ({first.extractor}) are in {folder}")


def _shapes(img_size: Sequence[int], n_scales: int, extractor: str) -> list[tuple[int, ...]]:
    """Of an image's features, per scale."""
    return [(N_FEAT[extractor], *(side // 32 >> scale for side in img_size)) for scale in range(n_scales)]


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


def open_features(
    folder: Path, dataset: Dataset, extraction: Mapping[str, Any]
) -> tuple[StoredFeatures, StoredFeatures]:
    """Stored features of train and test part in `folder`, mapped into memory.

    Raises UserError unless they belong to these images, this extractor and its settings (`Config.extraction`).
    """
    path = feature_file(folder, "features.json")
    again = "extract them again with extract_features.py and the same options"
    metadata = read_json(path)
    metadata = {"max_value": 65535, **metadata} if isinstance(metadata, dict) else {}  # older versions do not tell it
    extractor, weights, digests = (metadata.get(key) for key in ("extractor", "weights", "digests"))
    if not isinstance(extractor, str) or not isinstance(weights, str) or extractor not in N_FEAT:
        raise UserError(f"{path} does not describe features of ours: {again}")
    settings = plain({**extraction, "max_value": dataset.max_value})
    wanted = {name: settings[name] for name in (*PREPARATION, "n_scales", "extractor") if settings[name] != "auto"}
    unlike = [f"{key} {metadata.get(key)}, not {value}" for key, value in wanted.items() if metadata.get(key) != value]
    if unlike:
        raise UserError(f"the features in {folder} were made with {'; '.join(unlike)}: {again}")
    if not same_images(str(metadata.get("fingerprint")), dataset.fingerprint):
        raise UserError(f"the features in {folder} are of other images than {dataset.root} holds now: {again}")
    if not isinstance(digests, dict):
        note(f"the features in {folder} are of an older version of this program: damage to them is not seen")
    parts = []
    for part, count in {"train": len(dataset.good), "test": len(dataset.test)}.items():
        maps = []
        for scale, shape in enumerate(_shapes(extraction["img_size"], extraction["n_scales"], extractor)):
            file = feature_file(folder, f"scale_{scale}_{part}.npy")
            maps.append(_map_array(file, (count, *shape), again))
            if isinstance(digests, dict) and digests.get(file.name) != digest(file):
                raise UserError(f"{file} is not what was extracted: {again}")
        parts.append(StoredFeatures(maps, extractor, weights))
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
    device: torch.device,
    extraction: Mapping[str, Any],
    *,
    stored: bool,
    batch_size: int,
    hide: bool,
) -> tuple[Features, Features]:
    """Features of train and test part: those in `folder`, extracted first where there are none, or, with stored False,
    computed from the images whenever they are needed; extraction: `Config.extraction`."""
    if not (stored and feature_file(folder, "features.json").is_file()):
        parts = compute_features(dataset, device, **extraction)
        if not stored:
            return parts["train"], parts["test"]
        say(f"no features in {folder} yet: extracting them")
        extract(folder, dataset, parts, batch_size, hide)
    return open_features(folder, dataset, extraction)


@script(memory="a smaller --batch_size")
def main(argv: list[str] | None = None) -> None:
    """Data, features."""
    options = parse_extract(argv)
    set_max_pixels(options.max_pixels)
    device = pick_device(options.device, options.gpu_ids, options.cpu)
    ensure_dummy_data(options.root)
    dataset = load_dataset(options.root, options.max_value, options.img_size)
    parts = compute_features(dataset, device, **options.extraction)
    extract(options.feature_dir, dataset, parts, options.batch_size, options.hide_tqdm_bar)


if __name__ == "__main__":
    sys.exit(main())
