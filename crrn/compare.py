"""Which cell wins where? Train and test several models with several seeds: python compare.py --num_epochs 3 --lr 1e-3

Runs 1_train.py and 2_test_model.py for each seed, protocol and model (a name such as ConvLSTM, with _a for attention
and _textbook for textbook gates), in <result>/seed<k>/, and sums them up in <result>/compare.json and in a table: best
F1 at each anomaly rate, mean and standard deviation over the seeds, beside the z-score alone. Interrupted, the same
command goes on, and with fewer --seeds it sums up what is there; options not listed here go to the training.
"""

import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from common.cli import answer_early
from crrn.options import parse_compare

answer_early(__name__, parse_compare)

from common.cli import notes, resumable, run_script, say, script
from common.files import digest, locked, read_json, require_writable, write_json
from crrn.boards import HERE, cycle_of
from crrn.demo_boards import ensure_prepared
from crrn.utils import KINDS, RATES


@script
def main(argv: list[str] | None = None) -> None:
    """Train, test and compare, seed by seed."""
    options, both, training = parse_compare(argv)
    cycle = cycle_of(options.data, options.cycle)
    prepared = ensure_prepared(options.data, cycle, options.result)
    output = options.result or prepared.folder / "compare"
    require_writable(output)
    runs: dict[str, list] = {}  # results.json of each seed
    with locked(output), resumable(output):
        for seed, protocol, model in product(options.seeds, options.protocols, options.models):
            result = output / f"seed{seed}"
            words = ["--data", prepared.folder.resolve(), "--cycle", cycle, "--result", result.resolve(), *both]
            words += ["--mode", model.partition("_")[0], *["--is_attn"] * ("_a" in model)]
            words += ["--gates", "textbook" if "_textbook" in model else "published"]
            words += ["--protocol", protocol, "--seed", seed]
            say(f"seed {seed}, {protocol}, {model}")
            run_script(HERE / "1_train.py", *words, *training)
            name = model + ("_measured" if protocol == "measured" else "")
            now = {"seed": seed, "precision": options.precision or "fp32"}
            if not _is_tested(result / name, prepared.fingerprint, now):
                # The anomalies come from a generator of their own: two models see the same ones.
                run_script(HERE / "2_test_model.py", *words)
            runs.setdefault(name, []).append(read_json(result / name / "results.json"))
        summary = {name: summarise(results) for name, results in runs.items()}
        write_json(output / "compare.json", {**summary, "training_options": training, "notes": notes()})
    for line in table(summary):
        say(line)


def _is_tested(folder: Path, boards: str, settings: Mapping[str, Any]) -> bool:
    """Whether results.json is of the model that lies beside it now, on boards of this fingerprint, with these settings
    of the test; says so where it is of others."""
    path = folder / "results.json"
    if not path.is_file():
        return False
    results = read_json(path)
    try:
        summarise([results])
        tested = results["model_sha256"], results["boards_fingerprint"], {n: results["settings"][n] for n in settings}
    except (KeyError, TypeError, AttributeError):  # damaged, or of an older version
        tested = None
    if tested == (digest(folder / "model_dictionary.pt"), boards, settings):
        return True
    say(f"{path} is of another model, other boards or another test, or damaged: testing again")
    return False


def summarise(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Per kind and rate: mean, standard deviation (0 for one seed) and number of best F1s, of the network and of the
    z-score alone."""
    summary: dict[str, Any] = {kind: {} for kind in KINDS}
    for kind, rate in product(KINDS, map(str, RATES)):
        network = [one[kind][rate] for one in runs]
        z_score = [one["z_score"] for one in network]
        summary[kind][rate] = {"best_f1": _spread(network), "z_score_best_f1": _spread(z_score)}
    return summary


def _spread(measured: Sequence[Mapping[str, float]]) -> dict[str, float]:
    values = [one["best_f1"] for one in measured]
    std = statistics.stdev(values) if len(values) > 1 else 0.0
    return {"mean": statistics.fmean(values), "std": std, "seeds": len(values)}


def table(summary: Mapping[str, Any]) -> Iterator[str]:
    """Lines of a Markdown table."""
    yield f"| model | anomaly | {' | '.join(map(str, RATES))} |"
    yield "|---|---|" + "---|" * len(RATES)
    for name, kinds in summary.items():
        for kind, rates in kinds.items():
            for who, label in (("best_f1", name), ("z_score_best_f1", "  z-score alone")):
                cells = [f"{one[who]['mean']:.3f} ± {one[who]['std']:.3f}" for one in rates.values()]
                yield f"| {label} | {kind} | {' | '.join(cells)} |"


if __name__ == "__main__":
    sys.exit(main())
