"""How fast is each method here, and how near to what the machine can do at all: python benchmarks/speed.py

For every method, one training step and scoring, in each precision and memory layout: the median of at least 5
repetitions with the fastest and the slowest, peak memory, and the share of the machine's own peak: floating-point
operations per second (torch.utils.flop_counter) over those of a large convolution, measured in the same process before
and after. Writes a table and <output>.json. --only csflow crrn; --large takes the papers' sizes, for a GPU.
"""

import math
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from common.checkpoint import versions
from common.cli import PRECISIONS, ArgumentParser, say, script
from common.files import UserError, require_writable, write_json
from common.runtime import DTYPES, autocast, pick_device, reuse_memory

LAYOUTS = ("contiguous", "channels_last")
TASKS = ("step", "scoring")
Work = tuple[Callable[[], object], Callable[[], object], int]  # a training step, a scoring, and how much that scores


def csflow(
    device: torch.device, precision: str, layout: str, image: int = 512, blocks: int = 1, hidden: int = 512, batch=16
) -> Work:
    """Features of EfficientNet-B5 at three scales, kernel 3, in the last block 5."""
    from csflow.config import Config
    from csflow.model import N_FEAT, get_cs_flow_model
    from csflow.utils import get_loss, image_scores

    model = get_cs_flow_model(Config(n_coupling_blocks=blocks, fc_internal=hidden), N_FEAT["effnetB5"]).to(device)
    model.to(memory_format=_format(layout, 4))
    optimizer = torch.optim.Adam(model.parameters(), 2e-4, eps=1e-4, weight_decay=1e-5, fused=True)
    x = [_random((batch, 304, image // 32 >> s, image // 32 >> s), device, layout) for s in range(3)]

    def step():
        with autocast(device, precision):
            z, log_det = model(x)
        loss = get_loss(z, log_det)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    @torch.no_grad()
    def scoring():
        with autocast(device, precision):
            return image_scores(model(x)[0])

    return step, scoring, batch


def crrn(
    device: torch.device, precision: str, layout: str, height: int = 61, width: int = 77, boards: int = 20, batch=5
) -> Work:
    """ConvConjLSTM, 2 layers; boards: of a cycle."""
    from crrn.checkpoints import CHANNELS, KERNELS
    from crrn.model.ConvRRN import ST_EncDec

    model = ST_EncDec("ConvConjLSTM", CHANNELS, KERNELS, 2).to(device)
    model.to(memory_format=_format(layout, 4))
    optimizer = torch.optim.Adam(model.parameters(), 1e-4, weight_decay=1e-5, fused=True)
    x = torch.randn(batch, boards, 1, height, width, device=device)

    def step():
        model.train()
        with autocast(device, precision):
            output = model(x, 0.25)
        loss = F.mse_loss(output.float(), x)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()

    @torch.no_grad()
    def scoring():
        model.eval()
        with autocast(device, precision):
            return x - model(x).float()

    return step, scoring, batch


def memae(
    device: torch.device, precision: str, layout: str, image: int = 128, frames: int = 16, items: int = 2000, batch=2
) -> Work:
    """conv3d with its memory."""
    from memae.models import AutoEncoderCov3DMem, EntropyLossEncap
    from memae.utils import clip_errors

    model = AutoEncoderCov3DMem(1, items).to(device)
    model.to(memory_format=_format(layout, 5))
    optimizer = torch.optim.Adam(model.parameters(), 1e-4, fused=True)
    x = _random((batch, 1, frames, image, image), device, layout)

    def step():
        model.train()
        with autocast(device, precision):
            out = model(x)
        loss = F.mse_loss(out["output"].float(), x) + 0.0002 * EntropyLossEncap()(out["att"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    @torch.no_grad()
    def scoring():
        model.eval()
        with autocast(device, precision):
            return clip_errors(model(x)["output"], x, "MemAE")

    return step, scoring, batch


def crn(device: torch.device, precision: str, layout: str, image: int = 128, units: int = 2, batch=8, depth=7) -> Work:
    """Improved units with batch norm."""
    from crn.training.crn import CompetitiveReconstructionNetwork

    model = CompetitiveReconstructionNetwork(units, depth).to(device)
    model.to(memory_format=_format(layout, 4))
    optimizers = [torch.optim.Adam(unit.parameters(), 1e-4, fused=True) for unit in model.competitive_units]
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
    x = _random((batch, 3, image, image), device, layout).clamp(-1, 1)

    def step():
        model.train()
        model.training_step(x, optimizers, (0, units - 1), scaler, lambda: autocast(device, precision))
        model.choose_best()

    @torch.no_grad()
    def scoring():
        model.eval()
        with autocast(device, precision):
            return model.scores(x)["validation"]

    return step, scoring, batch


def riad(device: torch.device, precision: str, layout: str, image: int = 28, batch=16, scored: int = 1000) -> Work:
    """Seed variant: a batch in all six slices. run.py trains contiguous; scoring is channels last by itself."""
    from riad.source import options
    from riad.source.agent import Agent

    settings = options.parse(["--mode_optim", "adam", "--precision", precision, "--batch", str(batch)])
    settings.img_size = image
    agent = Agent(settings, 1, 100, device)
    agent.network.to(memory_format=_format(layout, 4))
    images = torch.randint(256, (scored, 1, image, image), dtype=torch.uint8)

    def step():
        agent.train_batch(images[:batch], torch.arange(batch), 0, 0)

    def scoring():
        return [agent.score(part)[1] for part in images.split(settings.batch_score)]

    return step, scoring, scored


METHODS = {"csflow": csflow, "crrn": crrn, "memae": memae, "crn": crn, "riad": riad}
# The papers' sizes, for a GPU; the defaults are those that the authors' code was timed at on two cores.
LARGE = {
    "csflow": {"image": 768, "blocks": 4, "hidden": 1024},
    "memae": {"image": 256, "batch": 14},
    "crn": {"units": 12, "batch": 64},
}


def _format(layout: str, dimensions: int) -> torch.memory_format:
    if layout == "contiguous":
        return torch.contiguous_format
    return torch.channels_last if dimensions == 4 else torch.channels_last_3d


def _random(shape: tuple[int, ...], device: torch.device, layout: str) -> torch.Tensor:
    return torch.randn(shape, device=device).to(memory_format=_format(layout, len(shape)))


def seconds(work: Callable[[], object], device: torch.device, repeats: int) -> list[float]:
    """Durations of `repeats` calls, after one to warm up, each until the device has finished."""

    def finished() -> None:
        if device.type != "cpu":
            torch.accelerator.synchronize(device)

    work()
    durations = []
    for _ in range(repeats):
        finished()
        started = time.perf_counter()
        work()
        finished()
        durations.append(time.perf_counter() - started)
    return durations


def peak(device: torch.device, precision: str) -> float:
    """Floating-point operations per second of a large 5 x 5 convolution, the best of 5 and of both layouts."""
    side, batch = (64, 64) if device.type == "cuda" else (64, 4)
    autocast(device, precision)  # tf32 or not; the numbers have their precision themselves
    best = 0.0
    for layout in LAYOUTS:
        x = _random((batch, 256, side, side), device, layout).to(DTYPES[precision])
        weight = _random((256, 256, 5, 5), device, layout).to(DTYPES[precision])
        with torch.no_grad():
            fastest = min(seconds(lambda: F.conv2d(x, weight, padding=2), device, 5))  # noqa: B023
        best = max(best, 2 * batch * side**2 * 256**2 * 25 / fastest)
    return best


def memory(device: torch.device) -> float:
    """Peak memory in GiB: of the GPU's tensors, else of the process (Linux; nan elsewhere)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return math.nan
    return int(status.split("VmHWM:")[1].split()[0]) / 2**20


Case = tuple[str, str, str, str, str, dict[str, int], int, int]


def measure(case: Case) -> dict[str, object]:
    """One case: method, task, precision, layout, device, sizes, repeats and threads (0: PyTorch's choice)."""
    method, task, precision, layout, device_name, sizes, repeats, threads = case
    if threads:
        torch.set_num_threads(threads)
    reuse_memory()
    torch.manual_seed(0)
    device = torch.device(device_name)
    if device.index is not None:
        torch.accelerator.set_device_index(device.index)
    step, scoring, items = METHODS[method](device, precision, layout, **sizes)
    work = step if task == "step" else scoring
    before = peak(device, precision)
    durations = seconds(work, device, repeats)
    after = peak(device, precision)
    with FlopCounterMode(display=False) as counter:
        work()
    operations, median = counter.get_total_flops(), statistics.median(durations)
    return {
        "method": method, "task": task, "precision": precision, "layout": layout, "sizes": sizes, "items": items,
        "median_s": median, "min_s": min(durations), "max_s": max(durations), "repeats": repeats,
        "gflop": operations / 1e9, "gflops": operations / median / 1e9, "peak_gflops": max(before, after) / 1e9,
        "share_of_peak": operations / median / max(before, after), "memory_gib": memory(device),
        "threads": torch.get_num_threads(),
    }  # fmt: skip


def alone(case: Case) -> dict[str, object]:
    """`measure` in a process of its own: its peak memory is its own, and nothing that was allocated before helps it."""
    return in_own_process(measure, case)


def in_own_process(function: Callable, *arguments: object) -> Any:
    """What the function returns in a new process. UserError where that dies, as for lack of memory."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(function, *arguments).result()
        except BrokenProcessPool as error:
            raise UserError("the process that measures died: killed, perhaps for lack of memory") from error


HEADER = (
    "| method | task | precision | layout | median | min to max | GFLOP/s | of peak | memory |\n" + "|---" * 9 + "|"
)


def line(result: dict) -> str:
    """One row of the table."""
    low, high = result["min_s"], result["max_s"]
    return (
        f"| {result['method']} | {result['task']} | {result['precision']} | {result['layout']} "
        f"| {result['median_s']:.3f} s | {low:.3f} to {high:.3f} s "
        f"| {result['gflops']:.0f} | {result['share_of_peak']:.0%} | {result['memory_gib']:.1f} GiB |"
    )


@script
def main(argv: list[str] | None = None) -> None:
    """Measure all cases, one process after the other."""
    parser = ArgumentParser(
        description="Time training steps and scoring of the methods.",
        example="python benchmarks/speed.py --only crn riad --tasks step --precisions fp32",
    )
    add = parser.add_argument_group("what to time").add_argument
    add("--only", nargs="+", choices=METHODS, default=list(METHODS), help="methods")
    add("--tasks", nargs="+", choices=TASKS, default=list(TASKS), help="what to time")
    add("--precisions", nargs="+", choices=PRECISIONS, default=["fp32", "bf16"], help="of the networks")
    add("--layouts", nargs="+", choices=LAYOUTS, default=list(LAYOUTS), help="of the memory")

    add = parser.add_argument_group("machine and files").add_argument
    add("--repeats", type=int, default=5, help="timed repetitions of each case")
    add("--threads", type=int, default=0, help="threads on a CPU; 0: PyTorch's choice")
    add("--large", action="store_true", help="the papers' sizes instead of those that fit two cores")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:1")
    add("--output", type=Path, default=Path(__file__).parent / "results/speed.json", help="file of the results")
    options = parser.parse_args(argv)
    if options.repeats < 5:
        raise UserError(f"--repeats {options.repeats}: expected at least 5, fewer say nothing")
    if not 0 <= options.threads <= 1024:
        raise UserError(f"--threads {options.threads}: expected 0 to 1024")
    if options.output.is_dir():
        raise UserError(f"--output {options.output} is a folder: give a file")
    require_writable(options.output.parent)
    device = pick_device(options.device)
    if device.type != "cuda" and (wrong := {"fp16", "tf32"} & set(options.precisions)):
        raise UserError(f"--precisions {' '.join(sorted(wrong))} needs an NVIDIA GPU: use fp32 and bf16 elsewhere")
    sizes = LARGE if options.large else {}
    cases = [
        (method, task, precision, layout, str(device), sizes.get(method, {}), options.repeats, options.threads)
        for method in options.only
        for precision in options.precisions
        for layout in options.layouts
        for task in options.tasks
    ]
    say(HEADER)
    results = []
    for case in cases:
        results.append(alone(case))
        say(line(results[-1]))
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    write_json(options.output, {"device": name, "versions": versions(), "large": options.large, "cases": results})
    say(f"results: {options.output}")


if __name__ == "__main__":
    sys.exit(main())
