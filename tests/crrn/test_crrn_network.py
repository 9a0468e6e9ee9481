"""The network's parts on tiny tensors: gates, dropout, teacher forcing, attention."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from crrn.model.ConvRRN import S_EncDec, ST_EncDec, StackedConvLSTM, cell_class

ROOT = Path(__file__).resolve().parents[2]
MODES = ("ConvLSTM", "ConvConjLSTM", "ConvSTLSTM")
s = torch.sigmoid


def tiny(mode="ConvConjLSTM", **options) -> ST_EncDec:
    torch.manual_seed(0)
    return ST_EncDec(mode, [1, 4, 4], [5, 5], options.pop("n_layers", 2), **options)


def frames(batch=2, steps=3) -> torch.Tensor:
    return torch.randn(batch, steps, 1, 21, 25, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("textbook", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_cells_follow_their_equations(mode, textbook):
    torch.manual_seed(0)
    cell = cell_class(mode)(3, 3, textbook_gates=textbook)
    x, m, h, c = torch.randn(4, 2, 3, 5, 6)
    z_i, z_g, z_o, z_f = (F.conv2d(x, cell.i2h.weight, cell.i2h.bias, padding=1) + cell.h2h(h)).chunk(4, 1)
    if mode == "ConvLSTM":
        c_new = s(z_f) * c + s(z_i) * z_g.tanh()
        h_new = s(z_o) * c_new.tanh()
    elif mode == "ConvConjLSTM":
        i = s(z_i) if textbook else s(s(z_i))
        c_new = s(z_f) * cell.btneck(torch.cat([c, m], 1)) + i * z_g.tanh()
        h_new = s(z_o) * c_new.tanh()
    else:
        c_new = s(z_f) * c + s(z_i) * z_g.tanh()
        y_i, y_g, y_f = (cell.i2m(x) + cell.h2m(m)).chunk(3, 1)
        m_new = s(y_f) * m + s(y_i) * y_g.tanh()
        h_new = (s(z_o) if textbook else z_o) * cell.btneck(torch.cat([c_new, m_new], 1)).tanh()
    h_ours, c_ours = cell([x, m], [h, c])
    if mode == "ConvSTLSTM":
        c_ours, m_ours = c_ours
        torch.testing.assert_close(m_ours, m_new)
    torch.testing.assert_close(h_ours, h_new)
    torch.testing.assert_close(c_ours, c_new)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("mode", MODES)
def test_no_state_is_a_state_of_zeros(mode, stride):
    torch.manual_seed(0)
    cell = cell_class(mode)(3, 5, stride)
    x = torch.randn(2, 3, 9, 11)
    side = (9, 11) if stride == 1 else (3, 4)
    zeros = torch.zeros(2, 3, *side)
    m = torch.randn(2, 3, *side) if stride == 1 else None
    for one, other in zip(cell([x, m], None), cell([x, m], [zeros, zeros])):
        for a, b in zip(*((v if isinstance(v, tuple) else (v,)) for v in (one, other))):
            assert a.shape[-2:] == side
            torch.testing.assert_close(a, b)


def test_forget_gates_start_open():
    cell = cell_class("ConvSTLSTM")(3, 3)
    assert (cell.i2h.bias[9:] == 1).all() and (cell.i2m.bias[6:] == 1).all()
    assert (cell.i2h.bias[:9] != 1).all() and (cell.i2m.bias[:6] != 1).all()


def test_a_strided_conjoining_cell_takes_no_memory_from_below():
    cell = cell_class("ConvConjLSTM")(3, 3, 2)
    with pytest.raises(ValueError, match="stride 2"):
        cell([torch.zeros(1, 3, 9, 9), torch.zeros(1, 3, 4, 4)], None)


def test_unknown_cells_are_refused_by_name():
    with pytest.raises(ValueError, match="ConvGridLSTM was never published"):
        ST_EncDec("ConvGridLSTM", [1, 4, 4], [5, 5], 2)
    with pytest.raises(ValueError, match="'LSTM' is unknown"):
        ST_EncDec("LSTM", [1, 4, 4], [5, 5], 2)


@pytest.mark.parametrize("mode", MODES)
def test_shapes_of_one_layer_and_one_step(mode):  # of two layers, parity tells
    assert tiny(mode, n_layers=1, is_attn=True)(frames(2, 1)).shape == (2, 1, 1, 21, 25)


def test_lists_given_to_the_network_stay_as_they_are():
    channels, kernels = [1, 4, 8], [5, 3]
    ST_EncDec("ConvLSTM", channels, kernels, 1)
    assert (channels, kernels) == ([1, 4, 8], [5, 3])
    decoder = S_EncDec(channels, kernels, is_decoder=True)
    assert [type(layer).__name__ for layer in decoder.layer] == [
        "ConvTranspose2d", "ReLU", "BatchNorm2d", "ConvTranspose2d",
    ]  # fmt: skip
    assert decoder(torch.zeros(1, 1, 8, 6, 7))[0, 0].shape == (1, 29, 33)


def test_dropout_touches_the_first_step_of_a_call_only():
    stack = StackedConvLSTM("ConvLSTM", 4, 3, 1)
    x = torch.randn(1, 1, 4, 17, 17)
    torch.manual_seed(0)
    (dropped, _), (kept, _) = stack(x)[0][0], stack.eval()(x)[0][0]
    share = (dropped == 0).float().mean()
    assert 0.05 < share < 0.4  # 0.2 expected
    torch.testing.assert_close(dropped[dropped != 0], kept[dropped != 0] / 0.8)

    # Two steps: the mask acts on the state between them, not on the last one.
    stack.train()
    twice = x.repeat(1, 2, 1, 1, 1)
    assert (stack(twice)[0][0][0] != 0).all()
    one, other = stack(twice)[0][0][0], stack(twice)[0][0][0]
    assert not torch.equal(one, other)


def test_what_goes_up_has_seen_neither_attention_nor_dropout():
    torch.manual_seed(0)
    stack = StackedConvLSTM("ConvLSTM", 4, 3, 2, is_attn=True)
    x = torch.randn(1, 1, 4, 17, 17)
    first, second = stack.conv_lstm
    h, c = first([x[:, 0], None], None)
    up, _ = second([h, c], None)
    final, attns = stack.eval()(x)
    a = torch.tanh(stack.s_attn[1].attn(up))
    torch.testing.assert_close(attns[1][0], a)
    torch.testing.assert_close(final[1][0], up + a)


def test_teacher_forcing():
    model, x = tiny(), frames()
    other = x.clone()
    other[:, 1:] += 1  # frames 1 and 2 are what the decoder may be shown
    hidden = [[torch.randn(2, 4, 3, 4), torch.randn(2, 4, 3, 4)] for _ in range(2)]

    def decoded(inputs, ratio):
        torch.manual_seed(3)
        return model.st_decoder(inputs, [list(pair) for pair in hidden], None, ratio)

    assert torch.equal(decoded(x, 0.0), decoded(other, 0.0))
    forced = decoded(x, 1.0), decoded(other, 1.0)
    assert torch.equal(forced[0][:, 2], forced[1][:, 2])  # the first one decoded
    assert not torch.allclose(forced[0][:, 1], forced[1][:, 1])
    model.eval()
    assert torch.equal(decoded(x, 1.0), decoded(other, 1.0))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_reduced_precision_stays_close(dtype):
    model, x = tiny(is_attn=True).eval(), frames()
    exact = model(x)
    with torch.autocast("cpu", dtype):
        output = model(x)
        hiddens, _ = model.st_encoder(x)
    assert (output.float() - exact).abs().max() < 0.1
    assert all(state.dtype == torch.float32 for hidden in hiddens for state in hidden)
    output.float().pow(2).mean().backward()
    reduced = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    exact.pow(2).mean().backward()
    scale = max(p.grad.norm().item() for p in model.parameters())
    for one, p in zip(reduced, model.parameters()):
        assert one.dtype == torch.float32
        assert (one - p.grad).norm() < 0.05 * scale


SEEDS_EXAMPLE = """
import torch
from model.core_module.ConvConjLSTM import ConvConjLSTM as ConvLSTM
from model.ConvRRN import StackedConvLSTM

conv_lstm = [ConvLSTM(6, 5, 2), ConvLSTM(6, 5)]
inputs = torch.randn(2, 3, 6, 13, 17)
xm, hiddens = [[inputs[:, j], None] for j in range(3)], [None, None]
for i in range(2):
    ym = []
    for j in range(3):
        h, c = conv_lstm[i](xm[j], hiddens[i])
        ym.append([h, c])
        hiddens[i] = [h, c]
    xm = ym
ours = StackedConvLSTM("ConvConjLSTM", 6, 5, 2).eval()
ours.load_state_dict({f"conv_lstm.{name}": x for name, x in torch.nn.Sequential(*conv_lstm).state_dict().items()})
torch.testing.assert_close(hiddens, ours(inputs)[0])
"""


def test_the_seeds_example_runs_from_inside_crrn(tmp_path):
    """Its loop over layers and steps, without attention and dropout; the numbers are those of our stack."""
    (tmp_path / "example.py").write_text("import sys; sys.path.insert(0, '')\n" + SEEDS_EXAMPLE)
    ended = subprocess.run(
        [sys.executable, str(tmp_path / "example.py")], cwd=ROOT / "crrn", capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == 0, ended.stderr
