"""Which cell wins where? Train and test several models with several seeds: python compare.py --num_epochs 3 --lr 1e-3

Runs 1_train.py and 2_test_model.py for each seed, protocol and model (a name such as ConvLSTM, with _a for attention
and _textbook for textbook gates), in <result>/seed<k>/, and sums them up in <result>/compare.json and in a table: best
F1 at each anomaly rate, mean and standard deviation over the seeds, beside the z-score alone. Interrupted, the same
command goes on, and with fewer --seeds it sums up what is there; options not listed here go to the training.
"""

import re
import statistics
import sys
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common.cli import ArgumentParser, goes_on, notes, run_script, say, script
from common.files import UserError, digest, read_json, require_writable, write_json
from crrn.boards import HERE, add_data_options, cycle_of
from crrn.demo_boards import ensure_prepared
from crrn.model.ConvRRN import CELLS
from crrn.utils import KINDS, RATES

# Options that each model, seed and protocol has of its own here.
OWN = {
    "--mode": "--models", "--is_attn": "--models", "--gates": "--models", "--protocol": "--protocols",
    "--seed": "--seeds", "--test_set": "--protocols",
}  # fmt: skip


@script
def main(argv: list[str] | None = None) -> None:
    """Train, test and compare, seed by seed."""
    parser = ArgumentParser(
        description="Compare models over several seeds, in both protocols; other options go to 1_train.py.",
        example="python crrn/compare.py --models ConvConjLSTM ConvLSTM --protocols measured --seeds 0 1 2",
    )
    add_data_options(parser)
    add = parser.add_argument_group("what to compare").add_argument
    add("--models", nargs="+", default=["ConvConjLSTM", "ConvLSTM"], help="cells, with _a, _textbook")
    protocols = ["measured", "drawn"]
    add("--protocols", nargs="+", choices=protocols, default=protocols, help="which clean sequences")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of weights, sequences and anomalies")

    add = parser.add_argument_group("training").add_argument
    # These go to training and testing alike; whether they make sense, the training says.
    for name in ("--n_layers", "--held_out", "--precision"):
        add(name, help="as in 1_train.py; unset: as there")

    group = parser.add_argument_group("machine and files")
    add = group.add_argument
    add("--result", type=Path, help="folder for models and results; unset: compare/ in the data folder")
    add = group.add_mutually_exclusive_group().add_argument
    add("--gpu_ids", nargs="+", default=["0"], help="GPUs; the first one is used")
    add("--cpu", action="store_true", help="use the CPU even where there is a GPU")
    options, training = parser.parse_known_args(argv)
    for option in training:
        if instead := OWN.get(option.split("=")[0]):
            raise UserError(f"{option}: here, {instead} says that")
    for model in options.models:
        _mode(model)
    cycle = cycle_of(options.data, options.cycle)
    prepared = ensure_prepared(options.data, cycle, options.result)
    folder = prepared.folder
    output = options.result or folder / "compare"
    require_writable(output)
    summary: dict[str, dict] = {}
    with goes_on(output):
        for seed, protocol, model in product(options.seeds, options.protocols, options.models):
            result = output / f"seed{seed}"
            shared = ["--data", str(folder.resolve()), "--cycle", str(cycle), *_mode(model)]
            shared += ["--protocol", protocol, "--result", str(result.resolve()), "--seed", str(seed)]
            for option in ("n_layers", "held_out", "precision"):
                value = getattr(options, option)
                shared += [] if value is None else [f"--{option}", value]
            shared += ["--cpu"] if options.cpu else ["--gpu_ids", *options.gpu_ids]
            say(f"seed {seed}, {protocol}, {model}")
            run_script(HERE / "1_train.py", *shared, *training)
            name = model + ("_measured" if protocol == "measured" else "")
            now = {"seed": seed, "precision": options.precision or "fp32"}
            if not _is_tested(result / name, prepared.fingerprint, now):
                # The anomalies come from a generator of their own: two models see the same ones.
                run_script(HERE / "2_test_model.py", *shared)
            summary.setdefault(name, {})[f"seed{seed}"] = read_json(result / name / "results.json")
        write_json(output / "compare.json", summarise(summary) | {"training_options": training, "notes": notes()})
    for line in table(summarise(summary)):
        say(line)


def _mode(model: str) -> list[str]:
    """The options that make 1_train.py use the folder `model`; UserError where none do."""
    match = re.fullmatch(rf"({'|'.join(CELLS)})(_a)?(_textbook)?", model)
    if not match:
        names = ", ".join(CELLS)
        raise UserError(f"--models {model}: expected one of {names}, with _a, _textbook or _a_textbook behind it")
    mode, attention, textbook = match.groups()
    options = ["--mode", mode, *(["--is_attn"] if attention else [])]
    return options + (["--gates", "textbook"] if textbook else [])


def _is_tested(folder: Path, boards: str, settings: Mapping[str, Any]) -> bool:
    """Whether results.json is of the model that lies beside it now, on boards of this fingerprint, with these settings
    of the test; says so where it is of others."""
    path = folder / "results.json"
    if not path.is_file():
        return False
    results = read_json(path)
    try:
        summarise({"": {"": results}})
        found = results["model_sha256"], results["boards_fingerprint"], {n: results["settings"][n] for n in settings}
    except (KeyError, TypeError, AttributeError):  # damaged, or of an older version
        found = None
    if found == (digest(folder / "model_dictionary.pt"), boards, settings):
        return True
    say(f"{path} is of another model, other boards or another test, or damaged: tested again")
    return False


def summarise(summary: dict[str, dict]) -> dict[str, dict]:
    """Per model, kind and rate: mean, standard deviation (0 for one seed) and number of best F1s, of the network and
    of the z-score alone."""
    return {
        name: {
            kind: {
                f"{rate:.1f}": {
                    "best_f1": _spread([one[kind][f"{rate:.1f}"]["best_f1"] for one in runs.values()]),
                    "z_score_best_f1": _spread(
                        [one[kind][f"{rate:.1f}"]["z_score"]["best_f1"] for one in runs.values()]
                    ),
                }
                for rate in RATES
            }
            for kind in KINDS
        }
        for name, runs in summary.items()
    }


def _spread(values: list[float]) -> dict[str, float]:
    std = statistics.stdev(values) if len(values) > 1 else 0.0
    return {"mean": statistics.fmean(values), "std": std, "seeds": len(values)}


def table(summary: dict[str, dict]) -> list[str]:
    """Lines of a Markdown table."""
    lines = ["| model | anomaly | " + " | ".join(map(str, RATES)) + " |", "|---|---|" + "---|" * len(RATES)]
    for name, kinds in summary.items():
        for kind, rates in kinds.items():
            for who, label in (("best_f1", name), ("z_score_best_f1", "  z-score alone")):
                cells = [f"{one[who]['mean']:.3f} ± {one[who]['std']:.3f}" for one in rates.values()]
                lines.append(f"| {label} | {kind} | " + " | ".join(cells) + " |")
    return lines


if __name__ == "__main__":
    sys.exit(main())
