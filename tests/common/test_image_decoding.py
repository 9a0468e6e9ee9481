"""Every kind of TIFF and PNG is read as it was written, or refused by name; tifffile, which scikit-image brings, reads
the files independently."""

import itertools
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.files import UserError
from common.images import read_image, require_readable

GREY, WHITE_IS_ZERO, COLOUR = 1, 0, 2  # PhotometricInterpretation


def lzw(data: bytes) -> bytes:
    """LZW as TIFF has it, without any compression: all codes have 9 bits, the table is cleared before they grow."""
    codes = [code for start in range(0, len(data), 250) for code in (256, *data[start : start + 250])]
    return _packed(np.array([*codes, 257])[None], 9)


CODECS = {"none": (1, bytes), "LZW": (5, lzw), "deflate": (8, zlib.compress)}


def _packed(values: np.ndarray, bits: int, order: str = ">") -> bytes:
    """Rows (R, n) of values; below 16 bits from the highest bit on, each row in bytes of its own."""
    if bits >= 16:
        return values.astype(f"{order}u{bits // 8}").tobytes()
    return np.packbits((values[..., None] >> np.arange(bits)[::-1] & 1).reshape(len(values), -1), axis=1).tobytes()


def write_tiff(
    path: Path, values: np.ndarray, bits: int, photometric: int, order: str = "<", tiles: bool = False,
    planes: bool = False, codec: str = "none", predictor: bool = False, pages: int = 1, **tags: Any,
) -> None:  # fmt: skip
    """Write (H, W, C) values; tags: further entries, t<number>=[16-bit numbers]."""
    height, width, channels = values.shape
    down, right = (16, 32) if tiles else (7, width)  # of a tile or strip
    code, encode = CODECS[codec]
    blocks = []
    for plane in np.split(values, channels, axis=2) if planes else [values]:
        for y, x in itertools.product(range(0, height, down), range(0, width, right)):
            block = plane[y : y + down, x : x + right]
            if tiles:
                block = np.pad(block, ((0, down - block.shape[0]), (0, right - block.shape[1]), (0, 0)), "edge")
            if predictor:
                block = np.diff(block, axis=1, prepend=0) % 2**bits
            blocks.append(encode(_packed(block.reshape(len(block), -1), bits, order)))
    offsets = list(itertools.accumulate([8, *map(len, blocks)]))
    entries = {256: [width], 257: [height], 258: [bits] * channels, 259: [code], 262: [photometric], 277: [channels]}
    entries |= {284: [2 if planes else 1], 317: [2 if predictor else 1]}
    entries |= {322: [right], 323: [down]} if tiles else {278: [down]}
    entries |= {324 if tiles else 273: offsets[:-1], 325 if tiles else 279: [len(block) for block in blocks]}
    entries |= {int(name[1:]): numbers for name, numbers in tags.items()}

    data = bytearray({"<": b"II", ">": b"MM"}[order] + struct.pack(f"{order}HI", 42, offsets[-1]) + b"".join(blocks))
    for page in range(pages):
        table, more = struct.pack(f"{order}H", len(entries)), b""
        behind = len(data) + 2 + 12 * len(entries) + 4
        for tag, numbers in sorted(entries.items()):
            wide = tag in (273, 279, 324, 325)
            field = struct.pack(f"{order}{len(numbers)}{'I' if wide else 'H'}", *numbers)
            if len(field) > 4:
                more, field = more + field, struct.pack(f"{order}I", behind + len(more))
            table += struct.pack(f"{order}HHI", tag, 4 if wide else 3, len(numbers)) + field.ljust(4, b"\0")
        last = page == pages - 1
        data += table + struct.pack(f"{order}I", 0 if last else behind + len(more)) + more
    path.write_bytes(data)


def write_png(path: Path, values: np.ndarray, bits: int, kind: int, *chunks: tuple[bytes, bytes]) -> None:
    """Write (H, W, C) values; kind: the format's colour type; chunks: further ones."""
    rows = [_packed(row.reshape(1, -1), bits) for row in values]
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], bits, kind, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    with path.open("wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n")
        for name, data in ((b"IHDR", header), *chunks, (b"IDAT", pixels), (b"IEND", b"")):
            file.write(struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)))


def drawn(bits: int, channels: int) -> np.ndarray:
    """(19, 37, C), of all values from 0 to the highest."""
    values = np.random.default_rng(bits + channels).integers(0, 2**bits, (19, 37, channels))
    values[0, :2] = [[0], [2**bits - 1]]
    return values


def as_read(values: np.ndarray, highest: int) -> np.ndarray:
    """(H, W, C) as 8-bit RGB: without alpha, rounded."""
    colours = values[..., : 3 if values.shape[2] > 2 else 1]
    return np.broadcast_to((colours * 255 + highest // 2) // highest, (*colours.shape[:2], 3))


def kinds(*codecs: str) -> Iterator[dict[str, Any]]:
    """What TIFFs there are, as arguments of `write_tiff` with their number of channels."""
    for bits, (channels, photometric), order in itertools.product(
        (1, 2, 4, 8, 10, 12, 14, 16, 32), ((1, GREY), (1, WHITE_IS_ZERO), (2, GREY), (3, COLOUR), (4, COLOUR)), "<>"
    ):
        for tiles, planes, codec in itertools.product((False, True), (False, True), codecs):
            predictor = codec != "none" and bits in (8, 16)
            if channels > 1 or not planes:
                yield {
                    "bits": bits, "channels": channels, "photometric": photometric, "order": order, "tiles": tiles,
                    "planes": planes, "codec": codec, "predictor": predictor,
                }  # fmt: skip


# Read at full depth: (bits, channels). All others, and 16-bit colour in planes, must be refused.
READ = {(bits, 1) for bits in (1, 2, 4, 8, 16)} | {(bits, channels) for bits in (8, 16) for channels in (3, 4)}


@pytest.mark.parametrize(
    "codec", ["none", *(pytest.param(name, marks=pytest.mark.slow) for name in ("LZW", "deflate"))]
)
def test_tiffs_are_read_as_written_or_refused_by_name(tmp_path, codec):
    read, paths = set(), []
    for number, kind in enumerate(kinds(codec)):
        arguments, path = dict(kind), tmp_path / f"{number}.tif"
        bits, channels = arguments["bits"], arguments.pop("channels")
        values, highest = drawn(bits, channels), 2**bits - 1
        write_tiff(path, values, **arguments, **({"t338": [2]} if channels in (2, 4) else {}))
        try:
            pixels = np.asarray(read_image(path))
        except UserError as error:
            assert "convert it" in str(error) or "unknown raw mode" in str(error), kind
            big_and_inverted = bits == 16 and kind["order"] == ">" and kind["photometric"] == WHITE_IS_ZERO
            assert (bits, channels) not in READ or kind["planes"] or big_and_inverted, kind
            continue
        read.add((bits, channels))
        expected = as_read(highest - values if kind["photometric"] == WHITE_IS_ZERO else values, highest)
        assert np.array_equal(pixels, expected), kind
        paths.append(path)
    assert read == READ | {(8, 2), (12, 1)}
    require_readable(paths)


def test_tifffile_reads_what_these_tests_write(tmp_path):
    tifffile = pytest.importorskip("tifffile")
    path = tmp_path / "a.tif"
    for kind in kinds("none", "deflate"):
        arguments = dict(kind)
        bits, channels = arguments["bits"], arguments.pop("channels")
        if bits not in (1, 8, 16, 32) or arguments["predictor"]:
            continue  # these need the package imagecodecs
        values = drawn(bits, channels)
        write_tiff(path, values, **arguments, **({"t338": [2]} if channels in (2, 4) else {}))
        expected = np.moveaxis(values, -1, 0) if kind["planes"] else values[..., 0] if channels == 1 else values
        assert np.array_equal(tifffile.imread(path), expected), kind
        # And what tifffile itself writes.
        if bits in (8, 16) and channels == 3:
            tifffile.imwrite(path, values.astype(f"{kind['order']}u{bits // 8}"), photometric="rgb")
            assert np.array_equal(read_image(path), as_read(values, 2**bits - 1))


def test_further_kinds_of_tiffs(tmp_path):
    path = tmp_path / "a.tif"
    wide, signed = drawn(16, 1), drawn(15, 1)
    write_tiff(path, wide, 16, GREY, pages=2)
    assert np.array_equal(read_image(path), as_read(wide, 65535))
    write_tiff(path, signed, 16, GREY, t339=[2])
    assert np.array_equal(read_image(path), as_read(signed, 65535))
    write_tiff(path, wide, 32, GREY)  # no value beyond 16 bits
    assert np.array_equal(read_image(path), as_read(wide, 65535))
    colours = drawn(16, 4)
    write_tiff(path, colours, 16, COLOUR, t338=[0])  # a fourth channel that means nothing
    assert np.array_equal(read_image(path), as_read(colours, 65535))
    write_tiff(path, colours[..., :3], 16, COLOUR, t274=[6])  # to be turned to the right
    assert np.array_equal(read_image(path), np.rot90(as_read(colours, 65535), -1))
    indices, palette = drawn(8, 1), np.random.default_rng(0).integers(0, 256, (3, 256))
    write_tiff(path, indices, 8, 3, t320=(palette * 257).ravel().tolist())
    assert np.array_equal(read_image(path), palette.T[indices[..., 0]])


@pytest.mark.parametrize(
    ("words", "options"),
    [
        ("signed pixels of 8 bits", {"bits": 8, "t339": [2]}),
        ("outside 0..65535", {"bits": 16, "t339": [2]}),
        ("floating-point", {"bits": 32, "t339": [3]}),
        ("not an image of a kind that is read", {"bits": 16, "t339": [3]}),
        ("alpha multiplied in", {"bits": 16, "channels": 4, "t338": [1]}),
        ("channels in separate planes", {"bits": 16, "channels": 3, "planes": True}),
        ("not an image of a kind that is read", {"bits": 16, "channels": 2, "t338": [2]}),
    ],
)
def test_tiffs_refused_by_name(tmp_path, words, options):
    channels = options.pop("channels", 1)
    path = tmp_path / "a.tif"
    write_tiff(path, drawn(options["bits"], channels), photometric=GREY if channels < 3 else COLOUR, **options)
    for action in (read_image, lambda path: require_readable([path])):
        with pytest.raises(UserError, match=f"cannot read .*{words}.*convert it to"):
            action(path)


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_pngs_are_read_as_written(tmp_path, bits):
    path, highest = tmp_path / "a.png", 2**bits - 1
    for channels, kind in ((1, 0), (2, 4), (3, 2), (4, 6)):
        if bits < 8 and channels > 1:
            continue
        values = drawn(bits, channels)
        transparent = (b"tRNS", struct.pack(f">{channels}H", *[1] * channels))
        for chunks in ((), (transparent,)) if channels in (1, 3) else ((),):
            write_png(path, values, bits, kind, *chunks)
            assert np.array_equal(read_image(path), as_read(values, highest)), (bits, channels)
    if bits < 16:
        palette = np.random.default_rng(0).integers(0, 256, (2**bits, 3)).astype(np.uint8)
        values = drawn(bits, 1)
        write_png(path, values, bits, 3, (b"PLTE", palette.tobytes()))
        assert np.array_equal(read_image(path), palette[values[..., 0]])
