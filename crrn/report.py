"""The report of a test: report.html beside results.json."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common.cli import number_of
from common.report import Section, data_sentence, write_report
from crrn.pictures import draw_boards
from crrn.preprocess import Prepared
from crrn.utils import KINDS, RATES, place

BOARDS = 3  # of each kind


@dataclass
class Tested:
    """Sequences with anomalies of one shift, at their pads: (N, T, P) each."""

    added: Tensor  # what was injected
    values: Tensor  # the network's input
    error: Tensor


def write(folder: Path, prepared: Prepared, clean: Tensor, tested: Sequence[Tested], results: dict[str, Any]) -> None:
    """Write it.

    folder: of the results and their pictures; clean: a sequence at its pads, (T, P); tested: those of the lowest
    anomaly rate; results: those of results.json.
    """
    with tempfile.TemporaryDirectory() as temporary:
        drawn = Path(temporary)
        ages = torch.linspace(0, len(clean) - 1, min(BOARDS, len(clean))).long()
        _draw(drawn / "normal.png", prepared, {"volume": clean[ages]}, [f"board {age} of a cycle" for age in ages])
        normal = [(drawn / "normal.png", "Boards without anomalies, volumes normalised pad by pad.")]
        if (prepared.folder / "group.png").exists():
            normal.append((prepared.folder / "group.png", "The pads, by shape."))
        limits = {kind: results[kind][str(RATES[0])]["best_f1_threshold"] for kind in KINDS}
        sections = [
            Section("Results", _about(results), _header(), _rows(results)),
            Section("Normal data", pictures=normal),
            Section("Scores", pictures=[(folder / name, about) for name, about in SCORES.items()]),
            Section("Injected anomalies, input and error", pictures=_cases(drawn, prepared, tested, limits)),
        ]
        write_report(folder / "report.html", f"CRRN on {prepared.folder.name}", sections)


SCORES = {
    "errors.png": "How the signed errors of fine and anomalous pads are distributed.",
    "precision_recall_excessive.png": "Precision and recall of excessive paste at each anomaly rate.",
    "precision_recall_insufficient.png": "Precision and recall of insufficient paste at each anomaly rate.",
}


def _about(results: dict[str, Any]) -> list[str]:
    settings = results["settings"]
    protocol = "measured cycles" if settings["protocol"] == "measured" else "sequences drawn from the age model"
    epochs, planned = results["epochs"], results["epochs_planned"]
    length = f"{epochs} of {planned} epochs" if planned and epochs < planned else number_of(epochs, "epoch")
    test_set = "measured cycles that were held out" if results["test_set"] == "measured" else "drawn sequences"
    return [
        data_sentence(results["data"]),
        f"{settings['mode']}, trained for {length} on {protocol}; the anomalies are injected, shifts of 2 to 5 "
        f"standard deviations in {test_set}. The model is the last one saved.",
        f"Best F1: its threshold is chosen on {results['best_f1_chosen_on']}. The z-score, a plain baseline without "
        "training, thresholds the normalised volume itself and is given the same choice.",
    ]


def _header() -> list[str]:
    return ["anomaly rate", *(f"{kind}: {who}" for kind in KINDS for who in ("F1", "z-score"))]


def _rows(results: dict[str, Any]) -> list[list[Any]]:
    """Best F1 of network and z-score at each rate."""
    rows = []
    for rate in map(str, RATES):
        found = [results[kind][rate] for kind in KINDS]
        rows.append([rate, *(value for one in found for value in (one["best_f1"], one["z_score"]["best_f1"]))])
    return rows


def _cases(
    folder: Path, prepared: Prepared, tested: Sequence[Tested], limits: dict[str, float]
) -> list[tuple[Path, str]]:
    """The boards on which most and fewest of the anomalies are found, at the thresholds of the best F1."""
    added, values, error = (torch.cat([getattr(one, name).flatten(0, 1) for one in tested]) for name in vars(tested[0]))
    found = torch.where(added > 0, error > limits["excessive"], error < -limits["insufficient"])
    wrong = ((error > limits["excessive"]) | (error < -limits["insufficient"])) & (added == 0)
    hits, anomalies = (found & (added != 0)).sum(1), (added != 0).sum(1)  # of each board
    f1 = 2 * hits / (hits + wrong.sum(1) + anomalies)
    order = sorted(torch.nonzero(anomalies)[:, 0].tolist(), key=f1.__getitem__)
    pictures = []
    for name, chosen in (
        ("Best found: the boards of the highest F1", order[::-1][:BOARDS]),
        ("Worst missed: the boards of the lowest F1", order[:BOARDS]),
    ):
        path = folder / f"cases{len(pictures)}.png"
        titles = [f"{hits[i]} of {anomalies[i]} found, {wrong[i].sum()} false" for i in chosen]
        _draw(path, prepared, {"injected": added[chosen], "input": values[chosen], "error": error[chosen]}, titles)
        pictures.append((path, f"{name}, {RATES[0]:.0%} of all pads being anomalous."))
    return pictures


def _draw(path: Path, prepared: Prepared, rows: dict[str, Tensor], titles: list[str]) -> None:
    """Boards, (n, P) at their pads in each of `rows`."""
    row, column = torch.nonzero(prepared.mask, as_tuple=True)
    maps = {name: place(v, row, column, prepared.height, prepared.width)[:, 0].numpy() for name, v in rows.items()}
    draw_boards(path, maps, titles, prepared.mask.numpy(), prepared.folder.name, limit=5.0)
