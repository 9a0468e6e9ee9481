"""Run a sweep file of Weights & Biases without an account: python sweep.py hyperparameter_optimization_sweep.yml

Each trial is a process of train.py with one set of the file's parameters; Optuna (pip install optuna) chooses them.
--workers run at a time; start the same command on other machines with the same --storage, and they share the trials.
The same command resumes a sweep. What stands behind `--` goes to every trial: sweep.py FILE -- --cpu --imsize 64.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common.cli import answer_early
from crn.options import HERE, parse, parse_sweep

answer_early(__name__, parse_sweep)

import itertools
import math
import reprlib
import shlex
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from statistics import NormalDist
from typing import Any

from common.cli import command_to_continue, note, say, script
from common.files import UserError, atomic_write, read_csv, read_text, require_plain, require_writable

METHODS = ("bayes", "grid", "random")
# Distributions of Weights & Biases; those with q_ round to multiples of q.
RANGES = ("int_uniform", "uniform", "log_uniform", "log_uniform_values", "normal", "log_normal")
RANGES += ("q_uniform", "q_log_uniform", "q_log_uniform_values", "q_normal", "q_log_normal")
ENDS = (1e-9, 1 - 1e-9)  # of the quantiles that are drawn: at 0 and 1, a normal distribution is infinite
COMMAND = ["${program}", "--mode=train", "--model=crn", "--auto-set-name", "${args}"]  # of a file without one
METRIC = {"name": "metrics/max_roc_auc", "goal": "maximize"}  # likewise of a file without one
PYTHON = ("${env}", "/usr/bin/env", "${interpreter}", "python", "python3")  # what a command may begin with
READ = {"method", "metric", "parameters", "program", "command"}  # entries of a sweep file
IDLE = {"name", "description", "project", "entity"}  # those for Weights & Biases alone
LARGEST_GRID = 10_000  # trials
# Exit statuses of trials that Ctrl-C or SIGTERM ended.
STOPPED = (130, 143, -signal.SIGINT, -signal.SIGTERM)


def read_yaml(path: Path) -> Any:
    """Plain content of a YAML file; UserError for other files."""
    text = read_text(path)
    try:
        import yaml  # comes with optuna and wandb
    except ImportError as error:
        raise UserError("sweep files need the package pyyaml: pip install optuna, which brings it") from error
    try:
        # Before mappings are merged, which may grow without end.
        require_plain(yaml.BaseLoader(text).get_single_data(), path)
        content = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # numbers of thousands of digits, impossible dates
        raise UserError(f"{path} is not a YAML file: {' '.join(str(error).split())}") from error
    require_plain(content, path)
    return content


def read_sweep(path: Path) -> dict[str, Any]:
    """A sweep file's method, metric, goal, command (see `read_command`) and parameters (see `read_parameter`).
    Raises UserError for what is not supported."""
    content = read_yaml(path)
    try:
        if "metric" not in content and content["method"] != "bayes":  # the others choose without one
            content["metric"] = METRIC
            note(f"{path} has no metric: the best trial is that of the highest {METRIC['name']}")
        method, metric, goal = content["method"], content["metric"]["name"], content["metric"]["goal"]
        entries = {str(name): dict(entry) for name, entry in content["parameters"].items()}
        if method not in METHODS or goal not in ("maximize", "minimize") or not isinstance(metric, str):
            raise ValueError
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{path} is not a sweep file: expected method ({', '.join(METHODS)}), metric (name: a column of "
            "metrics.csv, goal: maximize or minimize) and parameters, each with values, value, or min and max"
        ) from error
    if idle := sorted(IDLE.intersection(content)):
        note(f"{path}: {', '.join(idle)}: for Weights & Biases, without effect here")
    unknown = [*(content.keys() - IDLE - READ), *(content["metric"].keys() - {"name", "goal"})]
    try:
        if unknown:
            raise UserError(f"{unknown[0]} is not supported here{' (use --trials)' * (unknown[0] == 'run_cap')}")
        command = read_command(content.get("command", COMMAND), content.get("program", "train.py"))
        parameters = {name: read_parameter(name, entry, method) for name, entry in entries.items()}
        if method == "grid" and math.prod(map(len, parameters.values())) > LARGEST_GRID:
            raise UserError(f"a grid of more than {LARGEST_GRID} trials")
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    return {"method": method, "metric": metric, "goal": goal, "command": command, "parameters": parameters}


def read_command(words: Any, program: Any) -> list[str]:
    """What follows ${program} in a sweep file's command, without --wandb; "${args}" stands for the parameters.

    UserError where that is not train.py, started by Python alone, or where there are other macros.
    """
    if not any((folder / str(program)).resolve() == HERE / "train.py" for folder in (Path(), HERE, HERE.parent)):
        raise UserError(f"program {program} is not supported: expected train.py")
    words = [*map(str, words)] if isinstance(words, list) else [str(words)]
    called, *words = [*itertools.dropwhile(PYTHON.__contains__, words)] or [""]
    macros = [word for word in words if "${" in word]
    if called not in ("${program}", program) or macros != ["${args}"]:
        wrong = " ".join([called, *macros])
        raise UserError(f"command: {wrong!r} is not supported: {' '.join(['${env} ${interpreter}', *COMMAND])} is")
    kept = [word for word in words if word.partition("=")[0] != "--wandb"]
    if kept != words:
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
    usual = {"mu": 0, "sigma": 1} if kind.endswith("normal") else {}
    usual |= {"q": 1} if kind.startswith("q_") else {}
    spread = usual | entry | {"distribution": kind}
    keys = {"distribution", *usual} | (set() if kind.endswith("normal") else {"min", "max"})
    told = f"parameter {name}, {reprlib.repr(entry)},"
    try:
        if kind not in RANGES or spread.keys() != keys or (kind == "int_uniform" and not whole):
            raise ValueError
        if spread.get("min", 0) > spread.get("max", math.inf):
            raise UserError(f"{told} is wrong: min is above max")
        ends = [quantile(spread, u) for u in ENDS]
        if not all(map(math.isfinite, ends)):
            raise ValueError
    except (TypeError, ValueError, OverflowError, ZeroDivisionError) as error:
        raise UserError(
            f"{told} is not supported: expected value, values, or min and max or mu and sigma as numbers (1.0e-5; 1e-5 "
            f"is a text), with or without a distribution: {', '.join(RANGES)}"
        ) from error
    if method != "grid":
        return spread | {"examples": ends if "min" in entry else [quantile(spread, 0.5)]}
    if kind != "int_uniform" or ends[1] - ends[0] >= LARGEST_GRID:
        raise UserError(f"{told} does not fit a grid: expected values, or a small range of integers")
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


def trial_command(sweep: Mapping[str, Any], values: Mapping[str, Any], folder: Path, more: Sequence[str]) -> list[str]:
    """train.py with one set of parameters; its files go to `folder`."""
    places = {"log-dir": folder, "image-output-path": folder / "images", "log-file": folder / "log.log"}
    pairs = [f"--{name}={value}" for name, value in values.items()]
    words = [word for one in sweep["command"] for word in (pairs if one == "${args}" else [one])]
    return [sys.executable, str(HERE / "train.py"), *(f"--{k}={path}" for k, path in places.items()), *words, *more]


def require_options(sweep: Mapping[str, Any], path: Path, more: Sequence[str]) -> None:
    """UserError where train.py would refuse a parameter or one of its values: in every trial, after its start."""
    tried = {name: one if isinstance(one, list) else one["examples"] for name, one in sweep["parameters"].items()}
    first = {name: values[0] for name, values in tried.items()}
    last = {word.partition("=")[0] for word in [*sweep["command"][sweep["command"].index("${args}") :], *more]}
    if fixed := [name for name, one in sweep["parameters"].items() if len(one) > 1 and f"--{name}" in last]:
        raise UserError(f"{path}: --{fixed[0]} behind the parameters would take the place of all values of {fixed[0]}")
    for name, value in ((name, value) for name, values in tried.items() for value in values):
        try:
            opt = parse(trial_command(sweep, {**first, name: value}, Path(), more)[2:])
            if opt.mode != "train" or opt.log_dir != Path():
                raise UserError(f"--mode {opt.mode} --log-dir {opt.log_dir}: trials train, each in --output")
        except UserError as error:
            raise UserError(f"{path}: {error}") from error


def run_trial(
    trial: Any, sweep: Mapping[str, Any], output: Path, more: Sequence[str], running: set[subprocess.Popen]
) -> float:
    """The metric of a training with parameters that Optuna chooses. UserError where it fails, SystemExit where it is
    stopped: no failure to Optuna, for which the trial still runs, so that a grid comes back to it."""
    chosen = {}
    for key, one in sweep["choices"].items():
        drawn = trial.suggest_float(key, *ENDS) if isinstance(one, dict) else trial.suggest_categorical(key, one)
        chosen[key] = quantile(one, drawn) if isinstance(one, dict) else drawn
    trial.set_user_attr("values", chosen)
    values = {key: chosen[key] if key in chosen else one[0] for key, one in sweep["parameters"].items()}
    folder = output / f"trial_{trial.number:04d}"
    say(f"trial {trial.number}: {shlex.join(f'{key}={value}' for key, value in chosen.items())}")
    command = trial_command(sweep, values, folder, more)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    running.add(process)
    try:
        said = process.communicate()[0]
    except KeyboardInterrupt:
        sys.exit(130)
    running.discard(process)
    with atomic_write(folder / "output.txt", "w") as file:
        file.write(said)
    if process.returncode in STOPPED:
        sys.exit(130)
    problem, value = (said.strip().splitlines() or ["no output"])[-1], math.nan
    if process.returncode == 0:
        problem = f"no metrics.csv in {folder}/version_* holds a number as {sweep['metric']}"
        with suppress(ValueError, LookupError, UserError):
            table = max(folder.glob("version_*"), key=lambda path: int(path.name.split("_")[1])) / "metrics.csv"
            value = float(read_csv(table)[-1][sweep["metric"]])
    if math.isnan(value):
        say(f"trial {trial.number} failed (status {process.returncode}): {problem}")
        raise UserError(problem)
    say(f"trial {trial.number}: {sweep['metric']} {value:.4f}")
    return value


def open_study(sweep: Mapping[str, Any], name: str, storage: str, path: Path) -> Any:
    """Optuna's record of the sweep's trials. UserError where the storage cannot be used or holds another sweep."""
    try:
        import optuna
    except ImportError as error:
        raise UserError("sweep.py needs the package optuna: pip install optuna") from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # warnings are tracebacks of trials whose failure we say
    choices = sweep["choices"]
    try:
        study = optuna.create_study(storage=storage, study_name=name, direction=sweep["goal"], load_if_exists=True)
        study.get_trials(deepcopy=False)
    except Exception as error:  # of optuna, or of whichever database stands behind it
        raise UserError(f"--storage {storage} cannot be used: {' '.join(str(error).split())}") from error
    if study.user_attrs.get("choices", choices) != choices or study.direction.name.lower() != sweep["goal"]:
        raise UserError(f"{path} is not the sweep that {name} in {storage} began with: give it another --name")
    study.set_user_attr("choices", choices)
    return study


@script
def main(argv: list[str] | None = None) -> None:
    """Run trials until there are as many as asked for."""
    opt = parse_sweep(argv)
    sweep = read_sweep(opt.file)
    require_options(sweep, opt.file, opt.more)
    sweep["choices"] = {key: values for key, values in sweep["parameters"].items() if len(values) > 1}
    name = opt.name or opt.file.stem
    output = opt.output / name
    storage = opt.storage or f"sqlite:///{output.resolve()}.db"
    require_writable(output)
    study = open_study(sweep, name, storage, opt.file)
    from optuna.samplers import GridSampler, RandomSampler, TPESampler
    from optuna.study import MaxTrialsCallback
    from optuna.trial import TrialState

    total = opt.trials or 50
    seed = None if opt.seed is None else opt.seed + len(study.get_trials(deepcopy=False))  # resumed: not the same again
    if sweep["method"] == "grid":
        total = min(math.prod(map(len, sweep["choices"].values())), opt.trials or LARGEST_GRID)
        study.sampler = GridSampler(sweep["choices"], seed=seed)
    elif sweep["method"] == "bayes":
        # Trials that still run count as bad ones, so that workers do not try the same.
        study.sampler = TPESampler(constant_liar=True, seed=seed)
    else:
        study.sampler = RandomSampler(seed=seed)
    ended = (TrialState.COMPLETE, TrialState.FAIL)
    done = len(study.get_trials(deepcopy=False, states=ended))
    say(f"sweep {name}: {done} of {total} trials finished so far, {opt.workers} at a time, {storage}")
    running: set[subprocess.Popen] = set()
    try:
        if done < total:
            run, enough = partial(run_trial, sweep=sweep, output=output, more=opt.more, running=running), total - done
            callbacks = [MaxTrialsCallback(total, states=ended)]
            study.optimize(run, n_trials=enough, n_jobs=opt.workers, catch=UserError, callbacks=callbacks)
    except (KeyboardInterrupt, SystemExit) as stop:
        for process in list(running):
            process.terminate()
        say(f"progress is saved in {storage}; to resume: {command_to_continue(argv, True)}")
        raise KeyboardInterrupt from stop
    completed = study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])
    if not completed:
        raise UserError(f"all trials failed; what they said is in {output}")
    best = study.best_trial
    say(
        f"best of {len(completed)} trials: number {best.number}, {sweep['metric']} {best.value:.4f} (chosen on the "
        f"test set), {best.user_attrs.get('values', best.params)}"
    )


if __name__ == "__main__":
    sys.exit(main())
