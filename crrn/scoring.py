"""Verdicts on measured boards, pad by pad: what 3_score_boards.py does with files, for Python.

A pad is excessive where its error (input - reconstruction, in standard deviations of the pad) is above one threshold,
insufficient where it is below the other; a share --fpr of held-out pads would be called wrong. A board is defective
where its worst pad is further off than those of held-out boards, but for a share --board_fpr. All thresholds come from
the measured cycles that were held out of the statistics (and, with --protocol measured, of the training). They are
estimates from few cycles, whose pads are alike; how well the other cycles would have judged each of them is told, too.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from common import distributed
from common.cli import number_of
from common.files import UserError
from common.metrics import threshold_for_fpr
from common.runtime import autocast
from crrn.boards import cycle_of
from crrn.checkpoints import load_trained, model_folder
from crrn.demo_boards import ensure_prepared
from crrn.model.ConvRRN import ST_EncDec
from crrn.options import parse_score
from crrn.preprocess import Prepared
from crrn.utils import at_pads, device_of, place, reconstruct


@dataclass(frozen=True)
class Loaded:
    """A trained network, ready to score."""

    network: ST_EncDec
    path: Path
    results: dict[str, Any]  # what results.json says of it
    prepared: Prepared  # the boards that volumes are normalised by
    held_out_share: float
    held_out: Tensor  # their cycles that thresholds come from, (n, cycle, 1, H, W)
    mean: Tensor  # volume of each pad, (P,)
    std: Tensor
    device: torch.device
    precision: str
    batch_size: int
    fpr: float
    board_fpr: float
    thresholds: dict[int, dict[str, Any]] = field(default_factory=dict)  # by the number of boards; found when needed

    @property
    def pad_ids(self) -> list[int]:
        """PadID of each pad, in the order of volumes and results, (P,)."""
        return self.prepared.pad_ids

    def reconstruct(self, sequences: Tensor) -> Tensor:
        """The network's reconstruction, (N, T, 1, H, W) like `sequences`."""
        return reconstruct(self.network, sequences, self.batch_size, self.device, self.precision)


class Scored(NamedTuple):
    """What is found on T boards with P pads, (T, P) each; in standard deviations of the pad's volume."""

    normalised: Tensor
    expected: Tensor  # the network's reconstruction
    error: Tensor  # normalised - expected
    verdicts: list[list[str]]  # "fine", "excessive" or "insufficient"
    boards: list[float]  # the largest absolute error of each board, (T,): its score
    threshold: dict[str, Any]  # as `thresholds_of` gives it


def load(**given: Any) -> Loaded:
    """The trained model that options of 3_score_boards.py name, such as data="my_boards", cycle=20; UserError where it
    is missing, damaged or of other boards."""
    options = vars(parse_score(["--boards", "unused"]))
    if unknown := given.keys() - options.keys():
        raise TypeError(f"{', '.join(unknown)}: expected options of 3_score_boards.py, {', '.join(options)}")
    options |= given
    cycle = cycle_of(options["data"], options["cycle"])
    device = distributed.join(device_of(options["gpu_ids"], options["cpu"], options["device"]))
    autocast(device, options["precision"])  # refuses what this device cannot do
    with distributed.first_alone():
        prepared = ensure_prepared(options["data"], cycle, options["result"])
    path = options["checkpoint"] or model_folder(options, prepared.folder) / "model_dictionary.pt"
    network, share, results = load_trained(path, options, prepared, device)
    _, *measured = prepared.measured_cycles(share)
    used = {name: options[name] for name in ("precision", "batch_size", "fpr", "board_fpr")}
    return Loaded(network, path, results, prepared, share, *measured, device, **used)


def score_boards(
    volumes: ArrayLike, model: Loaded, names: Sequence[str] = (), expected: Tensor | None = None
) -> Scored:
    """What is found on the boards printed after one cleaning, the first one first: volumes as measured, (T, P), in the
    order of `model.pad_ids`; T at most the boards of a cycle.

    names: of the boards, for messages; expected: what an earlier call has found, which is then not computed again.
    UserError names board and pad where a volume is not finite, or too far from normal for the network.
    """
    volumes, prepared = torch.as_tensor(volumes, dtype=torch.float64), model.prepared
    if volumes.dim() != 2 or not 1 <= len(volumes) <= prepared.cycle or volumes.size(1) != len(model.pad_ids):
        wanted = f"up to {prepared.cycle} boards of {len(model.pad_ids)} pads"
        raise UserError(f"volumes of shape {tuple(volumes.shape)}: expected {wanted}")
    names = names or [f"board {number}" for number in range(len(volumes))]
    values = normalised(volumes, model, names)
    if expected is None:
        images = place(values, *prepared.pixels, prepared.height, prepared.width)
        expected = at_pads(model.reconstruct(images[None])[0], *prepared.pixels)
    error = values - expected
    board, pad = divmod(int(values.abs().argmax()), values.size(1))
    furthest = f"pad {model.pad_ids[pad]} in {names[board]} is {values[board, pad]:.3g} deviations from normal"
    _require_finite(error, model, names, f"no finite reconstruction in --precision {model.precision}; {furthest}")
    threshold = threshold_for(len(values), model)
    verdicts = [[verdict_of(one, threshold) for one in board] for board in error.tolist()]
    return Scored(values, expected, error, verdicts, error.abs().amax(dim=1).tolist(), threshold)


def normalised(volumes: Tensor, model: Loaded, names: Sequence[str]) -> Tensor:
    """Volumes (N, P) in standard deviations from each pad's mean. UserError names board and pad where that is none."""
    values = ((volumes - model.mean) / model.std).float()
    _require_finite(values, model, names, "its volume cannot be normalised")
    return values


def _require_finite(values: Tensor, model: Loaded, names: Sequence[str], problem: str) -> None:
    """UserError that names board and pad of the first of `values`, (T, P), that is nan or infinite."""
    for board, pad in torch.nonzero(~values.isfinite()).tolist():
        raise UserError(f"{names[board]}, pad {model.pad_ids[pad]}: {problem}")


def threshold_for(length: int, model: Loaded) -> dict[str, Any]:
    """`thresholds_of` from the first `length` boards of each held-out cycle: reconstruction is harder or easier in
    shorter sequences, such as the last one to be judged may be."""
    if length not in model.thresholds:
        shorter = model.held_out[:, :length]
        errors = at_pads(shorter - model.reconstruct(shorter), *model.prepared.pixels)
        if not errors.isfinite().all():
            boards = f"the held-out boards of {model.prepared.folder}"
            raise UserError(f"no finite reconstruction of {boards} in --precision {model.precision}: try fp32")
        # A board's score is its worst pad's.
        board, promised = threshold_for_fpr(errors.abs().amax(dim=2), model.board_fpr)
        of_boards = {"board": board, "board_fpr_asked": model.board_fpr, "board_fpr_promised": promised}
        model.thresholds[length] = thresholds_of(errors.flatten(1), model.fpr) | of_boards
    return model.thresholds[length]


def thresholds_of(errors: Tensor, fpr: float) -> dict[str, Any]:
    """Limits of the finite errors of fine pads, (held-out cycles, pads): above "excessive" and below "insufficient"
    lies at most fpr / 2 each.

    Pads of one cycle are alike, so that few cycles say little about the next one: "fpr_of_each_cycle_by_others" has,
    for each cycle, the share of its pads that limits from the other cycles call wrong (nan for a single cycle).
    """
    high, low = _limits(errors, fpr)
    met = []
    for one, cycle in enumerate(errors if len(errors) > 1 else ()):
        above, below = _limits(torch.cat([errors[:one], errors[one + 1 :]]), fpr)
        met.append(((cycle > above) | (cycle < below)).double().mean().item())
    count = {"held_out_cycles": len(errors), "held_out_pads": errors.numel(), "fpr_asked": fpr}
    return {"excessive": high, "insufficient": low, **count, "fpr_of_each_cycle_by_others": met or [math.nan]}


def _limits(errors: Tensor, fpr: float) -> tuple[float, float]:
    return threshold_for_fpr(errors, fpr / 2)[0], -threshold_for_fpr(-errors, fpr / 2)[0]


def describe(threshold: Mapping[str, Any]) -> str:
    """One line about where thresholds come from and how far they can be trusted."""
    line = f"thresholds from {number_of(threshold['held_out_cycles'], 'held-out cycle')}"
    if threshold["held_out_cycles"] == 1:
        return f"{line}: there is no other one to judge it by, so the rate of false positives is unknown"
    percent = ", ".join(f"{100 * rate:.1f}" for rate in threshold["fpr_of_each_cycle_by_others"])
    return f"{line}; each judged by the others: {percent} % of fine pads called wrong"


def verdict_of(error: float, threshold: Mapping[str, Any]) -> str:
    """ "excessive", "insufficient" or "fine". ValueError where error or thresholds are not finite."""
    if not all(map(math.isfinite, (error, threshold["excessive"], threshold["insufficient"]))):
        raise ValueError(f"error {error} against {threshold}: no verdict without finite numbers")
    if error > threshold["excessive"]:
        return "excessive"
    return "insufficient" if error < threshold["insufficient"] else "fine"
