"""Files are whole or not there, and what cannot be read or written is said in one line."""

import errno
import json
import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from common import images
from common.files import (
    MAKING,
    UNFINISHED,
    UserError,
    atomic_write,
    digest,
    locked,
    read_json,
    read_tensors,
    read_text,
    require_plain,
    require_writable,
    temporary_folder,
    write_csv,
    write_json,
)
from tests.bad_input import spoil


def test_atomic_write_makes_folders_and_replaces(tmp_path):
    path = tmp_path / "a" / "b" / "file.bin"
    for content in (b"one", b"two"):
        with atomic_write(path) as file:
            file.write(content)
        assert path.read_bytes() == content
    assert [p.name for p in path.parent.iterdir()] == ["file.bin"]


def test_an_error_keeps_the_old_file_and_leaves_nothing(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")
    for error in (ValueError("no"), KeyboardInterrupt(), UserError("no"), OSError(28, "No space left on device")):
        with pytest.raises((type(error), UserError)) as caught, atomic_write(path, "w") as file:
            file.write("new")
            file.flush()
            assert path.read_text() == "old"
            raise error
        assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    assert str(caught.value) == f"cannot write {path}: no space left on device; what was there before is untouched"


def test_impossible_places(tmp_path):
    (tmp_path / "file").write_text("old")
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "file" / "below", tmp_path / "folder", tmp_path / ("x" * 300)):
        with pytest.raises(UserError, match="cannot write"), atomic_write(path, "w") as file:
            file.write("new")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder"]


def test_a_read_only_file_system(tmp_path, monkeypatch):
    def refused(*_, **__):
        raise OSError(errno.EROFS, "Read-only file system")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", refused)
        patch.setattr(Path, "unlink", refused)  # Linux answers so before it looks whether the file is there
        with pytest.raises(UserError, match=r"cannot write .*: read-only file system"), atomic_write(tmp_path / "a"):
            pass


def test_what_killed_runs_left_goes_after_an_hour_and_what_others_write_stays(tmp_path):
    left, new = tmp_path / f"{UNFINISHED}left", tmp_path / f"{UNFINISHED}new"
    folders = [tmp_path / f"{MAKING}left", tmp_path / f"{MAKING}new"]
    for path in (left, new, *(folder / "made/1.png" for folder in folders)):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("half a picture")
    for path in (left, *folders, *(folder / "made" for folder in folders), folders[0] / "made/1.png"):
        os.utime(path, (0, 0))
    with temporary_folder(tmp_path) as folder:
        assert set(tmp_path.iterdir()) == {new, folders[1], folder}
    left.write_text("half a map")
    os.utime(left, (0, 0))
    require_writable(tmp_path)
    assert set(tmp_path.iterdir()) == {new, folders[1]}
    maps = tmp_path / "maps"  # below, with the first file that is written there
    maps.mkdir()
    left.write_text("half a map")
    left.rename(maps / left.name)
    os.utime(maps / left.name, (0, 0))
    write_csv(maps / "1.csv", ["a"], [])
    assert [path.name for path in maps.iterdir()] == ["1.csv"]


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
            read_json, digest, read_tensors, images.read_image, images.image_size, images.image_files,
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


@pytest.mark.parametrize("data", [b"", b"{", b"{'a': 1}", b"notes", b"\xff\xfe\x00", b"[" * 100_000])
def test_what_is_no_json_is_named(tmp_path, data):
    path = tmp_path / "broken.json"
    path.write_bytes(data)
    with pytest.raises(
        UserError, match=r"broken\.json (is not a (JSON file: |text file in UTF-8)|.*nested too deeply)"
    ) as caught:
        read_json(path)
    assert "\n" not in str(caught.value)
    for place, words in ((tmp_path / "nowhere.json", "no such file or directory"), (tmp_path, "is a directory")):
        with pytest.raises(UserError, match=f"^cannot read .*{words}$"):
            read_json(place)


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


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_text_with_and_without_byte_order_mark(tmp_path, mark):
    path = tmp_path / "a.txt"
    path.write_bytes(mark + '{"é": "a\\r\\n"}\r\n'.encode())
    assert read_text(path) == '{"é": "a\\r\\n"}\r\n' and read_json(path) == {"é": "a\r\n"}
    path.write_bytes(mark + "é".encode("latin-1"))
    with pytest.raises(UserError, match=r"a\.txt is not a text file in UTF-8"):
        read_text(path)


def nested(levels: int, item: object) -> object:
    for _ in range(levels):
        item = [item]
    return item


def test_only_what_can_be_walked_is_plain():
    for content in (1, -(2**63), 2**64 - 1, {"a": [1.5, None, True, ("b", [])]}, nested(50, 0)):
        require_plain(content, "file")
    for content, words in (
        (10**400, "number of 1329 bits"), (nested(51, 0), "nested"), (nested(200_000, 0), "nested"),
        (spoil.shared(48), "parts"), ([0] * 10**6 + [0], "parts"), ([{"a": {1, 2}}], "holds a set"),
        ({"a": torch.ones(1)}, "holds a Tensor"), ({b"a": 1}, "holds a bytes"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=f"^file cannot be used: .*{words}"):
            require_plain(content, "file")
    require_plain({"a": torch.ones(1)}, "file", (torch.Tensor,))


def test_links_stay_links(tmp_path):
    (tmp_path / "store").mkdir()
    for name, target in (("a.txt", "store/a.txt"), ("b.txt", "a.txt")):
        (tmp_path / name).symlink_to(target)
    for content in ("one", "two"):  # it is made, it is replaced
        with atomic_write(tmp_path / "b.txt", "w") as file:
            file.write(content)
        assert (tmp_path / "b.txt").is_symlink() and (tmp_path / "a.txt").is_symlink()
        assert (tmp_path / "store/a.txt").read_text() == content and len(list((tmp_path / "store").iterdir())) == 1


def test_only_one_run_at_a_time(tmp_path):
    folder = tmp_path / "new"
    with locked(folder):
        with pytest.raises(UserError, match="another run"), locked(folder):
            pass
        with locked(tmp_path / "other"):
            pass
    with locked(folder):
        pass
    assert list(folder.iterdir()) == []


def test_the_lock_of_a_killed_run_is_no_obstacle(tmp_path):
    code = "import os, sys; from common.files import locked; locked(sys.argv[1]).__enter__(); os.kill(os.getpid(), 9)"
    root = Path(__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=root, check=False).returncode == -9
    with locked(tmp_path):
        pass
