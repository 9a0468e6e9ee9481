"""Files that are whole or not there: written beside their place under another name, then renamed."""

import csv
import errno
import hashlib
import io
import itertools
import json
import math
import os
import pickle
import pickletools
import re
import secrets
import shutil
import stat
import struct
import tempfile
import time
import warnings
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from filelock import FileLock, Timeout

MOST_DEPTH, MOST_PARTS = 50, 10**6  # of what a file holds
UNFINISHED = ".writing-"  # begins the name of a file that is being written
MAKING = ".making-"  # and this that of a folder that is being filled
ABANDONED = 3600  # seconds without a change after which these are taken for a killed run's
LOCK = ".lock"
_swept: set[Path] = set()  # folders in which atomic_write has looked for what killed runs left


class UserError(Exception):
    """Something the user can mend. The scripts print it as one line and end with exit status 2."""


def reason(error: OSError) -> str:
    """The operating system's words for `error`, without number and path."""
    return (error.strerror or str(error)).lower()


def regular(path: str | Path) -> Path:
    """`path`, to be opened; OSError where it is a pipe, socket or device, which a reader could wait on forever."""
    path = Path(path)
    mode = path.stat().st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise OSError(errno.EINVAL, "a pipe, socket or device, not a file", str(path))
    return path


def first_process() -> bool:
    """Whether this is the first or the only process of a run: of several (torchrun), it alone speaks and writes."""
    return "TORCHELASTIC_RUN_ID" not in os.environ or os.environ.get("RANK", "0") == "0"


@contextmanager
def naming(path: str | Path, kept: str) -> Iterator[None]:
    """Within the block, an error of the system becomes a UserError that names `path` and tells what is kept."""
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot write {path}: {reason(error)}; {kept}") from error


@contextmanager
def atomic_write(path: str | Path, mode: str = "wb") -> Iterator[IO]:
    """Open a file that takes the place of `path` only when the block ends without an error.

    Whatever goes wrong (full disk, kill, exception), the old file stays as it was. Missing folders are made.
    Where `path` is a symbolic link, that is the file that it points to. Text is UTF-8, with backslash escapes for names
    that are not. Raises UserError where the file cannot be written. What processes other than the first one write is
    dropped: it would be the same.
    """
    given, path = path, Path(os.path.realpath(path))
    text = {} if "b" in mode else {"encoding": "utf-8", "errors": "backslashreplace", "newline": ""}
    if not first_process():
        with tempfile.TemporaryFile(f"{mode}+", **text) as file:
            yield file
        return
    temporary = None
    try:
        for folder in reversed(path.parents) if not path.parent.is_dir() else ():
            folder.mkdir(exist_ok=True)  # one by one: mkdir(parents=True) calls itself for each level
        if path.parent not in _swept:
            _swept.add(path.parent)
            _remove_unfinished(path.parent)
        if path.exists():  # nor may a file take the place of /dev/null
            regular(path)
        # The name is short and does not grow out of path's, which may already be as long as the system allows.
        temporary = path.parent / f"{UNFINISHED}{secrets.token_hex(8)}"
        with temporary.open(mode.replace("w", "x"), **text) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        temporary = None
    except OSError as error:
        raise UserError(f"cannot write {given}: {reason(error)}; what was there before is untouched") from error
    finally:
        if temporary is not None:
            with suppress(OSError):  # nor can be removed what a read-only file system has refused
                temporary.unlink()


def require_writable(folder: str | Path) -> None:
    """Make `folder` and try to write in it, before hours of work whose results go there. UserError where that fails.

    Removes what killed runs left in it.
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"cannot write in {folder}: {reason(error)}") from error
    _remove_unfinished(Path(folder))


def _remove_unfinished(folder: Path) -> None:
    for path in (*folder.glob(f"{UNFINISHED}*"), *folder.glob(f"{MAKING}*")):
        with suppress(OSError):  # another run was faster
            inside = [*path.rglob("*")] if path.is_dir() else [regular(path)]
            if time.time() - max(part.stat().st_mtime for part in (path, *inside)) > ABANDONED:
                shutil.rmtree(path) if path.is_dir() else path.unlink()


@contextmanager
def temporary_folder(parent: str | Path) -> Iterator[Path]:
    """A new folder in `parent`, from which what is complete can be moved to its place; it ends with the block, or,
    after a kill, when somebody writes in `parent` an hour later. OSError where it cannot be made."""
    Path(parent).mkdir(parents=True, exist_ok=True)
    _remove_unfinished(Path(parent))
    with tempfile.TemporaryDirectory(prefix=MAKING, dir=parent) as folder:
        yield Path(folder)


@contextmanager
def locked(folder: str | Path) -> Iterator[None]:
    """Within the block, no other run can enter it for the same folder; UserError where one is in it already.

    Two runs that write to one folder would spoil each other's results. The lock ends with the process, whatever ends
    it.
    """
    if not first_process():
        yield
        return
    require_writable(folder)
    lock = FileLock(Path(folder, LOCK))
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise UserError(f"another run is writing to {folder}: wait until it ends, or choose another output") from None
    try:
        yield
    finally:
        with suppress(OSError):  # while it is held: who opened it meanwhile sees that it is gone
            Path(folder, LOCK).unlink()
        lock.release()


def write_json(path: str | Path, content: Any) -> None:
    """Write `content` as JSON; nan and infinities, which JSON does not know, become null."""
    with atomic_write(path, "w") as file:
        json.dump(plain(content), file, indent=2, ensure_ascii=False, allow_nan=False)
        file.write("\n")


def plain(value: Any) -> Any:
    """`value` as `write_json` writes it and `read_json` gives it back."""
    if isinstance(value, Mapping):
        return {plain(str(key)): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):  # NumPy's and torch's scalars and arrays
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, (str, Path)):  # of names that are no UTF-8
        return str(value).encode("utf-8", "backslashreplace").decode()
    return value


def read_text(path: str | Path) -> str:
    """Content of the text file `path`, with its line ends: UTF-8, with or without byte order mark. UserError else."""
    try:
        return regular(path).read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"cannot read {path}: {reason(error)}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not a text file in UTF-8: save it as one") from error


def read_json(path: str | Path) -> Any:
    """Content of the JSON file `path`; UserError where it is missing, no JSON, or not plain."""
    try:
        content = json.loads(read_text(path))
    except RecursionError as error:
        raise UserError(f"{path} cannot be used: its lists or objects are nested too deeply") from error
    except ValueError as error:  # also of numbers of thousands of digits
        raise UserError(f"{path} is not a JSON file: {error}") from error
    require_plain(content, path)
    return content


def require_plain(content: Any, source: str | Path, others: tuple[type, ...] = ()) -> list[Any]:
    """Raise UserError unless `content`, read from `source`, can be walked, compared and printed without harm.

    It may hold strings, booleans, None, floats, integers of 64 bits, what is of the types `others`, and lists, tuples
    and mappings of all that: at most 50 deep, with at most 10^6 parts, where shared ones count each time. Returns what
    is of the types `others`.
    """
    ahead, count, found = [(content, 0)], 0, []
    while ahead:
        value, depth = ahead.pop()
        if value is None or isinstance(value, (str, float)) or (isinstance(value, int) and -(2**63) <= value < 2**64):
            continue
        if isinstance(value, (list, tuple, Mapping)):
            parts = [*value, *value.values()] if isinstance(value, Mapping) else value
            count += len(value)
            if depth < MOST_DEPTH and count <= MOST_PARTS:
                ahead += [(part, depth + 1) for part in parts]
                continue
            what = f"lists or mappings {'nested too deeply' if depth == MOST_DEPTH else 'of too many parts'}"
        elif isinstance(value, others):
            found.append(value)
            continue
        else:
            what = f"a number of {value.bit_length()} bits" if isinstance(value, int) else f"a {type(value).__name__}"
        raise UserError(f"{source} cannot be used: it holds {what}")
    return found


def out_of_memory(error: Exception) -> bool:
    """Whether memory was short: the computer's, or a GPU's."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's, not imported here
        return True
    # Of torch's allocator on the CPU, of CUDA and MPS beside torch's allocator, of cuBLAS.
    return any(words in str(error) for words in ("t allocate memory", "out of memory", "ALLOC_FAILED"))


def first_line(error: Exception) -> str:
    """Of an error's words; its type where it has none."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def read_tensors(path: str | Path) -> Any:
    """Whatever tensors and plain values `path` holds, mapped into memory, onto the CPU; UserError if missing, broken
    or more than that."""
    import torch

    path = Path(path)
    if not path.is_file():
        what = "folder" if path.is_dir() else "pipe, socket or device"
        if path.exists():
            raise UserError(f"{path} is a {what}, not a checkpoint")
        there = sorted(other.name for other in path.parent.glob("[!.]*") if other.is_file())[:8]
        raise UserError(f"there is no checkpoint {path}" + f"; in its folder: {', '.join(there)}" * bool(there))
    try:
        content = _unpickled(path)
        tensors = require_plain(content, path, (torch.Tensor, bytes, complex, torch.dtype, torch.device))
    except UserError:
        raise
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} is refused: it is no checkpoint, or holds more than tensors and plain values"
        ) from error
    except Exception as error:  # on garbage, the unpickler fails in many ways; on half a file, torch reports EINVAL
        if out_of_memory(error):
            raise
        if isinstance(error, OSError) and error.errno != errno.EINVAL:
            raise UserError(f"cannot read {path}: {reason(error)}") from error
        raise UserError(f"{path} is broken or no checkpoint") from error
    tensors = [value for value in tensors if isinstance(value, torch.Tensor)]
    if not all(map(_usable, tensors)):
        raise UserError(f"{path} is refused: it holds tensors that are sparse, quantized, of float8 or the like")
    # Repeated or expanded ones could make a network of any size out of a small file.
    if (size := sum(value.nbytes for value in tensors)) > path.stat().st_size:
        raise UserError(f"{path} is refused: its tensors are said to have {size} bytes, more than the file")
    if isinstance(content, Mapping) and "settings" in content:
        _require_settings(content["settings"], path)
    return content


def _unpickled(path: Path) -> Any:
    import torch

    if zipped := zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any(name.endswith("/constants.pkl") for name in archive.namelist()):
                raise UserError(f"{path} is a TorchScript program, not a checkpoint")
            if sum(part.file_size for part in archive.infolist()) > path.stat().st_size:
                raise UserError(f"{path} is refused: its parts are compressed, or overlap")
            if damaged := archive.testzip():  # torch does not look at the checksums
                raise UserError(f"{path} is damaged: {damaged} in it has another checksum")
            for part in [name for name in archive.namelist() if name.endswith("data.pkl")]:
                with archive.open(part) as file:
                    _follow(file)
    else:  # of torch before 1.6: five pickles, and the values
        with path.open("rb") as file:
            for _ in range(5):
                _follow(file)
    # Files of torch before 1.6 cannot be mapped.
    with warnings.catch_warnings(), torch.serialization.safe_globals(NUMPY_NUMBERS):
        warnings.simplefilter("ignore")  # of torch, about files that it then refuses
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
        except UnicodeEncodeError:  # of a name that is no UTF-8, under which torch maps nothing
            return torch.load(path, map_location="cpu", weights_only=True)


# What files name that hold tensors and plain values; torch allows more, which can take any time and memory.
GLOBALS = re.compile(
    r"collections (OrderedDict|Counter|defaultdict)|torch\._utils _rebuild_(tensor|tensor_v2|parameter)|"
    r"torch(\.storage)? (\w+Storage|Size|device|b?float\d+|double|half|u?int\d+|bool|complex\d+)|"
    r"torch\.nn\.parameter Parameter|numpy dtype|numpy\._?core\.multiarray scalar|_codecs encode"
)


def _follow(pickled: IO[bytes]) -> None:
    """Go through a pickle's operations before anything is made of it. UnpicklingError where it names what is not in
    GLOBALS, encodes other than bytes, or has tuples of too many parts: to hash one counts shared parts each time."""
    stack: list[tuple[int, Any]] = []  # parts, and a text or the items of a tuple
    memo: dict[int, tuple[int, Any]] = {}
    for operation, argument, _ in pickletools.genops(pickled):
        name, taken = operation.name, []
        for kind in reversed(operation.stack_before):
            if kind is not pickletools.stackslice:
                taken.append(stack.pop())
            while kind is pickletools.stackslice and stack[-1][1] is not pickletools.markobject:
                taken.append(stack.pop())
        if name == "STACK_GLOBAL" or (name == "GLOBAL" and not GLOBALS.fullmatch(argument)):
            raise pickle.UnpicklingError
        if name == "REDUCE" and taken[1][1] == "_codecs encode" and taken[0][1][:1] != ["latin1"]:
            raise pickle.UnpicklingError
        if "GET" in name:
            stack.append(memo[argument])
        elif "PUT" in name:
            memo[argument] = stack[-1]
        elif "TUPLE" in name:
            items = [item for item in taken if item[1] is not pickletools.markobject]
            stack.append((1 + sum(size for size, _ in items), [value for _, value in items]))
            if stack[-1][0] > MOST_PARTS:
                raise pickle.UnpicklingError
        else:
            value = argument if isinstance(argument, str) else None
            stack += [(1, kind if kind is pickletools.markobject else value) for kind in operation.stack_after]


def _usable(value: Any) -> bool:
    """Whether a tensor is an ordinary one, of numbers that networks and optimizers have."""
    import torch

    kinds = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.uint8, torch.bool)
    plain = type(value) in (torch.Tensor, torch.nn.Parameter) and value.device.type == "cpu" and not vars(value)
    numbers = value.dtype in (*kinds, torch.int8, torch.int16, torch.int32, torch.int64)
    return plain and value.layout == torch.strided and numbers


def _require_settings(settings: Any, path: Path) -> None:
    """Settings are compared with ours and printed where they differ."""
    values = settings.values() if isinstance(settings, Mapping) else [{}]
    items = [item for value in values for item in (value if isinstance(value, (list, tuple)) else [value])]
    if not all(item is None or isinstance(item, (str, int, float)) for item in items):
        raise UserError(f"{path} is damaged: its settings are no numbers, texts, or lists of those")


class _NumPyType:
    """What `numpy.dtype` is in a file: the kinds of number that the authors' trainings stored; NumPy's own would make
    numbers of gigabytes."""

    def __init__(self, kind: str, *_: object):
        self.format = {"i4": "i", "i8": "q", "f4": "f", "f8": "d"}[kind]

    def __setstate__(self, state: tuple) -> None:
        self.order = {"<": "<", ">": ">"}[state[1]]


def _numpy_number(kind: _NumPyType, data: bytes) -> int | float:
    return struct.unpack(kind.order + kind.format, data)[0]


# Numbers of NumPy's, as which the authors stored some, become Python's.
NUMPY_NUMBERS = [
    (_NumPyType, "numpy.dtype"),
    (_numpy_number, "numpy.core.multiarray.scalar"),  # NumPy 1's name for it
    (_numpy_number, "numpy._core.multiarray.scalar"),
]


@contextmanager
def using(path: str | Path, owner: str) -> Iterator[None]:
    """Within the block, what was read from `path` is used: UserError where an entry is missing or of another kind.

    owner: who stores such files, such as "csflow".
    """
    try:
        yield
    except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError, RuntimeError) as error:
        if out_of_memory(error):
            raise
        what = f"{error} is missing" if isinstance(error, KeyError) else first_line(error)
        raise UserError(f"{path} is damaged or not a checkpoint of {owner}: {what[:200]}") from error


def require_like(value: Any, example: Any, name: str = "its content") -> None:
    """Raise TypeError or ValueError, which `using` puts into words, unless `value` is of `example`'s kind.

    An example of None stands for anything, 0 for whole numbers from 0 on, 0.0 for finite floats, nan for all floats, a
    list for lists whose items are like its own, {"a": 0} for mappings with such an entry and whatever others.
    """
    if isinstance(value, Mapping) and isinstance(example, Mapping):
        for key, part in example.items():
            if key not in value:
                raise ValueError(f"{key!r} is missing in {name}")
            require_like(value[key], part, key)
    elif isinstance(value, list) and isinstance(example, list):
        for item, like in itertools.product(value, example):
            require_like(item, like, f"an item of {name}")
    elif example is not None and type(value) is not type(example):
        raise TypeError(f"{name} is a {type(value).__name__}, not a {type(example).__name__}")
    elif isinstance(example, (int, float)):
        whole = isinstance(example, int)
        if not (0 <= value < 2**53 if whole else math.isnan(example) or math.isfinite(value)):
            raise ValueError(f"{name} is {value}")


def digest(path: str | Path) -> str:
    """16 hexadecimal digits of a file's SHA-256. UserError where it cannot be read."""
    try:
        with regular(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:16]
    except OSError as error:
        raise UserError(f"cannot read {path}: {reason(error)}") from error


FORMULA = re.compile(r"'*[=+@\t\r-]")  # how a text begins that spreadsheets would compute


def write_csv(path: str | Path, header: list[str], rows: Iterable[Iterable]) -> None:
    """Write a CSV file with one header line. A text that begins like a formula (=, +, -, @) has a ' before it."""
    with atomic_write(path, "w") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        for row in rows:
            texts = [str(cell) if isinstance(cell, Path) else cell for cell in row]
            writer.writerow([f"'{cell}" if isinstance(cell, str) and FORMULA.match(cell) else cell for cell in texts])


def read_csv(path: str | Path) -> list[dict[str, str]]:
    """The rows of what `write_csv` has written, by their columns. UserError where it cannot be read."""
    try:
        rows = list(csv.DictReader(io.StringIO(read_text(path), newline=""), restval=""))
    except csv.Error as error:
        raise UserError(f"{path} is no table that can be read: {error}") from error
    return [{name: re.sub(r"^'(?='*[=+@\t\r-])", "", cell) for name, cell in row.items() if name} for row in rows]


def append_text(path: str | Path, text: str) -> None:
    """Add lines to a text file in one go; SIGKILL may cut the last of them off. Only the first process writes."""
    if first_process():
        with naming(path, "the rows before are kept"), Path(path).open("ab") as file:
            file.write(text.encode("utf-8", "backslashreplace"))


def marked_line(content: Any) -> str:
    """A line with `content` as JSON behind its digest, for files that grow: `read_marked_lines` reads them."""
    text = json.dumps(plain(content))
    return f"{_mark(text.encode())} {text}\n"


def _mark(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()[:16]


def read_marked_lines(path: Path) -> list[Any]:
    """What was given to `marked_line` for each line of a file, None where it is damaged; not a last one cut off."""
    try:
        lines = [line.partition(b" ") for line in regular(path).read_bytes().split(b"\n")[:-1]]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise UserError(f"cannot read {path}: {reason(error)}") from error
    content: list[Any] = []
    for mark, _, text in lines:
        try:
            content.append(json.loads(text) if mark == _mark(text).encode() else None)
        except (ValueError, RecursionError):  # not written here
            content.append(None)
    return content
