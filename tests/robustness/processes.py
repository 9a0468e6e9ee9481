"""Real processes at little cost: forked from one that has imported everything and computed nothing, and really killed.

A fresh Python needs 3 s for its imports; multiprocessing's fork server does them once. A process runs a script's
`main(argv)` in a folder of its own, after preparations that make its life hard.
"""

import ctypes
import importlib
import multiprocessing
import os
import re
import resource
import shlex
import signal
import sys
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from common.files import UNFINISHED

ROOT = Path(__file__).resolve().parents[2]
TRAINERS = ("csflow.main", "crn.train", "crrn.1_train", "memae.script_training", "riad.run")
SCORERS = ("csflow.score", "crn.score", "crrn.3_score_boards", "memae.script_testing", "riad.score")
context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload([__name__, *TRAINERS, *SCORERS, "matplotlib.backends.backend_agg"])


class Script:
    """A script that runs in a process of its own. What it has printed is in `output` and `errors` after its end."""

    output = errors = ""

    def __init__(self, module: str, argv: Sequence[Any], folder: Path, *preparations: tuple[Callable, Any]):
        """Start `module`.main(argv) in `folder`; preparations: functions of this module, each with its argument."""
        folder.mkdir(parents=True, exist_ok=True)
        # Pipes, since a limit to the size of files would hold for files with its messages, too.
        pipes = [context.Pipe(duplex=False) for _ in range(2)]
        self.printed = [reader for reader, _ in pipes]
        writers = [writer for _, writer in pipes]
        argv = [str(part) for part in argv]
        self.process = context.Process(target=_run, args=(module, argv, folder, writers, preparations))
        before = os.environ.get("PYTHONPATH")
        os.environ["PYTHONPATH"] = str(ROOT)  # for the fork server, which the first process starts
        try:
            self.process.start()
        finally:
            os.environ.pop("PYTHONPATH") if before is None else os.environ.update(PYTHONPATH=before)
        for writer in writers:
            writer.close()

    def running(self) -> bool:
        """Whether it has not ended yet."""
        return self.process.is_alive()

    def end(self, number: int | None = None, timeout: float = 600) -> int:
        """The exit status (negative: of which signal it died), after sending the signal `number`, if any."""
        if number is not None and self.running():
            os.kill(self.process.pid, number)
        self.process.join(timeout)
        assert not self.running(), "it hangs"
        self.output, self.errors = (os.fdopen(os.dup(reader.fileno())).read() for reader in self.printed)
        return self.process.exitcode


def _run(
    module: str,
    argv: list[str],
    folder: Path,
    writers: Sequence[Connection],
    preparations: Sequence[tuple[Callable, Any]],
) -> None:
    for number, writer in enumerate(writers, start=1):
        os.dup2(writer.fileno(), number)
        writer.close()
    # The fork server's may remember to be files, in which one can seek.
    sys.stdout, sys.stderr = (open(number, "w", buffering=1, closefd=False) for number in (1, 2))  # noqa: SIM115
    signal.signal(signal.SIGINT, signal.default_int_handler)
    torch.set_num_threads(1)
    os.chdir(folder)
    script = importlib.import_module(module)
    sys.argv = [f"{module}.py", *argv]
    for prepare, argument in preparations:
        prepare(argument)
    sys.exit(script.main(argv))


def die_at_rename(moment: tuple[int, bool]) -> None:
    """SIGKILL at the moment (n, after): before or after the n-th file that is written whole takes its place."""
    number, after = moment
    replace, count = Path.replace, 0

    def counted(path: Path, target: Path) -> Path:
        nonlocal count
        count += path.name.startswith(UNFINISHED)
        if count < number or not path.name.startswith(UNFINISHED):
            return replace(path, target)
        if after:
            replace(path, target)
        os.kill(os.getpid(), signal.SIGKILL)

    Path.replace = counted


def stop_at_append(moment: tuple[int, int]) -> None:
    """The signal of the moment (n, signal), as the n-th addition to a file is about to be written."""
    number, stop = moment
    opened, count = Path.open, 0

    def counted(path: Path, mode: str = "r", *more: Any, **options: Any) -> Any:
        nonlocal count
        count += mode.startswith("a")
        if count == number and mode.startswith("a"):
            os.kill(os.getpid(), stop)
        return opened(path, mode, *more, **options)

    Path.open = counted


def full_disk(size: int) -> None:
    """Writing a file beyond `size` bytes fails, as on a full disk (Python ignores the signal that comes with it)."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def read_only(folder: Path) -> None:
    """Nothing can be written in `folder` and those in it, not even by root, until this process ends."""
    if os.getuid() == 0:
        version, nothing = 0x20080522, (ctypes.c_uint32 * 6)()
        header = (ctypes.c_uint32 * 2)(version, 0)
        if ctypes.CDLL(None, use_errno=True).capset(header, nothing):
            raise OSError(ctypes.get_errno(), "capset")
    for path in [folder, *folder.rglob("*")]:
        if path.is_dir():
            path.chmod(0o555)


def out_of_memory(_: None) -> None:
    """The first backward pass finds the GPU's memory full."""

    def backward(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nIncluding non-PyTorch memory")

    torch.Tensor.backward = backward


def continuing_command(output: str, argv: list[str]) -> list[str]:
    """The arguments of the command with which a stopped script, called with `argv`, tells to resume."""
    if "run the same command to resume" in output:
        return argv
    (line,) = re.findall(r"to resume: python (.*)", output)
    return shlex.split(line)[1:]
