"""Every option of CRRN's scripts, with its default and what it accepts. Imports no torch."""

from argparse import Namespace
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any

from common.cli import MINUTES, PRECISIONS, REPORT_HELP, YES_NO, ArgumentParser, number, positive, share, whole
from common.files import UserError

MODES = ("ConvLSTM", "ConvConjLSTM", "ConvSTLSTM")
MODELS = ["".join(parts) for parts in product(MODES, ("", "_a"), ("", "_textbook"))]  # as compare.py calls them
HELD_OUT = 0.3
FIRST = "the first one is used"
SEED = {"type": whole(0, 2**32 - 1), "default": 0}
# What must agree for a training to be resumed; the first ones also for its result to be used.
MODEL = ("mode", "is_attn", "n_layers", "gates", "protocol")
TRAINING = ("held_out", "batch_size", "num_instance", "lr", "init_tr", "final_tr", "seed", "precision")


def _add_data(parser: ArgumentParser) -> None:
    add = parser.add_argument_group("data").add_argument
    add("--data", help="path of a folder, or name of one in crrn/; unset: ekra there")
    add("--cycle", type=whole(2), help="boards between two stencil cleanings; unset: 10 for jabil, else 20")


def _add_machine(parser: ArgumentParser, gpu_ids: list[int], several: str, result: str, *names: str) -> None:
    """several: what is done with more than one GPU; result: the default of --result; names: its other names."""
    group = parser.add_argument_group("machine and files")
    folder = f"folder for models and results; unset: {result} in the data folder"
    group.add_argument("--result", *names, type=Path, help=folder)
    add = group.add_mutually_exclusive_group().add_argument
    add("--gpu_ids", type=whole(0), nargs="+", default=gpu_ids, help=f"GPUs; {several}")
    add("--cpu", action="store_true", help="use the CPU even where there is a GPU")
    add("--device", help="auto, cpu, cuda, cuda:1 or mps; unset: as --gpu_ids")


def _add_model(
    parser: ArgumentParser, gpu_ids: list[int], *names: str, several: str = FIRST, held_out: float | None = None
) -> None:
    """The options that say which model of which data is meant, and where it runs; names: other ones of --result."""
    _add_data(parser)
    add = parser.add_argument_group("network").add_argument
    cell = "recurrent cell (the authors' ConvGridLSTM was never published)"
    add("--mode", choices=MODES, default="ConvConjLSTM", help=cell)
    add("--is_attn", action="store_true", help="spatial attention in the encoder")
    add("--n_layers", type=whole(1, 100), default=2, help="recurrent layers")
    errors = "published: with the errors of the authors' code, as their checkpoints need it (see README.md)"
    add("--gates", choices=("published", "textbook"), default="published", help=errors)
    add("--precision", choices=PRECISIONS, default="fp32", help="of the network")
    add = parser.add_argument_group("clean sequences").add_argument
    kinds = "drawn from the age model, each pad on its own (the authors'), or measured cycles"
    add("--protocol", choices=("drawn", "measured"), default="drawn", help=kinds)
    unset = "" if held_out else f"; unset: the trained model's, or {HELD_OUT}"
    add("--held_out", type=number(0.01, 0.99), default=held_out, help=f"share of measured cycles not trained on{unset}")
    _add_machine(parser, gpu_ids, several, "result/", *names)


def parse_preprocessing(argv: list[str] | None = None) -> Namespace:
    """The options of 0_preprocessing.py."""
    parser = ArgumentParser(
        description="Preprocess the boards of a data set for training and testing.",
        example="python crrn/0_preprocessing.py --data my_boards --cycle 20",
    )
    _add_data(parser)
    parser.add_argument_group("test sequences").add_argument("--seed", **SEED, help="of the drawn test sequences")
    return parser.parse_args(argv)


def parse_train(argv: list[str] | None = None) -> Namespace:
    """The options of 1_train.py."""
    parser = ArgumentParser(
        description="Train CRRN on the boards of a data set.",
        example="python crrn/1_train.py --data my_boards --cycle 20 --protocol measured --num_epochs 3 --lr 1e-3",
    )
    _add_model(parser, [0, 1, 2, 3], "--output", several="a process on each", held_out=HELD_OUT)
    add = parser.add_argument_group("training").add_argument
    add("--batch_size", type=whole(1), default=5, help="sequences per step")
    add("--num_instance", type=whole(1), default=500, help="sequences per epoch")
    add("--num_epochs", type=whole(1), default=100, help="epochs in all")
    add("--minutes", **MINUTES)
    add("--lr", type=positive, default=1e-4, help="Adam's learning rate")
    add("--init_tr", type=number(0, 1), default=0.25, help="teacher ratio of the first epoch")
    add("--final_tr", type=number(0, 1), default=0.0, help="teacher ratio of the last epoch")
    add("--seed", **SEED, help="of initial weights, sequences and corruption")
    add("--save_every", type=number(0), default=60.0, help="seconds between saves within an epoch")
    add("--resume", **YES_NO, default=True, help="resume an interrupted training; no: start again in its place")
    add("--deterministic", action="store_true", help="on a GPU: the same numbers every time, more slowly")
    add("--sync_bn", action="store_true", help="torchrun on GPUs: batch norms over all processes")
    options = parser.parse_args(argv)
    if options.num_instance < options.batch_size:
        raise UserError(f"--num_instance {options.num_instance}: fewer than --batch_size {options.batch_size}")
    return options


def parse_test(argv: list[str] | None = None) -> Namespace:
    """The options of 2_test_model.py."""
    parser = ArgumentParser(
        description="Count which injected anomalies a trained CRRN finds.",
        example="python crrn/2_test_model.py --data my_boards --cycle 20 --protocol measured --report",
    )
    _add_model(parser, [1, 2, 3], "--output")
    add = parser.add_argument_group("testing").add_argument
    add("--batch_size", type=whole(1), default=20, help="sequences at once")
    sets = "sequences to inject anomalies into: drawn ones or measured cycles held out; unset: as --protocol"
    add("--test_set", choices=("drawn", "measured"), help=sets)
    add("--seed", **SEED, help="of the injected anomalies")
    add("--report", action="store_true", help=REPORT_HELP)
    return parser.parse_args(argv)


def parse_score(argv: list[str] | None = None) -> Namespace:
    """The options of 3_score_boards.py."""
    parser = ArgumentParser(
        description="Judge newly measured boards, pad by pad, with a trained CRRN.",
        example="python crrn/3_score_boards.py --data my_boards --cycle 20 --protocol measured --boards my_new_boards",
    )
    add = parser.add_argument_group("what to judge").add_argument
    add("--boards", type=Path, required=True, help="folder with spi_000.json, ..., in print order")
    add("--output", type=Path, help="folder for the results; unset: beside the model, named as --boards")
    _add_model(parser, [0])
    add = parser.add_argument_group("model and verdicts").add_argument
    add("--checkpoint", type=Path, help="the trained model; unset: model_dictionary.pt in <--result>/<--mode>")
    add("--fpr", type=number(1e-6, 0.5), default=0.01, help="share of fine pads that may be called wrong")
    add("--board_fpr", type=share, default=0.05, help="share of fine boards that may be called defective")
    add("--batch_size", type=whole(1), default=20, help="sequences at once")
    return parser.parse_args(argv)


def parse_compare(argv: list[str] | None = None) -> tuple[Namespace, list[str], list[str]]:
    """The options of compare.py, those that go to training and testing, and those that go to 1_train.py alone."""
    parser = ArgumentParser(
        description="Compare models over several seeds, in both protocols; other options go to 1_train.py.",
        example="python crrn/compare.py --models ConvConjLSTM ConvLSTM --protocols measured --seeds 0 1 2",
    )
    _add_data(parser)
    add = parser.add_argument_group("what to compare").add_argument
    models, protocols = ["ConvConjLSTM", "ConvLSTM"], ["measured", "drawn"]
    add("--models", choices=MODELS, nargs="+", default=models, metavar="MODEL", help="cells, with _a, _textbook")
    add("--protocols", nargs="+", choices=protocols, default=protocols, help="which clean sequences")
    add("--seeds", type=SEED["type"], nargs="+", default=[0, 1, 2], help="of weights, sequences and anomalies")
    add = parser.add_argument_group("training and testing").add_argument
    for name in ("--n_layers", "--held_out", "--precision"):
        add(name, help="as in 1_train.py; unset: as there")
    _add_machine(parser, [0], FIRST, "compare/", "--output")
    options, training = parser.parse_known_args(argv)
    here = {"--protocol": "--protocols", "--test_set": "--protocols", "--seed": "--seeds"}
    here |= dict.fromkeys(("--mode", "--is_attn", "--gates"), "--models")
    if taken := [word.split("=")[0] for word in training if word.split("=")[0] in here]:
        raise UserError(f"{taken[0]}: use {here[taken[0]]} instead")
    both = ["--device", options.device] if options.device else ["--gpu_ids", *map(str, options.gpu_ids)]
    both = ["--cpu"] if options.cpu else both
    for name in ("n_layers", "held_out", "precision"):
        both += [] if getattr(options, name) is None else [f"--{name}", getattr(options, name)]
    parse_train([*training, *both])  # refuses now what the training would refuse
    return options, both, training


def parse_demo_boards(argv: list[str] | None = None) -> Namespace:
    """The options of demo_boards.py."""
    parser = ArgumentParser(
        description="Make boards in the inspection machine's format; they are marked as synthetic.",
        example="python crrn/demo_boards.py --output my_boards --boards 200",
    )
    add = parser.add_argument_group("boards").add_argument
    add("--output", type=Path, required=True, help="new folder for job.json and spi_measurement/")
    add("--seed", **SEED, help="of layout and volumes")
    add("--boards", type=whole(1, 9999), default=200, help="how many, in cycles of 20")
    add("--run", type=whole(0), default=0, help="another number: the same pads, other volumes")
    return parser.parse_args(argv)


def words_to_train(given: Mapping[str, Any]) -> list[str]:
    """The options of 1_train.py that make the model of these options, without those that are defaults."""
    usual, words = vars(parse_train([])), []
    for name in ("data", "cycle", *MODEL, "held_out", "result"):
        if given[name] not in (None, usual[name]):
            words += [f"--{name}"] if given[name] is True else [f"--{name}", str(given[name])]
    return words
