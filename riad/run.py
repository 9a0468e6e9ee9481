"""Train and test RIAD: python run.py, with no arguments on MNIST; --help lists every option.

Writes to --output (default: this folder) Checkpoint/{base,model_0_finepoch,model_1_best_loss,model_2_best_*}.pth,
results_tr/ (history, masks, pictures of each epoch), results_te/ (scores and pictures of each saved network) and
result.json; with --report, report.html too.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from common import distributed
from common.cli import command_to_continue, say, script
from common.files import UserError, locked, require_writable
from common.images import set_max_pixels
from common.runtime import autocast, pick_device, reuse_memory, seed_all
from riad.source import datamanager, options, procedure
from riad.source.agent import Agent


def device_of(gpu: str | None, ngpu: int, cpu: bool, deterministic: bool = False) -> torch.device:
    """The device that --gpu, --ngpu and --cpu name; UserError where they name none."""
    if ngpu > 1 and not torch.distributed.is_torchelastic_launched():
        say(f"one GPU computes, not --ngpu {ngpu}: for several, torchrun --nproc_per_node={ngpu} run.py ...")
    try:
        cpu = cpu or ngpu == 0
        gpu = "0" if gpu is None and not cpu else gpu
        return pick_device(gpu_ids=gpu, cpu=cpu, deterministic=deterministic)
    except UserError as error:
        raise UserError(str(error).replace("--gpu_ids", "--gpu")) from error  # as the option is called here


@script(memory="a smaller --batch, --batch_score, --img_size or --filters, or --precision bf16", several=True)
def main(argv: list[str] | None = None) -> None:
    """Data, training, test."""
    settings = options.parse(argv)
    set_max_pixels(settings.max_pixels)
    device = distributed.join(device_of(settings.gpu, settings.ngpu, settings.cpu, settings.deterministic))
    autocast(device, settings.precision)  # refuses what this device cannot do
    if device.type == "cpu":
        reuse_memory()
    with distributed.first_alone():
        data = datamanager.load(settings)
        options.check_size(settings)
        for folder in (procedure.PATH_CKPT, "results_tr/gen", "results_te"):
            require_writable(settings.output / folder)
    say(
        f"{data.data}: {len(data.train)} good images to train on, {len(data.validation.images)} to validate, "
        f"{len(data.test.images)} to test; {settings.img_size} x {settings.img_size}, {settings.algorithm}, {device}"
    )
    seed_all(settings.seed)
    agent = Agent(settings, data.channels, -(-len(data.train) // settings.batch), device)
    with locked(settings.output):
        try:
            history = procedure.training(settings, data, agent)
            procedure.test(settings, data, agent, history)
        except KeyboardInterrupt:
            command = command_to_continue(argv, settings.resume)
            say(f"stopped; what is saved is in {settings.output / procedure.PATH_CKPT}. To continue: {command}")
            raise


if __name__ == "__main__":
    sys.exit(main())
