"""Judge newly measured boards, pad by pad: python 3_score_boards.py --boards FOLDER [--fpr 0.01]

FOLDER, or spi_measurement/ in it, holds spi_000.json, spi_001.json, ... in print order, the first one printed after a
stencil cleaning, with the pads that the model was trained with. When all are judged (crrn/scoring.py says how), this
writes to --output (default <data>/result/<mode>/<folder's name>): pads.csv with signed error and verdict of every pad,
boards_<cycle>.png with the red and blue board maps, and results.json. progress.jsonl keeps what the network expected of
each cycle: interrupted, the same command goes on with those that are left, and another --fpr computes nothing anew.
"""

import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch import Tensor

from common import checkpoint, distributed
from common.cli import ArgumentParser, goes_on, note, notes, number_of, progress, say, script
from common.files import (
    UserError,
    append_text,
    atomic_write,
    first_process,
    locked,
    plain,
    read_json,
    write_csv,
    write_json,
)
from common.scoring import PROGRESS, marked_line, read_marked_lines
from crrn.boards import Boards, board_files, digest_of, is_synthetic, read_boards, read_layout
from crrn.checkpoints import MODEL_SETTINGS
from crrn.pictures import draw_boards
from crrn.preprocess import Prepared
from crrn.scoring import Scored, add_scoring_options, describe, load, normalised, score_boards, threshold_for
from crrn.utils import place

SHEET = 5  # boards on one row of a picture
HEADER = ["board", "file", "age", "pad_id", "x", "y", "volume", "normalised", "expected", "error", "verdict"]


def read_new_boards(folder: Path, prepared: Prepared) -> Boards:
    """Boards to judge, their pads in prepared's order. UserError where they are not those of the preprocessed ones."""
    boards = read_boards(folder, read_layout(prepared.folder / "job.json"))
    column = {pad: number for number, pad in enumerate(boards.pad_ids.tolist())}
    if odd := column.keys() ^ set(prepared.pad_ids):
        raise UserError(f"{folder}: pad {min(odd)} is not on these boards and on those of {prepared.folder} alike")
    order = [column[pad] for pad in prepared.pad_ids]
    arrays = {name: getattr(boards, name)[:, order] for name in ("x", "y", "volume")}
    return replace(boards, pad_ids=boards.pad_ids[order], groups=[boards.groups[n] for n in order], **arrays)


@script(memory="a smaller --batch_size, or --precision bf16", several=True)
def main(argv: list[str] | None = None) -> None:
    """Judge the boards of one folder."""
    parser = ArgumentParser(
        description="Judge newly measured boards, pad by pad, with a trained CRRN.",
        example="python crrn/3_score_boards.py --data my_boards --cycle 20 --protocol measured --boards my_new_boards",
    )
    add = parser.add_argument_group("what to judge").add_argument
    add("--boards", type=Path, required=True, help="folder with spi_000.json, ..., in print order")
    add("--output", type=Path, help="folder for the results; unset: beside the model, named as --boards")
    add_scoring_options(parser)
    given = vars(parser.parse_args(argv))
    folder, output = given.pop("boards"), given.pop("output")
    model = load(**given)
    prepared, options, device, cycle = model.prepared, model.options, model.device, model.prepared.cycle
    source = folder / "spi_measurement" if (folder / "spi_measurement").is_dir() else folder
    read = digest_of([prepared.folder / "job.json", *board_files(source)])  # before they are: changes are noticed later
    boards = read_new_boards(source, prepared)
    artificial = is_synthetic(source.parent)
    if output is None:
        own = folder.resolve()
        output = model.path.with_name(own.name)
        output = output if _is_of(output, source) else output.with_name(f"{own.parent.name}_{own.name}")
    _require_own(output, source)
    normalised(torch.from_numpy(boards.volume), model, boards.files)  # all can be, or nothing is written
    starts = range(0, len(boards), cycle)
    say(describe(threshold_for(min(cycle, len(boards)), model)))
    # What the network's expectations depend on.
    key = {
        "boards": str(source.resolve()),
        "boards_sha256": read,
        "model_sha256": model.about["sha256"],
        "normalised_by_sha256": prepared.fingerprint,
        "settings": {name: getattr(options, name) for name in (*MODEL_SETTINGS, "held_out", "precision")},
        "device": device.type,  # not its number, which differs between processes
    }
    found: list[Scored] = []
    with locked(output), goes_on(output):
        kept = _kept(output / PROGRESS, plain(key))
        distributed.anywhere(False, device)  # every process has looked before the first one writes
        with atomic_write(output / PROGRESS, "w") as file:
            file.writelines(map(marked_line, [key, *kept.items()]))
        if kept:
            say(f"continuing after {number_of(len(kept), 'cycle')} of {len(starts)}: {output}")
        for number, start in enumerate(progress(starts, "scoring cycles")):
            part = slice(start, start + cycle)
            found.append(score_boards(boards.volume[part], model, boards.files[part], kept.get(number)))
            if number not in kept:
                append_text(output / PROGRESS, marked_line([number, found[-1].expected]))
        for number, one in enumerate(progress(found, "drawing")):
            _draw(output, number, prepared, one, artificial)
        write_csv(output / "pads.csv", HEADER, _rows(boards, found, cycle))
        counts = Counter(verdict for one in found for board in one.verdicts for verdict in board)
        summary = {
            **key,
            "method": "CRRN",
            "model": str(model.path),
            "epochs": model.about["epoch"] + 1,
            "trained_on": model.about.get("data"),
            "trained_on_these_boards": model.about["same_boards"],
            "normalised_and_thresholds_by": "synthetic" if is_synthetic(prepared.folder) else str(prepared.folder),
            "data": "synthetic" if artificial else str(source),
            "thresholds_by_cycle": [one.threshold for one in found],
            "pads": {verdict: counts[verdict] for verdict in ("fine", "excessive", "insufficient")},
            "finished": True,
            "device": str(device),
            "settings": {**key["settings"], "fpr": options.fpr},
            "notes": notes(),
            "versions": checkpoint.versions(),
        }
        write_json(output / "results.json", summary)
        for path in output.glob("boards_*.png") if first_process() else ():  # of more boards, scored before
            if (match := re.fullmatch(r"boards_(\d+)\.png", path.name)) and int(match[1]) >= len(found):
                path.unlink()
    wrong = f"{counts['excessive']} excessive, {counts['insufficient']} insufficient"
    say(f"{number_of(len(boards), 'board')}, {number_of(counts.total(), 'pad')}: {wrong}; {output}")


def _kept(journal: Path, key: Mapping[str, Any]) -> dict[int, Tensor]:
    """What earlier calls like this one expected of each cycle, (T, P), but for lines that are damaged."""
    lines = read_marked_lines(journal)
    if damaged := lines.count(None):
        note(f"{damaged} lines of {journal} are damaged: what they kept is scored again")
    if lines[:1] != [key]:
        return {}
    return {line[0]: torch.tensor(line[1]) for line in lines[1:] if line is not None}


def _rows(boards: Boards, found: Sequence[Scored], cycle: int) -> Iterator[list[Any]]:
    """The lines of pads.csv."""
    for n in range(len(boards)):
        number, age = divmod(n, cycle)
        one = found[number]
        measured = [array[n].tolist() for array in (boards.x, boards.y, boards.volume)]
        scored = [values[age].tolist() for values in (one.normalised, one.expected, one.error)]
        for pad in zip(boards.pad_ids.tolist(), *measured, *scored, one.verdicts[age]):
            yield [n, boards.files[n], age, *pad]


def _is_of(output: Path, source: Path) -> bool:
    """Whether `output` holds no results of other boards than those in `source`."""
    found = [read_json(output / "results.json")] if (output / "results.json").exists() else []
    found += [line for line in read_marked_lines(output / PROGRESS)[:1] if line is not None]
    return all(isinstance(one, dict) and one.get("boards") == str(source.resolve()) for one in found)


def _require_own(output: Path, source: Path) -> None:
    """UserError where `output` would mix results with the boards in `source`, a model, or results of others."""
    if output.resolve().is_relative_to(source.resolve()):
        raise UserError(f"--output {output} lies in {source}, among the boards: choose another --output")
    if (output / "model_dictionary.pt").exists():
        raise UserError(f"{output} holds a model and its results: choose another --output")
    if not _is_of(output, source):
        raise UserError(f"{output} holds results of other boards than {source}: choose another --output")


def _draw(folder: Path, number: int, prepared: Prepared, found: Scored, artificial: bool) -> None:
    """The picture of one cycle; the deepest colours begin at twice the threshold."""
    images = place(found.error, *prepared.pixels, prepared.height, prepared.width)[:, 0].numpy()
    start, threshold = number * prepared.cycle, found.threshold
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
