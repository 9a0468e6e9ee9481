"""MATLAB files, of which only numbers and texts are read."""

import itertools
import math
import struct
import zlib
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from common.files import MOST_PARTS, UserError, regular

MOST_BYTES = 17 * MOST_PARTS  # of MOST_PARTS complex numbers and their name
MATLAB_CLASSES = {"single", "double", "char", "logical"} | {f"{u}int{n}" for u in ("", "u") for n in (8, 16, 32, 64)}


def read_mat(path: str | Path, *names: str, kinds: Collection[str] = MATLAB_CLASSES) -> list[Any]:
    """The variables `names` of a MATLAB file, of the classes `kinds`, as NumPy arrays of at least two dimensions.

    UserError where the file or one of them is missing, broken, or something else.
    """
    from scipy.io import loadmat, whosmat  # slow to import

    try:
        # First only what the file says of them: in nested cells, SciPy's reader recurses until the process dies.
        found = whosmat(regular(path), appendmat=False)
        entries = [(*entry[1:], size) for entry, size in zip(found, _mat_sizes(Path(path))) if entry[0] in names]
        for shape, kind, size in entries:
            large = math.prod(shape) > MOST_PARTS or (size > MOST_BYTES and kind in MATLAB_CLASSES)
            if kind not in kinds or large:
                raise UserError(f"{path}: {' and '.join(names)}: expected {MOST_PARTS} numbers at most, not {kind}")
        content = loadmat(path, variable_names=names, appendmat=False)
    except FileNotFoundError:
        raise UserError(f"there is no file {path}") from None
    except UserError:
        raise
    except Exception as error:  # on damaged files, SciPy's reader raises nearly anything
        words = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{path} is broken or not a MATLAB file: {words}") from error
    if missing := [name for name in names if name not in content]:
        raise UserError(f"{path} has no variable {missing[0]!r}")
    return [content[name] for name in names]


def _mat_sizes(path: Path) -> Iterator[int]:
    """Bytes of each variable in a MATLAB file of version 5, up to MOST_BYTES + 1; 0 where they are not compressed."""
    with path.open("rb") as file:
        header = file.read(128)
        if 0 in header[:4]:  # version 4, which does not compress
            yield from itertools.repeat(0)
        order = "<" if header[126:] == b"IM" else ">"
        while len(tag := file.read(8)) == 8:
            kind, size = struct.unpack(f"{order}II", tag)
            start = file.tell()
            yield len(zlib.decompressobj().decompress(file.read(size), MOST_BYTES + 1)) if kind == 15 else 0
            file.seek(start + size)
