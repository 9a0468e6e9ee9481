"""Verdicts, and folders of images that are scored once, in spite of interruptions."""

import csv
import json
import os
import shutil
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common import cli, scoring
from common.files import UserError, digest, read_csv
from common.metrics import (
    MaskedPixels,
    evaluate,
    rates,
    say_results,
    thresholds,
    upsample,
    verdict_of,
    write_scores,
)
from common.scoring import FolderScorer, Journal, Scored, default_output, named_images, score_folder, scored, with_given

NAMES = [f"part/{k}.png" for k in range(7)]
LIMIT = {"image": 3.5, "pixel": 3.5, "images": 20, "fpr": 0.05, "promised_fpr": 0.05}


@pytest.fixture
def place(tmp_path):
    cli._notes.clear()
    (tmp_path / "images/part").mkdir(parents=True)
    for k, name in enumerate(NAMES):
        (tmp_path / "images" / name).write_text("broken" if k == 2 else str(k))
    (tmp_path / "model").write_bytes(b"weights")
    return tmp_path


def run(
    place,
    threshold=LIMIT,
    batch_size=2,
    stop=None,
    score=None,
    model="model",
    files=None,
    read=None,
    size=None,
    max_value=None,
    **options,
):
    """Score place/images, whose files tell their scores; returns the exit status and the scores that were computed."""
    given = {
        "images": [place / "images"],
        "maps": "network",
        "pictures": "all",
        "threshold": None,
        "pixel_threshold": None,
    } | options
    asked = []

    def read_one(name):
        text = paths[name].read_text()
        if text == "broken":
            raise UserError(f"{name} is\nbroken" if "\x1b" in name else "broken")
        return np.full((4, 6, 3), int(text), np.uint8)

    def compute(images):
        values = [int(image[0, 0, 0]) for image in images]
        asked.extend(values)
        if stop in values:
            raise KeyboardInterrupt
        return [Scored(float(k), "", np.array([[0, k]], np.float32)) for k in values]

    paths = files or named_images(given["images"])
    listed = {name: [path] for name, path in paths.items()}
    try:
        scorer = FolderScorer(
            place / model, score or compute, {"epochs": 1}, threshold, batch_size, size=size, max_value=max_value,
            hide=True,
        )  # fmt: skip
        status = score_folder(Namespace(**given), place / "out", scorer, listed, read or read_one)
    except KeyboardInterrupt:
        status = 130
    return status, asked


def rows(place):
    return read_csv(place / "out/scores.csv")


def summary(place):
    return json.loads((place / "out/results.json").read_text())


def mask(place, k):
    return np.asarray(Image.open(place / f"out/masks/part/{k}.png"))


def test_thresholds_and_rates(capsys):
    found = thresholds(list(range(100)), list(range(100, 200)), 0.1)
    assert found["images"] == 100 and found["promised_fpr"] <= 0.1 and capsys.readouterr().out == ""
    above = [score for score in range(100) if verdict_of(score, found) == "defective"]
    assert 8 <= len(above) <= 10 and found["pixel"] == found["image"] + 100
    few = thresholds([1.0, 2.0], [1.0, 2.0], 0.1)
    assert few["image"] == 2.0 and capsys.readouterr().out == ""
    rates(few, np.zeros(2), np.zeros(2))
    with_given(few, 1.0, None)
    told = "2 good images are too few for --fpr 0.1 (lowest possible: 0.33, which is used)"
    assert capsys.readouterr().out.count(told) == 2
    with_given(few, 1.0, 1.0)  # nothing is judged by what they vouch for
    assert capsys.readouterr().out == ""
    assert verdict_of(5, None) == "" == verdict_of(None, found)
    met = rates(LIMIT, np.array([0, 0, 1, 2]), np.array([3.0, 4.0, 5.0, 1.0]))
    assert (met["fpr_on_test_good"], met["detection_rate"]) == (0.5, 0.5) and met["image"] == 3.5
    assert np.isnan(rates(LIMIT, np.zeros(2), np.zeros(2))["detection_rate"])


def test_thresholds_of_ones_own():
    assert with_given(LIMIT, None, None) == LIMIT and with_given(None, None, None) is None
    assert with_given(LIMIT, 7.0, None) == {"image": 7.0, "pixel": 3.5, "usual": None, "given": ["image"]}  # no promise
    found = with_given(None, None, 2.0)
    assert found == {"image": None, "pixel": 2.0, "usual": None, "given": ["pixel"]} and verdict_of(9, found) == ""


def test_arrays():
    def score(images):
        return ((image.mean(), image[..., 0]) for image in images)

    image = np.full((2, 3, 3), 4, np.uint8)
    one, many = scored(image, score, LIMIT), scored([image, image // 4], score, LIMIT)
    assert (one.score, one.verdict) == (4.0, "defective") and one.map.shape == (2, 3)
    assert [found.verdict for found in many] == ["defective", "good"] and scored(image, score, None).verdict == ""
    for wrong in (image[..., :1], [image[0]], image[:0]):
        with pytest.raises(ValueError, match="height, width, 3"):
            scored(wrong, score, None)
    for wrong in (image.astype(np.uint16), image.astype(int), image / 255):
        with pytest.raises(ValueError, match=f"image of {wrong.dtype}: expected uint8$"):
            scored(wrong, score, None)
    with pytest.raises(ValueError, match="uint8 or floats"):
        scored(image.astype(int), score, None, (0, 1))
    for wrong in (image / 1.0, image / -255, image * np.nan, image * np.inf):
        with pytest.raises(ValueError, match="finite ones from 0 to 1"):
            scored(wrong, score, None, (0, 1))

    def as_it_is(images):
        assert images[0].flags.c_contiguous and images[0].dtype == kind
        return score(images)

    kind = np.uint8
    assert scored(image[::-1, :, ::-1], as_it_is, None).score == 4
    kind = np.float32
    assert scored(image[:, ::-1] / 16, as_it_is, None, (0, 1)).score == 0.25


def test_defective_images_without_masks_are_named(tmp_path, capsys):
    cli._notes.clear()
    pixels = MaskedPixels()
    for name in ("a", "b", "c"):
        Image.new("L", (4, 4), 255).save(tmp_path / f"{name}.png")
    pixels.update(tmp_path / "a.png", 0, (), np.zeros((2, 2), np.float32))
    pixels.update(tmp_path / "b.png", 1, (), np.ones((2, 2), np.float32))
    pixels.update(tmp_path / "c.png", 1, tmp_path / "c.png", np.ones((2, 2), np.float32))
    found = pixels.compute()
    assert found["defective_images_without_mask"] == 1 and found["pixel_auroc"] == 1
    assert cli.notes() == ["the pixel metrics leave out 1 defective image without a mask, such as b.png"]
    assert "b.png" in capsys.readouterr().out


def test_results_by_kind_of_defect(tmp_path, capsys):
    labels, kinds = np.array([0, 0, 1, 1, 2]), ["good", "good", "crack", "crack", "hole"]
    scores = np.array([1.0, 2.0, 3.0, 1.5, 0.5])
    found = evaluate(labels, scores, {**LIMIT, "image": 2.0}, kinds=kinds)
    assert found["by_defect"] == {
        "crack": {"images": 2, "image_auroc": 0.75, "detection_rate": 0.5},
        "hole": {"images": 1, "image_auroc": 0.0, "detection_rate": 0.0},
    }
    say_results(found)
    assert "crack (2 images): image AUROC 0.7500, 0.500 of them found" in capsys.readouterr().out
    assert np.isnan(evaluate(labels, scores, kinds=kinds)["by_defect"]["hole"]["detection_rate"])
    images = [(f"{i}.png", *pair) for i, pair in enumerate(zip(kinds, labels))]
    write_scores(tmp_path / "s.csv", images, {"score": scores, "score_mean": scores}, {**LIMIT, "image": 2.0})
    assert read_csv(tmp_path / "s.csv")[2] == {
        "path": "2.png", "class": "crack", "label": "1", "score": "3.0", "score_mean": "3.0", "threshold": "2.0",
        "verdict": "defective", "error": "",
    }  # fmt: skip


def test_folder(place, capsys):
    assert run(place) == (1, [0, 1, 3, 4, 5, 6])
    assert "1 image could not be scored" in capsys.readouterr().err
    table = rows(place)
    assert list(table[0]) == ["path", "class", "label", "score", "threshold", "verdict", "error"]
    assert [row["path"] for row in table] == NAMES and list(table[2].values())[1:] == ["", "", "", "", "", "broken"]
    assert [row["verdict"] for row in table] == ["good", "good", "", "good", "defective", "defective", "defective"]
    assert table[4]["score"] == "4.0" and table[4]["threshold"] == "3.5"
    found = summary(place)
    assert found["finished"] and (found["scored"], found["defective"], found["failed"]) == (6, 3, 1)
    assert found["epochs"] == 1 and len(found["model_sha256"]) == 16 and found["threshold"] == LIMIT
    assert found["notes"] == [] and found["maps"] == "network"
    for folder, suffix in (("maps", "tiff"), ("overlays", "jpg"), ("masks", "png")):
        assert len(list((place / "out" / folder / "part").glob(f"*.{suffix}"))) == 6
    stored = np.asarray(Image.open(place / "out/maps/part/5.png.tiff"))
    assert stored.dtype == np.float32 and stored.tolist() == [[0, 5]]
    assert ((mask(place, "5.png") > 0) == (upsample(stored, (4, 6)) > 3.5)).all() and mask(place, "5.png").any()
    # From the maps that are there.
    assert run(place, maps="full") == (1, []) and summary(place)["maps"] == "full"
    assert np.array_equal(np.asarray(Image.open(place / "out/maps/part/5.png.tiff")), upsample(stored, (4, 6)))


def test_pictures_of_those_called_defective(place):
    def shown():
        return sorted(path.name for path in (place / "out/overlays").rglob("*.jpg"))

    assert run(place, pictures="none") == (1, [0, 1, 3, 4, 5, 6])
    assert not (place / "out/maps").exists() and shown() == [] and summary(place)["scored"] == 6
    assert run(place, pictures="defective") == (1, [4, 5, 6]) and shown() == ["4.png.jpg", "5.png.jpg", "6.png.jpg"]
    assert run(place, {**LIMIT, "image": 4.5}, pictures="defective") == (1, [])
    assert shown() == ["5.png.jpg", "6.png.jpg"]
    assert run(place, pictures="none") == (1, []) and shown() == []  # they would show another threshold
    assert run(place) == (1, [0, 1, 3]) and len(shown()) == 6
    with pytest.raises(UserError, match="--threshold"):
        run(place, None, pictures="defective")


def test_what_is_called_defective_shows_why(place):
    run(place, {**LIMIT, "pixel": 5.5})
    assert not mask(place, "3.png").any()  # good
    assert set(np.unique(mask(place, "6.png"))) == {0, 255}
    assert set(np.unique(mask(place, "5.png"))) == {0, 128}  # above the image's threshold, below that of pixels
    heat = np.asarray(Image.open(place / "out/overlays/part/5.png.jpg"))
    assert (heat[:, 3:].astype(int).max(axis=2) > 100).any() and run(place, {**LIMIT, "pixel": 5.5}) == (1, [])


def test_overlays_begin_at_what_is_usual(place):
    def colours(**more):
        run(place, {**LIMIT, "image": 9.0, "pixel": 9.0, **more})
        return np.asarray(Image.open(place / "out/overlays/part/6.png.jpg")).astype(int)

    assert np.ptp(colours(usual=6.0), axis=(0, 1)).max() <= 2  # nothing is above it: the image as it is
    assert np.ptp(colours(usual=0.0), axis=(0, 1)).max() > 30


def test_interrupted_scoring_goes_on(place, capsys):
    assert run(place, stop=5) == (130, [0, 1, 3, 4, 5])
    assert not (place / "out/scores.csv").exists()
    with (place / "out/progress.jsonl").open("a") as file:
        file.write('0123456789abcdef ["part/6.png", [')  # cut off
    # The one that could not be read is tried again.
    assert run(place) == (1, [4, 5, 6])
    assert "resuming after 3 of 7 images" in capsys.readouterr().out
    assert [row["path"] for row in rows(place)] == NAMES and summary(place)["scored"] == 6
    whole = (place / "out/scores.csv").read_bytes()
    # What is finished is kept, but for images that have changed, are new, or have lost their maps.
    assert run(place) == (1, []) and (place / "out/scores.csv").read_bytes() == whole
    (place / "images/part/1.png").write_text("9")
    (place / "images/part/2.png").write_text("2")
    (place / "images/part/7.png").write_text("7")
    (place / "out/maps/part/4.png.tiff").unlink()
    assert run(place) == (0, [9, 2, 4, 7])
    assert "2 images changed, or maps of theirs, such as part/1.png" in summary(place)["notes"][0]
    assert [row["score"] for row in rows(place)] == ["0.0", "9.0", "2.0", "3.0", "4.0", "5.0", "6.0", "7.0"]
    # The time that an image took is told still where none is scored.
    seconds = summary(place)["seconds_per_image"]
    assert run(place, pixel_threshold=2.5) == (0, []) and summary(place)["seconds_per_image"] == seconds > 0


def test_an_image_that_changes_while_it_is_scored_is_scored_again(place):
    (place / "images/part/2.png").write_text("2")

    def read(name):
        text = (place / "images" / name).read_text()
        (place / "images/part/3.png").write_text("8")  # the camera goes on
        return np.full((4, 6, 3), int(text), np.uint8)

    assert run(place, read=read, batch_size=1) == (0, [0, 1, 2, 8, 4, 5, 6])
    (place / "images/part/3.png").write_text("3")

    def read_late(name):
        image = np.full((4, 6, 3), int((place / "images" / name).read_text()), np.uint8)
        (place / "images" / name).write_text("9")
        return image

    assert run(place, read=read_late) == (0, [3])
    assert run(place) == (0, [9])


def test_results_do_not_stand_beside_pictures_of_another_model(place, capsys):
    run(place)
    kept = [place / "out" / name for name in ("scores.csv", "results.json")]
    run(place)
    assert all(path.exists() for path in kept) and "scoring all again" not in capsys.readouterr().out
    (place / "model").write_bytes(b"other weights")
    assert run(place, stop=4) == (130, [0, 1, 3, 4, 5]) and not any(path.exists() for path in kept)
    assert "of another model or other settings" in capsys.readouterr().out
    assert run(place) == (1, [4, 5, 6])
    assert summary(place)["model_sha256"] == digest(place / "model")
    # Those of another threshold neither.
    (place / "images/part/2.png").write_text("2")
    run(place)

    with pytest.MonkeyPatch.context() as patch:
        interrupt_drawing(patch, 1)
        assert run(place, pixel_threshold=2.5) == (130, []) and not any(path.exists() for path in kept)
    assert run(place, pixel_threshold=2.5) == (0, []) and run(place, pixel_threshold=2.5) == (0, [])


def interrupt_drawing(monkeypatch, at):
    """Ctrl-C while the at-th pictures from now on are saved; a function tells how often some were."""
    save, count = scoring._Pictures.draw, 0

    def interrupted(*arguments):
        nonlocal count
        count += 1
        if count == at:
            raise KeyboardInterrupt
        save(*arguments)

    monkeypatch.setattr(scoring._Pictures, "draw", interrupted)
    return lambda: count


def test_full_maps_come_from_the_networks(place, monkeypatch):
    run(place)
    count = interrupt_drawing(monkeypatch, 3)
    assert run(place, maps="full") == (130, []) and run(place, maps="full") == (1, []) and count() == 3 + 4
    stored = [np.asarray(Image.open(place / f"out/maps/part/{k}.png.tiff")) for k in (0, 6)]
    assert all(np.array_equal(a, upsample(np.array([[0, k]], np.float32), (4, 6))) for a, k in zip(stored, (0, 6)))
    assert run(place, maps="full", pixel_threshold=2.5) == (1, [])
    assert run(place)[1] == [0, 1, 3, 4, 5, 6]  # of the network's resolution there are none any more


def test_models_are_told_apart_by_their_bytes(place):
    run(place, stop=4)
    (place / "copy").write_bytes(b"weights")
    assert run(place, model="../" + place.name + "/copy") == (1, [4, 5, 6])
    (place / "copy").write_bytes(b"other weights")
    assert run(place, model="copy") == (1, [0, 1, 3, 4, 5, 6])


def test_another_threshold_judges_without_computing(place):
    run(place)
    other = {**LIMIT, "image": 5.5, "pixel": 1.5}
    assert run(place, other) == (1, [])
    assert [row["verdict"] for row in rows(place)] == ["good", "good", "", "good", "good", "good", "defective"]
    assert summary(place)["defective"] == 1 and rows(place)[0]["threshold"] == "5.5"
    wanted = upsample(np.array([[0, 3]], np.float32), (4, 6)) > 1.5
    assert ((mask(place, "3.png") > 0) == wanted).all() and wanted.any()
    assert run(place, threshold=None, batch_size=1) == (1, []) and not list((place / "out/masks/part").iterdir())
    assert {row["verdict"] for row in rows(place)} == {""}
    # Of one's own.
    assert run(place, LIMIT, pixel_threshold=2.5) == (1, [])
    assert summary(place)["threshold"] == {"image": 3.5, "pixel": 2.5, "usual": None, "given": ["pixel"]}
    assert ((mask(place, "3.png") > 0) == (upsample(np.array([[0, 3]], np.float32), (4, 6)) > 2.5)).all()


def test_interrupted_judging_goes_on(place, monkeypatch):
    run(place)
    count = interrupt_drawing(monkeypatch, 3)
    assert run(place, pixel_threshold=2.5)[0] == 130
    assert run(place, pixel_threshold=2.5) == (1, []) and count() == 3 + 4  # not the two that were drawn
    assert ((mask(place, "6.png") > 0) == (upsample(np.array([[0, 6]], np.float32), (4, 6)) > 2.5)).all()


def test_damaged_lines_are_scored_again(place):
    run(place)
    whole, file = (place / "out/scores.csv").read_bytes(), place / "out/progress.jsonl"
    content = file.read_bytes()
    for where in (content.index(b"part/3"), content.index(b"part/3") - 15, content.rindex(b"6.0")):
        file.write_bytes(content[:where] + bytes([content[where] ^ 1]) + content[where + 1 :])
        cli._notes.clear()
        assert run(place)[1] in ([3], [6]) and (place / "out/scores.csv").read_bytes() == whole
        assert summary(place)["notes"] == [f"1 damaged line in {file}: scored again"]


def test_one_image_does_not_end_the_others(place):
    def short(images):
        if any(image[0, 0, 0] == 3 for image in images):
            raise MemoryError
        return [Scored(1.0, "", np.ones((1, 1), np.float32)) for _ in images]

    assert run(place, batch_size=3, score=short)[0] == 1
    errors = [row["error"] for row in rows(place)]
    assert errors == ["", "", "broken", "not enough memory for this image", "", "", ""]
    assert [row["score"] != "" for row in rows(place)] == [True, True, False, False, True, True, True]

    def faulty(images):
        raise RuntimeError("a fault of the program")

    with pytest.raises(RuntimeError, match="a fault"):
        run(place, score=faulty)


@pytest.mark.skipif(os.name == "nt", reason="names there are text")
def test_names_that_are_no_text(place):
    control = place / "images/part/9\x1b[2J.png"  # what a terminal obeys
    control.write_text("broken")
    run(place)
    assert [row["error"] for row in rows(place) if row["path"].startswith("part/9")] == [
        r"part/9\x1b[2J.png is\nbroken"
    ]
    control.unlink()
    shutil.rmtree(place / "out")
    odd = place / "images" / os.fsdecode(b"part/b\xff.png")
    odd.write_text("1")
    assert run(place) == (1, [0, 1, 3, 4, 5, 6, 1])
    assert run(place) == (1, []) and len(rows(place)) == 8 and summary(place)["scored"] == 7
    (place / "out").rename(place / "other")
    folder = (place / "images").rename(place / os.fsdecode(b"\xff"))
    assert run(place, images=[folder])[1] == [0, 1, 3, 4, 5, 6, 1] and run(place, images=[folder]) == (1, [])


def test_names_that_spreadsheets_would_take_for_formulas(place):
    names = ["=1+2.png", "'=x.png", "@a.png", "-1.png", "'plain.png", "+.png"]
    for name in names:
        (place / "images" / name).write_text("1")
    run(place)
    with (place / "out/scores.csv").open(newline="") as file:
        cells = [row[0] for row in csv.reader(file)]
    assert not [cell for cell in cells if cell[0] in "=+-@"]
    assert sorted(row["path"] for row in rows(place)) == sorted(NAMES + names)
    # Numbers stay numbers.
    run(
        place,
        score=lambda images: [Scored(-1.5, "", np.zeros((1, 1), np.float32)) for _ in images],
        model="images/@a.png",
    )
    assert b",-1.5," in (place / "out/scores.csv").read_bytes()


def test_overlays_beyond_jpegs_limit_are_reduced(place):
    long = np.zeros((20, 70000, 3), np.uint8)
    table = {"long.png": place / "images/part/0.png"}
    options = Namespace(images=[place / "images"], maps="network", pictures="all", threshold=None, pixel_threshold=None)
    scorer = FolderScorer(
        place / "model", lambda images: [Scored(9.0, "", np.array([[0, 9]], np.float32))], {}, LIMIT, hide=True
    )
    status = score_folder(options, place / "out", scorer, {"long.png": [table["long.png"]]}, lambda name: long)
    assert status == 0 and summary(place)["scored"] == 1
    assert Image.open(place / "out/overlays/long.png.jpg").size == (65500, 19)
    assert Image.open(place / "out/masks/long.png.png").size == (70000, 20)
    assert len(summary(place)["notes"]) == 1 and "such as long.png" in summary(place)["notes"][0]


def test_several_images_and_folders(place):
    part, other = place / "images/part", place / "images/other/part"
    other.mkdir(parents=True)
    Path(other / "0.png").write_text("0")
    assert list(named_images([part / "0.png"])) == ["0.png"]
    assert list(named_images([part / "1.png", part / "0.png", part / "1.png"])) == ["1.png", "0.png"]
    assert list(named_images([part, other / "0.png"])) == [*NAMES, "other/part/0.png"]
    assert named_images([other])["0.png"] == other / "0.png"
    with pytest.raises(UserError, match="none"):
        named_images([part, place / "none.png"])
    images = [part / "0.png", part / "1.png"]
    assert run(place, images=images, files=named_images(images)) == (0, [0, 1])
    # More of the same folder, and none twice.
    images = [part / "1.png", part / "3.png"]
    assert run(place, images=images, files=named_images(images)) == (0, [3])
    assert [row["path"] for row in rows(place)] == ["1.png", "3.png"]
    assert "1 image scored before is not among those given now and left out, such as 0.png" in summary(place)["notes"]
    assert run(place, images=[part], files=named_images([part])) == (1, [4, 5, 6])


def test_what_a_shell_names_beside_images_is_left_out(place):
    part = place / "images/part"
    for name in ("Thumbs.db", "notes.txt"):
        (part / name).touch()
    (part / "@eaDir").mkdir()
    assert list(named_images(sorted(part.iterdir()))) == [Path(name).name for name in NAMES]
    (left,) = cli.notes()
    assert left.startswith("left out: 3 files or folders of --images that are hidden")
    assert left.endswith("such as @eaDir")
    assert list(named_images([part / "notes.txt"])) == ["notes.txt"]  # on purpose: an image, whatever its name
    with pytest.raises(UserError, match="names no image"):
        named_images([part / "notes.txt", part / "Thumbs.db"])


def test_images_that_do_not_fit_the_model_are_said(place):
    Image.fromarray(np.full((40, 20), 4095, np.uint16)).save(place / "images/dark.png")
    found = run(place, files={"dark.png": place / "images/dark.png", NAMES[2]: place / "images" / NAMES[2]},
                score=lambda images: [Scored(1.0, "", np.ones((1, 1), np.float32)) for _ in images],
                read=lambda name: np.zeros((40, 20, 3), np.uint8), size=(32, 32), max_value=65535)  # fmt: skip
    dark, squeezed = summary(place)["notes"]
    assert found == (0, []) and "4095 of 65535" in dark and "dark.png" in dark
    assert "1 of 1 image" in squeezed and "20 x 40" in squeezed


def test_folders_of_one_name_have_outputs_of_their_own(place):
    one, other = place / "images/part", place / "images/other/part"
    other.mkdir(parents=True)
    assert default_output(place, [one]) == place / "part"
    (place / "part").mkdir()
    (place / "part/results.json").write_text(json.dumps({"images": str(one)}))
    assert default_output(place, [one]) == place / "part" == default_output(place, [one / "0.png", one / "1.png"])
    assert default_output(place, [other]) == place / "other_part"
    (place / "other_part").mkdir()
    (place / "other_part/results.json").write_text(json.dumps({"images": str(other)}))
    third = place / "elsewhere/other/part"
    third.mkdir(parents=True)
    assert default_output(place, [other]) == place / "other_part"
    assert (
        default_output(place, [third]).name.startswith("other_part_") and len(default_output(place, [third]).name) == 19
    )


def test_refusals(place, monkeypatch):
    run(place)
    with pytest.raises(UserError, match="other images"):
        run(place, images=[place / "images/part"])
    (place / "out/results.json").unlink()
    with pytest.raises(UserError, match="other images"):
        run(place, images=[place / "images/part"])  # an interrupted scoring's, too
    with pytest.raises(UserError, match="lies in --images"):
        run(place, images=[place])
    with pytest.raises(UserError, match="cannot read"):
        run(place, model="none")

    def full(*_):
        raise UserError("cannot write: no space left on device")

    (place / "model").write_bytes(b"new")
    monkeypatch.setattr(scoring._Pictures, "draw", full)
    assert run(place)[0] == 1  # the scores are kept, and say what is missing
    assert rows(place)[0]["score"] == "0.0" and "no space" in rows(place)[0]["error"]


def test_journal(tmp_path):
    cli._notes.clear()
    key = {"boards": tmp_path / "new", "model": "m"}
    journal = Journal(tmp_path, key, boards=tmp_path / "new")
    journal.start([])
    journal.add([0, "a"], [1, "b"])
    journal.add([2, "c"])
    text = journal.path.read_text()
    assert Journal(tmp_path, key, boards=tmp_path / "new").lines == [[0, "a"], [1, "b"], [2, "c"]]
    journal.path.write_text(text.replace('"b"', '"x"')[:-3])  # one damaged, the last one cut off
    assert Journal(tmp_path, key, boards=tmp_path / "new").lines == [[0, "a"]]
    assert cli.notes() == [f"1 damaged line in {journal.path}: scored again"]
    assert Journal(tmp_path, {**key, "model": "other"}, boards=tmp_path / "new").lines == []
    with pytest.raises(UserError, match="results of other boards"):
        Journal(tmp_path, key, boards=tmp_path / "old")
