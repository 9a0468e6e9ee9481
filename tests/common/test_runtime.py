"""What users meet at run time: one line instead of a traceback, exit statuses, devices, progress, a clean stop."""

import argparse
import ctypes
import os
import random
import signal
import subprocess
import sys
import time
import warnings
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch

from common import cli, distributed, runtime
from common.cli import ArgumentParser, number_of, progress, run_script, script, stop_on_request
from common.files import UserError
from common.runtime import autocast, channels_last, pick_device, reuse_memory, seed_all

ROOT = Path(__file__).parents[2]


@pytest.fixture
def parser():
    parser = ArgumentParser(description="test")
    parser.add_argument("--batch_size", type=int, default=4, help="images per step")
    parser.add_argument("--score", choices=("std", "mean"))
    parser.add_argument("--gpu_ids")
    parser.add_argument("--cpu", action="store_true")
    return parser


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--batchsize", "8"], "unknown option --batchsize: did you mean --batch_size? --help lists them all"),
        (["--batch-size=8"], "unknown option --batch-size=8: did you mean --batch_size? --help lists them all"),
        (["--batch", "8"], "unknown option --batch: did you mean --batch_size?"),  # abbreviations are no options
        (["--zzz"], "unknown option --zzz: --help lists them all"),
        (["stray"], "unknown option stray: --help lists them all"),
        (["--batch_size", "many"], "argument --batch_size: invalid int value: 'many' (--help explains every option)"),
        (["--batch_size"], "argument --batch_size: expected one argument (--help explains every option)"),
        (["--score", "max"], "argument --score: invalid choice: 'max'"),
        (["--gpu_ids", "a\0b"], "option 'a\\x00b' holds a NUL character"),
    ],
)
def test_wrong_options_are_one_line(parser, capsys, argv, message):
    with pytest.raises(UserError) as caught:
        parser.parse_args(argv)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
    assert capsys.readouterr() == ("", "")


@pytest.fixture(autouse=True)
def warnings_as_before(monkeypatch):
    """script() shortens warnings for the rest of the process; here, for one test only."""
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)


def raising(error: BaseException | None, **options):
    @script(several=True, **options)
    def main(argv=None):
        if error is not None:
            raise error

    return main


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (None, 0, ""),
        (UserError("no images in data"), 2, "error: no images in data\n"),
        (PermissionError(13, "Permission denied", "/secret"), 2, "error: /secret: permission denied\n"),
        (OSError("disk gone"), 2, "error: disk gone\n"),
        (KeyboardInterrupt(), 130, "stopped\n"),
        (MemoryError(), 2, "error: not enough memory: try smaller images, batches or networks\n"),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8e15 bytes"),
            2,
            "error: not enough memory: try smaller images, batches or networks\n",
        ),
        (
            RuntimeError("[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:561] Connection closed by peer [::1]"),
            2,
            "error: another process of this run has ended; run the same command to resume\n",
        ),
    ],
)
def test_exit_status_and_one_line(capsys, error, status, message):
    assert raising(error)([]) == status
    assert capsys.readouterr() == ("", message)


def test_memory_that_is_short_on_a_gpu_names_the_scripts_options(capsys):
    for error in (
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("MPS backend out of memory (MPS allocated: 8 GB)"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)"),
    ):
        assert raising(error, memory="a smaller --batch_size")([]) == 2
        assert capsys.readouterr().err == "error: not enough memory on the GPU: try a smaller --batch_size\n"


def test_names_that_are_no_text_can_be_printed():
    code = "from common.cli import say, script; script(lambda argv: say('b\\udcff.png \\u00b2'))()"
    environment = {**os.environ, "PYTHONIOENCODING": "ascii:strict"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, timeout=60)
    assert (done.returncode, done.stdout.split()) == (0, [b"b\\udcff.png", b"\\xb2"]), done.stderr


def test_what_terminals_obey_is_escaped(capsys):
    """File names and checkpoints may hold what clears a terminal, sets its title or writes from right to left."""
    name, shown = "\x1b[2J\x1b]0;a\x07\x9bé\u202e.png", r"\x1b[2J\x1b]0;a\x07\x9bé\u202e.png"
    cli.say(f"{name}\n2")
    list(cli.progress(range(3), name, every=0))
    assert raising(UserError(f"{name} is\nno image"))([]) == 2
    assert raising(UserError("x" * 100_000))([]) == 2
    out, err = capsys.readouterr()
    assert out == f"{shown}\\n2\n"
    first, _, error, long = err.split("\n")[:-1]
    assert first.startswith(f"{shown}: 1/3") and error == f"error: {shown} is no image" and 1900 < len(long) < 2100


@pytest.mark.parametrize(
    ("error", "status"), [(SystemExit(143), 143), (SystemExit(0), 0), (UserError("x"), 2), (ZeroDivisionError(), 1)]
)
def test_processes_of_several_end_with_their_own_status(monkeypatch, error, status):
    ended = []
    monkeypatch.setattr(cli, "processes", lambda: 2)
    monkeypatch.setattr(distributed, "end_at_once", ended.append)
    with suppress(SystemExit, ZeroDivisionError):
        raising(error)([])
    assert ended == [status] * bool(status)


def test_termination_removes_temporary_files(tmp_path):
    code = (
        "import sys, time; from common.files import atomic_write; from common.cli import say, script\n"
        "def main(argv):\n"
        "    with atomic_write(sys.argv[1]):\n"
        "        say('writing'); time.sleep(60)\n"
        "sys.exit(script(main)())"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "a")], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout.readline() == b"writing\n" and len(list(tmp_path.iterdir())) == 1
    process.terminate()
    assert process.communicate(timeout=60)[1] == b"" and process.returncode == 143
    assert not list(tmp_path.iterdir())


def test_ctrl_c_during_slow_imports_leaves_no_traceback():
    done = subprocess.run(
        [sys.executable, "-c", "import common; raise KeyboardInterrupt"], cwd=ROOT, capture_output=True, timeout=60
    )
    assert done.returncode == -signal.SIGINT and done.stderr == b"stopped\n"


def test_a_process_ends_without_traceback_when_its_reader_has_gone():
    code = (
        "import sys, warnings\n"
        "from common.cli import say, script\n"
        "@script\n"
        "def main(argv=None):\n"
        "    warnings.warn('old file')\n"
        "    while True: say('line')\n"
        "sys.exit(main())"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "line\n"
    process.stdout.close()
    assert process.stderr.read() == "note: old file\n"
    process.stderr.close()
    assert process.wait(timeout=30) == 2


@pytest.fixture
def machine(monkeypatch):
    """Sets what the machine has: machine(gpus=2, mps=False)."""

    def pretend(gpus: int = 0, mps: bool = False) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)

    return pretend


@pytest.mark.parametrize(
    ("has", "asked", "device", "said"),
    [
        ({}, {}, "cpu", ""),
        ({"gpus": 1}, {}, "cuda", ""),
        ({"mps": True}, {}, "mps", ""),
        ({"gpus": 1, "mps": True}, {"cpu": True}, "cpu", ""),
        ({"gpus": 2}, {"gpu_ids": "1"}, "cuda:1", ""),
        ({"gpus": 2}, {"gpu_ids": "1,0"}, "cuda:1", "using GPU 1 only (2 requested)"),
        ({"gpus": 2}, {"name": "cuda", "gpu_ids": "1"}, "cuda:1", ""),
        ({}, {"gpu_ids": "0"}, "cpu", "no CUDA GPU here: running on the CPU instead of cuda:0"),
        ({}, {"gpu_ids": "0,1"}, "cpu", "no CUDA GPU here: running on the CPU instead of cuda:0"),
        ({"mps": True}, {"gpu_ids": "0"}, "mps", "no CUDA GPU here: running on Apple MPS instead of cuda:0"),
        ({}, {"name": "cuda"}, "cpu", "no CUDA GPU here: running on the CPU instead of cuda"),
        ({}, {"name": "mps"}, "cpu", "no Apple MPS here: running on the CPU"),
        ({"mps": True}, {"name": "mps"}, "mps", ""),
        ({"gpus": 1}, {"name": "cpu"}, "cpu", ""),
    ],
)
def test_device_and_what_is_said_of_it(machine, capsys, has, asked, device, said):
    machine(**has)
    assert pick_device(**asked) == torch.device(device)
    out, err = capsys.readouterr()
    assert err == ""
    assert out.startswith(said)
    assert out.count("\n") == bool(said)


def test_each_process_of_torchrun_gets_a_gpu_of_those_asked_for(machine, monkeypatch, capsys):
    torchrun = {"TORCHELASTIC_RUN_ID": "1", "RANK": "0", "LOCAL_WORLD_SIZE": "2"}
    for name, value in torchrun.items():
        monkeypatch.setenv(name, value)
    machine(gpus=4)
    for asked, devices in (
        ({"gpu_ids": "2,3"}, (2, 3)),
        ({"gpu_ids": "1,0,2"}, (1, 0)),
        ({"gpu_ids": "0"}, (0, 1)),
        ({}, (0, 1)),
        ({"name": "cuda"}, (0, 1)),
    ):
        for local, number in enumerate(devices):
            monkeypatch.setenv("LOCAL_RANK", str(local))
            assert pick_device(**asked) == torch.device("cuda", number)
            assert capsys.readouterr().out == f"2 processes here, on GPU {devices[0]}, {devices[1]}\n"
    for asked, message in (
        ({"gpu_ids": "2"}, "2 processes here, for GPU 2 only"),
        ({"name": "cuda:1"}, "for GPU 1 only"),
        ({"gpu_ids": "3,4"}, "no GPU 4"),
    ):
        with pytest.raises(UserError, match=message):
            pick_device(**asked)
    machine(gpus=1)
    with pytest.raises(UserError, match="2 processes here, for GPU 0 only"):
        pick_device()


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"gpu_ids": "first"}, "--gpu_ids first: expected numbers"),
        ({"gpu_ids": ""}, "--gpu_ids : expected numbers"),
        ({"gpu_ids": "-1"}, "--gpu_ids -1: GPUs are numbered from 0; --cpu means the CPU"),
        ({"gpu_ids": "0,-1"}, "--gpu_ids 0,-1: GPUs are numbered from 0"),
        ({"gpu_ids": "0", "name": "cpu"}, "--gpu_ids 0 and --device cpu contradict one another"),
        ({"gpu_ids": "0", "name": "cuda:1"}, "--gpu_ids 0 and --device cuda:1 contradict one another"),
        ({"cpu": True, "gpu_ids": "0"}, "--cpu and --gpu_ids 0 contradict one another"),
        ({"cpu": True, "name": "cuda"}, "--cpu and --device cuda contradict one another"),
        ({"gpu_ids": "5"}, "there is no GPU 5: this machine has 2"),
        ({"name": "gpu"}, "device 'gpu' is not supported"),
        ({"name": "xla"}, "device 'xla' is not supported"),
    ],
)
def test_no_such_device(machine, asked, message):
    machine(gpus=2)
    with pytest.raises(UserError) as caught:
        pick_device(**asked)
    assert str(caught.value).startswith(message)


def test_tf32_is_asked_for(capsys):
    """PyTorch's default would round in fp32, too."""
    how = [torch.backends.cudnn.conv, torch.backends.cuda.matmul]
    for precision, expected in (("tf32", "tf32"), ("fp32", "ieee"), ("tf32", "tf32"), ("bf16", "ieee")):
        with autocast(torch.device("cuda" if precision == "tf32" else "cpu"), precision) as context:
            assert [operations.fp32_precision for operations in how] == [expected] * 2
            assert context.fast_dtype == runtime.DTYPES[precision]
    autocast(torch.device("cuda"), "tf32")
    pick_device("cpu")
    assert [operations.fp32_precision for operations in how] == ["ieee"] * 2 and capsys.readouterr().out == ""
    autocast(torch.device("cpu"), "tf32")
    assert capsys.readouterr().out == "--precision tf32 is of NVIDIA GPUs: on cpu it means fp32\n"


@pytest.mark.slow  # imports for seconds
def test_deterministic_algorithms_are_asked_for(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    for asked in (True, False):
        pick_device("cpu", deterministic=asked)
        assert torch.are_deterministic_algorithms_enabled() is torch.backends.cudnn.deterministic is asked
    assert "CUBLAS_WORKSPACE_CONFIG" in os.environ


def test_layouts_and_seeds():
    """On Apple's MPS, channels last have been wrong."""
    assert channels_last(torch.device("cuda:1")) == channels_last(torch.device("cpu")) == torch.channels_last
    assert channels_last(torch.device("cpu"), 5) == torch.channels_last_3d
    assert channels_last(torch.device("mps")) == channels_last(torch.device("mps:0"), 5) == torch.contiguous_format

    def draws(seed):
        seed_all(seed)
        return random.random(), *np.random.random(3), *torch.rand(3).tolist()

    assert draws(3) == draws(3) and not {*draws(3)} & {*draws(2**32 + 1)}  # more than NumPy takes


@pytest.fixture
def clock(monkeypatch):
    """A clock that moves on when told to."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_progress_is_plain_lines_where_there_is_no_terminal(capsys, clock):
    def steps(seconds, *arguments, **options):
        for _ in progress(*arguments, every=10, **options):
            clock[0] += seconds
        return capsys.readouterr().err

    lines = "reading: 2/6, 20 s left, 5.0 s each\nreading: 4/6, 10 s left, 5.0 s each\n"
    assert steps(5, "abcdef", "reading") == lines
    assert steps(0.25, iter(range(60)), "steps") == "steps: 40 done, 4.0 per second\n"
    timed = steps(0.25, iter(range(60)), "steps", ends=clock[0] + 70)
    assert timed == "steps: 40 done, 60 s left, 4.0 per second\n"  # a training of --minutes
    assert steps(0.25, iter(range(60)), "steps", total=60) == "steps: 40/60, 5 s left, 4.0 per second\n"
    assert steps(4000, range(3), "hours").startswith("hours: 1/3, 2 h 13 min left, 4000.0 s each\n")
    assert steps(5, range(60), "steps", hide=True) == steps(5, [], "nothing") == ""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stop_on_request(capsys, number):
    before = signal.getsignal(number)
    done = 0
    with stop_on_request() as stop:
        for step in range(10):
            if step == 3:
                os.kill(os.getpid(), number)
            done += 1  # the step is finished
            if stop():
                break
    assert done == 4
    assert capsys.readouterr().err == "\nstopping after this step (again: at once)\n"
    assert signal.getsignal(number) is before


def test_of_several_processes_one_tells_of_ctrl_c(monkeypatch, capsys):
    @cli.script
    def main(argv):
        with stop_on_request() as stop:
            os.kill(os.getpid(), signal.SIGINT)
            assert stop()
        raise KeyboardInterrupt

    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    for rank, told in (("0", True), ("1", False)):
        monkeypatch.setenv("RANK", rank)
        assert main([]) == 130
        error = capsys.readouterr().err
        assert ("stopping after this step" in error and "\nstopped\n" in error) if told else error == ""


def test_only_scripts_that_share_their_work_start_several_times(monkeypatch, capsys):
    """Where torchrun starts a program that joins no others, all would write the same files."""
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    for several, processes, status in ((False, "2", 2), (True, "2", 0), (False, "1", 0)):
        monkeypatch.setenv("WORLD_SIZE", processes)
        assert cli.script(lambda argv: None, several=several)([]) == status
        assert ("does not support torchrun" in capsys.readouterr().err) == (status == 2)
    scripts = [
        file
        for folder in ("csflow", "crrn", "memae", "crn", "riad", "benchmarks")
        for file in (ROOT / folder).glob("*.py")
        if "\n@script" in file.read_text()
    ]
    joins = "distributed.join(", "from crrn.scoring import"  # itself, or there
    joined = {file for file in scripts if any(words in file.read_text() for words in joins)}
    assert len(joined) >= 8 and joined == {file for file in scripts if "several=True" in file.read_text()}


def test_second_ctrl_c_interrupts_at_once(monkeypatch):
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), stop_on_request() as stop:
        assert not stop()
        os.kill(os.getpid(), signal.SIGINT)
        assert stop()
        os.kill(os.getpid(), signal.SIGINT)  # what torchrun passes on
        now = time.monotonic()
        monkeypatch.setattr(time, "monotonic", lambda: now + 2)
        os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_ctrl_c_tells_how_to_resume(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["riad/run.py", "--output", "a b"])
    model = tmp_path / "model.pt"
    for path, argv, resume, words in (
        (model, None, True, f"progress is saved in {model}; run the same command to resume"),
        (model, None, False, "to resume: python riad/run.py --output 'a b' --resume yes"),
        (model, ["--resume", "no"], False, "to resume: python riad/run.py --resume no --resume yes"),
        (tmp_path / "none", None, True, "nothing was saved yet"),
    ):
        with pytest.raises(KeyboardInterrupt), cli.resumable(path, argv, resume):
            if path == model:
                path.write_text(words)
            raise KeyboardInterrupt
        assert words in capsys.readouterr().out
    for resume, words in ((True, "progress is saved in"), (False, "nothing was saved yet")):  # an older run's file
        with pytest.raises(KeyboardInterrupt), cli.resumable(model, None, resume):
            raise KeyboardInterrupt
        assert capsys.readouterr().out.startswith(words)


def test_scripts_that_end_well_fail_or_are_stopped(tmp_path, capfd):
    path = tmp_path / "script.py"
    path.write_text("import sys; print(sys.argv[2]); sys.exit(int(sys.argv[1]))")
    run_script(path, 0, tmp_path)
    assert capfd.readouterr().out == f"{tmp_path}\n"
    with pytest.raises(UserError, match=r"script\.py ended with status 2"):
        run_script(path, 2, "")
    with pytest.raises(KeyboardInterrupt) as stopped:
        run_script(path, 130, "")
    assert stopped.value.args == (130,)


def test_types_of_options():
    for kind, text, value in (
        (cli.whole(1, 10), "10", 10), (cli.whole(-2), "-1", -1), (cli.number(), "-1e3", -1000), (cli.positive, "2", 2),
        (cli.share, "0.5", 0.5), (cli.multiple_of(8, 64), "64", 64), (cli.folder_name, "a b", "a b"),
        (cli.max_value, "auto", "auto"), (cli.max_value, "4095", 4095),
        *((cli.yes_no, text, True) for text in ("True", "YES", "y", "t", "1", "on")),
        *((cli.yes_no, text, False) for text in ("False", "no", "N", "f", "0", "off")),
    ):  # fmt: skip
        assert kind(text) == value
    for kind, texts in (
        (cli.whole(1, 10), ("0", "11", "1.0", "", "²", "1_0", "nan")), (cli.number(), ("nan", "inf", "x")),
        (cli.positive, ("0", "-1")), (cli.share, ("0", "1")), (cli.multiple_of(8, 64), ("0", "9", "72")),
        (cli.folder_name, ("", "..", "a/b", "a\\b", "a\n")), (cli.yes_no, ("", "maybe", "2")),
        (cli.max_value, ("0", "65536", "-1", "Auto", "1.5", "", "²", "1_0")),
    ):  # fmt: skip
        for text in texts:
            with pytest.raises(argparse.ArgumentTypeError, match="expected"):
                kind(text)


def test_counts_and_their_words():
    found = [number_of(count, "pad") for count in (0, 1)] + [number_of(n, "file is", "files are") for n in (1, 2)]
    assert found == ["0 pads", "1 pad", "1 file is", "2 files are"]


CODE = """
import resource, sys
import numpy as np
from common.runtime import reuse_memory
if sys.argv[1] == "keep" and not reuse_memory():
    sys.exit(3)
def touch():
    return np.ones(16_000_000, np.float32).sum()  # 64 MB
touch()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    touch()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(mode):
    run = subprocess.run([sys.executable, "-c", CODE, mode], capture_output=True, text=True, timeout=60)
    if run.returncode == 3:
        pytest.skip("the C library has no mallopt")
    assert run.returncode == 0, run.stderr
    return int(run.stdout)


@pytest.mark.slow
def test_kept_memory_is_used_again():
    assert faults("keep") < 100


def test_without_glibc_it_says_no(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    assert reuse_memory() is False
