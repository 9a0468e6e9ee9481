"""What every script needs at run time: messages, options, device, seed, progress and a clean way to end."""

import argparse
import difflib
import functools
import os
import random
import shlex
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from common import distributed
from common.files import UserError, first_process, reason

__all__ = [
    "PRECISIONS",
    "YES_NO",
    "ArgumentParser",
    "UserError",
    "autocast",
    "channels_last",
    "command_to_continue",
    "complain",
    "default_text",
    "goes_on",
    "note",
    "notes",
    "number_of",
    "out_of_memory",
    "pick_device",
    "printable",
    "progress",
    "run_script",
    "say",
    "script",
    "seed_all",
    "stop_on_request",
    "words_of",
    "yes_no",
]

PRECISIONS = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def say(message: str) -> None:
    """Print one `printable` line at once, so that a log file shows it while the program still runs.

    Of several processes (torchrun), the first one speaks.
    """
    if first_process():
        print(printable(message), flush=True)


def printable(message: str, longest: int = 20_000) -> str:
    """`message` without what a terminal obeys, such as control characters in files' names, its middle left out where it
    is too long."""
    if len(message) > longest:
        message = f"{message[: longest * 3 // 4]} ... {message[-longest // 4 :]}"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in message)


def complain(message: str) -> None:
    """Print one `printable` line on stderr, whichever process it is."""
    print(printable(message, 2000), file=sys.stderr, flush=True)


_notes: list[str] = []


def note(message: str) -> None:
    """Say what was left out, changed or guessed of what the user gave, and remember it for the results file."""
    if message not in _notes:
        _notes.append(message)
        say(message)


def notes() -> list[str]:
    """What `note` was given since the script started; results.json holds it as "notes"."""
    return list(_notes)


def number_of(count: int, noun: str, plural: str = "") -> str:
    """The count and its words: "1 pad", "2 pads"; with a plural of their own, "1 file is" and "2 files are"."""
    return f"{count} {noun if count == 1 else plural or noun + 's'}"


def script(
    main: Callable[[list[str] | None], int | None] | None = None,
    *,
    memory: str = "smaller images, batches or networks",
    several: bool = False,
) -> Callable:
    """Decorate a script's `main(argv)` so that it returns an exit status and users never meet a traceback.

    0 where `main` returns nothing, 2 after one line on stderr where the user can mend what is wrong (UserError, the
    operating system refuses a file, or memory is short), 130 after Ctrl-C. Errors of the program itself keep their
    traceback. memory: what to try where it is short, with the names of the script's options. several: whether torchrun
    may start several processes of the script, which then share its work.
    """
    if main is None:
        return functools.partial(script, memory=memory, several=several)

    def guarded(argv: list[str] | None) -> int:
        _notes.clear()
        formatwarning = warnings.formatwarning
        warnings.formatwarning = lambda message, *_: f"note: {printable(str(message))}\n"
        if hasattr(sys.stdout, "reconfigure"):  # file names and terminals need not be UTF-8
            sys.stdout.reconfigure(errors="backslashreplace")
        main_thread = threading.current_thread() is threading.main_thread()
        if main_thread:  # so that a terminated program, too, removes its temporary files
            terminate = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        try:
            started = int(os.environ.get("WORLD_SIZE", "1")) if torch.distributed.is_torchelastic_launched() else 1
            if started > 1 and not several:  # all would compute and write the same
                raise UserError("this program is of one process: start it without torchrun")
            return main(argv) or 0
        except UserError as error:
            complain(f"error: {' '.join(str(error).splitlines())}")
        except BrokenPipeError:  # the reader of our output (head, less) has gone
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            complain(f"error: {where}{reason(error)}")
        except (MemoryError, RuntimeError) as error:
            if str(error).startswith("Symlink loop"):  # what Path.resolve says before Python 3.13
                complain(f"error: {' '.join(str(error).splitlines())}")
                return 2
            if "gloo/transport" in str(error):  # the processes' connections; torchrun tells which one died, and of what
                words = "what was saved is kept, the same command goes on from there"
                complain(f"error: another process of this run has ended: {words}")
                return 2
            if not out_of_memory(error):
                raise
            where = "" if isinstance(error, MemoryError) or "t allocate" in str(error) else " on the GPU"
            complain(f"error: not enough memory{where}: try {memory}")
        except KeyboardInterrupt:
            if first_process():
                complain("stopped")
            return 130
        finally:
            warnings.formatwarning = formatwarning
            if main_thread:
                signal.signal(signal.SIGTERM, terminate)
        return 2

    @functools.wraps(main)
    def wrapped(argv: list[str] | None = None) -> int:
        status = 1  # of an error of the program itself
        try:
            status = guarded(argv)
        except SystemExit as end:  # of SIGTERM
            status = end.code
            raise
        finally:
            if status:
                distributed.end_at_once(status)
        return status

    return wrapped


def out_of_memory(error: Exception) -> bool:
    """Whether memory was short: the computer's, or a GPU's."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    # Of torch's allocator on the CPU, of CUDA and MPS beside torch's allocator, of cuBLAS.
    return any(words in str(error) for words in ("t allocate memory", "out of memory", "ALLOC_FAILED"))


class ArgumentParser(argparse.ArgumentParser):
    """argparse with errors of one line: wrong options raise UserError, with the nearest option as a hint.

    --help names what must be given, then each option, in its group and with its default, at last the `example`, a
    command line as typed in the repository's root.
    """

    def __init__(self, *, example: str = "", **kwargs):
        epilog = f"example: {example}" if example else None
        super().__init__(allow_abbrev=False, formatter_class=_HelpFormatter, epilog=epilog, **kwargs)

    def format_help(self):
        needed = [(action.option_strings[:1], action.dest.upper()) for action in self._actions if action.required]
        self.usage = " ".join([self.prog, *(" ".join([*name, value]) for name, value in needed), "[options]"])
        return super().format_help()

    def parse_known_args(self, args=None, namespace=None):
        for argument in sys.argv[1:] if args is None else args:
            if "\0" in argument:  # no path may hold it; the system would answer with a ValueError
                raise UserError(f"option {argument!r} holds a NUL character")
        return super().parse_known_args(args, namespace)

    def parse_args(self, args=None, namespace=None):
        options, unknown = self.parse_known_args(args, namespace)
        if unknown:
            name = unknown[0].split("=")[0]
            near = difflib.get_close_matches(name, self._option_string_actions, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise UserError(f"unknown option {unknown[0]}: {hint}--help lists them all")
        return options

    def error(self, message):
        raise UserError(f"{message} (--help explains every option)")


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    def _get_default_metavar_for_optional(self, action):
        return {int: "N", float: "X", Path: "PATH"}.get(action.type) or action.dest.upper()

    def _get_help_string(self, action):
        unseen = action.nargs == 0 or action.default == argparse.SUPPRESS
        return action.help + ("" if unseen else default_text(action.default).replace("%", "%%"))


def default_text(value: object) -> str:
    """What --help says of a default: " (default: 30 60 90)"; nothing where there is none (None, "" and [])."""
    if value is None or value == "" or value == []:
        return ""
    if isinstance(value, bool):
        value = "yes" if value else "no"
    return f" (default: {' '.join(map(str, value)) if isinstance(value, (list, tuple)) else value})"


def yes_no(text: str) -> bool:
    """True for true, yes, t, y, 1 and on, False for their opposites, in any case; argparse's error else."""
    if text.lower() in ("true", "yes", "t", "y", "1", "on"):
        return True
    if text.lower() in ("false", "no", "f", "n", "0", "off"):
        return False
    raise argparse.ArgumentTypeError(f"{text!r}: expected yes or no")


# How add_argument gets to know a yes_no option; alone, without a value, it means yes.
YES_NO = {"type": yes_no, "nargs": "?", "const": True, "metavar": "yes|no"}


def pick_device(
    name: str = "auto", gpu_ids: str | None = None, cpu: bool = False, deterministic: bool = False
) -> torch.device:
    """The device for this process to compute on, announced in one line wherever it is not the one asked for.

    name: "auto" (CUDA, else Apple's MPS, else CPU) or a torch device such as "cuda:1"; gpu_ids: "0" or "0,1". Of
    several GPUs the first one computes, under torchrun one for each process. deterministic: use only algorithms that
    repeat their numbers on a GPU, where PyTorch has them; it warns where not. float32 is IEEE's until `autocast` says
    otherwise. Raises UserError for what is no device, or contradicts itself or torchrun.
    """
    if deterministic != torch.are_deterministic_algorithms_enabled():  # to set it takes seconds of imports
        torch.use_deterministic_algorithms(deterministic, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # a search for bugs, which costs time
    torch.backends.cudnn.deterministic = deterministic
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it, cuBLAS is not deterministic
    _multiply_float32("ieee")
    if cpu and name not in ("auto", "cpu"):
        raise UserError(f"--cpu and --device {name} contradict one another: give one of them")
    if cpu and gpu_ids is not None:
        raise UserError(f"--cpu and --gpu_ids {gpu_ids} contradict one another: give one of them")
    if cpu:
        return torch.device("cpu")
    ids, gpus = [], torch.cuda.device_count()
    if gpu_ids is not None:
        try:
            ids = [int(part) for part in str(gpu_ids).split(",")]
        except ValueError:
            raise UserError(f"--gpu_ids {gpu_ids}: expected numbers such as 0 or 0,1") from None
        if min(ids) < 0:
            raise UserError(f"--gpu_ids {gpu_ids}: GPUs are numbered from 0; --cpu means the CPU")
        if name not in ("auto", "cuda", f"cuda:{ids[0]}"):
            raise UserError(f"--gpu_ids {gpu_ids} and --device {name} contradict one another: give one of them")
        name = f"cuda:{ids[0]}"
    elif name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"device {name!r} is unknown: use auto, cpu, cuda, cuda:1 or mps") from None
    if device.type == "cuda" and gpus:
        return _gpu(ids or ([] if device.index is None else [device.index]), gpus)
    if device.type == "cuda":
        fallback = torch.device("mps" if gpu_ids is not None and torch.backends.mps.is_available() else "cpu")
        say(f"no CUDA GPU here: running on {'the CPU' if fallback.type == 'cpu' else 'Apple MPS'} instead of {name}")
        return fallback
    if device.type == "mps" and not torch.backends.mps.is_available():
        say("no Apple MPS here: running on the CPU")
        return torch.device("cpu")
    if device.type not in ("cpu", "cuda", "mps"):
        raise UserError(f"device {name!r} is not supported: use auto, cpu, cuda, cuda:1 or mps")
    return device


def _gpu(ids: list[int], gpus: int) -> torch.device:
    """This process's GPU of the `ids` that were asked for (none: any) and the `gpus` that are here."""
    launched = torch.distributed.is_torchelastic_launched()
    local, count = (int(os.environ[f"LOCAL_{name}"]) for name in ("RANK", "WORLD_SIZE")) if launched else (0, 1)
    if launched and ids in ([], [0]):  # 0 is a default
        ids = list(range(gpus))
    if launched and count > len(ids):
        raise UserError(f"torchrun started {count} processes here, for GPU {', '.join(map(str, ids))} only: name more")
    if missing := [number for number in ids[:count] if number >= gpus]:
        raise UserError(f"there is no GPU {missing[0]}: this machine has {gpus}")
    if count > 1:
        say(f"{count} processes here, on GPU {', '.join(map(str, ids[:count]))}")
    if len(ids) > 1 and not launched and gpus > 1:
        say(f"GPU {ids[0]} of the {len(ids)} asked for computes: torchrun --nproc_per_node={len(ids)} uses all")
    return torch.device("cuda", ids[local]) if ids else torch.device("cuda")


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Within this context, convolutions and matrix products compute in `precision`, one of PRECISIONS.

    From the call on, backward passes included, they round float32 on an NVIDIA GPU to 11 bits for "tf32" alone.
    Raises UserError for fp16 without a GPU.
    """
    if precision == "fp16" and device.type == "cpu":
        raise UserError("--precision fp16 needs a GPU: use bf16 or fp32 on the CPU")
    if precision == "tf32" and device.type != "cuda":
        note(f"--precision tf32 is of NVIDIA GPUs: on {device.type} it means fp32")
    _multiply_float32("tf32" if precision == "tf32" else "ieee")
    dtype = PRECISIONS[precision]
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)


def _multiply_float32(how: str) -> None:
    """how: "ieee", or "tf32", which PyTorch takes for convolutions unless told otherwise."""
    for operations in (torch.backends.cudnn.conv, torch.backends.cudnn.rnn, torch.backends.cuda.matmul):
        operations.fp32_precision = how


_multiply_float32("ieee")  # for whoever imports us without calling `pick_device`


def channels_last(device: torch.device, dimensions: int = 4) -> torch.memory_format:
    """The layout for images (4 dimensions) or videos (5): channels last, but contiguous on Apple's MPS, where PyTorch's
    batch norms and convolutions have been wrong otherwise."""
    if device.type == "mps":
        return torch.contiguous_format
    return torch.channels_last if dimensions == 4 else torch.channels_last_3d


def seed_all(seed: int) -> None:
    """Seed every random generator in use: Python's, NumPy's legacy one and torch's on all devices."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def progress(items: Iterable, title: str, total: int | None = None, hide: bool = False, every: float = 10) -> Iterator:
    """Iterate over `items` and show how far it is: a bar on a terminal, else a line each `every` seconds.

    Both go to stderr and show rate and remaining time. `hide` shows nothing.
    """
    title = printable(title)
    if hide or not first_process() or sys.stderr is None:
        yield from items
        return
    if sys.stderr.isatty():
        yield from tqdm(items, desc=title, total=total, leave=False, dynamic_ncols=True)
        return
    total = total if total is not None else len(items) if hasattr(items, "__len__") else None
    start = last = time.monotonic()
    for done, item in enumerate(items):
        now = time.monotonic()
        if done and now - last >= every:
            last = now
            rate = done / (now - start)
            left = f"/{total}, {_duration((total - done) / rate)} left" if total else ""
            pace = f"{rate:.1f} per second" if rate >= 1 else f"{1 / rate:.1f} s each"
            complain(f"{title}: {done}{left}, {pace}")
        yield item


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


@contextmanager
def stop_on_request() -> Iterator[Callable[[], bool]]:
    """Within the block, Ctrl-C and SIGTERM only raise a flag; the loop asks for it between steps and saves.

    Yields a function that says whether to stop. A second Ctrl-C interrupts at once, unless it comes within a second:
    torchrun passes on what the terminal has sent already.
    """
    requested = 0.0

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal requested
        if requested:
            if time.monotonic() - requested > 1:
                raise KeyboardInterrupt
            return
        requested = time.monotonic()
        if first_process():
            print("\nstopping after this step (again: at once)", file=sys.stderr, flush=True)

    try:
        before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not in the main thread: signals are the caller's affair
        before = {}
    try:
        yield lambda: bool(requested)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run_script(path: Path, *options: object) -> None:
    """Run a script of this repository in a process of its own. UserError where it fails, KeyboardInterrupt where it was
    stopped, with its exit status: 0 where it came to its end all the same."""
    with stop_on_request() as stop:  # Ctrl-C reaches the script too, which is given the time to save
        status = subprocess.run([sys.executable, str(path), *map(str, options)], check=False).returncode
    if status == 130 or stop():
        raise KeyboardInterrupt(status)
    if status:
        raise UserError(f"{path.name} ended with status {status} (see above)")


def words_of(settings: Mapping[str, Any]) -> list[str]:
    """The command line that gives these settings, read from a file; those that are None are left out.

    UserError for texts in lists, which could be other options.
    """
    words = []
    for name, value in settings.items():
        if isinstance(value, (list, tuple)):
            if any(isinstance(item, str) for item in value):
                raise UserError(f"--{name} {' '.join(map(str, value))}: expected numbers")
            words += [f"--{name}", *map(str, value)]
        elif value is not None:
            words.append(f"--{name}={value}")
    return words


def command_to_continue(argv: list[str] | None, resume: bool) -> str:
    """What to type to go on with a script that was called with `argv` and stopped.

    resume: whether that call would itself continue what is saved; else the option that does so is added.
    """
    words = sys.argv[1:] if argv is None else argv
    return shlex.join(["python", sys.argv[0], *words, *([] if resume else ["--resume", "yes"])])


@contextmanager
def goes_on(output: object) -> Iterator[None]:
    """Ctrl-C within the block tells that what is in `output` is kept and that the same command goes on from there."""
    try:
        yield
    except KeyboardInterrupt:
        say(f"what is done is kept in {output}: the same command goes on from there")
        raise
