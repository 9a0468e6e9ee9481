"""Of MATLAB files only numbers and texts are read, and no more than a frame's or a video's labels need."""

import struct
import zlib

import numpy as np
import pytest
from scipy.io import savemat

from common.files import UserError
from memae.data.matlab import read_mat


def test_of_matlab_files_only_numbers_and_text_are_read(tmp_path):
    """20,000 cells in one another overflow the stack of SciPy's reader, which ends the interpreter."""
    path, cells = tmp_path / "a.mat", np.zeros((1, 1), object)
    cells[0, 0] = 1.0
    savemat(path, {"l": [[1, 0, 1]], "name": "Test", "more": cells})
    labels, name = read_mat(path, "l", "name")
    assert labels.tolist() == [[1, 0, 1]] and name.item() == "Test"
    with pytest.raises(UserError, match=r"a\.mat: more: expected 1000000 numbers at most, not cell"):
        read_mat(path, "more")
    assert read_mat(path, "more", kinds={"cell"})[0][0, 0].item() == 1
    with pytest.raises(UserError, match="has no variable 'x'"):
        read_mat(path, "x")
    with pytest.raises(UserError, match="there is no file"):
        read_mat(tmp_path / "b.mat", "x")


def test_matlab_files_of_a_small_shape_but_much_data_are_not_unpacked(tmp_path):
    path, labels, much = tmp_path / "a.mat", np.eye(3), np.zeros(5 * 10**6)
    for compressed in (False, True):
        savemat(path, {"much": much, "l": labels}, do_compression=compressed)
        assert np.array_equal(read_mat(path, "l")[0], labels)
    content = path.read_bytes()
    size = int.from_bytes(content[132:136], "little")
    data = bytearray(zlib.decompress(content[136 : 136 + size]))
    data[32:40] = struct.pack("<2i", 1, 3)  # the shape
    packed = zlib.compress(data)
    bad = content[:132] + struct.pack("<I", len(packed)) + packed
    path.write_bytes(bad + content[136 + size :])
    with pytest.raises(UserError, match=r"a\.mat: much: expected 1000000 numbers at most"):
        read_mat(path, "much")
    assert np.array_equal(read_mat(path, "l")[0], labels)
