"""CS-Flow's scripts, and the demo data's, on bad input."""

import math
import shutil

import numpy as np
import pytest

import csflow.config
from common import demo_data
from csflow import evaluate, export, extract_features, main, score
from tests.bad_input import spoil
from tests.bad_input.cases import (
    State,
    at,
    check_damage,
    exports,
    files,
    make_texture,
    options,
    parametrised,
    places,
    some,
)
from tests.bad_input.spoil import entry, setting

MAINS = {
    "main": main.main, "extract_features": extract_features.main, "evaluate": evaluate.main, "score": score.main,
    "demo_data": demo_data.main, "export": export.main,
}  # fmt: skip
SMALL = ["--img_size", "32", "--n_scales", "1", "--extractor", "lite0"]
LONG = "n" * 300


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A texture with masks, its features, a trained model and its results, scores of the good test images."""
    place = tmp_path_factory.mktemp("csflow") / "place"
    make_texture(place / "data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(csflow.config, "HERE", place)
        undrawn(patch)
        assert main.main(arguments("main", place)) == 0
        assert score.main(arguments("score", place)) == 0
    return State(place)


@pytest.fixture
def place(place, monkeypatch):
    monkeypatch.setattr(csflow.config, "HERE", place)
    return place


def undrawn(patch):
    """Pictures take most of the time."""
    for name in ("_draw_scores", "_draw_maps"):
        patch.setattr(evaluate, name, lambda *_: None)


def arguments(script, place):
    model, data = ["--modelname", "m"], ["--dataset_path", str(place / "data"), "--cpu"]
    data += ["--feature_path", str(place / "features"), "--batch_size", "4"]
    named = [*data, "--class_name", "brick", *SMALL]
    network = ["--fc_internal", "2", "--kernel_sizes", "1", "--meta_epochs", "1", "--sub_epochs", "1"]
    scoring = ["--images", str(place / "data/brick/test/good"), "--output", str(place / "scored"), "--cpu"]
    return {
        "demo_data": ["--output", str(place / "data"), "--size", "64"],
        "export": model,
        "main": [*named, *network, *model],
        "extract_features": named,
        "evaluate": [*data, *model],  # which has its class from the model
        "score": [*scoring, *model],
    }[script]


IMAGE, MASK = "data/brick/train/good/000.png", "data/brick/ground_truth/blur/000_mask.png"
FEATURES, METADATA = "features/brick/brick_scale_0_train.npy", "features/brick/brick_features.json"
TEST_FEATURES, MODEL = "features/brick/brick_scale_0_test.npy", "models/tmp/m"


def features(change):
    """Other features of the first kind."""

    def spoiler(path):
        spoil.npy(change(np.load(path)))(path)

    return spoiler


def first_is(value):
    def change(array):
        array[0, 0, 0, 0] = value
        return array

    return features(change)


def real_beside_generated(place):
    shutil.copy(place / IMAGE, place / "data/brick/test/good/mine.png")


def own(place):
    """The same images, as if they were the user's."""
    (place / "data/brick/SYNTHETIC").unlink()


WRONG_MODEL = {
    **{f"no {name}": spoil.without(name) for name in ("settings", "model", "extractor")},
    "extractor unknown": entry("extractor", "resnet"),
    "extractor is a list": entry("extractor", ["lite0"]),
    "settings is a list": entry("settings", [1]),
    "image size in settings": setting(img_size=[33, 33]),
    "no class name in settings": setting(class_name=None),
    "a huge image size in settings": setting(img_size=[128 * 10**15] * 2),
    "an option in settings": setting(norm_mean=[0, 0, "--help"]),
    "a tiny deviation in settings": setting(norm_std=[1e-300] * 3),
    "a thousand coupling blocks": setting(n_coupling_blocks=1000, kernel_sizes=[3] * 1000),
    "a terabyte of weights": setting(fc_internal=65536, kernel_sizes=[99]),
    "text for a number in settings": setting(n_scales="three"),
    "huge number in settings": setting(n_coupling_blocks=10**12),
    "unhashable in settings": setting(score=[]),
    "calibration is empty": entry("calibration", {"std": [], "mean": [], "map": []}),
    "calibration is NaN": entry("calibration", {name: [math.nan] for name in ("std", "mean", "map")}),
    "calibration is text": entry("calibration", "high"),
    "calibration without maps": entry("calibration", {"std": [1.0], "mean": [1.0]}),
    "history is text": entry("history", "long"),
    "history of text": entry("history", [{"epoch": 1, "auroc_std": "a", "auroc_mean": "b"}]),
}
WRONG_TRAINING = {
    **{f"no {name}": spoil.without(name) for name in ("optimizer", "fingerprint", "sums")},
    "epoch below 0": entry("epoch", -1),
    "step is text": entry("step", "1"),
    "a step beyond the epoch": entry("step", 10**6),
    "an epoch beyond the history": entry("epoch", 10**6),
    "history is shorter": entry("history", []),
    "optimizer is empty": entry("optimizer", {}),
    "scaler of NaN": entry("scaler", {"scale": math.nan}),
    "other images": entry("fingerprint", "0" * 16),
}
# fmt: off
CASES = [
    *options(
        "main",
        "--img_size 33", "--img_size 0", "--img_size big", "--img_size", "--n_scales 9", "--batch_size 0",
        "--batch_size 1" + "0" * 20, "--kernel_sizes 2", "--kernel_sizes 3 5", "--kernel_sizes 1000001",
        "--fc_internal 100000000", "--meta_epochs 0", "--clamp nan", "--lr_init nan", "--lr_init -1",
        "--norm_mean nan 0 0", "--norm_std 1 0 1", "--map_columns 100000", "--seed -1", "--fpr 1", "--fpr nan",
        "--calibration_share 1", "--extractor resnet", "--save_model maybe", "--save_every -1", "--gpu_ids x",
        "--gpu_ids -7", ("--gpu_ids " + "9" * 30, "9999"), ("--device toaster", "toaster"), "--modelname ../x",
        "--modelname ''", "--modelname 'a\nb'", ("--modelname 'a\0b'", "NUL"), (f"--modelname {LONG}", "too long"),
        ("--class_name ../brick", "--class_name"), (f"--class_name {LONG}", "too long"),
        ("--class_name brückchen", "brück"), ("--dataset_path {place}/none", "none"),
        ("--dataset_path {place}/data/brick/SYNTHETIC", "SYNTHETIC"), ("--data {place}/data/brick", "contradict"),
        ("--batchsize 3", "--batch_size"), ("--precision fp16", "GPU"), ("extra", "extra"),
        ("--feature_path {place}/models/tmp/m", "models/tmp/m"),
        ("--extractor effnetB5 --pre_extracted no --extractor_weights {place}/none.pt", "none.pt"),
        ("--seed 1", "seed 0, not 1", "--resume no"), ("--fc_internal 4", "fc_internal 2, not 4"),
        ("--clamp 2", "clamp 3.0, not 2.0"), ("--img_size 64", "img_size"),
    ),
    *files("main", IMAGE, {**spoil.ANY, **spoil.IMAGE}),
    *files("main", MASK, {**spoil.ANY, **some(spoil.IMAGE, "bomb", "zero-sized", "float pixels", "program")}),
    *files("main", MASK, {"mask of another size": spoil.holding(spoil.png(9, 9, bytes(90)))}),
    *files("main", "data/brick/SYNTHETIC", some(spoil.ANY, "empty", "noise", "utf-16", "unreadable", "web page")),
    *files("main", FEATURES, {**spoil.ANY, **spoil.NPY}),
    *files("main", FEATURES, {"NaN": first_is(np.nan), "infinity": first_is(-np.inf)}, more="--meta_epochs 2"),
    *files("main", FEATURES, {
        "double": features(np.float64), "a row less": features(lambda a: a[1:]), "halves": features(np.float16),
        "big-endian": features(lambda a: a.astype(">f4")), "transposed": features(lambda a: a.T),
    }),
    *files("main", TEST_FEATURES, {"NaN": first_is(np.nan)}),
    *files("main", METADATA, {**spoil.CONTENT, **spoil.JSON}),
    *(
        case for name in ("extractor", "img_size", "weights", "fingerprint")
        for case in files("main", METADATA, spoil.each_of(name), "features")
    ),
    *files("main", MODEL, {
        **WRONG_TRAINING, **some(spoil.OURS, "newer format", "kind is a number"),
        **some(spoil.CHECKPOINT, "malicious pickle", "malicious pickle in torch's archive"),
        **some(spoil.ANY, "truncated", "empty", "unreadable"),
    }, MODEL),
    *places("main", {
        "no good test images": (lambda place: shutil.rmtree(place / "data/brick/test/good"), "test/good"),
        "an empty kind of defect": (lambda place: (place / "data/brick/test/none").mkdir(), "test/none"),
        "no training images": (lambda place: shutil.rmtree(place / "data/brick/train"), "brick/train"),
        "real images beside generated ones": (real_beside_generated, "mine.png"),
        "an unreadable folder": (lambda place: (place / "data/brick/test/hole").chmod(0), "test/hole"),
        "a folder of results that cannot be written": (lambda place: (place / "results/m").chmod(0o500), "results/m"),
        "a file for a folder": (at("viz", spoil.holding(b"")), "viz"),
        "another image since": (lambda place: (own(place), real_beside_generated(place)), "other images"),
        "one good image": (
            lambda place: [own(place), *((place / f"data/brick/train/good/00{k}.png").unlink() for k in (1, 2))],
            "brick",
        ),
    }),
    *options(
        "extract_features",
        "--img_size 100", "--batch_size -1", "--n_scales 0", "--norm_std 0 1 1", "--imgsize 32", "--lr_init 1",
        ("--device cuda:x", "cuda:x"), ("--class_name none", "none"), ("--dataset_path ''", "brick"),
        ("--output {place}/data/brick/SYNTHETIC", "SYNTHETIC"),
    ),
    *files("extract_features", IMAGE, some(spoil.ANY, "truncated", "link loop", "unreadable", "missing")),
    *files("extract_features", IMAGE, some(spoil.IMAGE, "bomb", "flipped bit", "rows missing")),
    *(
        case
        for kind in ("JPEG", "TIFF", "BMP", "GIF", "WEBP", "PPM", "PCX", "TGA", "SGI", "JPEG2000")
        for case in files("extract_features", IMAGE, spoil.cut_short(kind))
    ),
    *files(
        "extract_features", "b5.pt",
        {**spoil.CHECKPOINT, **some(spoil.ANY, "missing", "empty", "web page", "folder")},
        more="--extractor effnetB5 --extractor_weights {place}/b5.pt",
    ),
    *files("extract_features", "features/brick/brick_extracting.json", {"no JSON": spoil.holding(b"{")}),
    *places("extract_features", {
        "features that cannot be replaced": (lambda place: (place / "features/brick").chmod(0o500), "features/brick"),
    }),
    *options(
        "evaluate",
        "--fpr 0", "--score median", "--map_every 0", "--report perhaps", "--modelnam m", "--seed 0",
        ("--modelname none", "none"), ("--checkpoint {place}/none", "none"), ("--fc_internal 16", "fc_internal"),
        ("--kernel_sizes 3", "kernel_sizes"), ("--modelname .", "--modelname"), ("--class_name none", "none"),
        ("--n_scales 2 --img_size 64", "n_scales"), ("--max_value auto", "65535, not auto"),
    ),
    *files(
        "evaluate", MODEL,
        {**spoil.ANY, **spoil.CHECKPOINT, **spoil.OURS, **spoil.parameters("model"), **WRONG_MODEL}, MODEL,
    ),
    *files("evaluate", TEST_FEATURES, some(spoil.NPY, "malicious pickle", "huge shape", "archive")),
    *options(
        "score",
        ("--images {place}/none", "none"), ("--images {place}/models", "no images"), (f"--images {LONG}", "too long"),
        ("--images 'ä\nö'", "ä ö"), "--output", ("--output {place}/models/tmp/m", "models/tmp/m"),
        ("--output {place}/data/brick/test/good/new", "--output"), ("--images {place}/data", "other images"),
        "--fpr 2", "--score max", "--image x", "--batch_size 1", ("--checkpoint {place}/none", "none"),
        ("--gpu_ids 1,x", "--gpu_ids"), ("--extractor effnetB5 --extractor_weights {place}/data", "extractor"),
    ),
    *files("score", MODEL, some(spoil.CHECKPOINT, "malicious pickle", "program"), MODEL),
    *files("score", "scored/results.json", {**spoil.CONTENT, **spoil.JSON}, "scored"),
    *files("score", "scored/results.json", spoil.each_of("images"), "scored"),
    *places("score", {
        "an output that is a link loop": (at("scored", spoil.ANY["link loop"]), "scored"),
        "an output that cannot be written": (lambda place: (place / "scored").chmod(0o500), "scored"),
        "a table that cannot be read": (at("scored/progress.jsonl", spoil.ANY["unreadable"]), "progress.jsonl"),
        "images that are a link loop": (at("data/brick/test/good", spoil.ANY["link loop"]), "good"),
    }),
    *options(
        "export",
        "--score median", "--fpr 0", ("--modelname none", "none"), ("--checkpoint {place}/none", "none"),
        "--modelname a/b", ("--fc_internal 16", "fc_internal"), ("--n_scales 2 --img_size 64", "n_scales"),
        "--img_size 33", ("--extractor effnetB5 --extractor_weights {place}/data", "extractor"),
        ("--output_path {place}/none", "none"), "--batch_size 4", "--cpu",
    ),
    *exports("export", MODEL),
    *files("export", MODEL, {
        **some(spoil.ANY, "empty", "truncated", "unreadable"), **some(spoil.CHECKPOINT, "malicious pickle"),
        **some(WRONG_MODEL, "no model", "image size in settings", "calibration is NaN"),
        "other weights of the extractor": entry("weights", "0" * 16),
    }, MODEL),
    *options(
        "demo_data",
        ("--size 63", "size"), ("--size 193", "size"), "--size x", ("--seed -1", "seed"), "--seed x",
        "--outptu x", "--output", "--defective 1.5",
        ("--size 65", "was made by"), ("--seed 3", "was made by"), ("--size 9" + "9" * 400, "size"),
        ("--output {place}/data/brick/SYNTHETIC", "SYNTHETIC"), (f"--output {{place}}/{LONG}", "too long"),
        ("--output 'a\0b'", "NUL"), ("more", "more"), ("--train 0", "0"), ("--good 100001", "100001"),
    ),
    *files("demo_data", "data/brick/SYNTHETIC", some(spoil.ANY, "empty", "noise", "unreadable", "truncated")),
    *places("demo_data", {
        "real files among generated ones": (real_beside_generated, "mine.png"),
        "an empty mark alone": (
            lambda place: shutil.rmtree(place / "data/brick") or spoil.put(place / "data/brick/SYNTHETIC", b""),
            "SYNTHETIC",
        ),
        "a file in its place": (at("data/brick", spoil.holding(b"")), "brick"),
        "a link loop in its place": (at("data/brick", spoil.ANY["link loop"]), "brick"),
        "a folder that cannot be written": (lambda place: (place / "data").chmod(0o500), "data"),
    }),
]
# fmt: on


@parametrised(CASES)
def test_bad_input(case, place, capfd):
    case.check(place, capfd, MAINS, arguments(case.script, place))


@pytest.mark.slow
def test_damaged_files(good, capfd, monkeypatch):
    monkeypatch.setattr(csflow.config, "HERE", good.place)
    undrawn(monkeypatch)
    files = [good.place / name for name in (MODEL, TEST_FEATURES, METADATA)]
    check_damage(capfd, evaluate.main, arguments("evaluate", good.place), files, good.place / "results/m/scores.csv")
