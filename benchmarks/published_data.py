"""How the folder of a published data set becomes categories {name: folder}, which the methods' scripts read: for
accuracy.py. Nothing is copied, but for VisA's masks."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from common.files import UserError, atomic_write, read_csv, reason
from common.images import image_size, read_mask, visible


def categories(folder: Path, output: Path) -> dict[str, Path]:
    """Folders in MVTec AD's layout, `folder` itself or those in it."""
    if (folder / "train/good").is_dir():
        return {folder.name: folder}
    inside = {path.name: path for path in visible(folder) if (path / "train/good").is_dir()}
    if not inside:
        raise UserError(f"there is no train/good in {folder}, nor in a folder in it")
    return inside


def link(target: Path, source: Path) -> None:
    """Make `target` a symbolic link to `source`, which has to be there."""
    if not source.exists():
        raise UserError(f"there is no {source}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        target.symlink_to(source.resolve())
    except OSError as error:
        raise UserError(f"cannot link {target} to {source}: {reason(error)}") from error


def below(folder: Path, name: str | None, table: Path) -> Path:
    """What a table names, below `folder`. UserError where that is no path, or leads out of the folder."""
    path = Path(name or "")
    if not path.parts or path.is_absolute() or ".." in path.parts or "\0" in str(name):
        raise UserError(f"{table}: {name!r} is no path below {folder}")
    return folder / path


def visa(folder: Path, output: Path) -> dict[str, Path]:
    """VisA's 12 objects (Zou et al., ECCV 2022) in MVTec AD's layout: links, by the published split split_csv/1cls.csv.

    Its columns are object, split (train, test), label (normal, anomaly), image and mask, both relative to `folder`.
    Masks hold the number of the kind of defect; here, all kinds are 255.
    """
    table = folder / "split_csv/1cls.csv"
    if not table.exists():
        raise UserError(f"there is no {table}, VisA's published split")
    rows = read_csv(table)
    if not rows or not {"object", "split", "label", "image", "mask"} <= rows[0].keys():
        raise UserError(f"{table} is not VisA's split: its columns are object, split, label, image and mask")
    for row in rows:
        if row["split"] not in ("train", "test") or row["label"] not in ("normal", "anomaly"):
            raise UserError(f"{table}: {row['split']!r} and {row['label']!r} are no split and label of VisA's")
        root, image = below(output, row["object"], table), below(folder, row["image"], table)
        kind = "good" if row["label"] == "normal" else "bad"
        link(root / row["split"] / kind / image.name, image)
        if row["mask"] and kind == "bad":
            mask = read_mask(below(folder, row["mask"], table), image_size(image))
            with atomic_write(root / "ground_truth/bad" / f"{image.stem}_mask.png") as file:
                Image.fromarray(mask).save(file, "PNG")
    return categories(output, output)


def btad(folder: Path, output: Path) -> dict[str, Path]:
    """BTAD's products (Mishra et al. 2021), <nn>/{train,test}/ok, test/ko and ground_truth/ko, as links to folders."""
    products = [path for path in visible(folder) if (path / "train/ok").is_dir()]
    if not products:
        raise UserError(f"there is no <nn>/train/ok in {folder}: expected BTAD's folders 01, 02 and 03")
    for product in products:
        for theirs in ("train/ok", "test/ok", "test/ko", "ground_truth/ko"):
            link(output / product.name / theirs.replace("ok", "good"), product / theirs)
    return categories(output, output)


def avenue(folder: Path, output: Path) -> dict[str, Path]:
    """CUHK Avenue (Lu et al., ICCV 2013): links to training_videos and testing_videos, and their labels as intervals.

    A frame is abnormal where its mask in testing_label_mask/<n>_label.mat (volLabel, one mask for each frame), anywhere
    below `folder`, is not empty.
    """
    for name in ("training_videos", "testing_videos"):
        link(output / name, folder / name)
    files = list(folder.rglob("testing_label_mask/*_label.mat"))
    if not files or not all(path.stem.split("_")[0].isdecimal() for path in files):
        raise UserError(f"there is no testing_label_mask/<n>_label.mat below {folder}, or others: Avenue's labels")
    with atomic_write(output / "labels.txt", "w") as file:
        for number, path in sorted((int(path.stem.split("_")[0]), path) for path in files):
            from memae.data.matlab import read_mat  # with SciPy, slow to import

            masks = read_mat(path, "volLabel", kinds={"cell"})[0].ravel()  # of a publisher who is trusted
            if masks.dtype != object or not all(np.asarray(mask).dtype.kind in "buif" for mask in masks):
                raise UserError(f"{path}: volLabel holds something else than a mask for each frame")
            abnormal = [0, *(int(np.any(mask)) for mask in masks), 0]
            spans = np.flatnonzero(np.diff(abnormal)).reshape(-1, 2)  # first and past the last, from 0
            file.write(f"{number:02d}: {', '.join(f'{first + 1}-{end}' for first, end in spans)}\n")
    return {"avenue": output}


def holding(name: str, *parts: str) -> Callable[[Path, Path], dict[str, Path]]:
    """A data set that is one folder, in which `parts` must be."""

    def convert(folder: Path, output: Path) -> dict[str, Path]:
        for part in parts:
            if not (folder / part).exists():
                raise UserError(f"there is no {folder / part}")
        return {name: folder}

    return convert


CONVERT = {
    "mvtec": categories, "mtd": categories, "visa": visa, "btad": btad, "avenue": avenue,
    "mnist": holding("mnist", "MNIST/raw"), "ped2": holding("ped2", "Train", "Test"),
}  # fmt: skip
