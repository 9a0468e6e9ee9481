"""Judge newly measured boards, pad by pad: python 3_score_boards.py --boards FOLDER [--fpr 0.01]

FOLDER, or spi_measurement/ in it, holds spi_000.json, spi_001.json, ... in print order, the first one printed after a
stencil cleaning, with the pads that the model was trained with. Writes to --output (default
<data>/result/<mode>/<folder's name>): pads.csv with signed error and verdict of every pad, boards_<cycle>.png with the
red and blue board maps, and results.json.

A pad is excessive where its error (input - reconstruction, in standard deviations of the pad) is above one threshold,
insufficient where it is below the other. Both come from the measured cycles that were held out of the statistics (and,
with --protocol measured, of the training): a share --fpr of their pads would be called wrong. That is an estimate from
few cycles, whose pads are alike; how well the other cycles would have judged each of them is told beside it.
"""

import math
import re
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch import Tensor

from common import checkpoint, distributed
from common.files import read_json, require_writable, write_csv, write_json
from common.metrics import threshold_for_fpr
from common.runtime import ArgumentParser, UserError, autocast, progress, say, script
from crrn.boards import Boards, cycle_of, is_synthetic, number_of, read_boards, read_layout
from crrn.checkpoints import (
    MODEL_SETTINGS,
    add_model_options,
    check_options,
    load_trained,
    reconstruct,
    result_folder,
)
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
) -> tuple[Tensor, Tensor, Tensor, list[dict[str, Any]]]:
    """Normalised volume, reconstruction, error, (N, P) each in prepared's order of pads; and thresholds per cycle.

    UserError names board file and pad where one of them is not finite.

    The last cycle may be a part of one. Its thresholds come from equally long parts of the held-out cycles, since
    reconstruction is harder or easier in shorter sequences.
    """
    _, held_out, mean, std = prepared.measured_cycles(options.held_out)
    order = [boards.pad_ids.tolist().index(pad) for pad in prepared.pad_ids]
    values = ((torch.from_numpy(boards.volume)[:, order] - mean) / std).float()
    if where := _not_finite(values, boards, prepared):
        raise UserError(f"{where}: its volume cannot be normalised")
    expected, thresholds = [], []
    by_length: dict[int, dict[str, Any]] = {}
    for part in progress(values.split(prepared.cycle), "scoring cycles"):
        if len(part) not in by_length:
            shorter = held_out[:, : len(part)]
            output = reconstruct(model, shorter, options.batch_size, device, options.precision)
            errors = at_pads(shorter - output, *prepared.pixels)
            if not errors.isfinite().all():
                raise UserError(
                    f"the held-out boards of {prepared.folder} have no finite reconstruction in --precision "
                    f"{options.precision}: try fp32"
                )
            by_length[len(part)] = thresholds_of(errors.flatten(1), options.fpr)
        images = place(part, *prepared.pixels, prepared.height, prepared.width)
        output = reconstruct(model, images[None], 1, device, options.precision)[0]
        expected.append(at_pads(output, *prepared.pixels))
        thresholds.append(by_length[len(part)])
    reconstruction = torch.cat(expected)
    errors = values - reconstruction
    if where := _not_finite(errors, boards, prepared):
        worst = divmod(int(values.abs().argmax()), values.size(1))
        raise UserError(
            f"{where}: no finite reconstruction in --precision {options.precision}; the volume furthest from normal is "
            f"that of pad {prepared.pad_ids[worst[1]]} in {boards.files[worst[0]]}, by {values[worst]:.3g} deviations"
        )
    return values, reconstruction, errors, thresholds


def _not_finite(values: Tensor, boards: Boards, prepared: Prepared) -> str | None:
    """File and pad of the first of values (N, P) that is nan or infinite."""
    wrong = torch.nonzero(~values.isfinite()).tolist()
    return f"{boards.files[wrong[0][0]]}, pad {prepared.pad_ids[wrong[0][1]]}" if wrong else None


def thresholds_of(errors: Tensor, fpr: float) -> dict[str, Any]:
    """Limits of the finite errors of fine pads, (held-out cycles, pads): above "excessive" and below "insufficient"
    lies at most fpr / 2 each.

    Pads of one cycle are alike, so that few cycles say little about the next one: "fpr_of_each_cycle_by_others" has,
    for each cycle, the share of its pads that limits from the other cycles call wrong (nan for a single cycle).
    """
    high, low = _limits(errors, fpr)
    met = []
    for one, cycle in enumerate(errors):
        others = torch.cat([errors[:one], errors[one + 1 :]])
        limits = _limits(others, fpr) if len(others) else (math.nan, math.nan)
        wrong = ((cycle > limits[0]) | (cycle < limits[1])).double().mean().item()
        met.append(wrong if len(others) else math.nan)
    return {
        "excessive": high,
        "insufficient": low,
        "held_out_cycles": len(errors),
        "held_out_pads": errors.numel(),
        "fpr_asked": fpr,
        "fpr_of_each_cycle_by_others": met,
    }


def _limits(errors: Tensor, fpr: float) -> tuple[float, float]:
    return threshold_for_fpr(errors, fpr / 2)[0], -threshold_for_fpr(-errors, fpr / 2)[0]


def describe(threshold: dict[str, Any]) -> str:
    """One line about where thresholds come from and how far they can be trusted."""
    rates, cycles = threshold["fpr_of_each_cycle_by_others"], threshold["held_out_cycles"]
    line = f"thresholds from {number_of(cycles, 'held-out cycle')}"
    if cycles == 1:
        return f"{line}: there is no other one to judge it by, so the rate of false positives is unknown"
    percent = ", ".join(f"{100 * rate:.1f}" for rate in rates)
    return f"{line}; each judged by the others: {percent} % of fine pads called wrong"


def verdict_of(error: float, threshold: dict[str, Any]) -> str:
    """ "excessive", "insufficient" or "fine". ValueError where error or thresholds are not finite."""
    if not all(map(math.isfinite, (error, threshold["excessive"], threshold["insufficient"]))):
        raise ValueError(f"error {error} against {threshold}: no verdict without finite numbers")
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
    device = distributed.join(device_of(options.gpu_ids, options.cpu))
    autocast(device, options.precision)  # refuses what this device cannot do
    with distributed.first_alone():
        prepared = ensure_prepared(options.data, cycle)
    folder = result_folder(options, prepared.folder)
    model, content = load_trained(folder / "model_dictionary.pt", options, prepared, device)
    inside = options.boards / "spi_measurement"
    source = inside if inside.is_dir() else options.boards
    boards = read_new_boards(source, prepared)
    artificial = is_synthetic(source.parent)
    output = options.output or folder / options.boards.resolve().name
    again = _require_own(output, source)
    values, expected, errors, thresholds = score(options, prepared, boards, model, device)
    say(describe(thresholds[0]))

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
            "epochs": content["epoch"] + 1,
            "trained_on": content.get("data"),
            "trained_on_these_boards": content["same_boards"],
            "normalised_and_thresholds_by": "synthetic" if is_synthetic(prepared.folder) else str(prepared.folder),
            "boards": str(source.resolve()),
            "data": "synthetic" if artificial else str(source),
            "pads": counts,
            "thresholds_by_cycle": thresholds,
            "device": str(device),
            "settings": {name: getattr(options, name) for name in (*MODEL_SETTINGS, "held_out", "fpr", "precision")},
            "versions": checkpoint.versions(),
        },
    )
    drawn = _draw(output, prepared, errors, thresholds, "synthetic boards: " if artificial else "")
    if again:  # of more boards than there are now
        for path in output.glob("boards_*.png"):
            if re.fullmatch(r"boards_\d+\.png", path.name) and path not in drawn:
                path.unlink()
    wrong = f"{counts['excessive']} excessive, {counts['insufficient']} insufficient"
    say(f"{number_of(len(boards), 'board')}, {number_of(len(rows), 'pad')}: {wrong}; {output}")


def _require_own(output: Path, source: Path) -> bool:
    """Whether `output` holds earlier results of the boards in `source`; UserError where it would mix with the boards
    themselves, a model, or results of others."""
    if output.resolve().is_relative_to(source.resolve()):
        raise UserError(f"--output {output} lies in {source}, among the boards: choose another --output")
    if (output / "model_dictionary.pt").exists():
        raise UserError(f"{output} holds a model and its results: choose another --output")
    again = (output / "results.json").exists()
    if again:
        before = read_json(output / "results.json")
        if not isinstance(before, dict) or before.get("boards") != str(source.resolve()):
            raise UserError(f"{output} holds results of other boards than {source}: choose another --output")
    require_writable(output)
    return again


def _draw(folder: Path, prepared: Prepared, errors: Tensor, thresholds: list[dict[str, Any]], about: str) -> list[Path]:
    """One picture per cycle, whose paths are returned; the deepest colours begin at twice the threshold."""
    images = place(errors, *prepared.pixels, prepared.height, prepared.width)[:, 0].numpy()
    mask = prepared.mask.numpy()
    paths = [folder / f"boards_{number:03d}.png" for number in range(len(thresholds))]
    for number, threshold in enumerate(thresholds):
        start = number * prepared.cycle
        part = images[start : start + prepared.cycle]
        draw_boards(
            paths[number],
            {"": part},
            [f"board {start + n}" for n in range(len(part))],
            mask,
            f"{about}signed error; called excessive above {threshold['excessive']:.2f}, insufficient below "
            f"{threshold['insufficient']:.2f}",
            limit=2 * max(threshold["excessive"], -threshold["insufficient"], 0.1),
            columns=SHEET,
        )
    return paths


if __name__ == "__main__":
    sys.exit(main())
