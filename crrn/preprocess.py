"""From measured volumes to what training and testing read: normalised volumes, their statistics, test sequences."""

import csv
import hashlib
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common import checkpoint
from common.cli import note, number_of, say
from common.files import UserError, read_tensors, read_text, write_csv
from crrn.boards import (
    LARGEST_ID,
    Boards,
    board_files,
    command,
    digest_of,
    grid_side,
    read_boards,
    read_layout,
)
from crrn.utils import draw_sequences, place

COLUMNS = ("Timestep", "PadID", "X", "Y", "Vol", "Group", "Vol_norm", "Age")
SMALLEST = 13  # pixels: halved twice by convolutions of 5 x 5, one pixel is left


@dataclass
class Prepared:
    """What `preprocess` wrote, read back. N boards in whole cycles, P pads."""

    folder: Path
    mean: list[float]  # of the normalised volumes at each age, [cycle]
    std: list[float]
    height: int
    width: int
    volume: Tensor  # (N, P) float64, as measured
    pad_ids: list[int]  # (P,), from 1
    x: Tensor  # (P,) mm, on the first board
    y: Tensor
    test_pcbs: Tensor  # (N // cycle, cycle, 1, H, W)

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that tell these boards and test sequences from others."""
        digest = hashlib.sha256(str((self.pad_ids, self.height, self.width)).encode())
        for values in (self.volume, self.x, self.y, self.test_pcbs):
            digest.update(values.contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    @property
    def cycle(self) -> int:
        """Boards between two cleanings."""
        return len(self.mean)

    @property
    def pixels(self) -> tuple[Tensor, Tensor]:
        """Row and column of each pad on the first board, (P,) int64."""
        return self.y.long(), self.x.long()

    @property
    def mask(self) -> Tensor:
        """(H, W) bool, the pads' pixels on the first board."""
        mask = torch.zeros(self.height, self.width, dtype=torch.bool)
        mask[self.pixels] = True
        return mask

    def measured_cycles(self, held_out: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Measured boards as sequences: those to train on and those held out, (n, cycle, 1, H, W) each, float32.

        held_out: share of the cycles, the last ones, at least one and not all. Volumes are normalised by mean and std
        of the training cycles alone, which come third and fourth, (P,). UserError where there is but one cycle, or
        where volumes cannot be normalised.
        """
        cycles = self.volume.unflatten(0, (-1, self.cycle))  # (n, cycle, P)
        if len(cycles) < 2:
            raise UserError(
                f"{self.folder} holds one cycle of boards: none can be held out. At least {2 * self.cycle} are needed"
            )
        count = min(max(round(held_out * len(cycles)), 1), len(cycles) - 1)
        train = cycles[:-count].flatten(0, 1)
        mean, std = pad_statistics(train)
        constant = _constant(train)
        if constant.all():
            raise UserError(f"{self.folder}: no pad's volume changes in the training cycles, nothing is to be learned")
        if constant.any():
            pads = _named([pad for pad, one in zip(self.pad_ids, constant.tolist()) if one])
            note(f"constant in the training cycles, so normalised by 1 instead of its deviation: {pads}")
        values = ((cycles - mean) / std).float()
        _require_finite(values.flatten(0, 1), mean, std, self.pad_ids, self.folder)
        images = place(values, *self.pixels, self.height, self.width)
        return images[:-count], images[-count:], mean, std


def pad_statistics(volume: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and population std of each pad, (N, P) -> (P,) each; a constant pad's std is given as 1."""
    std = volume.std(dim=0, correction=0)
    return volume.mean(dim=0), torch.where(_constant(volume), 1.0, std)


def _constant(volume: Tensor) -> Tensor:
    """Which pads have the same volume on all boards, (N, P) -> (P,) bool."""
    return (volume == volume[0]).all(dim=0)


def _named(pads: list[int]) -> str:
    more = f", ... ({len(pads)} in all)" if len(pads) > 5 else ""
    return f"pad{'' if len(pads) == 1 else 's'} {', '.join(map(str, pads[:5]))}{more}"


def _require_finite(normalised: Tensor, mean: Tensor, std: Tensor, pad_ids: list[int], source: Path) -> None:
    """UserError naming the first pad whose normalised volumes (N, P), mean or std (P,) are not finite."""
    finite = normalised.float().isfinite().all(dim=0) & mean.isfinite() & std.isfinite()
    if not finite.all():
        pad = pad_ids[int(finite.int().argmin())]
        raise UserError(f"{source}: the volumes of pad {pad} are too large, or too much alike, to be normalised")


def _note_left_out(files: Sequence[Path], cycle: int, pads: list[int], pixels: Sequence, volume: Tensor) -> None:
    """Say which of the boards `files` lie beyond the last whole cycle, and which `pads` share a pixel with another one
    or have the same volume (N, P) on all boards."""
    if more := len(files) % cycle:
        cycles = number_of(len(files) // cycle, "cycle")
        note(f"{len(files)} boards are {cycles} of {cycle} and {more} more, left out, from {files[-more]} on")
    first = dict(zip(reversed(pixels), reversed(pads)))
    if hidden := [pad for pad, pixel in zip(pads, pixels) if first[pixel] != pad]:
        note(f"on the pixel of another pad, so hidden by it or hiding it: {_named(hidden)}")
    if constant := [pad for pad, one in zip(pads, _constant(volume).tolist()) if one]:
        note(f"the same volume on all boards, so that its normalised volume is 0: {_named(constant)}")


def preprocess(folder: Path, cycle: int, seed: int = 0, output: Path | None = None) -> Boards:
    """Read the boards in `folder`, write pcb_info.pt, test_pcbs.pt and df_info.csv beside them, or to `output`, and
    return the boards.

    cycle: boards between two cleanings; boards beyond the last whole cycle are left out. UserError says what is wrong.
    """
    output = output or folder
    if not 0 <= seed < 2**32:
        raise UserError(f"--seed {seed}: expected a number from 0 to {2**32 - 1}")
    layout = read_layout(folder / "job.json")
    files = board_files(folder / "spi_measurement")
    count = len(files)
    whole = count // cycle * cycle
    inputs = digest_of([folder / "job.json", *files[:whole]])  # before they are read: later changes are noticed
    boards = read_boards(folder / "spi_measurement", layout)
    if not whole:
        raise UserError(
            f"{folder / 'spi_measurement'} holds {number_of(count, 'board')}, fewer than one cycle of {cycle} (--cycle)"
        )
    boards = boards.first(whole)
    volume = torch.from_numpy(boards.volume)  # (N, P)
    mean, std = pad_statistics(volume)
    if _constant(volume).all():
        raise UserError(f"{folder}: every pad has the same volume on all boards, nothing is to be learned")
    pixels = list(zip(boards.rows[0].tolist(), boards.columns[0].tolist()))
    _note_left_out(files, cycle, boards.pad_ids.tolist(), pixels, volume)
    normalised = (volume - mean) / std
    _require_finite(normalised, mean, std, boards.pad_ids.tolist(), folder)
    age = torch.arange(whole) % cycle
    by_age = [normalised[age == a] for a in range(cycle)]
    if by_age[0].numel() < 2:
        raise UserError(f"{folder}: one pad on one cycle of boards has no spread at an age; at least two are needed")
    means, stds = [v.mean().item() for v in by_age], [v.std().item() for v in by_age]

    rows = (
        (t, pad - 1, x, y, vol, group, norm, t % cycle)
        for t in range(whole)
        for pad, x, y, vol, group, norm in zip(
            boards.pad_ids.tolist(), boards.x[t].tolist(), boards.y[t].tolist(), boards.volume[t].tolist(),
            boards.groups, normalised[t].tolist(),
        )
    )  # fmt: skip
    write_csv(output / "df_info.csv", list(COLUMNS), rows)

    generator = torch.Generator().manual_seed(seed)
    drawn = draw_sequences(whole // cycle, len(boards.pad_ids), means, stds, generator)  # (n, cycle, P)
    at = (torch.from_numpy(pixel).unflatten(0, (-1, cycle)) for pixel in (boards.rows, boards.columns))
    checkpoint.write(output / "test_pcbs.pt", place(drawn, *at, layout.height, layout.width))
    info = {"mean": means, "std": stds, "height": layout.height, "width": layout.width}
    checkpoint.write(output / "pcb_info.pt", {**info, "pcb_mean": mean, "pcb_std": std, "inputs": inputs})
    say(
        f"{whole} boards in {number_of(whole // cycle, 'cycle')} of {cycle}, "
        f"{number_of(len(boards.pad_ids), 'pad')}, {layout.height} x {layout.width} pixels: {output}"
    )
    return boards


def is_prepared(folder: Path) -> bool:
    """Whether all files that `preprocess` writes are there; it writes pcb_info.pt last."""
    return all((folder / name).is_file() for name in ("df_info.csv", "test_pcbs.pt", "pcb_info.pt"))


def load_prepared(folder: Path, cycle: int | None = None, output: Path | None = None) -> Prepared:
    """Read what `preprocess` wrote of the boards in `folder`, there or to `output`. UserError where it is damaged,
    belongs to other boards than lie there now, or to cycles of another length than `cycle` (None: any)."""
    output = output or folder
    again = f"{_again(folder, cycle)} makes it anew"
    if output != folder:
        again = f"remove {output / 'pcb_info.pt'} to make it anew"
    info, tests = read_tensors(output / "pcb_info.pt"), read_tensors(output / "test_pcbs.pt")
    _require_sound(info, output / "pcb_info.pt", again)
    ages = len(info["mean"])
    if cycle is not None and ages != cycle:
        raise UserError(
            f"{folder} was preprocessed for cycles of {ages} boards, not {cycle}: give --cycle {ages}, or {again}"
        )
    height, width = info["height"], info["width"]
    if min(height, width) < SMALLEST:
        raise UserError(
            f"{folder}: boards of {height} x {width} pixels are too small for the network, which needs {SMALLEST}"
        )
    table = _read_table(output / "df_info.csv", again)
    pads = int((table["Timestep"] == 0).sum())
    boards = len(table["Timestep"]) // max(pads, 1)
    if problem := _unordered(table, boards, pads, ages):
        raise UserError(f"{output / 'df_info.csv'} is damaged ({problem}): {again}")
    x, y = (torch.from_numpy(table[name]) for name in "XY")
    if len(info["pcb_mean"]) != pads or not (x.max() < width and y.max() < height):
        raise UserError(f"{output / 'df_info.csv'} does not fit pcb_info.pt: {again}")
    files: list[Path] = []
    if (folder / "spi_measurement").is_dir():
        files = board_files(folder / "spi_measurement")
        if len(files) // ages * ages != boards:
            raise UserError(f"{folder} was preprocessed with {boards} boards, now there are {len(files)}: {again}")
        # The authors' files do not know their boards.
        if "inputs" in info and digest_of([folder / "job.json", *files[:boards]]) != info["inputs"]:
            raise UserError(f"{folder}: job.json or boards have changed since they were preprocessed: {again}")
    if problem := _unfit_tests(tests, (boards // ages, ages, 1, height, width)):
        raise UserError(f"{output / 'test_pcbs.pt'} {problem}: {again}")
    volume = torch.from_numpy(table["Vol"]).view(boards, pads)
    pad_ids = (table["PadID"][:pads] + 1).astype(int).tolist()
    pixels = list(zip(y[:pads].long().tolist(), x[:pads].long().tolist()))
    _note_left_out(files, ages, pad_ids, pixels, volume)
    return Prepared(
        folder=folder,
        **{name: info[name] for name in ("mean", "std", "height", "width")},
        volume=volume,
        pad_ids=pad_ids,
        x=x[:pads],
        y=y[:pads],
        test_pcbs=tests,
    )


def _again(folder: Path, cycle: int | None) -> str:
    """The command that preprocesses `folder`."""
    arguments = [] if cycle is None else ["--cycle", str(cycle)]
    return command("0_preprocessing.py", "--data", str(folder.resolve()), *arguments)


def _numbers(value: Any) -> bool:
    return isinstance(value, list) and len(value) > 1 and all(type(v) is float and math.isfinite(v) for v in value)


def _per_pad(value: Any) -> bool:
    dense = isinstance(value, Tensor) and value.layout == torch.strided and value.is_floating_point()
    return dense and value.dim() == 1 and bool(value.isfinite().all())


def _side(value: Any) -> bool:
    return type(value) is int and 1 < value <= grid_side(2000) and value % 4 == 1


# What pcb_info.pt holds.
INFO: dict[str, Callable[[Any], bool]] = {
    "mean": _numbers,
    "std": lambda value: _numbers(value) and min(value) >= 0,
    "height": _side,
    "width": _side,
    "pcb_mean": _per_pad,
    "pcb_std": _per_pad,
}


def _require_sound(info: Any, path: Path, again: str) -> None:
    for name, sound in INFO.items():
        if not isinstance(info, Mapping) or not sound(info.get(name)):
            raise UserError(f"{path} is damaged: its {name!r} is missing or not what preprocessing stores: {again}")
    if len(info["mean"]) != len(info["std"]) or len(info["pcb_mean"]) != len(info["pcb_std"]):
        raise UserError(f"{path} is damaged: means and deviations are not equally many: {again}")


def _unfit_tests(tests: Any, shape: tuple[int, ...]) -> str | None:
    """Why `tests` cannot be the test sequences; None where it can."""
    if not isinstance(tests, Tensor) or tests.layout != torch.strided or tests.dtype != torch.float32:
        return "is no dense tensor of float32"
    if tests.shape != shape:
        return f"does not fit pcb_info.pt and df_info.csv (shape {tuple(tests.shape)} instead of {shape})"
    if not tests.isfinite().all():
        return "holds nan or infinite values"
    return None if tests.any() else "holds nothing but zeros"


def _unordered(table: dict[str, np.ndarray], boards: int, pads: int, cycle: int) -> str | None:
    """Why the rows are not those of `boards` boards with the same `pads` pads each, one board after the other."""
    if not pads or not boards or len(table["Timestep"]) != boards * pads or boards % cycle:
        return "not all boards have the same number of pads, or not all cycles of boards"
    ids = table["PadID"][:pads]
    if (ids != ids.round()).any() or np.abs(ids).max() > LARGEST_ID or len(np.unique(ids)) < pads:
        return "PadIDs are no whole numbers, or not unique"
    times = np.repeat(np.arange(boards), pads)
    if (table["Timestep"] != times).any() or (table["Age"] != times % cycle).any():
        return "Timestep or Age out of order"
    if (table["PadID"] != np.tile(ids, boards)).any():
        return "not the same pads in the same order on all boards"
    return None if min(table["X"].min(), table["Y"].min()) >= 0 else "X or Y below 0"


def _read_table(path: Path, again: str) -> dict[str, np.ndarray]:
    """Columns of df_info.csv but for Group, (rows,) float64 each."""
    try:
        rows = list(csv.reader(io.StringIO(read_text(path), newline="")))
        header = rows.pop(0) if rows else []
        if len(set(header)) < len(header):
            raise ValueError("a column stands in it twice")
        columns = dict(zip(header, zip(*rows, strict=True), strict=True))
        table = {name: np.array(columns[name], np.float64) for name in COLUMNS if name != "Group"}
        if not all(np.isfinite(values).all() for values in table.values()):
            raise ValueError("not all values are finite")
    except (ValueError, KeyError, csv.Error) as error:
        raise UserError(f"{path} is broken ({error}): {again}") from error
    return table
