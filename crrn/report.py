"""The report of a test: report.html beside results.json."""

import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from common.cli import number_of
from common.report import Section, data_sentence, write_report
from crrn.pictures import draw_boards
from crrn.preprocess import Prepared
from crrn.utils import KINDS, RATES, place

BOARDS = 3  # of each kind
SCORES = {
    "errors.png": "How the signed errors of fine and anomalous pads are distributed.",
    "precision_recall_excessive.png": "Precision and recall of excessive paste at each anomaly rate.",
    "precision_recall_insufficient.png": "Precision and recall of insufficient paste at each anomaly rate.",
}


class Tested(NamedTuple):
    """Sequences with anomalies of one rate, at their pads: (shifts, N, T, P) each."""

    added: Tensor  # what was injected
    values: Tensor  # the network's input
    error: Tensor


def write(folder: Path, prepared: Prepared, clean: Tensor, tested: Tested, results: dict[str, Any]) -> None:
    """Write it.

    folder: of the results and their pictures; clean: a sequence at its pads, (T, P); tested: at the lowest anomaly
    rate; results: those of results.json.
    """
    header = ["anomaly rate", *(f"{kind}: {who}" for kind in KINDS for who in ("F1", "z-score"))]
    table = []
    for rate in map(str, RATES):
        both = [one["best_f1"] for kind in KINDS for one in (results[kind][rate], results[kind][rate]["z_score"])]
        table.append([rate, *both])
    with tempfile.TemporaryDirectory() as temporary:
        ages = torch.linspace(0, len(clean) - 1, min(BOARDS, len(clean))).long()
        drawn = Path(temporary) / "normal.png"
        _draw(drawn, prepared, {"volume": clean[ages]}, [f"board {age} of a cycle" for age in ages])
        normal = [(drawn, "Boards without anomalies, volumes normalised pad by pad.")]
        if (prepared.folder / "group.png").exists():
            normal.append((prepared.folder / "group.png", "The pads, by shape."))
        limits = [results[kind][str(RATES[0])]["best_f1_threshold"] for kind in KINDS]
        sections = [
            Section("Results", in_words(results), header, table),
            Section("Normal data", pictures=normal),
            Section("Scores", pictures=[(folder / name, caption) for name, caption in SCORES.items()]),
            Section("Injected anomalies, input and error", pictures=_cases(Path(temporary), prepared, tested, *limits)),
        ]
        write_report(folder / "report.html", f"CRRN on {prepared.folder.name}", sections)


def in_words(results: dict[str, Any]) -> list[str]:
    """Paragraphs on data, training and test."""
    settings, epochs, planned = results["settings"], results["epochs"], results["epochs_planned"]
    protocol = "measured cycles" if settings["protocol"] == "measured" else "sequences drawn from the age model"
    length = f"{epochs} of {planned} epochs" if planned and epochs < planned else number_of(epochs, "epoch")
    test_set = "measured cycles that were held out" if results["test_set"] == "measured" else "drawn sequences"
    return [
        data_sentence(results["data"]),
        f"{settings['mode']}, trained for {length} on {protocol}; the anomalies are injected, shifts of 2 to 5 "
        f"standard deviations in {test_set}. The model is the last one saved.",
        "Best F1: its threshold, of 51, is chosen on the test set. The z-score, a plain baseline without training, "
        "thresholds the normalised volume itself and is given the same choice.",
    ]


def _cases(folder: Path, prepared: Prepared, tested: Tested, high: float, low: float) -> list[tuple[Path, str]]:
    """The boards on which most and fewest of the anomalies are found, at the thresholds of the best F1."""
    added, values, error = (one.flatten(0, 2) for one in tested)  # (boards, P) each
    called = torch.where(added > 0, error > high, error < -low) & (added != 0)
    wrong = ((error > high) | (error < -low)) & (added == 0)
    hits, anomalies = called.sum(1), (added != 0).sum(1)  # of each board
    f1 = 2 * hits / (hits + wrong.sum(1) + anomalies)
    order = sorted(torch.nonzero(anomalies)[:, 0].tolist(), key=f1.__getitem__)
    pictures = []
    for name, chosen in (("Best found: the boards of the highest", order[::-1]), ("Worst missed: the lowest", order)):
        chosen, path = chosen[:BOARDS], folder / f"cases{len(pictures)}.png"
        titles = [f"{hits[i]} of {anomalies[i]} found, {wrong[i].sum()} false" for i in chosen]
        _draw(path, prepared, {"injected": added[chosen], "input": values[chosen], "error": error[chosen]}, titles)
        pictures.append((path, f"{name} F1, {RATES[0]:.0%} of all pads being anomalous."))
    return pictures


def _draw(path: Path, prepared: Prepared, rows: dict[str, Tensor], titles: list[str]) -> None:
    """Boards, (n, P) at their pads in each of `rows`."""
    pixels = prepared.mask.nonzero(as_tuple=True)
    maps = {name: place(v, *pixels, prepared.height, prepared.width)[:, 0].numpy() for name, v in rows.items()}
    draw_boards(path, maps, titles, prepared.mask.numpy(), prepared.folder.name, limit=5.0)
