"""Pages of documentation: their fenced blocks, the commands in them, and whether what came is what is shown.

    <!-- not run: why -->         above a block: it is read and its commands are parsed, but nothing is started
    <!-- numbers vary: why -->    above a block of `console`: every number in its output stands for any number

In an output `...` stands for anything, and so does every id of 16 hexadecimal digits or hash of 64; white space is
white space.
"""

import difflib
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import dropwhile, groupby
from pathlib import Path
from typing import NamedTuple

FENCE = re.compile(r"^(`{3,})([^\n`]*)\n(.*?)^\1$", re.MULTILINE | re.DOTALL)
MARK = re.compile(r"<!-- (not run|numbers vary): ([^>]+?) -->\n\Z")
PROGRESS = re.compile(r"^.* [█░]{24} \d+/\d+ \d+s, \d+s left$|^\S.{27,} \d+ \d+s$")
VARIES = r"\b(?:[0-9a-f]{64}|[0-9a-f]{16})\b"
NUMBER = r"[+-]?\d[\d,]*(?:\.\d+)?"


class Shown(NamedTuple):
    """A command of a block, and the output that the page shows, lines without their newline."""

    command: str
    output: list[str]


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        title: What stands behind the language: the file that the block is.
        start: Where its text begins in the page.
        unrun: Why it is not run; empty where it is.
        loose: Whether numbers in its output vary.
    """

    page: Path
    line: int
    language: str
    title: str
    text: str
    start: int
    unrun: str
    loose: bool

    @property
    def place(self) -> str:
        return f"{self.page.name}:{self.line}"

    def shown(self) -> list[Shown]:
        """The commands of a block of `console`. One goes on in the next line where its line ends in a backslash."""
        found: list[Shown] = []
        going_on = False
        for line in self.text.splitlines():
            if going_on:
                found[-1] = Shown(f"{found[-1].command}\n{line}", [])
            elif line.startswith("$ "):
                found.append(Shown(line[2:], []))
            else:
                assert found, f"{self.place}: the block begins with an output"
                found[-1].output.append(line)
            going_on = line.endswith("\\") and not found[-1].output
        return found


def blocks(page: Path) -> Iterator[Block]:
    text = page.read_text()
    for match in FENCE.finditer(text):
        language, _, title = match[2].strip().partition(" ")
        mark = MARK.search(text, 0, match.start())
        said = mark[1] if mark else ""
        yield Block(
            page, text.count("\n", 0, match.start()) + 1, language, title, match[3], match.start(3),
            mark[2] if mark and said == "not run" else "", said == "numbers vary",
        )  # fmt: skip


def spans(page: Path) -> list[str]:
    """Code within the lines of a page."""
    text = FENCE.sub("", page.read_text())
    return [" ".join(span.split()) for span in re.findall(r"(?<!`)`([^`]+)`(?!`)", text)]


def calls(command: str) -> Iterator[list[str]]:
    """The arguments of each `flywheel` in a command, up to a pipe, a bracket or a comment."""
    lexer = shlex.shlex(command.replace("\\\n", " "), posix=True, punctuation_chars=";&|()<>")
    lexer.whitespace_split = True
    for separates, group in groupby(lexer, lambda word: set(word) <= set(";&|()<>")):
        words = list(dropwhile(lambda word: re.match(r"\w+=", word), group))  # settings stand before a program
        if not separates and words and words[0].rsplit("/", 1)[-1] == "flywheel":
            yield words[1:]


def changes(diff: str) -> Iterator[tuple[str, str, str]]:
    """The file, the old text and the new one of each hunk of a unified diff."""
    for part in re.split(r"^--- a/", diff, flags=re.MULTILINE)[1:]:
        name, _, hunks = part.partition("\n")
        for hunk in re.split(r"^@@.*\n", hunks, flags=re.MULTILINE)[1:]:
            lines = hunk.splitlines(keepends=True)
            yield (
                name, "".join(line[1:] for line in lines if line[0] in " -"),
                "".join(line[1:] for line in lines if line[0] in " +"),
            )  # fmt: skip


def heard(output: str, folder: Path) -> list[str]:
    """What a command said, as lines: without progress bars, and with paths as they look from its folder."""
    lines = output.replace(f"{folder}/", "").splitlines()
    return [line.rstrip() for line in lines if not PROGRESS.match(line)]


def matches(shown: Sequence[str], came: Sequence[str], loose: bool) -> bool:
    pattern = r"\s+".join(_pattern(word, loose) for word in " ".join(shown).split())
    return re.fullmatch(pattern.replace(r"\s+.*?", r"\s*.*?"), " ".join(" ".join(came).split()), re.DOTALL) is not None


def _pattern(word: str, loose: bool) -> str:
    """A word as a regular expression."""
    kinds = rf"\.\.\.|{VARIES}" + (f"|{NUMBER}" if loose else "")
    pieces = re.split(f"({kinds})", word)
    made = [re.escape(piece) if n % 2 == 0 else _any(piece) for n, piece in enumerate(pieces)]
    return "".join(made)


def _any(piece: str) -> str:
    if piece == "...":
        return ".*?"
    return VARIES if re.fullmatch(VARIES, piece) else NUMBER


def difference(block: Block, one: Shown, came: Sequence[str]) -> str:
    lines = difflib.unified_diff(one.output, list(came), f"{block.place} shows", "what came", lineterm="")
    return "\n".join([f"$ {one.command}", *lines])


def rewritten(text: str, block: Block, outputs: Sequence[Sequence[str]]) -> str:
    """The page with a block's outputs replaced, except for those that still match, and lines that do."""
    made: list[str] = []
    for one, came in zip(block.shown(), outputs, strict=True):
        made.append(f"$ {one.command}")
        if matches(one.output, came, block.loose):
            made += one.output
            continue
        kept = [line for line in one.output if "..." in line and line.strip() != "..."]
        made += [next((old for old in kept if matches([old], [line], block.loose)), line) for line in came]
    return text[: block.start] + "".join(f"{line}\n" for line in made) + text[block.start + len(block.text) :]
