"""E-mail addresses, payment cards, bank accounts and IP addresses in a text.

A checksum decides where there is one: Luhn (ISO/IEC 7812-1) for cards, mod 97 and the registry's structures for IBANs
(ISO 13616), both by `python-stdnum`. One number in ten passes Luhn by chance, so a card must also begin as an issuer's
cards do and have their length (the ranges as listed in Wikipedia, "Payment card number"). Thirteen digits are no card:
no issuer makes them any more, and they are what is printed on every product (EAN-13).

IP addresses are judged by `ipaddress`. Private ones go like public ones: inside a company they name a person's machine.
What names no one stays: loopback, unspecified and multicast addresses, netmasks, and four numbers below ten (1.2.3.4),
which are a version or a section if not a public resolver. So does what follows a word for a version.
"""

import ipaddress
import re
from collections.abc import Iterator

from infra.privacy.phones import Span

LETTERS = "A-Za-zÀ-ɏͰ-ӿ"  # Latin, Greek, Cyrillic: Chinese and Japanese put no space around an address
DOMAIN = re.compile(rf"@(?:[0-9{LETTERS}][0-9{LETTERS}-]{{0,62}}\.)+(?:xn--[0-9A-Za-z-]+|[{LETTERS}]{{2,24}})")
LOCAL_REVERSED = re.compile(rf"[0-9{LETTERS}._+'&-]*")
LONGEST_LOCAL = 256

CARD = re.compile(r"(?<![0-9A-Za-z])(?<![0-9][.,-])(?=([2-6](?:[ .-]?[0-9]){13,18}))")
GROUPED = re.compile(
    r"[0-9]{4}(?:[ .-]?[0-9]{4}){2}[ .-]?(?:[0-9]{4}[ .-]?[0-9]{1,3}|[0-9]{2,4})"
    r"|3[0-9]{3}[ .-]?[0-9]{6}[ .-]?[0-9]{4,5}"
)
ISSUED = re.compile(
    "|".join((
        r"4(?:[0-9]{15}|[0-9]{18})",  # Visa
        r"(?:5[1-5][0-9]{2}|222[1-9]|22[3-9][0-9]|2[3-6][0-9]{2}|27[01][0-9]|2720)[0-9]{12}",  # Mastercard
        r"220[0-4][0-9]{12,15}",  # Mir
        r"3[47][0-9]{13}",  # American Express
        r"3(?:0[0-5]|[689][0-9])[0-9]{11,16}",  # Diners Club
        r"35(?:2[89]|[3-8][0-9])[0-9]{12,15}",  # JCB
        r"(?:50|5[6-8]|6[0-9])[0-9]{12,17}",  # Maestro, Discover, UnionPay, RuPay
    ))
)  # fmt: skip

IBAN = re.compile(r"(?<![0-9A-Za-z])[A-Za-z]{2}[0-9]{2}(?=((?:[ -]?[0-9A-Za-z]){11,30}))")

IPV4 = re.compile(r"(?<![0-9A-Za-z.])(?:[0-9]{1,3}\.){3}[0-9]{1,3}(?![0-9A-Za-z]|\.[0-9])")
IPV6 = re.compile(
    r"(?<![0-9A-Za-z:.])(?:[23][0-9A-F]{3}|F[CD][0-9A-F]{2}|FE[89AB][0-9A-F])(?::[0-9A-F]{0,4}){2,7}(?![0-9A-Z])", re.I
)
VERSION = re.compile(
    r"(?:\bv|\bver|version|release|build|firmware|driver|update|section|chapter|clause|§"
    r"|chrome|chromium|safari|firefox|edg[a-z]*|opr|opera|brave|electron)[/\s.:=v]{0,3}$",
    re.IGNORECASE,
)


def emails(text: str) -> Iterator[Span]:
    """Addresses with a domain of two labels or more, compared without regard to case."""
    for domain in DOMAIN.finditer(text):
        at = domain.start()
        # Read backwards from the @, so that a long text without one costs nothing.
        local = LOCAL_REVERSED.match(text[max(0, at - LONGEST_LOCAL) : at][::-1])
        start = at - len(local[0].rstrip(".+'&-")) if local else at
        if start < at:
            yield start, domain.end(), text[start : domain.end()].lower()


def cards(text: str) -> Iterator[Span]:
    """Card numbers, bare or in the groups that are embossed on a card."""
    for match in CARD.finditer(text):
        for length in range(len(match[1]), 13, -1):
            written, behind = match[1][:length], text[match.start() + length :][:2]
            number = re.sub("[ .-]", "", written)
            if (
                not re.match("[0-9A-Za-z]|[.,][0-9]", behind)
                and GROUPED.fullmatch(written)
                and ISSUED.fullmatch(number)
            ):
                from stdnum import luhn

                if luhn.is_valid(number):
                    yield match.start(), match.start() + length, number
                    break


def ibans(text: str) -> Iterator[Span]:
    """Account numbers whose check digits and structure are right, in groups or without."""
    for match in IBAN.finditer(text):
        start, first = match.span()
        # How long it is depends on the country, and the next word may stand behind it. The check digits, counted on
        # from character to character, say where it can end; the library says whether it does.
        country = int("".join(str(int(character, 36)) for character in text[start:first]))
        remainder = length = 0
        found = None
        for place, character in enumerate(match[1], first):
            if character in " -":
                continue
            length += 1
            value = int(character, 36)
            remainder = (remainder * (10 if value < 10 else 100) + value) % 97
            behind = text[place + 1 : place + 2]
            if (
                length >= 11
                and (remainder * 1_000_000 + country) % 97 == 1
                and not (behind.isascii() and behind.isalnum())
            ):
                found = _iban(text[start : place + 1]) or found
        if found:
            yield start, start + found[0], found[1]


def _iban(written: str) -> tuple[int, str] | None:
    from stdnum import iban

    return (len(written), iban.compact(written)) if iban.is_valid(written, check_country=False) else None


def addresses(text: str) -> Iterator[Span]:
    """IP addresses of version 4 and 6 that may name someone's machine."""
    for match in IPV4.finditer(text):
        if not VERSION.search(text[max(0, match.start() - 16) : match.start()]):
            yield from _address(match.start(), match[0])
    for match in IPV6.finditer(text):
        yield from _address(match.start(), match[0] if match[0].endswith("::") else match[0].removesuffix(":"))


def _address(start: int, written: str) -> Iterator[Span]:
    try:
        address = ipaddress.ip_address(written)
    except ValueError:
        return
    nobody = address.is_loopback or address.is_unspecified or address.is_multicast or written.startswith(("0.", "255."))
    if not nobody and not re.fullmatch(r"[0-9](?:\.[0-9]){3}", written):
        yield start, start + len(written), address.compressed
