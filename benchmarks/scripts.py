"""What the benchmarks share that run the methods' own scripts: demo.py, compare.py and accuracy.py."""

import hashlib
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from common.cli import run_script
from common.files import UserError, read_json

ROOT = Path(__file__).resolve().parents[1]


def run(program: str, *options: Any) -> None:
    """Run a script of this repository, as `common.cli.run_script` does."""
    run_script(ROOT / program, *options)


def commands(lines: Sequence[str], **values: Any) -> list[list[str]]:
    """A command for each line: a script, relative to ROOT, and its options, with {name} replaced by the value of that
    name, a list by its items."""

    def filled(word: str) -> list[str]:
        value = values.get(word[1:-1]) if word.startswith("{") and word.endswith("}") else None
        return list(map(str, value)) if isinstance(value, list) else [word.format(**values)]

    return [[part for word in line.split() for part in filled(word)] for line in lines]


def number_at(results: Any, *key: str | int) -> float | None:
    """The number at this place of a results file; None where there is none, such as pixel metrics without masks."""
    for part in key:
        try:
            results = results[part]
        except (KeyError, IndexError, TypeError):
            return None
    return results


def read_record(path: Path, **kinds: type | tuple[type, ...]) -> dict[str, Any]:
    """What `write_json` has stored of a run. UserError where one of these entries is of another type, or missing."""
    record = read_json(path)
    if not isinstance(record, dict) or not all(isinstance(record.get(name), kind) for name, kind in kinds.items()):
        raise UserError(f"{path} is damaged: remove {path.parent} to run it again")
    return record


def key_of(content: Any) -> str:
    """10 hexadecimal digits that tell runs of other commands apart, for the names of their folders."""
    return hashlib.sha256(json.dumps(content, default=str).encode()).hexdigest()[:10]


def mean_and_spread(values: Sequence[float | None]) -> str:
    """Mean ± standard deviation, or the one value; nothing where there is none, or where one is missing."""
    if not values or None in values:
        return ""
    return f"{statistics.fmean(values):.3f}" + (f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else "")


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    """Lines of text in columns."""
    texts = [[f"{value:.4f}" if isinstance(value, float) else str(value) for value in row] for row in [header, *rows]]
    widths = [max(map(len, column)) for column in zip(*texts)]
    return ["  ".join(text.ljust(width) for text, width in zip(row, widths)).rstrip() for row in texts]


class Program(NamedTuple):
    """Commands of a method's own scripts, for `commands`: with all files in {at}; {size}: options of the network's
    size; {items}, {out}: what to score, into which folder."""

    train: str
    score: Sequence[str]
    tiny: str  # the {size} that takes no time


_CRRN = "--data {at}/data --cycle 20 --result {at}/run --n_layers 1 --precision {precision} --device {device}"
_MEMAE = (
    "--DataRoot {at}/data --Dataset frames --ModelRoot {at}/run --MemDim 8 --precision {precision} --device {device}"
)
PROGRAMS = {
    "csflow": Program(
        "csflow/main.py --dataset_path {at}/data --feature_path {at}/features --class_name brick --modelname m "
        "--extractor lite0 --output_path {at}/run --batch_size 4 --hide_tqdm_bar True --sub_epochs 1 --meta_epochs "
        "{epochs} --precision {precision} --device {device} {size}",
        [
            "csflow/score.py --output_path {at}/run --modelname m --images {items} --output {out} --hide_tqdm_bar True "
            "--device {device}"
        ],
        "--n_scales 2 --img_size 64 --fc_internal 8 --kernel_sizes 3",
    ),
    "crrn": Program(
        f"crrn/1_train.py {_CRRN} --num_instance 4 --batch_size 2 --num_epochs {{epochs}}",
        [f"crrn/2_test_model.py {_CRRN}", f"crrn/3_score_boards.py {_CRRN} --boards {{items}} --output {{out}}"],
        "",
    ),
    "memae": Program(
        f"memae/script_training.py {_MEMAE} --BatchSize 2 --EpochNum {{epochs}}",
        [f"memae/script_testing.py {_MEMAE} --OutRoot {{out}} --BatchSize 2"],
        "",
    ),
    "crn": Program(
        "crn/train.py --mode train --dataset MVTec --dataset-path {at}/data/brick --checkpoint-path {at}/run --log-dir "
        "{at}/run --log-file {at}/log --image-output-path {at}/pictures --training-steps 1000000 --epochs {epochs} "
        "--precision {precision} --device {device} {size}",
        ["crn/score.py --images {items} --model-input {at}/run/last.ckpt --output {out} --device {device}"],
        "--imsize 32 --ngf 2 --num-competitive-units 2 --batch-size 4",
    ),
    "riad": Program(
        "riad/run.py --dataset mvtec --data_path {at}/data/brick --mode_optim adam --output {at}/run --figures_every 0 "
        "--epochs {epochs} --precision {precision} --device {device} {size}",
        [
            "riad/score.py --images {items} --checkpoint {at}/run/Checkpoint/model_0_finepoch.pth --output {out} "
            "--device {device}"
        ],
        "--img_size 32 --batch 4 --filters 2 4 4 4",
    ),
}
