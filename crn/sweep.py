"""Run a sweep file of Weights & Biases without an account: python sweep.py hyperparameter_optimization_sweep.yml

Each trial is a process of train.py with one set of the file's parameters; Optuna (pip install optuna) chooses them.
--workers run at a time; start the same command on other machines with the same --storage, and they share the trials.
The same command continues a sweep. What stands behind `--` goes to every trial: sweep.py FILE -- --cpu --imsize 64.
"""

import contextlib
import csv
import io
import itertools
import math
import reprlib
import shlex
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from statistics import NormalDist
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common.cli import ArgumentParser, note, say, script
from common.files import UserError, atomic_write, read_text, require_plain, require_writable
from crn.options import HERE, parse, require

METHODS = ("bayes", "grid", "random")
# Distributions of Weights & Biases; those with q_ round to multiples of q.
RANGES = ("int_uniform", "uniform", "log_uniform", "log_uniform_values", "normal", "log_normal")
RANGES += ("q_uniform", "q_log_uniform", "q_log_uniform_values", "q_normal", "q_log_normal")
DEFAULTS = {"mu": 0, "sigma": 1, "q": 1}
ENDS = (1e-9, 1 - 1e-9)  # of the quantiles that are drawn: at 0 and 1, a normal distribution is infinite
COMMAND = ["${program}", "--mode=train", "--model=crn", "--auto-set-name", "${args}"]  # of a file without one
METRIC = {"name": "metrics/max_roc_auc", "goal": "maximize"}  # likewise of a file without one
LARGEST_GRID = 10_000  # trials
# Exit statuses of trials that Ctrl-C or SIGTERM ended.
STOPPED = (130, 143, -signal.SIGINT, -signal.SIGTERM)


def read_sweep(path: Path) -> dict[str, Any]:
    """A sweep file's method, metric, goal, command (see `read_command`) and parameters (see `read_parameter`).
    Raises UserError for what is not supported."""
    text = read_text(path)
    try:
        import yaml  # comes with optuna and wandb
    except ImportError as error:
        raise UserError("sweep files need the package pyyaml: pip install optuna, which brings it") from error
    try:
        # Before mappings are merged, which may grow without end.
        require_plain(yaml.BaseLoader(text).get_single_data(), path)
        content = yaml.safe_load(text)
        require_plain(content, path)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: numbers of thousands of digits, impossible dates
        raise UserError(f"{path} is no YAML file: {' '.join(str(error).split())}") from error
    except RecursionError as error:
        raise UserError(f"{path} is no sweep: its lists or mappings are nested too deeply") from error
    try:
        if "metric" not in content and content["method"] != "bayes":  # the others choose without one
            content["metric"] = METRIC
            note(f"{path} has no metric: the best trial is that of the highest {METRIC['name']}")
        method, metric, goal = content["method"], content["metric"]["name"], content["metric"]["goal"]
        entries = {str(name): dict(entry) for name, entry in content["parameters"].items()}
        unknown = {*content} - {"method", "metric", "parameters", "program", "command"}
        unknown |= {f"the metric's {name}" for name in content["metric"] if name not in ("name", "goal")}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{path} is no sweep of this kind: expected method, metric (name, goal) and parameters, each with values, "
            "value, or min and max"
        ) from error
    if method not in METHODS or goal not in ("maximize", "minimize") or not isinstance(metric, str):
        words = f"method {method}, goal {goal}, metric's name {metric!r}"
        raise UserError(f"{path}: {words}: expected {', '.join(METHODS)}; maximize, minimize; a column of metrics.csv")
    if idle := sorted(unknown & {"name", "description", "project", "entity"}):
        note(f"{path}: {', '.join(idle)}: for Weights & Biases, without effect here")
    if unknown := sorted(map(str, unknown.difference(idle))):
        hint = " (--trials says how many)" if unknown[0] == "run_cap" else ""
        raise UserError(f"{path}: {unknown[0]} is not supported here{hint}")
    try:
        command = read_command(content.get("command", COMMAND), content.get("program", "train.py"))
        parameters = {name: read_parameter(name, entry, method) for name, entry in entries.items()}
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    if method == "grid" and math.prod(map(len, parameters.values())) > LARGEST_GRID:
        raise UserError(f"{path}: a grid of more than {LARGEST_GRID} trials")
    return {"method": method, "metric": metric, "goal": goal, "command": command, "parameters": parameters}


def read_command(words: Any, program: Any) -> list[str]:
    """What follows ${program} in a sweep file's command, without --wandb; "${args}" stands for the parameters.

    UserError where that is not train.py, started by Python alone, or where there are other macros.
    """
    if not any((folder / str(program)).resolve() == HERE / "train.py" for folder in (Path(), HERE, HERE.parent)):
        raise UserError(f"program {program} is not supported: expected train.py")
    words = [str(word) for word in words] if isinstance(words, list) else [str(words)]
    python = ("${env}", "/usr/bin/env", "${interpreter}", "python", "python3")
    called, *words = [*itertools.dropwhile(python.__contains__, words), ""]
    wrong = [called] if called not in ("${program}", program) else []
    wrong += [word for word in words if "${" in word and word != "${args}"]
    if wrong or words.count("${args}") != 1:
        words = f"{wrong[0]!r} is not supported" if wrong else "expected ${args} once"
        raise UserError(f"command: {words}, as in {' '.join(['${env} ${interpreter}', *COMMAND])}")
    kept = [word for word in words[:-1] if word.partition("=")[0] != "--wandb"]
    if kept != words[:-1]:
        note("--wandb in the command is left out (to log there, give it behind --)")
    return kept


def read_parameter(name: str, entry: dict[str, Any], method: str) -> list[Any] | dict[str, Any]:
    """A parameter's values; or of a range, "distribution" and what describes it, for `quantile`, and "examples".

    Raises UserError for what is not supported.
    """
    kind = entry.get("distribution")
    if kind in (None, "constant", "categorical") and entry.keys() - {"distribution"} in ({"value"}, {"values"}):
        values = entry["values"] if "values" in entry else [entry["value"]]
        if not isinstance(values, list) or not values or not all(isinstance(one, (str, int, float)) for one in values):
            raise UserError(f"parameter {name} needs a list of one or more plain values")
        return values
    whole = type(entry.get("min")) is type(entry.get("max")) is int
    kind = str(kind) if "distribution" in entry else "int_uniform" if whole else "uniform"
    keys = ["mu", "sigma"] if kind.endswith("normal") else ["min", "max"]
    keys += ["q"] if kind.startswith("q_") else []
    spread = {key: DEFAULTS[key] for key in keys if key in DEFAULTS} | entry | {"distribution": kind}
    told = f"parameter {name}, {reprlib.repr(entry)},"
    bounds = [spread[key] for key in ("min", "max") if isinstance(spread.get(key), (int, float))]
    if bounds != sorted(bounds):
        raise UserError(f"{told} is wrong: min is above max")
    try:
        sound = kind in RANGES and spread.keys() == {"distribution", *keys} and (whole or kind != "int_uniform")
        ends = [quantile(spread, u) for u in ENDS] if sound else [math.nan]
        sound = all(map(math.isfinite, ends))
    except (TypeError, ValueError, OverflowError, ZeroDivisionError):
        sound = False
    if not sound:
        raise UserError(
            f"{told} is not supported: expected value, values, or min and max or mu and sigma as numbers (1.0e-5; 1e-5 "
            f"is a text), with or without a distribution: {', '.join(RANGES)}"
        )
    if method != "grid":
        return spread | {"examples": ends if "min" in entry else [quantile(spread, 0.5)]}
    if kind != "int_uniform" or ends[1] - ends[0] >= LARGEST_GRID:
        raise UserError(f"{told} is no part of a grid: expected values, or a few integers")
    return list(range(entry["min"], entry["max"] + 1))


def quantile(spread: Mapping[str, Any], u: float) -> int | float:
    """The value that a share u of the distribution lies below, as Weights & Biases defines it; with u uniform in 0..1,
    it has that distribution."""
    kind = spread["distribution"]
    if "mu" in spread:
        value = NormalDist(spread["mu"], spread["sigma"]).inv_cdf(u)
    else:
        low, high = spread["min"], spread["max"]
        if kind == "int_uniform":
            return min(math.floor(low + u * (high - low + 1)), high)
        if kind.endswith("_values"):
            low, high = math.log(low), math.log(high)
        value = low + u * (high - low)
    value = math.exp(value) if "log_" in kind else value
    if "q" in spread:
        value = round(value / spread["q"]) * spread["q"]
        value = int(value) if float(spread["q"]).is_integer() else value  # --batch-size takes no 32.0
    return value


def trial_command(sweep: dict[str, Any], values: dict[str, Any], folder: Path, more: list[str]) -> list[str]:
    """train.py with one set of parameters; its files go to `folder`."""
    own = {"log-dir": folder, "image-output-path": folder / "images", "log-file": folder / "log.log"}
    pairs = [f"--{name}={value}" for name, value in values.items()]
    words = [word for one in sweep["command"] for word in (pairs if one == "${args}" else [one])]
    return [sys.executable, str(HERE / "train.py"), *(f"--{name}={path}" for name, path in own.items()), *words, *more]


def require_options(sweep: dict[str, Any], path: Path, more: list[str]) -> None:
    """UserError where train.py would refuse a parameter or one of its values: in every trial, after its start."""
    tried = {name: one if isinstance(one, list) else one["examples"] for name, one in sweep["parameters"].items()}
    first = {name: values[0] for name, values in tried.items()}
    last = {word.partition("=")[0] for word in [*sweep["command"][sweep["command"].index("${args}") :], *more]}
    if fixed := [name for name, one in sweep["parameters"].items() if len(one) > 1 and f"--{name}" in last]:
        raise UserError(f"{path}: --{fixed[0]} behind the parameters would take the place of all values of {fixed[0]}")
    for name, values in tried.items():
        for value in values:
            try:
                with contextlib.redirect_stdout(io.StringIO()):  # notes on options without effect
                    opt = parse(trial_command(sweep, {**first, name: value}, Path(), more)[2:])
            except UserError as error:
                raise UserError(f"{path}: {error}") from error
            if opt.mode != "train" or opt.log_dir != Path():
                raise UserError(f"{path}: --mode {opt.mode} --log-dir {opt.log_dir}: trials train, each in --output")


def last_value(folder: Path, metric: str) -> float:
    """The metric after the trial's last validation. UserError where it was not written."""
    versions = sorted(folder.glob("version_*"), key=lambda path: int(path.name.split("_")[1]))
    try:
        with (versions[-1] / "metrics.csv").open(newline="", encoding="utf-8") as file:
            return float(list(csv.DictReader(file))[-1][metric])
    except (OSError, IndexError, KeyError, ValueError) as error:
        raise UserError(f"no metrics.csv in {folder}/version_* holds {metric}") from error


@script
def main(argv: list[str] | None = None) -> int:
    """Run trials until there are as many as asked for; exit status 1 where all of them failed."""
    words = sys.argv[1:] if argv is None else list(argv)
    more = words[words.index("--") + 1 :] if "--" in words else []
    parser = ArgumentParser(
        description="Run a sweep file without an account, through Optuna; what follows -- goes to every trial.",
        example="python crn/sweep.py crn/hyperparameter_optimization_sweep.yml --workers 2 -- --imsize 64",
    )
    add = parser.add_argument_group("sweep").add_argument
    add("file", type=Path, help="sweep file")
    add("--trials", type=int, help="finished trials in all, whoever ran them; unset: 50, or the whole grid")
    add("--seed", type=int, help="of the choice of parameters, with one worker; unset: by chance")

    add = parser.add_argument_group("machines and files").add_argument
    add("--workers", type=int, default=1, help="trials at a time in this call")
    add("--storage", help="Optuna's storage URL, the same for all machines; unset: a file in crn/sweeps")
    add("--name", help="name of the study; unset: the file's")
    add("--output", type=Path, default=HERE / "sweeps", help="folder of the trials' files")
    opt = parser.parse_args(words[: words.index("--")] if "--" in words else words)
    require(opt, "trials", opt.trials is None or 1 <= opt.trials <= 10**6, "from 1 to 10^6")
    require(opt, "workers", 1 <= opt.workers <= 64, "from 1 to 64")
    require(opt, "seed", opt.seed is None or 0 <= opt.seed < 2**31, "from 0 to 2^31 - 1")
    sweep = read_sweep(opt.file)
    require_options(sweep, opt.file, more)
    try:
        import optuna
    except ImportError as error:
        raise UserError("sweep.py needs the package optuna: pip install optuna") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    name = opt.name or opt.file.stem
    require_writable(opt.output / name)
    storage = opt.storage or f"sqlite:///{(opt.output / name).resolve()}.db"
    choices = {key: values for key, values in sweep["parameters"].items() if len(values) > 1}
    try:
        study = optuna.create_study(storage=storage, study_name=name, direction=sweep["goal"], load_if_exists=True)
        known = study.get_trials(deepcopy=False)
    except Exception as error:  # of optuna, or of whichever database stands behind it
        raise UserError(f"--storage {storage} cannot be used: {' '.join(str(error).split())}") from error
    drawn = [pair for trial in known for pair in trial.distributions.items()]
    # Older studies, which had no ranges, tell their values by their trials alone.
    before = choices | {key: list(one.choices) for key, one in drawn if hasattr(one, "choices")}
    if study.user_attrs.get("choices", before) != choices or study.direction.name.lower() != sweep["goal"]:
        raise UserError(f"{opt.file} is not the sweep that {name} in {storage} began with: give it another --name")
    study.set_user_attr("choices", choices)

    total = opt.trials or 50
    seed = None if opt.seed is None else opt.seed + len(known)  # what is continued does not begin anew
    if sweep["method"] == "grid":
        total = min(math.prod(map(len, choices.values())), opt.trials or LARGEST_GRID)
        study.sampler = optuna.samplers.GridSampler(choices, seed=seed)
    elif sweep["method"] == "bayes":
        # Trials that still run count as bad ones, so that workers do not try the same.
        study.sampler = optuna.samplers.TPESampler(constant_liar=True, seed=seed)
    else:
        study.sampler = optuna.samplers.RandomSampler(seed=seed)
    running: set[subprocess.Popen] = set()

    def run(trial: "optuna.Trial") -> float:
        chosen = {
            key: quantile(one, trial.suggest_float(key, *ENDS))
            if isinstance(one, dict)
            else trial.suggest_categorical(key, one)
            for key, one in choices.items()
        }
        trial.set_user_attr("values", chosen)
        values = {key: chosen[key] if key in chosen else one[0] for key, one in sweep["parameters"].items()}
        folder = opt.output / name / f"trial_{trial.number:04d}"
        command = trial_command(sweep, values, folder, more)
        say(f"trial {trial.number}: {shlex.join(f'{key}={value}' for key, value in chosen.items())}")
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        running.add(process)
        try:
            output = process.communicate()[0]
        except KeyboardInterrupt:
            sys.exit(130)
        running.discard(process)
        with atomic_write(folder / "output.txt", "w") as file:
            file.write(output)
        if process.returncode in STOPPED:
            sys.exit(130)  # no failure to Optuna, for which the trial still runs: a grid comes back to it
        if process.returncode:
            last = (output.strip().splitlines() or ["no output"])[-1]
            say(f"trial {trial.number} failed (status {process.returncode}): {last}")
            raise UserError(last)
        value = last_value(folder, sweep["metric"])
        say(f"trial {trial.number}: {sweep['metric']} {value:.4f}")
        return value

    ended = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.FAIL)
    done = len(study.get_trials(deepcopy=False, states=ended))
    say(f"sweep {name}: {done} of {total} trials finished so far, {opt.workers} at a time, {storage}")
    try:
        if done < total:
            enough = optuna.study.MaxTrialsCallback(total, states=ended)
            study.optimize(run, n_trials=total - done, n_jobs=opt.workers, catch=UserError, callbacks=[enough])
    except (KeyboardInterrupt, SystemExit) as stop:
        for process in list(running):
            process.terminate()
        say("stopped. To continue: " + shlex.join(["python", sys.argv[0], *words]))
        raise KeyboardInterrupt from stop
    completed = study.get_trials(deepcopy=False, states=[optuna.trial.TrialState.COMPLETE])
    if not completed:
        raise UserError(f"all trials failed; what they said is in {opt.output / name}")
    best = study.best_trial
    say(
        f"best of {len(completed)} trials: number {best.number}, {sweep['metric']} {best.value:.4f} (chosen on the "
        f"test set), {best.user_attrs.get('values', best.params)}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
