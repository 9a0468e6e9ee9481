"""Files are whole or not there, and what cannot be read or written is said in one line."""

import json
import os
import socket
import stat
from pathlib import Path

import numpy as np
import pytest
import torch

from common import checkpoint, images
from common.files import (
    UNFINISHED,
    UserError,
    append_csv,
    atomic_write,
    digest,
    only_run,
    read_json,
    require_writable,
    write_csv,
    write_json,
)


def test_atomic_write_makes_folders_and_replaces(tmp_path):
    path = tmp_path / "a" / "b" / "file.bin"
    for content in (b"one", b"two"):
        with atomic_write(path) as file:
            file.write(content)
        assert path.read_bytes() == content
    assert [p.name for p in path.parent.iterdir()] == ["file.bin"]


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), UserError("no")])
def test_an_error_keeps_the_old_file_and_leaves_nothing(tmp_path, error):
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(type(error)), atomic_write(path, "w") as file:
        file.write("new")
        file.flush()
        assert path.read_text() == "old"
        raise error
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_of_the_system_is_one_line(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(UserError) as caught, atomic_write(path, "w"):
        raise OSError(28, "No space left on device")
    assert str(caught.value) == f"cannot write {path}: no space left on device; what was there before is untouched"
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_impossible_places(tmp_path):
    (tmp_path / "file").write_text("old")
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "file" / "below", tmp_path / "folder", tmp_path / ("x" * 300)):
        with pytest.raises(UserError, match="cannot write"), atomic_write(path, "w") as file:
            file.write("new")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder"]


def test_what_killed_writers_left_is_removed_and_what_others_write_is_not(tmp_path):
    left, new = tmp_path / f"{UNFINISHED}left", tmp_path / f"{UNFINISHED}new"
    new.write_text("its writer has just made it")
    left.write_text("its writer is dead")
    with atomic_write(tmp_path / "file", "w") as file:
        (own,) = set(tmp_path.iterdir()) - {left, new}
        for path in (left, own):
            os.utime(path, (0, 0))
        require_writable(tmp_path)
        assert set(tmp_path.iterdir()) == {own, new}
        file.write("whole")
    assert (tmp_path / "file").read_text() == "whole"


def test_rows_are_added(tmp_path):
    write_csv(tmp_path / "a.csv", ["name", "score"], [])
    append_csv(tmp_path / "a.csv", [["a, b", 1], ["c", 2]])
    append_csv(tmp_path / "a.csv", [["d", 3]])
    assert (tmp_path / "a.csv").read_bytes() == b'name,score\r\n"a, b",1\r\nc,2\r\nd,3\r\n'
    with pytest.raises(UserError, match=r"cannot write .*b\.csv: no such file or directory; the rows before are kept"):
        append_csv(tmp_path / "none/b.csv", [["e", 4]])


def test_longest_names_and_usual_permissions(tmp_path):
    path = tmp_path / ("ü" * 127)  # 254 of 255 bytes
    old = os.umask(0o027)
    try:
        with atomic_write(path, "w") as file:
            file.write("Größe\n")
    finally:
        os.umask(old)
    assert path.read_bytes() == "Größe\n".encode()
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_pipes_sockets_and_devices_are_neither_read_nor_replaced(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = [Path(f"{kind}.png") for kind in ("pipe", "socket", "device")]
    os.mkfifo(names[0])
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(names[1]))
        names[2].symlink_to("/dev/zero")
        readers = [
            read_json, digest, checkpoint.read, images.read_image, images.image_size, images.image_files,
            lambda path: images.read_mask(path, (1, 1)), lambda path: images.fingerprint([path], "."),
            lambda path: images.require_readable(images.image_files(".")),
        ]  # fmt: skip
        for name in names:
            kind = name.lstat().st_mode
            for read in readers:
                with pytest.raises(UserError, match=rf"{name}.*a pipe, socket or device"):
                    read(name)
            with pytest.raises(UserError, match=rf"cannot write {name}: a pipe.*untouched"), atomic_write(name):
                pass
            assert name.lstat().st_mode == kind
    assert {path.name for path in tmp_path.iterdir()} == {str(name) for name in names}


def test_json_has_null_for_what_is_no_number(tmp_path):
    path = tmp_path / "results.json"
    content = {
        "nan": float("nan"),
        "inf": [float("inf"), -np.inf],
        "numpy": (np.float32(0.5), np.int64(3), np.bool_(True), np.array([1.0, np.nan])),
        "torch": torch.tensor([1.5, float("nan")]),
        "path": Path("data/größe"),
        3: None,
    }
    write_json(path, content)
    text = path.read_text(encoding="utf-8")
    assert "NaN" not in text
    assert "größe" in text
    assert text.endswith("}\n")
    assert read_json(path) == {
        "nan": None,
        "inf": [None, None],
        "numpy": [0.5, 3, True, [1.0, None]],
        "torch": [1.5, None],
        "path": str(Path("data/größe")),
        "3": None,
    }
    assert read_json(path) == json.loads(text)


def test_json_that_cannot_be_written_keeps_the_old_file(tmp_path):
    path = tmp_path / "results.json"
    write_json(path, [1])
    with pytest.raises(TypeError):
        write_json(path, [2, object()])
    assert read_json(path) == [1]
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("data", [b"", b"{", b"{'a': 1}", b"notes", b"\xff\xfe\x00"])
def test_what_is_no_json_is_named(tmp_path, data):
    path = tmp_path / "broken.json"
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"broken\.json is not a JSON file: ") as caught:
        read_json(path)
    assert "\n" not in str(caught.value)


def test_missing_json_is_named(tmp_path):
    with pytest.raises(UserError, match=r"^cannot read .*nowhere\.json: no such file or directory$"):
        read_json(tmp_path / "nowhere.json")
    with pytest.raises(UserError, match="is a directory"):
        read_json(tmp_path)


def test_csv(tmp_path):
    path = tmp_path / "scores.csv"
    write_csv(path, ["image", "score"], [["a, b.png", 0.5], ['größe "x".png', np.float64(1)]])
    expected = 'image,score\r\n"a, b.png",0.5\r\n"größe ""x"".png",1.0\r\n'
    assert path.read_bytes().decode() == expected

    def rows():
        yield ["c.png", 1]
        raise ValueError("stopped")

    with pytest.raises(ValueError, match="stopped"):
        write_csv(path, ["image", "score"], rows())
    assert path.read_bytes().decode() == expected
    assert list(tmp_path.iterdir()) == [path]


def test_deeply_nested_json_is_refused(tmp_path):
    path = tmp_path / "deep.json"
    path.write_text("[" * 100_000)
    with pytest.raises(UserError, match=r"deep\.json .*nested too deeply"):
        read_json(path)


def test_only_one_run_at_a_time(tmp_path):
    folder = tmp_path / "new"
    with only_run(folder):
        with pytest.raises(UserError, match="another run"), only_run(folder):
            pass
        with only_run(tmp_path / "other"):
            pass
    with only_run(folder):
        assert list(folder.iterdir()) == []
