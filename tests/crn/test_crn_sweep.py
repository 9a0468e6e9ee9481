"""Sweep files of Weights & Biases, run without an account."""

import contextlib
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from common.cli import notes
from common.files import UserError
from crn import sweep
from crn.options import parse
from tests.helpers import refused

ROOT = Path(__file__).resolve().parents[2]
HEAD = "metric: {name: metrics/score, goal: maximize}\n"
DATA = "dataset: {value: MVTec}, dataset-path: {value: d}"


def sweep_file(text, method="random", parameters="lr: {value: 0.1}, " + DATA):
    Path("s.yml").write_text(f"method: {method}\n{HEAD}parameters: {{{parameters}}}\n{text}")
    return sweep.read_sweep(Path("s.yml"))


def write_sweep(method, rates):
    """A sweep over learning rates."""
    sweep_file("", method, f"lr: {{values: {rates}}}, {DATA}")


def test_a_missing_package_is_named(place, capsys, monkeypatch):
    for package in ("optuna", "yaml"):
        monkeypatch.setitem(sys.modules, package, None)
        refused(capsys, sweep.main, [str(ROOT / "crn/wandb_sweep.yml")], "pip install optuna")


def test_sweep_files(tmp_path):
    yaml = pytest.importorskip("yaml")
    search = sweep.read_sweep(ROOT / "crn/hyperparameter_optimization_sweep.yml")
    assert search["metric"] == "metrics/max_roc_auc" and search["method"] == "bayes"
    grid = sweep.read_sweep(ROOT / "crn/wandb_sweep.yml")
    assert len(grid["parameters"]["dataset-path"]) == 15
    for found in (search, grid):
        values = {name: values[0] for name, values in found["parameters"].items()}
        opt = parse(sweep.trial_command(found, values, Path("x"), [])[2:])  # every parameter is an option of train.py
        assert opt.dataset == "MVTec" and opt.save is False
    (tmp_path / "s.yml").write_text("method: grid\nparameters: {lr: {values: [0.1, 0.2]}}\n")
    assert sweep.read_sweep(tmp_path / "s.yml")["metric"] == search["metric"] and "has no metric" in notes()[-1]
    (tmp_path / "s.yml").write_text("method: bayes\nparameters: {lr: {values: [0.1, 0.2]}}\n")
    with pytest.raises(UserError, match="expected method"):
        sweep.read_sweep(tmp_path / "s.yml")
    content = yaml.safe_load((ROOT / "crn/wandb_sweep.yml").read_text())
    assert content["command"][-1] == "${args}" and "--wandb" in content["command"]


def test_the_command_of_a_sweep_file(place, capsys):
    pytest.importorskip("yaml")
    mine = (
        "program: crn/train.py\n"
        "command: ['${env}', python3, crn/train.py, --mode=train, --wandb, '${args}', --seed, 7, --model=dagan]"
    )
    values = {"lr": 0.1, "dataset": "MVTec", "dataset-path": "d"}
    given = ["--lr=0.1", "--dataset=MVTec", "--dataset-path=d"]
    for text, words in (
        ("", ["--mode=train", "--model=crn", "--auto-set-name", *given]),
        (mine, ["--mode=train", *given, "--seed", "7", "--model=dagan"]),
    ):
        command = sweep.trial_command(sweep_file(text), values, Path("x"), [])
        assert command[:2] == [sys.executable, str(ROOT / "crn/train.py")]
        assert command[5:] == words and all(word.startswith("--") for word in command[2:5])


def test_what_sweeps_do_not_support_is_named(place, capsys):
    pytest.importorskip("yaml")
    parameters = f"lr: {{values: [0.1, 0.2]}}, {DATA}"
    for text, named in (
        ("program: other.py", "other.py"), ("command: [torchrun, '${program}', '${args}']", "torchrun"),
        ("command: ['${program}', '--x=${envvar:X}', '${args}']", "${envvar:X}"), ("command: 3", "'3'"),
        ("command: ['${program}', '${args_no_hyphens}']", "${args_no_hyphens}"),
        ("command: ['${program}', --mode=train]", "${args}"), ("command: []", "''"),
        ("command: ['${program}', --mode=inference, --model-input=x, '${args}']", "--mode inference"),
        ("command: ['${program}', --mode=train, --log-dir=x, '${args}']", "--log-dir x"),
        ("command: ['${program}', --mode=train, '${args}', --lr=3]", "--lr behind the parameters"),
        ("early_terminate: {type: hyperband, min_iter: 3}", "early_terminate is not supported here\n"),
        ("name: mine\nproject: p\nrun_cap: 10", "run_cap"),
    ):  # fmt: skip
        with contextlib.suppress(UserError):
            sweep_file(text, parameters=parameters)
        refused(capsys, sweep.main, ["s.yml"], "s.yml", named)
    sweep_file("", parameters=parameters)
    refused(capsys, sweep.main, ["s.yml", "--", "--dataset-path=x", "--lr", "3"], "--lr behind the parameters")


def quantiles(entry, count=2000):
    found = sweep_file("", parameters=f"x: {entry}")["parameters"]["x"]
    return np.array([sweep.quantile(found, (k + 0.5) / count) for k in range(count)])


@pytest.mark.parametrize(
    ("entry", "distribution", "of"),
    [
        ("{min: 0.5, max: 2}", stats.uniform(0.5, 1.5), np.asarray),
        ("{min: 1, max: 4}", stats.randint(1, 5), np.asarray),
        ("{distribution: uniform, min: -1, max: 3}", stats.uniform(-1, 4), np.asarray),
        ("{distribution: log_uniform, min: -7, max: -2}", stats.uniform(-7, 5), np.log),
        ("{distribution: log_uniform_values, min: 1.0e-5, max: 0.1}", stats.loguniform(1e-5, 0.1), np.asarray),
        ("{distribution: normal, mu: 3, sigma: 2}", stats.norm(3, 2), np.asarray),
        ("{distribution: log_normal}", stats.norm(0, 1), np.log),
    ],
)
def test_ranges_have_the_distributions_of_weights_and_biases(place, entry, distribution, of):
    pytest.importorskip("yaml")
    values = of(quantiles(entry))
    expected = distribution.ppf((np.arange(2000) + 0.5) / 2000)
    assert values == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_rounded_ranges_and_grids(place):
    pytest.importorskip("yaml")
    values, counts = np.unique(quantiles("{distribution: q_uniform, min: 0, max: 40, q: 16}"), return_counts=True)
    assert values.tolist() == [0, 16, 32] and counts.tolist() == [400, 800, 800] and values.dtype == int
    values = quantiles("{distribution: q_log_uniform_values, min: 1, max: 100, q: 0.5}")
    assert values == pytest.approx(np.round(2 * 100 ** ((np.arange(2000) + 0.5) / 2000)) / 2)
    assert isinstance(sweep_file("", parameters="x: {min: 2, max: 4}")["parameters"]["x"]["examples"][1], int)
    assert sweep_file("", "grid", "x: {min: 2, max: 4}")["parameters"] == {"x": [2, 3, 4]}


def test_ranges_that_are_none(place):
    pytest.importorskip("yaml")
    for entry, named in (
        ("{values: [1, 2], probabilities: [0.1, 0.9]}", "probabilities"), ("{parameters: {lr: {value: 1}}}", "param"),
        ("{distribution: beta, a: 1}", "'beta'"), ("{distribution: [], min: 1, max: 2}", "distribution"),
        ("{min: 1}", "min"), ("{min: 1e-5, max: 0.1}", "1.0e-5"), ("{min: 2, max: 1}", "min is above max"),
        ("{min: 0.0, max: .inf}", "inf"), ("{distribution: log_uniform_values, min: 0, max: 1}", "log_uniform_values"),
        ("{distribution: log_uniform, min: 0, max: 1000}", "1000"), ("{distribution: normal, sigma: 0}", "'sigma': 0"),
        ("{distribution: q_uniform, min: 0, max: 1, q: 0}", "'q': 0"),
        ("{distribution: int_uniform, min: 0.5, max: 2}", "0.5"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=rf"s\.yml: parameter x.*{named}"):
            sweep_file("", parameters=f"x: {entry}")
    with pytest.raises(UserError, match="grid"):
        sweep_file("", "grid", "x: {min: 0.0, max: 1.0}")
    with pytest.raises(UserError, match="a grid of more than 10000 trials"):  # 1000^1500, more than Python prints
        sweep_file("", "grid", ", ".join(f"x{number}: {{min: 1, max: 1000}}" for number in range(1500)))


def test_sweep_of_a_range(place, trials, capsys):
    """Drawn within the range, shown and passed on as they are, and the same sweep when it goes on."""
    pytest.importorskip("optuna")
    rates, statuses = trials
    lr = "lr: {distribution: log_uniform_values, min: 0.001, max: 0.1}"
    for method in ("random", "bayes"):
        statuses += [0] * 6
        for count in ("3", "6"):
            sweep_file("", method, f"{lr}, batch-size: {{min: 1, max: 4}}, {DATA}")
            argv = ["s.yml", "--output", "sw", "--name", method, "--trials", count, "--seed", "1"]
            assert sweep.main(argv) == 0
        told = capsys.readouterr().out
        assert all(0.001 < rate < 0.1 and f"lr={rate}" in told for rate in rates[-6:]) and len({*rates[-6:]}) == 6
        assert f"'lr': {max(rates[-6:])}" in told.splitlines()[-1]
        sweep_file("", method, f"lr: {{min: 0.0, max: 0.1}}, {DATA}")
        refused(capsys, sweep.main, argv, "s.yml", "--name")


def test_sweep_with_two_workers(place, capsys):
    pytest.importorskip("optuna")
    Path("s.yml").write_text(
        "method: bayes\nmetric: {name: metrics/max_roc_auc, goal: maximize}\n"
        "parameters: {lr: {values: [0.01, 0.001]}, improved: {value: 1}, dataset: {value: RoadImages}}\n"
    )
    more = ["--", "--demo", "--dataset-path=datasets/roadimages", "--cpu", "--ngf=2", "--training-steps=4"]
    assert sweep.main(["s.yml", "--trials", "2", "--workers", "2", "--output", "sw", *more]) == 0
    assert "best of 2 trials" in capsys.readouterr().out
    assert len(list(Path("sw/s").glob("trial_*/version_0/metrics.csv"))) == 2
    assert sweep.main(["s.yml", "--trials", "2", "--output", "sw", *more]) == 0
    assert "2 of 2 trials finished" in capsys.readouterr().out
    Path("s.yml").write_text("method: bayes")
    refused(capsys, sweep.main, ["s.yml"], "s.yml", "parameters")
    refused(capsys, sweep.main, ["none.yml"], "none.yml")


@pytest.mark.parametrize("status", [130, None])
def test_a_grid_comes_back_to_the_trial_that_was_stopped(place, trials, capsys, status):
    pytest.importorskip("optuna")
    rates, statuses = trials
    write_sweep("grid", [0.1, 0.01, 0.001])
    argv = ["s.yml", "--output", "sw"]
    statuses += [0, status]
    assert sweep.main(argv) == 130
    assert "to resume: " in capsys.readouterr().out
    statuses += [1, 0]  # what fails by itself is not tried again
    assert sweep.main(argv) == 0
    told = capsys.readouterr().out
    assert "1 of 3 trials finished" in told and "best of 2 trials" in told
    assert sorted({*rates}) == [0.001, 0.01, 0.1] and rates.count(rates[1]) == 2 and not statuses
    write_sweep("grid", [0.1, 0.2])
    refused(capsys, sweep.main, argv, "s.yml", "--name")
    statuses += [0]
    assert sweep.main([*argv, "--name", "part", "--trials", "1"]) == 0 and not statuses


def test_trials_that_fail_are_told_in_a_line_each(place, trials, capfd):
    pytest.importorskip("optuna")
    write_sweep("grid", [0.1, 0.01, 0.001])
    trials[1].extend([2, "no AUROC", 0])
    assert sweep.main(["s.yml", "--output", "sw"]) == 0
    told, warned = capfd.readouterr()
    assert "failed (status 2): words\n" in told and "holds a number as metrics/score\n" in told and not warned


def test_the_seed_of_a_sweep(place, trials):
    pytest.importorskip("optuna")
    rates, statuses = trials
    write_sweep("random", [10.0**-power for power in range(9)])
    chosen = []
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        statuses += [0] * 6
        for count in ("3", "6"):  # what is continued does not repeat its beginning
            argv = ["s.yml", "--output", "sw", "--name", name, "--trials", count, "--seed", seed]
            assert sweep.main(argv) == 0
        chosen.append(rates[-6:])
    assert chosen[0] == chosen[1] != chosen[2] and chosen[0][:3] != chosen[0][3:]
