"""The list of experiments, and what becomes of their numbers; nothing is trained here."""

import importlib
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from benchmarks import accuracy, published_data
from common.files import UserError
from common.images import mvtec_samples, read_mask
from memae.script_img_prep import labels_from_intervals, read_intervals
from tests.helpers import refused

ONE = accuracy.Experiment(
    "riad, one", "mvtec", ("train {data} {seed} {cpu}", "test {place}"), "{place}/r*/results.json",
    {"AUROC": ("models", "a.pth", "auroc"), "AUPRO": ("aupro",)}, {"AUROC": (0.9, "a paper, mean of 15")},
    ("prepare {shared}/{name}",),
)  # fmt: skip


@pytest.fixture
def called(tmp_path, monkeypatch):
    """The commands that were run; "test" writes results: seed 1 of screw has none."""
    commands = []

    def run(program, *words):
        commands.append((program, *words))
        if program == "test":
            category, seed = Path(words[0]).name.split("_")[2:4]
            if (category, seed) == ("screw", "seed1"):
                raise UserError("test ended with status 2 (see above)")
            (Path(words[0]) / "res").mkdir()
            value = {"bottle": 0.5, "screw": 0.7}[category] + int(seed[4:]) / 10
            (Path(words[0]) / "res/results.json").write_text(json.dumps({"models": {"a.pth": {"auroc": value}}}))

    monkeypatch.setattr(accuracy, "run", run)
    monkeypatch.setattr(accuracy, "EXPERIMENTS", [ONE])
    monkeypatch.setattr(accuracy, "CATEGORIES", {"mvtec": 2})
    for name in ("bottle", "screw"):
        (tmp_path / "mvtec" / name / "train/good").mkdir(parents=True)
    return commands


def test_runs_table_and_failures(tmp_path, called, monkeypatch, capsys):
    argv = ["--data", f"mvtec={tmp_path / 'mvtec'}", "--output", str(tmp_path / "out"), "--seeds", "0", "1", "--cpu"]
    assert accuracy.main(argv) == 1
    assert capsys.readouterr().err.count("screw, seed 1: test ended with status 2") == 2
    assert called[1] == ("train", str(tmp_path / "mvtec/bottle"), "0", "--cpu")
    assert [command[0] for command in called].count("prepare") == 2  # of each category, not of each seed
    table = (tmp_path / "out/accuracy.md").read_text()
    lines = {line.split(" | ")[1]: line for line in table.splitlines() if "AUROC" in line}
    assert "| 0.550 ± 0.071 | 0, 1 |  |  |" in lines["mvtec: bottle"] and "| 0.700 | 0 |" in lines["mvtec: screw"]
    assert "| 0.600 | 0 | 0.9 | a paper, mean of 15 |" in lines["mvtec: mean of 2"]  # seed 1 is not whole
    content = json.loads((tmp_path / "out/accuracy.json").read_text())["results"]
    assert content[0]["values"] == [0.5, 0.6] and content[3]["values"] == []  # no AUPRO without masks

    called.clear()
    assert accuracy.main(argv) == 1
    assert [command[0] for command in called] == ["train", "test"]  # what failed, and nothing else
    assert (tmp_path / "out/accuracy.md").read_text() == table

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(accuracy, "run", stop)
    assert accuracy.main(argv) == 130 and "run the same command to resume" in capsys.readouterr().out


def test_the_table_keeps_what_other_calls_have_found(tmp_path, called, monkeypatch, capsys):
    other = ONE._replace(name="crn, other", seeds=(4,))
    monkeypatch.setattr(accuracy, "EXPERIMENTS", [ONE, other])
    argv = ["--data", f"mvtec={tmp_path / 'mvtec'}", "--output", str(tmp_path / "out")]

    def rows():
        content = json.loads((tmp_path / "out/accuracy.json").read_text())["results"]
        return {(row["experiment"], row["category"]): row["seeds"] for row in content if row["number"] == "AUROC"}

    assert accuracy.main([*argv, "--only", "other"]) == 0  # its own seeds
    assert rows() == {("crn, other", name): [4] for name in ("bottle", "screw", "mean of 2")}
    assert accuracy.main([*argv, "--only", "one", "--seeds", "5", "0"]) == 0
    assert rows()["riad, one", "screw"] == [0, 5] and rows()["crn, other", "screw"] == [4] and len(rows()) == 6

    # The same folder with other content is other data.
    (tmp_path / "mvtec/screw/train/good/000.png").touch()
    refused(capsys, accuracy.main, argv, "which has changed since: choose another --output", keeps=tmp_path / "out")
    (tmp_path / "mvtec/screw/train/good/000.png").unlink()

    # What another version of an experiment has found is not its own, and other data have no place in this table.
    monkeypatch.setattr(accuracy, "EXPERIMENTS", [ONE, other._replace(commands=("train --more", ONE.commands[1]))])
    assert accuracy.main([*argv, "--only", "one", "--seeds", "0"]) == 0 and len(rows()) == 3
    (tmp_path / "elsewhere/bottle/train/good").mkdir(parents=True)
    argv[1] = f"mvtec={tmp_path / 'elsewhere'}"
    refused(capsys, accuracy.main, argv, "choose another --output", tmp_path / "mvtec", keeps=tmp_path / "out")


def test_published_means_stand_beside_all_their_categories(monkeypatch):
    runs = {(name, 0): {"AUROC": 0.5, "AUPRO": None} for name in ("bottle", "screw")}
    for count, shown in ((2, {"mean of 2"}), (15, set())):
        monkeypatch.setattr(accuracy, "CATEGORIES", {"mvtec": count})
        lines = accuracy.entries(ONE, runs)
        assert {line["category"] for line in lines if line["published"] is not None} == shown
        (line, _) = accuracy.entries(ONE, {("bottle", 0): runs["bottle", 0]})
        assert line["published"] is None and line["values"] == [0.5]


def test_list(called, capsys):
    assert accuracy.main(["--list"]) == 0
    printed = capsys.readouterr().out
    assert "riad, one: on mvtec, which is not given" in printed and "--data btad=FOLDER" in printed
    assert "--data boards" not in printed and not called


def check_commands(capsys, commands):
    """Every command is given to its script's own main with an option more that it does not know: it names that one."""
    for program, *words in commands:
        module = importlib.import_module(program.removesuffix(".py").replace("/", "."))
        refused(capsys, module.main, [*words, "--no_such_option"], "unknown option --no_such_option")


def test_the_scripts_know_the_options(tmp_path, capsys, monkeypatch):
    commands = set()
    monkeypatch.setattr(accuracy, "run", lambda *words: commands.add(words))
    names = [one.name for one in accuracy.EXPERIMENTS]
    assert len(set(names)) == len(names)
    assert {one.data for one in accuracy.EXPERIMENTS} == {*accuracy.DATA, *accuracy.GENERATED}
    for experiment in accuracy.EXPERIMENTS:
        with pytest.raises(UserError, match="expected one"):  # there are no results
            accuracy.run_once(experiment, "unit", tmp_path / "data/unit", 3, accuracy.Given(tmp_path, True, {}, {}))
    assert len(commands) > len(names) and not any("{" in word for words in commands for word in words)
    check_commands(capsys, [words for words in commands if words[0] != "crrn/compare.py"])  # which takes any option


def test_an_experiment_in_the_file_is_read_or_refused(tmp_path, capsys):
    path = tmp_path / "experiments.toml"
    path.write_text("""
        [riad]
        commands = ["train {data} {options} {cpu}"]
        file = "{place}/{size}.json"
        by_data.mtd.numbers = { AUROC = ["models", 0] }
        numbers = { AUPRO = "aupro" }
        [[riad.experiments]]
        name = "riad, {size} px, {on}"
        options = "--size {size}"
        each = { on = ["mtd", "mvtec"], size = [64] }
        """)
    mtd, mvtec = accuracy.read_experiments(path)
    numbers = {"AUROC": ("models", 0)}
    assert mtd == accuracy.Experiment(
        "riad, 64 px, mtd", "mtd", ("train {data} --size 64 {cpu}",), "{place}/64.json", numbers
    )
    assert mvtec.numbers == {"AUPRO": ("aupro",)}
    for wrong in ("[riad", "[riad]", path.read_text().replace("file =", "folder ="), "riad = 3"):
        path.write_text(wrong)
        with pytest.raises(SystemExit):
            accuracy.read_experiments(path)
        assert f"error: {path} is no list of experiments" in capsys.readouterr().err


def image(path, value=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.broadcast_to(np.uint8(value), (4, 6)).copy()).save(path)


def test_visa(tmp_path, capsys):
    root, images, masks = tmp_path / "VisA", "candle/Data/Images", "candle/Data/Masks"
    for name in ("Normal/0", "Normal/1", "Normal/2", "Anomaly/0"):
        image(root / images / f"{name}.JPG")
    mask = np.zeros((4, 6), np.uint8)
    mask[0, 0], mask[1, 1] = 1, 4  # two kinds of defect
    image(root / masks / "Anomaly/0.png", mask)
    rows = [f"candle,{part},normal,{images}/Normal/{n}.JPG," for n, part in enumerate(("train", "train", "test"))]
    rows.append(f"candle,test,anomaly,{images}/Anomaly/0.JPG,{masks}/Anomaly/0.png")
    with pytest.raises(UserError, match="published split"):
        published_data.visa(root, tmp_path / "out")
    (root / "split_csv").mkdir()
    (root / "split_csv/1cls.csv").write_text("\n".join(["object,split,label,image,mask", *rows]))
    for _ in range(2):  # a second time, nothing is in the way
        ((name, folder),) = published_data.visa(root, tmp_path / "out").items()
    assert name == "candle" and len(mvtec_samples(folder, "train")[0]) == 2
    samples, kinds = mvtec_samples(folder, "test")
    assert kinds == ["good", "bad"] and [sample.label for sample in samples] == [0, 1]
    assert (read_mask(samples[1].mask, (4, 6)) == (mask > 0)).all()


def test_btad(tmp_path, capsys):
    for place in ("train/ok/0.bmp", "test/ok/1.bmp", "test/ko/2.bmp", "ground_truth/ko/2.png"):
        image(tmp_path / "BTAD/01" / place, 255)
    ((name, folder),) = published_data.btad(tmp_path / "BTAD", tmp_path / "out").items()
    samples, _ = mvtec_samples(folder, "test")
    assert name == "01" and len(mvtec_samples(folder, "train")[0]) == 1 and samples[1].mask[0].name == "2.png"


def test_avenue(tmp_path):
    root = tmp_path / "Avenue"
    for name in ("training_videos", "testing_videos", "ground_truth/testing_label_mask"):
        (root / name).mkdir(parents=True)
    for video, abnormal in ((1, (1, 2, 3, 7)), (10, (9,)), (2, (0, 5))):
        masks = np.empty((1, 10), object)
        for frame in range(10):
            masks[0, frame] = np.full((2, 2), frame in abnormal, np.uint8)
        savemat(root / f"ground_truth/testing_label_mask/{video}_label.mat", {"volLabel": masks})
    folder = published_data.avenue(root, tmp_path / "out")["avenue"]
    assert (folder / "labels.txt").read_text().splitlines() == ["01: 2-4, 8-8", "02: 1-1, 6-6", "10: 10-10"]
    intervals = read_intervals(folder / "labels.txt", ["01", "02", "10"])
    labels = labels_from_intervals(intervals["01"], range(1, 11), "01")
    assert np.flatnonzero(labels).tolist() == [1, 2, 3, 7] and (folder / "testing_videos").is_dir()
