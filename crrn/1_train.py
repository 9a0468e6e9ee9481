"""Train CRRN to reconstruct clean sequences of boards from corrupted ones: python 1_train.py --mode ConvConjLSTM

Writes <data>/result/<mode>/model_dictionary.pt after every epoch, and every --save_every seconds within one, and then
training.json with the losses. The same command resumes an interrupted training and ends with the same numbers.
"""

import math
import os
import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from common.cli import answer_early
from crrn.options import MODEL, TRAINING, parse_train

answer_early(__name__, parse_train)

import torch
import torch.nn.functional as F

from common import checkpoint, distributed
from common.cli import note, notes, number_of, resumable, say, script
from common.files import locked, require_writable, write_json
from common.runtime import autocast, channels_last, reuse_memory, seed_all
from crrn.boards import cycle_of
from crrn.checkpoints import BOUND, as_published, build_model, model_folder, read_checkpoint
from crrn.demo_boards import ensure_prepared
from crrn.preprocess import Prepared
from crrn.utils import corrupt, device_of, draw_sequences, place, reconstruct

TEST_BATCH = 5  # sequences; the test loss is the mean of the batches' losses, as published


def train(
    options: Namespace, settings: Mapping[str, Any], prepared: Prepared, path: Path, device: torch.device
) -> list[dict[str, Any]]:
    """Train, or resume (options.resume), the model of `path`; returns "loss" and "test_loss" of each epoch.

    settings: what is stored. UserError where the checkpoint is damaged or belongs to other settings or boards, or where
    loss or parameters are not finite, which are never saved.
    """
    mask, measured, test_set = prepared.mask.to(device), None, prepared.test_pcbs
    if options.protocol == "measured":
        measured, test_set, _, _ = prepared.measured_cycles(options.held_out)
        say(f"{number_of(len(measured), 'measured cycle')} to train on, {len(test_set)} held out for testing")
    zeros = (test_set**2).mean().item()  # the error of a network that gives nothing but zeros
    seed_all(options.seed)
    model = build_model(options.mode, options.n_layers, options.is_attn, options.gates)
    model.to(device, memory_format=channels_last(device))
    # Unused: ConvSTLSTM's h2m in its first layer.
    network = distributed.parallel(model, unused=options.mode == "ConvSTLSTM", sync_bn=options.sync_bn)
    # fused: the same update in one pass over the parameters, faster on every device
    optimizer = torch.optim.Adam(model.parameters(), options.lr, weight_decay=1e-5, fused=True)
    training = checkpoint.Training(
        path, "crrn", settings, prepared.fingerprint, model, [optimizer], device, seed=options.seed,
        precision=options.precision, save_every=options.save_every, minutes=options.minutes,
        shorter="--num_epochs 3, or --minutes 2", binding=BOUND, otherwise="another --result folder",
        stored=stored_training(path, settings, prepared) if options.resume else None, layout=as_published,
        data=prepared.source,
    )  # fmt: skip
    for epoch in training.epochs(options.num_epochs, options.num_instance // options.batch_size):
        ratio = teacher_ratio(epoch, options.num_epochs, options.init_tr, options.final_tr)
        model.train()
        for _ in training.steps():
            if measured is None:
                values = draw_sequences(options.batch_size, len(prepared.pad_ids), prepared.mean, prepared.std)
                clean = place(values, *prepared.pixels, prepared.height, prepared.width)  # (B, T, P) to (B, T, 1, H, W)
            else:
                clean = measured[torch.randint(len(measured), (options.batch_size,))]  # (B, T, 1, H, W)
            clean = clean.to(device)
            corrupted, weight = distributed.weighted_share(corrupt(clean, mask))
            clean, _ = distributed.weighted_share(clean)
            if distributed.rank():  # dropout and teacher forcing of its own
                torch.manual_seed(torch.initial_seed() + distributed.rank())
            with autocast(device, options.precision):
                output = network(corrupted, ratio)  # (B, T, 1, H, W)
            loss = weight * F.mse_loss(output.to(clean.dtype), clean)
            training.record(1, loss=loss)
            optimizer.zero_grad()
            training.scaler.scale(loss).backward()
            training.scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            training.scaler.step(optimizer)
            training.scaler.update()
        tested = evaluate(model, test_set, device, options.precision)
        if not math.isfinite(tested):
            raise training.diverged(f"the loss on test sequences is {tested}")
        losses = f"loss {training.finish_epoch(test_loss=tested)['loss']:.4f}, on test sequences {tested:.4f}"
        training.save()  # after every epoch, as published
        say(f"epoch {epoch + 1}/{options.num_epochs}: {losses} (of all zeros: {zeros:.4f}), teacher ratio {ratio:.3f}")
    return training.history


def stored_training(path: Path, settings: Mapping[str, Any], prepared: Prepared) -> dict[str, Any] | None:
    """What there is to resume at `path`; what the authors' files do not tell is taken to be as it is here."""
    if not path.exists():
        return None
    known = {"settings": settings, "fingerprint": prepared.fingerprint, "data": prepared.source}
    stored = known | read_checkpoint(path)
    before, now = stored["settings"]["num_epochs"] or settings["num_epochs"], settings["num_epochs"]
    if before != now and stored["epoch"] < now and settings["init_tr"] != settings["final_tr"]:
        note(f"the teacher ratio followed --num_epochs {before} so far, from here on {now}")
    return stored


def teacher_ratio(epoch: int, epochs: int, first: float, last: float) -> float:
    """Linear over the epochs, from `first` to `last`; a single epoch has `first`."""
    return first + (last - first) * epoch / max(epochs - 1, 1)


def evaluate(model: torch.nn.Module, test_set: torch.Tensor, device: torch.device, precision: str) -> float:
    """Mean over batches of the mean squared error of reconstructing clean test sequences, in eval mode."""
    output = reconstruct(model, test_set, TEST_BATCH, device, precision)
    losses = [F.mse_loss(*pair).item() for pair in zip(output.split(TEST_BATCH), test_set.split(TEST_BATCH))]
    return sum(losses) / len(losses)


def summarise(history: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What training.json says of the losses; and a line about them."""
    train_loss, test_loss = ([entry[name] for entry in history] for name in ("loss", "test_loss"))
    best = min(range(len(test_loss)), key=test_loss.__getitem__)
    chosen = "test sequences; the saved model is the last"
    lowest = f"best {test_loss[best]:.4f} after epoch {best + 1} (chosen on the {chosen})"
    say(f"test loss: last {test_loss[-1]:.4f}, {lowest}")
    return {
        "last_test_loss": test_loss[-1], "best_test_loss": test_loss[best], "best_test_loss_epoch": best + 1,
        "best_test_loss_chosen_on": chosen, "train_loss": train_loss, "test_loss": test_loss,
    }  # fmt: skip


def use_several_gpus(gpu_ids: Sequence[int], argv: Sequence[str]) -> None:
    """Where several GPUs of --gpu_ids are here, start this script again with a process on each, as torchrun would."""
    present = sorted({number for number in gpu_ids if number < torch.cuda.device_count()})
    if len(present) > 1 and not torch.distributed.is_torchelastic_launched():
        say(f"training on GPUs {', '.join(map(str, present))}, one process each")
        torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={len(present)}"]
        os.execv(sys.executable, [sys.executable, *torchrun, __file__, *argv])


@script(memory="a smaller --batch_size, or --precision bf16", several=True)
def main(argv: list[str] | None = None) -> None:
    """Train one model; where no preprocessed boards exist, make them first."""
    options = parse_train(argv)
    if not options.cpu and not options.device:
        use_several_gpus(options.gpu_ids, sys.argv[1:] if argv is None else argv)
    cycle = cycle_of(options.data, options.cycle)
    device = distributed.join(device_of(options.gpu_ids, options.cpu, options.device, options.deterministic))
    autocast(device, options.precision)  # refuses what this device cannot do
    reuse_memory()
    with distributed.first_alone():
        prepared = ensure_prepared(options.data, cycle, options.result)
    path = model_folder(vars(options), prepared.folder) / "model_dictionary.pt"
    require_writable(path.parent)
    settings = {name: getattr(options, name) for name in (*MODEL, *TRAINING, "num_epochs")}
    stored = settings | {"height": prepared.height, "width": prepared.width}
    with locked(path.parent), resumable(path, argv, options.resume):
        losses = summarise(train(options, stored, prepared, path, device))
        summary = {"method": "CRRN", "data": prepared.source, **losses, "device": str(device), "settings": settings}
        summary |= {"notes": notes(), "versions": checkpoint.versions()}
        write_json(path.with_name("training.json"), summary)


if __name__ == "__main__":
    sys.exit(main())
