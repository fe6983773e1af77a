"""A text as the finders read it: look-alikes made ASCII, each character still in its place.

People copy numbers from where they were typeset: no-break spaces, typographic dashes, the invisible marks that a phone
puts around a number, Arabic or full-width digits. Each is one character and becomes one, so that what is found in the
plain text lies at the same place in the text itself. JSON's and Python's escapes of white space become two spaces for
the same reason: in the characters `\\nbob@x.com` the address does not begin with n.
"""

import re
from collections.abc import Iterator

ZEROS = "٠۰०০๐０"  # Arabic, Persian, Devanagari, Bengali, Thai, full width: each is followed by its other nine digits
ESCAPED_SPACE = re.compile(r"\\[bfnrt]")


def _ranges(*ranges: tuple[int, int]) -> Iterator[int]:
    for first, last in ranges:
        yield from range(first, last + 1)


LOOK_ALIKES: dict[int, str] = {
    **{ord(zero) + n: str(n) for zero in ZEROS for n in range(10)},
    **dict.fromkeys(_ranges((0xA0, 0xA0), (0x2000, 0x200A), (0x202F, 0x202F), (0x205F, 0x205F), (0x3000, 0x3000)), " "),
    # Invisible: soft hyphen, zero width, direction marks, byte order mark.
    **dict.fromkeys(_ranges((0xAD, 0xAD), (0x200B, 0x200F), (0x202A, 0x202E), (0x2060, 0x2069), (0xFEFF, 0xFEFF)), " "),
    **dict.fromkeys(_ranges((0x2010, 0x2015), (0x2212, 0x2212), (0xFF0D, 0xFF0D)), "-"),
    # The colon stands between a word and a value there, which `=` does here; an IPv6 address may follow it.
    **dict(zip(map(ord, "＋＠（）．／："), "+@()./=", strict=True)),
}


def plain(text: str) -> str:
    """The text in plain characters, as long as it was."""
    if not text.isascii():
        text = text.translate(LOOK_ALIKES)
    return ESCAPED_SPACE.sub("  ", text) if "\\" in text else text
