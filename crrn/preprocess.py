"""From measured volumes to what training and testing read: normalised volumes, their statistics, test sequences."""

import csv
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common import checkpoint
from common.files import UserError, write_csv
from common.runtime import say
from crrn.boards import INPUTS, Boards, read_boards, read_layout
from crrn.utils import draw_sequences, place

COLUMNS = ("Timestep", "PadID", "X", "Y", "Vol", "Group", "Vol_norm", "Age")
SMALLEST = 13  # pixels: halved twice by convolutions of 5 x 5, one pixel is left
AGAIN = "python crrn/0_preprocessing.py makes it anew"


@dataclass
class Prepared:
    """What `preprocess` wrote, read back. N boards in whole cycles, P pads."""

    folder: Path
    mean: list[float]  # of the normalised volumes at each age, [cycle]
    std: list[float]
    height: int
    width: int
    pcb_mean: Tensor  # (P,) float64, mean volume of each pad
    pcb_std: Tensor
    volume: Tensor  # (N, P) float64, as measured
    pad_ids: list[int]  # (P,), from 1
    groups: list[str]
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
        of the training cycles alone, which come third and fourth, (P,). UserError where there is but one cycle.
        """
        cycles = self.volume.unflatten(0, (-1, self.cycle))  # (n, cycle, P)
        if len(cycles) < 2:
            raise UserError(
                f"{self.folder} holds one cycle of boards: none can be held out. At least {2 * self.cycle} are needed"
            )
        count = min(max(round(held_out * len(cycles)), 1), len(cycles) - 1)
        train = cycles[:-count].flatten(0, 1)
        mean, std = pad_statistics(train)
        images = place(((cycles - mean) / std).float(), *self.pixels, self.height, self.width)
        return images[:-count], images[-count:], mean, std


def pad_statistics(volume: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and population std of each pad, (N, P) -> (P,) each; a constant pad's std is given as 1."""
    std = volume.std(dim=0, correction=0)
    return volume.mean(dim=0), torch.where((volume == volume[0]).all(dim=0), 1.0, std)


def preprocess(folder: Path, cycle: int, seed: int = 0) -> Boards:
    """Read the boards in `folder`, write pcb_info.pt, test_pcbs.pt and df_info.csv beside them, return the boards.

    cycle: boards between two cleanings; boards beyond the last whole cycle are left out. UserError says what is wrong.
    """
    if seed < 0:
        raise UserError(f"--seed {seed}: use 0 or more")
    layout = read_layout(folder / "job.json")
    boards = read_boards(folder / "spi_measurement", layout)
    count, whole = len(boards), len(boards) // cycle * cycle
    if not whole:
        raise UserError(f"{folder / 'spi_measurement'} holds {count} boards, fewer than one cycle of {cycle} (--cycle)")
    if whole < count:
        say(f"{count} boards are {whole // cycle} cycles of {cycle} and {count - whole} more, which are left out")
        boards = boards.first(whole)
    shared = len(boards.pad_ids) - len(set(zip(boards.rows[0].tolist(), boards.columns[0].tolist())))
    if shared:
        say(f"{shared} of {len(boards.pad_ids)} pads lie on the pixel of another one, which hides them")

    volume = torch.from_numpy(boards.volume)  # (N, P)
    mean, std = pad_statistics(volume)
    constant = int((volume == volume[0]).all(dim=0).sum())
    if constant:
        say(f"{constant} pads have the same volume on all boards: their normalised volume is 0")
    normalised = (volume - mean) / std
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
    write_csv(folder / "df_info.csv", list(COLUMNS), rows)

    generator = torch.Generator().manual_seed(seed)
    drawn = draw_sequences(whole // cycle, len(boards.pad_ids), means, stds, generator)  # (n, cycle, P)
    at = (torch.from_numpy(pixel).unflatten(0, (-1, cycle)) for pixel in (boards.rows, boards.columns))
    checkpoint.write(folder / "test_pcbs.pt", place(drawn, *at, layout.height, layout.width))
    info = {"mean": means, "std": stds, "height": layout.height, "width": layout.width}
    checkpoint.write(folder / "pcb_info.pt", {**info, "pcb_mean": mean, "pcb_std": std})
    say(
        f"{whole} boards in {whole // cycle} cycles of {cycle}, {len(boards.pad_ids)} pads, "
        f"{layout.height} x {layout.width} pixels: {folder}"
    )
    return boards


def is_prepared(folder: Path) -> bool:
    """Whether all files that `preprocess` writes are there; it writes pcb_info.pt last."""
    return all((folder / name).is_file() for name in ("df_info.csv", "test_pcbs.pt", "pcb_info.pt"))


def load_prepared(folder: Path, cycle: int | None = None) -> Prepared:
    """Read what `preprocess` wrote to `folder`. UserError where it is broken, belongs to another number of boards, or
    to cycles of another length than `cycle` (None: any)."""
    info, tests = checkpoint.read(folder / "pcb_info.pt"), checkpoint.read(folder / "test_pcbs.pt")
    names = ("mean", "std", "height", "width", "pcb_mean", "pcb_std")
    if not isinstance(info, dict) or any(name not in info for name in names):
        raise UserError(f"{folder / 'pcb_info.pt'} does not hold {', '.join(names)}: {AGAIN}")
    if cycle is not None and len(info["mean"]) != cycle:
        raise UserError(
            f"{folder} was preprocessed for cycles of {len(info['mean'])} boards, not {cycle}: "
            f"give that --cycle, or run python crrn/0_preprocessing.py --cycle {cycle}"
        )
    if min(info["height"], info["width"]) < SMALLEST:
        size = f"{info['height']} x {info['width']}"
        raise UserError(f"{folder}: boards of {size} pixels are too small for the network, which needs {SMALLEST}")
    table = _read_table(folder / "df_info.csv")
    pads = int((table["Timestep"] == 0).sum())
    if not pads or len(table["Timestep"]) % (pads * len(info["mean"])) or len(info["pcb_mean"]) != pads:
        raise UserError(f"{folder / 'df_info.csv'} does not fit pcb_info.pt: {AGAIN}")
    volume = torch.from_numpy(table["Vol"]).view(-1, pads)
    found = sum(1 for _ in folder.glob(INPUTS[1] + ".json")) // len(info["mean"]) * len(info["mean"])
    if found not in (0, len(volume)):
        raise UserError(f"{folder} was preprocessed with {len(volume)} boards, now there are {found}: {AGAIN}")
    x, y = (torch.from_numpy(table[name][:pads]) for name in "XY")
    shape = (len(volume) // len(info["mean"]), len(info["mean"]), 1, info["height"], info["width"])
    if not isinstance(tests, Tensor) or tests.shape != shape or not (x.max() < shape[4] and y.max() < shape[3]):
        raise UserError(f"{folder / 'test_pcbs.pt'} does not fit pcb_info.pt and df_info.csv: {AGAIN}")
    ids = (table["PadID"][:pads] + 1).astype(int).tolist()
    info = {name: info[name] for name in names}
    info["pcb_mean"], info["pcb_std"] = (torch.as_tensor(info[name]).double() for name in ("pcb_mean", "pcb_std"))
    return Prepared(
        folder=folder, **info, volume=volume, pad_ids=ids, groups=table["Group"][:pads], x=x, y=y, test_pcbs=tests
    )  # fmt: skip


def _read_table(path: Path) -> dict[str, Any]:
    """Columns of df_info.csv: arrays (rows,) float64, Group as a list of texts."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.reader(file))
        header = rows.pop(0) if rows else []
        columns = dict(zip(header, zip(*rows, strict=True), strict=True))
        table = {name: np.array(columns[name], np.float64) for name in COLUMNS if name != "Group"}
        if not all(np.isfinite(values).all() for values in table.values()):
            raise ValueError("not all values are finite")
    except (ValueError, KeyError, csv.Error) as error:
        raise UserError(f"{path} is broken ({error}): {AGAIN}") from error
    return table | {"Group": list(columns["Group"])}
