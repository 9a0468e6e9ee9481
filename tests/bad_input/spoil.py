"""The generator of bad inputs: each function takes the place of a good file with something that is none.

`ANY` spoils a file of whatever kind, the other tables those of one format; a name in a table is what the cases are
called by. No function changes the old file's bytes in place: good files may be shared between cases by hard links.
"""

import io
import json
import os
import pickle
import shutil
import struct
import tarfile
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from scipy import sparse
from scipy.io import savemat

from tests.helpers import RAN

Spoiler = Callable[[Path], None]
HTML = b"<!DOCTYPE html><html><body>404: not found</body></html>\n"  # what failed downloads leave


def remove(path: Path) -> None:
    """Whatever `path` is, nothing is there any more."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def put(path: Path, content: bytes) -> None:
    """A new file with this content."""
    remove(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def holding(content: bytes) -> Spoiler:
    """The spoiler that puts this content."""
    return lambda path: put(path, content)


def changed(change: Callable[[bytes], bytes]) -> Spoiler:
    """The spoiler that puts what `change` makes of the old content."""
    return lambda path: put(path, change(path.read_bytes()))


def made(write: Callable[[Path], Any]) -> Spoiler:
    """The spoiler that removes the old file and lets `write` make one."""

    def spoil(path: Path) -> None:
        remove(path)
        write(path)

    return spoil


def link_to(target: Callable[[Path], str]) -> Spoiler:
    """The spoiler that puts a symbolic link."""
    return made(lambda path: path.symlink_to(target(path)))


def _unreadable(path: Path) -> None:
    put(path, path.read_bytes())
    path.chmod(0)


ANY: dict[str, Spoiler] = {
    "missing": remove,
    "empty": holding(b""),
    "one byte": holding(b"\0"),
    "truncated": changed(lambda content: content[: len(content) // 2]),
    "cut at its start": changed(lambda content: content[len(content) // 2 :]),
    "zeros": changed(lambda content: bytes(len(content))),
    "web page": holding(HTML),
    "noise": holding(np.random.default_rng(0).bytes(4096)),
    "utf-16": holding("text, not data".encode("utf-16")),
    "folder": made(Path.mkdir),
    "pipe": made(lambda path: os.mkfifo(path)),  # nobody writes to it: who opens it waits forever
    "device": link_to(lambda path: "/dev/zero"),  # which never ends
    "link loop": link_to(lambda path: path.name),
    "link into nothing": link_to(lambda path: "nothing-here"),
    "link to its folder": link_to(lambda path: "."),
    "unreadable": _unreadable,
}
# Of files without which a script makes them, or does without: those of the spoilers that leave a file.
_LEAVING = "empty, one byte, truncated, cut at its start, zeros, web page, noise, utf-16, unreadable"
CONTENT = {name: ANY[name] for name in _LEAVING.split(", ")}


# ---------------------------------------------------------------------------------------------------------- images


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, rows: bytes = b"") -> bytes:
    """A grey PNG file that says it has this size, and holds `rows`; all checksums are right."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    parts = _chunk(b"IHDR", header), _chunk(b"IDAT", zlib.compress(rows)), _chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def _tiff(pixels: np.ndarray) -> Spoiler:
    return made(lambda path: Image.fromarray(pixels).save(path, "TIFF"))


def _bmp(width: int, height: int) -> bytes:
    return b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)


def _flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :]


def _encoded(kind: str) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(stream, kind)
    return stream.getvalue()


# None of these can be read. A bomb of 100 million pixels is above Pillow's limit, but below twice that, where Pillow
# itself would only warn.
IMAGE: dict[str, Spoiler] = {
    "bomb": holding(png(10_000, 10_000, bytes(1000))),
    "large bomb": holding(png(100_000, 100_000, bytes(1000))),
    "bitmap bomb": holding(_bmp(30_000, 30_000)),
    "zero-sized": holding(png(0, 0)),
    "zero-sized bitmap": holding(_bmp(0, 0)),
    "zero-sized portable": holding(b"P5\n0 0\n255\n"),
    "flipped bit": changed(_flipped),
    "truncated JPEG": holding(_encoded("JPEG")[:-900]),
    "rows missing": holding(png(64, 64, bytes(100))[:-16]),
    "float pixels": _tiff(np.full((64, 64), 0.5, np.float32)),
    "NaN pixels": _tiff(np.full((64, 64), np.nan, np.float32)),
    "32-bit pixels": _tiff(np.full((64, 64), 70_000, np.int32)),
    "program": holding(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n0 0 9 9 rectfill\n%%EOF\n"),
}


def cut_short(kind: str) -> dict[str, Spoiler]:
    """Spoilers that put an image of this format of Pillow's that lacks its end, from all but its first bytes on."""
    content = _encoded(kind)
    lengths = {f"{length} bytes": length for length in (4, 12, 26, 60)}
    lengths |= {f"{share} percent": len(content) * share // 100 for share in (10, 25, 50, 75, 85, 90)}
    return {f"{kind} of {name}": holding(content[:length]) for name, length in lengths.items()}


# --------------------------------------------------------------------------------------------------- NumPy, MATLAB


class Evil:
    """What a malicious pickle holds: an order to run a command when it is read."""

    def __init__(self, place: Path):
        self.place = place

    def __reduce__(self) -> tuple:
        return os.system, (f"touch '{self.place.with_name(RAN)}'",)


def npy(array: np.ndarray) -> Spoiler:
    """The spoiler that puts this array."""

    def write(path: Path) -> None:
        with path.open("wb") as file:
            np.save(file, array)

    return made(write)


def npy_header(text: str) -> bytes:
    """The start of a .npy file that says this of what follows."""
    line = text.encode() + b" " * max(117 - len(text), 0) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(line).to_bytes(2, "little") + line


def _npy_pickle(path: Path) -> None:
    array = np.empty(1, object)
    array[0] = Evil(path)
    remove(path)
    with path.open("wb") as file:
        np.save(file, array, allow_pickle=True)


def _npz(path: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, np.zeros(3))


def _says(dtype: str, shape: str) -> Spoiler:
    return holding(npy_header(f"{{'descr': {dtype}, 'fortran_order': False, 'shape': {shape}, }}"))


# Of these, none holds an array of finite numbers of one, two or four dimensions.
NPY: dict[str, Spoiler] = {
    "malicious pickle": _npy_pickle,
    "archive": made(_npz),
    "objects": _says("'|O'", "(8,)"),
    "negative shape": _says("'<f4'", "(-1, 3)"),
    "huge shape": _says("'<f4'", "(" + "9" * 30 + ",)"),
    "more than there is": _says("'<f4'", "(10000000, 1000)"),
    "no shape": holding(npy_header("((((((((")),
    "code in its header": holding(npy_header("__import__('os').abort()")),
    "strings": npy(np.array(["a", "b"])),
    "a single number": npy(np.array(3.0)),
    "complex": npy(np.zeros((2, 2, 2, 2), complex)),
    "records": npy(np.zeros(4, [("a", "f4"), ("b", "i4")])),
    "no rows": npy(np.zeros((0, 3), np.float32)),
}


def mat(**variables: Any) -> Spoiler:
    """The spoiler that puts a MATLAB file with these variables."""
    return made(lambda path: savemat(path, variables, appendmat=False))


def nested_cells(name: str, depth: int = 20_000) -> Spoiler:
    """The spoiler that puts a MATLAB file whose variable `name` is a cell in a cell and so on."""

    def cell(size: int, name: bytes = b"") -> bytes:
        """The start of a cell with one element of `size` bytes."""
        flags = struct.pack("<IIIIIIii", 6, 8, 1, 0, 5, 8, 1, 1)
        rest = flags + struct.pack("<II", 1, len(name)) + name.ljust(-(-len(name) // 8) * 8, b"\0")
        return struct.pack("<II", 14, len(rest) + size) + rest

    inner = len(cell(0))
    parts = [cell(inner * (depth - 1), name.encode()), *(cell(inner * left) for left in range(depth - 2, -1, -1))]
    return holding(b"MATLAB 5.0 MAT-file".ljust(124) + b"\x00\x01IM" + b"".join(parts))


def mat_table(name: str, good: dict[str, Any]) -> dict[str, Spoiler]:
    """Spoilers of a MATLAB file whose variables `good` are right but for `name`."""
    cells = np.empty((1, 3), object)
    cells[:] = [[1, "a", np.zeros(2)]]
    wrong = {
        "text": "text", "cells": cells, "structure": {"a": 1}, "nothing": [], "NaN": [np.nan] * 16,
        "infinity": [np.inf] * 16, "half numbers": np.arange(16) + 0.5, "complex": np.arange(16) * 1j,
        "sparse": sparse.eye(4, format="csc"), "huge numbers": [1e300] * 16, "negative": -np.arange(16.0),
        "too many": np.zeros(100_000),
    }  # fmt: skip
    table = {f"{name} is {key}": mat(**{**good, name: value}) for key, value in wrong.items()}
    table["another variable"] = mat(something=1)
    table["version 7.3"] = holding(
        b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM" + bytes(384) + b"\x89HDF\r\n\x1a\n"
    )
    table["cut header"] = holding(b"MATLAB 5.0 MAT-file")
    return table


# ------------------------------------------------------------------------------------------------------------ JSON

JSON: dict[str, Spoiler] = {
    "null": holding(b"null"),
    "list": holding(b"[]"),
    "number": holding(b"3"),
    "string": holding(b'"text"'),
    "empty object": holding(b"{}"),
    "unfinished": holding(b'{"a": [1, 2'),
    "two documents": holding(b"{} {}"),
    "deep": holding(b'{"a": ' + b"[" * 100_000),
    "number of 5000 digits": holding(b"9" * 5000),
    "Latin-1": holding('{"a": "é"}'.encode("latin-1")),
}


def edited(edit: Callable[[Any], Any]) -> Spoiler:
    """The spoiler that rewrites a JSON file after `edit` has changed its content in place, or returned another."""

    def spoil(path: Path) -> None:
        content = json.loads(path.read_text())
        put(path, json.dumps(edit(content) or content).encode())

    return spoil


def each_of(*names: str | int) -> dict[str, Spoiler]:
    """Spoilers that give the value at this place of a JSON file every wrong type, or leave it out."""
    *way, last = names

    def setting(value: Any) -> Spoiler:
        def edit(content: Any) -> None:
            for name in way:
                content = content[name]
            if value is None:
                del content[last]
            else:
                content[last] = value

        return edited(edit)

    wrong = {"left out": None, "a string": "text", "a list": [[]], "an object": {"a": 1}, "-1": -1.5}
    return {f"{'.'.join(map(str, names))} is {key}": setting(value) for key, value in wrong.items()}


# ----------------------------------------------------------------------------------------------------- checkpoints


def saved(content: Any) -> Spoiler:
    """The spoiler that puts what torch.save makes of this."""
    return made(lambda path: torch.save(content, path))


def stored(change: Callable[[dict], Any]) -> Spoiler:
    """The spoiler that rewrites a checkpoint after `change` has changed its content in place, or returned another."""

    def spoil(path: Path) -> None:
        content = torch.load(path, map_location="cpu", weights_only=True)
        content = change(content) or content
        remove(path)
        torch.save(content, path)

    return spoil


def _pickle(protocol: int) -> Spoiler:
    return lambda path: put(path, pickle.dumps({"model": Evil(path)}, protocol))


def _torch(zipped: bool) -> Spoiler:
    return made(lambda path: torch.save({"model": Evil(path)}, path, _use_new_zipfile_serialization=zipped))


def _torchscript(path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(torch.nn.Identity()), str(path))


def shared(levels: int) -> list:
    """A list of 2 ** levels entries that needs the memory of 2 * levels."""
    value = [0]
    for _ in range(levels):
        value = [value, value]
    return value


def pickled(data: bytes) -> Spoiler:
    """The spoiler that puts a checkpoint with this pickle."""

    def write(path: Path) -> None:
        stream = io.BytesIO()
        torch.save(0, stream)
        with zipfile.ZipFile(stream) as old, zipfile.ZipFile(path, "w") as new:
            for name in old.namelist():
                new.writestr(name, data if name.endswith("data.pkl") else old.read(name))

    return made(write)


def _tar(path: Path) -> None:
    with tarfile.open(path, "w") as archive:
        archive.addfile(tarfile.TarInfo("storages"))


CHECKPOINT: dict[str, Spoiler] = {
    "shared halves": saved({"settings": shared(48)}),
    "lists 200,000 deep": pickled(b"\x80\x02" + b"]" * 200_000 + b"a" * 199_999 + b"."),
    "expanded tensor": saved({"weight": torch.zeros(1).expand(65536, 65536)}),
    # A NumPy number of 2 GiB.
    "huge number": pickled(
        b"\x80\x02cnumpy._core.multiarray\nscalar\ncnumpy\ndtype\nX\x0b\x00\x00\x00V2147483647\x89\x88\x87RU\x00\x86R."
    ),
    "tar archive": made(_tar),
    "malicious pickle": _pickle(2),
    "malicious pickle, protocol 4": _pickle(4),
    "malicious pickle in torch's archive": _torch(True),
    "malicious pickle in torch's old format": _torch(False),
    "whole network": saved(torch.nn.Linear(1, 1)),
    "program": made(_torchscript),
    "archive of arrays": made(_npz),
    "tensor": saved(torch.zeros(3)),
    "list": saved([1, 2]),
    "nothing in it": saved({}),
    "numbers for names": saved({1: torch.zeros(1)}),
    "another's parameters": saved({"weight": torch.zeros(3, 3)}),
    "of another method": saved({"kind": "somebody's", "format": 1, "settings": {}, "model": {}}),
}
# Of files of ours.
OURS: dict[str, Spoiler] = {
    "newer format": stored(lambda content: content.update(format=99)),
    "format is text": stored(lambda content: content.update(format="1")),
    "kind is a number": stored(lambda content: content.update(kind=7)),
    "no kind": stored(lambda content: content.pop("kind") and content),
}


def without(name: str) -> Spoiler:
    """The spoiler that takes an entry out of a checkpoint."""
    return stored(lambda content: {key: value for key, value in content.items() if key != name})


def entry(name: str, value: Any) -> Spoiler:
    """The spoiler that gives an entry of a checkpoint another value."""
    return stored(lambda content: content.update({name: value}))


def setting(**values: Any) -> Spoiler:
    """The spoiler that changes a checkpoint's settings."""
    return stored(lambda content: content["settings"].update(values))


def parameters(name: str) -> dict[str, Spoiler]:
    """Spoilers of the state dict in a checkpoint's entry `name`; "" where the file itself is one."""

    def on(change: Callable[[dict, str], Any]) -> Spoiler:
        def edit(content: dict) -> dict:
            state = dict(content[name] if name else content)
            change(state, next(key for key, value in state.items() if value.is_floating_point()))
            return {**content, name: state} if name else state

        return stored(edit)

    def replaced(make: Callable[[torch.Tensor], Any]) -> Spoiler:
        return on(lambda state, key: state.update({key: make(state[key])}))

    return {
        "a parameter is missing": on(lambda state, key: state.pop(key)),
        "a parameter too many": on(lambda state, key: state.update({f"{key}.more": torch.zeros(1)})),
        "NaN among parameters": replaced(lambda value: value * torch.nan),
        "infinity among parameters": replaced(lambda value: value + torch.inf),
        "a parameter of another shape": replaced(lambda value: value[None]),
        "integers for a parameter": replaced(lambda value: value.int()),
        "complex numbers for a parameter": replaced(lambda value: value.cfloat()),
    }


# ---------------------------------------------------------------------------------------------------- text formats


def lines(change: Callable[[list[str]], list[str]]) -> Spoiler:
    """The spoiler that changes a text file's lines."""
    return changed(lambda content: "\n".join(change(content.decode().splitlines())).encode())


def cell(row: int, column: int, value: str) -> Spoiler:
    """The spoiler that changes one cell of a CSV file without quotes."""

    def change(rows: list[str]) -> list[str]:
        cells = rows[row].split(",")
        cells[column] = value
        return [*rows[:row], ",".join(cells), *rows[row + 1 :]]

    return lines(change)


CSV: dict[str, Spoiler] = {
    "header alone": lines(lambda rows: rows[:1]),
    "no header": lines(lambda rows: rows[1:]),
    "half of its rows": lines(lambda rows: rows[: len(rows) // 2]),
    "a row too short": lines(lambda rows: [*rows, "1,2"]),
    "a row too long": lines(lambda rows: [*rows, rows[-1] + ",1"]),
    "the last row twice": lines(lambda rows: [*rows, rows[-1]]),
    "rows backwards": lines(lambda rows: [rows[0], *reversed(rows[1:])]),
    "semicolons": changed(lambda content: content.replace(b",", b";")),
    "a cell beyond the limit": changed(lambda content: content + b"1" * 200_000),
    "an open quote": changed(lambda content: content.replace(b"\n", b'\n"', 1)),
    "Latin-1": changed(lambda content: content + b"\xe9"),
}


def idx(numbers: np.ndarray, kind: int = 8, dimensions: int | None = None) -> bytes:
    """A file in MNIST's format; kind 8 is uint8."""
    count = numbers.ndim if dimensions is None else dimensions
    return struct.pack(f">HBB{numbers.ndim}I", 0, kind, count, *numbers.shape) + numbers.tobytes()
