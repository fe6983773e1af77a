"""Log files as they are found: huge lines, broken gzip, junk, and logs that grow."""

import gzip
import hashlib
import io
import json
import random
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.settings import SetupError
from tasks.sources import files
from tasks.sources.files import KEPT_OF_LONGER, LONGEST_LINE, Entry, lines
from tasks.sources.jsonl import JSONL


def record(n: int) -> dict[str, Any]:
    return {
        "id": str(n),
        "timestamp": 1756684873 + n,
        "workload_id": "w",
        "request": {"messages": [{"role": "user", "content": f"question {n}"}]},
        "response": {"choices": [{"message": {"role": "assistant", "content": f"answer {n}"}}]},
    }


def text(*numbers: int) -> bytes:
    return b"".join(json.dumps(record(n)).encode() + b"\n" for n in numbers)


def entries(path: Path, position: dict[str, Any] | None = None, **options: Any) -> list[Entry]:
    (part,) = JSONL((str(path),), **options).parts()
    return list(part.read(position))


def ids(found: list[Entry]) -> list[str]:
    return [entry.row.external_id for entry in found if entry.row is not None]


def test_plain_and_gzipped_files_say_the_same_whatever_their_name(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(text(1, 2))
    (tmp_path / "b.log").write_bytes(gzip.compress(text(1)) + gzip.compress(text(2)))
    assert ids(entries(tmp_path / "a.jsonl")) == ids(entries(tmp_path / "b.log")) == ["1", "2"]


def test_folders_globs_and_files_are_each_read_once(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    for name in ("a.jsonl", "deep/b.jsonl.gz", "deep/labels.json"):
        (tmp_path / name).write_bytes(text(1))
    paths = (str(tmp_path), str(tmp_path / "*.jsonl"), str(tmp_path / "a.jsonl"))
    assert [part.path.name for part in JSONL(paths).parts()] == ["a.jsonl", "b.jsonl.gz"]


def test_a_folder_is_read_with_its_rotated_logs_and_without_what_is_no_log(tmp_path: Path) -> None:
    logs = ["a.jsonl", "a.jsonl-20261124.gz", "a.jsonl.1", "a.jsonl.2.gz", "a.jsonl.2026-11-24_10-30", "b.1.ndjson"]
    for name in (
        *logs,
        "a.jsonl.bak",
        "a.jsonl.1.tmp",
        "a.jsonl~",
        "a.jsonl-new",
        "a.jsonl.zip",
        "jsonl.1",
        "a.json.1",
    ):
        (tmp_path / name).write_bytes(text(1))
    assert [part.path.name for part in JSONL((str(tmp_path),)).parts()] == logs


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda folder: folder / "nowhere.jsonl", "nowhere.jsonl' does not exist"),
        (lambda folder: folder / "*.jsonl", r"\*.jsonl' does not exist"),
        (lambda folder: folder, "has no file that ends in .jsonl"),
        (lambda folder: (folder / "empty.jsonl").touch() or folder / "empty.jsonl", "empty.jsonl' is empty"),
        (lambda folder: (folder / "empty.jsonl").touch() or folder, "only empty files"),
    ],
)
def test_a_path_without_records_is_one_line_that_names_it(tmp_path: Path, make: Any, said: str) -> None:
    with pytest.raises(SetupError, match=said) as caught:
        JSONL((str(make(tmp_path)),)).parts()
    assert "give" in str(caught.value) or "name" in str(caught.value)


def test_a_huge_line_neither_fills_memory_nor_stops_the_rest(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl.gz"
    with gzip.open(file, "wb", compresslevel=1) as stream:
        stream.write(text(1))
        for _ in range(50):
            stream.write(b"x" * (1 << 20))
        stream.write(b"\n" + text(2))
    tracemalloc.start()
    found = entries(file)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert ids(found) == ["1", "2"]
    assert (len(found[1].raw), found[1].where) == (KEPT_OF_LONGER, f"{file}:2")
    assert f"{50 << 20} bytes" in found[1].reason and str(LONGEST_LINE) in found[1].reason
    assert peak < 3 * LONGEST_LINE


def test_a_truncated_gzip_gives_what_was_readable_and_one_entry_for_the_rest(tmp_path: Path) -> None:
    rng = random.Random(0)
    lines = text(*(rng.randrange(10**9) for _ in range(300)))
    whole = gzip.compress(lines)
    known = ids(entries_of(tmp_path, whole))
    seen = set()
    for size in [2, 5, 11, *range(100, len(whole), 397), len(whole) - 1]:
        found = entries_of(tmp_path, whole[:size])
        assert ids(found) == known[: len(found) - 1]
        assert "breaks off" in found[-1].reason and found[-1].position is None
        # Not a byte of what could be unpacked is lost.
        read = sum(len(entry.raw) + 1 for entry in found[:-1]) + len(found[-1].raw)
        assert lines[:read].endswith(found[-1].raw)
        seen.add(len(found))
    assert len(seen) > 3


def entries_of(folder: Path, content: bytes) -> list[Entry]:
    (folder / "t.jsonl.gz").write_bytes(content)
    return entries(folder / "t.jsonl.gz")


def test_binary_junk_is_refused_line_by_line(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(random.Random(1).randbytes(20_000))
    found = entries(tmp_path / "a.jsonl")
    assert len(found) > 10 and all(entry.row is None and entry.reason for entry in found)


@pytest.mark.parametrize(
    "line",
    [b"[" * 100_000, b'{"a": NaN}', b'{"a": 1e999}', b'"\xff"', b"{}", b"[]", b"5", b'{"request": 1}', b"1" * 5000],
)
def test_a_line_that_is_no_record_has_a_reason(tmp_path: Path, line: bytes) -> None:
    (tmp_path / "a.jsonl").write_bytes(line + b"\n" + text(1))
    found = entries(tmp_path / "a.jsonl")
    assert found[0].row is None and found[0].reason and "\n" not in found[0].reason
    assert ids(found) == ["1"]


def test_blank_lines_are_no_rows_and_a_byte_order_mark_is_no_harm(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + text(1) + b"\r\n  \n\n" + text(2).rstrip())
    found = entries(tmp_path / "a.jsonl")
    assert ids(found) == ["1", "2"] and [entry.where[-2:] for entry in found] == [":1", ":5"]


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_a_log_that_grew_is_read_from_where_it_ended(tmp_path: Path, pack: Any) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(pack(text(1, 2)))
    position = entries(file)[-1].position
    file.write_bytes(pack(text(1, 2)) + pack(text(3)))
    (part,) = JSONL((str(file),)).parts()
    assert ids(list(part.read(position))) == ["3"] and part.skipped == 2


def test_a_file_that_was_changed_is_read_from_its_start(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(text(1, 2))
    position = entries(file)[-1].position
    file.write_bytes(text(4, 2, 3))
    assert ids(entries(file, position)) == ["4", "2", "3"]
    assert ids(entries(file, position, workload="other")) == ["4", "2", "3"]


def test_a_last_line_that_is_still_growing_is_not_passed(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(text(1) + text(2)[:40])
    found = entries(file)
    assert found[1].row is None and found[1].position is None
    file.write_bytes(text(1, 2))
    assert ids(entries(file, found[0].position)) == ["2"]


class Slow(io.BytesIO):
    """A stream that gives a few bytes at a time."""

    def __init__(self, content: bytes, size: int) -> None:
        super().__init__(content)
        self.size = size

    def read(self, _: int | None = -1, /) -> bytes:
        return super().read(self.size)


@given(st.lists(st.binary(max_size=20)), st.booleans(), st.integers(1, 7))
def test_lines_are_those_of_the_file_however_it_is_cut_into_blocks(parts: list[bytes], ended: bool, size: int) -> None:
    whole = b"\n".join(parts) + (b"\n" if ended else b"")
    found = list(lines(Slow(whole, size), before := hashlib.sha256()))
    assert b"".join(line.raw + b"\n" * line.ended for line in found) == whole
    assert sum(line.size for line in found) == len(whole)
    assert before.hexdigest() == hashlib.sha256(whole).hexdigest()


@given(st.lists(st.binary(max_size=20).map(lambda raw: raw.replace(b"\n", b"?")), min_size=1), st.integers(1, 7))
def test_a_line_over_the_limit_is_cut_and_known_by_all_of_its_bytes(parts: list[bytes], size: int) -> None:
    whole = b"\n".join(parts) + b"\n"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "LONGEST_LINE", 10)
        patch.setattr(files, "KEPT_OF_LONGER", 3)
        found = list(lines(Slow(whole, size), hashlib.sha256()))
    for part, line in zip(parts, found, strict=True):
        over = len(part) > 10
        assert line.raw == (part[:3] if over else part) and bool(line.problem) == over
        assert line.digest == (hashlib.sha256(part).hexdigest() if over else "")
