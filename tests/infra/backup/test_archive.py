"""An archive gives back what was put in, or nothing at all."""

import gzip
import io
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.backup.archive import MANIFEST, unpack, verified, written
from infra.settings import SetupError

NAMES = st.lists(st.text("abö %.", min_size=1, max_size=8).filter(lambda n: n.strip(". ")), min_size=1, max_size=3)


@settings(max_examples=25, deadline=None)
@given(
    files=st.dictionaries(NAMES.map(lambda parts: "/".join(["x", *parts, "f"])), st.binary(max_size=300), max_size=5)
)
def test_every_file_comes_back_byte_for_byte(files: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("archive")
    with written(folder / "a.tar.gz", {"made": "now"}) as archive:
        for n, (name, content) in enumerate(files.items()):
            (folder / str(n)).write_bytes(content)
            archive.add(name, folder / str(n))
    assert (folder / "a.tar.gz").stat().st_mode & 0o777 == 0o600
    assert verified(folder / "a.tar.gz")["files"].keys() == files.keys()
    unpack(folder / "a.tar.gz", folder / "out")
    found = {
        f.relative_to(folder / "out").as_posix(): f.read_bytes() for f in (folder / "out").rglob("*") if f.is_file()
    }
    assert found == files


@pytest.mark.parametrize("name", ["../out", "/etc/passwd", "a/../../out", "a/..", "link"])
def test_members_that_point_elsewhere_are_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / "a.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        info = tarfile.TarInfo(name)
        if name == "link":
            info.type, info.linkname = tarfile.SYMTYPE, "/etc"
        else:
            info.size = 1
        tar.addfile(info, io.BytesIO(b"x"))
    for way in (lambda: verified(path), lambda: unpack(path, tmp_path / "home" / "new")):
        with pytest.raises(SetupError, match="no file below a folder"):
            way()
    assert [p.name for p in tmp_path.rglob("*")] == ["a.tar.gz"]


def test_a_writer_that_fails_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), written(tmp_path / "a.tar.gz", {}) as archive:
        (tmp_path / "f").write_text("x")
        archive.add("f", tmp_path / "f")
        raise ZeroDivisionError
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


def test_a_byte_changed_anywhere_or_a_lost_end_is_found(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(bytes(range(256)) * 20)
    with written(tmp_path / "a.tar.gz", {}) as archive:
        archive.add("f", tmp_path / "f")
    whole = (tmp_path / "a.tar.gz").read_bytes()
    plain = bytearray(gzip.decompress(whole))
    plain[600] ^= 1  # within f: gzip's own checksum is right, ours is not
    for broken in (whole[:-20], whole[: len(whole) // 2], gzip.compress(bytes(plain)), b"no archive at all", b""):
        (tmp_path / "b.tar.gz").write_bytes(broken)
        with pytest.raises(SetupError, match=r"nothing was touched|manifest"):
            verified(tmp_path / "b.tar.gz")
    for at in range(0, len(whole), 7):
        flipped = bytearray(whole)
        flipped[at] ^= 0x10
        (tmp_path / "b.tar.gz").write_bytes(flipped)
        try:
            assert verified(tmp_path / "b.tar.gz")["files"] == archive.files
        except SetupError:
            continue
        assert gzip.decompress(flipped) == gzip.decompress(whole), "some bits of gzip's mean the same either way"
    assert MANIFEST not in archive.files
