"""Inject anomalies into clean sequences and count which ones a trained CRRN finds: python 2_test_model.py

Writes, beside the checkpoint: pr_info_e_<k>.pt and pr_info_i_<k>.pt (precision, recall and F1 at thresholds 0 to 5, for
excessive and insufficient paste at an anomaly rate of k / 10), results.json, and the pictures precision_recall_*.png,
errors.png and boards.png; with --report, report.html too. With another --test_set than the protocol's, all that in
test_set_<name>/ there.
"""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from common.cli import answer_early
from crrn.options import MODEL, parse_test

answer_early(__name__, parse_test)

import torch
from torch import Tensor

from common import checkpoint, distributed
from common.cli import notes, progress, say, script
from common.files import UserError, locked, require_writable, write_json
from common.metrics import average_precision
from common.runtime import autocast
from crrn import report
from crrn.boards import cycle_of
from crrn.checkpoints import load_trained, model_folder
from crrn.demo_boards import ensure_prepared
from crrn.pictures import draw_boards, draw_errors, draw_precision_recall
from crrn.preprocess import Prepared
from crrn.report import Tested
from crrn.utils import KINDS, RATES, SHIFTS, Counts, at_pads, device_of, inject, place, reconstruct

SHOWN = 4  # boards on a picture
Curves = dict[str, dict[str, dict[str, list[float]]]]  # kind -> rate -> as `Counts.curve` gives it


def test(
    rebuild: Callable[[Tensor], Tensor], sequences: Tensor, prepared: Prepared, generator: torch.Generator
) -> tuple[dict[str, Any], Curves, Curves, list[Tested]]:
    """Inject anomalies at every rate and shift into `sequences`, (N, T, 1, H, W), and count those that are found.

    rebuild: gives their reconstruction. Returns, of each kind and rate, best F1 and average precision of the network
    and of the z-score; the curves of both; and what was tested at the lowest and at the highest rate.
    """
    rows, columns = prepared.mask.nonzero(as_tuple=True)  # pads that share a pixel count once
    clean = at_pads(sequences, rows, columns)  # (N, T, P)
    results, curves, z_curves = ({kind: {} for kind in KINDS} for _ in range(3))
    kept: list[Tested] = []
    for rate in progress(RATES, "testing"):
        tested = []
        for shift in SHIFTS:
            added = inject(clean, rate, shift, generator)
            # Pads that moved since the first board, on whose positions the mask is, stay in the input as they are.
            images = sequences + place(added, rows, columns, prepared.height, prepared.width)
            values = at_pads(images, rows, columns)
            tested.append((added, values, values - at_pads(rebuild(images), rows, columns)))
        stacked = Tested(*map(torch.stack, zip(*tested)))  # (shifts, N, T, P) each
        if not stacked.error.isfinite().all():
            raise UserError("the reconstruction is not finite in this --precision: try fp32")
        for kind, sign in KINDS.items():
            curves[kind][f"{rate:.1f}"], network = measure(stacked.error, stacked.added, sign)
            # as if all volumes should be normal
            z_curves[kind][f"{rate:.1f}"], z_score = measure(stacked.values, stacked.added, sign)
            results[kind][f"{rate:.1f}"] = {**network, "z_score": z_score}
        kept = [*kept[:1], stacked]
    return results, curves, z_curves, kept


def measure(error: Tensor, added: Tensor, sign: int) -> tuple[dict[str, list[float]], dict[str, float]]:
    """The curve of one kind of anomaly, and its best F1 (0 where nothing is ever found) and average precision."""
    counts = Counts(sign)
    counts.update(error, added)
    curve = counts.curve()
    best, threshold = max(zip(curve["F1"], curve["Threshold"]), key=lambda pair: pair[0], default=(0.0, float("nan")))
    precision = average_precision((sign * added > 0).flatten(), (sign * error).flatten())
    return curve, {"best_f1": best, "best_f1_threshold": threshold, "average_precision": precision}


def write(
    folder: Path, prepared: Prepared, curves: Curves, z_curves: Curves, last: Tested, shown: Tensor, title: str
) -> None:
    """The curves' files, and all pictures; shown: injected shifts, input and error of a sequence, (3, T, 1, H, W)."""
    for kind in KINDS:
        for number, curve in enumerate(curves[kind].values(), start=1):
            saved = {key: curve[key] for key in ("Precision", "Recall", "F1")}
            checkpoint.write(folder / f"pr_info_{kind[0]}_{number}.pt", saved)
        path = folder / f"precision_recall_{kind}.png"
        draw_precision_recall(path, curves[kind], z_curves[kind], f"{kind} paste: {title}")
    groups = {"fine": last.added == 0, "excessive": last.added > 0, "insufficient": last.added < 0}
    errors = {name: last.error[chosen].numpy() for name, chosen in groups.items()}
    draw_errors(folder / "errors.png", errors, f"anomaly rate {RATES[-1]}: {title}")
    ages = torch.linspace(0, shown.size(1) - 1, min(SHOWN, shown.size(1))).long()  # evenly spread
    rows = dict(zip(("injected shift", "input", "error"), shown[:, ages, 0].numpy()))
    titles = [f"board {age} of a cycle" for age in ages.tolist()]
    # A limit of 5 standard deviations, the largest shift: colours tell by how much.
    draw_boards(folder / "boards.png", rows, titles, prepared.mask.numpy(), title, limit=5.0)


@script(memory="a smaller --batch_size, or --precision bf16", several=True)
def main(argv: list[str] | None = None) -> None:
    """Test one trained model."""
    options = parse_test(argv)
    cycle = cycle_of(options.data, options.cycle)
    device = distributed.join(device_of(options.gpu_ids, options.cpu, options.device))
    autocast(device, options.precision)  # refuses what this device cannot do
    with distributed.first_alone():
        prepared = ensure_prepared(options.data, cycle, options.result)
    folder = model_folder(vars(options), prepared.folder)
    model, share, trained = load_trained(folder / "model_dictionary.pt", vars(options), prepared, device)
    test_set, sequences = options.test_set or options.protocol, prepared.test_pcbs
    if test_set == "measured":
        _, sequences, _, _ = prepared.measured_cycles(share)
    if test_set != options.protocol:  # what the usual test wrote stays
        folder /= f"test_set_{test_set}"
    require_writable(folder)
    generator = torch.Generator().manual_seed(options.seed)
    rebuild = partial(reconstruct, model, batch_size=options.batch_size, device=device, precision=options.precision)
    with locked(folder):
        counted, curves, z_curves, (lowest, highest) = test(rebuild, sequences, prepared, generator)
        pixels = prepared.mask.nonzero(as_tuple=True)
        clean = at_pads(sequences[:1], *pixels)  # (1, T, P)
        added = sum(inject(clean, 0.05, shift, generator) for shift in (-4, 4))
        shifts = place(added, *pixels, prepared.height, prepared.width)  # (1, T, 1, H, W)
        images = sequences[:1] + shifts
        shown = torch.cat([shifts, images, images - rebuild(images)])
        # All is computed: from here on, the results of an earlier test are replaced.
        name = "synthetic boards" if prepared.source == "synthetic" else prepared.folder.name
        title = f"{options.mode}{' with attention' if options.is_attn else ''}, {name}, {test_set}"
        write(folder, prepared, curves, z_curves, highest, shown, title)
        settings = {name: getattr(options, name) for name in (*MODEL, "seed", "precision")} | {"held_out": share}
        results = {
            "method": "CRRN", "data": prepared.source, "boards_fingerprint": prepared.fingerprint, **trained,
            "test_set": test_set, **counted, "best_f1_chosen_on": "test set", "device": str(device),
            "settings": settings, "notes": notes(), "versions": checkpoint.versions(),
        }  # fmt: skip
        write_json(folder / "results.json", results)
        for kind in KINDS:
            pairs = [f"{rate}: {x['best_f1']:.3f} ({x['z_score']['best_f1']:.3f})" for rate, x in counted[kind].items()]
            what = f"best F1 by share of {kind} pads (threshold chosen on the test set; in brackets: z-score alone)"
            say(f"{what}: {', '.join(pairs)}")
        say(f"results, curves and pictures: {folder}")
        if options.report:
            report.write(folder, prepared, clean[0], lowest, results)
        elif (folder / "report.html").exists():
            say(f"{folder / 'report.html'} is of an earlier test: --report replaces it")


if __name__ == "__main__":
    sys.exit(main())
