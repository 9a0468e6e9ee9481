"""Run a sweep file of Weights & Biases without an account: python sweep.py hyperparameter_optimization_sweep.yml

Each trial is a process of train.py with one set of the file's parameters; Optuna (pip install optuna) chooses them.
--workers run at a time; start the same command on other machines with the same --storage, and they share the trials.
The same command continues a sweep. What stands behind `--` goes to every trial: sweep.py FILE -- --cpu --imsize 64.
"""

import contextlib
import csv
import io
import itertools
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common.files import atomic_write, read_text, require_plain, require_writable
from common.runtime import ArgumentParser, UserError, say, script
from crn.options import HERE, parse

METHODS = ("bayes", "grid", "random")
# Exit statuses of trials that Ctrl-C or SIGTERM ended.
STOPPED = (130, 143, -signal.SIGINT, -signal.SIGTERM)


def read_sweep(path: Path) -> dict[str, Any]:
    """method, goal, metric's name, and each parameter's values (a list), of a sweep file with `values` or `value` for
    each parameter. Raises UserError for anything else."""
    text = read_text(path)
    try:
        import yaml  # comes with optuna and wandb
    except ImportError as error:
        raise UserError("sweep files need the package pyyaml: pip install optuna, which brings it") from error
    try:
        for loader in (yaml.BaseLoader, yaml.SafeLoader):  # the second merges mappings, which may grow without end
            content = yaml.load(text, loader)
            require_plain(content, path)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: numbers of thousands of digits, impossible dates
        raise UserError(f"{path} is no YAML file: {' '.join(str(error).split())}") from error
    except RecursionError as error:
        raise UserError(f"{path} is no sweep: its lists or mappings are nested too deeply") from error
    try:
        method, metric, goal = content["method"], content["metric"]["name"], content["metric"]["goal"]
        parameters = {}
        for name, entry in content["parameters"].items():
            parameters[str(name)] = entry["values"] if "values" in entry else [entry["value"]]
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} is no sweep of this kind: expected method, metric (name, goal) and parameters, each with values "
            "or value"
        ) from error
    for name, values in parameters.items():
        plain = isinstance(values, list) and all(isinstance(value, (str, int, float)) for value in values)
        if not plain or not values:
            raise UserError(f"{path}: parameter {name} needs a list of one or more plain values")
    if not isinstance(metric, str):
        raise UserError(f"{path}: the metric's name is {metric!r}, expected a column of metrics.csv")
    if method not in METHODS or goal not in ("maximize", "minimize"):
        raise UserError(f"{path}: method {method}, goal {goal}: expected {', '.join(METHODS)}; maximize or minimize")
    return {"method": method, "metric": metric, "goal": goal, "parameters": parameters}


def trial_command(values: dict[str, Any], folder: Path, more: list[str]) -> list[str]:
    """train.py with one set of parameters; its files go to `folder`."""
    own = {"log-dir": folder, "image-output-path": folder / "images", "log-file": folder / "log.log"}
    pairs = [f"--{name}={value}" for name, value in {**values, **own}.items()]
    return [sys.executable, str(HERE / "train.py"), "--mode=train", "--model=crn", "--auto-set-name", *pairs, *more]


def require_options(sweep: dict[str, Any], path: Path, more: list[str]) -> None:
    """UserError where train.py would refuse a parameter or one of its values: in every trial, after its start."""
    parameters = sweep["parameters"]
    first = {name: values[0] for name, values in parameters.items()}
    for name, values in parameters.items():
        for value in values:
            try:
                with contextlib.redirect_stdout(io.StringIO()):  # notes on options without effect
                    parse(trial_command({**first, name: value}, Path(), more)[2:])
            except UserError as error:
                raise UserError(f"{path}: {error}") from error


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
    add("--trials", type=int, default=50, help="finished trials in all, whoever ran them (a grid ends by itself)")
    add("--seed", type=int, help="of the choice of parameters, with one worker; unset: by chance")

    add = parser.add_argument_group("machines and files").add_argument
    add("--workers", type=int, default=1, help="trials at a time in this call")
    add("--storage", help="Optuna's storage URL, the same for all machines; unset: a file in crn/sweeps")
    add("--name", help="name of the study; unset: the file's")
    add("--output", type=Path, default=HERE / "sweeps", help="folder of the trials' files")
    opt = parser.parse_args(words[: words.index("--")] if "--" in words else words)
    for name, highest in (("trials", 10**6), ("workers", 64)):
        if not 1 <= getattr(opt, name) <= highest:
            raise UserError(f"--{name} {getattr(opt, name)}: expected 1 to {highest}")
    if opt.seed is not None and not 0 <= opt.seed < 2**31:
        raise UserError(f"--seed {opt.seed}: expected 0 to 2^31 - 1")
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
    if study.direction.name.lower() != sweep["goal"] or any(
        list(distribution.choices) != choices.get(key)
        for trial in known
        for key, distribution in trial.distributions.items()
    ):
        raise UserError(f"{opt.file} is not the sweep that {name} in {storage} began with: give it another --name")

    total = opt.trials
    seed = None if opt.seed is None else opt.seed + len(known)  # what is continued does not begin anew
    if sweep["method"] == "grid":
        total = len(list(itertools.product(*choices.values())))
        study.sampler = optuna.samplers.GridSampler(choices, seed=seed)
    elif sweep["method"] == "bayes":
        # Trials that still run count as bad ones, so that workers do not try the same.
        study.sampler = optuna.samplers.TPESampler(constant_liar=True, seed=seed)
    else:
        study.sampler = optuna.samplers.RandomSampler(seed=seed)
    running: set[subprocess.Popen] = set()

    def run(trial: "optuna.Trial") -> float:
        chosen = {key: trial.suggest_categorical(key, values) for key, values in choices.items()}
        values = {key: values[0] for key, values in sweep["parameters"].items()} | chosen
        folder = opt.output / name / f"trial_{trial.number:04d}"
        command = trial_command(values, folder, more)
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

    def finished() -> int:
        return sum(one.state.is_finished() for one in study.get_trials(deepcopy=False))

    def enough(study: "optuna.Study", trial: "optuna.trial.FrozenTrial") -> None:
        if finished() >= total:
            study.stop()

    done = finished()
    say(f"sweep {name}: {done} of {total} trials finished so far, {opt.workers} at a time, {storage}")
    try:
        if done < total:
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
        f"test set), {best.params}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
