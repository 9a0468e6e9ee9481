"""No file that a user is handed can run code: whatever reads files in this project says so where it does."""

import ast
from pathlib import Path

import pytest

from tests.robustness.processes import ROOT

FOLDERS = ("common", "csflow", "crrn", "memae", "crn", "riad", "benchmarks")
# What runs code of the file that it reads, or of the text that it is given.
FORBIDDEN = {
    "pickle.load", "pickle.loads", "pickle.Unpickler", "marshal.load", "marshal.loads", "shelve.open", "joblib.load",
    "torch.jit.load", "torch.hub.load", "yaml.load", "yaml.unsafe_load", "eval", "exec", "os.system",
}  # fmt: skip
# What does unless told otherwise.
REQUIRED = {
    "torch.load": ("weights_only", True),
    "np.load": ("allow_pickle", False),
    "np.save": ("allow_pickle", False),
    "get_state_dict": ("weights_only", True),
    "load_state_dict_from_url": ("weights_only", True),
}


def violations(source: str) -> list[str]:
    """Calls in Python code that could run code of a file."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func).replace("numpy.", "np.")
        last = name.rsplit(".", 1)[-1]
        if name in FORBIDDEN or any(word.arg == "allow_pickle" and word.value.value for word in node.keywords):
            found.append(ast.unparse(node))
        if option := REQUIRED.get(name, REQUIRED.get(last)):
            given = {word.arg: getattr(word.value, "value", None) for word in node.keywords}
            if given.get(option[0]) is not option[1]:
                found.append(ast.unparse(node))
        if any(word.arg == "shell" for word in node.keywords):
            found.append(ast.unparse(node))
    return found


def test_nothing_reads_files_that_could_run_code():
    files = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]
    assert len(files) > 80
    found = {str(path): bad for path in files if (bad := violations(path.read_text(encoding="utf-8")))}
    assert not found


@pytest.mark.parametrize(
    "code",
    [
        "torch.load(f)", "torch.load(f, weights_only=False)", "torch.load(f, weights_only=some)", "pickle.load(f)",
        "np.load(f)", "numpy.load(f, allow_pickle=True)", "np.save(f, x)", "weights.get_state_dict()", "eval(text)",
        "np.lib.format.read_array(f, allow_pickle=True)", "subprocess.run(c, shell=True)", "yaml.load(f)",
    ],
)  # fmt: skip
def test_the_check_sees_what_it_must(code):
    assert violations(code)
    assert not violations("torch.load(f, weights_only=True); np.load(f, allow_pickle=False); yaml.safe_load(f)")


def test_imports_do_not_hide_what_is_called():
    """The check knows calls by their full names: nobody imports `load` by itself."""
    for path in (path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(Path(path).read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module in ("torch", "numpy", "pickle", "yaml", "joblib"):
                assert not {name.name for name in node.names} & {"load", "loads", "save", "Unpickler"}, path
