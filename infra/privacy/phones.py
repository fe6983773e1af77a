"""Telephone numbers in a text: what looks like one, judged by the numbering plans of `phonenumbers` (Google, offline).

Digits are everywhere in traffic (orders, dates, prices, ids), so a number counts only where it says what it is:

| written                            | found where                                                                    |
|------------------------------------|--------------------------------------------------------------------------------|
| `+44 20 7946 0958`                 | the country has numbers of that length                                         |
| `0044 20 7946 0958`                | the number is valid in that country                                            |
| `(650) 253-0000`, `020 7946 0958`  | grouped as in `SHAPES`, and valid in a country that writes it so               |
| `phone: 6502530000`                | 7 to 15 digits behind a word for telephone, or the value of a JSON key like it |

No region is assumed, since one feature's traffic may come from anywhere. So bare digits without a sign stay
(`6502530000` may as well be a moment in seconds), and so does what follows a word for an order or an invoice, or is
joined to a word by a hyphen. So does a national number that begins with 000, which is a pseudonym's.

A number comes to its national significant number, without country code and trunk zero: +49 30 123456 and 030 123456
are the same to who wrote them. That two countries have the same number matters little within one conversation.
"""

import contextlib
import re
from collections.abc import Iterable, Iterator

from infra.privacy.pseudonyms import GAP, is_unreal, without_numbers

Span = tuple[int, int, str]
"""Where a value starts, where it ends, and what it comes to however it is written."""

DATE = r"(?:[0-9]{1,2}[./-][0-9]{1,2}[./-](?:19|20)[0-9]{2}|(?:19|20)[0-9]{2}[./-][0-9]{1,2}[./-][0-9])"
START = rf"(?<![0-9A-Za-z+])(?<![0-9][.,:/])(?<![0-9A-Za-z]-)(?!{DATE})"  # not within a word, an amount, an id
END = r"(?![0-9A-Za-z]|[.,:/][0-9]|-[0-9A-Za-z])"

SEVEN = re.compile(rf"[0-9](?:{GAP}[0-9]){{6}}")  # as many digits as each of these has, no farther apart
INTERNATIONAL = re.compile(rf"{START}(?:\+|(?<![0-9] )00)[ (]{{0,2}}[1-9](?:[ ./()-]{{0,3}}[0-9]){{6,17}}{END}")
LABELLED = re.compile(rf"{START}[0-9]{{1,15}}(?:(?:[ ./-]|\) ?| ?\()[0-9]{{2,15}}){{0,7}}(?![0-9A-Za-z])")

NAMES = "phone fone telefon telefono teléfono telefoon whatsapp celular телефон 电话 電話 手机 手機 携帯".split()
SHORT_NAMES = "tel fax cell cel sms handy mobile mobil móvil movil тел".split()  # hotel is none of them
OWNERS = "my our your his her their contact daytime".split()
NUMBERS = "number nummer número numero numéro num no nr".split()
CALLS = [f"{ask}{whom} {at}" for ask in ("call", "text", "ring", "reach", "contact", "dial")
         for whom in ("", " me", " us") for at in ("at", "on")]  # fmt: skip
VERBS = "is ist est es è".split()
_ANY = {name: "|".join(words).replace(" ", "[ ]") for name, words in (
    ("name", NAMES), ("short", SHORT_NAMES), ("owner", OWNERS), ("number", NUMBERS), ("call", CALLS), ("verb", VERBS)
)}  # fmt: skip
LABEL = re.compile(
    r"""(?:
        (?:(?<!i)(?:{name}) | (?<![^\W_])(?:{short})) (?:[_.\ -]?[\ ]?(?:{number}))?
        | (?<!\w)(?:{owner})[_\ -](?:{number})
        | (?:{call})
    )
    (?:[ ](?:{verb}))?$""".format(**_ANY),
    re.VERBOSE,
)
LABEL_ENDS = {word[-3:] for word in (*NAMES, *SHORT_NAMES, *NUMBERS, *CALLS, *VERBS)}
AFTER_LABEL = " .:=\"'\\(#\t\n\r"
LONGEST_LABEL = 48

WITH_TRUNK = "DE GB FR IT NL BE AT CH SE AU JP KR IN TR ZA ID VN UA".split()
SHAPES = tuple(
    (re.compile(START + shape + END), regions)
    for shape, regions in (
        (r"(?:1[ .-])?(?:\([2-9][0-9]{2}\) ?|[2-9][0-9]{2}[ .-])[2-9][0-9]{2}[ .-][0-9]{4}", ("US",)),
        (
            r"(?<![0-9] )(?<!\(00\) )(?<!\(000\) )"  # behind the area of a pseudonym is none
            r"(?:\(0[1-9][0-9]{0,4}\) ?|0[1-9][0-9]{0,4}(?: ?[/-] ?|[ .]))"
            r"[0-9]{2,9}(?:[ ./-][0-9]{2,4}){0,4}",
            WITH_TRUNK,
        ),
        (r"\([1-9][0-9]\) ?9?[0-9]{4}[ -][0-9]{4}", ("BR",)),
        (r"1[3-9][0-9][ -][0-9]{4}[ -][0-9]{4}", ("CN",)),
        (r"[6-9][0-9]{4} [0-9]{5}", ("IN",)),
        (r"8 ?\(?[3489][0-9]{2}\)? ?[0-9]{3}[ -][0-9]{2}[ -][0-9]{2}", ("RU",)),
        (r"[6-9][0-9]{2} [0-9]{2} [0-9]{2} [0-9]{2}", ("ES",)),
    )
)
OTHER = re.compile(
    r"""(?:order|invoice|ticket|case|ref(?:erence)?|tracking|account|article|item|sku|part|serial|isbn|issn|policy
        |bestell|auftrag|rechnung|artikel|kunden|konto|pedido|factura|commande|facture|ordine|fattura)s?
    [ _-]?(?:number|nummer|num|no|nr|id|code|s)?[.\s"'\\]{0,3}[:=#]?[\s"'\\]{0,3}(?:is\s)?\#?$""",
    re.VERBOSE | re.IGNORECASE,
)


def find(text: str) -> Iterator[Span]:
    """Telephone numbers in a plain text; where two overlap, the surer one comes first. None is a pseudonym."""
    text = without_numbers(text)
    if not SEVEN.search(text):
        return
    for match in INTERNATIONAL.finditer(text):
        surely = match[0].startswith("+")
        if surely or not _is_other(_before(text, match.start())):
            yield from _span(match, _international(_beginnings(match[0]), surely))
    for shape, regions in SHAPES:
        for match in shape.finditer(text):
            if 9 <= len(_digits(match[0])) <= 12 and not _is_other(_before(text, match.start())):
                yield from _span(match, _valid(match[0], regions))
    for match in LABELLED.finditer(text):
        if len(_digits(match[0])) >= 7 and is_labelled(_before(text, match.start())):
            yield from _span(match, _labelled(_beginnings(match[0])))


def is_labelled(before: str) -> bool:
    """Whether the end of a plain text says that a telephone number follows."""
    before = before[-LONGEST_LABEL:].rstrip(AFTER_LABEL).lower()
    return (before[-3:] in LABEL_ENDS or before[-2:] in LABEL_ENDS) and LABEL.search(before) is not None


def _is_other(before: str) -> bool:
    return OTHER.search(before) is not None


def _before(text: str, end: int) -> str:
    return text[max(0, end - LONGEST_LABEL) : end]


def _span(match: re.Match[str], found: tuple[str, str] | None) -> Iterator[Span]:
    if found and not is_unreal(match[0]):
        written, number = found
        yield match.start(), match.start() + len(written), number


def _digits(written: str) -> str:
    return "".join(filter(str.isdigit, written))


def _beginnings(written: str) -> list[str]:
    """A number and what stays of it without its last groups, longest first: what follows may be another number."""
    ends = [found.end() for found in re.finditer("[0-9]+", written)]
    return [written[:end] for end in reversed(ends) if 7 <= len(_digits(written[:end])) <= 17]


def _international(candidates: list[str], surely: bool) -> tuple[str, str] | None:
    import phonenumbers

    parsed = []
    for written in candidates:
        with contextlib.suppress(phonenumbers.NumberParseException):
            parsed.append((written, phonenumbers.parse(written if surely else "+" + written[2:])))
    for judge in [phonenumbers.is_valid_number, *([phonenumbers.is_possible_number] if surely else [])]:
        for written, number in parsed:
            if judge(number):
                return written, str(number.national_number)
    return None


def _valid(written: str, regions: Iterable[str]) -> tuple[str, str] | None:
    import phonenumbers

    for region in regions:
        with contextlib.suppress(phonenumbers.NumberParseException):
            number = phonenumbers.parse(written, region)
            if phonenumbers.is_valid_number(number):
                return written, str(number.national_number)
    return None


def _labelled(candidates: list[str]) -> tuple[str, str] | None:
    """The longest beginning that is valid somewhere; where none is, the label is believed."""
    for written in candidates:
        bare = _digits(written)
        found = _valid(bare, ("US",)) if len(bare) == 10 else _international(["00" + bare.removeprefix("00")], False)
        if found := found or (_valid(bare, WITH_TRUNK) if bare.startswith("0") else None):
            return written, found[1]
    return next(
        ((written, _digits(written).lstrip("0")) for written in candidates if len(_digits(written)) <= 15), None
    )
