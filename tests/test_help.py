"""--help of every script that a user starts: it ends with 0, explains every option, and its example can be typed."""

import argparse
import importlib.util
import shlex
import sys
from pathlib import Path

import pytest

from common import cli
from csflow import config as csflow_config
from riad import options as riad_options

ROOT = Path(__file__).parents[1]
FOLDERS = ("benchmarks", "common", "crn", "crrn", "csflow", "memae", "riad")
SCRIPTS = [
    path.relative_to(ROOT).as_posix()
    for folder in FOLDERS
    for path in sorted((ROOT / folder).rglob("*.py"))
    if '__name__ == "__main__"' in path.read_text(encoding="utf-8")
]
TRAININGS = (
    "benchmarks/compare.py", "crn/train.py", "crrn/1_train.py", "csflow/main.py", "memae/script_training.py",
    "riad/run.py",
)  # fmt: skip


@pytest.fixture
def helped(monkeypatch, capsys):
    """A function from a script's name to what --help printed and the parser that printed it."""
    parsers = []
    show = cli.ArgumentParser.print_help

    def print_help(self, file=None):
        parsers.append(self)
        show(self, file)

    def call(name):
        spec = importlib.util.spec_from_file_location(f"help_{Path(name).stem}", ROOT / name)
        script = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, spec.name, script)  # where dataclasses look for their module
        spec.loader.exec_module(script)
        with pytest.raises(SystemExit) as ended:
            script.main(["--help"])
        assert ended.value.code == 0
        return capsys.readouterr().out, parsers[-1]

    monkeypatch.setattr(cli.ArgumentParser, "print_help", print_help)
    monkeypatch.setenv("COLUMNS", "1000")  # no help is wrapped
    return call


def test_scripts_are_found():
    assert len(SCRIPTS) > 30 and {"csflow/main.py", "crrn/0_preprocessing.py", "common/demo_data.py"} < set(SCRIPTS)


@pytest.mark.parametrize("name", SCRIPTS)
def test_help(helped, name):
    text, parser = helped(name)
    options = [action for action in parser._actions if action.dest != "help"]
    grouped = [action for group in parser._action_groups[2:] for action in group._group_actions]
    assert options == grouped  # each lies in a group with a title of its own
    if name in TRAININGS:
        first = text.split("options that matter most:\n")[1].split("\n\n")[0]
        assert sum(line.startswith("  --") for line in first.splitlines()) == 10
    flat = " ".join(text.split())
    for action in options:
        if action.help == argparse.SUPPRESS:  # taken without use, so that other scripts' command lines fit
            continue
        help = " ".join((action.help or "").replace("%%", "%").split())
        assert help and help in flat, action.dest
        told = action.required or action.nargs == 0 or f"{help} (default: " in flat
        assert told or any(word in help for word in ("unset", "unused", "(default: ", "repo: ", "paper: ")), action.dest
    python, script, *argv = shlex.split(text.split("example: ")[1])
    assert (python, script) == ("python", name)
    parser.parse_args(argv[: argv.index("--")] if "--" in argv else argv)


def test_folders_with_a_percent_sign_are_shown(monkeypatch):
    monkeypatch.setattr(riad_options, "HERE", Path("/50%/riad"))
    assert "/50%/riad/data" in riad_options.build_parser().format_help()
    monkeypatch.setitem(csflow_config.ALL["dataset_path"], "default", Path("/50%/images"))
    assert "/50%/images" in csflow_config.build_parser("", "", ["dataset_path"]).format_help()
