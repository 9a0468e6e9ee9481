"""`Training`: a run that is interrupted anywhere ends with the numbers of one that is not."""

import signal

import pytest
import torch
from torch import nn
from tqdm import tqdm

from common.checkpoint import Training, load
from common.files import UserError, read_csv

EPOCHS, STEPS = 3, 4


def train(path, epochs=EPOCHS, stop_at=None, lr=1e-2, fingerprint="f", save_every=1e9, spoil=None, killed=False):
    """Parameters and history (without seconds) of a tiny training; stop_at: the step in which Ctrl-C comes; killed:
    right after a save at the end of the first epoch."""
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    optimizer = torch.optim.Adam(model.parameters(), lr)
    stored = load(path, "x") if path.exists() else None
    training = Training(
        path, "x", {"lr": lr}, fingerprint, model, [optimizer], torch.device("cpu"), seed=5, stored=stored,
        binding=["lr"], save_every=save_every, history_file=path.with_name("history.csv"), best=0,
    )  # fmt: skip
    count = 0
    for epoch in training.epochs(epochs, STEPS):
        for _ in training.steps():
            x = torch.randn(8, 3)
            loss = ((model(x) - x.sum(1, keepdim=True)) ** 2).mean()
            training.record(len(x), loss=loss * (torch.nan if spoil == "loss" else 1))
            optimizer.zero_grad()
            training.scaler.scale(loss).backward()
            training.scaler.step(optimizer)
            training.scaler.update()
            if spoil == "parameters":
                nn.init.constant_(model.bias, torch.inf)
            count += 1
            if count == stop_at:
                signal.raise_signal(signal.SIGINT)
        training.finish_epoch(test=epoch * 2.0)
        if killed:
            training.save()
            raise SystemExit
    history = [{name: value for name, value in entry.items() if name != "seconds"} for entry in training.history]
    return model.weight.tolist(), history


def test_interrupted_anywhere_it_ends_with_the_same_numbers(tmp_path, capsys):
    whole = train(tmp_path / "whole/m.pt")
    assert [entry["epoch"] for entry in whole[1]] == [1, 2, 3] and whole[1][2]["loss"] < whole[1][0]["loss"]
    for step in range(1, EPOCHS * STEPS + 1):
        path = tmp_path / f"{step}/m.pt"
        with pytest.raises(KeyboardInterrupt):
            train(path, stop_at=step)
        assert train(path) == whole
        assert len(read_csv(path.with_name("history.csv"))) == EPOCHS
    assert "resuming" in capsys.readouterr().out
    shorter = tmp_path / "shorter/m.pt"
    train(shorter, epochs=1, save_every=0)
    assert train(shorter) == whole


def test_saved_after_an_epoch_it_goes_on_with_the_next(tmp_path):
    with pytest.raises(SystemExit):
        train(tmp_path / "m.pt", killed=True)
    stored = load(tmp_path / "m.pt", "x")
    assert (stored["epoch"], stored["step"], len(stored["history"])) == (1, 0, 1)
    assert train(tmp_path / "m.pt") == train(tmp_path / "whole/m.pt")


def test_what_does_not_belong_to_it_is_refused(tmp_path):
    path = tmp_path / "m.pt"
    train(path)
    before = path.read_bytes()
    for changed, words in (
        ({"lr": 0.5}, "lr 0.01, not 0.5"),
        ({"fingerprint": "g"}, "other data"),
        ({"epochs": 2}, "more than the 2 asked for"),
    ):
        with pytest.raises(UserError, match=words):
            train(path, **changed)
    assert path.read_bytes() == before
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "n.pt", stop_at=STEPS + 2)
    with pytest.raises(UserError, match="1 epoch and 2 steps, more than the 1 asked for"):
        train(tmp_path / "n.pt", epochs=1)


def test_the_bar_leaves_the_terminal_before_what_follows(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    model = nn.Linear(3, 1)
    training = Training(None, "x", {}, "f", model, [torch.optim.Adam(model.parameters())], torch.device("cpu"), seed=0)
    for _ in training.epochs(2, STEPS):
        for _ in training.steps():
            assert tqdm._instances
        training.finish_epoch()
    assert not tqdm._instances


def tiny(path, seconds_a_step, monkeypatch, stored=None, epochs=100, **options):
    """A training of nothing; its clock goes on by `seconds_a_step` in each step."""
    clock = [0.0]
    monkeypatch.setattr("common.checkpoint.time.monotonic", lambda: clock[0])
    model = nn.Linear(3, 1)
    optimizers = [torch.optim.Adam(model.parameters())]
    training = Training(path, "x", {}, "f", model, optimizers, torch.device("cpu"), seed=0, stored=stored, **options)
    ended = []
    for _ in training.epochs(epochs, STEPS):
        for _ in training.steps():
            clock[0] += seconds_a_step
        ended.append(training.over)
        training.finish_epoch()
    return ended


def test_a_training_of_so_many_minutes(tmp_path, monkeypatch, capsys):
    path = tmp_path / "m.pt"
    assert tiny(path, 10, monkeypatch, minutes=1.5) == [False, False, True]  # the third after the first of its steps
    assert load(path, "x")["seconds"] == 90
    assert tiny(path, 10, monkeypatch, load(path, "x"), minutes=1.5) == []
    assert "is trained for 3 epochs already" in capsys.readouterr().out
    assert tiny(path, 10, monkeypatch, load(path, "x"), epochs=4, minutes=9) == [True]
    assert load(path, "x")["epoch"] == 4


def test_who_starts_a_long_training_learns_how_long(monkeypatch, capsys):
    tiny(None, 20, monkeypatch, shorter="--epochs 3")
    printed = capsys.readouterr().out  # 400 steps
    assert printed.count("in all") == 1 and "about 2 h 13 min in all" in printed and "first look: --epochs 3" in printed
    tiny(None, 0.5, monkeypatch)
    assert "in all" not in capsys.readouterr().out


@pytest.mark.parametrize("spoil", ["loss", "parameters"])
def test_what_is_not_finite_is_never_saved(tmp_path, spoil):
    with pytest.raises(UserError, match="training stops"):
        train(tmp_path / "m.pt", spoil=spoil, save_every=0)
    assert not (tmp_path / "m.pt").exists()
