"""Checkpoints: written whole or not at all, refused with a reason, and enough to resume exactly."""

import math
import pickle
import random
import subprocess
import sys
import time
import zipfile
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from common import checkpoint
from common.files import UserError, read_tensors
from tests.bad_input import spoil


def test_content_comes_back_with_kind_format_and_versions(tmp_path):
    path = tmp_path / "new folder" / "model.pt"
    checkpoint.save(
        path, "csflow", model={"w": torch.arange(3.0)}, settings={"a": [1, None, "x"], "b": (1, 2)}, epoch=7
    )
    content = checkpoint.load(path, "csflow")
    assert content["model"]["w"].tolist() == [0, 1, 2]
    assert content["settings"] == {"a": [1, None, "x"], "b": (1, 2)}
    assert (content["kind"], content["format"], content["epoch"]) == ("csflow", checkpoint.FORMAT, 7)
    assert torch.__version__.startswith(content["versions"]["torch"])
    assert [p.name for p in path.parent.iterdir()] == ["model.pt"]


def test_saving_again_replaces_a_file_that_is_mapped(tmp_path):
    path = tmp_path / "model.pt"
    checkpoint.save(path, "csflow", w=torch.zeros(1000))
    old = checkpoint.load(path, "csflow")
    checkpoint.save(path, "csflow", w=torch.ones(1000))
    assert not old["w"].any()  # the mapped file lives on
    assert checkpoint.load(path, "csflow")["w"].all()


FULL_DISK = """
import resource, signal, sys
import torch
from common import checkpoint
from common.files import UserError

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # writing beyond the limit is then an error, as on a full disk
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
try:
    checkpoint.save(sys.argv[1], "csflow", w=torch.ones(1_000_000))
except UserError as error:
    print(error)
"""


@pytest.mark.slow
def test_full_disk_is_one_line_and_keeps_the_old_file(tmp_path):
    path = tmp_path / "model.pt"
    checkpoint.save(path, "csflow", w=torch.zeros(5))
    command = [sys.executable, "-c", FULL_DISK, str(path)]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"cannot write {path}: ")
    assert done.stdout.endswith("what was there before is untouched\n")
    assert done.stdout.count("\n") == 1
    assert checkpoint.load(path, "csflow")["w"].tolist() == [0] * 5
    assert list(tmp_path.iterdir()) == [path]


def test_error_while_saving_keeps_the_old_file(tmp_path):
    path = tmp_path / "model.pt"
    checkpoint.save(path, "csflow", w=torch.zeros(5))
    with pytest.raises((pickle.PicklingError, AttributeError)):  # an error of the program, not the user's
        checkpoint.save(path, "csflow", w=lambda: None)
    assert checkpoint.load(path, "csflow")["w"].tolist() == [0] * 5
    assert list(tmp_path.iterdir()) == [path]


class Malicious:
    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self):
        return Path.touch, (self.target,)


@pytest.mark.parametrize("write", ["torch", "legacy", "pickle"])
def test_code_in_a_file_is_refused_without_running(tmp_path, write):
    path, trace = tmp_path / "model.pt", tmp_path / "it ran"
    content = {"kind": "csflow", "format": 1, "model": Malicious(trace)}
    if write == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=write == "torch")
    with pytest.raises(UserError, match=r"model\.pt is refused"):
        checkpoint.load(path, "csflow")
    assert not trace.exists()


def test_other_kinds_and_newer_formats_are_refused(tmp_path):
    path = tmp_path / "model.pt"
    checkpoint.save(path, "riad", w=torch.zeros(1))
    with pytest.raises(UserError, match="is a checkpoint of riad, not of csflow"):
        checkpoint.load(path, "csflow")
    assert checkpoint.load_tensors(path)["kind"] == "riad"
    torch.save({"kind": "csflow", "format": checkpoint.FORMAT + 1}, path)
    with pytest.raises(UserError, match=r"newer version .*\(format 2"):
        checkpoint.load(path, "csflow")
    checkpoint.write(path, {"kind": "csflow", "format": "x"})
    with pytest.raises(UserError, match="damaged"):
        checkpoint.load(path, "csflow")


def test_truncated_damaged_and_other_files_are_refused_in_one_line(tmp_path):
    path, chance = tmp_path / "model.pt", random.Random(0)
    checkpoint.save(path, "csflow", w=torch.ones(10_000))
    whole = path.read_bytes()
    contents = [whole[:kept] for kept in (0, 1, 10, 1000, len(whole) // 2, -1)]
    torch.save({"w": torch.ones(3), "k": 1}, path, _use_new_zipfile_serialization=False)
    legacy = path.read_bytes()
    for _ in range(100):
        damaged = bytearray(legacy)
        for _ in range(3):
            damaged[chance.randrange(len(legacy))] = chance.randrange(256)
        contents += [bytes(damaged), bytes(chance.choices(b"abcdeghijlqrstu()[]{}.0129", k=20))]
    contents += [b"notes.\n", b"a", b"(not a pickle)", b"{}", b"0123456789" * 1000, b"\n", b"}."]
    contents.append("Ünïcode\n".encode() * 100)
    for content in contents:
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"model\.pt") as caught:
            checkpoint.load(path, "csflow")
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"there is no checkpoint .*nowhere\.pt"):
        checkpoint.load(tmp_path / "nowhere.pt", "csflow")
    with pytest.raises(UserError, match="is a folder"):
        checkpoint.load(tmp_path, "csflow")


@pytest.mark.parametrize(
    ("value", "word"),
    [
        (torch.tensor([1.0, float("nan")]), "nan or infinite"),
        (torch.tensor([1.0, float("inf")]), "nan or infinite"),
        (torch.zeros(2, dtype=torch.complex64), "complex64"),
        (torch.zeros(2, dtype=torch.int64), "int64"),
        (torch.tensor([1.0, 1e300], dtype=torch.float64), "nan or infinite"),
        (torch.zeros(3), "shape"),
        ("text", "no tensor"),
    ],
)
def test_parameters_without_usable_values_are_refused(value, word):
    model = torch.nn.BatchNorm1d(2)
    state = {**model.state_dict(), "weight": value}
    with pytest.raises(UserError, match=f"file.pt .*weight .*{word}"):
        checkpoint.load_parameters(model, state, "file.pt")
    assert torch.equal(model.weight, torch.ones(2))


NESTED = torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)], layout=torch.jagged)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (torch.zeros(2, device="meta"), "more than tensors"),
        (torch.zeros(2).to_sparse(), "more than tensors"),
        (torch.zeros(2).to(torch.float8_e4m3fn), "refused|no checkpoint"),
        (NESTED, "refused|no checkpoint"),
        (torch.zeros(1).expand(65536, 65536), "said to have 17179869184 bytes"),
        ([torch.zeros(1000)] * 100, "said to have 400000 bytes"),
        pytest.param(spoil.shared(48), "parts", marks=pytest.mark.slow),
        ({"settings": {"lr": torch.ones(1)}}, "settings"),
        ({"settings": {"lr": {"a": 1}}}, "settings"),
        ({"settings": {"lr": [[1]]}}, "settings"),
        ({"settings": 1}, "settings"),
        ({"calibration": [10**400]}, "1329 bits"),
    ],
)  # fmt: skip
def test_what_would_hang_fill_the_memory_or_fail_later_is_refused(tmp_path, content, words, zipped):
    torch.save(content, tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match=rf"a\.pt .*({words})"):
        read_tensors(tmp_path / "a.pt")


def _attribute(name):
    tensor = torch.ones(2)
    setattr(tensor, name, 1)
    return tensor


# Pickles as bytes, since to make such an object takes as long. A key of 2**40 parts; a text whose encoding takes the
# square of its length; gigabytes that an operation of torch's or Python's makes of nothing.
TEXT = "".join(map(chr, range(0x4E00, 0x9E00))).encode()
HOSTILE = {
    "a shared key": b"}" + b")" + b"".join(b"q%ch%c\x86" % (k, k) for k in range(40)) + b"K\x01s.",
    "an encoding": b"c_codecs\nencode\nX" + len(TEXT).to_bytes(4, "little") + TEXT + b"X\x08\0\0\0punycode\x86R.",
    "a bytearray": b"cbuiltins\nset\ncbuiltins\nbytearray\nJ\0\xe1\xf5\x05\x85R\x85R.",
    "a typed tensor": b"ctorch\nFloatTensor\nJ\0\xe1\xf5\x05\x85R.",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_pickles_of_more_than_they_hold_are_refused_before_they_are_read(tmp_path, name):
    path = tmp_path / "a.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", b"\x80\x02" + HOSTILE[name])
        archive.writestr("a/version", "3\n")
    start = time.monotonic()
    with pytest.raises(UserError, match="more than tensors"):
        read_tensors(path)
    assert time.monotonic() - start < 5


def test_attributes_in_a_file_are_not_obeyed(tmp_path):
    for name in ("isfinite", "to"):
        torch.save({"a": _attribute(name)}, tmp_path / "a.pt")
        with pytest.raises(UserError, match="more than tensors"):
            read_tensors(tmp_path / "a.pt")
    model = torch.nn.BatchNorm1d(2)
    for metadata in ("text", {"": {"version": "x"}}, {"": {"assign_to_params_buffers": True, "version": 2}}):
        state = model.double().state_dict()
        state._metadata = metadata
        checkpoint.load_parameters(model.float(), state, "file.pt")
        assert model.weight.dtype == torch.float32


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        pytest.param("lists 200,000 deep", "nested", marks=pytest.mark.slow), ("huge number", "refused|broken"),
        ("tar archive", "broken or no checkpoint"), ("program", "is a TorchScript program"),
    ],
)  # fmt: skip
def test_other_files_are_refused_in_our_words(tmp_path, kind, words):
    spoil.CHECKPOINT[kind](tmp_path / "a.pt")
    with pytest.raises(UserError, match=rf"a\.pt .*({words})") as caught:
        read_tensors(tmp_path / "a.pt")
    assert "weights_only" not in str(caught.value)


@pytest.mark.parametrize("scalar", ["numpy._core.multiarray", "numpy.core.multiarray"])
def test_numbers_of_numpys_become_pythons(tmp_path, scalar):
    numbers = [np.int64(-7), np.int32(3), np.float64(0.1), np.float32(0.5)]
    data = pickle.dumps(numbers, 2).replace(b"cnumpy._core.multiarray", f"c{scalar}".encode())
    spoil.pickled(data)(tmp_path / "a.pt")
    read = read_tensors(tmp_path / "a.pt")
    assert read == [-7, 3, 0.1, 0.5] and list(map(type, read)) == [int, int, float, float]
    spoil.pickled(pickle.dumps([np.complex128(1)], 2))(tmp_path / "a.pt")
    with pytest.raises(UserError, match=r"a\.pt is (refused|broken)"):
        read_tensors(tmp_path / "a.pt")


def test_every_flipped_bit_is_found(tmp_path):
    path, chance = tmp_path / "a.pt", random.Random(0)
    weights = torch.randn(1000)
    checkpoint.save(path, "csflow", w=weights)
    whole = path.read_bytes()
    for _ in range(200):
        damaged = bytearray(whole)
        damaged[chance.randrange(len(whole))] ^= 1 << chance.randrange(8)
        path.write_bytes(damaged)
        try:  # of some bytes of the archive nothing depends, such as its entries' dates
            assert torch.equal(checkpoint.load(path, "csflow")["w"], weights)
        except UserError as error:
            assert "\n" not in str(error)


def test_a_network_is_compared_before_it_is_made():
    """A file of 48 KB could otherwise ask for gigabytes, or for a thousand layers."""
    made = []

    def make(layers: int, width: int) -> nn.Module:
        made.append(torch.empty(0).device.type)
        return nn.Sequential(*(nn.Linear(width, width) for _ in range(layers)))

    small = make(2, 2).state_dict()
    with pytest.raises(
        UserError, match=r"a\.pt does not fit the model: 0.weight has shape \(2, 2\) instead of \(1000000,"
    ):
        checkpoint.require_fitting(lambda: make(2, 10**6), small, "a.pt")
    with pytest.raises(UserError, match=r"a\.pt does not fit the model: it holds 4 of many more"):
        checkpoint.require_fitting(lambda: make(10_000, 1), small, "a.pt")
    checkpoint.require_fitting(lambda: make(2, 2), small, "a.pt")
    assert made == ["cpu", "meta", "meta", "meta"]
    assert nn.Linear(2, 2).weight.any()  # initial weights are drawn as ever


def adam_after_a_step(fused: bool, lr: float = 0.1) -> tuple[torch.nn.Module, torch.optim.Adam]:
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr, fused=fused)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return model, optimizer


def test_an_optimizer_takes_the_moments_and_keeps_its_options():
    _, plain = adam_after_a_step(fused=False)
    model, fused = adam_after_a_step(fused=True, lr=0.5)
    for state in fused.state.values():
        state["exp_avg"].zero_()
    checkpoint.load_optimizer(fused, plain.state_dict(), "file.pt")
    assert (fused.param_groups[0]["lr"], fused.param_groups[0]["fused"]) == (0.5, True)
    for one, other in zip(fused.state.values(), plain.state.values()):
        assert torch.equal(one["exp_avg"], other["exp_avg"]) and one["step"] == 1
    fused.step()
    assert model.weight.isfinite().all()


@pytest.mark.parametrize(
    ("kind", "options"),
    [("AdamW", {"fused": True}), ("RAdam", {}), ("NAdam", {}), ("RMSprop", {"momentum": 0.9}), ("RMSprop", {}),
     ("SGD", {"momentum": 0.9, "fused": True}), ("SGD", {})],
)  # fmt: skip
def test_the_moments_of_other_optimizers(kind, options):
    def after_a_step(scale):
        model = torch.nn.Linear(3, 2)
        optimizer = getattr(torch.optim, kind)(model.parameters(), lr=0.1, **options)
        model(torch.full((1, 3), scale)).sum().backward()
        optimizer.step()
        return optimizer

    stored, optimizer = after_a_step(1.0), after_a_step(2.0)
    checkpoint.load_optimizer(optimizer, stored.state_dict(), "file.pt")
    for one, other in zip(optimizer.state.values(), stored.state.values(), strict=True):
        assert all(torch.equal(one[name], other[name]) for name in other)
        for name in other:
            kept = other[name].clone()
            for wrong in (torch.zeros(7), torch.full_like(kept, float("nan"))):
                other[name] = wrong
                with pytest.raises(UserError, match=r"file\.pt: its optimizer does not fit"):
                    checkpoint.load_optimizer(after_a_step(1.0), stored.state_dict(), "file.pt")
            other[name] = kept


@pytest.mark.parametrize("kind", ["Adam", "AdamW", "SGD"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last, "expanded"])
def test_moments_stored_in_another_layout_belong_to_the_same_weights(kind, layout):
    """PyTorch's fused steps on a CPU read moments by address: unconverted, each weight would get another one's."""

    def after_a_step(fused):
        model = torch.nn.Conv2d(4, 8, 3).to(memory_format=torch.channels_last)
        torch.nn.init.constant_(model.weight, 1.0)
        options = {"momentum": 0.9} if kind == "SGD" else {}
        optimizer = getattr(torch.optim, kind)(model.parameters(), lr=0.1, fused=fused, **options)
        step(model, optimizer)
        return model, optimizer

    def step(model, optimizer):
        model.weight.grad = torch.arange(288.0).view(8, 4, 3, 3).contiguous(memory_format=torch.channels_last)
        model.bias.grad = torch.ones(8)
        optimizer.step()

    model, optimizer = after_a_step(fused=True)
    state = optimizer.state_dict()
    for name, value in state["state"][0].items():
        if value.dim() == 4:
            expanded = value.mean().expand(8, 4, 3, 3)  # one number in memory
            state["state"][0][name] = expanded if layout == "expanded" else value.contiguous(memory_format=layout)
    plain_model, plain = after_a_step(fused=False)
    checkpoint.load_optimizer(optimizer, deepcopy(state), "file.pt")
    checkpoint.load_optimizer(plain, deepcopy(state), "file.pt")
    step(model, optimizer)
    step(plain_model, plain)
    assert torch.allclose(model.weight, plain_model.weight, atol=1e-6)


@pytest.mark.parametrize(
    "change",
    [
        lambda state: state.clear(),
        lambda state: state["param_groups"].clear(),
        lambda state: state.update(state=5),
        lambda state: state["state"][0].pop("step"),
        lambda state: state["state"][0].update(exp_avg=torch.zeros(3)),  # fused Adam would read beyond its end
        lambda state: state["state"][0]["exp_avg"].fill_(float("nan")),
        lambda state: state["state"][0]["exp_avg_sq"].fill_(-1.0),
        lambda state: state["state"][0].update(exp_avg="text"),
    ],
)
def test_an_optimizers_state_that_does_not_fit_is_refused(change):
    _, stored = adam_after_a_step(fused=True)
    state = stored.state_dict()
    change(state)
    _, optimizer = adam_after_a_step(fused=True)
    with pytest.raises(UserError, match=r"file\.pt: its optimizer does not fit"):
        checkpoint.load_optimizer(optimizer, state, "file.pt")


@pytest.mark.parametrize("legacy", [False, True])
def test_bare_state_dicts(tmp_path, legacy):
    path = tmp_path / "model.pt"
    torch.save(nn.Linear(2, 3).state_dict(), path, _use_new_zipfile_serialization=not legacy)
    assert set(checkpoint.load_tensors(path, "csflow")) == {"weight", "bias"}
    with pytest.raises(UserError, match="bare parameters, not a csflow checkpoint"):
        checkpoint.load(path, "csflow")


@pytest.mark.parametrize("content", [{}, {"epoch": 3}, {"w": torch.zeros(1), "epoch": 3}, [torch.zeros(1)], 3])
def test_other_content_is_no_state_dict(tmp_path, content):
    torch.save(content, tmp_path / "model.pt")
    with pytest.raises(UserError, match=r"model\.pt holds"):
        checkpoint.load_tensors(tmp_path / "model.pt")


def test_load_parameters_says_what_does_not_fit():
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = {name: value + 1 for name, value in before.items()}

    def message(state) -> str:
        with pytest.raises(UserError) as caught:
            checkpoint.load_parameters(model, state, "weights.pt")
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        return str(caught.value)

    partial = {name: value for name, value in state.items() if name != "1.bias"}
    assert message(partial) == "weights.pt does not fit the model: 1.bias is missing"
    assert message({**state, "2.bias": torch.zeros(1)}) == "weights.pt does not fit the model: 2.bias is unknown"
    reshaped = message({**state, "0.bias": torch.zeros(4)})
    assert reshaped == "weights.pt does not fit the model: 0.bias has shape (4,) instead of (3,)"
    assert message({}).endswith("0.weight is missing; 0.bias is missing; 1.weight is missing and 1 more")

    checkpoint.load_parameters(model, state, "weights.pt")
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_what_is_wrong_in_a_file_is_one_line():
    for error in (KeyError("epoch"), TypeError("epoch is a str"), AttributeError("epoch"), OverflowError("epoch")):
        with (
            pytest.raises(UserError, match=r"x.pt is damaged or not a checkpoint of CRN: .*epoch"),
            checkpoint.using("x.pt", "CRN"),
        ):
            raise error
    for error in (MemoryError(), torch.OutOfMemoryError(), RuntimeError("can't allocate memory"), UserError("mine")):
        with pytest.raises(type(error)) as caught, checkpoint.using("x.pt", "CRN"):
            raise error
        assert caught.value is error


def test_what_a_file_holds_is_like_an_example(tmp_path):
    example = {"epoch": 0, "loss": 0.0, "auroc": math.nan, "history": [{"loss": 0.0}], "device": "", "more": None}
    good = {"epoch": 3, "loss": -1.0, "auroc": math.inf, "history": [{"loss": 1.0, "x": "y"}] * 2, "device": "cpu"}
    checkpoint.save(tmp_path / "a", "crn", **good, more=[1])
    assert checkpoint.load(tmp_path / "a", "crn", example)["history"] == good["history"]
    spoiled = [
        ("epoch", True), ("epoch", -1), ("epoch", 2**53), ("epoch", 1.0), ("loss", math.nan), ("loss", 1),
        ("auroc", None), ("history", {}), ("history", [{}]), ("history", [{"loss": math.inf}]), ("device", 0),
    ]  # fmt: skip
    for name, value in spoiled:
        checkpoint.save(tmp_path / "a", "crn", **{**good, "more": 1, name: value})
        with pytest.raises(UserError, match=f"a is damaged or not a checkpoint of crn: .*({name}|loss is inf)"):
            checkpoint.load(tmp_path / "a", "crn", example)
    checkpoint.save(tmp_path / "a", "crn", **good)
    with pytest.raises(UserError, match="'more' is missing"):
        checkpoint.load(tmp_path / "a", "crn", example)


def test_parameters_buffers_and_moments_that_are_not_finite_are_found():
    for spoiled in (None, "weight", "running_var", "exp_avg_sq"):
        model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
        optimizer = torch.optim.Adam(model.parameters())
        model(torch.randn(3, 2)).square().sum().backward()
        optimizer.step()
        assert checkpoint.finite(model, optimizer)
        places = {
            "weight": model[0].weight.data,
            "running_var": model[1].running_var,
            "exp_avg_sq": optimizer.state[model[0].bias]["exp_avg_sq"],
        }
        if spoiled:
            places[spoiled][0] = float("inf")
            assert not checkpoint.finite(model, optimizer), spoiled


def test_gradient_scalers_get_sound_states_only():
    used = {"scale": 1024.0, "growth_factor": 2.0, "backoff_factor": 0.5, "growth_interval": 9, "_growth_tracker": 0}
    for device, enabled in (("cpu", True), ("cpu", False)):
        scaler = torch.amp.GradScaler(device, enabled=enabled)
        checkpoint.load_scaler(scaler, used)
        assert scaler.get_scale() == (1024 if enabled else 1)
        wrong = ({"scale": math.nan}, {"scale": 0.0}, {"scale": "x"}, {"growth_interval": 1.5}, {"_growth_tracker": -1})
        for change in wrong:
            with pytest.raises((TypeError, ValueError)):
                checkpoint.load_scaler(scaler, {**used, **change})
    checkpoint.load_scaler(scaler, {})
