"""Train and test RIAD: python run.py, with no arguments on MNIST; --help lists every option.

Writes to --output (default: this folder) Checkpoint/{base,model_0_finepoch,model_1_best_loss,model_2_best_*}.pth,
results_tr/ (history, masks, pictures of each epoch), results_te/ (scores and pictures of each saved network) and
result.json; with --report, report.html too.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common.cli import answer_early
from riad.options import parse

answer_early(__name__, parse)

import torch

from common import distributed
from common.cli import resumable, say, script
from common.files import UserError, locked, require_writable
from common.images import set_max_pixels
from common.runtime import autocast, pick_device, reuse_memory, seed_all
from riad.source import datamanager, procedure
from riad.source.agent import Agent


def device_of(device: str, gpu: str | None, ngpu: int, cpu: bool, deterministic: bool = False) -> torch.device:
    """The device that --device, --gpu, --ngpu and --cpu name; UserError where they name none."""
    if ngpu > 1 and not torch.distributed.is_torchelastic_launched():
        say(f"using one GPU only ({ngpu} requested): for several, torchrun --nproc_per_node={ngpu} run.py ...")
    try:
        return pick_device(device, gpu, cpu or ngpu == 0, deterministic)
    except UserError as error:
        raise UserError(str(error).replace("--gpu_ids", "--gpu")) from error  # as the option is called here


@script(memory="a smaller --batch, --batch_score, --img_size or --filters, or --precision bf16", several=True)
def main(argv: list[str] | None = None) -> None:
    """Data, training, test."""
    settings = parse(argv)
    set_max_pixels(settings.max_pixels)
    device = device_of(settings.device, settings.gpu, settings.ngpu, settings.cpu, settings.deterministic)
    device = distributed.join(device)
    autocast(device, settings.precision)  # refuses what this device cannot do
    if device.type == "cpu":
        reuse_memory()
    with distributed.first_alone():
        data, settings = datamanager.load(settings)
        for folder in (procedure.PATH_CKPT, "results_tr/gen", "results_te"):
            require_writable(settings.output / folder)
    say(
        f"{data.data}: {len(data.train)} good images to train on, {len(data.validation.images)} to validate, "
        f"{len(data.test.images)} to test; {settings.img_size} x {settings.img_size}, {settings.algorithm}, {device}"
    )
    seed_all(settings.seed)
    agent = Agent(settings, data.channels, device)
    state = settings.output / procedure.PATH_CKPT / procedure.STATE
    with locked(settings.output), resumable(state, argv, settings.resume):
        history = procedure.training(settings, data, agent)
        procedure.test(settings, data, agent, history)


if __name__ == "__main__":
    sys.exit(main())
