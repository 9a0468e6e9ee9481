"""Does every method do on this GPU what it does on the CPU? python benchmarks/gpu_check.py

For each method and precision: the loss of a training step and the outputs on the device against the CPU's in float32
(BOUNDS, as shares of the largest value), a training by the method's own script that is resumed, scoring, ONNX export,
torchrun on one process, and a step's time with its share of the machine's peak. Once for all: NCCL, by gradients that
DistributedDataParallel averages. Ends with a table and <output>; exit status 1 where anything differs or fails. With
--device cpu all of it runs at tiny sizes, against the CPU's other memory layout.
"""

import importlib.util
import shlex
import sys
import tempfile
from argparse import Namespace
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.scripts import PROGRAMS, commands
from common.cli import ArgumentParser, answer_early, say, script
from common.files import UserError, require_writable, write_json

CHECKS = ("step", "resume", "scoring", "export", "torchrun", "speed")
PRECISIONS = ("fp32", "fp16", "bf16")
# The largest difference to the CPU in float32, as a share of the largest value: 10 (fp16) and 7 (bf16) bits of a
# number's fraction are kept, and errors add up over some tens of layers (bf16 on a CPU: up to 0.01).
BOUNDS = {"fp32": 1e-3, "fp16": 1e-2, "bf16": 5e-2}
DATA = "common/demo_data.py --output {at}/data --size 64 --train 8 --good 3 --defective 1"
BOARDS = "crrn/demo_boards.py --output {at}/data --boards 40"
EXPORTS = {
    "csflow": "csflow/export.py --output_path {at}/run --modelname m --output {out}.onnx",
    "memae": "memae/script_export.py --DataRoot {at}/data --Dataset frames --ModelRoot {at}/run --MemDim 8 --Size 16 "
    "--output {out}.onnx",
    "crn": "crn/export.py --model-input {at}/run/last.ckpt --output {out}.onnx",
    "riad": "riad/export.py --checkpoint {at}/run/Checkpoint/model_0_finepoch.pth --output {out}.onnx",
}
ITEMS = {"crrn": "{at}/data", "memae": ""}  # what is scored; others: {at}/data/brick/test


def parse(argv: list[str] | None = None) -> Namespace:
    """The options."""
    parser = ArgumentParser(
        description="Check every method on a GPU against the CPU.",
        example="python benchmarks/gpu_check.py --only csflow --precisions bf16",
    )
    add = parser.add_argument_group("what to check").add_argument
    add("--only", nargs="+", choices=PROGRAMS, default=list(PROGRAMS), help="methods")
    add("--checks", nargs="+", choices=CHECKS, default=CHECKS, help="what to check")
    add("--precisions", nargs="+", choices=PRECISIONS, default=PRECISIONS, help="fp16 is left out on a CPU")
    add = parser.add_argument_group("machine and files").add_argument
    add("--device", default="auto", help="auto, cuda, cuda:1 or cpu")
    add("--output", type=Path, default=Path(__file__).parent / "results/gpu_check.json", help="file of the results")
    return parser.parse_args(argv)


answer_early(__name__, parse)

import numpy as np
import torch
import torch.distributed as dist
from PIL import Image
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from benchmarks import speed
from benchmarks.scripts import table
from common.checkpoint import versions
from common.runtime import pick_device


class SameNumbers(TorchFunctionMode):
    """Within it, random numbers are the CPU's in float32 on every device, in every precision."""

    def __torch_function__(self, function: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if function is torch.rand:
            return torch.rand(*args, **kwargs | {"device": "cpu"}).to(kwargs.get("device", "cpu"))
        if function is Tensor.bernoulli_:
            return args[0].copy_(torch.empty(args[0].shape).bernoulli_(*args[1:], **kwargs))
        return function(*args, **kwargs)


def wake(network: nn.Module) -> None:
    """Values where new networks have zeros and ones, so that every layer counts."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, value in [*network.named_parameters(), *network.named_buffers()]:
            if "running_mean" in name:  # negative: after a ReLU, something is left
                value.copy_(torch.randn(value.shape, generator=generator) * 0.1 - 0.5)
            elif "gamma" in name:
                value.copy_(torch.randn(value.shape, generator=generator) * 0.1)
            elif "running_var" in name:
                value.copy_(torch.rand(value.shape, generator=generator) + 0.5)


def numbers(method: str, device: str, precision: str, layout: str) -> list[list[Tensor]]:
    """Outputs of a new network and the loss of a training step, of the same weights and inputs on each device."""
    torch.manual_seed(0)
    work = speed.WORKS[method](speed.Where(torch.device(device), precision, layout), **speed.TINY[method])
    wake(work.network)
    found = []
    for function in (work.scoring, work.step):
        torch.manual_seed(1)
        with SameNumbers():
            leaves = [x for x in tree_leaves(function()) if isinstance(x, Tensor)]
        found.append([x.double().cpu() for x in leaves])
    return found


def difference(method: str, device: str, precision: str) -> list[float]:
    """Of the outputs and of the loss to the CPU's in float32, as shares of their largest value."""
    theirs, ours = numbers(method, "cpu", "fp32", "contiguous"), numbers(method, device, precision, "channels_last")
    pairs = [list(zip(some, others, strict=True)) for some, others in zip(ours, theirs)]
    return [max(((x - y).abs().max() / y.abs().max()).item() for x, y in pair) for pair in pairs]


def step(method: str, device: torch.device, precision: str) -> str:
    """Outputs and loss within the bound; ValueError where not."""
    outputs, loss = speed.alone(difference, method, str(device), precision)
    found = f"outputs {outputs:.1e}, loss {loss:.1e}"
    if not max(outputs, loss) <= BOUNDS[precision]:  # nan is not, either
        raise ValueError(f"{found} off, more than {BOUNDS[precision]:.0e}")
    return found


def make_data(method: str, at: Path) -> None:
    """What the method's scripts train on, in at/data."""
    if method == "memae":  # moving stripes
        for part in ("Train/a", "Train/b", "Test/c"):
            (folder := at / "data/frames" / part).mkdir(parents=True)
            for k in range(18):
                rows = 128 + 80 * np.sin((np.arange(16) + k) * 0.8)
                Image.fromarray(np.tile(rows, (16, 1)).astype(np.uint8)).save(folder / f"{k + 1:03d}.jpg")
        return
    for command in commands([BOARDS if method == "crrn" else DATA], at=at):
        speed.run_quietly(*command)


class Scripts:
    """The method's own scripts in a folder that holds the data, where a training of theirs is tiny."""

    def __init__(self, method: str, device: torch.device, precision: str, at: Path):
        self.method, self.program = method, PROGRAMS[method]
        self.values = {
            "at": at, "device": device, "precision": precision, "out": at / "out",
            "items": ITEMS.get(method, "{at}/data/brick/test").format(at=at),
        }  # fmt: skip

    def run(self, *lines: str, before: tuple[str, ...] = (), **values: Any) -> None:
        """The commands; before: words between python and the script."""
        for command in commands(lines, **self.values | values, size=self.program.tiny.split()):
            speed.run_quietly(*before, *command)

    def resume(self) -> str:
        """An epoch, then another one: the script says that it goes on, and loses nothing on the way."""
        self.run(self.program.train, epochs=1)
        (command,) = commands([self.program.train], **self.values, epochs=2, size=self.program.tiny.split())
        if "resuming" not in speed.output_of(*command):
            raise ValueError(f"the second epoch did not resume: {shlex.join(command)}")
        return "resumed"

    def scoring(self) -> str:
        """Of what `resume` has trained."""
        self.run(*self.program.score)
        return "scored"

    def export(self) -> str:
        """To ONNX, of what `resume` has trained, where that exists and the packages are there."""
        if self.method not in EXPORTS:
            return "has none"
        if missing := [name for name in ("onnx", "onnxscript", "onnxruntime") if not importlib.util.find_spec(name)]:
            return f"not checked: no {missing[0]}"
        self.run(EXPORTS[self.method])
        return "exported"

    def torchrun(self) -> str:
        """One process, which computes all."""
        launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=1")
        with tempfile.TemporaryDirectory() as other:
            (Path(other) / "data").symlink_to(self.values["at"] / "data")
            self.run(self.program.train, before=launcher, at=other, epochs=1)
        return "trained"


def timed(method: str, device: torch.device, precision: str) -> str:
    """A step at the papers' sizes, on a CPU tiny, in the better layout."""
    sizes = (speed.TINY if device.type == "cpu" else speed.LARGE).get(method, {})
    cases = [(method, "step", precision, layout, str(device), sizes, 5, 0) for layout in speed.LAYOUTS]
    best = min((speed.alone(speed.measure, case) for case in cases), key=lambda result: result["median_s"])
    return f"{1000 * best['median_s']:.1f} ms, {best['share_of_peak']:.0%} of peak, {best['layout']}"


def reduced(device: str, file: str) -> float:
    """The gradient that DistributedDataParallel averages over one process, by NCCL on a GPU; 3 where it is right."""
    backend = "nccl" if device.startswith("cuda") else "gloo"
    dist.init_process_group(backend, init_method=f"file://{file}", rank=0, world_size=1)
    model = nn.parallel.DistributedDataParallel(nn.Linear(1, 1, bias=False).to(device))
    model(torch.full((1, 1), 3.0, device=device)).sum().backward()
    value = model.module.weight.grad.item()
    dist.destroy_process_group()
    return value


def communication(device: torch.device) -> str:
    """`reduced`; ValueError where it is wrong."""
    with tempfile.TemporaryDirectory() as folder:
        if (value := speed.alone(reduced, str(device), f"{folder}/meeting")) != 3:
            raise ValueError(f"a gradient of 3 arrives as {value}")
    return "right"


def checked(results: list[dict[str, str]], about: dict[str, str], check: Callable[[], str]) -> bool:
    """Whether the check passes; adds what it has found, or its error in one line, to the results."""
    try:
        passed, found = True, check()
    except Exception as error:  # whatever a GPU's libraries raise: the other checks go on
        passed, found = False, " ".join(f"{type(error).__name__}: {error}".split())[:300]
    result = "FAILED" if not passed else "left out" if found.startswith("not checked") else "ok"
    results.append({**about, "result": result, "found": found})
    say(f"{' '.join(about.values())}: {'' if passed else 'FAILED, '}{found}")
    return passed


@script
def main(argv: list[str] | None = None) -> int:
    """Check all, one after the other; 1 where something differs or fails."""
    options = parse(argv)
    require_writable(options.output.parent)
    device = pick_device(options.device)
    if device.type not in ("cuda", "cpu"):
        raise UserError(f"checks work on CUDA GPUs and the CPU, not on {device.type}: --device cpu")
    precisions = [name for name in options.precisions if name != "fp16" or device.type == "cuda"]
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    results: list[dict[str, str]] = []
    if "torchrun" in options.checks:
        about = {"method": "all", "precision": "fp32", "check": "gradients of several processes"}
        checked(results, about, partial(communication, device))
    for method in options.only:
        for precision in precisions:
            with tempfile.TemporaryDirectory() as at:
                scripts, sound = Scripts(method, device, precision, Path(at)), True
                steps: dict[str, Callable[[], str]] = {"step": partial(step, method, device, precision)}
                steps |= {check: getattr(scripts, check) for check in CHECKS[1:5]}
                steps["speed"] = partial(timed, method, device, precision)
                if set(options.checks) & set(CHECKS[1:5]):
                    make_data(method, Path(at))
                for check in [check for check in CHECKS if check in options.checks]:
                    if check in ("scoring", "export") and not ("resume" in options.checks and sound):
                        continue  # nothing is trained
                    about = {"method": method, "precision": precision, "check": check}
                    passed = checked(results, about, steps[check])
                    sound = passed if check == "resume" else sound
    for line in table(list(results[0]) if results else [], [list(result.values()) for result in results]):
        say(line)
    write_json(options.output, {"device": name, "versions": versions(), "bounds": BOUNDS, "checks": results})
    count = Counter(result["result"] for result in results)
    left_out = f", {count['left out']} left out" * bool(count["left out"])
    say(f"{name}: {count['ok']} of {len(results)} checks passed{left_out}; {options.output}")
    return int(count["FAILED"] > 0)


if __name__ == "__main__":
    sys.exit(main())
