"""Judge newly measured boards, pad by pad: python 3_score_boards.py --boards FOLDER [--fpr 0.01]

FOLDER, or spi_measurement/ in it, holds spi_000.json, spi_001.json, ... in print order, the first one printed after a
stencil cleaning, with the pads that the model was trained with. When all are judged (crrn/scoring.py says how), this
writes to --output (default <data>/result/<mode>/<folder's name>): scores.csv with the verdict of every board, pads.csv
with signed error and verdict of every pad, boards_<cycle>.png with the red and blue board maps, where pads called wrong
have a frame, and results.json. progress.jsonl keeps what the network expected of each cycle: interrupted, the same
command resumes with those that are left, and another --fpr computes nothing again.
"""

import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from common.cli import answer_early
from crrn.options import MODEL, parse_score

answer_early(__name__, parse_score)

import torch

from common import checkpoint, distributed
from common.cli import notes, number_of, progress, resumable, say, script
from common.files import UserError, locked, write_csv, write_json
from common.scoring import RESULTS, Journal, is_of
from crrn.boards import Boards, board_files, digest_of, is_synthetic, read_boards, read_layout
from crrn.pictures import draw_boards
from crrn.preprocess import Prepared
from crrn.scoring import Scored, describe, load, normalised, score_boards, threshold_for
from crrn.utils import place

SHEET = 5  # boards on one row of a picture
HEADER = ["board", "file", "age", "pad_id", "x", "y", "volume", "normalised", "expected", "error", "verdict"]


def read_new_boards(folder: Path, prepared: Prepared) -> Boards:
    """Boards to judge, their pads in prepared's order. UserError where they are not those of the preprocessed ones."""
    boards = read_boards(folder, read_layout(prepared.folder / "job.json"))
    column = {pad: number for number, pad in enumerate(boards.pad_ids.tolist())}
    if odd := column.keys() ^ set(prepared.pad_ids):
        raise UserError(f"{folder}: pad {min(odd)} is on these boards or on those of {prepared.folder}, not on both")
    order = [column[pad] for pad in prepared.pad_ids]
    arrays = {name: getattr(boards, name)[:, order] for name in ("x", "y", "volume")}
    return replace(boards, pad_ids=boards.pad_ids[order], groups=[boards.groups[n] for n in order], **arrays)


@script(memory="a smaller --batch_size, or --precision bf16", several=True)
def main(argv: list[str] | None = None) -> None:
    """Judge the boards of one folder."""
    options = vars(parse_score(argv))
    model = load(**options)
    prepared, cycle, folder = model.prepared, model.prepared.cycle, options["boards"].resolve()
    source = folder / "spi_measurement" if (folder / "spi_measurement").is_dir() else folder
    read = digest_of([prepared.folder / "job.json", *board_files(source)])  # before they are: changes are noticed later
    boards = read_new_boards(source, prepared)
    artificial, measured = is_synthetic(source.parent), (prepared.folder / "spi_measurement").resolve()
    output = options["output"] or model.path.with_name(folder.name)
    if not options["output"] and not is_of(output, boards=source):
        output = model.path.with_name(f"{folder.parent.name}_{folder.name}")
    if output.resolve().is_relative_to(source):
        raise UserError(f"--output {output} lies in {source}, among the boards: choose another --output")
    if (output / "model_dictionary.pt").exists():
        raise UserError(f"{output} holds a model and its results: choose another --output")
    normalised(torch.from_numpy(boards.volume), model, boards.files)  # all can be, or nothing is written
    starts = range(0, len(boards), cycle)
    say(describe(threshold_for(min(cycle, len(boards)), model)))
    key = {  # what the network's expectations depend on
        "boards": source,
        "boards_sha256": read,
        "model_sha256": model.results["model_sha256"],
        "normalised_by_sha256": prepared.fingerprint,
        "settings": {name: options[name] for name in (*MODEL, "precision")} | {"held_out": model.held_out_share},
        "device": model.device.type,  # not its number, which differs between processes
    }
    scored: list[Scored] = []
    with locked(output), resumable(output):
        journal = Journal(output, key, boards=source)
        expected = {number: torch.tensor(values) for number, values in journal.lines}  # (T, P) of each cycle
        distributed.anywhere(False, model.device)  # every process has looked before the first one writes
        journal.start(journal.lines)
        if expected:
            say(f"resuming after {number_of(len(expected), 'cycle')} of {len(starts)}: {output}")
        for number, start in enumerate(progress(starts, "scoring cycles")):
            part = slice(start, start + cycle)
            scored.append(score_boards(boards.volume[part], model, boards.files[part], expected.get(number)))
            if number not in expected:
                journal.add([number, scored[-1].expected])
        for number, one in enumerate(progress(scored, "drawing")):
            draw(output / f"boards_{number:03d}.png", prepared, one, number * cycle, "synthetic boards: " * artificial)
        write_csv(output / "pads.csv", HEADER, rows(boards, scored, cycle))
        limits = [one.threshold["board"] for one in scored for _ in one.boards]
        worst = [score for one in scored for score in one.boards]
        wrong = [sum(verdict != "fine" for verdict in board) for one in scored for board in one.verdicts]
        judged = ["defective" if score > limit else "good" for score, limit in zip(worst, limits)]
        table = zip(boards.files, worst, wrong, limits, judged)
        columns = ["path", "class", "label", "score", "wrong_pads", "threshold", "verdict", "error"]
        write_csv(output / "scores.csv", columns, [[name, "", "", *values, ""] for name, *values in table])
        counts = Counter(verdict for one in scored for board in one.verdicts for verdict in board)
        summary = {
            **journal.key, "method": "CRRN", "data": "synthetic" if artificial else str(source),
            "normalised_and_thresholds_by": prepared.source, **model.results, "model": str(model.path),
            "trained_on_these_boards": model.results["trained_on_these_boards"] and source == measured,
            "thresholds_by_cycle": [one.threshold for one in scored],
            "boards_judged": dict(Counter(judged)),
            "pads": {verdict: counts[verdict] for verdict in ("fine", "excessive", "insufficient")},
            "finished": True, "device": str(model.device),
            "settings": {**key["settings"], "fpr": options["fpr"], "board_fpr": options["board_fpr"]},
            "notes": notes(), "versions": checkpoint.versions(),
        }  # fmt: skip
        write_json(output / RESULTS, summary)
        for path in output.glob("boards_*.png") if not distributed.rank() else ():  # of more boards, scored before
            if (match := re.fullmatch(r"boards_(\d+)\.png", path.name)) and int(match[1]) >= len(scored):
                path.unlink()
    defective = f"{number_of(len(boards), 'board')}, {judged.count('defective')} defective"
    of_pads = f"{counts['excessive']} excessive, {counts['insufficient']} insufficient"
    say(f"{defective}; {number_of(counts.total(), 'pad')}, {of_pads}: {output}")


def rows(boards: Boards, scored: Sequence[Scored], cycle: int) -> Iterator[list[Any]]:
    """The lines of pads.csv."""
    for n in range(len(boards)):
        one, age = scored[n // cycle], n % cycle
        columns = [array[n] for array in (boards.x, boards.y, boards.volume)]
        columns += [values[age] for values in (one.normalised, one.expected, one.error)]
        for pad in zip(boards.pad_ids.tolist(), *(values.tolist() for values in columns), one.verdicts[age]):
            yield [n, boards.files[n], age, *pad]


def draw(path: Path, prepared: Prepared, scored: Scored, first: int, data: str) -> None:
    """The picture of one cycle, the boards from `first` on; the deepest colours begin at twice the threshold."""
    images = place(scored.error, *prepared.pixels, prepared.height, prepared.width)[:, 0].numpy()
    high, low = scored.threshold["excessive"], scored.threshold["insufficient"]
    called = ["  DEFECTIVE" * (score > scored.threshold["board"]) for score in scored.boards]
    titles = [f"board {first + n}{word}" for n, word in enumerate(called)]
    title = (
        f"{data}signed error; framed: pads called excessive (above {high:.2f}) or insufficient (below {low:.2f}); "
        f"defective: boards with a pad beyond {scored.threshold['board']:.2f}"
    )
    wrong = [[verdict != "fine" for verdict in board] for board in scored.verdicts]
    marks = [[(int(y), int(x)) for y, x, odd in zip(*prepared.pixels, board) if odd] for board in wrong]
    draw_boards(path, {"": images}, titles, prepared.mask.numpy(), title, 2 * max(high, -low, 0.1), SHEET, marks)


if __name__ == "__main__":
    sys.exit(main())
