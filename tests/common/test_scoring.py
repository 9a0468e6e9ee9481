"""Verdicts, and folders of images that are scored once, in spite of interruptions."""

import csv
import json

import numpy as np
import pytest

from common import scoring
from common.files import UserError
from common.scoring import rates, score_folder, thresholds, verdict_of

NAMES = [f"part/{k}.png" for k in range(7)]
LIMIT = {"image": 3.5, "pixel": 3.5, "images": 20, "fpr": 0.05, "promised_fpr": 0.05}


@pytest.fixture
def place(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "model").write_bytes(b"weights")
    return tmp_path


def score(numbers):
    """Image k has score k; the third one cannot be read."""
    image, broken = np.zeros((4, 6, 3), np.uint8), UserError("broken")
    return [broken if k == 2 else (float(k), image, np.full((4, 6), k, np.float32)) for k in numbers]


def run(place, call=score, threshold=LIMIT, batch_size=2, **about):
    return score_folder(
        place / "images", place / "out", place / "model", NAMES, call, batch_size, about, threshold, hide=True
    )


def rows(place):
    with (place / "out/scores.csv").open(newline="") as file:
        return list(csv.reader(file))


def summary(place):
    return json.loads((place / "out/results.json").read_text())


def test_thresholds_and_rates(capsys):
    found = thresholds(list(range(100)), list(range(100, 200)), 0.1)
    assert found["images"] == 100 and found["promised_fpr"] <= 0.1 and capsys.readouterr().out == ""
    above = [score for score in range(100) if verdict_of(score, found) == "defective"]
    assert 8 <= len(above) <= 10 and found["pixel"] == found["image"] + 100
    assert thresholds([1.0, 2.0], [1.0, 2.0], 0.1)["image"] == 2.0 and "cannot vouch" in capsys.readouterr().out
    assert verdict_of(5, None) == ""
    met = rates(LIMIT, np.array([0, 0, 1, 2]), np.array([3.0, 4.0, 5.0, 1.0]))
    assert (met["fpr_on_test_good"], met["detection_rate"]) == (0.5, 0.5) and met["image"] == 3.5
    assert np.isnan(rates(LIMIT, np.zeros(2), np.zeros(2))["detection_rate"])


def test_folder(place, capsys):
    assert run(place, epochs=3) == 1
    assert "1 images could not be read" in capsys.readouterr().err
    table = rows(place)
    assert table[0] == ["path", "score", "threshold", "verdict", "error"]
    assert [row[0] for row in table[1:]] == NAMES and table[3][1:] == ["", "", "", "broken"]
    assert [row[3] for row in table[1:]] == ["good", "good", "", "good", "defective", "defective", "defective"]
    found = summary(place)
    assert found["finished"] and (found["scored"], found["defective"], found["failed"]) == (6, 3, 1)
    assert found["epochs"] == 3 and len(found["model_sha256"]) == 16 and found["threshold"] == LIMIT
    for folder, suffix in (("maps", "tiff"), ("overlays", "jpg"), ("masks", "png")):
        assert len(list((place / "out" / folder / "part").glob(f"*.{suffix}"))) == 6
    assert run(place, threshold=None) == 1
    assert {row[3] for row in rows(place)[1:]} == {""}


def interrupted(place, after, **about):
    """Stop before image number `after`; returns which ones were asked for."""
    asked = []

    def call(numbers):
        asked.extend(numbers)
        if after in numbers:
            raise KeyboardInterrupt
        return score(numbers)

    with pytest.raises(KeyboardInterrupt):
        run(place, call, **about)
    return asked


def test_interrupted_scoring_goes_on(place, capsys):
    assert interrupted(place, after=5) == [0, 1, 2, 3, 4, 5]
    assert len(rows(place)) == 5 and not summary(place)["finished"]
    with (place / "out/scores.csv").open("a") as file:
        file.write("part/6.png,9")  # cut off
    asked = []
    assert run(place, lambda numbers: asked.extend(numbers) or score(numbers)) == 1
    assert asked == [2, 4, 5, 6]  # the one that could not be read is tried again
    assert "continuing after 3 of 7 images" in capsys.readouterr().out
    assert sorted(row[0] for row in rows(place)[1:]) == NAMES
    assert summary(place) | {"finished": True} == summary(place) and summary(place)["scored"] == 6
    # What is finished is done anew.
    asked.clear()
    run(place, lambda numbers: asked.extend(numbers) or score(numbers))
    assert asked == list(range(7))


@pytest.mark.parametrize("change", ["model", "about", "threshold", "table"])
def test_other_scores_are_not_continued(place, change):
    interrupted(place, after=5, epochs=1)
    about, threshold = {"epochs": 1}, LIMIT
    if change == "model":
        (place / "model").write_bytes(b"other weights")
    elif change == "about":
        about = {"epochs": 2}
    elif change == "threshold":
        threshold = {**LIMIT, "image": 1.5}
    else:
        (place / "out/scores.csv").unlink()
    asked = []
    run(place, lambda numbers: asked.extend(numbers) or score(numbers), threshold, **about)
    assert asked == list(range(7))


def test_refusals(place, monkeypatch):
    run(place)
    (place / "more").mkdir()
    with pytest.raises(UserError, match="other images"):
        score_folder(place / "more", place / "out", place / "model", NAMES, score, 2, {}, None, hide=True)
    with pytest.raises(UserError, match="lies in --images"):
        score_folder(place, place / "out", place / "model", NAMES, score, 2, {}, None, hide=True)
    with pytest.raises(UserError, match="cannot read"):
        score_folder(place / "more", place / "new", place / "none", NAMES, score, 2, {}, None, hide=True)

    def full(*_):
        raise UserError("cannot write: no space left on device")

    monkeypatch.setattr(scoring, "_save_pictures", full)
    assert run(place) == 1  # the scores are kept, and say what is missing
    assert rows(place)[1][1] == "0.0" and "no space" in rows(place)[1][4]
