"""What curation remembers of each interaction: some numbers, so that a million of them fit into memory.

The rows themselves are read twice, page by page: once to enter them here, once to write those that were chosen. Only
what people said is kept whole, for it is rare.
"""

import hashlib
from array import array
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from infra.database.jsontext import number_of
from infra.database.policy import SAID, Judgement, judge
from infra.database.tables import Feedback
from tasks.dataset.answers import MOST
from tasks.dataset.cases import Case

Fault = Literal["", "another prefix than the baked one", "a request that is not only text"]
FAULTS: tuple[Fault, ...] = ("", "another prefix than the baked one", "a request that is not only text")
OBJECTED = "an answer that was objected to"
NOTHING = Judgement("nothing")


class Judged(NamedTuple):
    """What the ledger makes of its entries.

    Attributes:
        usable: Entries to imitate and to measure by, in order of time.
        disliked: Entries whose answer was objected to, in order of time.
        judgements: What was said of an entry, where anything was.
    """

    usable: NDArray[np.int64]
    disliked: NDArray[np.int64]
    judgements: dict[int, Judgement]


class Ledger:
    """Entries in order of time; their numbers are their places."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._ids, self._conversations = array("q"), array("Q")
        self._sameness, self._lots = array("Q"), array("Q")
        self.faults, self.student, self.answered = bytearray(), bytearray(), bytearray()
        self.opinions: dict[int, list[Feedback]] = {}
        self.answers: dict[int, dict[str, Any] | None] = {}
        self.of_conversations: dict[int, list[Feedback]] = {}
        self.texts: set[int] = set()  # answers in words, until there are too many for a closed set
        self.heard: dict[int, int] = {}  # the sameness of an entry whose conversation was spoken of

    def __len__(self) -> int:
        return len(self._ids)

    def enter(self, case: Case, fault: Fault) -> None:
        """Remember a case; `fault` says why it can be neither trained on nor measured by, whatever is said of it."""
        same, conversation = case.sameness(), number_of(case.conversation)
        if case.opinions:
            self.opinions.setdefault(same, []).extend(case.opinions)
        if case.of_conversation:
            self.of_conversations[conversation] = case.of_conversation
            self.heard[len(self)] = same
        if case.opinions or case.of_conversation:
            self.answers[same] = case.answer
        if case.answer and not case.answer.get("tool_calls") and len(self.texts) <= MOST:
            self.texts.add(number_of((case.answer["content"] or "").strip()))
        self.faults.append(FAULTS.index(fault))
        self.student.append(case.student)
        self.answered.append(case.answer is not None)
        self._ids.append(case.id)
        self._conversations.append(conversation)
        self._sameness.append(same)
        lot = hashlib.sha256(f"{self.seed}:{case.key[1]}:{case.key[2]}".encode()).digest()
        self._lots.append(int.from_bytes(lot[:8], "big"))

    @property
    def ids(self) -> NDArray[np.int64]:
        return np.frombuffer(self._ids, np.int64)

    @property
    def conversations(self) -> NDArray[np.uint64]:
        return np.frombuffer(self._conversations, np.uint64)

    @property
    def lots(self) -> NDArray[np.uint64]:
        """Random numbers of the entries, the same in every database."""
        return np.frombuffer(self._lots, np.uint64)

    def judged(self, asks: Callable[[bool, bool], bool], left_out: Counter[str]) -> Judged:
        """The usable entries, the disliked ones, and what was said of them.

        Each request and answer counts once, the earliest; what was said of its copies is said of it. What was said of a
        conversation is said of its answer where it has just one.

        Args:
            asks: Whether the teacher answers in the place of a logged answer, by whether a student gave that and
                whether it could be imitated.
            left_out: Takes in how many were left out, by reason.
        """
        self._hear_conversations()
        sameness = np.frombuffer(self._sameness, np.uint64)
        firsts = np.sort(np.unique(sameness, return_index=True)[1])
        left_out["exact duplicate"] += len(sameness) - len(firsts)
        usable, disliked = array("q"), array("q")
        closed = self.texts if len(self.texts) <= MOST else frozenset()
        judgements: dict[int, Judgement] = {}
        for entry in firsts.tolist():
            same = self._sameness[entry]
            judgement = NOTHING
            if said := self.opinions.get(same):
                judgement = judgements[entry] = judge(self.answers[same], said, closed)
            reason = self._unusable(entry, judgement, asks)
            if not reason:
                usable.append(entry)
            elif reason == OBJECTED:
                disliked.append(entry)
            else:
                left_out[reason] += 1
        return Judged(np.array(usable, np.int64), np.array(disliked, np.int64), judgements)

    def _hear_conversations(self) -> None:
        counts = Counter(self._conversations[entry] for entry in self.heard)
        for entry, same in self.heard.items():
            conversation = self._conversations[entry]
            if counts[conversation] == 1:
                self.opinions.setdefault(same, []).extend(self.of_conversations[conversation])

    def _unusable(self, entry: int, judgement: Judgement, asks: Callable[[bool, bool], bool]) -> str:
        if fault := FAULTS[self.faults[entry]]:
            return fault
        by_student, answered = bool(self.student[entry]), bool(self.answered[entry])
        if judgement.rule in SAID or asks(by_student, answered):
            return ""
        if not answered:
            return "no usable answer"
        if judgement.rule == "objection":
            return OBJECTED
        if by_student and judgement.rule != "praise":
            return "a student's answer that nobody vouches for"
        return ""

    def places(self, ids: Sequence[int]) -> list[int | None]:
        """The entries of these interactions; None for one that was not entered."""
        order = np.argsort(self.ids, kind="stable") if not hasattr(self, "_order") else self._order
        self._order: NDArray[np.int64] = order
        found = np.minimum(np.searchsorted(self.ids, ids, sorter=order), len(order) - 1)
        return [int(order[at]) if self.ids[order[at]] == one else None for at, one in zip(found, ids, strict=True)]
