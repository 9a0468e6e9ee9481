"""--help and wrong options are answered at once: before torch, or anything else that takes long to import, is."""

import json
import subprocess
import sys

import pytest

from tests.test_help import ROOT, SCRIPTS

SLOW = ("matplotlib", "scipy", "skimage", "sklearn", "torch", "torchvision")
# Runs each script with each option in a process forked from this one, in which modules of SLOW cannot be imported.
PROGRAM = """
import json, os, runpy, sys, tempfile
import common.cli, numpy, PIL.Image

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in SLOW:
            raise ImportError(name + " is imported")

def ended(script, option):
    with tempfile.TemporaryFile("w+") as printed:
        if not (child := os.fork()):
            for number in (1, 2):
                os.dup2(printed.fileno(), number)
            sys.meta_path.insert(0, Refuse())
            sys.argv = [script, option]
            runpy.run_path(script, run_name="__main__")
            os._exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        printed.seek(0)
        return status, printed.read()

SLOW, scripts, options = json.loads(sys.argv[1])
print(json.dumps({script: [ended(script, option) for option in options] for script in scripts}))
"""


@pytest.fixture(scope="module")
def answers():
    """What each script answers to --help and to an unknown option: (exit status, what it prints)."""
    argument = json.dumps([SLOW, SCRIPTS, ["--help", "--no_such_option"]])
    command = [sys.executable, "-c", PROGRAM, argument]
    return json.loads(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout)


@pytest.mark.parametrize("script", SCRIPTS)
def test_options_are_answered_before_slow_imports(script, answers):
    (helped, text), (refused, error) = answers[script]
    assert helped == 0 and "\nexample: python " in text, text
    assert refused == 2 and error.startswith("error: ") and error.count("\n") == 1, error
