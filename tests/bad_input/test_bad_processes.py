"""A sample of bad input given to the scripts as processes of their own, as a shell starts them."""

import os
import runpy
import sys
from pathlib import Path

import pytest

from tests.bad_input import spoil
from tests.bad_input.cases import obeying_permissions
from tests.robustness.processes import ROOT, context

IMAGE = spoil.holding(spoil.png(2, 2, bytes(6)))
CASES = {
    "csflow/extract_features.py: a decompression bomb": (
        "--dataset_path {place} --class_name data --img_size 32 --n_scales 1 --extractor lite0",
        {"data/train/good/1.png": spoil.IMAGE["bomb"], "data/test/good/1.png": IMAGE},
        "1.png",
    ),
    "memae/script_testing.py: a malicious pickle": (
        "--ModelFilePath {place}/m.pt --DataRoot {place} --UseCUDA no --MemDim 1",
        {"m.pt": spoil.CHECKPOINT["malicious pickle in torch's archive"]},
        "m.pt",
    ),
    "crn/score.py: a malicious pickle": (
        "--images {place} --model-input {place}/m.ckpt",
        {"m.ckpt": spoil.CHECKPOINT["malicious pickle, protocol 4"], "1.png": IMAGE},
        "m.ckpt",
    ),
    "riad/score.py: an unreadable checkpoint": (
        "--images {place} --checkpoint {place}/m.pth",
        {"m.pth": lambda path: (spoil.put(path, b"x"), path.chmod(0)), "1.png": IMAGE},
        "m.pth: permission denied",
    ),
    "memae/script_index_gen.py: a frame's number is huge": (
        "--DataRoot {place} --Dataset d", {"d/Train/a/99999999999999.jpg": spoil.holding(b"")}, "frame 001",
    ),
    "crrn/0_preprocessing.py: a deep JSON file": ("--data {place}", {"job.json": spoil.JSON["deep"]}, "job.json"),
    "crn/sweep.py: a name that is not UTF-8": (os.fsdecode(b"{place}/\xff.yml"), {}, "\\udcff.yml"),
}  # fmt: skip


def start(script: str, argv: list[str], folder: Path) -> None:
    """Become the process of a script, its output in files of `folder`."""
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT), number)
    sys.stdout, sys.stderr = (open(number, "w", closefd=False) for number in (1, 2))  # noqa: SIM115
    sys.argv = [str(ROOT / script), *argv]
    with obeying_permissions():
        runpy.run_path(sys.argv[0], run_name="__main__")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if "riad" in name or "bomb" in name else pytest.mark.slow) for name in CASES]
)
def test_bad_input(name, tmp_path):
    words, spoiled, word = CASES[name]
    place, output = tmp_path / "place", tmp_path / "output"
    output.mkdir()
    for file, spoiler in spoiled.items():
        (place / file).parent.mkdir(parents=True, exist_ok=True)
        spoiler(place / file)
    with obeying_permissions() as obeying:
        pass
    if "unreadable" in name and not obeying:
        pytest.skip("this user reads every file, and its right to do so cannot be dropped here")
    argv = [part.replace("{place}", str(place)) for part in words.split()]
    process = context.Process(target=start, args=(name.split(":")[0], argv, output))
    process.start()
    process.join(300)
    error = (output / "stderr").read_text()
    assert process.exitcode == 2, error
    assert error.startswith("error: ") and error.count("\n") == 1 and word in error
    assert not list(place.rglob(spoil.RAN))
