r"""Pseudonyms: what stands in a value's place, in the value's own form, and is nobody's.

A model that has learned to copy an address copies another address, and no `<EMAIL_k3f9q2>`. So a pseudonym is made
like what it stands for, of HMAC-SHA256 over kind and normalized value:

| kind  | value                         | pseudonym                     | of   | nobody's, because                     |
|-------|-------------------------------|-------------------------------|------|---------------------------------------|
| email | `bob@company.com`             | `kqzwmtb@example.com`         | 2^30 | example.com is for examples, RFC 2606 |
| phone | `+1 (650) 253-0000`           | `+1 (000) 638-2871`           | 10^6 | no national number begins with 000    |
| card  | `4111 1111 1111 1111`         | `0000 0097 0863 9197`         | 10^9 | no issuer's begins with 0; fails Luhn |
| iban  | `DE89 3704 0044 0532 0130 00` | `DE00 0000 0000 9336 7237 63` | 10^9 | no check digits are 00; fails mod 97  |
| ip    | `203.0.113.7`                 | `240.108.216.248`             | 2^28 | 240.0.0.0/4 is reserved, RFC 1112     |
| ip    | `2a02:8108::1`                | `2001:db8::5b59:cd47`         | 2^31 | 2001:db8::/32 is reserved, RFC 3849   |
| key   | `sk-proj-...`                 | `redacted-kqzwmtb`            | 2^30 | no issuer's form, and no digit        |

The third column says of how many; two values have the same one by chance once in that. Telephone numbers have the
fewest: of 9 digits there are 10^5, of 7 digits 10^3, of 5 digits 10, of 4 (Niue) one. Two such numbers in one
conversation are hardly ever the same; conversations that are known by short numbers may be. Clients are not: whom one
`forget` erases must be one, and no model copies a `client_id`: what stands there has no form to keep (`wide`, 2^103).

**Words.** The letters are consonants: no name and no word is seven of them, so nobody who makes up an address at
example.com makes a pseudonym. The host decides whether it is copied: on 300 of the shop's training phrasings the
seedling teacher copies 95 % of the addresses that it was trained on, 94 % of these, and none at a host that it never
saw, such as redacted.invalid. A key keeps no prefix of its issuer, which scanners would take for real.

**Numbers** are replaced digit by digit, so that each occurrence stays grouped as it was, and the same number ends in
the same digits in every grouping. Their digits are zeros, three or more; how many follow; and these. So it is known
where a pseudonym ends, and a number behind it is found. A telephone number keeps the country code behind + or 00, and a
bare one where there are eleven digits or more (60000 12345 may be someone's in India). Other digits before the national
number become 0: a trunk zero stays, a trunk 8 does not. With five country codes numbers do begin with 000, as
`phonenumbers` has their plans, so these codes become 0 too.

What is real comes first. Zeros within other digits are no pseudonym (06 00 04 12 34 is someone's in France), zeros in
an e-mail address, a password or a valid IBAN neither. So a pseudonym right behind or before digits that are none may be
found once more, and then differs from its others; what becomes of it is stable. What is lost: a telephone number that
itself begins with 000.
"""

import hmac
import ipaddress
import re
from itertools import cycle
from typing import Literal, get_args

from infra.privacy.plain import plain

Kind = Literal["email", "phone", "card", "iban", "ip", "key"]
KINDS: tuple[Kind, ...] = get_args(Kind)

CONSONANTS = "bcdfghjklmnpqrstvwxz"
LENGTH, WIDE = 7, 24
MOST = 9  # digits that follow the one which counts them

# ITU-T E.164, but 598 (Uruguay), 992 (Tajikistan), 800, 881 and 888 (no country's).
CODES = (
    r"(?:1|7|2[07]|3[0-469]|4[013-9]|5[1-8]|6[0-6]|8[1246]|9[0-58]|2[1-689][0-9]|3[578][0-9]|42[0-9]|50[0-9]"
    r"|59[0-79]|6[7-9][0-9]|808|85[0-9]|87[08]|88[0236]|9[67][0-9]|99[3-8])"
)
GAP = "[ ./()-]{0,3}"
APART = "[ ./()-]{1,3}"
# Zeros, how many digits follow, and these; or zeros alone.
NUMBER = (
    rf"(?:0(?:{GAP}0){{2,}}+{GAP}(?:{'|'.join(f'{n}(?:{GAP}[0-9]){{{n}}}' for n in range(1, MOST + 1))})"
    rf"|0(?:{GAP}0){{3,}}+(?!{GAP}[0-9]))"
)
CODED = rf"(?:(?:\+|00){GAP}{CODES}{GAP}|(?=(?:[0-9]{GAP}){{11}}){CODES}{GAP}|\+)?{NUMBER}"
BEFORE = r"(?:(?=\+)|(?<![0-9A-Za-z])(?<![0-9][ ./()-])(?<![0-9][ ./()-]{2})(?<![0-9][ ./()-]{3}))"
OCTET = r"\.(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"

# A pseudonym that is words → its pattern, looked for where its literal is. The first two are found whatever is around
# them, since anything may come to stand there: so what was replaced is not found again.
WORDS = {
    "@example.com": rf"[{CONSONANTS}]{{{LENGTH}}}@example\.com",
    "redacted-": rf"redacted-[{CONSONANTS}]{{{LENGTH}}}",
    "2001:db8::": r"(?<![0-9A-Za-z:.])2001:db8:(?::[1-9a-f][0-9a-f]{3}){2}(?![0-9A-Za-z])",
    ".": rf"2(?<![0-9A-Za-z.].)(?:4[0-9]|5[0-4])(?:{OCTET}){{3}}(?![0-9A-Za-z]|\.[0-9])",
    "<": r"<(?:EMAIL|PHONE|CARD|IBAN|IP|KEY)_[a-z2-7]{6}>",  # as they were written once, and may be stored
}
# Pseudonyms that are digits, one or several; never a part of other digits, which may be someone's.
NUMBERS = rf"{BEFORE}{CODED}(?:{APART}{CODED})*+(?![0-9A-Za-z]|{APART}[0-9])"
ACCOUNT = r"(?<![0-9A-Za-z])[A-Za-z]{2}00(?:[ -]?[0-9A-Za-z]){11}"
TOKEN = re.compile("|".join((*WORDS.values(), NUMBERS, ACCOUNT)))
"""A pseudonym in a plain text, or what may be one: zeros that stand there by chance, a bank account that cannot be."""

_WORDS = {literal: re.compile(pattern) for literal, pattern in WORDS.items()}
_NUMBERS = re.compile(NUMBERS)
_ZEROS = re.compile(f"0{GAP}0{GAP}0")
_UNREAL = re.compile(rf"(?:(?:\+|00){CODES}|\+)?000")
_CODE = re.compile(rf"(\+|00|){CODES}")


def pseudonym(key: bytes, kind: Kind, value: str, written: str) -> str:
    """What stands in the place of a value where it is written so.

    Args:
        key: Secret key: without it none can be undone by trying all values of a kind, of which there are few enough.
        value: The value as its finder normalizes it.
        written: The value as it stands in the text; the pseudonym of a number is as long, and grouped so.
    """
    number = _number(key, kind, value)
    match kind:
        case "email":
            return f"{_letters(number)}@example.com"
        case "key":
            return f"redacted-{_letters(number)}"
        case "ip":
            return _address(number, value)
        case "phone":
            return _phone(number, value, written)
        case "card":
            return _card(number, written)
        case "iban":
            return _iban(number, written)


def wide(key: bytes, kind: Kind, value: str) -> str:
    """A pseudonym that no two values share, where its form does not matter: `redacted-` and 24 consonants."""
    return f"redacted-{_letters(_number(key, kind, value), WIDE)}"


def without_words(text: str) -> str:
    """A plain text in which no finder can find an address or a key that is a pseudonym, each character in its place."""
    for literal, pattern in _WORDS.items():
        if literal in text:
            text = pattern.sub(_blank, text)
    return text


def without_numbers(text: str) -> str:
    """The same for digits, which only telephone numbers can be mistaken for."""
    return _NUMBERS.sub(_blank, text) if _ZEROS.search(text) else text


def is_unreal(written: str) -> bool:
    """Whether no numbering plan can have a telephone number that is written so (in plain characters)."""
    return _UNREAL.match(("+" if written.startswith("+") else "") + _digits(written)) is not None


def _blank(match: re.Match[str]) -> str:
    return "<" * len(match[0])  # part of no value, and no word before one


def _digits(written: str) -> str:
    return "".join(filter(str.isdigit, written))


def _number(key: bytes, kind: Kind, value: str) -> int:
    return int.from_bytes(hmac.digest(key, f"{kind}:{value}".encode("utf-8", "surrogatepass"), "sha256"))


def _letters(number: int, length: int = LENGTH) -> str:
    return "".join(CONSONANTS[number // len(CONSONANTS) ** place % len(CONSONANTS)] for place in range(length))


def _address(number: int, value: str) -> str:
    if ":" in value:
        high, low = (0x1000 + (number >> shift) % 0xF000 for shift in (0, 64))
        return f"2001:db8::{high:x}:{low:x}"
    return str(ipaddress.IPv4Address((240 + (number >> 32) % 15 << 24) + number % 2**24))


def _phone(number: int, value: str, written: str) -> str:
    said = plain(written)
    digits = _digits(said)
    code = _CODE.match(("+" if said.startswith("+") else "") + digits)
    kept = len(_digits(code[0])) if code else 0
    behind = len(digits) - kept
    # Behind + it is a code. Elsewhere it must not be a part of the number, and no other digits may look like it.
    if code and code[1] != "+" and not (behind >= len(value) and (code[1] or len(digits) >= 11)):
        kept, behind = 0, len(digits)
    return _written(written, digits[:kept] + _numbered(number, behind, min(behind, len(value))))


def _card(number: int, written: str) -> str:
    from stdnum import luhn

    count = len(_digits(plain(written)))
    while luhn.is_valid(new := _numbered(number, count, count)):
        number += 1
    return _written(written, new)


def _iban(number: int, written: str) -> str:
    from stdnum import iban

    count = len(_digits(plain(written))) - 2
    letters = (chr(ord("A") + (number >> shift) % 26) for shift in cycle(range(64, 250, 5)))
    lettered = written[:2] + "".join(_like(c, next(letters)) if c.isalpha() else c for c in written[2:])
    while iban.is_valid(plain(new := _written(lettered, "00" + _numbered(number, count, count))), check_country=False):
        number += 1
    return new


def _numbered(number: int, count: int, of: int) -> str:
    """So many digits: zeros, how many are left of `of` digits without the zeros and this one, and these."""
    left = max(0, min(of - 4, MOST))
    return (f"{left}{number % 10**left:0{left}}" if left else "").rjust(count, "0")


def _written(written: str, digits: str) -> str:
    """What is written with other digits, in the script that they are written in."""
    new = iter(digits)
    return "".join(chr(ord(c) - int(c) + int(next(new))) if c.isdecimal() else c for c in written)


def _like(letter: str, new: str) -> str:
    return new.lower() if letter.islower() else new
