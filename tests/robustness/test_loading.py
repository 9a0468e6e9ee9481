"""No file that a user is handed can run code: whatever reads files in this project says so where it does."""

import ast

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


NAMED = {"load", "loads", "save", "Unpickler"}  # the check knows calls by their full names: nobody imports these


def violations(source: str) -> list[str]:
    """What in Python code could run code of a file."""
    bad = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module in ("torch", "numpy", "pickle", "yaml", "joblib"):
            bad += [node for name in node.names if name.name in NAMED]
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func).replace("numpy.", "np.")
            given = {word.arg: getattr(word.value, "value", None) for word in node.keywords}
            option, value = REQUIRED.get(name) or REQUIRED.get(name.rsplit(".", 1)[-1]) or ("", None)
            if name in FORBIDDEN or given.get(option) is not value or "shell" in given or given.get("allow_pickle"):
                bad.append(node)
    return list(map(ast.unparse, bad))


def test_nothing_reads_files_that_could_run_code():
    files = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]
    assert len(files) > 70
    assert not {str(path): bad for path in files if (bad := violations(path.read_text(encoding="utf-8")))}


@pytest.mark.parametrize(
    "code",
    [
        "torch.load(f)", "torch.load(f, weights_only=False)", "torch.load(f, weights_only=some)", "pickle.load(f)",
        "np.load(f)", "numpy.load(f, allow_pickle=True)", "np.save(f, x)", "weights.get_state_dict()", "eval(text)",
        "np.lib.format.read_array(f, allow_pickle=True)", "subprocess.run(c, shell=True)", "yaml.load(f)",
        "from torch import load",
    ],
)  # fmt: skip
def test_the_check_sees_what_it_must(code):
    assert violations(code)
    assert not violations("torch.load(f, weights_only=True); np.load(f, allow_pickle=False); yaml.safe_load(f)")
