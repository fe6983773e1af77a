"""Random customer language: templates with alternatives, typos, and values worth copying.

A template is a string with alternatives in brackets and slots in braces:
``"[hi, |]where is order {order_id}[?|]"``. Typos fall on the words around a slot and never inside one, so that
the right argument value can always be copied out of the message, letter by letter.
"""

import re
from random import Random

FIRST = """
    Anna Ben Carla David Elena Farid Grace Hugo Ines Jonas Kim Lena Marco Nadia Oscar Priya Quentin Rosa
    Sven Tara Umar Vera Walid Xenia Yusuf Zoe Amara Boris Chloe Dmitri Esme Felix Greta Hana Ivan Jade
    Kofi Lucia Mateo Noor
""".split()
LAST = """
    Smith Garcia Okafor Novak Tanaka Rossi Larsen Haddad Kowalski Dubois Moreau Silva Petrov Fischer
    Andersson Nguyen Patel Cohen Murphy Jensen Costa Weber Ivanova Brown Lopez Keller Bauer Marino
    Schmidt Olsen
""".split()
CITIES = """
    Boston Lisbon Dublin Hamburg Toronto Madrid Oslo Prague Vienna Denver Austin Leeds Lyon Turin Krakow
    Bergen Porto Seville Ghent Basel Malmo Tampere Riga Vilnius Zagreb Split Athens Cairo Nairobi Accra
    Lima Quito Bogota Santiago Osaka Kyoto Busan Hanoi Perth Cork Bath York Dresden Leipzig Nantes
    Utrecht
""".split()
STREETS = """
    Elm Oak Maple Cedar Birch Station Church Market Mill River Park Garden Castle Bridge Harbour School
    Victoria Linden Rose Orchard Meadow Chapel Forest Lake Spring
""".split()
MONTHS = """
    January February March April May June July August September October November December
""".split()
WEEKDAYS = """
    Monday Tuesday Wednesday Thursday Friday Saturday Sunday
""".split()
OCCASIONS = "WINTER SUMMER SPRING HELLO THANKS VIP FRIEND BIRTHDAY".split()
MAIL_HOSTS = "example.com mail.example.org post.example.net inbox.example.com"

_ALTERNATIVE = re.compile(r"\[([^\[\]]*)\]")
_SLOT = re.compile(r"\{(\w+)\}")


def digits(rng: Random, low: int, high: int) -> str:
    return str(rng.randint(10 ** (low - 1), 10**high - 1))


def letters(rng: Random, low: int, high: int) -> str:
    return "".join(rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(rng.randint(low, high)))


def code(rng: Random) -> str:
    return rng.choice(
        (
            f"{letters(rng, 3, 6).upper()}{digits(rng, 1, 3)}",
            f"{letters(rng, 2, 4).upper()}-{digits(rng, 2, 4)}",
            f"{rng.choice(OCCASIONS)}{rng.randint(5, 60)}",
        )
    )


def email(rng: Random) -> str:
    first, last = rng.choice(FIRST).lower(), rng.choice(LAST).lower()
    user = rng.choice((f"{first}.{last}", f"{first}{digits(rng, 1, 3)}", f"{first[0]}{last}", f"{letters(rng, 4, 8)}"))
    return f"{user}@{rng.choice(MAIL_HOSTS.split())}"


def date(rng: Random) -> str:
    day, month = rng.randint(1, 28), rng.choice(MONTHS)
    return rng.choice(
        (
            f"{month} {day}",
            f"{day} {month}",
            f"{rng.randint(2026, 2028)}-{rng.randint(1, 12):02d}-{day:02d}",
            f"{day:02d}/{rng.randint(1, 12):02d}",
            f"next {rng.choice(WEEKDAYS)}",
            f"this {rng.choice(WEEKDAYS)}",
            rng.choice(WEEKDAYS),
            "tomorrow",
        )
    )


def time_of_day(rng: Random) -> str:
    return rng.choice(
        (
            f"{rng.randint(1, 12)} {rng.choice(('am', 'pm'))}",
            f"{rng.randint(0, 23)}:{rng.choice(('00', '15', '30', '45'))}",
        )
    )


def address(rng: Random) -> str:
    street = f"{rng.choice(STREETS)} {rng.choice(('Street', 'Road', 'Lane', 'Avenue', 'Way'))}"
    number, city = rng.randint(1, 240), rng.choice(CITIES)
    return rng.choice((f"{number} {street}, {city}", f"{number} {street} {city}", f"{street} {number}, {city}"))


def person(rng: Random) -> str:
    return rng.choice((rng.choice(FIRST), f"{rng.choice(FIRST)} {rng.choice(LAST)}"))


def amount(rng: Random) -> str:
    return rng.choice((str(rng.randint(5, 400)), f"{rng.randint(5, 200)}.{rng.randint(0, 99):02d}"))


def expand(template: str, rng: Random) -> str:
    """One random reading of a template's bracketed alternatives; slots stay."""
    while match := _ALTERNATIVE.search(template):
        template = template[: match.start()] + rng.choice(match[1].split("|")) + template[match.end() :]
    return template


def misspell(text: str, rng: Random) -> str:
    """One typing slip inside one of the longer words of `text`."""
    words = [m for m in re.finditer(r"[A-Za-z]{4,}", text)]
    if not words:
        return text
    word = rng.choice(words)
    i = rng.randrange(word.start() + 1, word.end() - 1)
    slip = rng.randrange(3)
    if slip == 0:
        return text[:i] + text[i + 1 :]
    if slip == 1:
        return text[:i] + text[i] + text[i:]
    return text[:i] + text[i + 1] + text[i] + text[i + 2 :]


def say(template: str, values: dict[str, str], rng: Random, typos: float = 0.15) -> str:
    """Fill a template. With probability `typos` one word outside the slots is misspelt.

    Args:
        template: Alternatives in brackets, slots in braces.
        values: A value for each slot; inserted as they are.
        rng: Source of every choice made here.
        typos: Probability of a slip, 0 to 1.

    Returns:
        The message. Its first letter is sometimes lowered, its last full stop or question mark dropped.
    """
    text = expand(template, rng)
    parts = re.split(r"(\{\w+\})", text)
    if rng.random() < typos:
        i = rng.randrange(0, len(parts), 2)
        parts[i] = misspell(parts[i], rng)
    if rng.random() < 0.4:
        parts[0] = parts[0][:1].lower() + parts[0][1:]
    text = "".join(values[part[1:-1]] if _SLOT.fullmatch(part) else part for part in parts)
    return text.rstrip("?.!") if rng.random() < 0.3 else text
