"""MemAE's scripts on bad input."""

import math
import shutil

import numpy as np
import pytest
from PIL import Image

from memae import script_eval_video, script_export, script_img_prep, script_index_gen, script_testing, script_training
from tests.bad_input import spoil
from tests.bad_input.cases import State, check_damage, exports, files, options, parametrised, places, some
from tests.bad_input.spoil import entry

MAINS = {
    "img_prep": script_img_prep.main,
    "index_gen": script_index_gen.main,
    "training": script_training.main,
    "testing": script_testing.main,
    "eval_video": script_eval_video.main,
    "export": script_export.main,
}
NAME = "MemAE_Conv3DSpar_d_MemDim4_EntW0.0002_ShrThres0.0025_Seed1_Non"
LONG = "n" * 300


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """Raw videos in UCSD's layout, prepared and indexed; a trained model, its scores and their evaluation."""
    place = tmp_path_factory.mktemp("memae") / "place"
    random = np.random.default_rng(0)
    for name in ("Train/a", "Test/c", "Test/c_gt"):
        (place / "raw" / name).mkdir(parents=True)
        for k in range(1, 10):
            Image.fromarray(random.integers(0, 255, (16, 16), np.uint8)).save(place / f"raw/{name}/{k:03d}.png")
    for k in range(1, 8):
        Image.new("L", (16, 16)).save(place / f"raw/Test/c_gt/{k:03d}.png")
    with pytest.MonkeyPatch.context() as patch:
        for script in (script_testing, script_eval_video, script_training):
            for name in ("draw_worst", "curve_figure"):  # what takes longest
                if hasattr(script, name):
                    patch.setattr(script, name, lambda *_: None)
        for script, main in list(MAINS.items())[:-1]:  # the export needs packages that may not be here
            assert main([*arguments(script, place), *(["--EpochNum", "1"] if script == "training" else [])]) == 0
    (place / "labels.txt").write_text("c: 8-9")
    return State(place)


def arguments(script, place):
    data = ["--DataRoot", str(place / "data"), "--Dataset", "d"]
    if script == "img_prep":
        return [*data, "--Input", str(place / "raw"), "--Size", "16"]
    if script == "index_gen":
        return [*data, "--FrameNum", "8"]
    network = ["--Dataset", "d", "--ModelRoot", str(place / "models"), "--FrameNum", "8", "--MemDim", "4"]
    if script == "export":
        return [*network, "--Size", "32"]
    model = [*data, *network, "--UseCUDA", "no"]
    if script == "training":
        return [*model, "--BatchSize", "2", "--EpochNum", "2", "--IsTbLog", "no"]
    return [*model, "--OutRoot", str(place / "results")]


FRAME, INDEX, LABELS = "data/d/Train/a/003.jpg", "data/d/Train_idx/a/a_i002.mat", "data/d/Test_gt/c.mat"
MODEL, STATE = f"models/{NAME}.pt", f"models/model_{NAME}/{NAME}_resume.pt"
SCORES, TESTED = f"results/res_{NAME}/c.npy", f"results/res_{NAME}/testing.json"
RAW, MASK = "raw/Train/a/009.png", "raw/Test/c_gt/009.png"


# The network has 3 million parameters, even for the smallest memory.
SMALL = {name: one for name, one in spoil.ANY.items() if name not in ("zeros", "cut at its start")}


def copied(source, target):
    return lambda place: shutil.copy(place / source, place / target)


def sized(width, height, mode="L"):
    return spoil.made(lambda path: Image.new(mode, (width, height), "red" if mode == "RGB" else 0).save(path))


def wrong(name, *kinds, way=()):
    return some(spoil.each_of(*way, name), *(f"{'.'.join((*way, name))} is {kind}" for kind in kinds))


OF_A_VIDEO = wrong("Train/a", "a string", "a list", "-1", way=("videos",))
CLIP = {"v_name": "a", "idx": list(range(2, 10))}
FRAMES = {"another size": sized(8, 16)}
# JPEG has no checksums.
JPEG = {name: one for name, one in spoil.IMAGE.items() if name != "flipped bit"}
# What names other files, a playlist, or holds no pictures.
VIDEO = {
    **some(spoil.ANY, "empty", "web page", "noise"),
    "AVI without content": spoil.holding(b"RIFF\x04\0\0\0AVI "),
    "MP4 of a box without end": spoil.holding(b"\0\0\0\x18ftypisom\0\0\x02\0isomiso2\xff\xff\xff\xffmoov"),
    "Matroska without content": spoil.holding(b"\x1a\x45\xdf\xa3" + bytes(60)),
    "sound": spoil.holding(
        b"RIFF\x34\0\0\0WAVEfmt \x10\0\0\0\x01\0\x01\0@\x1f\0\0@\x1f\0\0\x01\0\x08\0data\x10\0\0\0" + bytes(16)
    ),
    "playlist": spoil.holding(b"#EXTM3U\n#EXTINF:1,\n/etc/passwd\n#EXT-X-ENDLIST\n"),
    "list of files": spoil.holding(b"ffconcat version 1.0\nfile b.ts\n"),
    "description of a stream": spoil.holding(b"v=0\nc=IN IP4 127.0.0.1\nm=video 9 RTP/AVP 96\n"),
}
MALICIOUS = {
    **some(spoil.CHECKPOINT, "malicious pickle", "malicious pickle in torch's archive"),
    "malicious pickle of NumPy's": spoil.NPY["malicious pickle"],
}
OTHERS_MODELS = (  # options of scripts that take a trained model
    ("--MemDim 9", "MemDim9"), ("--MemDim 9 --checkpoint {place}/" + MODEL, "--MemDim"),
    ("--ModelName AE --checkpoint {place}/" + MODEL, "--ModelName"),
    ("--Backbone resnet3d --Size 32 --checkpoint {place}/" + MODEL, "--Backbone"),
    ("--ImgChnNum 3 --checkpoint {place}/" + MODEL, "does not fit"),
    ("--checkpoint {place}", "folder"), ("--checkpoint {place}/none.pt", "none.pt"),
    ("--checkpoint {place}/" + STATE, "resuming a training"), ("--checkpoint {place}/" + FRAME, "003.jpg"),
    (f"--checkpoint {LONG}", "too long"),
)  # fmt: skip
CASES = [
    *options(
        "img_prep",
        "--Size 24", "--Size x", "--ImgChnNum 2", "--Dataset ../x", (f"--Dataset {LONG}", "too long"),
        ("--Normal {place}/raw/Train", "not trained on"),
        ("--Input {place}/none", "none"), ("--Input {place}/labels.txt", "labels.txt"),
        ("--Train {place}/raw/Train", "not both"), ("--Labels {place}/none --Dataset e", "none"),
        ("--Size 32", "Size differs"), ("--Inptu x", "--Input"), ("--Input {place}/data", "data/Train"),
        ("--data {place}/e", "contradict"), ("--Dataset 'a\0b'", "NUL"),
    ),
    *files(
        "img_prep", RAW,
        {**some(spoil.ANY, "link loop", "link into nothing"), **spoil.CONTENT, **spoil.IMAGE, **FRAMES},
        more="--Dataset e",
    ),
    *files(
        "img_prep", MASK, {**some(spoil.ANY, "empty", "pipe"), **some(spoil.IMAGE, "bomb", "zero-sized", "program")},
        "c_gt", more="--Dataset e",
    ),
    *files("img_prep", "labels.txt", {
        **some(spoil.ANY, "noise", "utf-16", "device"),
        "beyond the video": spoil.holding(b"c: 3-99"), "from frame 0": spoil.holding(b"c: 0-3"),
        "backwards": spoil.holding(b"c: 5-2"), "another video": spoil.holding(b"d: 1-2"),
        "no numbers": spoil.holding(b"c: all"), "5000 digits": spoil.holding(b"c: 1-" + b"9" * 5000),
        "two videos": spoil.holding(b"TestVideoFile{1}.gt_frame = [1:2];\n" * 2), "null": spoil.holding(b"c: \0"),
    }, "c", more="--Dataset e --Labels {place}/labels.txt"),
    *files(
        "img_prep", "data/d/prepared.json",
        {**spoil.CONTENT, **spoil.JSON, **spoil.each_of("Size"), **wrong("videos", "a list", "-1"),
         **wrong("notes", "a string", "-1"), **OF_A_VIDEO},
    ),
    *files("img_prep", "data/d/prepared.json", some(spoil.ANY, "missing"), "did not make"),
    *files("img_prep", "raw/Train/b.mp4", VIDEO, more="--Dataset e"),
    *places("img_prep", {
        "a number twice": (copied("raw/Train/a/003.png", "raw/Train/a/3.png"), "3.png"),
        "a gap": (lambda place: (place / "raw/Train/a/003.png").unlink(), "004.png"),
        "a superscript for a number": (copied("raw/Train/a/003.png", "raw/Train/a/²1.png"), "raw/Train/a"),
        "a number of 200 digits": (copied("raw/Train/a/003.png", f"raw/Train/a/{'9' * 200}.png"), "9999.png"),
        "a frame beside videos": (copied("raw/Train/a/003.png", "raw/Train/cover.png"), "cover.png"),
        "no videos": (lambda place: shutil.rmtree(place / "raw/Train/a"), "Train"),
        "two videos of one name": (lambda place: spoil.put(place / "raw/Train/a.avi", b"x"), "a.avi"),
        "a mask less": (lambda place: (place / MASK).unlink(), "8 masks"),
        "an unreadable folder of frames": (lambda place: (place / "raw/Train/a").chmod(0), "a"),
        "data that cannot be written": (lambda place: (place / "data").chmod(0o500), "data"),
    }, more="--Dataset e"),
    *options(
        "index_gen",
        "--FrameNum 0", "--Stride 1.5", ("--Dataset none", "none"), "--Dataset ''", ("more", "more"),
        ("--DataRoot {place}/labels.txt", "labels.txt"), ("--framenum 8", "--FrameNum"),
    ),
    *places("index_gen", {
        "a frame is missing": (lambda place: (place / "data/d/Test/c/003.jpg").unlink(), "003"),
        "a frame twice": (copied(FRAME, "data/d/Test/c/3.jpg"), "3.jpg"),
        "frame 0": (copied(FRAME, "data/d/Test/c/000.jpg"), "000.jpg"),
        "a number of 15 digits": (copied(FRAME, f"data/d/Test/c/{'9' * 15}.jpg"), "010 is missing"),
        "no videos": (lambda place: shutil.rmtree(place / "data/d/Test/c"), "Test"),
        "an unreadable video": (lambda place: (place / "data/d/Test/c").chmod(0), "Test/c"),
        "an index that cannot be written": (lambda place: (place / "data/d/Train_idx").chmod(0o500), "Train_idx"),
    }),
    *files("index_gen", "data/d/SYNTHETIC", some(spoil.ANY, "noise", "empty")),
    *options(
        "training",
        "--Batchsize 3", "--BatchSize 0", "--ModelName VAE", "--Backbone i3d", "--BackboneDepth 50",
        ("--BatchSize 1 --Suffix other", "single clip"), ("--Backbone csn --BackboneDepth 18", "--BackboneDepth 18"),
        ("--cpu --UseCUDA yes", "contradict"), ("--sync_bn", "--sync_bn"), "--FrameNum 12",
        ("--FrameNum 16", "16 frames"), "--LR nan", "--LR 0", "--Suffix ../x",
        ("--Dataset none", "none"), ("--precision fp16", "fp16"),
        "--ShrinkThres -1", "--EntropyLossWeight inf", "--Seed 4294967296", ("--Backbone slowonly", "multiples of 32"),
        ("--BackboneWeights w.pt", "--Backbone"), ("--LR 1e-3", "LR"), (f"--Suffix {LONG}", "too long"),
        ("--ModelRoot {place}/labels.txt", "labels.txt"), ("--data /", "--data"),
    ),
    *files("training", FRAME, {**spoil.ANY, **JPEG, **FRAMES, "colours": sized(16, 16, "RGB")}, "003"),
    *files(
        "training", INDEX,
        {**spoil.CONTENT, **MALICIOUS, **spoil.mat_table("idx", CLIP), "nested cells": spoil.nested_cells("idx"),
         "a path for the video": spoil.mat(**{**CLIP, "v_name": "../../etc/passwd"}),
         "a frame that is not there": spoil.mat(v_name="a", idx=range(3, 11)),
         "backwards": spoil.mat(v_name="a", idx=CLIP["idx"][::-1])},
    ),
    *files("training", "data/d/prepared.json", {**spoil.CONTENT, **OF_A_VIDEO}),
    *files("training", STATE, {
        **some(spoil.ANY, "empty", "truncated", "folder"), **some(spoil.OURS, "newer format", "no kind"),
        **some(spoil.CHECKPOINT, "malicious pickle", "malicious pickle in torch's archive", "tensor"),
        **{f"no {name}": spoil.without(name) for name in ("optimizer", "scaler", "log_end")},
        "step is text": entry("step", "1"), "step is true": entry("step", True),
        "sums of text": entry("sums", {"loss": "x"}), "scaler of NaN": entry("scaler", {"scale": math.nan}),
        "history of text": entry("history", ["x"]), "history is shorter": entry("history", []),
        "history of nothing": entry("history", [{"epoch": 1}]),
        "epochs beyond those asked for": entry("epoch", 7), "steps beyond the epoch": entry("step", 99),
        "other frames": entry("fingerprint", "0"), **some(spoil.parameters("model"), "NaN among parameters"),
    }, "resume.pt"),
    *places("training", {
        "no index of a video": (lambda place: shutil.rmtree(place / "data/d/Train_idx/a"), "no index of a"),
        "an index without a number": (copied(INDEX, "data/d/Train_idx/a/first.mat"), "first.mat"),
        "models that cannot be written": (
            lambda place: (place / f"models/log_{NAME}").chmod(0o500) or (
                place / f"models/log_{NAME}/log.csv"
            ).unlink(),
            "log_",
        ),
    }),
    *options(
        "testing",
        *((line.replace(" --Size 32", ""), words) for line, words in OTHERS_MODELS), "--Mode train", "--WorstFrames -1",
        ("--OutRot x", "--OutRoot"), ("--FrameNum 16", "16 frames"), ("--OutRoot {place}/labels.txt", "labels.txt"),
    ),
    *files("testing", MODEL, {**SMALL, **spoil.CHECKPOINT, **spoil.parameters("")}),
    *files("testing", "data/d/Test/c/003.jpg", {**spoil.ANY, **JPEG, **FRAMES}, "003"),
    *places("testing", {
        "results that cannot be written": (
            lambda place: (place / f"results/res_{NAME}").chmod(0o500), "cannot write in",
        ),
        "colours": (
            lambda place: [sized(16, 16, "RGB")(path) for path in (place / "data/d/Test/c").iterdir()], "001.jpg",
        ),
        "no test videos": (lambda place: shutil.rmtree(place / "data/d/Test"), "Test"),
    }),
    *options(
        "export",
        "--Size 0", ("--Size 40", "multiples of 16"), ("--Size 48 --Backbone resnet3d", "multiples of 32"),
        *OTHERS_MODELS[:3], "--BackboneDepth 50", "--BatchSize 4", "--UseCUDA no", "--DataRoot x",
    ),
    *exports("export", MODEL),
    *files("export", MODEL, {**some(spoil.ANY, "missing", "noise"), **some(spoil.CHECKPOINT, "program")}),
    *options(
        "eval_video",
        ("--FrameNum 16", "--FrameNum 16"), ("--Suffix other", "script_testing.py"), "--FrameNum 0",
        ("--Dataset none", "none"), ("--outroot x", "--OutRoot"), (f"--Suffix {LONG}", "too long"),
        ("--OutRoot {place}/labels.txt", "labels.txt"), "--ModelSetting a/b",
    ),
    *files("eval_video", SCORES, {
        **spoil.ANY, **spoil.NPY,
        "NaN": spoil.npy(np.array([1, np.nan])), "infinity": spoil.npy(np.array([1, np.inf])),
        "a score less": spoil.npy(np.array([1.0])), "a table": spoil.npy(np.ones((1, 2))),
        "true and false": spoil.npy(np.array([True, False])),
    }),
    *files("eval_video", LABELS, {
        **spoil.CONTENT, **MALICIOUS, **spoil.mat_table("l", {"l": np.zeros((1, 9))}),
        "nested cells": spoil.nested_cells("l"), "a label less": spoil.mat(l=np.zeros((1, 8))),
        "twos": spoil.mat(l=np.full((1, 9), 2)),
    }),
    *files("eval_video", TESTED, {
        **spoil.CONTENT, **spoil.JSON, **spoil.each_of("videos"), **spoil.each_of("settings"),
        **spoil.each_of("videos", "c", "scored_frames"), **spoil.each_of("settings", "FrameNum"),
    }, ""),
    *files("eval_video", "data/d/Test/c/003.jpg", {**spoil.ANY, **FRAMES}, "003"),
    *files("eval_video", "data/d/prepared.json", spoil.CONTENT),
]  # fmt: skip


@parametrised(CASES)
def test_bad_input(case, place, capfd):
    case.check(place, capfd, MAINS, arguments(case.script, place))


@pytest.mark.slow
def test_damaged_files(good, capfd):
    files = [good.place / name for name in (MODEL,)]
    check_damage(capfd, script_testing.main, arguments("testing", good.place), files, good.place / SCORES)
