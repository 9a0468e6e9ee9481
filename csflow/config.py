"""Every setting of CS-Flow, with its default. Edit them here or override them on the command line: --batch_size 8.

A default path lies in this folder wherever the program is started; a path on the command line is relative to where
you stand. The defaults are those of the published fork that this folder mirrors; the paper's are img_size 768,
n_coupling_blocks 4, fc_internal 1024, meta_epochs 4, sub_epochs 60, score mean and calibration_share 0.
"""

import argparse
import dataclasses
import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.cli import MAX_PIXELS, MAX_VALUE, PRECISIONS, REPORT_HELP, YES_NO, ArgumentParser, default_text, words_of
from common.files import UserError
from common.images import set_max_pixels

HERE = Path(__file__).resolve().parent
# Beyond these, no machine has the memory or the time, and some numbers would not even fit into torch's integers.
LARGEST = {
    "n_scales": 8, "n_coupling_blocks": 1000, "fc_internal": 65536, "batch_size": 65536,
    "meta_epochs": 10**6, "sub_epochs": 10**6, "map_every": 10**9, "map_columns": 40,
}  # fmt: skip


def _setting(default: Any, help: str, kind: Callable = str, **options: Any) -> Any:
    """A setting and its option; `group` begins the next group of --help."""
    metadata = {"help": help, "type": kind, **options}
    return dataclasses.field(default_factory=lambda: default, metadata=metadata)


@dataclass
class Config:
    """The settings of a run. Raises UserError for values that make no sense; `given`: names from the command line."""

    dataset_path: Path = _setting(HERE / "data/images", "folder that holds the class folders", Path, group="data")
    class_name: str = _setting("dummy_data", "class folder, with train/good, test/good and test/<defect>")
    modelname: str = _setting("dummy_test", "name of the model file and of the folders of its results")
    feature_path: Path = _setting(HERE / "data/features", "folder for the extracted features", Path)
    max_value: int | str = _setting(MAX_VALUE["default"], MAX_VALUE["help"], MAX_VALUE["type"])
    max_pixels: int = _setting(MAX_PIXELS["default"], MAX_PIXELS["help"], int)
    pre_extracted: bool = _setting(True, "store features once and reuse them; no: anew from the images", **YES_NO)

    img_size: tuple[int, int] = _setting(
        (512, 512), "height and width (one number: both)", int, nargs="+", group="feature extractor"
    )
    extractor: str = _setting(
        "auto",
        "effnetB5 as in the paper, lite0 (weights need no download), or auto: effnetB5, else lite0",
        choices=("auto", "effnetB5", "lite0"),
    )
    extractor_weights: Path | None = _setting(None, "file with EfficientNet-B5's weights; unset: downloaded", Path)
    n_scales: int = _setting(3, "image sizes: the full one, 1/2, 1/4, ...", int)
    norm_mean: tuple[float, ...] = _setting((0.485, 0.456, 0.406), "mean of R, G and B (ImageNet's)", float, nargs=3)
    norm_std: tuple[float, ...] = _setting((0.229, 0.224, 0.225), "their standard deviation", float, nargs=3)

    n_coupling_blocks: int = _setting(1, "coupling blocks", int, group="flow")
    fc_internal: int = _setting(512, "hidden channels of the subnets", int)
    kernel_sizes: list[int] | None = _setting(
        None, "kernel size of each block's convolutions; unset: 3, and 5 in the last block", int, nargs="+"
    )
    clamp: float = _setting(3.0, "the log of the scale stays within +-clamp; 0: unlimited", float)
    use_gamma: bool = _setting(True, "multiply each scale's subnet output by its learned gamma", **YES_NO)

    batch_size: int = _setting(16, "images per step", int, group="training")
    lr_init: float = _setting(2e-4, "Adam's learning rate", float)
    max_grad_norm: float = _setting(1.0, "the gradient's norm is clipped to this", float)
    meta_epochs: int = _setting(50, "how often to train sub_epochs epochs and evaluate", int)
    sub_epochs: int = _setting(10, "epochs between evaluations", int)
    seed: int = _setting(0, "of the initial weights, the batches and the held-out share", int)
    precision: str = _setting(
        "fp32", "of the training steps; bf16: faster, coarser; tf32, fp16: GPU", choices=PRECISIONS
    )
    save_model: bool = _setting(True, "keep the model, and what is needed to continue its training", **YES_NO)
    save_every: float = _setting(60.0, "seconds of training between saves, which follow evaluations", float)
    resume: bool = _setting(True, "continue an interrupted training of the same name; no: start anew", **YES_NO)

    score: str = _setting(
        "std",
        "image score: std of z^2/2 (the published fork) or its mean (the paper)",
        choices=("std", "mean"),
        group="scores and verdicts",
    )
    calibration_share: float = _setting(
        0.1, "share of train/good that is not trained on but sets the threshold; 0: all train, no verdicts", float
    )
    fpr: float = _setting(0.05, "share of good images that the threshold may call defective", float)

    map_every: int = _setting(4, "draw every n-th defective image", int, group="output")
    map_columns: int = _setting(8, "images per picture", int)
    output_path: Path | None = _setting(None, "folder for models/, results/ and viz/; unset: csflow/", Path)
    report: bool = _setting(False, REPORT_HELP, **YES_NO)
    verbose: bool = _setting(True, "print the losses of each evaluation", **YES_NO)
    hide_tqdm_bar: bool = _setting(False, "no progress", **YES_NO)

    device: str = _setting("auto", "auto, cpu, cuda, cuda:1 or mps", group="machine")
    gpu_ids: str | None = _setting(None, "GPU to use, such as 0; torchrun: one for each process; unset: as --device")
    cpu: bool = _setting(False, "use the CPU even where there is a GPU", **YES_NO)
    deterministic: bool = _setting(False, "on a GPU: the same numbers every time, more slowly", **YES_NO)

    given: frozenset[str] = frozenset()  # names of the settings on the command line

    def __post_init__(self):
        """Fill in what follows from other settings; raise UserError for values that make no sense."""
        for field in _fields():  # texts and numbers from Python
            if field.metadata["type"] is Path and isinstance(getattr(self, field.name), str):
                setattr(self, field.name, Path(getattr(self, field.name)))
        sides = (self.img_size,) if isinstance(self.img_size, int) else tuple(self.img_size)
        self.img_size = sides * 2 if len(sides) == 1 else sides
        for name, highest in LARGEST.items():
            self._require(name, 1 <= getattr(self, name) <= highest, f"from 1 to {highest}")
        self._require("save_every", self.save_every >= 0, "at least 0")
        self._require("clamp", math.isfinite(self.clamp), "a finite number")
        for name in ("lr_init", "max_grad_norm"):
            self._require(name, 0 < getattr(self, name) < math.inf, "a finite number above 0")
        self._require("seed", 0 <= self.seed < 2**32, "from 0 to 2^32 - 1")
        self._require("norm_mean", all(abs(mean) <= 1e6 for mean in self.norm_mean), "at most 1e6")
        self._require("norm_std", all(1e-6 <= std < math.inf for std in self.norm_std), "at least 1e-6")
        self._require("calibration_share", 0 <= self.calibration_share < 1, "from 0 to below 1")
        self._require("fpr", 0 < self.fpr < 1, "between 0 and 1")
        for name in ("class_name", "modelname"):
            value = getattr(self, name)
            plain = value not in ("", ".", "..") and value.isprintable() and not set(value) & set("/\\")
            self._require(name, plain, "the name of one folder, without slashes and control characters")
        step = 32 * 2 ** (self.n_scales - 1)
        fits = len(self.img_size) == 2 and all(0 < size <= 2**15 and size % step == 0 for size in self.img_size)
        self._require("img_size", fits, f"height and width, multiples of {step} (the coarsest stride) up to 32768")
        if self.kernel_sizes is None:
            self.kernel_sizes = [3] * (self.n_coupling_blocks - 1) + [5]
        odd = all(1 <= kernel <= 99 and kernel % 2 for kernel in self.kernel_sizes)
        one_each = len(self.kernel_sizes) == self.n_coupling_blocks
        self._require("kernel_sizes", one_each and odd, "one odd size, up to 99, per block")

    def _require(self, name: str, fits: bool, expected: str) -> None:
        if not fits:
            raise UserError(f"--{name} {getattr(self, name)}: expected {expected}")

    @property
    def _output(self) -> Path:
        return self.output_path or HERE

    @property
    def model_file(self) -> Path:
        """What keeps the trained model."""
        return self._output / "models/tmp" / self.modelname

    @property
    def result_dir(self) -> Path:
        """Folder of results.json, scores.csv and report.html."""
        return self._output / "results" / self.modelname

    @property
    def score_picture_dir(self) -> Path:
        """Folder of the histogram and the ROC curves."""
        return self._output / "viz/scores" / self.modelname

    @property
    def map_picture_dir(self) -> Path:
        """Folder of images with their anomaly maps."""
        return self._output / "viz/maps" / self.modelname

    @property
    def map_size(self) -> tuple[int, int]:
        """Height and width of the features at the finest scale."""
        return self.img_size[0] // 32, self.img_size[1] // 32

    def as_dict(self) -> dict[str, Any]:
        """All settings as plain values, as they are stored beside the weights; paths in this folder relative to it."""
        plain = {}
        for field in _fields():
            value = getattr(self, field.name)
            if isinstance(value, Path):
                value = str(value.relative_to(HERE) if value.is_relative_to(HERE) else value.absolute())
            plain[field.name] = list(value) if isinstance(value, tuple) else value
        return plain

    def same_training(self, stored: dict[str, Any], path: Path) -> None:
        """Raise UserError unless a training with the `stored` settings can be continued with these."""
        ours = self.as_dict()
        remedy = "Use these, or another --modelname, or --resume False to train anew in its place"
        self._compare({name: ours[name] for name in MODEL_SETTINGS + TRAINING_SETTINGS}, stored, path, remedy)

    def with_trained(self, stored: dict[str, Any], path: Path) -> "Config":
        """The settings that a model was trained with, but for those on the command line and those of the machine.

        Raises UserError where an option on the command line contradicts the trained model.
        """
        ours = self.as_dict()
        given = {name: ours[name] for name in MODEL_SETTINGS if name in self.given}
        self._compare(given, stored, path, "Leave these options out: a trained model brings its own settings")
        kept = self.given | MACHINE_SETTINGS
        values = {field.name: getattr(self, field.name) for field in _fields()}
        try:
            for name, value in _checked(stored).items():
                if name not in kept or name in MODEL_SETTINGS:
                    values[name] = HERE / value if isinstance(value, Path) else value
            return Config(**values, given=self.given)
        except UserError as error:
            raise UserError(f"{path} is damaged: its settings make no sense ({error})") from error

    def _compare(self, ours: dict[str, Any], stored: dict[str, Any], path: Path, remedy: str) -> None:
        if ours.get("extractor") == "auto":
            del ours["extractor"]
        differing = [
            f"{name} {stored.get(name)}, not {value}" for name, value in ours.items() if stored.get(name) != value
        ]
        if differing:
            raise UserError(f"{path} was trained with other settings: {'; '.join(differing)}. {remedy}")


# What must agree for a model to be used at all, and what else for its training to be continued.
MODEL_SETTINGS = (
    "max_value", "img_size", "extractor", "n_scales", "norm_mean", "norm_std",
    "n_coupling_blocks", "fc_internal", "kernel_sizes", "clamp", "use_gamma",
)  # fmt: skip
TRAINING_SETTINGS = (
    "class_name", "batch_size", "lr_init", "max_grad_norm", "sub_epochs", "seed", "precision", "calibration_share",
)  # fmt: skip
# What belongs to the run and the machine, not to a trained model.
MACHINE_SETTINGS = {
    "modelname", "feature_path", "pre_extracted", "extractor_weights", "save_model", "save_every", "resume",
    "map_every", "map_columns", "output_path", "report", "verbose", "hide_tqdm_bar", "device", "gpu_ids", "cpu",
    "deterministic", "max_pixels",
}  # fmt: skip


def _checked(stored: dict[str, Any]) -> dict[str, Any]:
    """Stored settings as their options would be given; UserError where one could not be."""
    for field in _fields():
        if field.name in stored and stored[field.name] is None and field.default_factory() is not None:
            raise UserError(f"--{field.name} has no value")
    argv = words_of({field.name: stored.get(field.name) for field in _fields()})
    given = vars(build_parser("").parse_args(argv))
    for name, value in given.items():
        if (str(value) if isinstance(value, Path) else value) != stored[name]:  # a string for a number, say
            raise UserError(f"--{name} {stored[name]!r}")
    return {field.name: given.get(field.name) for field in _fields() if field.name in stored}


def _fields() -> list[dataclasses.Field]:
    return [field for field in dataclasses.fields(Config) if field.name != "given"]


def build_parser(description: str, example: str = "", only: Collection[str] | None = None) -> ArgumentParser:
    """A parser with one option per setting, or per setting of `only`; those that are given appear in its result."""
    parser = ArgumentParser(description=description, example=example, argument_default=argparse.SUPPRESS)
    for field in _fields():
        options = dict(field.metadata)
        if "group" in options:
            group = parser.add_argument_group(options.pop("group"))
        if only is not None and field.name not in only:
            continue
        options["help"] += default_text(field.default_factory())
        group.add_argument(f"--{field.name}", **options)
    return parser


def parse(argv: list[str] | None, description: str = "", example: str = "") -> Config:
    """The settings of this file, overridden by the command line."""
    return from_options(vars(build_parser(description, example).parse_args(argv)))


def from_options(options: dict[str, Any]) -> Config:
    """A Config from what the parser returned; its limit on pixels holds from now on."""
    config = Config(**options, given=frozenset(options))
    set_max_pixels(config.max_pixels)
    return config
