"""Judge newly measured boards, pad by pad: python 3_score_boards.py --boards FOLDER [--fpr 0.01]

FOLDER, or spi_measurement/ in it, holds spi_000.json, spi_001.json, ... in print order, the first one printed after a
stencil cleaning, with the pads that the model was trained with. Writes to --output (default
<data>/result/<mode>/<folder's name>): pads.csv with signed error and verdict of every pad, boards_<cycle>.png with the
red and blue board maps, and results.json. Each cycle's results are written as soon as they are there; interrupted, the
same command goes on with the cycles that are left.

A pad is excessive where its error (input - reconstruction, in standard deviations of the pad) is above one threshold,
insufficient where it is below the other. Both come from the measured cycles that were held out of the statistics (and,
with --protocol measured, of the training): a share --fpr of their pads would be called wrong. That is an estimate from
few cycles, whose pads are alike; how well the other cycles would have judged each of them is told beside it.
"""

import csv
import hashlib
import math
import os
import re
import sys
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from torch import Tensor

from common import checkpoint, distributed
from common.files import (
    append_csv,
    digest,
    first_process,
    naming,
    only_run,
    plain,
    read_json,
    write_csv,
    write_json,
)
from common.metrics import threshold_for_fpr
from common.runtime import ArgumentParser, UserError, autocast, goes_on, progress, say, script
from crrn.boards import Boards, cycle_of, is_synthetic, number_of, read_boards, read_layout
from crrn.checkpoints import MODEL_SETTINGS, add_model_options, check_options, load_trained, result_folder
from crrn.demo_boards import ensure_prepared
from crrn.pictures import draw_boards
from crrn.preprocess import Prepared
from crrn.utils import at_pads, device_of, place, reconstruct

SHEET = 5  # boards on one row of a picture
HEADER = ["board", "file", "age", "pad_id", "x", "y", "volume", "normalised", "expected", "error", "verdict"]


def read_new_boards(folder: Path, prepared: Prepared) -> Boards:
    """Boards to judge. UserError where their pads are not those of the preprocessed ones."""
    boards = read_boards(folder, read_layout(prepared.folder / "job.json"))
    if sorted(boards.pad_ids.tolist()) != sorted(prepared.pad_ids):
        odd = min(set(boards.pad_ids.tolist()) ^ set(prepared.pad_ids))
        raise UserError(f"{folder}: pad {odd} is not on these boards and on those of {prepared.folder} alike")
    return boards


def normalised(options: Namespace, prepared: Prepared, boards: Boards) -> tuple[Tensor, Tensor]:
    """Normalised volumes (N, P), in prepared's order of pads, and the held-out cycles (n, cycle, 1, H, W).

    UserError names board file and pad where a volume cannot be normalised.
    """
    _, held_out, mean, std = prepared.measured_cycles(options.held_out)
    order = [boards.pad_ids.tolist().index(pad) for pad in prepared.pad_ids]
    values = ((torch.from_numpy(boards.volume)[:, order] - mean) / std).float()
    if where := _not_finite(values, boards.files, prepared):
        raise UserError(f"{where}: its volume cannot be normalised")
    return values, held_out


def score_cycle(
    options: Namespace,
    prepared: Prepared,
    values: Tensor,
    files: list[str],
    model: torch.nn.Module,
    device: torch.device,
) -> tuple[Tensor, Tensor]:
    """Reconstruction and error of the boards of one cycle, or a part of it: normalised volumes (T, P) -> (T, P) each.

    UserError names board file and pad where one of them is not finite.
    """
    images = place(values, *prepared.pixels, prepared.height, prepared.width)
    output = reconstruct(model, images[None], 1, device, options.precision)[0]
    expected = at_pads(output, *prepared.pixels)
    if where := _not_finite(values - expected, files, prepared):
        worst = divmod(int(values.abs().argmax()), values.size(1))
        raise UserError(
            f"{where}: no finite reconstruction in --precision {options.precision}; the volume furthest from normal is "
            f"that of pad {prepared.pad_ids[worst[1]]} in {files[worst[0]]}, by {values[worst]:.3g} deviations"
        )
    return expected, values - expected


def thresholds_for(
    length: int, options: Namespace, prepared: Prepared, held_out: Tensor, model: torch.nn.Module, device: torch.device
) -> dict[str, Any]:
    """`thresholds_of` from the first `length` boards of each held-out cycle: reconstruction is harder or easier in
    shorter sequences, such as the last one to be judged may be."""
    shorter = held_out[:, :length]
    output = reconstruct(model, shorter, options.batch_size, device, options.precision)
    errors = at_pads(shorter - output, *prepared.pixels)
    if not errors.isfinite().all():
        raise UserError(
            f"the held-out boards of {prepared.folder} have no finite reconstruction in --precision "
            f"{options.precision}: try fp32"
        )
    return thresholds_of(errors.flatten(1), options.fpr)


def _not_finite(values: Tensor, files: list[str], prepared: Prepared) -> str | None:
    """File and pad of the first of values (N, P) that is nan or infinite."""
    wrong = torch.nonzero(~values.isfinite()).tolist()
    return f"{files[wrong[0][0]]}, pad {prepared.pad_ids[wrong[0][1]]}" if wrong else None


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


@script(memory="a smaller --batch_size, or --precision bf16", several=True)
def main(argv: list[str] | None = None) -> None:
    """Judge the boards of one folder."""
    parser = ArgumentParser(
        description="Judge newly measured boards, pad by pad, with a trained CRRN.",
        example="python crrn/3_score_boards.py --data my_boards --cycle 20 --protocol measured --boards my_new_boards",
    )
    add_model_options(parser, [0])
    add = parser.add_argument_group("what to judge").add_argument
    add("--boards", type=Path, required=True, help="folder with spi_000.json, ..., in print order")
    add("--output", type=Path, help="folder for the results; unset: beside the model, named as --boards")
    add("--fpr", type=float, default=0.01, help="share of fine pads that may be called wrong")
    add("--batch_size", type=int, default=20, help="sequences at once")
    options = parser.parse_args(argv)
    check_options(options, batch_size=(1, 1e9), fpr=(1e-6, 0.5))
    cycle = cycle_of(options.data, options.cycle)
    device = distributed.join(device_of(options.gpu_ids, options.cpu))
    autocast(device, options.precision)  # refuses what this device cannot do
    with distributed.first_alone():
        prepared = ensure_prepared(options.data, cycle, options.result)
    folder = result_folder(options, prepared.folder)
    model, content = load_trained(folder / "model_dictionary.pt", options, prepared, device)
    inside = options.boards / "spi_measurement"
    source = inside if inside.is_dir() else options.boards
    boards = read_new_boards(source, prepared)
    artificial = is_synthetic(source.parent)
    output = options.output or folder / options.boards.resolve().name
    _require_own(output, source)
    values, held_out = normalised(options, prepared, boards)
    parts = values.split(cycle)
    lengths = {len(part) for part in parts}
    thresholds = {n: thresholds_for(n, options, prepared, held_out, model, device) for n in lengths}
    say(describe(thresholds[len(parts[0])]))
    about = {
        "method": "CRRN",
        "model": str(folder / "model_dictionary.pt"),
        "model_sha256": digest(folder / "model_dictionary.pt"),
        "epochs": content["epoch"] + 1,
        "trained_on": content.get("data"),
        "trained_on_these_boards": content["same_boards"],
        "normalised_and_thresholds_by": "synthetic" if is_synthetic(prepared.folder) else str(prepared.folder),
        "boards": str(source.resolve()),
        "boards_sha256": _digest_of(boards),
        "data": "synthetic" if artificial else str(source),
        "thresholds_by_cycle": [thresholds[len(part)] for part in parts],
        "device": str(device),
        "settings": {name: getattr(options, name) for name in (*MODEL_SETTINGS, "held_out", "fpr", "precision")},
        "versions": checkpoint.versions(),
    }
    table, summary = output / "pads.csv", output / "results.json"
    with only_run(output):
        written = _finished_before(table, summary, about, [len(part) * len(prepared.pad_ids) for part in parts])
        distributed.anywhere(False, device)  # every process has looked before the first one writes
        if first_process():
            _begin(table, written)
        write_json(summary, {**about, "finished": False})
        done = max(len(written) - 1, 0)
        if done:
            say(f"continuing after {number_of(done, 'cycle')} of {len(parts)}: {output}")
        with goes_on(output):
            for number in progress(range(done, len(parts)), "scoring cycles"):
                part, start = parts[number], number * cycle
                files = boards.files[start : start + len(part)]
                expected, errors = score_cycle(options, prepared, part, files, model, device)
                _draw(output, number, prepared, errors, thresholds[len(part)], artificial)
                rows = _rows(start, boards, prepared, part, expected, errors, thresholds[len(part)])
                append_csv(table, rows)
        counts = _count_verdicts(table) if first_process() else {}
        write_json(summary, {**about, "finished": True, "pads": counts})
    if first_process():
        wrong = f"{counts['excessive']} excessive, {counts['insufficient']} insufficient"
        say(f"{number_of(len(boards), 'board')}, {number_of(sum(counts.values()), 'pad')}: {wrong}; {output}")


def _digest_of(boards: Boards) -> str:
    """16 hexadecimal digits that tell these boards from others."""
    found = hashlib.sha256(" ".join(boards.files).encode())
    for array in (boards.pad_ids, boards.x, boards.y, boards.volume):
        found.update(np.ascontiguousarray(array).data)
    return found.hexdigest()[:16]


def _finished_before(table: Path, summary: Path, about: Mapping[str, Any], rows: Sequence[int]) -> list[int]:
    """Length in bytes of what an interrupted scoring like this one has written to `table`: of its header, and with
    each of its whole cycles. Empty where there is nothing to continue; rows: of each cycle."""
    if not summary.exists() or read_json(summary) != plain({**about, "finished": False}):
        return []
    lengths, ahead, left = [], 0, iter([1, *rows])
    try:
        with table.open("rb") as file:
            wanted = next(left)
            for line in file:
                if not line.endswith(b"\n"):  # cut off
                    break
                ahead, wanted = ahead + len(line), wanted - 1
                if not wanted:
                    lengths.append(ahead)
                    wanted = next(left, 0)
    except OSError:
        return []
    return lengths


def _begin(table: Path, lengths: Sequence[int]) -> None:
    """Leave of the table, and of the pictures beside it, what is to be continued."""
    if lengths:
        with naming(table, "nothing is lost"):
            os.truncate(table, lengths[-1])
    else:
        write_csv(table, HEADER, [])
        for path in table.parent.glob("boards_*.png"):
            if re.fullmatch(r"boards_\d+\.png", path.name):
                path.unlink()


def _rows(
    start: int,
    boards: Boards,
    prepared: Prepared,
    values: Tensor,
    expected: Tensor,
    errors: Tensor,
    threshold: dict[str, Any],
) -> Iterator[list[Any]]:
    """The lines of one cycle, whose first board is number `start`."""
    order = [boards.pad_ids.tolist().index(pad) for pad in prepared.pad_ids]
    for age, (normal, wanted, error) in enumerate(zip(values.tolist(), expected.tolist(), errors.tolist())):
        n = start + age
        measured = [array[n, order].tolist() for array in (boards.x, boards.y, boards.volume)]
        for pad in zip(prepared.pad_ids, *measured, normal, wanted, error):
            yield [n, boards.files[n], age, *pad, verdict_of(pad[-1], threshold)]


def _count_verdicts(table: Path) -> dict[str, int]:
    counts = dict.fromkeys(("fine", "excessive", "insufficient"), 0)
    with table.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            counts[row["verdict"]] += 1
    return counts


def _require_own(output: Path, source: Path) -> None:
    """UserError where `output` would mix results with the boards in `source`, a model, or results of others."""
    if output.resolve().is_relative_to(source.resolve()):
        raise UserError(f"--output {output} lies in {source}, among the boards: choose another --output")
    if (output / "model_dictionary.pt").exists():
        raise UserError(f"{output} holds a model and its results: choose another --output")
    if (output / "results.json").exists():
        before = read_json(output / "results.json")
        if not isinstance(before, dict) or before.get("boards") != str(source.resolve()):
            raise UserError(f"{output} holds results of other boards than {source}: choose another --output")


def _draw(
    folder: Path, number: int, prepared: Prepared, errors: Tensor, threshold: dict[str, Any], artificial: bool
) -> None:
    """The picture of one cycle, errors (T, P); the deepest colours begin at twice the threshold."""
    images = place(errors, *prepared.pixels, prepared.height, prepared.width)[:, 0].numpy()
    start = number * prepared.cycle
    draw_boards(
        folder / f"boards_{number:03d}.png",
        {"": images},
        [f"board {start + n}" for n in range(len(images))],
        prepared.mask.numpy(),
        f"{'synthetic boards: ' if artificial else ''}signed error; called excessive above "
        f"{threshold['excessive']:.2f}, insufficient below {threshold['insufficient']:.2f}",
        limit=2 * max(threshold["excessive"], -threshold["insufficient"], 0.1),
        columns=SHEET,
    )


if __name__ == "__main__":
    sys.exit(main())
