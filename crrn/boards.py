"""Solder-paste-inspection (SPI) data: where it lies, how it is read and checked, where its pads are on the grid.

<data>/job.json                          PCBInfo.PCBLenth[0] (sic), PCBInfo.PCBWidth[0] in mm; Pad.ID[], Pad.ShapeID[]
<data>/spi_measurement/spi_000.json ...  one file per printed board, numbered from 0 in print order, with or without
                                         leading zeros: PADINFO[] of PosX, PosY (mm), Volume, PadID (from 1)
"""

import hashlib
import math
import os
import re
import shlex
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from reprlib import repr as short  # numbers may have hundreds of digits
from typing import Any

import numpy as np

from common.cli import note, number_of, progress
from common.files import UserError, read_json, reason, regular
from common.images import synthetic, visible

HERE = Path(__file__).resolve().parent
CYCLES = {"ekra": 20, "jabil": 10}  # boards between two stencil cleanings, of the authors' two data sets
DEFAULT = "ekra"
INPUTS = ("job.json", "spi_measurement/*")  # what is data in a data folder; results lie beside it
LARGEST_ID = 2**53  # of a pad: up to here, float64 is exact
LONGEST_SHAPE = 200  # characters
FIELDS = ("PosX", "PosY", "Volume", "PadID")


def data_folder(name: str | None) -> Path:
    """The folder that --data names: the path, relative to where the user stands, or where there is none, crrn/<name>
    for a bare name; None: crrn/ekra, which need not be there."""
    path, inside = Path(name or ""), HERE / (name or DEFAULT)
    if name is None:
        return inside
    bare = len(path.parts) == 1 and path.name not in ("", "..")
    if path.is_dir() and bare and inside.is_dir() and not inside.samefile(path):
        note(f"--data {name} is {path.resolve()}, not {inside}")
    if path.is_dir():
        return path
    if bare and not path.exists() and (path.name in CYCLES or inside.is_dir()):
        return inside
    places = f"neither {path.absolute()} nor {inside} is a folder" if bare else f"{name} is not a folder"
    raise UserError(f"--data {name}: {places}; it has to hold job.json and spi_measurement/spi_000.json ...")


def cycle_of(name: str | None, given: int | None) -> int:
    """Boards per cycle: the one given, else the published one of that data set."""
    return CYCLES.get(Path(name or DEFAULT).name, CYCLES[DEFAULT]) if given is None else given


def command(script: str, *arguments: str) -> str:
    """The command line that runs a script of this folder from where the user stands."""
    return shlex.join(["python", os.path.relpath(HERE / script), *arguments])


def grid_side(millimetres: float) -> int:
    """Pixels for a board's side: rounded half up, then raised to the strictly next number that is 1 modulo 4."""
    rounded = math.floor(millimetres + 0.5)
    return rounded + 4 - (rounded - 1) % 4


@dataclass
class Layout:
    """What job.json tells: the grid, and the shape of each pad by its ID."""

    height: int  # pixels, 1 modulo 4
    width: int
    shapes: dict[int, Any]


@dataclass
class Boards:
    """N measured boards with P pads each, in the pads' order of the first board."""

    layout: Layout
    pad_ids: np.ndarray  # (P,) int64, from 1
    groups: list[Any]  # ShapeID of each pad
    x: np.ndarray  # (N, P) float64, mm
    y: np.ndarray
    volume: np.ndarray  # (N, P) float64
    files: list[str]

    def __len__(self) -> int:
        return len(self.volume)


def is_synthetic(folder: Path) -> bool:
    """Whether the boards in `folder` are generated stand-ins; UserError where real files lie among them."""
    return synthetic(folder, INPUTS)


def read_layout(path: Path) -> Layout:
    """Read job.json. UserError says what is missing or makes no sense."""
    job = read_json(path)
    try:
        sides = [job["PCBInfo"][name][0] for name in ("PCBWidth", "PCBLenth")]
        ids = job["Pad"]["ID"]
        shapes = dict(pairs := list(zip(ids, job["Pad"]["ShapeID"], strict=True)))
    except (LookupError, TypeError, ValueError) as error:
        fields = "PCBInfo.PCBLenth[0], PCBInfo.PCBWidth[0], and Pad.ID[] and Pad.ShapeID[] of the same length"
        raise UserError(f"{path}: expected {fields} ({type(error).__name__}: {error})") from error
    if odd := [side for side in sides if not _is_number(side) or not 1 <= side <= 2000]:
        raise UserError(f"{path}: a side in PCBInfo is {short(odd[0])}, expected millimetres from 1 to 2000")
    if odd := [pad for pad in ids if type(pad) is not int or abs(pad) > LARGEST_ID]:
        raise UserError(f"{path}: Pad.ID holds {short(odd[0])}, expected whole numbers up to {LARGEST_ID}")
    if odd := [name for _, name in pairs if not isinstance(name, (int, str)) or len(str(name)) > LONGEST_SHAPE]:
        expected = f"numbers or names of up to {LONGEST_SHAPE} characters"
        raise UserError(f"{path}: Pad.ShapeID holds {short(odd[0])}, expected {expected}")
    if len(shapes) < len(ids):
        raise UserError(f"{path}: pad {Counter(ids).most_common(1)[0][0]} stands more than once in Pad.ID")
    return Layout(*map(grid_side, sides), shapes)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def read_boards(folder: Path, layout: Layout) -> Boards:
    """Read all boards spi_000.json, spi_001.json, ... of `folder` and check them.

    UserError names file and field where a file is missing or broken, a number is none, a pad is unknown, lies off the
    board or comes twice, or the boards do not have the same pads.
    """
    paths = board_files(folder)
    tables = [_read_board(path, layout) for path in progress(paths, "reading boards")]
    ids = tables[0][-1]  # (P,)
    place = np.argsort(np.argsort(ids))  # of each pad among the sorted ones
    for number, (path, table) in enumerate(zip(paths, tables)):
        if odd := set(table[-1]) ^ set(ids):
            one = f"pad {min(odd):.0f} is on this board or on {paths[0].name}, not on both"
            raise UserError(f"{path}: {one}: all boards need the same pads")
        tables[number] = table[:, np.argsort(table[-1])[place]]
    x, y, volume, _ = np.stack(tables, axis=1)  # (N, P) each
    pad_ids = ids.astype(np.int64)
    if unused := layout.shapes.keys() - set(pad_ids.tolist()):
        note(f"{folder}: no board has {number_of(len(unused), 'pad')} of job.json, such as pad {min(unused)}")
    groups, names = [layout.shapes[pad] for pad in pad_ids.tolist()], [path.name for path in paths]
    return Boards(layout, pad_ids, groups, x, y, volume, names)


def _read_board(path: Path, layout: Layout) -> np.ndarray:
    """The FIELDS of each pad, (4, P) float64."""
    content = read_json(path)
    pads = content.get("PADINFO") if isinstance(content, dict) else None
    if not isinstance(pads, list) or not pads:
        raise UserError(f"{path}: PADINFO is missing, not a list, or empty")
    for number, pad in enumerate(pads):
        where = f"{path}: PADINFO[{number}]"
        for name in FIELDS:
            value = pad.get(name) if isinstance(pad, dict) else None
            if not _is_number(value):
                raise UserError(f"{where}.{name} is {short(value)}, expected a finite number")
        if pad["PadID"] not in layout.shapes:
            raise UserError(f"{where}.PadID is {pad['PadID']}: Pad.ID in job.json has no such pad")
        if not (0 <= pad["PosX"] < layout.width and 0 <= pad["PosY"] < layout.height):
            grid = f"the grid of {layout.width} x {layout.height} pixels of 1 mm, which begins at (0, 0)"
            raise UserError(f"{where} at ({pad['PosX']:g}, {pad['PosY']:g}) lies off {grid}")
    table = np.array([[pad[name] for pad in pads] for name in FIELDS], np.float64)
    ids, counts = np.unique(table[-1], return_counts=True)
    if counts.max() > 1:
        raise UserError(f"{path}: pad {ids[counts.argmax()]:.0f} stands more than once in PADINFO")
    return table


def board_files(folder: Path) -> list[Path]:
    """The files spi_000.json, spi_001.json, ... of `folder`, by number; others are left out, which is said. UserError
    where there are none, where one is missing, or where two have the same number."""
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}: it has to hold the boards spi_000.json, spi_001.json, ...")
    numbers: dict[int, Path] = {}
    others = []
    for path in visible(folder):
        if not (match := re.fullmatch(r"spi_([0-9]{1,9})\.json", path.name)):
            others.append(path.name)
        elif (other := numbers.setdefault(int(match[1]), path)) != path:
            raise UserError(f"{folder}: {other.name} and {path.name} have the same number")
    if not numbers:
        raise UserError(f"{folder} holds no boards: expected spi_000.json, spi_001.json, ...")
    if missing := set(range(len(numbers))) - numbers.keys():
        raise UserError(f"{folder}/spi_{min(missing):03d}.json is missing: boards are numbered from 000 without gaps")
    if others:
        left = number_of(len(others), "file")
        note(f"{folder}: {left} not called spi_<number>.json, so left out, such as {others[0]}")
    return [path for _, path in sorted(numbers.items())]


def digest_of(paths: Iterable[Path]) -> str:
    """16 hexadecimal digits that tell these files from others, job.json and boards."""
    digest = hashlib.sha256()
    for path in paths:
        try:
            content = regular(path).read_bytes()
        except OSError as error:
            raise UserError(f"cannot read {path}: {reason(error)}") from error
        digest.update(f"{path.name} {len(content)}\n".encode() + content)
    return digest.hexdigest()[:16]
