"""Cases of bad input, in tables, and how one is checked."""

import ctypes
import os
import random
import shlex
import shutil
import signal
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from common.demo_data import make_textures
from tests.bad_input.spoil import ANY, Spoiler, put
from tests.helpers import refused


@dataclass(frozen=True)
class Case:
    """A script, options beside the good ones, what is done to the good state first, and words of the error."""

    script: str
    name: str
    words: tuple[str, ...]
    more: tuple[str, ...] = ()
    spoil: Spoiler | None = None

    def __str__(self) -> str:
        return f"{self.script}: {self.name}"

    def check(self, place: Path, capfd: Any, mains: Mapping[str, Callable], argv: Sequence[str]) -> None:
        """Spoil `place`, a good state, call the script with `argv` and see that it refuses as it should."""
        if self.spoil:
            self.spoil(place)
        more = [part.replace("{place}", str(place)) for part in self.more]
        with obeying_permissions() as obeying, warnings.catch_warnings(record=True) as noted:
            if any(word in self.name for word in ("unreadable", "cannot be")) and not obeying:
                pytest.skip("this user may do everything with every file, and that right cannot be dropped here")
            warnings.simplefilter("always")  # each would be a line of its own on stderr
            warnings.simplefilter("error", Image.DecompressionBombWarning)  # as common.images has it, and the next
            warnings.filterwarnings("ignore", module=r"PIL\.TiffImagePlugin")
            refused(capfd, mains[self.script], [*argv, *more], *self.words, keeps=place)
        assert not noted, [str(one.message) for one in noted]


def options(script: str, *rows: str | tuple[str, ...]) -> list[Case]:
    """Cases of bad options: each a command line, with the words of the error where its first option is not enough.

    "{place}" stands for the state's folder.
    """
    cases = []
    for row in rows:
        line, *words = (row,) if isinstance(row, str) else row
        more = tuple(shlex.split(line))
        cases.append(Case(script, line if len(line) < 80 else f"{line[:80]}...", tuple(words) or more[:1], more))
    return cases


def files(
    script: str, name: str, table: Mapping[str, Spoiler | tuple[Spoiler, str]], *words: str, more: str = ""
) -> list[Case]:
    """Cases of one spoiled file `name` of the state; the error has to name it, or to hold `words` instead.

    A spoiler may come with a further word of the error.
    """

    words, options = words or (Path(name).name,), tuple(shlex.split(more))
    pairs = {kind: one if isinstance(one, tuple) else (one,) for kind, one in table.items()}
    return [
        Case(script, f"{name}: {kind}", (*words, *further), options, at(name, spoiler))
        for kind, (spoiler, *further) in pairs.items()
    ]


def places(script: str, table: Mapping[str, tuple], more: str = "") -> list[Case]:
    """Cases of a spoiled state: name -> what is done to its folder, and the words of the error."""
    return [Case(script, name, words, tuple(shlex.split(more)), spoil) for name, (spoil, *words) in table.items()]


def exports(script: str, model: str) -> list[Case]:
    """Cases of a script that writes an ONNX file, which has no use for a device, where that file cannot be.

    model: the state's checkpoint, which has to stay.
    """

    def folder(mode: int) -> Spoiler:
        return lambda place: (place / "new").mkdir() or (place / "new").chmod(mode)

    def link(place: Path) -> None:
        folder(0o700)(place)
        (place / "new/m.onnx").symlink_to(place / model)

    bad = {
        "a link to the checkpoint": (link, "m.onnx is the checkpoint itself"),
        "a link loop for a folder": (at("new", ANY["link loop"]), "new"),
        "a folder that cannot be written": (folder(0o500), "cannot write in"),
        "a folder that cannot be entered": (folder(0), "new"),
    }
    return [
        *options(
            script,
            ("--output ''", "is a folder"), ("--output {place}/data", "is a folder"),
            (f"--output {{place}}/{model}", f"{model} is the checkpoint itself"),
            (f"--output {{place}}/{model}/m.onnx", model), (f"--output {{place}}/{'n' * 300}/m.onnx", "too long"),
            ("--outptu x", "--output"), "--device cpu",
        ),
        *places(script, bad, more="--output {place}/new/m.onnx"),
    ]  # fmt: skip


def at(name: str, spoiler: Spoiler) -> Spoiler:
    """What spoils the file `name` of a state."""
    return lambda place: spoiler(place / name)


def some(table: Mapping[str, Spoiler], *names: str) -> dict[str, Spoiler]:
    """The spoilers of these names."""
    return {name: table[name] for name in names}


def parametrised(cases: Sequence[Case]) -> pytest.MarkDecorator:
    """The mark that calls a test with each case.

    `make test` has all bad options, all malicious files, and of the other spoiled files of a script a dozen and every
    fifth; the rest are slow.
    """
    parameters, counts = [], Counter()
    for case in cases:
        spoiled = case.spoil is not None and "malicious" not in case.name
        counts[case.script] += spoiled
        slow = spoiled and counts[case.script] > 12 and counts[case.script] % 5
        parameters.append(pytest.param(case, id=str(case), marks=pytest.mark.slow if slow else ()))
    return pytest.mark.parametrize("case", parameters)


def check_damage(capfd: Any, call: Callable, argv: Sequence[str], files: Sequence[Path], result: Path) -> None:
    """200 times, one of `files` has a bit flipped, is cut or is zeroed in part: the call writes the same `result` as
    without, or refuses in one line. Nothing takes longer than a minute."""
    chance = random.Random(0)
    signal.signal(signal.SIGALRM, signal.default_int_handler)  # as Ctrl-C, of which the call returns 130

    def scored() -> tuple[int, bytes]:
        for path in [result, *result.parent.glob("*.json")]:
            path.unlink(missing_ok=True)
        signal.alarm(60)
        try:
            status = call(list(argv))
        finally:
            signal.alarm(0)
        return status, result.read_bytes() if status == 0 else b""

    expected = scored()
    assert expected[0] == 0 and expected[1]
    for number in range(200):
        file = files[number % len(files)]
        whole = file.read_bytes()
        damaged, start = bytearray(whole), chance.randrange(len(whole))
        how = chance.choice(("flip", "flip", "cut", "zeros"))
        if how == "flip":
            damaged[start] ^= 1 << chance.randrange(8)
        else:
            end = len(whole) if how == "cut" else min(start + chance.randrange(1, 4096), len(whole))
            damaged[start:end] = b"" if how == "cut" else bytes(end - start)
        put(file, bytes(damaged))
        capfd.readouterr()
        status, content = scored()
        errors = capfd.readouterr().err
        refused = status == 2 and errors.startswith("error: ") and errors.count("\n") == 1
        assert refused or (status, content) == expected, f"{number}: {how} at {start} of {file}: {status}, {errors}"
        put(file, whole)


class State:
    """A good state in the folder `place`, which a case may spoil and `renew_after` makes good again.

    The good files are kept by hard links: neither spoilers nor scripts that refuse change a file's bytes.
    """

    def __init__(self, place: Path):
        self.place, self.kept = place, place.with_name("kept")
        shutil.copytree(place, self.kept, copy_function=os.link, symlinks=True)

    def renew_after(self, case: Case) -> None:
        """Make the state good again; bad options alone leave it so."""
        if case.spoil:
            for parent, folders, _ in os.walk(self.place):
                for folder in (Path(parent, name) for name in folders):
                    if not folder.is_symlink():
                        folder.chmod(0o700)  # or only root could remove it
            shutil.rmtree(self.place)
            shutil.copytree(self.kept, self.place, copy_function=os.link, symlinks=True)


def make_texture(folder: Path) -> None:
    """The smallest data set in MVTec's layout: folder/brick."""
    make_textures(folder, size=64, n_train=3, n_good=2, n_defect=1)
    for other in ("grass", "gravel"):
        shutil.rmtree(folder / other)


# Linux's calls for a thread's privileges, and the two that let root read and write every file.
CAPABILITIES, OVERRIDING = 0x20080522, 1 << 1 | 1 << 2


@contextmanager
def obeying_permissions() -> Iterator[bool]:
    """Within the block, root, too, is denied what permissions deny; yields whether that is so.

    Threads that begin within the block inherit it, other threads of the process do not have it.
    """
    if not hasattr(os, "geteuid") or os.geteuid():
        yield hasattr(os, "geteuid")
        return
    system = ctypes.CDLL(None)
    header, sets = (ctypes.c_uint32 * 2)(CAPABILITIES, 0), (ctypes.c_uint32 * 6)()
    if not hasattr(system, "capset") or system.capget(header, sets):
        yield False
        return
    effective = sets[0]
    sets[0] &= ~OVERRIDING
    dropped = system.capset(header, sets) == 0
    try:
        yield dropped
    finally:
        sets[0] = effective
        assert not dropped or system.capset(header, sets) == 0
