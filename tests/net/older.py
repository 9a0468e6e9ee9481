"""Made tests/net/older/<case>.tar.xz once, at commit bfc78c0: what its trainings wrote and later versions have to read.

    state/  an interrupted training's files, to be continued     model/  a finished one's, to be scored with

Test fixtures, no weights of value: to be small, every tensor of more than 64 numbers repeats its first 16, and losses
of finished epochs are MARK, by which a training that goes on is told from one that begins anew. All else is as it was
written. Made again (python -m tests.net.older, in a checkout of that commit) only if a case's data or options change.
"""

import lzma
import shutil
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import torch

from tests.net import runs

OLDER = runs.HERE / "older"
MARK = 0.125
# For words of four bytes; half the size of the usual settings.
PACKED = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "lc": 0, "lp": 2, "dict_size": 1 << 26}]
LOSSES = {"loss", "train_loss", "test_loss", "metrics/inference_roc_auc"}  # entries of histories that become MARK


def thinned(value: Any, key: Any = None) -> Any:
    """Nested content whose tensors compress, in the same memory format."""
    if isinstance(value, torch.Tensor):
        if value.numel() > 64 and value.is_floating_point():
            repeated = value.flatten()[:16].repeat(-(-value.numel() // 16))[: value.numel()]
            return torch.empty_like(value).copy_(repeated.view(value.shape))
        return value
    if isinstance(value, dict):
        copy = value.copy()  # an OrderedDict stays one
        copy.update({name: thinned(item, name) for name, item in value.items()})
        return copy
    if isinstance(value, list):
        if key in LOSSES:
            return [MARK] * len(value)
        if key == "history":
            return [entry | dict.fromkeys(LOSSES & entry.keys(), MARK) for entry in value]
        return [thinned(item) for item in value]
    return value


def take(paths: tuple[str, ...], source: Path, target: Path) -> None:
    """Copy checkpoints, thinned, where they exist."""
    for path in paths:
        if (source / path).exists():
            (target / path).parent.mkdir(parents=True, exist_ok=True)
            torch.save(thinned(torch.load(source / path, weights_only=True)), target / path)


def make(name: str) -> None:
    """Make the archive of one case."""
    case = runs.CASES[name]
    with tempfile.TemporaryDirectory() as folder, runs.without_pictures():
        at, kept = Path(folder, "at"), Path(folder, "kept")
        case.make_data(at / "data")
        given = set((at / "data").rglob("*"))
        runs.interrupted_training(case, at)
        take(case.state, at / "run", kept / "state/run")
        assert runs.call(case.train, at) == 0
        take(case.models, at / "run", kept / "model/run")
        # Boards as preprocessed: a training is bound to every bit of them, and processors round in different ways.
        for path in [path for path in (at / "data").rglob("*") if path not in given and path.is_file()]:
            for part in ("state", "model"):
                target = kept / part / path.relative_to(at)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)
        OLDER.mkdir(exist_ok=True)
        target = OLDER / f"{name}.tar.xz"
        with lzma.open(target, "wb", filters=PACKED) as packed, tarfile.open(fileobj=packed, mode="w") as archive:
            for path in sorted(path for path in kept.rglob("*") if path.is_file()):
                info = archive.gettarinfo(path, path.relative_to(kept))
                info.mtime, info.uname, info.gname = 0, "", ""
                with path.open("rb") as file:
                    archive.addfile(info, file)


if __name__ == "__main__":
    for name in sys.argv[1:] or ("csflow", "crrn_drawn", "memae", "crn", "dagan", "riad_repo", "riad_paper"):
        make(name)
