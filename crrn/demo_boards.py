"""Boards that nobody printed, in exactly the format of an inspection machine; the authors' were never published.

    python crrn/demo_boards.py --output DIR   makes DIR/{job.json,spi_measurement/spi_*.json,SYNTHETIC}

What a pad's volume is made of, as shares of the pad's own mean (standard deviations):

    drift with the boards since cleaning  small apertures clog (down to -9 %), large ones smear (up to +5 %)
    direction of the squeegee stroke      every other board, +-1.5 % from one end of the board to the other
    paste and pressure of the board       3 %, the same for neighbouring pads (8 mm) and slowly changing (0.8 per board)
    the pad's own noise                   1.5 %, independent

The shares are assumptions, not measurements: how much neighbours and history tell about a pad decides which method
wins, so results on these boards say that a program works, not how well it does on a line.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from common.cli import answer_early
from crrn.options import parse_demo_boards

answer_early(__name__, parse_demo_boards)

import numpy as np
from scipy.linalg import cholesky
from scipy.spatial.distance import cdist

from common.cli import note, say, script
from common.files import UserError, require_writable, write_json
from common.images import new_synthetic_folder
from crrn.boards import FIELDS, data_folder, is_synthetic
from crrn.preprocess import Prepared, is_prepared, load_prepared, preprocess

LENGTH, WIDTH = 32.0, 24.0  # mm; on a grid of 33 x 25 pixels
CYCLE = 20  # boards between two cleanings of the stencil
# Components: outline as (rows, columns) of pads, whether only the rim has pads, how many, shape, mean volume.
COMPONENTS = [
    ((8, 8), True, 2, "QFP", 60.0),
    ((5, 5), False, 2, "BGA", 35.0),
    ((5, 7), True, 3, "SOIC", 80.0),
    ((1, 8), False, 2, "connector", 150.0),
    ((1, 3), True, 22, "0603", 110.0),
    ((3, 1), True, 14, "0402", 50.0),
]
SMALL = 55.0  # apertures with less volume clog, others smear
DRIFT, SMEAR, STROKE, FIELD, NOISE = 0.09, 0.05, 0.015, 0.03, 0.015
REACH, MEMORY = 8.0, 0.8  # mm over which neighbours are alike; correlation of one board's field with the next one's


def make_boards(folder: str | Path, seed: int = 0, boards: int = 200, run: int = 0) -> None:
    """Write `boards` boards of 32 x 24 mm to `folder`, which must not hold anything yet.

    seed: of pads and volumes; run: another number gives other volumes of the same pads, a new print run. Same arguments
    give same files. Each pad has a pixel of its own. UserError where the folder cannot be made.
    """
    x, y, shape, mean = _layout(np.random.default_rng(seed))
    rng = np.random.default_rng([seed, run, 1])
    volumes = _volumes(x, y, mean, boards, rng)
    ids = np.arange(1, len(x) + 1)
    mixed = rng.permutation(len(x))  # job.json need not list the pads in their order
    job = {"PCBInfo": {"PCBLenth": [LENGTH], "PCBWidth": [WIDTH]}, "Pad": {"ID": ids[mixed], "ShapeID": shape[mixed]}}
    with new_synthetic_folder(folder, f"python crrn/demo_boards.py --seed {seed} --boards {boards} --run {run}") as new:
        write_json(new / "job.json", job)
        for number, volume in enumerate(volumes):
            shift = rng.normal(0, 0.03, 2)  # mm, how the board lay in the machine
            columns = np.round(x + shift[0], 4), np.round(y + shift[1], 4), np.round(volume, 4), ids
            pads = [dict(zip(FIELDS, pad)) for pad in zip(*map(np.ndarray.tolist, columns))]
            write_json(new / f"spi_measurement/spi_{number:03d}.json", {"PADINFO": pads})
    say(f"made {boards} boards with {len(x)} pads: {folder}")


def _layout(rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """Positions of the pads in mm (the middle of their pixels), ShapeID and mean volume, each (P,)."""
    free = np.ones((int(WIDTH), int(LENGTH)), bool)
    free[[0, -1]] = free[:, [0, -1]] = False
    pads = []
    for shape, ((rows, columns), rim, count, _, volume) in enumerate(COMPONENTS, start=1):
        inside = np.zeros((rows, columns), bool)
        if rim and min(rows, columns) > 2:
            inside[1:-1, 1:-1] = True  # pads around a body
            inside[[0, 0, -1, -1], [0, -1, 0, -1]] = True
            if rows != columns:
                inside[1:-1, [0, -1]] = True  # on two sides only
        elif rim:
            inside.flat[1] = True  # two pads with a gap
        for _ in range(count):
            places = [
                (top, left)
                for top in range(1, free.shape[0] - rows)
                for left in range(1, free.shape[1] - columns)
                if free[top - 1 : top + rows + 1, left - 1 : left + columns + 1].all()
            ]
            if not places:
                continue
            top, left = places[rng.integers(len(places))]
            free[top : top + rows, left : left + columns] = False
            pads += [(top + r + 0.5, left + c + 0.5, shape, volume) for r, c in np.argwhere(~inside)]
    y, x, shape, volume = np.array(pads).T
    mean = volume * rng.normal(1, 0.08, len(pads)).clip(0.7, 1.3)  # no two apertures are alike
    return x, y, shape.astype(int), mean


def _volumes(x: np.ndarray, y: np.ndarray, mean: np.ndarray, boards: int, rng: np.random.Generator) -> np.ndarray:
    """Volumes, (N, P); the terms are those listed at the top of this file."""
    age = (np.arange(boards) % CYCLE)[:, None] / (CYCLE - 1)  # 0..1 since cleaning
    drift = np.where(mean < SMALL, -DRIFT * age**1.5, SMEAR * age**0.7)
    stroke = STROKE * (-1.0) ** np.arange(boards)[:, None] * (2 * y / WIDTH - 1)

    places = np.stack([x, y], axis=1)
    alike = np.exp(-((cdist(places, places) / REACH) ** 2) / 2) + 1e-6 * np.eye(len(x))
    field = rng.normal(size=(boards, len(x))) @ cholesky(alike)
    for n in range(1, boards):
        field[n] = MEMORY * field[n - 1] + np.sqrt(1 - MEMORY**2) * field[n]
    return mean * (1 + drift + stroke + FIELD * field + NOISE * rng.normal(size=field.shape))


def ensure_boards(name: str | None) -> Path:
    """The folder that --data names; the boards of the default one are made where it does not exist."""
    folder = data_folder(name)
    if folder == data_folder(None) and not folder.exists():
        say(f"there is no {folder} yet: making boards to try things on")
        make_boards(folder)
    if not folder.is_dir():
        raise UserError(f"--data {name}: there is no folder {folder}; it has to hold job.json and spi_measurement/")
    if is_synthetic(folder):
        say(f"the boards in {folder} are generated stand-ins, not real data")
    return folder


def ensure_prepared(name: str | None, cycle: int, result: Path | None = None) -> Prepared:
    """The preprocessed boards of --data, made first where they do not exist; both in cycles of `cycle` boards.

    They lie beside the boards, or in `result` (--result) where that folder can only be read, which is said.
    """
    folder = output = ensure_boards(name)
    if result is not None and not is_prepared(folder):
        try:
            require_writable(folder)
        except UserError as error:
            output = result
            note(f"{error}; the preprocessed boards lie in {result}")
    if not is_prepared(output):
        say(f"the boards in {folder} are not preprocessed yet: doing it")
        preprocess(folder, cycle, output=output)
    return load_prepared(folder, cycle, output)


@script
def main(argv: list[str] | None = None) -> None:
    """Make demonstration boards."""
    options = parse_demo_boards(argv)
    make_boards(options.output, options.seed, options.boards, options.run)


if __name__ == "__main__":
    sys.exit(main())
