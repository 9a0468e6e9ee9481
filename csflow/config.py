"""Every setting of CS-Flow, with its default. Edit them here or override them on the command line: --batch_size 8.

A default path lies in this folder wherever the program is started; a path on the command line is relative to where
you stand. The defaults are those of the published fork that this folder mirrors; the paper's are img_size 768,
n_coupling_blocks 4, fc_internal 1024, meta_epochs 4, sub_epochs 60, score mean and calibration_share 0.
"""

import os
from argparse import SUPPRESS, Namespace
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from common import cli
from common.cli import YES_NO, folder_name, number, whole
from common.files import UserError, plain, require_like, using

HERE = Path(__file__).resolve().parent


def _setting(default: Any, help: str, type: Callable = str, **more: Any) -> dict[str, Any]:
    return {"default": default, "help": help, "type": type, **more}


SETTINGS = {
    "data": {
        "dataset_path": _setting(HERE / "data/images", "folder that holds the class folders", Path),
        "class_name": _setting("dummy_data", "class folder: train/good, test/good, test/<defect>", folder_name),
        "feature_path": _setting(HERE / "data/features", "folder for the extracted features", Path),
        "max_value": cli.MAX_VALUE,
        "max_pixels": cli.MAX_PIXELS,
        "pre_extracted": _setting(True, "store features once and reuse them; no: compute them in each epoch", **YES_NO),
    },
    "model": {
        "modelname": _setting("dummy_test", "name of the model file and of the folders of its results", folder_name),
        "checkpoint": _setting(None, "the model file; unset: models/tmp/<modelname> in --output_path", Path),
    },
    "feature extractor": {
        "img_size": _setting([512, 512], "height and width (one number: both)", whole(32, 2**15), nargs="+"),
        "extractor": _setting(
            "auto",
            "effnetB5 as in the paper, lite0 (weights need no download), or auto: effnetB5, else lite0",
            choices=("auto", "effnetB5", "lite0"),
        ),
        "extractor_weights": _setting(None, "file with EfficientNet-B5's weights; unset: downloaded", Path),
        "n_scales": _setting(3, "image sizes: the full one, 1/2, 1/4, ...", whole(1, 8)),
        "norm_mean": _setting([0.485, 0.456, 0.406], "mean of R, G and B (ImageNet's)", number(-1e6, 1e6), nargs=3),
        "norm_std": _setting([0.229, 0.224, 0.225], "their standard deviation", number(1e-6), nargs=3),
    },
    "flow": {
        "n_coupling_blocks": _setting(1, "coupling blocks", whole(1, 1000)),
        "fc_internal": _setting(512, "hidden channels of the subnets", whole(1, 65536)),
        "kernel_sizes": _setting(
            None, "kernel size of each block's convolutions; unset: 3, and 5 in the last block", whole(1, 99), nargs="+"
        ),
        "clamp": _setting(3.0, "the log of the scale stays within +-clamp; 0: unlimited", number()),
        "use_gamma": _setting(True, "multiply each scale's subnet output by its learned gamma", **YES_NO),
    },
    "training": {
        "batch_size": _setting(16, "images per step", whole(1, 65536)),
        "lr_init": _setting(2e-4, "Adam's learning rate", cli.positive),
        "max_grad_norm": _setting(1.0, "the gradient's norm is clipped to this", cli.positive),
        "meta_epochs": _setting(50, "how often to train sub_epochs epochs and evaluate", whole(1, 10**6)),
        "sub_epochs": _setting(10, "epochs between evaluations", whole(1, 10**6)),
        "epochs": _setting(None, "all epochs; unset: meta_epochs * sub_epochs", whole(1, 10**9)),
        "minutes": cli.MINUTES,
        "seed": _setting(0, "of the initial weights, the batches and the held-out share", whole(0, 2**32 - 1)),
        "precision": _setting(
            "fp32", "of the training steps; bf16: faster, coarser; tf32, fp16: GPU", choices=cli.PRECISIONS
        ),
        "save_model": _setting(True, "keep the model, and what is needed to resume its training", **YES_NO),
        "save_every": _setting(60.0, "seconds of training between saves", number(0)),
        "resume": _setting(True, "resume an interrupted training of the same name; no: start again", **YES_NO),
    },
    "scores and verdicts": {
        "score": _setting(
            "std", "image score: std of z^2/2 (the published fork) or its mean (the paper)", choices=("std", "mean")
        ),
        "calibration_share": _setting(
            0.1,
            "share of train/good that is not trained on but sets the threshold; 0: all train, no verdicts",
            number(0, 1, below=True),
        ),
        "fpr": _setting(0.05, "share of good images that the threshold may call defective", cli.share),
    },
    "output": {
        "map_every": _setting(4, "draw every n-th defective image", whole(1, 10**9)),
        "map_columns": _setting(8, "images per picture", whole(1, 40)),
        "output_path": _setting(None, "folder for models/, results/ and viz/; unset: csflow/", Path),
        "report": _setting(False, cli.REPORT_HELP, **YES_NO),
        "verbose": _setting(True, "print the losses of each evaluation", **YES_NO),
        "hide_tqdm_bar": _setting(False, "no progress", **YES_NO),
    },
    "machine": {
        "device": _setting("auto", "auto, cpu, cuda, cuda:1 or mps"),
        "gpu_ids": _setting(None, "GPU to use, such as 0; torchrun: one for each process; unset: as --device"),
        "cpu": _setting(False, "use the CPU even where there is a GPU", **YES_NO),
        "deterministic": _setting(False, "on a GPU: the same numbers every time, more slowly", **YES_NO),
    },
}
ALL = {name: setting for group in SETTINGS.values() for name, setting in group.items()}
DEFAULTS = {name: setting["default"] for name, setting in ALL.items()}

FLOW = ("n_coupling_blocks", "fc_internal", "kernel_sizes", "clamp", "use_gamma", "n_scales")
# What must agree for a model to be used at all, and what else for its training to be resumed.
MODEL_SETTINGS = ("max_value", "img_size", "extractor", "norm_mean", "norm_std", *FLOW)
TRAINING_SETTINGS = (
    "class_name", "batch_size", "lr_init", "max_grad_norm", "sub_epochs", "seed", "precision", "calibration_share",
)  # fmt: skip
# What a trained model brings, where the command line does not say otherwise.
BROUGHT = (*MODEL_SETTINGS, *TRAINING_SETTINGS, "dataset_path", "meta_epochs", "epochs", "score", "fpr")
# What the scripts use.
MACHINE = ("hide_tqdm_bar", "device", "gpu_ids", "cpu")
EXTRACTION = ("extractor", "extractor_weights", "n_scales", "img_size", "norm_mean", "norm_std")
FEATURES = (
    "dataset_path", "class_name", "feature_path", "max_value", "max_pixels", *EXTRACTION, "batch_size", *MACHINE,
)  # fmt: skip
TRAINED = ("modelname", "checkpoint", "output_path", *MODEL_SETTINGS, "extractor_weights", "score", "fpr")
# Of each script: what it does, options of its example, its settings, and which of them --output stands for, too.
SCRIPTS = {
    "main": (
        "Train CS-Flow on the good images of a class and evaluate it on the test images.",
        "--dataset_path my_data --class_name bottle --modelname bottle",
        DEFAULTS.keys() - {"checkpoint"}, "output_path",
    ),
    "extract_features": (
        "Extract and store the features of all images of a class.",
        "--dataset_path my_data --class_name bottle", FEATURES, "feature_path",
    ),
    "evaluate": (
        "Evaluate a saved model on the test images of its class.", "--modelname bottle --report",
        {*FEATURES, *TRAINED, "pre_extracted", "map_every", "map_columns", "report"}, "output_path",
    ),
    "score": (
        "Score a folder of images without labels with a saved model.", "--modelname bottle --images my_new_images",
        {*TRAINED, "max_pixels", *MACHINE},
    ),
    "export": ("Write a saved model, with its extractor, as an ONNX file.", "--modelname bottle", TRAINED),
}  # fmt: skip


class Config(Namespace):
    """Settings by name, the places that follow from them, and `given`: the names of those that the user gave.

    root: the class folder; feature_dir: of its features; model_file: what keeps the trained model; result_dir: of
    results.json, scores.csv and report.html; score_picture_dir: of the histogram and the ROC curves; map_picture_dir:
    of images with their anomaly maps; flow: what `csflow.model.get_cs_flow_model` takes. Nobody changes any of them.
    """

    @property
    def extraction(self) -> dict[str, Any]:
        """What `csflow.extract_features.compute_features` takes."""
        return {name: getattr(self, name) for name in EXTRACTION}

    def but(self, **changes: Any) -> "Config":
        """The same settings but for these."""
        return Config(**{**vars(self), **changes})

    def as_dict(self) -> dict[str, Any]:
        """All settings as plain values, as they are stored beside the weights; paths in this folder relative to it."""
        values = {name: getattr(self, name) for name in DEFAULTS}
        for name, value in values.items():
            if isinstance(value, Path):
                values[name] = value.relative_to(HERE) if value.is_relative_to(HERE) else value.absolute()
        return plain(values)

    def with_trained(self, stored: Mapping[str, Any], path: Path) -> "Config":
        """The settings that the model in `path` was trained with (`stored`), but for those of the command line.

        Raises UserError where these contradict the model, or stored ones make no sense.
        """
        ours = self.as_dict()
        given = {name: ours[name] for name in MODEL_SETTINGS if name in self.given}
        if given.get("extractor") == "auto":
            del given["extractor"]
        unlike = [f"{name} {stored.get(name)}, not {given[name]}" for name in given if given[name] != stored.get(name)]
        if unlike:
            raise UserError(
                f"{path} was trained with other settings: {'; '.join(unlike)}. Leave these options out: a trained "
                "model brings its own settings"
            )
        brought = {name: stored[name] for name in BROUGHT if name in stored}
        kinds = {**plain(DEFAULTS), "kernel_sizes": [3]}
        with using(path, "csflow"):
            require_like(brought, {name: kinds[name] for name in brought})
        try:
            return complete({name: getattr(self, name) for name in self.given}, brought)
        except UserError as error:
            raise UserError(f"{path} is damaged: its settings make no sense ({error})") from error


def complete(given: Mapping[str, Any], stored: Mapping[str, Any] | None = None) -> Config:
    """The settings `given`, or else those `stored` with a model, or else the defaults, and what follows from them.

    Raises UserError for values that make no sense together, TypeError for other names.
    """
    if unknown := given.keys() - DEFAULTS.keys():
        raise TypeError(f"there are no settings {', '.join(sorted(unknown))}")
    values = {**DEFAULTS, **(stored or {}), **given}
    for name, value in values.items():
        if ALL[name]["type"] is Path and isinstance(value, str):
            values[name] = HERE / value if name not in given else Path(value)
    if values["checkpoint"] and "modelname" not in given:
        values["modelname"] = values["checkpoint"].name
    sides = values["img_size"]
    sides = [sides] if isinstance(sides, int) else list(sides)
    values["img_size"] = sides = sides * 2 if len(sides) == 1 else sides
    values["epochs"] = values["epochs"] or values["meta_epochs"] * values["sub_epochs"]
    blocks, kernels = values["n_coupling_blocks"], values["kernel_sizes"]
    values["kernel_sizes"] = kernels = [3] * (blocks - 1) + [5] if kernels is None else list(kernels)

    scales = values["n_scales"]
    _require(values, "n_scales", 1 <= scales <= 8, "from 1 to 8")
    step = 32 * 2 ** (scales - 1)
    fits = len(sides) == 2 and all(0 < side <= 2**15 and side % step == 0 for side in sides)
    _require(values, "img_size", fits, f"height and width, multiples of {step} (the coarsest stride) up to 32768")
    fits = len(kernels) == blocks and all(kernel % 2 for kernel in kernels)
    _require(values, "kernel_sizes", fits, "one odd size per block")
    for name in ("norm_mean", "norm_std"):
        _require(values, name, len(values[name]) == 3, "three numbers")
    _require(values, "norm_std", min(values["norm_std"]) >= 1e-6, "at least 1e-6")
    for name in ("extractor", "score", "precision"):
        _require(values, name, values[name] in ALL[name]["choices"], f"one of {', '.join(ALL[name]['choices'])}")
    output, name = values["output_path"] or HERE, values["modelname"]
    return Config(
        **values,
        given=frozenset(given),
        root=values["dataset_path"] / values["class_name"],
        feature_dir=values["feature_path"] / values["class_name"],
        model_file=values["checkpoint"] or output / "models/tmp" / name,
        result_dir=output / "results" / name,
        score_picture_dir=output / "viz/scores" / name,
        map_picture_dir=output / "viz/maps" / name,
        flow={name: values[name] for name in FLOW},
    )


def _require(values: Mapping[str, Any], name: str, fits: bool, expected: str) -> None:
    if not fits:
        raise UserError(f"--{name} {values[name]}: expected {expected}")


def build_parser(
    description: str, example: str, names: Collection[str], output: str | None = None
) -> cli.ArgumentParser:
    """A parser with an option for each setting of `names`; those that are given appear in its result.

    output: the setting that --output stands for, too.
    """
    parser = cli.ArgumentParser(description=description, example=example, argument_default=SUPPRESS)
    for title, settings in SETTINGS.items():
        chosen = {name: setting for name, setting in settings.items() if name in names}
        group = parser.add_argument_group(title) if chosen else None
        if "dataset_path" in chosen:
            group.add_argument("--data", type=Path, help="the class folder; unset: --dataset_path and --class_name")
        for name, setting in chosen.items():
            options = {key: value for key, value in setting.items() if key != "default"}
            options["help"] += cli.default_text(setting["default"]).replace("%", "%%")
            group.add_argument(f"--{name}", *(["--output"] if name == output else []), **options)
    return parser


def parse_with(parser: cli.ArgumentParser, argv: Sequence[str] | None) -> Config:
    """The settings from a command line, and beside them what else the parser knows."""
    given = vars(parser.parse_args(argv))
    if data := given.pop("data", None):
        if both := given.keys() & {"dataset_path", "class_name"}:
            raise UserError(f"--data {data} and --{min(both)} contradict one another: give one of them")
        root = Path(os.path.abspath(data))  # noqa: PTH100 - without following links; "." gets its name
        given |= {"dataset_path": root.parent, "class_name": root.name}
    more = {name: given.pop(name) for name in given.keys() - DEFAULTS.keys()}
    return complete(given).but(**more)


def parse(argv: Sequence[str] | None = None, script: str = "main") -> Config:
    """The settings of a script, one of SCRIPTS."""
    does, options, *names = SCRIPTS[script]
    parser = build_parser(does, f"python csflow/{script}.py {options}", *names)
    if script == "score":
        cli.add_scoring_options(parser, "results/<modelname>/<folder's name>")
    if script == "export":
        add = parser.add_argument_group("ONNX").add_argument
        add("--output", type=Path, default=None, help="the file; unset: results/<modelname>/<modelname>.onnx")
    return parse_with(parser, argv)


parse_extract = partial(parse, script="extract_features")
parse_evaluate = partial(parse, script="evaluate")
parse_score = partial(parse, script="score")
parse_export = partial(parse, script="export")
