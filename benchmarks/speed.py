"""How fast is each method here, and how near to what the machine can do at all: python benchmarks/speed.py

For every method, one training step and scoring, in each precision and memory layout: the median of at least 5
repetitions with the fastest and the slowest, peak memory, and the share of the machine's own peak: floating-point
operations per second (torch.utils.flop_counter) over those of a large convolution, measured in the same process before
and after; an asterisk marks the best layout. Then what users wait for besides: CS-Flow's feature extraction, whole
scoring programs with and without pictures, --help. Beside each number stands that of the run recorded before (--before)
with the same sizes, threads and device. Writes a table and <output>. --only csflow crrn; --large takes the papers'
sizes, for a GPU.
"""

import math
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.scripts import PROGRAMS, ROOT, commands
from common.cli import PRECISIONS, ArgumentParser, answer_early, say, script, whole
from common.files import UserError, read_json, require_writable, write_json

METHODS = ("csflow", "crrn", "memae", "crn", "riad")
NETWORK = ("step", "scoring")  # in each precision and layout
TASKS = (*NETWORK, "features", "program", "help")
SCORED = ("csflow", "crn", "riad")  # whose scoring program is timed
LAYOUTS = ("contiguous", "channels_last")


def parse(argv: list[str] | None = None) -> Namespace:
    """The options."""
    parser = ArgumentParser(
        description="Time training steps and scoring of the methods.",
        example="python benchmarks/speed.py --only crn riad --tasks step --precisions fp32",
    )
    add = parser.add_argument_group("what to time").add_argument
    add("--only", nargs="+", choices=METHODS, default=METHODS, help="methods")
    add("--tasks", nargs="+", choices=TASKS, default=TASKS, help="what to time")
    add("--precisions", nargs="+", choices=PRECISIONS, default=["fp32", "bf16"], help="of the networks")
    add("--layouts", nargs="+", choices=LAYOUTS, default=LAYOUTS, help="of the memory")

    add = parser.add_argument_group("machine and files").add_argument
    add("--repeats", type=whole(5), default=5, help="timed repetitions of each case")
    add("--threads", type=whole(0, 1024), default=0, help="threads on a CPU; 0: PyTorch's choice")
    add("--large", action="store_true", help="the papers' sizes instead of those that fit two cores")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:1")
    add("--output", type=Path, default=Path(__file__).parent / "results/speed.json", help="file of the results")
    add("--before", type=Path, help="results of a run to compare with; unset: those that --output holds")
    options = parser.parse_args(argv)
    if options.output.is_dir():
        raise UserError(f"--output {options.output} is a folder: give a file")
    if options.before and not options.before.is_file():
        raise UserError(f"--before {options.before} is no file: give the results of an earlier run")
    return options


answer_early(__name__, parse)

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from common.checkpoint import versions
from common.runtime import DTYPES, autocast, pick_device, reuse_memory


class Where(NamedTuple):
    """How a network computes."""

    device: torch.device
    precision: str
    layout: str

    def put(self, what: Any, dimensions: int = 4) -> Any:
        """A network or tensor, on the device and in the layout for images (4 dimensions) or videos (5)."""
        layout = torch.channels_last if dimensions == 4 else torch.channels_last_3d
        return what.to(self.device, memory_format=layout if self.layout == "channels_last" else torch.contiguous_format)

    def random(self, *shape: int) -> Tensor:
        """Numbers of a normal distribution."""
        return self.put(torch.randn(shape), len(shape))  # of the CPU: the same on each device

    def autocast(self) -> torch.autocast:
        """In the precision."""
        return autocast(self.device, self.precision)


class Work(NamedTuple):
    """What is timed: a step -> its loss, a scoring -> its outputs, and how many images, cycles or clips that scores."""

    step: Callable[[], object]
    scoring: Callable[[], object]
    items: int
    network: nn.Module


def work(
    where: Where, model: nn.Module, forward: Callable, loss: Callable, score: Callable, items: int, clip=0.0, **adam
) -> Work:
    """The usual step, by Adam; forward() -> output, loss(output), score(output); clip: norm of the gradients."""
    optimizer = torch.optim.Adam(model.parameters(), fused=True, **adam)

    def step():
        model.train()
        with where.autocast():
            output = forward()
        value = loss(output)
        optimizer.zero_grad()
        value.backward()
        if clip:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        return value.detach()

    @torch.no_grad()
    def scoring():
        model.eval()
        with where.autocast():
            return score(forward())

    return Work(step, scoring, items, model)


def csflow(where: Where, image: int = 512, blocks: int = 1, hidden: int = 512, batch: int = 16) -> Work:
    """Features of EfficientNet-B5 at three scales, kernel 3, in the last block 5."""
    from csflow.config import complete
    from csflow.model import N_FEAT, get_cs_flow_model
    from csflow.utils import get_loss, image_scores

    settings = complete({"n_coupling_blocks": blocks, "fc_internal": hidden})
    model = where.put(get_cs_flow_model(N_FEAT["effnetB5"], **settings.flow))
    x = [where.random(batch, 304, image // 32 >> s, image // 32 >> s) for s in range(3)]
    adam = {"lr": 2e-4, "eps": 1e-4, "weight_decay": 1e-5}
    return work(
        where, model, lambda: model(x), lambda out: get_loss(*out), lambda out: image_scores(out[0]), batch, 1.0, **adam
    )


def crrn(where: Where, height: int = 61, width: int = 77, boards: int = 20, batch: int = 5) -> Work:
    """ConvConjLSTM, 2 layers; boards: of a cycle."""
    from crrn.checkpoints import CHANNELS, KERNELS
    from crrn.model.ConvRRN import ST_EncDec

    model = where.put(ST_EncDec("ConvConjLSTM", CHANNELS, KERNELS, 2))
    x = torch.randn(batch, boards, 1, height, width).to(where.device)

    def forward():
        return model(x, 0.25) if model.training else model(x)

    adam = {"lr": 1e-4, "weight_decay": 1e-5}
    return work(
        where, model, forward, lambda out: F.mse_loss(out.float(), x), lambda out: x - out.float(), batch, 0.5, **adam
    )


def memae(where: Where, image: int = 128, frames: int = 16, items: int = 2000, batch: int = 2) -> Work:
    """conv3d with its memory."""
    from memae.models import AutoEncoderCov3DMem, EntropyLossEncap
    from memae.utils import clip_errors

    model = where.put(AutoEncoderCov3DMem(1, items), 5)
    x = where.random(batch, 1, frames, image, image)

    def loss(out):
        return F.mse_loss(out["output"].float(), x) + 0.0002 * EntropyLossEncap()(out["att"])

    def score(out):
        return clip_errors(out["output"], x, "MemAE")

    return work(where, model, lambda: model(x), loss, score, batch, lr=1e-4)


def crn(where: Where, image: int = 128, units: int = 2, batch: int = 8, depth: int = 7) -> Work:
    """Improved units with batch norm."""
    from crn.training.crn import CompetitiveReconstructionNetwork

    model = where.put(CompetitiveReconstructionNetwork(units, depth))
    optimizers = [torch.optim.Adam(unit.parameters(), 1e-4, fused=True) for unit in model.competitive_units]
    scaler = torch.amp.GradScaler(where.device.type, enabled=where.precision == "fp16")
    x = where.random(batch, 3, image, image).clamp(-1, 1)

    def step():
        model.train()
        found = {}
        for optimizer in optimizers:
            optimizer.zero_grad()
        for g, d in model.orders((0, units - 1)):
            with where.autocast():
                passes = model.passes(x, g, d)
            losses = model.losses(x, *passes)
            scaler.scale(losses["generator"]).backward()
            scaler.scale(losses["discriminator"]).backward()
            found[g, d] = dict(zip(losses, torch.stack([loss.detach() for loss in losses.values()]).tolist()))
        for unit in {0, units - 1}:
            scaler.step(optimizers[unit])
        scaler.update()
        model.finish_step(found)
        return torch.tensor([loss for losses in found.values() for loss in losses.values()])

    @torch.no_grad()
    def scoring():
        model.eval()
        with where.autocast():
            return model.scores(x)["validation"]

    return Work(step, scoring, batch, model)


def riad(where: Where, image: int = 28, batch: int = 16, scored: int = 1000) -> Work:
    """Seed variant: a batch in all six slices. run.py trains contiguous; scoring is channels last by itself."""
    from riad import options
    from riad.source.agent import Agent
    from riad.source.connector import make_optimizer

    settings = options.parse(["--mode_optim", "adam", "--precision", where.precision, "--batch", str(batch)])
    settings.img_size = image
    agent = Agent(settings, 1, where.device)
    optimizer = make_optimizer("adam", agent.network.parameters(), settings.lr, 0.0)
    where.put(agent.network)
    images = torch.randint(256, (scored, 1, image, image), dtype=torch.uint8)

    def step():
        agent.network.train()
        losses = []
        for x, masks in agent.training_passes(images[:batch], torch.arange(batch), 0):
            with where.autocast():
                outputs = agent.inpaint(x, masks)
            losses.append(loss := sum(agent.losses(x, outputs, masks)))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return losses[0].detach()  # of the weights before the first update

    return Work(step, lambda: [agent.score(part) for part in images.split(settings.batch_score)], scored, agent.network)


def features(where: Where, image: int = 512, batch: int = 16) -> Work:
    """CS-Flow's feature extraction, by EfficientNet-Lite0 at three scales, of images that are decoded."""
    from csflow.model import load_extractor

    extractor, x = load_extractor("lite0", None, 3, where.device), torch.randn(batch, 3, image, image).to(where.device)
    return Work(lambda: None, lambda: extractor(x), batch, extractor)


WORKS = {function.__name__: function for function in (csflow, crrn, memae, crn, riad)}
# The papers' sizes, for a GPU; the defaults are those that the authors' code was timed at on two cores.
LARGE = {
    "csflow": {"image": 768, "blocks": 4, "hidden": 1024},
    "memae": {"image": 256, "batch": 14},
    "crn": {"units": 12, "batch": 64},
}


# As small as the networks allow: for tests, and where numbers count rather than times.
TINY = {
    "csflow": {"image": 128, "hidden": 4, "batch": 1},
    "crrn": {"height": 13, "width": 17, "boards": 2, "batch": 1},
    "memae": {"image": 16, "frames": 8, "items": 5, "batch": 2},
    "crn": {"image": 32, "batch": 1, "depth": 3},
    "riad": {"batch": 1, "scored": 2},
}


def seconds(function: Callable[[], object], device: torch.device, repeats: int) -> list[float]:
    """Durations of `repeats` calls, after one to warm up, each until the device has finished."""

    def timed() -> float:
        started = time.perf_counter()
        function()
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        return time.perf_counter() - started

    return [timed() for _ in range(repeats + 1)][1:]


def peak(device: torch.device, precision: str) -> float:
    """Floating-point operations per second of a large 5 x 5 convolution, the best of 5 and of both layouts."""
    side, batch = (64, 64) if device.type == "cuda" else (64, 4)
    autocast(device, precision)  # tf32 or not; the numbers have their precision themselves
    best = math.inf
    for layout in LAYOUTS:
        where = Where(device, precision, layout)
        x, weight = (where.random(n, 256, s, s).to(DTYPES[precision]) for n, s in ((batch, side), (256, 5)))
        with torch.no_grad():
            best = min(best, *seconds(lambda: F.conv2d(x, weight, padding=2), device, 5))  # noqa: B023
    return 2 * batch * side**2 * 256**2 * 25 / best


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
    what = (features if task == "features" else WORKS[method])(Where(device, precision, layout), **sizes)
    function = what.step if task == "step" else what.scoring
    before = peak(device, precision)
    durations = seconds(function, device, repeats)
    highest = max(before, peak(device, precision))
    with FlopCounterMode(display=False) as counter:
        function()
    operations, median = counter.get_total_flops(), statistics.median(durations)
    return {
        "method": method, "task": task, "precision": precision, "layout": layout, "sizes": sizes, "items": what.items,
        **summary(durations), "gflop": operations / 1e9, "gflops": operations / median / 1e9,
        "peak_gflops": highest / 1e9, "share_of_peak": operations / median / highest, "memory_gib": memory(device),
        "threads": torch.get_num_threads(),
    }  # fmt: skip


def summary(durations: list[float]) -> dict[str, float]:
    """What is recorded of repetitions."""
    return {
        "median_s": statistics.median(durations), "min_s": min(durations), "max_s": max(durations),
        "repeats": len(durations),
    }  # fmt: skip


def output_of(*command: object, threads: int = 0) -> str:
    """What a script of this repository prints; UserError with its last line where it fails."""
    environment = os.environ | ({"OMP_NUM_THREADS": str(threads)} if threads else {})
    words = [sys.executable, *map(str, command)]
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()[-1]
        raise UserError(f"{command[0]} ended with status {done.returncode}: {last}")
    return done.stdout


def run_quietly(*command: object, threads: int = 0) -> float:
    """Seconds that such a script takes."""
    started = time.perf_counter()
    output_of(*command, threads=threads)
    return time.perf_counter() - started


# What the timed programs score, and the sizes of the networks that do: as their users on two cores have them.
IMAGES = 48
GENERATED = "common/demo_data.py --output {at}/data --size 128 --train 16 --good {images} --defective 1"
USUAL = {
    "csflow": "--img_size 256 --fc_internal 128",
    "crn": "--imsize 128 --num-competitive-units 2 --batch-size 8",
    "riad": "--img_size 128 --batch 4",
}


def programs(method: str, device: str, sizes: str, images: int, repeats: int, threads: int) -> list[dict[str, object]]:
    """A whole scoring program without and with pictures, from its start to its end: of one image and of `images` more,
    whose difference is what an image takes."""
    results = []
    with tempfile.TemporaryDirectory() as at:
        values = {"at": at, "device": device, "precision": "fp32", "epochs": 1, "images": images + 1}
        program = PROGRAMS[method]
        for command in commands([GENERATED, program.train], **values, size=sizes.split()):
            run_quietly(*command, threads=threads)
        many, one = Path(at, "data/brick/test/good"), Path(at, "one")
        one.mkdir()
        first = min(many.iterdir())
        (one / first.name).write_bytes(first.read_bytes())
        for pictures in ("none", "all"):

            def timed(items: Path) -> float:
                (command,) = commands(program.score, **values, items=items, out=tempfile.mkdtemp(dir=at))
                return run_quietly(*command, "--pictures", pictures, threads=threads)  # noqa: B023

            start = statistics.median(timed(one) for _ in range(repeats))
            durations = [max(0.001, timed(many) - start) for _ in range(repeats)]
            about = {"method": method, "task": f"program, pictures {pictures}", "sizes": sizes, "items": images}
            about["threads"] = threads or torch.get_num_threads()
            results.append({**about, "start_s": start, **summary(durations)})
    return results


def help_text(repeats: int) -> dict[str, object]:
    """The time of --help of one script, which answers before it imports PyTorch."""
    durations = [run_quietly("csflow/main.py", "--help") for _ in range(repeats + 1)][1:]
    return {"method": "csflow", "task": "help", "items": 1, **summary(durations)}


def alone(function: Callable, *arguments: object) -> Any:
    """What the function returns in a new process: its peak memory is its own, and nothing that was allocated before
    helps it. UserError where that dies, as for lack of memory."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(function, *arguments).result()
        except BrokenProcessPool as error:
            raise UserError("the process that measures died: killed, perhaps for lack of memory") from error


HEADER = (
    "| method | task | precision | layout | median | min to max | each | before | GFLOP/s | of peak | memory |\n"
    + 11 * "|---"
    + "|"
)
SAME = ("method", "task", "precision", "layout", "sizes", "items", "threads")


def row(result: dict[str, Any], before: list[dict[str, Any]], best: bool = False) -> str:
    """A line of the table; before: the cases of the recorded run; best: of the layouts."""
    found = [case for case in before if all(case.get(key) == result.get(key) for key in SAME)]
    old = f"{found[0]['median_s']:.3f} s ({result['median_s'] / found[0]['median_s']:.2f} x)" if found else ""
    rate = ["", "", ""]
    if "gflops" in result:
        rate = [f"{result['gflops']:.0f}", f"{result['share_of_peak']:.0%}", f"{result['memory_gib']:.1f} GiB"]
    cells = [
        result["method"], result["task"], result.get("precision", ""), result.get("layout", "") + best * " *",
        f"{result['median_s']:.3f} s", f"{result['min_s']:.3f} to {result['max_s']:.3f} s",
        f"{1000 * result['median_s'] / result['items']:.1f} ms", old, *rate,
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def recorded(path: Path, device: str) -> list[dict[str, Any]]:
    """The cases of an earlier run on this device; none where there is no such file. UserError where it is another's."""
    content = read_json(path) if path.is_file() else {"cases": []}
    cases = content.get("cases") if isinstance(content, dict) else None
    if not isinstance(cases, list) or not all(isinstance(case, dict) and case.get("median_s") for case in cases):
        raise UserError(f"{path} holds no results of speed.py: give another --before, or remove it")
    return cases if content.get("device") == device else []


@script
def main(argv: list[str] | None = None) -> None:
    """Measure all cases, one process after the other."""
    options = parse(argv)
    require_writable(options.output.parent)
    device = pick_device(options.device)
    if device.type != "cuda" and (wrong := {"fp16", "tf32"} & set(options.precisions)):
        raise UserError(f"--precisions {' '.join(sorted(wrong))} needs an NVIDIA GPU: use fp32 and bf16 elsewhere")
    sizes = LARGE if options.large else {}
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    before = recorded(options.before or options.output, name)
    results: list[dict[str, Any]] = []
    ending = (str(device), options.repeats, options.threads)

    def case(method: str, task: str, precision: str, layout: str, sizes: dict[str, int]) -> Case:
        return (method, task, precision, layout, ending[0], sizes, *ending[1:])

    def show(*new: dict[str, Any]) -> None:
        fastest = min(result["median_s"] for result in new)
        for result in new:
            results.append(result)
            say(row(result, before, len(new) > 1 and result["median_s"] == fastest))

    say(HEADER)
    for method in options.only:
        for precision in options.precisions:
            for task in [task for task in NETWORK if task in options.tasks]:
                layouts = options.layouts
                show(*[alone(measure, case(method, task, precision, one, sizes.get(method, {}))) for one in layouts])
    if "features" in options.tasks and "csflow" in options.only:
        show(alone(measure, case("csflow", "features", "fp32", "own", {})))
    for method in [method for method in SCORED if method in options.only and "program" in options.tasks]:
        for result in programs(method, str(device), USUAL[method], IMAGES, 3, options.threads):
            show(result)
    if "help" in options.tasks:
        show(help_text(options.repeats))
    write_json(options.output, {"device": name, "versions": versions(), "large": options.large, "cases": results})
    say(f"results: {options.output}; each: per image, cycle or clip; before: {options.before or 'the run before'}")
    if any("start_s" in result for result in results):
        say("program: the time beyond that of one image, which starts the program; speed.json has it as start_s")


if __name__ == "__main__":
    sys.exit(main())
