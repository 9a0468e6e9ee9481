"""Checkpoints: written whole or not at all, read without running code, checked before anything of them is used."""

import errno
import inspect
import itertools
import math
import pickle
import pickletools
import platform
import re
import struct
import tarfile
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.overrides import TorchFunctionMode

from common.cli import out_of_memory
from common.files import MOST_PARTS, UserError, atomic_write, reason, require_plain

FORMAT = 1  # raised when older programs could no longer read the files


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that numbers depend on."""
    packages = ("torchvision", "numpy", "scikit-learn", "scikit-image", "pillow")
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),  # with the build, such as +cpu
        **{name: metadata.version(name) for name in packages},
    }


def save(path: str | Path, kind: str, **content: Any) -> None:
    """Write `content` (tensors and plain values, nested) with kind, format and package versions to `path`.

    kind: whose checkpoint it is, such as "csflow". The old file survives every failure. Raises UserError where the
    file cannot be written.
    """
    write(path, {"kind": kind, "format": FORMAT, "versions": versions(), **content})


def write(path: str | Path, content: Any) -> None:
    """Write bare `content` (tensors and plain values, nested) to `path`; otherwise like `save`."""
    with atomic_write(path) as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:  # torch's zip writer reports a full disk in its own way
            raise UserError(f"cannot write {path}: {_first_line(error)}; what was there before is untouched") from error


def load(path: str | Path, kind: str, example: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Read what `save` wrote, mapped into memory, onto the CPU. UserError if missing, broken or something else.

    example: entries that the content must have, too, of these kinds (`require_like`).
    """
    content = load_tensors(path, kind)
    if "kind" not in content:
        raise UserError(f"{path} holds bare parameters, not a {kind} checkpoint with its settings")
    with using(path, kind):
        require_like(content, example or {})
    return content


def load_tensors(path: str | Path, kind: str | None = None) -> dict[str, Any]:
    """Like `load`, but also accepts a bare state dict of somebody else's (tensors by name, no "kind")."""
    content = read(path)
    if not isinstance(content, Mapping):
        raise UserError(f"{path} holds a {type(content).__name__}, not parameters by name")
    if "kind" in content:
        if kind and content["kind"] != kind:
            raise UserError(f"{path} is a checkpoint of {content['kind']}, not of {kind}")
        require_known_format(content, path)
    elif not content or not all(isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items()):
        raise UserError(f"{path} holds neither a checkpoint of ours nor parameters by name")
    return dict(content)


def require_known_format(content: Mapping[str, Any], path: str | Path) -> None:
    """Raise UserError for content that a newer version of this project has written."""
    number = content.get("format", FORMAT)
    if not isinstance(number, int):
        raise UserError(f"{path} is damaged: its format is {number!r}")
    if number > FORMAT:
        raise UserError(
            f"{path} was written by a newer version of this project (format {number}, known is {FORMAT}): update it"
        )


def read(path: str | Path) -> Any:
    """Whatever tensors and plain values `path` holds, mapped into memory, onto the CPU; UserError if missing, broken
    or more than that."""
    path = Path(path)
    if not path.is_file():
        what = "folder" if path.is_dir() else "pipe, socket or device"
        raise UserError(f"{path} is a {what}, not a checkpoint" if path.exists() else f"there is no checkpoint {path}")
    try:
        content = _read(path)
        tensors = require_plain(content, path, (Tensor, *OTHERS))
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
    tensors = [value for value in tensors if isinstance(value, Tensor)]
    if not all(map(_usable, tensors)):
        raise UserError(f"{path} is refused: it holds tensors that are sparse, quantized, of float8 or the like")
    # Repeated or expanded ones could make a network of any size out of a small file.
    if (size := sum(value.nbytes for value in tensors)) > path.stat().st_size:
        raise UserError(f"{path} is refused: its tensors are said to have {size} bytes, more than the file")
    if isinstance(content, Mapping) and "settings" in content:
        _require_settings(content["settings"], path)
    return content


def _read(path: Path) -> Any:
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
    elif tarfile.is_tarfile(path):
        raise UserError(f"{path} is a tar archive, not a checkpoint")
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


# Of what torch.load may return, that which is neither a tensor nor plain; others' files may hold it.
OTHERS = (bytes, complex, torch.dtype, torch.device)
DTYPES = {
    torch.float16, torch.bfloat16, torch.float32, torch.float64,
    torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool,
}  # fmt: skip


def _usable(value: Tensor) -> bool:
    plain = type(value) in (Tensor, nn.Parameter) and value.device.type == "cpu" and not vars(value)
    return plain and value.layout == torch.strided and value.dtype in DTYPES


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
        what = f"{error} is missing" if isinstance(error, KeyError) else _first_line(error)
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


def load_scaler(scaler: torch.amp.GradScaler, state: Mapping[str, Any]) -> None:
    """Put a stored state into `scaler`; RuntimeError, ValueError and the like, within `using`, where it is none."""
    for name, value in state.items():  # with others, all steps would be left out
        require_like(value, 0 if name in ("growth_interval", "_growth_tracker") else 0.0, name)
        if value <= 0 and name != "_growth_tracker":
            raise ValueError(f"{name} is {value}")
    scaler.load_state_dict(state)


def finite(model: nn.Module, optimizer: torch.optim.Optimizer) -> bool:
    """Whether all parameters, buffers and the optimizer's moments are: after a fine loss, a step may have spoiled
    them, and only sound ones are worth saving."""
    moments = (value for entry in optimizer.state.values() for value in entry.values())
    tensors = (value for value in (*model.state_dict().values(), *moments) if isinstance(value, Tensor))
    return all(value.isfinite().all().item() for value in tensors)


def load_parameters(model: nn.Module, state: Mapping[str, Tensor], source: str | Path) -> None:
    """Copy `state` into `model`; UserError says which names, shapes or values do not fit."""
    require_fitting(lambda: model, state, source)
    for name, own in model.state_dict().items():
        if not state[name].to(own.dtype).isfinite().all():
            raise UserError(f"{source} does not fit the model: {name} holds nan or infinite values")
    model.load_state_dict(dict(state))  # without _metadata, which torch would obey


def require_fitting(make: Callable[[], nn.Module], state: Mapping[str, Tensor], source: str | Path) -> None:
    """Raise UserError unless `state`, from `source`, has the names, shapes and kinds of numbers of what `make` returns.

    Where a file's own settings tell its network, this comes before that is made: `make` is called without memory for
    parameters, so that a small file cannot ask for a large network, nor for one of many more layers than it holds.
    """
    left = 2 * len(state) + 1000

    def count(*_: object) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise UserError(f"{source} does not fit the model: it holds {len(state)} of many more parameters")

    counting = register_module_parameter_registration_hook(count)
    try:
        with torch.device("meta"), _Uninitialised():
            own = make().state_dict()
    finally:
        counting.remove()
    problems = [f"{name} is missing" for name in own if name not in state]
    problems += [f"{name} is unknown" for name in state if name not in own]
    for name in own:
        if name in state and (problem := _unfit(state[name], own[name])):
            problems.append(f"{name} {problem}")
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise UserError(f"{source} does not fit the model: {'; '.join(problems[:3])}{more}")


class _Uninitialised(TorchFunctionMode):
    """Leaves out the drawing of initial weights, which is slow on the meta device."""

    def __torch_function__(self, function: Callable, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        if getattr(function, "__name__", "") in ("normal_", "uniform_", "kaiming_normal_", "kaiming_uniform_"):
            return args[0] if args else kwargs["tensor"]
        return function(*args, **(kwargs or {}))


def _unfit(value: Any, own: Tensor) -> str | None:
    """Why `value` cannot take the place of the parameter `own`; None where it can."""
    if not isinstance(value, Tensor):
        return "is no tensor"
    if value.shape != own.shape:
        return f"has shape {tuple(value.shape)} instead of {tuple(own.shape)}"
    if value.is_floating_point() != own.is_floating_point():
        return f"is {value.dtype} instead of {own.dtype}"
    return None


def load_optimizer(optimizer: torch.optim.Optimizer, state: Mapping[str, Any], source: str | Path) -> None:
    """Put a stored state's moments into `optimizer`, one of torch's with one group, which keeps its own options.

    UserError where they do not fit the parameters or are not finite.
    """
    (group,) = optimizer.param_groups
    own = {name: value for name, value in group.items() if name != "params"}
    expected = _moments_of_one_number(optimizer)
    try:
        # With our options, torch puts the state where fused optimizers need it.
        groups = [{**stored, **own} for stored in state["param_groups"]]
        optimizer.load_state_dict({"state": state["state"], "param_groups": groups})
        fits = all(_moments_fit(parameter, entry, expected) for parameter, entry in optimizer.state.items())
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise UserError(f"{source}: its optimizer does not fit the model ({_first_line(error)})") from error
    if not fits:
        raise UserError(f"{source}: its optimizer does not fit the model (moments of other shapes, or not finite)")
    for parameter, entry in optimizer.state.items():
        # Fused steps walk through parameter and moments by address: from moments in another layout (contiguous beside
        # channels last) each weight would silently get another one's, with expanded ones they write beyond the end.
        moments = {name: value for name, value in entry.items() if value.shape == parameter.shape}
        entry.update((name, torch.empty_like(parameter).copy_(value)) for name, value in moments.items())


def _moments_of_one_number(optimizer: torch.optim.Optimizer) -> Mapping[str, Tensor]:
    """What such an optimizer keeps for a parameter of shape (1,): moments of the same shape, counts without one."""
    accepted = inspect.signature(type(optimizer)).parameters  # the defaults of AdamW hold more
    options = {name: value for name, value in optimizer.defaults.items() if name in accepted}
    number = nn.Parameter(torch.zeros(1))
    number.grad = torch.zeros(1)
    example = type(optimizer)([number], **options)
    example.step()
    return example.state[number]


def _moments_fit(parameter: Any, entry: Mapping[str, Any], expected: Mapping[str, Tensor]) -> bool:
    return (
        isinstance(parameter, Tensor)
        and entry.keys() == expected.keys()
        and all(
            value.layout == torch.strided
            and value.shape == (parameter.shape if expected[name].shape else ())
            and bool(value.isfinite().all())
            and (name not in ("step", "exp_avg_sq", "square_avg") or bool((value >= 0).all()))
            for name, value in entry.items()
        )
    )


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
