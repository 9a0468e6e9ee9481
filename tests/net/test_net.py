"""The net under a refactoring: tiny runs of every method have to come to the recorded numbers, interrupted or not.

One method alone: pytest tests/net -k riad_paper. After a change that is meant: python -m tests.net.record riad_paper, and
the reason beside MEANT. On a processor like the recording's, with the same versions, every bit of weights and numbers
has to agree; elsewhere numbers agree within TOLERANCE, and weights in mean and root mean square.
"""

import json
import re
from pathlib import Path

import pytest

from tests.net import runs

# Recorded names that are others today: "<old>": "<new>", each with its reason. Parts between dots, or whole files.
RENAMED: dict[str, str] = {}
# Cases recorded again since commit bfc78c0: "<case>": "<why its numbers changed>".
MEANT: dict[str, str] = {}

# Ten times what was measured between AVX-512 (AMX or not: no difference), AVX2 and SSE4.1, and one and two threads; of
# the largest value of that name in the file, or, where it says so, of 1.
TOLERANCE = [
    # Which of several thresholds has the best F1, and how exact histograms of pixels are, may jump.
    (r"f1_threshold$|(ap|f1)_error$", None),
    # Shares and counts, absolute: one of a few hundred pads or pixels on the other side of a threshold.
    (r"auroc|auc|f1$|aupro|_ap$|average_precision$|fpr", 5e-3),
    (r"error_scaled|regularity", 1e-2),  # by their lowest and highest value: absolute
    (r"", 5e-3),
]
WEIGHTS = [
    (r"\.bias$", 0.2),  # those before a batch norm have no gradient but rounding, of which Adam makes steps of --lr
    (r"\.running_", 0.1),  # which those biases move
    (r"", 1e-3),
]


def differences(recorded: dict, found: dict) -> list[str]:
    """What differs: every bit counts on a machine like the recording's, else TOLERANCE and WEIGHTS."""
    same = recorded["machine"] == found["machine"]
    wrong = [] if recorded["data_sha256"] == found["data_sha256"] else ["the data are others"]
    if same and recorded["weights_sha256"] != found["weights_sha256"]:
        wrong.append("weights_sha256")
    if recorded["weights"].keys() != found["weights"].keys():
        return [*wrong, "names of the weights"]
    for name, (count, total, squares) in recorded["weights"].items():
        number, its_total, its_squares = found["weights"][name]
        rms, its_rms = (squares / count) ** 0.5, (its_squares / count) ** 0.5
        limit = 0 if same else _limit(WEIGHTS, name) * max(rms, 1e-3)
        if number != count or max(abs(total - its_total) / count, abs(rms - its_rms)) > limit:
            wrong.append(f"weights: {name}: {recorded['weights'][name]}, now {found['weights'][name]}")
    largest: dict[str, float] = {}
    for name, value in recorded["numbers"].items():
        largest[_stem(name)] = max(largest.get(_stem(name), 0), abs(value or 0))
    for name, value in recorded["numbers"].items():
        new = _renamed(name)
        now = found["numbers"].get(new, "missing")
        if now == value:
            continue
        limit = 0 if same else _limit(TOLERANCE, _stem(name))
        if None in (now, value) or now == "missing" or abs(now - value) > limit * _scale(largest, name):
            wrong.append(f"{new}: {value}, now {now}")
    return wrong


def _stem(name: str) -> str:
    """Without the numbers of rows."""
    return re.sub(r"(\.\d+)+$", "", name)


def _scale(largest: dict[str, float], name: str) -> float:
    return max(largest[_stem(name)], 1e-6) if _limit(TOLERANCE, _stem(name)) == TOLERANCE[-1][1] else 1


def _limit(table: list[tuple[str, float | None]], name: str) -> float:
    last = name.rpartition(": ")[2].rpartition(".")[2] if table is TOLERANCE else name
    limit = next(limit for pattern, limit in table if re.search(pattern, last))
    return float("inf") if limit is None else limit


def _renamed(name: str) -> str:
    file, _, rest = name.partition(": ")
    parts = [RENAMED.get(part, part) for part in rest.split(".")]
    return RENAMED.get(name, f"{RENAMED.get(file, file)}: {'.'.join(parts)}")


@pytest.fixture(params=runs.CASES)
def case(request):
    with runs.without_pictures():
        yield runs.CASES[request.param]


def test_interrupted_or_not_the_numbers_are_the_recorded_ones(case, request, tmp_path):
    name = request.node.callspec.params["case"]
    data = runs.trained(case, tmp_path)
    whole = (tmp_path / "run").rename(tmp_path / "whole")
    for status in runs.stopped(case, tmp_path):
        assert status == 130
    assert runs.call(case.train, tmp_path) == 0
    ours, theirs = runs.contents(tmp_path / "run"), runs.contents(whole)
    assert ours.keys() == theirs.keys() and case.weights in ours
    assert not [file for file in ours if ours[file] != theirs[file]]
    found = runs.measured(case, tmp_path, data)
    recorded = json.loads(Path(runs.HERE, f"{name}.json").read_text())
    assert not differences(recorded, found)
