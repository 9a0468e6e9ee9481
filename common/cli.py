"""What scripts need to talk to a user, none of which imports torch: messages, options, progress, a clean way to end."""

import argparse
import difflib
import functools
import math
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from tqdm import tqdm

from common.files import UserError, first_process, out_of_memory, reason

PRECISIONS = ("fp32", "tf32", "bf16", "fp16")


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
            if processes() > 1 and not several:  # all would compute and write the same
                raise UserError("this script does not support torchrun: start it with python")
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
            elif "gloo/transport" in str(error):  # the processes' connections; torchrun tells which one died, and why
                complain("error: another process of this run has ended; run the same command to resume")
            elif out_of_memory(error):
                where = "" if isinstance(error, MemoryError) or "t allocate" in str(error) else " on the GPU"
                complain(f"error: not enough memory{where}: try {memory}")
            else:
                raise
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
            if status and processes() > 1:
                from common import distributed  # with torch, which a script of several processes has imported anyway

                distributed.end_at_once(status)
        return status

    return wrapped


def answer_early(name: str, parse: Callable[[list[str] | None], Any]) -> None:
    """In a script's first lines, `answer_early(__name__, parse)` before it imports torch: --help and wrong options are
    answered at once. parse: of the script's options, which its main calls again; it says nothing but errors."""
    if name == "__main__" and (status := script(lambda argv: parse(argv) and None, several=True)()):
        sys.exit(status)


def processes() -> int:
    """How many processes torchrun has started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "TORCHELASTIC_RUN_ID" in os.environ else 1


ROOT = Path(__file__).resolve().parents[1]
# Options by how much they matter, of all scripts: --help shows the first ten that a script has before the others.
FIRST = (
    "data", "dataset", "data_path", "dataset_path", "Dataset", "class_name", "modelname", "model_input", "checkpoint",
    "images", "boards", "output", "ModelName", "algorithm", "protocol", "cycle", "img_size", "imsize", "epochs",
    "num_epochs", "EpochNum", "training_steps", "minutes", "seeds", "only", "networks", "precision", "fpr", "report",
    "pictures", "device", "resume", "seed", "batch_size", "BatchSize", "lr", "LR", "held_out", "extractor",
)  # fmt: skip


class ArgumentParser(argparse.ArgumentParser):
    """argparse with errors of one line: wrong options raise UserError, with the nearest option as a hint.

    --help names what must be given, then ten options that matter most, if there are many, then each other one in its
    group, with its default, at last the `example`, a command line as typed in the repository's root.
    """

    def __init__(self, *, example: str = "", **kwargs):
        epilog = f"example: {example}" if example else None
        super().__init__(allow_abbrev=False, formatter_class=_HelpFormatter, epilog=epilog, **kwargs)

    def format_help(self):
        needed = [(action.option_strings[:1], action.dest.upper()) for action in self._actions if action.required]
        self.usage = " ".join([self.prog, *(" ".join([*name, value]) for name, value in needed), "[options]"])
        ranked = [action for action in self._actions if action.required and action.option_strings]
        ranked += [action for name in FIRST for action in self._actions if action.dest == name and not action.required]
        first = ranked[:10] if len(self._actions) > 14 else []
        formatter = self._get_formatter()
        formatter.add_usage(self.usage, self._actions, self._mutually_exclusive_groups)
        formatter.add_text(self.description)
        sections = [("options that matter most", first)] if first else []
        for group in self._action_groups:
            left = [action for action in group._group_actions if action not in first]
            sections.append((f"more: {group.title}" if first else group.title, left))
        for title, actions in sections:
            formatter.start_section(title)
            formatter.add_arguments(actions)
            formatter.end_section()
        formatter.add_text(self.epilog)
        return formatter.format_help()

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
        metavar = getattr(action.type, "metavar", None)
        return metavar or {int: "N", float: "X", Path: "PATH"}.get(action.type) or action.dest.upper()

    def _get_help_string(self, action):
        unseen = action.nargs == 0 or action.default == argparse.SUPPRESS
        return action.help + ("" if unseen else default_text(action.default).replace("%", "%%"))


def shown_path(path: Path) -> Path:
    """A default path as --help shows it: relative to the repository, if it is in it."""
    return path.relative_to(ROOT) if path.is_relative_to(ROOT) else path


def default_text(value: object) -> str:
    """What --help says of a default: " (default: 30 60 90)"; nothing where there is none (None, "" and [])."""
    if value is None or value == "" or value == []:
        return ""
    if isinstance(value, bool):
        value = "yes" if value else "no"
    if isinstance(value, Path):
        value = shown_path(value)
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


def whole(low: int, high: int = 2**53, step: int = 1) -> Callable[[str], int]:
    """Type of an option: whole numbers from `low` to `high`, multiples of `step`."""
    words = f"a multiple of {step}" if step > 1 else "a whole number"

    def convert(text: str) -> int:
        if not (text.removeprefix("-").isdecimal() and low <= int(text) <= high and int(text) % step == 0):
            raise argparse.ArgumentTypeError(f"{text!r}: expected {words} from {low} to {high}")
        return int(text)

    convert.metavar = "N"
    return convert


def multiple_of(step: int, high: int) -> Callable[[str], int]:
    """Type of an option: multiples of `step`, from it to `high`."""
    return whole(step, high, step)


def number(low: float = -math.inf, high: float = math.inf, above: bool = False, below: bool = False) -> Callable:
    """Type of an option: finite numbers from `low` to `high`; above, below: without these two themselves."""
    words = [f"{'above' if above else 'at least'} {low:g}"] if low > -math.inf else []
    words += [f"{'below' if below else 'at most'} {high:g}"] if high < math.inf else []
    expected = " ".join(["a finite number", *[" and ".join(words)]]).strip()

    def convert(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        inside = (low < value if above else low <= value) and (value < high if below else value <= high)
        if not (inside and math.isfinite(value)):
            raise argparse.ArgumentTypeError(f"{text!r}: expected {expected}")
        return value

    convert.metavar = "X"
    return convert


positive = number(0, above=True)
share = number(0, 1, above=True, below=True)  # a rate or a part of a whole


def folder_name(text: str) -> str:
    """Type of an option: the name of one folder or file, without slashes and control characters."""
    if text in ("", ".", "..") or not text.isprintable() or set(text) & set("/\\"):
        raise argparse.ArgumentTypeError(f"{text!r}: expected a name without slashes and control characters")
    return text


def max_value(text: str) -> int | str:
    """Type of the option --max_value: "auto" or a number from 1 to 65535."""
    return text if text == "auto" else whole(1, 65535)(text)


# How add_argument gets to know the options --max_value, --max_pixels and --minutes.
MAX_VALUE = {
    "type": max_value,
    "default": 65535,
    "help": "value of 16-bit images that becomes white, such as 4095 of 12 bits; auto: from the training images",
}
MAX_PIXELS = {
    "type": whole(1),
    "default": 89478485,  # Pillow's
    "help": "refuse images of more pixels, since a small file may hold many",
}
MINUTES = {"type": positive, "default": None, "help": "end after so many minutes; unset: after all epochs"}
REPORT_HELP = "also write report.html, one page with data, scores, curves and pictures of the best and worst cases"


def add_scoring_options(parser: ArgumentParser, default: str | None) -> None:
    """The options of all programs that score images; default: of --output, in words. None: --images may be left out,
    and --output is the program's own."""
    add = parser.add_argument_group("what to score").add_argument
    which = "images, or folders of images" + ("; unset: none are scored" if default is None else "")
    add("--images", type=Path, required=default is not None, nargs="+", default=[], help=which)
    if default is not None:
        add("--output", type=Path, default=None, help=f"folder for the results; unset: {default}")
    add("--maps", choices=("network", "full"), default="network", help="resolution of maps/: the network's, or images'")
    which = "images that get map, overlay and mask: all, those called defective, or none"
    add("--pictures", choices=("all", "defective", "none"), default="all", help=which)
    add = parser.add_argument_group("thresholds in place of those from good images").add_argument
    of_image = "an image is defective whose score is above this; unset: from good images"
    add("--threshold", type=number(), default=None, help=of_image)
    of_pixel = "a pixel is defective whose value in the map is above this; unset: from good images"
    add("--pixel_threshold", "--pixel-threshold", type=positive, default=None, help=of_pixel)


def progress(
    items: Iterable,
    title: str,
    total: int | None = None,
    hide: bool = False,
    every: float = 10,
    ends: float | None = None,
) -> Iterator:
    """Iterate over `items` and show how far it is: a bar on a terminal, else a line each `every` seconds.

    Both go to stderr and show rate and remaining time. `hide` shows nothing. ends: the time.monotonic() at which items
    of an unknown number are over.
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
            seconds = (total - done) / rate if total else None if ends is None else max(ends - now, 0)
            left = (f"/{total}" if total else " done") + ("" if seconds is None else f", {in_hours(seconds)} left")
            pace = f"{rate:.1f} per second" if rate >= 1 else f"{1 / rate:.1f} s each"
            complain(f"{title}: {done}{left}, {pace}")
        yield item


def in_hours(seconds: float) -> str:
    """A duration in words: "40 s", "12 min", "2 h 10 min"."""
    minutes = round(seconds / 60)
    if minutes < 2:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


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


def command_to_continue(argv: list[str] | None, resume: bool) -> str:
    """What to type to go on with a script that was called with `argv` and stopped.

    resume: whether that call would itself continue what is saved; else the option that does so is added.
    """
    words = sys.argv[1:] if argv is None else argv
    return shlex.join(["python", sys.argv[0], *words, *([] if resume else ["--resume", "yes"])])


def _version(path: Path) -> tuple[int, int] | None:
    """What changes when a file is written again; None where there is none."""
    return (path.stat().st_ino, path.stat().st_mtime_ns) if path.exists() else None


@contextmanager
def resumable(path: str | Path, argv: list[str] | None = None, resume: bool = True) -> Iterator[None]:
    """Ctrl-C within the block tells how to go on from what is saved in `path`, if anything is.

    argv: the script's; resume: whether its command would resume, else the option that does is added, and a file that
    was there before the block and has not been replaced since does not count.
    """
    path = Path(path)
    before = None if resume else _version(path)
    try:
        yield
    except KeyboardInterrupt:
        how = "run the same command to resume" if resume else f"to resume: {command_to_continue(argv, resume)}"
        say(f"progress is saved in {path}; {how}" if _version(path) not in (None, before) else "nothing was saved yet")
        raise
