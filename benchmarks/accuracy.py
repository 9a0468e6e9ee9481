"""Every number of the READMEs' result tables again, beside the published ones: python benchmarks/accuracy.py --list

    python benchmarks/accuracy.py --data mtd=FOLDER mvtec=FOLDER --only csflow riad --seeds 0 1 2

runs the experiments of experiments.toml for whose data a folder is given, through the methods' own scripts, and writes
after each run <output>/accuracy.{md,json}: mean and standard deviation over the seeds, of all runs that lie in
<output>. What is done is not done again, whatever has changed in the code since; an interrupted run resumes. The sizes
are the papers' or the READMEs': most want a GPU.
"""

import glob
import itertools
import re
import statistics
import sys
import time
import tomllib
from argparse import ArgumentTypeError, Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.scripts import ROOT, commands, key_of, mean_and_spread, number_at, read_record, run
from common.cli import ArgumentParser, answer_early, complain, resumable, say, script, whole
from common.files import (
    UserError,
    atomic_write,
    locked,
    read_json,
    require_writable,
    write_json,
)

DATA = {  # what --data NAME=FOLDER has to be; no folder is needed for what is generated
    "mvtec": "MVTec AD: 15 folders with train/good, test/<kind>, ground_truth/<kind>",
    "visa": "VisA: split_csv/1cls.csv and what it lists",
    "btad": "BTAD: 01, 02, 03 with train/ok, test/ok, test/ko, ground_truth/ko",
    "mtd": "magnetic tiles in MVTec AD's layout",
    "mnist": "MNIST: folder with MNIST/raw",
    "ped2": "UCSD Ped2: Train and Test as published",
    "avenue": "Avenue: training_videos, testing_videos, testing_label_mask (needs PyAV)",
}
GENERATED = {
    "boards": "generated boards",
    "textures": "generated defects on textures",
    "bricks": "generated defects on bricks",
    "roads": "generated roads",
}


def data_folder(text: str) -> tuple[str, Path]:
    """Type of an option: NAME=FOLDER, a data set and where it is."""
    name, _, folder = text.partition("=")
    if name not in DATA or not folder:
        raise ArgumentTypeError(f"{text!r}: expected NAME=FOLDER, NAME being one of {', '.join(DATA)}")
    return name, Path(folder).resolve()


def parse(argv: list[str] | None = None) -> Namespace:
    """The options."""
    parser = ArgumentParser(
        description="Rerun the READMEs' results, and the papers', on given data.",
        example="python benchmarks/accuracy.py --data mtd=my_data/mtd --only csflow riad --seeds 0 1 2",
    )
    add = parser.add_argument_group("experiments").add_argument
    data = "data sets, see --list; unset: none"
    add("--data", nargs="+", type=data_folder, default=[], metavar="NAME=FOLDER", help=data)
    add("--only", nargs="+", default=[""], help="experiments whose name contains one of these; unset: all")
    seeds = "one run of each experiment with each; unset: the READMEs', see --list"
    add("--seeds", type=whole(0, 2**32 - 1), nargs="+", help=seeds)
    add("--list", action="store_true", help="name experiments and data sets, run nothing")

    add = parser.add_argument_group("machine and files").add_argument
    add("--cpu", action="store_true", help="use the CPU even where there is a GPU")
    add("--output", type=Path, default=ROOT / "benchmarks/results/accuracy", help="folder of it all")
    return parser.parse_args(argv)


answer_early(__name__, parse)

from benchmarks.published_data import CONVERT
from common.checkpoint import versions
from common.images import files_below, fingerprint

Key = tuple[str | int, ...]  # where a number stands in a results file


class Experiment(NamedTuple):
    """One line of a README or a paper, or several that one training gives: see experiments.toml."""

    name: str  # begins with the method
    data: str
    commands: tuple[str, ...]  # for each category and seed
    file: str  # of the results; a pattern, of which one file is there
    numbers: Mapping[str, Key]
    published: Mapping[str, tuple[float, str]] = {}  # value and source, of all categories
    prepare: tuple[str, ...] = ()  # once for each category
    seeds: Sequence[int] = (0, 1, 2)  # unless others are asked for


def board_numbers(models: str, protocols: str) -> dict[str, Key]:
    """Where crrn/compare.py's results hold best F1 of each model at each rate, and of the z-score."""
    numbers: dict[str, Key] = {}
    for protocol, model in itertools.product(protocols.split(), models.split()):
        key = model + ("_measured" if protocol == "measured" else "")
        for kind, rate in itertools.product(("excessive", "insufficient"), ("0.1", "0.2", "0.3", "0.4", "0.5")):
            for who, metric in ((model, "best_f1"), ("z-score", "z_score_best_f1")):
                numbers[f"best F1, {protocol}, {who}, {kind}, rate {rate}"] = (key, kind, rate, metric, "mean")
    return numbers


def experiment_of(values: Mapping[str, Any]) -> Experiment:
    """The experiment of a table of experiments.toml, with its own values filled into its texts."""

    def filled(text: str) -> str:
        """Values may name others; what is not the experiment's stays for `commands`, {name} and {data} among it."""
        for _ in own:
            text = re.sub(r"\{(\w+)\}", lambda match: str(own.get(match[1], match[0])), text)
        return text

    own = {key: value for key, value in values.items() if isinstance(value, str | int) and key != "name"}
    numbers = values.get("numbers") or board_numbers(values["models"], values["protocols"])
    return Experiment(
        filled(values["name"]), values["on"], tuple(map(filled, values["commands"])), filled(values["file"]),
        {label: (key,) if isinstance(key, str) else tuple(key) for label, key in numbers.items()},
        {label: tuple(published) for label, published in values.get("published", {}).items()},
        tuple(map(filled, values.get("prepare", ()))), values.get("seeds", (0, 1, 2)),
    )  # fmt: skip


def read_experiments(path: Path) -> list[Experiment]:
    """All of experiments.toml, whose first lines say what it holds. Ends the program where it holds something else."""
    experiments = []
    try:
        for group in tomllib.loads(path.read_text(encoding="utf-8")).values():
            for one in group["experiments"]:
                each = one.get("each", {})
                for combination in itertools.product(*each.values()):
                    chosen = dict(zip(each, combination))
                    on = {**group, **one, **chosen}["on"]
                    of_data = (table.get("by_data", {}).get(on, {}) for table in (group, one))
                    experiments.append(experiment_of({**group, **next(of_data), **one, **next(of_data), **chosen}))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        complain(f"error: {path} is no list of experiments: {type(error).__name__}: {error}")
        raise SystemExit(2) from error
    return experiments


EXPERIMENTS = read_experiments(Path(__file__).with_name("experiments.toml"))
CATEGORIES = {"mvtec": 15}  # that published means are over; 1 of other data sets


# --- runs and the table of their numbers


class Given(NamedTuple):
    """What the user has given: folders of data sets with fingerprints of their files, by name."""

    output: Path
    cpu: bool
    folders: Mapping[str, Path]
    fingerprints: Mapping[str, str]


Numbers = dict[str, float | None]


def run_once(experiment: Experiment, name: str, folder: Path | None, seed: int, given: Given) -> Numbers:
    """Run the experiment on the category `name` in `folder`, and record its numbers, unless that is done already."""
    shared = given.output / "shared" / experiment.data
    values = {
        "data": folder, "parent": folder and folder.parent, "name": folder and folder.name, "seed": seed,
        "shared": shared, "cpu": ["--cpu"] * given.cpu,
    }  # fmt: skip
    method = experiment.name.split(",")[0].split(" ")[0]
    key = key_of(commands((*experiment.prepare, *experiment.commands), place="place", **values))
    place = given.output / "runs" / f"{method}_{experiment.data}_{name}_seed{seed}_{key}"
    if not (place / "run.json").exists():
        require_writable(place)
        started = time.monotonic()
        for words in commands(experiment.prepare, **values):
            done = shared / f".done_{key_of(words)}.json"
            if not done.exists():
                run(*words)
                write_json(done, words)
        todo = commands(experiment.commands, place=place, **values)
        for words in todo:
            run(*words)
        pattern = experiment.file.format(place=glob.escape(str(place)), shared=glob.escape(str(shared)))
        files = glob.glob(pattern)  # noqa: PTH207
        if len(files) != 1:
            raise UserError(f"{len(files)} files are like {pattern}: expected one")
        results = read_json(files[0])
        content = {
            "experiment": experiment.name, "category": name, "seed": seed, "settings": settings_of(experiment),
            "numbers": {label: number_at(results, *key) for label, key in experiment.numbers.items()},
            "data": given.folders.get(experiment.data), "data_fingerprint": given.fingerprints.get(experiment.data),
            "seconds": time.monotonic() - started, "versions": versions(), "commands": todo,
        }  # fmt: skip
        write_json(place / "run.json", content)
    return numbers_of(experiment, place / "run.json")


def numbers_of(experiment: Experiment, record: Path) -> Numbers:
    """The experiment's numbers in the record of a run. UserError where they are none."""
    numbers = {label: read_record(record, numbers=dict)["numbers"].get(label) for label in experiment.numbers}
    if not all(value is None or isinstance(value, (int, float)) for value in numbers.values()):
        raise UserError(f"{record} is damaged: remove {record.parent} to run it again")
    return numbers


def settings_of(experiment: Experiment) -> str:
    """What tells whether an earlier run of this name was the same experiment."""
    lines = [[line.split() for line in part] for part in (experiment.prepare, experiment.commands)]
    return key_of([*lines, experiment.numbers])


def earlier(given: Given) -> dict[str, dict[tuple[str, int], Numbers]]:
    """The numbers of all runs in the output, by experiment, then by (category, seed). UserError where they are of
    another folder than is given now, or of what it held before: one table tells of one."""
    runs: dict[str, dict] = {one.name: {} for one in EXPERIMENTS}
    by_name = {one.name: one for one in EXPERIMENTS}
    for path in sorted((given.output / "runs").glob("*/run.json"), key=lambda path: path.stat().st_mtime):
        run = read_record(path, experiment=str, category=str, seed=int, numbers=dict)
        if not (experiment := by_name.get(run["experiment"])):
            continue
        if folder := given.folders.get(experiment.data):
            mark, same = given.fingerprints[experiment.data], run.get("data") == str(folder)
            if not same or run.get("data_fingerprint", mark) != mark:
                words = f"has results of {run.get('data')}{', which has changed since' if same else ''}"
                raise UserError(f"{path} {words}: choose another --output for {folder}")
        if run.get("settings") == settings_of(experiment):  # else of another version of this program
            runs[experiment.name][run["category"], run["seed"]] = numbers_of(experiment, path)
    return runs


def entries(experiment: Experiment, runs: Mapping[tuple[str, int], Mapping[str, float | None]]) -> list[dict]:
    """Lines of the table: for each number, one for each category, and one for the mean of several; from the numbers of
    runs by (category, seed). The mean is over seeds with which all categories are done; a published mean stands beside
    that of all its categories only."""
    names, seeds = (list(dict.fromkeys(key[i] for key in runs)) for i in range(2))
    lines = []
    for label in experiment.numbers:
        by_name = {
            name: {seed: one[label] for (of, seed), one in runs.items() if of == name and one[label] is not None}
            for name in names
        }
        if len(names) > 1:
            complete = [seed for seed in seeds if all(seed in by_name[name] for name in names)]
            means = {seed: statistics.fmean(by_name[name][seed] for name in names) for seed in complete}
            by_name[f"mean of {len(names)}"] = means
        for name, values in by_name.items():
            of_all = len(names) == CATEGORIES.get(experiment.data, 1) and (len(names) == 1 or name not in names)
            value, source = experiment.published.get(label, (None, "")) if of_all else (None, "")
            lines.append(
                {
                    "experiment": experiment.name, "data": experiment.data, "category": name, "number": label,
                    "values": list(values.values()), "seeds": list(values), "published": value, "source": source,
                }
            )  # fmt: skip
    return lines


def write(output: Path, lines: list[dict]) -> list[str]:
    """Write accuracy.json and accuracy.md; returns the lines of the latter."""
    text = ["| experiment | data | number | ours | seeds | published | source |", "|---" * 7 + "|"]
    for line in lines:
        data = line["data"] if line["category"] == line["data"] else f"{line['data']}: {line['category']}"
        ours, seeds = mean_and_spread(line["values"]), ", ".join(map(str, line["seeds"]))
        published = "" if line["published"] is None else line["published"]
        cells = line["experiment"], data, line["number"], ours, seeds, published, line["source"]
        text.append(f"| {' | '.join(map(str, cells))} |")
    write_json(output / "accuracy.json", {"versions": versions(), "results": lines})
    with atomic_write(output / "accuracy.md", "w") as file:
        file.write("\n".join([*text, ""]))
    return text


@script
def main(argv: list[str] | None = None) -> int:
    """Run what is missing, seed by seed; exit status 1 where a run failed."""
    options = parse(argv)
    folders, output = dict(options.data), options.output.resolve()
    for name, folder in folders.items():
        if not folder.is_dir():
            raise UserError(f"--data {name}: there is no folder {folder}")
    chosen = [one for one in EXPERIMENTS if any(part in one.name for part in options.only)]
    if not chosen:
        raise UserError(f"--only {' '.join(options.only)}: no experiment is called so, --list names them")
    able = [one for one in chosen if one.data in GENERATED or one.data in folders]
    if options.list:
        for name, what in DATA.items():
            say(f"--data {name}={folders.get(name, 'FOLDER')}: {what}")
        for name, what in GENERATED.items():
            say(f"{name}: {what}, no folder needed")
        for one in chosen:
            given = "" if one in able else ", which is not given"
            say(f"{one.name}: on {one.data}{given}, seeds {' '.join(map(str, options.seeds or one.seeds))}")
        return 0
    if not able:
        missing = ", ".join(dict.fromkeys(one.data for one in chosen))
        raise UserError(f"no data for these experiments: give --data NAME=FOLDER for one of {missing}")
    for one in chosen:
        if one not in able:
            say(f"left out, no --data {one.data}=FOLDER: {one.name}")
    fingerprints = {name: fingerprint(files_below(folder), folder) for name, folder in folders.items()}
    with locked(output), resumable(output):
        return run_all(able, options.seeds, Given(output, options.cpu, folders, fingerprints))


def run_all(able: list[Experiment], seeds: list[int] | None, given: Given) -> int:
    """Run what is not done yet, with the seeds or each experiment's own, and write the table; the exit status."""
    runs, units = earlier(given), {}
    for name in dict.fromkeys(one.data for one in able):
        folder = given.folders.get(name)
        units[name] = CONVERT[name](folder, given.output / "data" / name) if folder else {name: None}
    failures, text = [], []
    todo = [
        (seed, one, name)
        for seed in dict.fromkeys(seed for one in able for seed in seeds or one.seeds)
        for one in able if seed in (seeds or one.seeds)
        for name in units[one.data]
    ]  # fmt: skip
    for count, (seed, one, name) in enumerate(todo, start=1):
        say(f"--- {count} of {len(todo)}: {one.name}, {name}, seed {seed}")
        try:
            runs[one.name][name, seed] = run_once(one, name, units[one.data][name], seed, given)
        except UserError as error:  # the other experiments need not wait for this one
            failures.append(f"{one.name}, {name}, seed {seed}: {error}")
            complain(f"error: {failures[-1]}")
            continue
        lines = [entries(each, dict(sorted(runs[each.name].items()))) for each in EXPERIMENTS]
        text = write(given.output, [line for of_one in lines for line in of_one])
    for line in text:
        say(line)
    say(f"table: {given.output / 'accuracy.md'}")
    for failure in failures:
        complain(f"failed: {failure}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
