"""From measured volumes to what training and testing read: normalised volumes, their statistics, test sequences."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from common import checkpoint
from common.cli import note, number_of, say
from common.files import UserError, read_csv, read_tensors, require_like, using, write_csv
from crrn.boards import Boards, board_files, command, digest_of, grid_side, is_synthetic, read_boards, read_layout
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
    def source(self) -> str:
        """What results say of the data: "synthetic", or the folder."""
        return "synthetic" if is_synthetic(self.folder) else str(self.folder)

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
            least = f"at least {2 * self.cycle} boards are needed"
            raise UserError(f"{self.folder} holds one cycle of boards: none can be held out, {least}")
        count = min(max(round(held_out * len(cycles)), 1), len(cycles) - 1)
        train = cycles[:-count].flatten(0, 1)
        values, mean, std = normalise(self.volume, train, self.pad_ids, self.folder, "in the training cycles")
        if constant := _constant(train, self.pad_ids):
            note(f"constant in the training cycles, so normalised by 1 instead of its deviation: {_named(constant)}")
        images = place(values.float().view_as(cycles), *self.pixels, self.height, self.width)
        return images[:-count], images[-count:], mean, std


def normalise(
    volume: Tensor, reference: Tensor, pad_ids: Sequence[int], source: Path, where: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Volumes (N, P) in standard deviations from each pad's mean, and these, (P,) each: of `reference`, (M, P), the
    population's; 1 for constant pads. UserError where all are constant, or numbers are not finite."""
    constant = (reference == reference[0]).all(dim=0)
    if constant.all():
        raise UserError(f"{source}: no pad's volume changes {where}, there is nothing to learn")
    mean, std = reference.mean(dim=0), torch.where(constant, 1.0, reference.std(dim=0, correction=0))
    values = (volume - mean) / std
    finite = values.float().isfinite().all(dim=0) & mean.isfinite() & std.isfinite()
    if not finite.all():
        pad = pad_ids[int(finite.int().argmin())]
        raise UserError(f"{source}: the volumes of pad {pad} are too large, or too much alike, to be normalised")
    return values, mean, std


def _constant(volume: Tensor, pad_ids: Sequence[int]) -> list[int]:
    """The pads that have the same volume, (N, P), on all boards."""
    return [pad for pad, same in zip(pad_ids, (volume == volume[0]).all(dim=0).tolist()) if same]


def _named(pads: list[int]) -> str:
    more = f", ... ({len(pads)} in all)" if len(pads) > 5 else ""
    return f"pad{'' if len(pads) == 1 else 's'} {', '.join(map(str, pads[:5]))}{more}"


def _note_left_out(files: Sequence[Path], cycle: int, pads: list[int], pixels: Sequence, volume: Tensor) -> None:
    """Say which of the boards `files` lie beyond the last whole cycle, and which `pads` share a pixel with another one
    or have the same volume (N, P) on all boards."""
    if more := len(files) % cycle:
        cycles = number_of(len(files) // cycle, "cycle")
        note(f"{len(files)} boards are {cycles} of {cycle} and {more} more, left out, from {files[-more]} on")
    first = dict(zip(reversed(pixels), reversed(pads)))
    if hidden := [pad for pad, pixel in zip(pads, pixels) if first[pixel] != pad]:
        note(f"on the same pixel as another pad, of which the network sees only one: {_named(hidden)}")
    if constant := _constant(volume, pads):
        note(f"the same volume on all boards, so that its normalised volume is 0: {_named(constant)}")


def preprocess(folder: Path, cycle: int, seed: int = 0, output: Path | None = None) -> Boards:
    """Read the boards in `folder`, write pcb_info.pt, test_pcbs.pt and df_info.csv beside them, or to `output`, and
    return the boards.

    cycle: boards between two cleanings; boards beyond the last whole cycle are left out. UserError says what is wrong.
    """
    output = output or folder
    layout = read_layout(folder / "job.json")
    files = board_files(folder / "spi_measurement")
    whole = len(files) // cycle * cycle
    inputs = digest_of([folder / "job.json", *files[:whole]])  # before they are read: later changes are noticed
    boards = read_boards(folder / "spi_measurement", layout)
    if not whole:
        there = f"{folder / 'spi_measurement'} holds {number_of(len(files), 'board')}"
        raise UserError(f"{there}, fewer than one cycle of {cycle} (--cycle)")
    boards = replace(boards, **{name: getattr(boards, name)[:whole] for name in ("x", "y", "volume", "files")})
    volume, pad_ids = torch.from_numpy(boards.volume), boards.pad_ids.tolist()  # (N, P)
    rows, columns = (torch.from_numpy(mm).long() for mm in (boards.y, boards.x))  # of the pads' pixels, (N, P)
    _note_left_out(files, cycle, pad_ids, list(zip(rows[0].tolist(), columns[0].tolist())), volume)
    normalised, mean, std = normalise(volume, volume, pad_ids, folder, "from board to board")
    by_age = normalised.unflatten(0, (-1, cycle)).transpose(0, 1).contiguous()  # (cycle, n, P)
    if by_age[0].numel() < 2:
        raise UserError(f"{folder}: one pad on one cycle of boards has no spread at an age; at least two are needed")
    means, stds = [v.mean().item() for v in by_age], [v.std().item() for v in by_age]

    times, ids = np.arange(whole).repeat(len(pad_ids)), np.tile(boards.pad_ids - 1, whole)
    values = [array.ravel().tolist() for array in (times, ids, boards.x, boards.y, volume)]
    cells = [*values, boards.groups * whole, normalised.ravel().tolist(), (times % cycle).tolist()]
    write_csv(output / "df_info.csv", list(COLUMNS), zip(*cells))
    generator = torch.Generator().manual_seed(seed)
    drawn = draw_sequences(whole // cycle, len(pad_ids), means, stds, generator)  # (n, cycle, P)
    at = [pixel.unflatten(0, (-1, cycle)) for pixel in (rows, columns)]
    checkpoint.write(output / "test_pcbs.pt", place(drawn, *at, layout.height, layout.width))
    info = {"mean": means, "std": stds, "height": layout.height, "width": layout.width}
    checkpoint.write(output / "pcb_info.pt", {**info, "pcb_mean": mean, "pcb_std": std, "inputs": inputs})
    pads = f"{number_of(len(pad_ids), 'pad')}, {layout.height} x {layout.width} pixels"
    say(f"{whole} boards in {number_of(whole // cycle, 'cycle')} of {cycle}, {pads}: {output}")
    return boards


def is_prepared(folder: Path) -> bool:
    """Whether all files that `preprocess` writes are there; it writes pcb_info.pt last."""
    return all((folder / name).is_file() for name in ("df_info.csv", "test_pcbs.pt", "pcb_info.pt"))


def load_prepared(folder: Path, cycle: int | None = None, output: Path | None = None) -> Prepared:
    """Read what `preprocess` wrote of the boards in `folder`, there or to `output`. UserError where it is damaged,
    belongs to other boards than lie there now, or to cycles of another length than `cycle` (None: any)."""
    words = ["--data", str(folder.resolve()), *([] if cycle is None else ["--cycle", str(cycle)])]
    again = f"{command('0_preprocessing.py', *words)} makes it again"
    if output not in (None, folder):
        again = f"remove {output / 'pcb_info.pt'} to make it again"
    try:
        prepared = _read_prepared(folder, cycle, output or folder)
    except UserError as error:
        raise UserError(f"{error}: {again}") from error
    if min(prepared.height, prepared.width) < SMALLEST:
        sides = f"{prepared.height} x {prepared.width}"
        raise UserError(f"{folder}: boards of {sides} pixels are too small for the network, which needs {SMALLEST}")
    return prepared


def _read_prepared(folder: Path, cycle: int | None, output: Path) -> Prepared:
    info, tests = read_tensors(output / "pcb_info.pt"), read_tensors(output / "test_pcbs.pt")
    with using(output / "pcb_info.pt", "0_preprocessing.py"):
        require_like(info, {"mean": [0.0], "std": [0.0], "height": 0, "width": 0})
        ages, height, width = len(info["mean"]), info["height"], info["width"]
        sides = all(1 < side <= grid_side(2000) and side % 4 == 1 for side in (height, width))
        if not (sides and 1 < ages == len(info["std"]) and min(info["std"]) >= 0):
            raise ValueError("means, deviations, height or width make no sense")
    if cycle not in (None, ages):
        raise UserError(f"{folder} was preprocessed for cycles of {ages} boards, not {cycle}: give --cycle {ages}, or")
    with using(output / "df_info.csv", "0_preprocessing.py"):
        rows = read_csv(output / "df_info.csv")
        columns = {name: [row[name] for row in rows] for name in COLUMNS}
        table = {name: np.array(cells, np.float64) for name, cells in columns.items() if name != "Group"}
        if not (pads := int((table["Timestep"] == 0).sum())):
            raise ValueError("no pads of the first board")
        boards, times = len(rows) // pads, np.arange(len(rows)) // pads
        ids, x, y = table["PadID"][:pads], table["X"], table["Y"]
        unlike = (ids != ids.round()).any() or np.abs(ids).max() > 2**53 or len(np.unique(ids)) < pads
        if unlike or not np.array_equal(table["PadID"], np.tile(ids, boards)):
            raise ValueError("not the same pads in the same order on all boards")
        if boards % ages or (table["Timestep"] != times).any() or (table["Age"] != times % ages).any():
            raise ValueError("Timestep or Age out of order")
        inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
        if not (inside & np.isfinite(table["Vol"])).all():
            raise ValueError("pads off the board, or volumes that are not finite")
    files: list[Path] = []
    if (folder / "spi_measurement").is_dir():
        files = board_files(folder / "spi_measurement")
        if len(files) // ages * ages != boards:
            raise UserError(f"{folder} was preprocessed with {boards} boards, now there are {len(files)}")
        # The authors' files do not know their boards.
        if "inputs" in info and digest_of([folder / "job.json", *files[:boards]]) != info["inputs"]:
            raise UserError(f"{folder}: job.json or boards have changed since they were preprocessed")
    with using(output / "test_pcbs.pt", "0_preprocessing.py"):
        shape = boards // ages, ages, 1, height, width
        if tests.shape != shape or tests.dtype != torch.float32 or not tests.isfinite().all() or not tests.any():
            raise ValueError(f"expected finite float32 of shape {shape}, not all 0")
    volume, pad_ids = torch.from_numpy(table["Vol"]).view(boards, pads), (ids + 1).astype(int).tolist()
    x, y = torch.from_numpy(x[:pads]), torch.from_numpy(y[:pads])
    _note_left_out(files, ages, pad_ids, list(zip(y.long().tolist(), x.long().tolist())), volume)
    return Prepared(folder, info["mean"], info["std"], height, width, volume, pad_ids, x, y, tests)
