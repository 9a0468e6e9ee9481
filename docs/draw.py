"""Pictures of the five methods for the READMEs: python docs/draw.py writes docs/<paper>.svg, byte for byte the same.

After python benchmarks/demo.py, python docs/draw.py benchmarks/results/demo writes docs/<paper>_finds.jpg, too.
Letters are those of the papers' equations and of the code that each picture's docstring names; svg.py has the shapes.
"""

import base64
import io
import random
import re
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from PIL import Image

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from docs.svg import Section, across, arrow, box, circle, funnel, rect, stack, table, text, write


# fmt: off
def csflow() -> list[Section]:
    """csflow/model.py, csflow/freia_funcs.py, and loss, scores and map of csflow/utils.py."""
    whole = [
        box(150, 60, 150, 245, "Efficient-", "Net,", "frozen", kind="fixed"),
        box(516, 60, 150, 245, "n blocks:", "permute,", "couple"),
        text(440, 331, "z ~ N(0, 1) for good images; C = 304 (B5), h = H/32, w = W/32", "soft"),
        box(24, 354, 330, 76, "loss", "(Σ z²/2 − Σ log det) / size of z", kind="loss"),
        box(374, 354, 200, 76, "map", "mean_{c} z_{0}²", kind="found"),
        box(594, 354, 262, 76, "score", "std z²/2 (paper: mean)", kind="found"),
    ]
    for s, (y, side, small, name) in enumerate(((108, 84, 58, "image"), (200, 54, 46, "1/2"), (276, 42, 38, "1/4"))):
        divided = ("", "/2", "/4")[s]
        whole += [
            box(70 - side / 2, y - side / 2, side, side, name, kind="data", radius=2),
            stack(342 + small / 2, y, small, f"x_{{{s}}}"), text(458, y - 15, f"C×h{divided}×w{divided}", "soft", 18),
            across(y, 70 + side / 2, 150, 300, 342, 356 + small, 516, 666, 720),
            stack(720 + small / 2, y, small, f"z_{{{s}}}"),
        ]
    block = [
        arrow(24, 145, 52, 145), box(52, 115, 110, 60, "permute", kind="fixed"),
        arrow(162, 130, 185, 130, 185, 90, 370, 90), text(212, 72, "a"),
        box(370, 62, 200, 54, "a′ = e^{l(s)} a + t", kind="fixed"), arrow(162, 160, 185, 160, 185, 200, 610, 200),
        text(212, 219, "b"), arrow(270, 200, 270, 172), box(225, 122, 90, 50, "r = s2"),
        arrow(315, 147, 440, 147, 440, 116), text(376, 130, "s, t"), arrow(570, 90, 846, 90), text(810, 72, "a′"),
        arrow(620, 90, 620, 112), box(575, 112, 90, 50, "r = s1"), arrow(665, 137, 735, 137, 735, 173),
        text(700, 120, "s, t"), box(610, 173, 200, 54, "b′ = e^{l(s)} b + t", kind="fixed"), arrow(810, 200, 846, 200),
        text(828, 222, "b′"), text(24, 258, "l(s) = 3 · 0.636 · atan(s/3)", anchor="start"),
        text(856, 258, "log det = Σ l(s) over both halves", anchor="end"),
    ]
    subnet, rows = [], (80, 148, 216)
    for s, y in enumerate(rows):
        subnet += [
            across(y, 60, 100, 290, 330, 386, 603, 637, 690, 760, 805), text(40, y, f"x_{{{s}}}"),
            box(100, y - 24, 190, 48, "conv, LeakyReLU"), box(330, y - 24, 56, 48, f"y_{{{s}}}", kind="data"),
            circle(620, y, "+"), box(690, y - 24, 70, 48, f"· γ_{{{s}}}"), text(828, y, f"o_{{{s}}}"),
            text(440, y, "conv", halo=True),
        ]
    for y, below in pairwise(rows):
        subnet += [arrow(386, y + 10, 605, below - 11, kind="net"), arrow(386, below - 10, 605, y + 11, kind="data")]
        subnet += [text(545, y + 49, "down", "net", halo=True), text(548, y + 19, "up", "data", halo=True)]
    subnet += [
        text(440, 274, "o_{s} = γ_{s} ( conv(y_{s}) + down(y_{s−1}) + up(y_{s+1}) )"),
        text(440, 306, "down: conv of stride 2 · up: bilinear ×2, then conv", "soft"),
    ]
    return [
        ("Features at three scales, one flow over all of them", 448, whole),
        ("One block: r sees all scales of one half", 286, block),
        ("The cross-scale subnet r: its x is b in s2, a′ in s1", 322, subnet),
    ]


def crrn() -> list[Section]:
    """crrn/model/ConvRRN.py, SpatialAttention.py, crrn/model/core_module/ConvConjLSTM.py and ConvSTLSTM.py."""
    cell = [
        text(48, 136, "c_{t−1}"), across(136, 80, 130, 260, 323, 357, 463, 497, 796), across(302, 678, 703, 737, 796),
        box(130, 109, 130, 54, "1×1 conv"), arrow(195, 86, 195, 109), text(195, 74, "m of the layer below"),
        text(195, 180, "from layer 2 on", "soft"), circle(340, 136, "×"), circle(480, 136, "+"),
        text(824, 136, "c_{t}"), arrow(760, 136, 760, 78), text(750, 96, "up, as m", anchor="end"),
        text(48, 282, "x_{t}"), text(48, 322, "h_{t−1}"), arrow(76, 282, 112, 282), arrow(80, 322, 112, 322),
        box(112, 260, 170, 84, "z = conv(x)", "+ conv(h)"), arrow(282, 302, 606, 302, head=False),
        arrow(340, 302, 340, 153), box(304, 206, 72, 46, "σ(z_{f})"), arrow(440, 302, 440, 188, 463, 188),
        box(400, 226, 80, 46, "σ(z_{i})*"), arrow(542, 302, 542, 188, 497, 188), box(486, 226, 112, 46, "tanh(z_{g})"),
        circle(480, 188, "×"), arrow(480, 171, 480, 153), box(606, 279, 72, 46, "σ(z_{o})"), arrow(720, 136, 720, 285),
        box(684, 206, 72, 46, "tanh", kind="fixed"), circle(720, 302, "×"), text(824, 302, "h_{t}"),
        arrow(770, 302, 770, 244), text(782, 252, "up", anchor="start"),
        box(24, 362, 352, 132, "in the encoder, with --is_attn:", "a_{t} = tanh(conv(h_{t}))",
            "the next step gets h_{t} + a_{t}", kind="fixed"),
        box(396, 362, 460, 132, "ConvSTLSTM: gates y = conv(x) + conv(m)",
            "c_{t} = σ(z_{f}) c_{t−1} + σ(z_{i}) tanh(z_{g})", "m_{t} = σ(y_{f}) m + σ(y_{i}) tanh(y_{g})",
            "h_{t} = z_{o}* · tanh(conv_{1×1}[c_{t}, m_{t}])", kind="fixed"),
        text(440, 514, "* as published: σ(σ(z_{i})), z_{o} without σ; --textbook_gates: σ once", "soft"),
    ]
    out, dec, bus, high, low, enc, fed = 76, 136, 186, 234, 306, 376, 442  # heights of the rows
    time = [
        arrow(72, bus, 801, bus, kind="found", head=False, dash=True),
        text(190, bus - 18, "attention a_{t} of each cell", "found"),
        arrow(450, out, 463, out, 463, fed, 478, fed, kind="data"),
        arrow(650, out, 665, out, 665, fed, 680, fed, kind="data", dash=True),
        text(440, fed + 46, "x̂_{t} | x_{t}: in training x_{t} with probability teacher_ratio, else x̂_{t}", "soft"),
        box(24, fed + 70, 396, 76, "loss, x corrupted in training", "mean (x̂ − clean x)²", kind="loss"),
        box(440, fed + 70, 416, 76, "error x − x̂ at a pad", "> θ excessive, < −θ insufficient", kind="found"),
    ]
    for x, name in ((72, "x_{1}"), (186, "x_{2}"), (320, "x_{T}"), (530, "x̂_{T} | x_{T}"), (732, "x̂_{2} | x_{2}")):
        time += [arrow(x, a, x, b) for a, b in ((fed, enc + 22), (enc, low + 23), (low, high + 23))]
        own, wide = ("′", 104) if "|" in name else ("", 64)  # the decoder has parameters of its own
        time += [box(x - 42, y - 23, 84, 46, f"cell {2 - i}{own}") for i, y in enumerate((high, low))]
        time += [box(x - 42, enc - 23, 84, 46, f"S_Enc{own}")]
        time += [box(x - wide / 2, fed - 22, wide, 44, name, kind="data")]
    time += [arrow(x, high - 23, x, bus, kind="found", head=False, dash=True) for x in (72, 186, 320)]
    for y in (high, low):
        time += [across(y, 114, 144, 228, 278, 362, 401, 435, 488, 572, 601, 635, 690, 774, 801)]
        time += [text(248, y, "···", halo=True), text(653, y, "···", halo=True)]
    for x, t in ((418, "T"), (618, "T−1"), (818, "1")):
        time += [arrow(x, high, x, dec + 22), arrow(x, dec, x, out + 22)]
        time += [arrow(x - 17, bus, x - 11, high - 14, kind="found")]
        time += [circle(x, high, "−", "found"), circle(x, low, "−", "found")]
        time += [box(x - 34, dec - 22, 68, 44, "S_Dec"), box(x - 32, out - 22, 64, 44, f"x̂_{{{t}}}", kind="data")]
    return [
        ("The cell (ConvConjLSTM): memory of time and layers", 540, cell),
        ("Encoder and decoder over time, here with two cells", fed + 160, time),
    ]


def memae() -> list[Section]:
    """memae/models/memae_3dconv.py, memory_module.py, ae_3dconv.py, backbones.py and memae/script_training.py."""
    whole = [
        across(150, 124, 160, 290, 322, 382, 406, 526, 550, 610, 638, 768, 786), stack(70, 150, 84, "x"),
        funnel(160, 150, 130, 170, 84, "encoder", "4 conv"), stack(346, 150, 48, "z"),
        box(406, 100, 120, 100, "memory", "M"), stack(574, 150, 48, "ẑ"),
        funnel(638, 150, 130, 84, 170, "decoder", "4 conv^{T}"), stack(818, 150, 64, "x̂"),
        text(24, 254, "1×16×256×256", "soft", anchor="start"), text(346, 254, "256×2×16×16", "soft"),
        text(574, 254, "256×2×16×16", "soft"), text(860, 254, "1×16×256×256", "soft", anchor="end"),
    ]
    addressing = [
        text(50, 66, "z"), across(146, 62, 106, 256, 312, 496, 568, 752, 806), text(181, 66, "M: N = 2000 items"),
        text(404, 66, "w = softmax(z·m_{i})"), text(660, 66, "ŵ: hard shrinkage"), text(824, 66, "ẑ"),
        text(806, 236, "ẑ = ŵ M"), text(404, 244, "ŵ ∝ relu(w − λ) · w / |w − λ|,  λ = 0.0025"),
        text(440, 278, "the paper: cosine of z and m_{i}; its published code and ours: z·m_{i}", "soft"),
        box(24, 302, 520, 76, "loss", "mean (x̂ − x)² + 0.0002 · mean(−Σ ŵ log ŵ)", kind="loss"),
        box(564, 302, 292, 76, "score of a clip", "its mean |x̂ − x|", kind="found"),
    ]
    addressing += [rect(x, 80 + 22 * i, 24, 22, "data") for x in (38, 812) for i in range(6)]
    names = ("m_{1}", "m_{2}", "m_{3}", "…", "m_{N}")
    addressing += [box(106, 80 + 27 * i, 150, 27, name, radius=0) for i, name in enumerate(names)]
    w, w_hat = (36, 12, 70, 22, 8, 90, 16, 26, 10), (47, 0, 91, 0, 0, 117, 0, 0, 0)
    for left, bars, kind in ((318, w, "data"), (574, w_hat, "found")):
        addressing += [rect(left + 4 + 19 * i, 216 - h, 13, h, kind) for i, h in enumerate(bars) if h]
        addressing += [arrow(left, 216, left + 172, 216, kind="soft", head=False)]
    addressing += [arrow(318, 186, 490, 186, kind="loss", head=False, dash=True), text(504, 186, "λ", kind="loss")]
    plans = table(78, (24, 236, 498, 732), (
        "--Backbone | code z | time 16 → 2 by | decoder", "conv3d | 256×2×H/16×W/16 | conv 2, 3, 4 | 4 layers",
        "A slowonly-18 | 512×2×H/32×W/32 | stem, stride 8 | 5 layers",
        "B csn-152 | 2048×2×H/32×W/32 | stages 2, 3, 4 | 6 layers",
        "C resnet3d-18 | 512×2×H/32×W/32 | stem, 2 pools | 5 layers",
    ))
    return [
        ("The code z is rebuilt from remembered normal codes", 280, whole),
        ("Memory addressing, at each position of z", 396, addressing),
        ("Other encoders: plans A, B and C", 248, [plans]),
    ]


def crn() -> list[Section]:
    """crn/training/crn.py, double_skip.py, statistics.py and the loop of crn/train.py."""
    def chain(y: float, g: str, d: str, above_g: str = "", above_d: str = "", constant: str = "") -> list[str]:
        """x, what the generator makes of it, and what the discriminator makes of that."""
        return [
            across(y, 80, 120, 270, 306, 660, 696), text(195, y - 48, above_g, "soft"),
            text(585, y - 48, above_d, "soft"), box(24, y - 28, 56, 56, "x", kind="data"),
            box(120, y - 32, 150, 64, *g.split("|")), box(306, y - 28, 100, 56, "G(x)", kind="data"),
            arrow(406, y, 510, y, dash=bool(constant)), text(456, y - 17, constant, "soft"),
            box(510, y - 32, 150, 64, *d.split("|")), box(696, y - 28, 160, 56, "D(G(x))", kind="data"),
        ]

    step = [
        *chain(122, "unit i = G", "unit j = D", "pass 1", "pass 2", "constant"),
        box(24, 170, 480, 76, "loss of i", "0.5 |x − G(x)| + 1 |G(x) − D(G(x))|", kind="loss"),
        box(520, 170, 336, 76, "loss of j", "4 − 2 |G(x) − D(G(x))|", kind="loss"),
        *chain(322, "unit j = G", "unit i = D", "pass 3", "pass 4", "constant"),
        text(440, 382, "the same losses with i and j exchanged; then i and j step once"),
        text(440, 412, "in each loss the other unit’s output is constant; | |: mean absolute difference", "soft"),
    ]
    scoring = [
        *chain(122, "best G", "best D", "lowest |x − G(x)|", "highest |G(x) − D(G(x))| − |x − D(x)|"),
        box(24, 170, 480, 76, "inference score, and map by pixel", "|x − D(G(x))|", kind="found"),
        box(520, 170, 336, 76, "validation score", "|G(x) − D(G(x))|", kind="found"),
    ]
    dagan = [
        *chain(92, "G, U-Net", "D, auto-|encoder", constant="constant"), arrow(52, 120, 52, 152, 555, 152, 555, 124),
        arrow(615, 124, 615, 164, 696, 164), box(696, 136, 160, 56, "D(x)", kind="data"),
        box(24, 206, 424, 76, "loss of G", "40 mse(x, G(x)) + mse(G(x), D(G(x)))", kind="loss"),
        box(464, 206, 392, 76, "loss of D", "mse(x, D(x)) − mse(G(x), D(G(x)))", kind="loss"),
        box(24, 296, 424, 76, "inference score", "mse(x, G(x))", kind="found"),
        box(464, 296, 392, 76, "validation score", "(|x − G(x)| + |x − D(x)|) / 2", kind="found"),
    ]
    return [
        ("A step: two of 12 U-Nets at random, each in both roles", 442, step),
        ("Scoring: the best generator, the best discriminator", 262, scoring),
        ("DAGAN, the baseline: roles are fixed", 382, dagan),
    ]


# fmt: on
def cells(numbers: Sequence[int], x: float, y: float, k: float, columns: int, kind: str) -> str:
    """The cells of k x k with these numbers of an image at (x, y), in one shape."""
    path = "".join(f"M{x + k * (i % columns):g} {y + k * (i // columns):g}h{k:g}v{k:g}h-{k:g}z" for i in numbers)
    return f'<path d="{path}" class="{kind}-t"/>'


def wall(x: float, y: float, spot: bool) -> str:
    """An image of bricks, 120 x 120, with a defect or without."""
    parts = [rect(x, y, 120, 120, "data")]
    for row in range(5):
        for left in range(-20 * (row % 2), 120, 40):
            begin, end = max(left + 2, 2), min(left + 38, 118)
            parts.append(rect(x + begin, y + 24 * row + 3, end - begin, 18, "brick"))
    return "".join(parts) + (f'<circle cx="{x + 74:g}" cy="{y + 58:g}" r="22" class="loss-t"/>' if spot else "")


# fmt: off
def riad() -> list[Section]:
    """riad/source/masks.py, losses.py and agent.py; the bricks are drawn, not a network's outputs."""
    order = random.Random(3).sample(range(36), 36)  # 6 x 6 cells of 20 pixels
    masks, masked, out = 70, 222, 446  # heights of the rows
    method = [
        text(24, 96, "n = 3 masks", anchor="start"), text(24, 128, "M_{i}, cells", anchor="start"),
        text(24, 160, "of k × k", anchor="start"),
        wall(24, masked, True), arrow(144, 282, 198, 282), text(84, 362, "image I"),
        text(24, 490, "of each output", anchor="start"), text(24, 522, "the hidden cells", anchor="start"),
        text(424, 590, "I_{r} = Σ_{i} (1 − M_{i}) ⊙ f(M_{i} ⊙ I)"), across(506, 644, 669, 703, 732),
        circle(686, 506, "Σ"), wall(732, out, False), text(792, 586, "I_{r}"), arrow(792, out, 792, 344),
        text(784, 406, "compared with I", halo=True), rect(732, masked, 120, 120, "found"),
        *(f'<circle cx="806" cy="280" r="{r}" class="loss-t" opacity="0.3"/>' for r in (34, 29, 24, 19)),
        arrow(792, masked, 792, 154), text(792, 203, "anomaly map", halo=True),
        box(732, 90, 120, 62, "score", "= max", kind="found"),
        box(24, 620, 404, 76, "loss", "L2 + MSGMS + SSIM of I and I_{r}", kind="loss"),
        box(448, 620, 408, 76, "anomaly map", "1 − MSGMS(I, I_{r}), mean over k", kind="found"),
    ]
    for i, x in enumerate((204, 364, 524)):
        hidden, shown = order[12 * i : 12 * i + 12], order[: 12 * i] + order[12 * i + 12 :]
        method += [
            cells(hidden, x, masks, 20, 6, "hole"), rect(x, masks, 120, 120, "frame"),
            arrow(x + 60, 190, x + 60, masked - 2), text(x + 72, 205, "⊙ I", anchor="start"), wall(x, masked, True),
            cells(hidden, x, masked, 20, 6, "hole"), arrow(x + 60, 342, x + 60, 368),
            arrow(x + 60, 420, x + 60, out - 2), wall(x, out, False), cells(shown, x, out, 20, 6, "blank"),
            rect(x, out, 120, 120, "frame"),
        ]
    method += [box(204, 368, 440, 52, "U-Net f, on each M_{i} ⊙ I")]
    both = [table(244, (24, 180, 500), (
        "--algorithm | paper | repo, the default (MNIST)", "k | 2, 4, 8, 16 | 4, 7",
        "loss | of I_{r}, one k a batch | of each f(M_{i} ⊙ I)",
        "map | of I_{r}, smoothed 21×21 | mean over all f(M_{i} ⊙ I)", "MSGMS | 4 scales | 3 scales",
    ))]
    for i, k in enumerate((2, 4, 8, 16)):  # of an image of 32 x 32 pixels
        x, side = 64 + 208 * i, 32 // k
        both += [cells(random.Random(k).sample(range(side**2), side**2 // 3), x, 62, 4 * k, side, "hole")]
        both += [rect(x, 62, 128, 128, "frame"), text(x + 64, 210, f"k = {k}")]
    return [
        ("Each cell is hidden once and inpainted from the rest", 714, method),
        ("One of the n masks for each k, and the two algorithms", 412, both),
    ]
# fmt: on


def finds(results: Path) -> None:
    """docs/<paper>_finds.jpg: what each method found best, from the reports of benchmarks/demo.py in `results`."""
    for page in sorted(results.glob("*_*/**/*.html"), key=lambda page: page.stat().st_mtime):  # the newest comes last
        if "nearest" in page.parts:  # the baseline's
            continue
        if found := re.search(r';base64,([^"]*)"[^>]*\salt="Best found', page.read_text(encoding="utf-8")):
            sheet = Image.open(io.BytesIO(base64.b64decode(found[1]))).convert("RGB")
            name = page.relative_to(results).parts[0].rpartition("_")[0]
            sheet.resize((680, 680 * sheet.height // sheet.width)).save(HERE / f"{name}_finds.jpg", quality=70)


def main(folders: Sequence[str]) -> None:
    """Draw all; folders: of the demo's results, for what the methods find."""
    titles = {csflow: "CS-Flow", crrn: "CRRN", memae: "MemAE", crn: "CRN and DAGAN", riad: "RIAD"}
    for draw, title in titles.items():
        write(HERE / f"{draw.__name__}.svg", title, draw())
    for folder in folders:
        finds(Path(folder))


if __name__ == "__main__":
    main(sys.argv[1:])
