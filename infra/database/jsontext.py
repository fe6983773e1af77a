"""JSON as it goes in and out: strict where it comes from outside, fast where there are a million of it.

`orjson` reads and writes nearly all of it. What it refuses and Python's parser takes (half a surrogate pair, a byte
order mark) is read and written by that one. Whole numbers beyond 64 bits come out as floats (RFC
8259, section 6, promises no more than 53 bits).
"""

import hashlib
import json
import math
from typing import Any

import orjson


class Rejected(ValueError):
    """Why a record cannot be understood; the record goes to quarantine with this reason."""


def loads(raw: bytes) -> Any:
    """JSON without NaN and Infinity, which no database stores.

    Raises:
        Rejected: It is none.
    """
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError:
        return _by_python(raw)


def _by_python(raw: bytes) -> Any:
    try:
        return json.loads(raw, parse_constant=_refuse, parse_float=_finite)
    except RecursionError as problem:
        raise Rejected("no JSON: nested too deeply") from problem
    except Rejected:
        raise
    except ValueError as problem:
        raise Rejected(f"no JSON: {problem}") from problem


def _refuse(constant: str) -> Any:
    raise Rejected(f"no JSON: {constant} is no number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise Rejected(f"no JSON: {text[:40]} is no finite number")
    return value


def dumps(value: Any, sort_keys: bool = False) -> bytes:
    """JSON of what `loads` gives."""
    try:
        return orjson.dumps(value, option=orjson.OPT_SORT_KEYS if sort_keys else None)
    except TypeError:
        return json.dumps(value, separators=(",", ":"), sort_keys=sort_keys).encode()


def to_column(value: Any) -> str:
    """What a JSON column holds of a value; bytes are JSON that is written already."""
    return (value if isinstance(value, bytes) else dumps(value)).decode()


def from_column(text: str) -> Any:
    """The value that a JSON column holds."""
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return json.loads(text)


def number_of(said: str | bytes) -> int:
    """64 bits of a text, the same in every process."""
    raw = said if isinstance(said, bytes) else said.encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(raw, digest_size=8).digest(), "little")
