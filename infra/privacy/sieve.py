r"""The sieve: whether JSON may hold anything to redact, asked of every record and so answered in microseconds.

It looks at the bytes of JSON, or of a text, for the shape of what the finders find: yes where there may be something,
no only where there is nothing. Python's `re` takes 5 ns a character to look for one of several first characters, so
that one pattern a kind would cost 100 µs for 2 kB. Three things are fast: `in`; a pattern that begins with one rare
literal (the `.` of an address, the `k` of a key), with a lookbehind for what stands before it; and `bytes.translate`
into a map on which what is sought looks alike, a digit `0`, a character of a token `a`, and so is a fixed string.

To be certain, no pattern may lean on a character that JSON writes otherwise: a line break before a number is a letter
there. Bytes with a `\u` escape are a yes without a look.
"""

import re
import string
from functools import lru_cache

from infra.privacy import phones
from infra.privacy.keys import BEGINNING
from infra.privacy.plain import plain

ALNUM = string.ascii_letters + string.digits


def _map(characters: dict[str, str], rest: str) -> bytes:
    """A table for `translate`."""
    return bytes(next((ord(to) for to, those in characters.items() if chr(b) in those), ord(rest)) for b in range(256))


NUMBERS = _map({"0": string.digits, "a": string.ascii_letters, " ": " ./()-"}, rest="|")
TOKENS = _map({"a": ALNUM + "_-"}, rest=" ")

ESCAPE = re.compile(rb"\\[u/]")
# Look-alikes as UTF-8, by their first byte. Digits, + and @ are a yes; separators and invisible marks become a space.
DIGITS_ELSEWHERE = (
    (b"\xd9", re.compile(rb"\xd9[\xa0-\xa9]")),
    (b"\xdb", re.compile(rb"\xdb[\xb0-\xb9]")),
    (b"\xe0", re.compile(rb"\xe0(?:[\xa5\xa7][\xa6-\xaf]|\xb9[\x90-\x99])")),
    (b"\xef", re.compile(rb"\xef\xbc[\x8b\x90-\x99\xa0]")),
)
SPACES_ELSEWHERE = (
    (b"\xc2", re.compile(rb"\xc2[\xa0\xad]")),
    (b"\xe2", re.compile(rb"\xe2(?:\x80[\x80-\x95\xaa-\xaf]|\x81[\x9f-\xa9]|\x88\x92)")),
    (b"\xe3", re.compile(rb"\xe3\x80\x80")),
    (b"\xef", re.compile(rb"\xef\xbc[\x88\x89\x8d-\x8f]|\xef\xbb\xbf")),
)
COLON_ELSEWHERE = "：".encode()

SECRET = (
    rb"[\\\"'` ]{0,8}(?:[:=]|is)[\\\"'`=>t ]{0,9}"  # keys.ASSIGNED behind its word, with a digit in the value
    rb"(?=[^\s\"'`<>{}\[\]\\,;0-9]{0,256}[0-9])[^\s\"'`<>{}\[\]\\,;]{6}"
)
LITERALS = tuple(
    (literal, re.compile(re.escape(literal) + rest).search)
    for literal, rest in (
        (b"@", rb"(?<=[^\s\"]@)[0-9A-Za-z\x80-\xff]"),  # e-mail; a password in a URL
        (b".", rb"[0-9]{1,3}\.[0-9]{1,3}\.[0-9]"),  # IPv4
        (b":", rb"[0-9A-Fa-f:](?<=[23fF][0-9A-Fa-f]{3}:.)"),  # IPv6
        (b"+", rb"[ (]{0,2}[1-9](?:[^0-9A-Za-z]{0,3}[0-9]){6}"),
        (b"V", rb"(?<=PRIV)ATE KEY"),
        (b"w", rb"(?<=assw)(?:or)?[dt]" + SECRET),
        (b"W", rb"(?<=ASSW)(?:OR)?D" + SECRET),
        (b"ecret", SECRET),
        (b"k", rb"(?:en(?<=[Tt]oken)|ey(?:(?<=[A-Za-z][_ -]key)|(?<=[Aa]pikey)))" + SECRET),
        (
            b"K",
            rb"(?:(?<=TOK)EN|(?<=API_K)EY|(?<=[A-Z]_K)EY|(?<=APIK)EY|(?<=[A-Za-z][_ -]K)ey|(?<=[Aa]piK)ey)" + SECRET,
        ),
    )
)

GROUPED = re.compile(
    rb"00 00(?:(?<=000 00)(?:00|0 00)"  # 253-0000, 345 678 90
    rb"|(?<=000 00)(?<!0000 00) 00"  # 345 67 89, but not 2026-11-24
    rb"| 00 00)"  # 06 12 34 56 78, and 2026-11-24 10
)
LONG, ZERO = 7 * b"0", ord("0")
NEAR = 12
AFTER_LABEL = phones.AFTER_LABEL.encode() + b"-/)"
LABEL_ENDS = {end.encode() for end in phones.LABEL_ENDS}
TRUNK = re.compile(r"(?:0[1-9][0-9]{0,4}|00[1-9][0-9]{0,2}[ ./()-]{1,2}[0-9]{1,5})[ ./)-]{1,3}$")
GROUPS_BEFORE = string.digits + " ./()-"
IBAN = re.compile(r"(?<![0-9A-Za-z])(?:[A-Za-z]{2}([0-9]{2}[ -]?(?:[0-9A-Za-z][ -]?){0,12})|[A-Z]{2}|[a-z]{2})$")
LONGEST_IBAN = 32
UUID = re.compile(rb"[0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}")
TOKEN = 20 * b"a"


def may_hold(data: bytes) -> bool:
    """False only where no string of the JSON (or UTF-8 text) `data` holds anything that the finders would find."""
    if escape := ESCAPE.search(data):
        if b"\\u" in data:
            return True
        data = data.replace(escape[0], b"/")  # as PHP writes a slash
    if not data.isascii():
        if any(first in data and digits.search(data) for first, digits in DIGITS_ELSEWHERE):
            return True
        for first, spaces in SPACES_ELSEWHERE:
            if first in data:
                data = spaces.sub(b" ", data)
        data = data.replace(COLON_ELSEWHERE, b"=")
    for literal, search in LITERALS:
        if literal in data and search(data):
            return True
    return _numbers(data) or _tokens(data)


def _numbers(data: bytes) -> bool:
    """Whether digits are grouped as in a telephone number, a card or an IBAN, or stand bare behind a word for one."""
    shape = data.translate(NUMBERS)
    if GROUPED.search(shape) and any(_is_more_than_a_date(data, shape, *g.span()) for g in GROUPED.finditer(shape)):
        return True
    start = shape.find(LONG)
    while start >= 0:
        further = shape.find(LONG, start + len(LONG))
        # Most runs are orders and moments in seconds. What stands before them is nearly always the same few words.
        longer = further == start + len(LONG)
        if (longer or not _is_id(data[start - NEAR : start + 1])) and _is_more_than_an_id(data, shape, start):
            return True
        start = further
    return False


def _is_more_than_a_date(data: bytes, shape: bytes, start: int, end: int) -> bool:
    """Whether grouped digits are no moment (2026-11-24 10) and not within a word (4012-1234 in a UUID)."""
    if end - start == len("06 12 34 56"):
        return shape[start - 2 : start] != b"00" or data[start - 2 : start] not in (b"19", b"20")
    uuid = UUID.search(data, max(0, start - 24), end + 36)
    if uuid and uuid.start() < start < uuid.end():
        return False
    first = max(shape.rfind(b"a", 0, start), shape.rfind(b"|", 0, start)) + 1
    if b" " in shape[first + 1 : start] or shape[first - 1 : first] != b"a" or data[first] not in b"-0123456789":
        return True
    before = plain(data[max(0, first - LONGEST_IBAN) : first].decode(errors="ignore"))
    return not before[-1:].isalpha() or IBAN.search(before) is not None


@lru_cache(4096)
def _is_id(beginning: bytes) -> bool:
    """Whether bare digits are surely no telephone number and no IBAN, by their first and what stands before them."""
    before = beginning[:-1]
    word = before.rstrip(AFTER_LABEL)
    end = word[-3:].lower()
    if len(end) < 3 or not end.isascii() or end in LABEL_ENDS or end[1:] in LABEL_ENDS or end[1:2] == b"\\":
        return False
    if end[2:].isdigit() or beginning[-1:] == b"0":
        return False
    # Within a word it is part of a hexadecimal id; after capitals it may be an IBAN.
    return not end[2:].isalpha() or len(word) < len(before) or before[-1:].islower()


def _is_more_than_an_id(data: bytes, shape: bytes, start: int) -> bool:
    """Whether a run of seven digits or more is no order, no moment in seconds and no part of a longer id."""
    length = len(shape[start : start + 40]) - len(shape[start : start + 40].lstrip(b"0"))
    if (14 <= length <= 19 and data[start] in b"23456") or (
        length > 8 and data[start : start + 2] == b"00" and data[start + 2] != ZERO
    ):
        return True
    text = plain(data[max(0, start - phones.LONGEST_LABEL) : start].decode(errors="ignore"))
    if text[-1:].isalnum() and text[-1:].isascii():
        iban = IBAN.search(text)
        return iban is not None and (length > 12 or bool(iban[1]))
    # The run may be the second group of a number, `tel: 30 1234567`.
    is_labelled = phones.is_labelled(text.rstrip(GROUPS_BEFORE))
    return is_labelled or TRUNK.search(text) is not None or IBAN.search(text) is not None


def _tokens(data: bytes) -> bool:
    """Whether one of the unbroken runs of twenty characters or more begins as an issuer's tokens do."""
    shape = data.translate(TOKENS)
    start = shape.find(TOKEN)
    while start >= 0:
        if BEGINNING.match(data, start):
            return True
        end = shape.find(b" ", start)
        start = shape.find(TOKEN, end) if end >= 0 else -1
    return False
