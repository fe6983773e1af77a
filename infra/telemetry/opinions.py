"""What an evaluation says, in the kinds of feedback that are kept: one rule for every tool that keeps evaluations.

| said                                          | by a person          | by a judge or a program |
|-----------------------------------------------|----------------------|-------------------------|
| yes or no, a word that is plainly good or bad | a thumb              | a rating, 1 or 0        |
| a number                                      | a rating             | a rating                |
| other words, a list, an object (as JSON)      | a label              | a label                 |
| the right answer                              | a correction         | a label                 |

Each carries the name it was given as its metric. A rating of a metric has a scale that nobody knows, so a judge or a
program never decides by itself what a student learns: only a person's thumb or correction does (`database/policy.py`).

Yes to a question about a fault ("hallucination", "is_toxic") is a thumb down.
"""

import json
import re
from typing import Any

from infra.database.jsontext import Rejected

Record = dict[str, Any]

YES, NO = {"yes", "true"}, {"no", "false"}
GOOD = {"pass", "passed", "correct", "good", "positive", "up", "thumbs_up", "accepted"}
BAD = {"fail", "failed", "incorrect", "bad", "negative", "down", "thumbs_down", "rejected"}
FAULTS = {
    "hallucination", "hallucinations", "hallucinated", "toxicity", "toxic", "harmful", "harmfulness", "unsafe", "bias",
    "biased", "offensive", "incorrect", "wrong", "error", "errors", "failure", "failed", "jailbreak", "leak", "leakage",
}  # fmt: skip
DENIALS = {"no", "not", "non", "without", "free"}
EXPECTED = {
    "expected_response", "expected_output", "expected_answer", "expected", "ground_truth", "reference",
    "reference_answer", "correct_answer", "correct_response", "correction",
}  # fmt: skip


def opinion(said: Any, metric: str | None, person: bool = True) -> Record:
    """`{kind, value, metric}` of a judgement; a rating always has a metric, for its scale is not known.

    Raises:
        Rejected: Nothing is said.
    """
    sign = verdict(said, metric)
    if sign is not None and person:
        return {"kind": "thumb", "value": sign, "metric": metric}
    if sign is not None and isinstance(said, str):
        said = plain(said) in YES | GOOD
    if isinstance(said, bool | int | float):
        return {"kind": "rating", "value": float(said), "metric": metric or "evaluation"}
    if said is None or said == "":
        raise Rejected("an evaluation says nothing")
    return {"kind": "label", "value": as_text(said), "metric": metric}


def verdict(said: Any, metric: str | None) -> int | None:
    """1 for yes and plainly good, -1 for no and plainly bad, None for anything else."""
    word = plain(str(said)) if isinstance(said, bool | str) else ""
    if word in YES | NO:
        return 1 if (word in YES) != is_fault(metric or "") else -1
    return 1 if word in GOOD else -1 if word in BAD else None


def is_fault(metric: str) -> bool:
    """Whether a metric is called by something that an answer should not have."""
    words = set(re.split(r"[^a-z]+", metric.lower()))
    return bool(words & FAULTS) and not words & DENIALS


def is_expected(metric: str) -> bool:
    """Whether what goes by this name is the right answer."""
    return plain(metric) in EXPECTED


def plain(word: str) -> str:
    return re.sub(r"[\s-]+", "_", word.strip().lower())


def as_text(said: Any) -> str:
    return said if isinstance(said, str) else json.dumps(said, ensure_ascii=False)
