"""Judge newly measured boards, pad by pad: python 3_score_boards.py --boards FOLDER [--fpr 0.01]

FOLDER, or spi_measurement/ in it, holds spi_000.json, spi_001.json, ... in print order, the first one printed after a
stencil cleaning, with the pads that the model was trained with. Writes to --output (default
<data>/result/<mode>/<folder's name>): pads.csv with signed error and verdict of every pad, boards_<cycle>.png with the
red and blue board maps, and results.json.

A pad is excessive where its error (input - reconstruction, in standard deviations of the pad) is above one threshold,
insufficient where it is below the other. Both come from the measured cycles that were held out of the statistics (and,
with --protocol measured, of the training), so that a share --fpr of their pads would be called wrong.
"""

import sys
from argparse import Namespace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch import Tensor

from common.files import write_csv, write_json
from common.metrics import threshold_for_fpr
from common.runtime import ArgumentParser, UserError, progress, say, script
from crrn.boards import Boards, cycle_of, is_synthetic, read_boards, read_layout
from crrn.checkpoints import add_model_options, check_options, load_trained, reconstruct, result_folder
from crrn.demo_boards import ensure_prepared
from crrn.pictures import draw_boards
from crrn.preprocess import Prepared
from crrn.utils import at_pads, device_of, place

SHEET = 5  # boards on one row of a picture
HEADER = ["board", "file", "age", "pad_id", "x", "y", "volume", "normalised", "expected", "error", "verdict"]


def read_new_boards(folder: Path, prepared: Prepared) -> Boards:
    """Boards to judge. UserError where their pads are not those of the preprocessed ones."""
    boards = read_boards(folder, read_layout(prepared.folder / "job.json"))
    if sorted(boards.pad_ids.tolist()) != sorted(prepared.pad_ids):
        odd = min(set(boards.pad_ids.tolist()) ^ set(prepared.pad_ids))
        raise UserError(f"{folder}: pad {odd} is not on these boards and on those of {prepared.folder} alike")
    return boards


def score(
    options: Namespace, prepared: Prepared, boards: Boards, model: torch.nn.Module, device: torch.device
) -> tuple[Tensor, Tensor, Tensor, list[dict[str, float]]]:
    """Normalised volume, reconstruction, error, (N, P) each in prepared's order of pads; and thresholds per cycle.

    The last cycle may be a part of one. Its thresholds come from equally long parts of the held-out cycles, since
    reconstruction is harder or easier in shorter sequences.
    """
    _, held_out, mean, std = prepared.measured_cycles(options.held_out)
    order = [boards.pad_ids.tolist().index(pad) for pad in prepared.pad_ids]
    values = ((torch.from_numpy(boards.volume)[:, order] - mean) / std).float()
    expected, thresholds = [], []
    by_length: dict[int, dict[str, float]] = {}
    for part in progress(values.split(prepared.cycle), "scoring cycles"):
        if len(part) not in by_length:
            shorter = held_out[:, : len(part)]
            output = reconstruct(model, shorter, options.batch_size, device, options.precision)
            errors = at_pads(shorter - output, *prepared.pixels)
            by_length[len(part)] = _thresholds(errors.flatten(), options.fpr)
        images = place(part, *prepared.pixels, prepared.height, prepared.width)
        output = reconstruct(model, images[None], 1, device, options.precision)[0]
        expected.append(at_pads(output, *prepared.pixels))
        thresholds.append(by_length[len(part)])
    reconstruction = torch.cat(expected)
    return values, reconstruction, values - reconstruction, thresholds


def _thresholds(errors: Tensor, fpr: float) -> dict[str, float]:
    """Limits of the errors of fine pads: above "excessive" and below "insufficient" lies at most fpr / 2 each."""
    high, promised_high = threshold_for_fpr(errors, fpr / 2)
    low, promised_low = threshold_for_fpr(-errors, fpr / 2)
    return {
        "excessive": high,
        "insufficient": -low,
        "pads": errors.numel(),
        "fpr": fpr,
        "promised_fpr": promised_high + promised_low,
    }


def verdict_of(error: float, threshold: dict[str, float]) -> str:
    """ "excessive", "insufficient" or "fine"."""
    if error > threshold["excessive"]:
        return "excessive"
    return "insufficient" if error < threshold["insufficient"] else "fine"


@script
def main(argv: list[str] | None = None) -> None:
    """Judge the boards of one folder."""
    parser = ArgumentParser(description="Judge newly measured boards, pad by pad, with a trained CRRN.")
    add_model_options(parser, [0])
    parser.add_argument("--boards", type=Path, required=True, help="folder with spi_000.json, ..., in print order")
    parser.add_argument("--output", type=Path, help="folder for the results")
    parser.add_argument("--fpr", type=float, default=0.01, help="share of fine pads that may be called wrong")
    parser.add_argument("--batch_size", type=int, default=20, help="sequences at once")
    options = parser.parse_args(argv)
    check_options(options, batch_size=(1, 1e9), fpr=(1e-6, 0.5))
    cycle = cycle_of(options.data, options.cycle)
    device = device_of(options.gpu_ids, options.cpu)
    prepared = ensure_prepared(options.data, cycle)
    folder = result_folder(options, prepared.folder)
    model, content = load_trained(folder / "model_dictionary.pt", options, prepared, device)
    inside = options.boards / "spi_measurement"
    source = inside if inside.is_dir() else options.boards
    boards = read_new_boards(source, prepared)
    values, expected, errors, thresholds = score(options, prepared, boards, model, device)
    if thresholds[0]["promised_fpr"] > options.fpr:
        say(
            f"{thresholds[0]['pads']} held-out pads cannot vouch for a false-positive rate of {options.fpr:g}, only "
            f"for {thresholds[0]['promised_fpr']:.2g}"
        )

    output = options.output or folder / options.boards.resolve().name
    order = [boards.pad_ids.tolist().index(pad) for pad in prepared.pad_ids]
    rows = []
    for n, file in enumerate(boards.files):
        numbers = zip(
            prepared.pad_ids,
            boards.x[n, order].tolist(),
            boards.y[n, order].tolist(),
            boards.volume[n, order].tolist(),
            values[n].tolist(),
            expected[n].tolist(),
            errors[n].tolist(),
        )
        rows += [[n, file, n % cycle, *pad, verdict_of(pad[-1], thresholds[n // cycle])] for pad in numbers]
    write_csv(output / "pads.csv", HEADER, rows)
    verdicts = [row[-1] for row in rows]
    counts = {kind: verdicts.count(kind) for kind in ("fine", "excessive", "insufficient")}
    write_json(
        output / "results.json",
        {
            "method": "CRRN",
            "model": str(folder / "model_dictionary.pt"),
            "trained_on": content.get("data"),
            "data": "synthetic" if is_synthetic(source.parent) else str(source),
            "pads": counts,
            "thresholds_by_cycle": thresholds,
        },
    )
    _draw(output, prepared, errors, thresholds)
    wrong = f"{counts['excessive']} excessive, {counts['insufficient']} insufficient"
    say(f"{len(boards)} boards, {len(rows)} pads: {wrong}; {output}")


def _draw(folder: Path, prepared: Prepared, errors: Tensor, thresholds: list[dict[str, float]]) -> None:
    """One picture per cycle; the deepest colours begin at twice the threshold."""
    images = place(errors, *prepared.pixels, prepared.height, prepared.width)[:, 0].numpy()
    mask = prepared.mask.numpy()
    for number, threshold in enumerate(thresholds):
        start = number * prepared.cycle
        part = images[start : start + prepared.cycle]
        draw_boards(
            folder / f"boards_{number:03d}.png",
            {"": part},
            [f"board {start + n}" for n in range(len(part))],
            mask,
            f"signed error; called excessive above {threshold['excessive']:.2f}, insufficient below "
            f"{threshold['insufficient']:.2f}",
            limit=2 * max(threshold["excessive"], -threshold["insufficient"], 0.1),
            columns=SHEET,
        )


if __name__ == "__main__":
    sys.exit(main())
