"""Inject anomalies into clean sequences and count which ones a trained CRRN finds: python 2_test_model.py

Writes, beside the checkpoint: pr_info_e_<k>.pt and pr_info_i_<k>.pt (precision, recall and F1 at thresholds 0 to 5, for
excessive and insufficient paste at an anomaly rate of k / 10), results.json, and the pictures precision_recall_*.png,
errors.png and boards.png; with --report, report.html too. With another --test_set than the protocol's, all that in
test_set_<name>/ there.
"""

import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch import Tensor

from common import checkpoint, distributed
from common.cli import REPORT_HELP, ArgumentParser, notes, progress, say, script
from common.files import UserError, require_writable, write_json
from common.metrics import average_precision
from common.runtime import autocast
from crrn import report
from crrn.boards import cycle_of, is_synthetic
from crrn.checkpoints import MODEL_SETTINGS, add_model_options, check_options, load_trained, result_folder
from crrn.demo_boards import ensure_prepared
from crrn.pictures import draw_boards, draw_errors, draw_precision_recall
from crrn.preprocess import Prepared
from crrn.report import Tested
from crrn.utils import KINDS, RATES, SHIFTS, Counts, at_pads, device_of, inject, place, reconstruct

SHOWN = 4  # boards on a picture


def test(
    options: Namespace, prepared: Prepared, model: torch.nn.Module, folder: Path, device: torch.device
) -> tuple[dict[str, Any], Tensor, list[Tested]]:
    """Count at every rate and shift, then write the curves and pictures to `folder`, and return the results, a clean
    sequence at its pads, (T, P), and what was tested at the lowest rate."""
    sequences = prepared.test_pcbs
    if options.test_set == "measured":
        _, sequences, _, _ = prepared.measured_cycles(options.held_out)
    rows, columns = torch.nonzero(prepared.mask, as_tuple=True)  # pads that share a pixel count once
    clean = at_pads(sequences, rows, columns)  # (N, T, P)
    generator = torch.Generator().manual_seed(options.seed)
    results: dict[str, Any] = {}
    curves: dict[str, dict] = {kind: {} for kind in KINDS}
    baseline_curves: dict[str, dict] = {kind: {} for kind in KINDS}
    jobs = [(rate, shift) for rate in RATES for shift in SHIFTS]
    errors: list[Tensor] = []
    tested: list[Tested] = []
    for rate, shift in progress(jobs, "testing"):
        if shift == SHIFTS[0]:
            counts = {kind: Counts(sign) for kind, sign in KINDS.items()}
            baseline = {kind: Counts(sign) for kind, sign in KINDS.items()}
            errors, inputs, shifts = [], [], []
        added = inject(clean, rate, shift, generator)
        # Pads that moved since the first board, on whose positions the mask is, stay in the input as they are.
        images = sequences + place(added, rows, columns, prepared.height, prepared.width)
        values = at_pads(images, rows, columns)
        output = reconstruct(model, images, options.batch_size, device, options.precision)
        error = values - at_pads(output, rows, columns)
        if not error.isfinite().all():
            raise UserError(f"the reconstruction is not finite in --precision {options.precision}: try fp32")
        for kind in KINDS:
            counts[kind].update(error, added)
            baseline[kind].update(values, added)  # as if all volumes should be normal
        if rate == RATES[0]:
            tested.append(Tested(added, values, error))
        errors.append(error.flatten())
        inputs.append(values.flatten())
        shifts.append(added.flatten())
        if shift == SHIFTS[-1]:
            name = f"{rate:.1f}"
            for kind, sign in KINDS.items():
                curve, other = counts[kind].curve(), baseline[kind].curve()
                curves[kind][name], baseline_curves[kind][name] = curve, other
                labels = sign * torch.cat(shifts) > 0
                results.setdefault(kind, {})[name] = {
                    **_best(curve),
                    "average_precision": average_precision(labels, sign * torch.cat(errors)),
                    "z_score": {
                        **_best(other),
                        "average_precision": average_precision(labels, sign * torch.cat(inputs)),
                    },
                }

    all_errors, all_shifts = torch.cat(errors), torch.cat(shifts)
    added = sum(inject(clean[:1], 0.05, shift, generator) for shift in (-4, 4))
    shown = place(added, rows, columns, prepared.height, prepared.width)
    images = sequences[:1] + shown
    output = reconstruct(model, images, 1, device, options.precision)
    # All is computed: from here on, the results of an earlier test are replaced.
    about = f"{options.mode}{' with attention' if options.is_attn else ''}, {_data_name(prepared)}, {options.test_set}"
    for kind in KINDS:
        for number, curve in enumerate(curves[kind].values(), start=1):
            saved = {key: curve[key] for key in ("Precision", "Recall", "F1")}
            checkpoint.write(folder / f"pr_info_{kind[0]}_{number}.pt", saved)
        title = f"{kind} paste: {about}"
        draw_precision_recall(folder / f"precision_recall_{kind}.png", curves[kind], baseline_curves[kind], title)
    groups = {"fine": all_shifts == 0, "excessive": all_shifts > 0, "insufficient": all_shifts < 0}
    draw_errors(
        folder / "errors.png",
        {name: all_errors[chosen].numpy() for name, chosen in groups.items()},
        f"anomaly rate {RATES[-1]}: {about}",
    )
    _draw_boards(folder / "boards.png", torch.cat([shown, images, images - output]), prepared, about)
    return results, clean[0], tested


def _best(curve: dict[str, list[float]]) -> dict[str, float]:
    """The best F1 of a curve and its threshold; 0 where nothing is ever found."""
    if not curve["F1"]:
        return {"best_f1": 0.0, "best_f1_threshold": float("nan")}
    best = max(range(len(curve["F1"])), key=curve["F1"].__getitem__)
    return {"best_f1": curve["F1"][best], "best_f1_threshold": curve["Threshold"][best]}


def _draw_boards(path: Path, shown: Tensor, prepared: Prepared, about: str) -> None:
    """Some boards of a sequence, evenly spread: injected shift, input and error, (3, T, 1, H, W)."""
    ages = torch.linspace(0, shown.size(1) - 1, min(SHOWN, shown.size(1))).long()
    maps = shown[:, ages, 0].numpy()
    rows = {"injected shift": maps[0], "input": maps[1], "error": maps[2]}
    titles = [f"board {age} of a cycle" for age in ages.tolist()]
    # A limit of 5 standard deviations, the largest shift: colours tell by how much.
    draw_boards(path, rows, titles, prepared.mask.numpy(), about, limit=5.0)


def _data_name(prepared: Prepared) -> str:
    return "synthetic boards" if is_synthetic(prepared.folder) else prepared.folder.name


@script(memory="a smaller --batch_size, or --precision bf16", several=True)
def main(argv: list[str] | None = None) -> None:
    """Test one trained model."""
    parser = ArgumentParser(
        description="Count which injected anomalies a trained CRRN finds.",
        example="python crrn/2_test_model.py --data my_boards --cycle 20 --protocol measured --report",
    )
    add_model_options(parser, [1, 2, 3])
    add = parser.add_argument_group("testing").add_argument
    add("--batch_size", type=int, default=20, help="sequences at once")
    add(
        "--test_set",
        choices=("drawn", "measured"),
        help="sequences to inject anomalies into: drawn ones or measured cycles held out; unset: as --protocol",
    )
    add("--seed", type=int, default=0, help="of the injected anomalies")
    add("--report", action="store_true", help=REPORT_HELP)
    options = parser.parse_args(argv)
    check_options(options, batch_size=(1, 1e9), seed=(0, 2**32 - 1))
    cycle = cycle_of(options.data, options.cycle)
    device = distributed.join(device_of(options.gpu_ids, options.cpu))
    autocast(device, options.precision)  # refuses what this device cannot do
    with distributed.first_alone():
        prepared = ensure_prepared(options.data, cycle, options.result)
    folder = result_folder(options, prepared.folder)
    model, content = load_trained(folder / "model_dictionary.pt", options, prepared, device)
    options.test_set = options.test_set or options.protocol
    if options.test_set != options.protocol:  # what the usual test wrote stays
        folder /= f"test_set_{options.test_set}"
    require_writable(folder)
    found, clean, tested = test(options, prepared, model, folder, device)
    results = {
        "method": "CRRN",
        "data": "synthetic" if is_synthetic(prepared.folder) else str(prepared.folder),
        "model_sha256": content["sha256"],
        "boards_fingerprint": prepared.fingerprint,
        "trained_on": content.get("data"),
        "trained_on_these_boards": content["same_boards"],
        "test_set": options.test_set,
        "epochs": content["epoch"] + 1,
        "epochs_planned": content.get("num_epochs"),
        **found,
        "best_f1_chosen_on": "the test sequences themselves, of 51 thresholds",
        "device": str(device),
        "settings": {name: getattr(options, name) for name in (*MODEL_SETTINGS, "held_out", "seed", "precision")},
        "notes": notes(),
        "versions": checkpoint.versions(),
    }
    write_json(folder / "results.json", results)
    for kind in KINDS:
        pairs = [
            f"{rate}: {one['best_f1']:.3f} ({one['z_score']['best_f1']:.3f})" for rate, one in results[kind].items()
        ]
        say(f"best F1, {kind} (in brackets: z-score alone) at anomaly rate {', '.join(pairs)}")
    say(f"results, curves and pictures: {folder}")
    if options.report:
        report.write(folder, prepared, clean, tested, results)
    elif (folder / "report.html").exists():
        say(f"{folder / 'report.html'} is of an earlier test: --report makes it anew")


if __name__ == "__main__":
    sys.exit(main())
