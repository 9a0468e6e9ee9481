"""Which cell wins where? Train and test several models with several seeds: python compare.py --num_epochs 3 --lr 1e-3

Runs 1_train.py and 2_test_model.py for each seed, protocol and model (a name such as ConvLSTM, with _a for attention
and _textbook for textbook gates), in <data>/compare/seed<k>/, and sums up what has been tested so far in
<data>/compare/compare.json and in a table: best F1 at each anomaly rate, mean and standard deviation over the seeds,
beside the z-score alone. Interrupted, the same command goes on; options that are not listed here go to the training.
"""

import statistics
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common.files import read_json, write_json
from common.runtime import ArgumentParser, UserError, say, script, stop_on_request
from crrn.boards import DEFAULT, HERE, cycle_of
from crrn.demo_boards import ensure_prepared
from crrn.utils import RATES

KINDS = ("excessive", "insufficient")


@script
def main(argv: list[str] | None = None) -> None:
    """Train, test and compare; seed by seed, so that an early end leaves something to compare."""
    parser = ArgumentParser(description="Compare models over several seeds, in both protocols.")
    parser.add_argument("--data", default=DEFAULT, help="name of a folder in crrn/, or path of one elsewhere")
    parser.add_argument("--cycle", type=int, help="boards between two cleanings; unset: 10 for jabil, else 20")
    parser.add_argument("--models", nargs="+", default=["ConvConjLSTM", "ConvLSTM"], help="which ones")
    parser.add_argument("--protocols", nargs="+", choices=("measured", "drawn"), default=["measured", "drawn"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of weights, sequences and anomalies")
    options, training = parser.parse_known_args(argv)
    cycle = cycle_of(options.data, options.cycle)
    folder = ensure_prepared(options.data, cycle).folder
    summary: dict[str, dict] = {}
    for seed in options.seeds:
        for protocol in options.protocols:
            for model in options.models:
                result = folder / "compare" / f"seed{seed}"
                mode, *variants = model.split("_")
                shared = ["--data", str(folder.resolve()), "--cycle", str(cycle), "--mode", mode]
                shared += ["--protocol", protocol, "--result", str(result.resolve())]
                shared += ["--is_attn"] if "a" in variants else []
                shared += ["--gates", "textbook"] if "textbook" in variants else []
                say(f"seed {seed}, {protocol}, {model}")
                run("1_train.py", *shared, "--seed", str(seed), *training)
                name = model + ("_measured" if protocol == "measured" else "")
                if not (result / name / "results.json").is_file():
                    # The anomalies come from a seed of their own: two models see the same ones.
                    run("2_test_model.py", *shared, "--seed", str(seed), "--gpu_ids", "0")
                summary.setdefault(name, {})[f"seed{seed}"] = read_json(result / name / "results.json")
                write_json(folder / "compare/compare.json", summarise(summary) | {"training_options": training})
    for line in table(summarise(summary)):
        say(line)


def run(name: str, *arguments: str) -> None:
    """Run a script of this folder; UserError where it fails, KeyboardInterrupt where it was stopped."""
    with stop_on_request() as stop:  # Ctrl-C reaches the script too, which is given the time to save
        status = subprocess.run([sys.executable, str(HERE / name), *arguments], check=False).returncode
    if status == 130 or stop():
        raise KeyboardInterrupt
    if status:
        raise UserError(f"{name} ended with status {status} (see above)")


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
