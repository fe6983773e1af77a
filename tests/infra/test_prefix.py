"""Baking: what is stripped comes back, and another prefix is not mistaken for this one."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.prefix import Prefix, text_of
from infra.privacy.redaction import redactor

tools = st.lists(
    st.fixed_dictionaries(
        {"type": st.just("function"), "function": st.dictionaries(st.text(), st.text() | st.integers(), max_size=3)}
    ),
    max_size=3,
)
turns = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant"]), "content": st.text() | st.none()}),
    max_size=4,
)
systems = st.none() | st.text()


def request(system: str | None, schemas: list[dict[str, Any]], messages: list[dict[str, Any]]) -> dict[str, Any]:
    first = [] if system is None else [{"role": "system", "content": system}]
    return {"messages": [*first, *messages], "tools": schemas or None}


@given(systems, tools, turns)
def test_what_is_stripped_comes_back(
    system: str | None, schemas: list[dict[str, Any]], messages: list[dict[str, Any]]
) -> None:
    whole = request(system, schemas, messages)
    prefix = Prefix.of(whole)
    stripped = prefix.strip(whole["messages"], whole["tools"])
    assert stripped == (messages, None)
    assert prefix.restore(stripped[0]) == (whole["messages"], whole["tools"])


@given(systems, tools, turns, systems, tools)
def test_a_request_is_stripped_of_its_own_prefix_alone(
    system: str | None,
    schemas: list[dict[str, Any]],
    messages: list[dict[str, Any]],
    other_system: str | None,
    other_schemas: list[dict[str, Any]],
) -> None:
    whole = request(system, schemas, messages)
    other = Prefix(other_system, tuple(other_schemas))
    is_same = json.dumps([system, schemas], sort_keys=True) == json.dumps([other_system, other_schemas], sort_keys=True)
    assert (other.strip(whole["messages"], whole["tools"]) is not None) == is_same
    assert (other.fingerprint == Prefix.of(whole).fingerprint) == is_same


@given(systems, tools)
def test_json_keeps_the_fingerprint(system: str | None, schemas: list[dict[str, Any]]) -> None:
    prefix = Prefix(system, tuple(schemas))
    read = Prefix.from_json(json.loads(json.dumps(prefix.to_json())))
    assert read == prefix and read.fingerprint == prefix.fingerprint
    assert Prefix.from_json(None) is None


def test_neither_key_order_nor_a_missing_list_matters_but_the_order_of_tools_does() -> None:
    one, two = {"a": 1, "b": {"c": 2, "d": 3}}, {"b": {"d": 3, "c": 2}, "a": 1}
    assert Prefix("s", (one,)).fingerprint == Prefix("s", (two,)).fingerprint
    assert Prefix("s", (one, {"x": 1})).fingerprint != Prefix("s", ({"x": 1}, one)).fingerprint
    assert Prefix(None).strip([{"role": "user", "content": "hi"}], []) == ([{"role": "user", "content": "hi"}], None)


@pytest.mark.parametrize("role", ["system", "developer"])
def test_a_system_message_in_parts_is_its_text(role: str) -> None:
    parts = [{"type": "text", "text": "Be "}, {"type": "text", "text": "kind."}]
    assert Prefix.of({"messages": [{"role": role, "content": parts}]}) == Prefix("Be kind.")


def test_a_part_that_is_no_text_has_no_text() -> None:
    assert text_of([{"type": "text", "text": "look"}, {"type": "image_url", "image_url": {}}]) is None


@pytest.mark.parametrize(
    ("mine", "others"),
    [
        ("help@company.com", "other@company.com"), ("+1 650-253-0000", "+1 650-253-0001"),
        ("first\n030 1234567", "first\n030 1234568"), ("+٩٦٦ ٥٠ ١٢٣ ٤٥٦٧", "+٩٦٦ ٥٠ ١٢٣ ٤٥٦٨"),
        ("DE89370400440532013000", "NL91ABNA0417164300"), ("4111 1111 1111 1111", "4242 4242 4242 4242"),
        ("10.1.2.30", "10.1.2.31"), ("2a02:8108::1", "2a02:8108::2"), ("token: s3cret", "token: s4cret"),
    ],
)  # fmt: skip
def test_a_prefix_learned_from_redacted_records_is_that_of_the_requests_as_they_are_asked(
    home: Path, mine: str, others: str
) -> None:
    asked = [{"role": "system", "content": f"Complaints go to: {mine}"}, {"role": "user", "content": "Hi"}]
    learned = Prefix.of({"messages": redactor().value(asked)})
    assert learned.is_redacted and mine not in str(learned.system)
    assert learned.strip(asked, None) == ([asked[1]], None)
    other = [{"role": "system", "content": f"Complaints go to: {others}"}, asked[1]]
    assert learned.strip(other, None) is None


def test_a_prefix_without_a_pseudonym_is_not_redacted() -> None:
    assert not Prefix("Mo-Fr 10:00-17:00, up to 1,000 or 10.000.000 a day since 2000; example.com, v2.0.0").is_redacted
