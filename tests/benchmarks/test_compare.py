"""The comparison of the image methods: same split, same metrics, one table; its scripts run in this process."""

import importlib
import json
import shlex
import shutil
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import csflow.config
from benchmarks import compare, nearest_neighbour
from common.demo_data import make_textures
from crn.train import split_calibration as of_crn
from csflow.utils import split_calibration as of_csflow
from riad.source.datamanager import split as of_riad
from tests.helpers import refused

TINY = [
    "--img_size", "128", "--minutes", "1e-6", "--extractor", "lite0", "--cpu", "--held_out", "0.2",
    "--csflow_options", "--n_coupling_blocks 1 --fc_internal 8 --kernel_sizes 3 --batch_size 4",
    "--crn_options", "--num-competitive-units 2 --ngf 2", "--riad_options", "--filters 2 2 2 2 2",
]  # fmt: skip


@pytest.fixture(scope="module")
def textures(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    make_textures(root, size=64, n_train=6, n_good=2, n_defect=1)
    return root


@pytest.fixture
def programs(monkeypatch):
    """The names of the scripts that were run."""
    called = []

    def run(program, *words):
        path = Path(program)
        assert importlib.import_module(f"{path.parent}.{path.stem}").main([str(word) for word in words]) == 0
        called.append(program)

    monkeypatch.setattr(compare, "run", run)
    return called


@pytest.mark.slow  # trains three methods, scores and draws with all
def test_all_methods_on_one_category(textures, tmp_path, programs, capsys):
    argv = ["--data", str(textures / "brick"), "--output", str(tmp_path / "out"), "--seeds", "3", *TINY]
    assert compare.main(argv) == 0
    printed = capsys.readouterr().out
    assert programs[:3] == ["benchmarks/nearest_neighbour.py", "csflow/main.py", "crn/train.py"] and len(programs) == 9
    content = json.loads((tmp_path / "out/compare.json").read_text())
    entries = {entry["method"]: entry for entry in content["results"]}
    assert sorted(entries) == ["CRN", "CS-Flow", "RIAD", "nearest neighbour"]
    aurocs = [entry["image_auroc"][0] for entry in content["results"]]
    assert aurocs == sorted(aurocs, reverse=True)
    for title, method in (("CRN", "crn"), ("CS-Flow", "csflow")):  # not into what another category's model shares
        assert f"--output {tmp_path}/out/brick/{method}_seed" in entries[title]["command"]
    places = {path.name.split("_")[0]: path for path in (tmp_path / "out/brick").iterdir() if path.is_dir()}
    theirs = {
        "CS-Flow": places["csflow"] / "results/compare/results.json",
        "CRN": places["crn"] / "results.json",
        "RIAD": places["riad"] / "results.json",
        "nearest neighbour": places["nearest"] / "results.json",
    }
    for title, path in theirs.items():  # what the table shows is what the method itself reports
        reported, entry = json.loads(path.read_text()), entries[title]
        for key in ("image_auroc", "pixel_auroc", "aupro"):
            assert entry[key] == [reported[key]], title
        assert f"{reported['aupro']:.3f}" in printed and entry["command"] in printed
        assert entry["seconds_per_image"] > 0 and entry["epochs"] in (1, None)  # no epoch more than the time is for
    page = (tmp_path / "out/report.html").read_text()
    assert page.count("<img ") == 1 + 4 + 4 and "not real data" in page and "there is no spread" in page
    assert "features of CS-Flow and the nearest neighbour: lite0. " in page and "was still improving" in page
    assert all(kind in page for kind in ("scratch", "hole", "stain"))
    best = shlex.split(content["results"][0]["command"])[1:-2]  # which scores new images
    programs.clear()
    compare.run(best[0], *best[1:], "--images", textures / "brick/test/hole")

    programs.clear()
    assert compare.main(argv) == 0
    assert {Path(program).stem for program in programs} == {"score", "nearest_neighbour"}  # of the pictures


def test_the_nearest_neighbour_with_two_seeds_on_doubtful_data(textures, tmp_path, programs, capsys):
    """A folder of categories that holds one, beside what systems put there; the page; what is said of the images."""
    root = tmp_path / "data/brick"
    shutil.copytree(textures / "brick", root, ignore=shutil.ignore_patterns("SYNTHETIC"))
    copy = shutil.copy(root / "train/good/000.png", root / "test/good/copy.png")
    (root / "ground_truth/hole/000_mask.png").unlink()
    (root / "test/good/line1/morning").mkdir(parents=True)
    first = min((root / "test/good").glob("*.png"))
    first.rename(first.parent / "line1/morning" / first.name)
    for name in ("__MACOSX", "@eaDir"):
        (tmp_path / "data" / name / "train").mkdir(parents=True)
    argv = ["--data", str(tmp_path / "data"), "--output", str(tmp_path / "out"), "--methods", "nearest", "--seeds", "0"]
    assert compare.main([*argv, "1", *TINY]) == 0
    assert programs == ["benchmarks/nearest_neighbour.py"] * 3  # the last for the pictures
    printed = capsys.readouterr().out
    copies = f"1 of 8 test images, copies of training images, such as {copy}"
    assert copies in printed and printed.count("Best: nearest neighbour, image AUROC ") == 1
    (line,) = [line for line in printed.splitlines() if line.startswith("brick ")]
    assert line.count(" ± ") == 4
    runs = [
        json.loads(path.read_text()) for path in sorted((tmp_path / "out/brick").glob("nearest_seed*/results.json"))
    ]
    content = json.loads((tmp_path / "out/compare.json").read_text())
    (entry,) = content["results"]
    assert entry["image_auroc"] == [run["image_auroc"] for run in runs]
    assert entry["seconds"] >= max(run["extraction_seconds"] for run in runs) > 0
    assert (tmp_path / "out/report.html").read_text().count("<img ") == 1 + 1 + 1
    without = "the pixel metrics leave out 1 defective image without a mask, such as 000.png"
    for run in runs:
        assert run["images"]["train"] == 5 and run["defective_images_without_mask"] == 1
        assert any(copies in note for note in run["notes"]) and without in run["notes"]
        assert set(run["settings"]) <= {"seed", "fpr", "calibration_share", *csflow.config.FEATURES}
    assert any(copies in note for note in content["notes"])

    # Again, nothing is scored; the time that an image takes is told all the same.
    assert compare.main([*argv, "1", *TINY]) == 0
    (again,) = json.loads((tmp_path / "out/compare.json").read_text())["results"]
    assert again["seconds_per_image"] == entry["seconds_per_image"] > 0
    # Another --fpr judges the scores that are stored, on another number of images at once, too.
    program, *command = shlex.split(entry["command"])[1:-2]
    capsys.readouterr()
    for more, resumed in (([], False), (["--fpr", "0.4", "--batch_size", "2"], True)):
        compare.run(program, *command, "--images", root / "test/hole", *more)
        assert ("resuming after 1 of 1 image" in capsys.readouterr().out) == resumed


def test_the_nearest_neighbour_follows_its_images(textures, tmp_path, monkeypatch, capsys):
    """With features of its own, it extracts them again where images or sizes have changed."""
    shutil.copytree(textures / "brick", tmp_path / "brick", ignore=shutil.ignore_patterns("SYNTHETIC"))
    monkeypatch.setattr(nearest_neighbour, "HERE", tmp_path)
    argv = ["--data", str(tmp_path / "brick"), "--extractor", "lite0", "--cpu", "--img_size"]
    assert nearest_neighbour.main([*argv, "128"]) == 0 and nearest_neighbour.main([*argv, "128"]) == 0
    assert "extracting them again" not in capsys.readouterr().out
    (tmp_path / "brick/train/good/000.png").unlink()
    for size in ("128", "256"):
        assert nearest_neighbour.main([*argv, size]) == 0
        assert "extracting them again" in capsys.readouterr().out


def test_found_at_a_rate_of_false_alarms():
    labels, scores = [0] * 20 + [1] * 4, [*range(20), 18.5, 30, 19, 2]
    assert compare.found_at(labels, scores, 0.05) == 0.75  # above 18, which one of 20 exceeds
    assert compare.found_at(labels, scores, 0.04) == 0.25  # above 19


def test_learning_curves_that_rise():
    assert compare.rising([0.5]) and compare.rising([0.5, 0.6, 0.7, 0.8, 0.9, 1.0])
    assert not compare.rising([0.5, 0.8, 0.9, 0.9, 0.9, 0.9])


def test_what_is_told_of_the_best():
    def entry(title, *aurocs, improving=False):
        return {"category": "brick", "method": title, "image_auroc": aurocs, "improving": improving, "seconds": 60}

    options = Namespace(seeds=[0, 1], minutes=1)
    lines = compare.verdict(
        [entry("nearest neighbour", 0.9, 0.92), entry("CRN", 0.9, 0.9, improving=True), entry("RIAD", 0.5, 0.52)],
        options,
    )
    assert lines[0] == "Best: nearest neighbour, image AUROC 0.910 ± 0.014."
    assert lines[1].endswith("spread of the seeds: CRN.") and "CRN was still improving after 1.0 minutes" in lines[2]
    assert len(lines) == 3


def test_runs_are_of_the_masks_and_weights_of_now(textures, tmp_path, monkeypatch):
    """Corrected masks and other weights under the same name are no reason to show the old numbers."""
    shutil.copytree(textures / "brick", tmp_path / "brick")
    (tmp_path / "brick/SYNTHETIC").unlink(missing_ok=True)
    runs = []
    monkeypatch.setattr(compare, "run", lambda *words: runs.append(words))
    found = {"image_auroc": 0.5, "labels": [], "scores": [], "file": ""}
    monkeypatch.setattr(compare, "finish", lambda *_: found)
    weights = tmp_path / "weights"
    weights.write_text("a")
    options = Namespace(
        output=tmp_path / "out", img_size=128, minutes=1.0, extractor="effnetB5", extractor_weights=weights,
        held_out=0.2, cpu=True, precision="fp32", networks="small", max_value=65535, max_pixels=None, csflow_options=[],
    )  # fmt: skip

    def ran():
        runs.clear()
        (category,) = compare.categories_of(tmp_path / "brick")
        compare.run_once("csflow", category, options, 0)
        return len(runs)

    assert [ran(), ran()] == [1, 0]
    mask = next((tmp_path / "brick/ground_truth").rglob("*.png"))
    Image.open(mask).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(mask)
    assert [ran(), ran()] == [1, 0]
    weights.write_text("b")
    assert [ran(), ran()] == [1, 0]


def test_the_same_images_are_held_out():
    for count, share, seed in ((6, 0.2, 3), (761, 0.1, 0), (2, 0.9, 1)):
        rows, held = of_csflow(count, share, seed)
        assert [list(part) for part in of_riad(np.arange(count), share, seed)] == [rows, held]
        if count > 2:
            assert of_crn(count, share, seed, 1) == (rows, held)


def test_table_of_several_categories_and_seeds():
    def one(value):
        return {
            "image_auroc": value, "found": 0.5, "pixel_auroc": None, "aupro": None, "epochs": 3, "batches": 12,
            "seconds": 90, "extraction_seconds": None, "improving": False,
        }  # fmt: skip

    aurocs = {("a", 0): 0.8, ("a", 1): 0.9, ("b", 0): 0.6, ("b", 1): 0.5}
    found = {(category, "crn", seed): one(value) for (category, seed), value in aurocs.items()}
    rows = [compare.row(entry) for entry in compare.summary(found)]
    assert rows[0] == ["a", "CRN", "0.850 ± 0.071", "0.500 ± 0.000", "", "", "3", "1.5", ""]
    assert rows[2] == ["mean of 2", "CRN", "0.700 ± 0.000", "0.500 ± 0.000", "", "", "3", "1.5", ""]


def test_wrong_input(textures, tmp_path, programs, capsys):
    def no(*words, data=textures):
        refused(capsys, compare.main, ["--data", data, "--output", tmp_path / "out", *TINY, *words[:-1]], words[-1])

    (tmp_path / "empty").mkdir()
    no("train/good/*.png", data=tmp_path / "empty")
    (tmp_path / "unlabelled/train").mkdir(parents=True)
    (tmp_path / "unlabelled/train/good").symlink_to(textures / "brick/train/good")
    no("labelled test images", data=tmp_path / "unlabelled")
    (tmp_path / "unlabelled/test").mkdir()
    (tmp_path / "unlabelled/test/bad").symlink_to(textures / "brick/test/good")
    no("test/<kind of defect>/", data=tmp_path / "unlabelled")
    no("--crn_options", "--sed 4", "--seed")  # did you mean
    no("--riad_options", "--list_k 'x", "No closing quotation")
    assert not programs and not (tmp_path / "out").exists()


@pytest.mark.parametrize("networks", compare.NETWORKS)
def test_the_scripts_accept_the_networks(networks, textures, tmp_path, programs, monkeypatch):
    """`check` gives every training's options to its own parser."""

    def reached(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(compare, "require_writable", reached)  # all is checked before
    argv = ["--data", str(textures / "brick"), "--networks", networks, "--output", str(tmp_path / "out")]
    assert compare.main(argv) == 130
