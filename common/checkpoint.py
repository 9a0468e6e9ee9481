"""Checkpoints, checked before anything of them is used, and what surrounds a training loop."""

import inspect
import math
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.optim import Optimizer

from common import distributed
from common.cli import in_hours, number_of, progress, say, stop_on_request
from common.files import UserError, atomic_write, first_line, read_tensors, require_like, using, write_csv
from common.images import same_images
from common.runtime import seed_all

FORMAT = 1  # raised when older programs could no longer read the files
EXAMPLE = {
    "settings": {}, "fingerprint": "", "epoch": 0, "step": 0, "history": [{"epoch": 0}], "sums": {}, "seconds": 0.0,
    "model": {}, "optimizer": [{}], "scaler": {},
}  # fmt: skip


class Training:
    """What surrounds a training loop, which calls forward, loss, backward and step itself:

        training = Training(path, "crrn", settings, fingerprint, model, [optimizer], device, seed=options.seed, ...)
        for epoch in training.epochs(options.num_epochs, steps):
            for step in training.steps():
                ...
                training.record(len(batch), loss=loss)  # a finite loss, before the step
                ...
            training.finish_epoch(test_loss=...)

    epoch, step: the next one's, from 0; over: whether the steps that have just ended were the last ones; history: one
    entry for each finished epoch; extra: what else the paper stores;
    scaler: of fp16's gradients, which else does nothing; stopping: whether the user wants to stop, once all processes
    know it. UserError where `stored` does not belong to this training.
    """

    def __init__(
        self,
        path: Path | None,
        kind: str,
        settings: Mapping[str, Any],
        fingerprint: str,
        model: nn.Module,
        optimizers: Sequence[Optimizer],
        device: torch.device,
        *,
        seed: int,
        precision: str = "fp32",
        save_every: float = 60.0,
        minutes: float | None = None,
        shorter: str = "",
        stored: Mapping[str, Any] | None = None,
        binding: Sequence[str] = (),
        otherwise: str = "give another output",
        history_file: Path | None = None,
        hide: bool = False,
        layout: Callable[[dict[str, Any]], dict[str, Any]] = dict,
        **extra: Any,
    ):
        """path: of the checkpoint, None: nothing is saved; minutes: after which the training ends, with an epoch cut
        short; shorter: options of a short one, for who learns that it takes long; stored: what `load` read of the
        checkpoint, to resume; binding: settings in which it must agree; otherwise: what to do where it does not;
        history_file: the history as a table; layout: renames what is saved, where a paper's files promise other names,
        which `stored` then has no more."""
        self.path, self.kind, self.settings, self.fingerprint = path, kind, settings, fingerprint
        self.model, self.optimizers, self.device, self.seed = model, optimizers, device, seed
        self.save_every, self.history_file, self.hide = save_every, history_file, hide
        self.minutes, self.shorter = minutes or math.inf, shorter
        self.layout, self.extra = layout, extra
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
        self.epoch, self.step, self.history, self.sums, self.seconds = 0, 0, [], {}, 0.0
        self.stopping, self.started, self.saved = False, time.monotonic(), time.monotonic()
        self._steps: float = math.inf  # of an epoch, which `epochs` is told
        self.place = "epoch 1, step 1"  # of the last step
        self.remedy = "" if precision == "fp32" else ", or --precision fp32"
        self.resumed = stored is not None
        if stored is not None:
            self._resume(stored, binding, otherwise)

    def _resume(self, stored: Mapping[str, Any], binding: Sequence[str], otherwise: str) -> None:
        otherwise = f"use the same, {otherwise}, or start again with --resume no"
        with using(self.path, self.kind):
            require_like(stored, {**EXAMPLE, **self.extra})
            pairs = [(name, stored["settings"].get(name), self.settings[name]) for name in binding]
            if unlike := [f"{name} {theirs}, not {ours}" for name, theirs, ours in pairs if theirs != ours]:
                raise UserError(f"{self.path} was trained with other settings ({'; '.join(unlike)}): {otherwise}")
            if not same_images(stored["fingerprint"], self.fingerprint):
                raise UserError(f"{self.path} was trained on other data than there are now: {otherwise}")
            load_parameters(self.model, stored["model"], self.path)
            for optimizer, state in zip(self.optimizers, stored["optimizer"], strict=True):
                load_optimizer(optimizer, state, self.path)
            load_scaler(self.scaler, stored["scaler"])
            for name in ("epoch", "step", "seconds"):
                setattr(self, name, stored[name])
            self.history, self.sums = list(stored["history"]), dict(stored["sums"])
            require_like(self.sums, dict.fromkeys(self.sums, 0.0), "sums")
            self.extra = {name: stored[name] for name in self.extra}

    def epochs(self, count: int, steps: int, total: int | None = None) -> Iterator[int]:
        """The numbers of the epochs that are left of `count`, each of `steps` steps; total: where it ends before that.
        Saves after each epoch where --save_every has passed, and after the last."""
        total = count * steps if total is None else total
        if self.step >= steps:
            raise UserError(f"{self.path} is damaged: its step is {self.step} of {steps}")
        if self.epoch * steps + self.step > total:
            trained = number_of(self.epoch, "epoch") + f" and {number_of(self.step, 'step')}" * bool(self.step)
            raise UserError(
                f"{self.path} is trained for {trained}, more than the {count} asked for: ask for more, or start "
                "again with --resume no"
            )
        self.over = self.resumed and self.seconds >= 60 * self.minutes
        if self.resumed and (self.over or self.epoch * steps + self.step == total):
            say(f"{self.path} is trained for {number_of(self.epoch, 'epoch')} already")
        elif self.resumed:
            say(f"resuming {self.path} after epoch {self.epoch}" + f", step {self.step}" * bool(self.step))
        self._count, self._steps, self._total = count, steps, total
        left = range(self.epoch * steps + self.step, total)
        timed = self.minutes < math.inf
        self._first, self._told = self.epoch * steps + self.step, timed
        self.started = self.saved = time.monotonic()
        ends = self.started + 60 * self.minutes - self.seconds if timed else None
        self._bar = progress(iter(left) if timed else left, "training", hide=self.hide, ends=ends)
        with stop_on_request() as self._stop:
            while self.epoch * steps + self.step < total and not self.over:
                yield self.epoch
                self._end_epoch()
                self._ask_to_stop()
                if self.stopping or self.over or self._due():
                    self.save()
                if self.stopping:
                    raise KeyboardInterrupt
        self._bar.close()  # else it would stay on the terminal, among what is printed from now on

    def steps(self) -> Iterator[int]:
        """The steps that are left of the epoch. All random numbers of a step follow from (seed, epoch, step), so that
        a training that was interrupted anywhere ends with the same numbers."""
        last, cut_short = min(self._steps, self._total - self.epoch * self._steps), False
        for step in range(self.step, last):
            next(self._bar)
            seed_all(((self.seed * 1_000_003 + self.epoch) * 1_000_003 + step) % 2**63)
            self.place = f"epoch {self.epoch + 1}, step {step + 1}"
            yield step
            self.step = step + 1
            self._say_duration()
            self._ask_to_stop()
            if self.minutes < math.inf and distributed.anywhere(self._time_is_up(), self.device):
                self.step, cut_short = last, True  # the rest of the epoch is left out
                break
            if self.step < last and (self.stopping or self._due()):
                self.save()
                if self.stopping:
                    raise KeyboardInterrupt
        self.over = cut_short or self.epoch * self._steps + self.step == self._total

    def _end_epoch(self) -> None:
        if self.step == self._steps:
            self.epoch, self.step = self.epoch + 1, 0

    def _time_is_up(self) -> bool:
        return self.seconds + time.monotonic() - self.started >= 60 * self.minutes

    def _say_duration(self) -> None:
        """Once, after ten steps or half a minute, how long all of them take, if that is more than five minutes."""
        done, now = self.epoch * self._steps + self.step - self._first, time.monotonic()
        if self._told or (done < 10 and now - self.started < 30):
            return
        self._told = True
        seconds = (now - self.started) / done * (self._total - self._first)
        if seconds > 300:
            shorter = f"; for a first look: {self.shorter}" if self.shorter else ""
            say(f"about {in_hours(seconds)} in all, without what follows each epoch{shorter}")

    def _ask_to_stop(self) -> None:
        self.stopping = self.stopping or distributed.anywhere(self._stop(), self.device)

    def _due(self) -> bool:
        return time.monotonic() - self.saved >= self.save_every

    def record(self, weight: float, **losses: Tensor) -> dict[str, float]:
        """Add a step's losses, scalars, to the epoch's means; returns their means over all processes. UserError where
        one is not finite: call it before the step, which would spoil the parameters."""
        values = torch.stack([loss.detach() for loss in losses.values()]).tolist()  # one transfer from the device
        means = dict(zip(losses, distributed.means_of(values, self.device)))
        for name, value in means.items():
            if not math.isfinite(value):
                raise self.diverged(f"{name} is {value}")
            self.sums[name] = self.sums.get(name, 0.0) + weight * value
        self.sums["weight"] = self.sums.get("weight", 0.0) + weight
        return means

    def diverged(self, what: str) -> UserError:
        """The error for a training whose loss, parameters or scores are not finite."""
        kept = f"; {self.path} keeps what was saved" if self.path and self.path.exists() else ""
        return UserError(f"{what} in {self.place}: training stops{kept}. Try a lower learning rate{self.remedy}")

    def finish_epoch(self, **values: Any) -> dict[str, Any]:
        """Enter the means of the losses since the last call, and `values`, into the history; returns the entry."""
        weight = self.sums.pop("weight", 1.0)
        means = {name: total / weight for name, total in self.sums.items()}
        entry = {"epoch": self.epoch + 1, **means, **values, "seconds": self.seconds + time.monotonic() - self.started}
        self.history, self.sums = [*self.history, entry], {}
        if self.history_file:
            names = list(entry)
            write_csv(self.history_file, names, [[row.get(name, "") for name in names] for row in self.history])
        return entry

    def save(self) -> None:
        """Write all that resuming needs. UserError where parameters or moments are not finite: a step may have spoiled
        them after a finite loss, and only sound ones are worth saving.

        After the last step of an epoch, what is saved begins with the next one: enter its values into the history
        before."""
        self._end_epoch()
        if not finite(self.model, *self.optimizers):
            raise self.diverged("the parameters are not finite")
        now = time.monotonic()
        self.seconds, self.started, self.saved = self.seconds + now - self.started, now, now
        if self.path:
            names = ("settings", "fingerprint", "epoch", "step", "history", "sums", "seconds")
            content = {**{name: getattr(self, name) for name in names}, **self.extra}
            content |= {"model": self.model.state_dict(), "scaler": self.scaler.state_dict()}
            content["optimizer"] = [optimizer.state_dict() for optimizer in self.optimizers]
            save(self.path, self.kind, **self.layout(content))


def shuffled(count: int, batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    """The shuffled batches of an epoch, none dropped. They follow from seed and epoch, so that a training that was
    interrupted goes on with the very batches that are left."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch))
    return [batch.tolist() for batch in order.split(batch_size)]


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that numbers depend on."""
    packages = ("torchvision", "numpy", "scikit-learn", "scikit-image", "pillow")
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),  # with the build, such as +cpu
        **{name: metadata.version(name) for name in packages},
    }


def save(path: str | Path, kind: str, **content: Any) -> None:
    """Write `content` (tensors and plain values, nested) with kind (whose checkpoint it is, such as "csflow"), format
    and package versions to `path`; otherwise like `write`."""
    write(path, {"kind": kind, "format": FORMAT, "versions": versions(), **content})


def write(path: str | Path, content: Any) -> None:
    """Write bare `content` to `path`. The old file survives every failure; UserError where it cannot be written."""
    with atomic_write(path) as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:  # torch's zip writer reports a full disk in its own way
            raise UserError(f"cannot write {path}: {first_line(error)}; what was there before is untouched") from error


def load(path: str | Path, kind: str, example: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Read what `save` wrote, mapped into memory, onto the CPU. UserError if missing, broken or something else.

    example: entries that the content must have, too, of these kinds (`require_like`).
    """
    content = load_tensors(path, kind)
    if "kind" not in content:
        raise UserError(f"{path} holds bare parameters, not a {kind} checkpoint with its settings")
    with using(path, kind):
        require_like(content, example or {})
    return content


def load_tensors(path: str | Path, kind: str | None = None) -> dict[str, Any]:
    """Like `load`, but also accepts a bare state dict of somebody else's (tensors by name, no "kind")."""
    content = read_tensors(path)
    if not isinstance(content, Mapping):
        raise UserError(f"{path} holds a {type(content).__name__}, not parameters by name")
    if "kind" in content:
        if kind and content["kind"] != kind:
            raise UserError(f"{path} is a checkpoint of {content['kind']}, not of {kind}")
        require_known_format(content, path)
    elif not content or not all(isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items()):
        raise UserError(f"{path} holds neither a checkpoint of ours nor parameters by name")
    return dict(content)


def require_known_format(content: Mapping[str, Any], path: str | Path) -> None:
    """Raise UserError for content that a newer version of this project has written."""
    number = content.get("format", FORMAT)
    if not isinstance(number, int) or number > FORMAT:
        raise UserError(f"{path} is of a newer version of this project (format {number!r}), or damaged: update it")


def finite(model: nn.Module, *optimizers: Optimizer) -> bool:
    """Whether all parameters, buffers and the optimizers' moments are."""
    moments = (value for one in optimizers for entry in one.state.values() for value in entry.values())
    tensors = (value for value in (*model.state_dict().values(), *moments) if isinstance(value, Tensor))
    return all(value.isfinite().all().item() for value in tensors)


def load_scaler(scaler: torch.amp.GradScaler, state: Mapping[str, Any]) -> None:
    """Put a stored state into `scaler`; RuntimeError, ValueError and the like, within `using`, where it is none."""
    for name, value in state.items():  # with others, all steps would be left out
        require_like(value, 0 if name in ("growth_interval", "_growth_tracker") else 0.0, name)
        if value <= 0 and name != "_growth_tracker":
            raise ValueError(f"{name} is {value}")
    scaler.load_state_dict(state)


def load_parameters(model: nn.Module, state: Mapping[str, Tensor], source: str | Path) -> None:
    """Copy `state` into `model`; UserError says which names, shapes or values do not fit."""
    require_fitting(lambda: model, state, source)
    for name, parameter in model.state_dict().items():
        if not state[name].to(parameter.dtype).isfinite().all():
            raise UserError(f"{source} does not fit the model: {name} holds nan or infinite values")
    model.load_state_dict(dict(state))  # without _metadata, which torch would obey


def require_fitting(make: Callable[[], nn.Module], state: Mapping[str, Tensor], source: str | Path) -> None:
    """Raise UserError unless `state`, from `source`, has the names, shapes and kinds of numbers of what `make` returns.

    Where a file's own settings tell its network, this comes before that is made: `make` is called without memory for
    parameters, so that a small file cannot ask for a large network, nor for one of many more layers than it holds.
    """
    left = iter(range(2 * len(state) + 1000))

    def count(*_: object) -> None:
        if next(left, None) is None:
            raise UserError(f"{source} does not fit the model: it holds {len(state)} of many more parameters")

    counting = register_module_parameter_registration_hook(count)
    try:
        with torch.device("meta"):
            expected = make().state_dict()
    finally:
        counting.remove()
    problems = [f"{name} is missing" for name in expected if name not in state]
    problems += [f"{name} is unknown" for name in state if name not in expected]
    for name, like in expected.items():
        value = state.get(name, like)
        if not isinstance(value, Tensor):
            problems.append(f"{name} is no tensor")
        elif value.shape != like.shape:
            problems.append(f"{name} has shape {tuple(value.shape)} instead of {tuple(like.shape)}")
        elif value.is_floating_point() != like.is_floating_point():
            problems.append(f"{name} is {value.dtype} instead of {like.dtype}")
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise UserError(f"{source} does not fit the model: {'; '.join(problems[:3])}{more}")


def load_optimizer(optimizer: Optimizer, state: Mapping[str, Any], source: str | Path) -> None:
    """Put a stored state's moments into `optimizer`, one of torch's with one group, which keeps its own options.

    UserError where they do not fit the parameters or are not finite.
    """
    (group,) = optimizer.param_groups
    options = {name: value for name, value in group.items() if name != "params"}
    example = _moments_of_one_number(optimizer)
    try:
        # With our options, torch puts the state where fused optimizers need it.
        groups = [{**stored, **options} for stored in state["param_groups"]]
        optimizer.load_state_dict({"state": state["state"], "param_groups": groups})
        for parameter, entry in optimizer.state.items():
            if not isinstance(parameter, Tensor) or entry.keys() != example.keys():
                raise ValueError("other moments")
            for name, value in entry.items():
                positive = name in ("step", "exp_avg_sq", "square_avg")
                sound = value.isfinite().all() and (not positive or (value >= 0).all())
                shape = parameter.shape if example[name].shape else ()
                if value.layout != torch.strided or value.shape != shape or not sound:
                    raise ValueError("moments of other shapes, or not finite")
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise UserError(f"{source}: its optimizer does not fit the model ({first_line(error)})") from error
    for parameter, entry in optimizer.state.items():
        # Fused steps walk through parameter and moments by address: from moments in another layout (contiguous beside
        # channels last) each weight would silently get another one's, with expanded ones they write beyond the end.
        moments = {name: value for name, value in entry.items() if value.shape == parameter.shape}
        entry.update((name, torch.empty_like(parameter).copy_(value)) for name, value in moments.items())


def _moments_of_one_number(optimizer: Optimizer) -> Mapping[str, Tensor]:
    """What such an optimizer keeps for a parameter of shape (1,): moments of the same shape, counts without one."""
    accepted = inspect.signature(type(optimizer)).parameters  # the defaults of AdamW hold more
    options = {name: value for name, value in optimizer.defaults.items() if name in accepted}
    number = nn.Parameter(torch.zeros(1))
    number.grad = torch.zeros(1)
    example = type(optimizer)([number], **options)
    example.step()
    return example.state[number]
