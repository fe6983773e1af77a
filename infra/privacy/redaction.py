r"""What names a person or opens a door, replaced before anything is stored; what a model is asked is never touched.

`bob@company.com` becomes `kqzwmtb@example.com`: a pseudonym of the same form, by HMAC-SHA256 over kind and value
(`pseudonyms` has the form of each kind). So a value has the same one wherever it stands, in the user's words, in the
arguments of the call that copies them, in a later turn, in feedback that comes apart and in another process, without a
table of values that would itself be worth stealing. A student that learns to copy it copies real ones as well. The key
is what keeps it from being undone: there are few enough telephone numbers to try all. Losing it means no more than that
new pseudonyms differ from the old. The value is normalized first, so that other spacing or case makes no other one.
A `client_id` alone gets longer ones, which no two clients share.

Finders say what is there: `identifiers`, `phones`, `keys`. They look at strings only; the names of fields stay, and are
what tells that `{"phone": "6502530000"}` is one. A string that is JSON itself, as the arguments of a call are, is
redacted within its string literals, and the rest stays as it was written. Telephone numbers and keys may count only
because of a word before them (`my number is ...`, `"password": ...`); they are then replaced in all of the record, each
time as it is grouped there.

Redacting again changes nothing: a string is redacted until nothing more is found in it, and no finder finds a
pseudonym. Tokens of an earlier form, `<EMAIL_k3f9q2>`, stay as they are.
"""

import contextlib
import json
import operator
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import orjson

from infra.database.jsontext import Rejected
from infra.home_key import home_key
from infra.privacy import identifiers, keys, phones, sieve
from infra.privacy.phones import Span
from infra.privacy.plain import plain
from infra.privacy.pseudonyms import KINDS, Kind, pseudonym, wide, without_numbers, without_words
from infra.settings import SetupError, settings

FINDERS: dict[Kind, Callable[[str], Iterator[Span]]] = {  # the first that finds keeps: a key may look like a number
    "key": keys.find,
    "email": identifiers.emails,
    "iban": identifiers.ibans,
    "card": identifiers.cards,
    "ip": identifiers.addresses,
    "phone": phones.find,
}
SHORT, IN_SHORT = 20, re.compile(r"[\d@＠:]")
PASSES = 20  # One or two are usual. An end is certain, whatever pseudonyms may come to look like side by side.
# A string of JSON and, where it is a field's name, its value.
MEMBER = re.compile(r'("(?:[^"\\]|\\.)*+")(?:(\s*:\s*)("(?:[^"\\]|\\.)*+")?)?')


@dataclass(frozen=True)
class Redactor:
    """Replaces values of some kinds by pseudonyms. It has no state and can be pickled.

    Attributes:
        kinds: What is replaced; nothing where there are none.
        key: Secret key of the pseudonyms.
    """

    kinds: tuple[Kind, ...]
    key: bytes = field(repr=False)

    def text(self, text: str) -> str:
        """The text redacted; the same object where there is nothing to redact."""
        redacted: str = self.value(text)
        return redacted

    def value(self, value: Any) -> Any:
        """A JSON value with its strings redacted; the same object where there is nothing to redact.

        Raises:
            Rejected: It is nested hundreds of levels deep.
        """
        if not self.kinds or not _may_hold(value):
            return value
        walk = _Walk(self)
        try:
            value = walk.value(value)
            while walk.learned:
                walk.look_for_what_was_learned()
                value = walk.value(value)
        except RecursionError as problem:
            raise Rejected("nested too deeply to be redacted") from problem
        return value

    def record(self, value: dict[str, Any], client: str) -> dict[str, Any]:
        """A JSON object with its strings redacted, and the field that names the client so that no other is named so."""
        left: dict[str, Any] = self.value(value)
        if not isinstance(name := value.get(client), str) or left[client] == name:
            return left
        return {**left, client: self.client(name)}

    def client(self, name: str) -> str:
        """What a client is called where anything of its name is redacted, by itself or for what else is in a record."""
        if not self.kinds:
            return name
        alone = _Walk(self, wide=True).string(name, "")
        # Bare digits are redacted where the record says elsewhere that they are someone's telephone number.
        return alone if alone != name else _Walk(self, wide=True).string(name, "phone")

    def may_contain(self, raw: bytes) -> bool:
        """Whether a raw line of JSON needs `value`: False only where that would change nothing."""
        return bool(self.kinds) and sieve.may_hold(raw)


def _may_hold(value: Any) -> bool:
    if isinstance(value, str):
        return _text_may_hold(value)
    try:
        return sieve.may_hold(orjson.dumps(value))
    except orjson.JSONEncodeError:  # half a surrogate pair, a number beyond 64 bits
        return True


def _text_may_hold(text: str, lead: str = "") -> bool:
    # Most strings of a record are roles, types and names: nothing so short is anything without these characters.
    if len(text) < SHORT and not IN_SHORT.search(text):
        return False
    if not sieve.may_hold((lead + text).encode("utf-8", "surrogatepass")):
        return False
    # Where the sieve saw no more than pseudonyms, all finders would come to the same.
    left = without_words(seen := plain(lead + text))
    return left == seen or sieve.may_hold(left.encode("utf-8", "surrogatepass"))


class _Walk:
    """A way through a record, gone again as long as it teaches something.

    Attributes:
        known: Telephone numbers and keys that were found → their kind.
        learned: Whether there are some that have not been looked for where no word gives them away.
        wide: Whether pseudonyms are to be nobody else's, in whatever form.
    """

    def __init__(self, redactor: Redactor, wide: bool = False) -> None:
        self.redactor, self.wide = redactor, wide
        self.known: dict[str, Kind] = {}
        self.pattern: re.Pattern[str] | None = None
        self.learned = False

    def look_for_what_was_learned(self) -> None:
        self.pattern, self.learned = re.compile("|".join(map(_anywhere, self.known))), False

    def value(self, value: Any, name: str = "") -> Any:
        """A JSON value redacted, the same object where nothing changes; `name` is the field it is the value of."""
        if isinstance(value, str):
            return self.string(value, name)
        if isinstance(value, dict):
            changed = {}
            for key, old in value.items():  # no comprehension, whose frame would halve the depth that can be walked
                new = self.value(old, key)
                if new is not old:
                    changed[key] = new
            return {**value, **changed} if changed else value
        if isinstance(value, list):
            items = list(map(self.value, value))
            return items if any(map(operator.is_not, items, value)) else value
        return value

    def string(self, text: str, name: str) -> str:
        """A string redacted until there is nothing more to find."""
        # The field's name is read like a word before the value: `phone: 6502530000`.
        lead = f"{name}: " if name else ""
        # On later ways what can be found by itself is gone.
        worth = self.pattern.search(plain(text)) if self.pattern else _text_may_hold(text, lead)
        for _ in range(PASSES):
            if not worth or (new := self._once(text, lead)) is text:
                break
            text, worth = new, _text_may_hold(new, lead)
        return text

    def _once(self, text: str, lead: str) -> str:
        if text.lstrip()[:1] in ("{", "[", '"'):
            with contextlib.suppress(ValueError, RecursionError):
                json.loads(text)
                new = MEMBER.sub(self._member, text)
                return text if new == text else new
        return self._prose(text, lead)

    def _member(self, match: re.Match[str]) -> str:
        first, colon, second = match.groups()
        if colon is None:
            return self._literal(first, "")
        return first + colon + (self._literal(second, json.loads(first)) if second else "")

    def _literal(self, literal: str, name: str) -> str:
        text = json.loads(literal)
        new = self.string(text, name)
        return literal if new is text else json.dumps(new, ensure_ascii="\\u" in literal)

    def _prose(self, text: str, lead: str) -> str:
        parts, end = [], 0
        for start, stop, kind, value in sorted(self._spans(plain(lead + text), len(lead))):
            key = self.redactor.key
            new = wide(key, kind, value) if self.wide else pseudonym(key, kind, value, text[start:stop])
            parts += [text[end:start], new]
            end = stop
        return "".join(parts) + text[end:] if parts else text

    def _spans(self, text: str, lead: int) -> list[tuple[int, int, Kind, str]]:
        """Where what is behind the lead; no two overlap, and none is a pseudonym."""
        taken = bytearray(len(text))
        taken[:lead] = b"x" * lead
        spans = []
        for start, end, kind, value in self._found(without_words(text)):
            if b"x" not in taken[start:end]:
                taken[start:end] = b"x" * (end - start)
                spans.append((start - lead, end - lead, kind, value))
                if kind in ("key", "phone") and value not in self.known:
                    self.known[value] = kind
                    self.learned = True
        return spans

    def _found(self, text: str) -> Iterator[tuple[int, int, Kind, str]]:
        for kind, find in FINDERS.items():
            if kind in self.redactor.kinds:
                for start, end, value in find(text):
                    yield start, end, kind, value
        if self.pattern:
            real = without_numbers(text)
            for match in self.pattern.finditer(text):
                value = match[0] if match[0] in self.known else "".join(filter(str.isdigit, match[0])).lstrip("0")
                learned = self.known.get(value)
                if learned == "key" or (learned and match[0] == real[match.start() : match.end()]):
                    yield match.start(), match.end(), learned, value


def _anywhere(value: str) -> str:
    """A pattern for a value where no word stands before it; digits also with a trunk zero, and grouped otherwise."""
    written = "0?" + "[ ./()-]{0,2}".join(value) if value.isdigit() else re.escape(value)
    return rf"(?<![0-9A-Za-z]){written}(?![0-9A-Za-z])"


def redactor(redact: str = "") -> Redactor:
    """The redactor that is asked for; without a word, by the settings.

    Raises:
        SetupError: It names an unknown kind, or the key's file is not one.
    """
    chosen = settings()
    key = chosen.redaction_key.get_secret_value()
    return _made(redact or chosen.redact, "--redact" if redact else "FLYWHEEL_REDACT", key, chosen.home)


@cache
def _made(redact: str, asked: str, key: str, home: Path) -> Redactor:
    names = [name.strip().lower() for name in redact.split(",")]
    if names == ["none"]:
        return Redactor((), b"")
    if unknown := [name for name in names if name not in KINDS and names != ["all"]]:
        raise SetupError(f"{asked} names {unknown[0]!r}; known are {', '.join(KINDS)}, or `all`, or `none`")
    kinds = tuple(kind for kind in KINDS if names == ["all"] or kind in names)
    return Redactor(kinds, key.encode() if key else home_key(home, "redaction", "FLYWHEEL_REDACTION_KEY"))
