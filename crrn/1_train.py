"""Train CRRN to reconstruct clean sequences of boards from corrupted ones: python 1_train.py --mode ConvConjLSTM

Writes <data>/result/<mode>/model_dictionary.pt after every epoch, and training.json with the losses. The same command
continues an interrupted training and ends with the same numbers.
"""

import math
import os
import sys
import time
from argparse import Namespace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
import torch.nn.functional as F

from common import checkpoint, distributed
from common.cli import (
    YES_NO,
    ArgumentParser,
    command_to_continue,
    note,
    notes,
    number_of,
    progress,
    say,
    script,
    stop_on_request,
)
from common.files import UserError, locked, require_writable, write_json
from common.runtime import autocast, channels_last, reuse_memory, seed_all
from crrn.boards import cycle_of, is_synthetic
from crrn.checkpoints import (
    HELD_OUT,
    MODEL_SETTINGS,
    TRAINING_SETTINGS,
    add_model_options,
    build_model,
    check_options,
    load_checkpoint,
    result_folder,
)
from crrn.demo_boards import ensure_prepared
from crrn.preprocess import Prepared
from crrn.utils import corrupt, device_of, draw_sequences, place, reconstruct

TEST_BATCH = 5  # sequences; the test loss is the mean of the batches' losses, as published


def train(options: Namespace, prepared: Prepared, path: Path, device: torch.device) -> None:
    """Train, or continue (options.resume), the model of `path`; leaves checkpoint and training.json there.

    Raises UserError where the checkpoint is damaged or belongs to other settings or boards, or where loss or weights
    are not finite, which are never saved.
    """
    mask = prepared.mask.to(device)
    measured, test_set = None, prepared.test_pcbs
    if options.protocol == "measured":
        measured, test_set, _, _ = prepared.measured_cycles(options.held_out)
        say(f"{number_of(len(measured), 'measured cycle')} to train on, {len(test_set)} held out for testing")
    steps = options.num_instance // options.batch_size

    seed_all(options.seed)
    model = build_model(options).to(device, memory_format=channels_last(device))
    # Unused: ConvSTLSTM's h2m in its first layer.
    network = distributed.parallel(model, unused=options.mode == "ConvSTLSTM", sync_bn=options.sync_bn)
    # fused: the same update in one pass over the parameters, faster on every device
    optimizer = torch.optim.Adam(model.parameters(), options.lr, weight_decay=1e-5, fused=True)
    scaler = torch.amp.GradScaler(device.type, enabled=options.precision == "fp16")
    first_epoch, first_step, loss_sum, train_loss, test_loss = 0, 0, 0.0, [], []
    if path.exists() and options.resume:
        stored = load_checkpoint(path, options, prepared, train=True)
        checkpoint.load_parameters(model, stored["state_dict"], path)
        checkpoint.load_optimizer(optimizer, stored["optimizer"], path)
        first_epoch, first_step, loss_sum = stored["epoch"] + 1, stored.get("step", 0), stored.get("loss_sum", 0.0)
        if first_step > steps:
            raise UserError(f"{path} is damaged: its 'step' is {first_step} of {steps}")
        test_loss = stored["test_loss"]
        train_loss = stored.get("train_loss", [float("nan")] * len(test_loss))  # the authors' files have none
        with checkpoint.using(path, "crrn"):
            checkpoint.load_scaler(scaler, stored.get("scaler") or {})
        before = stored.get("num_epochs") or options.num_epochs
        if before != options.num_epochs and options.init_tr != options.final_tr and first_epoch < options.num_epochs:
            note(f"the teacher ratio followed --num_epochs {before} so far, from here on {options.num_epochs}")
        if first_epoch >= options.num_epochs:
            say(f"{path} is trained for {first_epoch} epochs already (--num_epochs asks for {options.num_epochs})")
        else:
            say(f"continuing {path} after epoch {first_epoch}" + (f", step {first_step}" if first_step else ""))

    def stop_if_not_finite(what: str, value: float, epoch: int, step: int) -> None:
        if not math.isfinite(value):
            raise UserError(
                f"{what} {value} at epoch {epoch + 1}, step {step}: training stops; what is saved in {path.parent} "
                "stays. Try a lower --lr"
            )

    def save(epoch: int, step: int) -> None:
        # A step can spoil the weights after a fine loss.
        sound = 0.0 if checkpoint.finite(model, optimizer) else math.nan
        stop_if_not_finite("the weights are", sound, epoch + bool(step), step or steps)
        checkpoint.save(
            path,
            "crrn",
            epoch=epoch,  # the last finished one
            test_loss=test_loss,
            state_dict=model.state_dict(),
            optimizer=optimizer.state_dict(),
            train_loss=train_loss,
            step=step,  # of the next epoch: those done
            loss_sum=loss_sum,
            scaler=scaler.state_dict(),
            settings={name: getattr(options, name) for name in MODEL_SETTINGS + TRAINING_SETTINGS},
            height=prepared.height,
            width=prepared.width,
            fingerprint=prepared.fingerprint,
            data=_data_name(prepared),
            num_epochs=options.num_epochs,
        )

    with stop_on_request() as stop:
        for epoch in range(first_epoch, options.num_epochs):
            started = time.monotonic()
            if not first_step:
                loss_sum = 0.0
            ratio = teacher_ratio(options, epoch)
            title = f"epoch {epoch + 1}/{options.num_epochs}" + (f" (loss {train_loss[-1]:.4f})" if train_loss else "")
            model.train()
            for step in progress(range(first_step, steps), title):
                # All that is random in a step depends on seed, epoch and step alone: it can be repeated.
                seed_all(((options.seed * 1_000_003 + epoch) * 1_000_003 + step) % 2**63)
                if measured is None:
                    values = draw_sequences(
                        options.batch_size, len(prepared.pad_ids), prepared.mean, prepared.std
                    )  # (B, T, P)
                    clean = place(values, *prepared.pixels, prepared.height, prepared.width)  # (B, T, 1, H, W)
                else:
                    clean = measured[torch.randint(len(measured), (options.batch_size,))]
                clean = clean.to(device)
                corrupted, weight = distributed.weighted_share(corrupt(clean, mask))
                clean, _ = distributed.weighted_share(clean)
                if distributed.rank():  # dropout and teacher forcing of its own
                    torch.manual_seed(torch.initial_seed() + distributed.rank())
                with autocast(device, options.precision):
                    output = network(corrupted, ratio)
                loss = weight * F.mse_loss(output.to(clean.dtype), clean)
                mean = distributed.mean_of(loss.item(), device)
                stop_if_not_finite("the loss is", mean, epoch, step + 1)
                optimizer.zero_grad()
                scaler.scale(loss).backward()
                scaler.unscale_(optimizer)
                torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
                scaler.step(optimizer)
                scaler.update()
                loss_sum += mean
                if distributed.anywhere(stop(), device):
                    save(epoch - 1, step + 1)
                    raise KeyboardInterrupt
            first_step = 0
            train_loss.append(loss_sum / steps)
            test_loss.append(evaluate(model, test_set, device, options.precision))
            stop_if_not_finite("the loss on test sequences is", test_loss[-1], epoch, steps)
            save(epoch, 0)
            seconds = time.monotonic() - started
            left = (options.num_epochs - epoch - 1) * seconds
            say(
                f"epoch {epoch + 1}/{options.num_epochs}: loss {train_loss[-1]:.4f}, on test sequences "
                f"{test_loss[-1]:.4f} (zeros: {_power(test_set):.4f}); teacher ratio {ratio:.3f}, {seconds:.0f} s, "
                f"about {left / 60:.0f} min left"
            )
            if distributed.anywhere(stop(), device):
                raise KeyboardInterrupt
    _write_summary(options, prepared, path, train_loss, test_loss, device)


def teacher_ratio(options: Namespace, epoch: int) -> float:
    """Linear over the epochs, from init_tr in the first to final_tr in the last; a single epoch has init_tr."""
    return options.init_tr + (options.final_tr - options.init_tr) * epoch / max(options.num_epochs - 1, 1)


def evaluate(model: torch.nn.Module, test_set: torch.Tensor, device: torch.device, precision: str) -> float:
    """Mean over batches of the mean squared error of reconstructing clean test sequences, in eval mode."""
    output = reconstruct(model, test_set, TEST_BATCH, device, precision)
    pairs = zip(output.split(TEST_BATCH), test_set.split(TEST_BATCH))
    return sum(F.mse_loss(one, other).item() for one, other in pairs) / -(-len(test_set) // TEST_BATCH)


def _power(test_set: torch.Tensor) -> float:
    """The error of a network that gives nothing but zeros."""
    return (test_set**2).mean().item()


def _data_name(prepared: Prepared) -> str:
    return "synthetic" if is_synthetic(prepared.folder) else str(prepared.folder)


def _write_summary(
    options: Namespace,
    prepared: Prepared,
    path: Path,
    train_loss: list[float],
    test_loss: list[float],
    device: torch.device,
) -> None:
    """training.json: the last and the best test loss, all losses, settings; and a line about them."""
    if not test_loss:
        return
    best = min(range(len(test_loss)), key=test_loss.__getitem__)
    write_json(
        path.with_name("training.json"),
        {
            "method": "CRRN",
            "data": _data_name(prepared),
            "last_test_loss": test_loss[-1],
            "best_test_loss": test_loss[best],
            "best_test_loss_epoch": best + 1,
            "best_test_loss_chosen_on": "test sequences; the saved model is the last",
            "train_loss": train_loss,
            "test_loss": test_loss,
            "device": str(device),
            "settings": {name: getattr(options, name) for name in MODEL_SETTINGS + TRAINING_SETTINGS},
            "notes": notes(),
            "versions": checkpoint.versions(),
        },
    )
    say(
        f"test loss: last {test_loss[-1]:.4f}, best {test_loss[best]:.4f} after epoch {best + 1} (chosen on the test "
        f"sequences; the saved model is the last): {path}"
    )


def use_several_gpus(options: Namespace, argv: list[str]) -> None:
    """Where several GPUs of --gpu_ids are here, start this program anew with a process on each, as torchrun would."""
    present = [number for number in dict.fromkeys(options.gpu_ids) if 0 <= number < torch.cuda.device_count()]
    if options.cpu or len(present) < 2 or torch.distributed.is_torchelastic_launched():
        return
    say(f"training on GPUs {', '.join(map(str, present))}, one process each")
    program = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={len(present)}", __file__, *argv]
    os.execv(sys.executable, [sys.executable, *program])


@script(memory="a smaller --batch_size, or --precision bf16", several=True)
def main(argv: list[str] | None = None) -> None:
    """Train one model; where no preprocessed boards exist, make them first."""
    parser = ArgumentParser(
        description="Train CRRN on the boards of a data set.",
        example="python crrn/1_train.py --data my_boards --cycle 20 --protocol measured --num_epochs 3 --lr 1e-3",
    )
    add_model_options(parser, [0, 1, 2, 3], "a process on each")
    add = parser.add_argument_group("training").add_argument
    add("--batch_size", type=int, default=5, help="sequences per step")
    add("--num_instance", type=int, default=500, help="sequences per epoch")
    add("--num_epochs", type=int, default=100, help="epochs in all")
    add("--lr", type=float, default=1e-4, help="Adam's learning rate")
    add("--init_tr", type=float, default=0.25, help="teacher ratio of the first epoch")
    add("--final_tr", type=float, default=0.0, help="teacher ratio of the last epoch")
    add("--seed", type=int, default=0, help="of initial weights, sequences and corruption")
    add("--resume", **YES_NO, default=True, help="continue an interrupted training; no: anew in its place")
    add("--deterministic", action="store_true", help="on a GPU: the same numbers every time, more slowly")
    add("--sync_bn", action="store_true", help="torchrun on GPUs: batch norms over all processes")
    options = parser.parse_args(argv)
    check_options(
        options,
        batch_size=(1, 1e9),
        num_instance=(options.batch_size, 1e9),
        num_epochs=(1, 1e9),
        lr=(1e-12, 1e3),
        init_tr=(0, 1),
        final_tr=(0, 1),
        seed=(0, 2**32 - 1),
    )
    use_several_gpus(options, sys.argv[1:] if argv is None else argv)
    options.held_out = HELD_OUT if options.held_out is None else options.held_out
    cycle = cycle_of(options.data, options.cycle)
    device = distributed.join(device_of(options.gpu_ids, options.cpu, options.deterministic))
    autocast(device, options.precision)  # refuses what this device cannot do
    reuse_memory()
    with distributed.first_alone():
        prepared = ensure_prepared(options.data, cycle, options.result)
    path = result_folder(options, prepared.folder) / "model_dictionary.pt"
    require_writable(path.parent)
    try:
        with locked(path.parent):
            train(options, prepared, path, device)
    except KeyboardInterrupt:
        command = command_to_continue(argv, options.resume)
        say(f"stopped; {path} is saved. To continue: {command}" if path.exists() else f"to start again: {command}")
        raise


if __name__ == "__main__":
    sys.exit(main())
