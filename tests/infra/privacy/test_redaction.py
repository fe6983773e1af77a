"""What is redacted, what is not, and that the model can still learn from it; the libraries are the oracle."""

import gzip
import json
import pickle
import re
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import phonenumbers
import pytest
from hypothesis import given
from hypothesis import strategies as st
from stdnum import iban, luhn

from infra.database.jsontext import Rejected
from infra.privacy.plain import LOOK_ALIKES
from infra.privacy.redaction import KINDS, TOKEN, Kind, Redactor, redactor
from infra.privacy.sieve import may_hold
from infra.settings import SetupError
from tests.conftest import living_in
from tests.infra.privacy.samples import STAYS, VALUES

ALL = Redactor(KINDS, b"a key")
FLAT = [(kind, value) for kind, values in VALUES.items() for value in values]


def token(kind: Kind, text: str) -> str:
    """The one token that a text becomes."""
    found = TOKEN.fullmatch(redacted := ALL.text(text))
    assert found and redacted.startswith(f"<{kind.upper()}_"), f"{text!r} became {redacted!r}"
    return redacted


@pytest.mark.parametrize(("kind", "value"), FLAT)
@pytest.mark.parametrize(
    "frame",
    [
        "{}", "My data: {}, thanks!", "{} is mine", "I said \"{}\".", "Meine Angaben ({}); danke.", "C’est « {} » !",
        "¿Es {}?", "我的是：{}。", "{}\nand so on", "first line\n{}\nlast line", "a\t{}\tb", "Это {} — да", "> {}",
    ],
)  # fmt: skip
def test_every_kind_is_found_wherever_it_stands(kind: Kind, value: str, frame: str) -> None:
    assert ALL.text(frame.format(value)) == frame.format(token(kind, value))


@pytest.mark.parametrize(("kind", "value"), FLAT)
@pytest.mark.parametrize("ascii", [True, False])
def test_every_kind_is_found_in_json_and_in_json_within_json(kind: Kind, value: str, ascii: bool) -> None:
    inner = json.dumps({"note": f"é\n{value}\tü", "n": 1.50}, ensure_ascii=ascii)
    record = {"messages": [{"role": "tool", "content": inner}, {"role": "user", "content": [{"text": value}]}]}
    redacted = ALL.value(record)
    assert redacted["messages"][1]["content"] == [{"text": token(kind, value)}]
    written = json.dumps(value, ensure_ascii=ascii)[1:-1]
    assert redacted["messages"][0]["content"] == inner.replace(written, token(kind, value))
    assert ALL.may_contain(json.dumps(record, ensure_ascii=ascii).encode())


@pytest.mark.parametrize(("kind", "value"), FLAT)
def test_only_the_kinds_that_were_asked_for_are_redacted(kind: Kind, value: str) -> None:
    text = f"here: {value}, there"
    assert Redactor((kind,), b"a key").text(text) == ALL.text(text)
    assert Redactor((), b"a key").text(text) is text
    others = tuple(other for other in KINDS if other != kind)
    assert f"<{kind.upper()}_" not in Redactor(others, b"a key").text(text)


@pytest.mark.parametrize("text", STAYS)
@pytest.mark.parametrize("frame", ["{}", "It says {}, right?", '{{"seen": "{}"}}'])
def test_what_is_no_personal_data_stays(text: str, frame: str) -> None:
    whole = frame.format(text)
    assert ALL.text(whole) is whole


@pytest.mark.parametrize(
    "spellings",
    [
        ["bob@example.com", "Bob@Example.COM", "BOB@EXAMPLE.COM"],
        [
            "+1 650-253-0000", "+16502530000", "(650) 253-0000", "650.253.0000", "1-650-253-0000",
            "+1\u00a0650\u2011253\u20110000",
        ],
        ["+49 30 1234567", "030 1234567", "030/1234567", "0049 30 1234567", "+49 (0)30 123 45 67"],
        ["4111 1111 1111 1111", "4111-1111-1111-1111", "4111111111111111", "４１１１１１１１１１１１１１１１"],
        ["DE89 3704 0044 0532 0130 00", "DE89370400440532013000", "de89370400440532013000"],
        ["2001:db8::1", "2001:0DB8:0:0:0:0:0:1"],
    ],
)  # fmt: skip
def test_a_value_has_one_token_however_it_is_written(spellings: list[str]) -> None:
    assert len({ALL.text(f"it is {spelling}, yes") for spelling in spellings}) == 1


def test_other_values_other_kinds_and_other_keys_have_other_tokens() -> None:
    texts = ["a@x.com", "b@x.com", "4111111111111111", "5500000000000004", "+1 650-253-0000", "+1 650-253-0001"]
    assert len({ALL.text(text) for text in texts}) == len(texts)
    assert Redactor(KINDS, b"another").text("a@x.com") != ALL.text("a@x.com")


def test_arguments_stay_what_the_user_said() -> None:
    asked = "Please write to\nren\u00e9@ex\u00e4mple.com or bob@x.com, or call (650) 253-0000, order 48213."
    said = {"to": ["ren\u00e9@ex\u00e4mple.com", "\nbob@x.com"], "phone": "6502530000", "order": 48213, "ratio": 1.50}
    for arguments in (json.dumps(said), json.dumps(said, ensure_ascii=False, separators=(",", ":"), indent=1)):
        call = {"id": "call_1", "type": "function", "function": {"name": "write", "arguments": arguments}}
        redacted = ALL.value([{"role": "user", "content": asked}, {"role": "assistant", "tool_calls": [call]}])
        learned = json.loads(redacted[1]["tool_calls"][0]["function"]["arguments"])
        tokens = TOKEN.findall(redacted[0]["content"])
        assert [learned["to"][0], learned["to"][1].strip(), learned["phone"]] == tokens
        assert (learned["order"], redacted[0]["content"][-6:]) == (48213, "48213.")
        assert "1.5" in redacted[1]["tool_calls"][0]["function"]["arguments"]


@pytest.mark.parametrize(
    ("before", "value", "after"),
    [
        ("My phone number is ", "6502530000", "."), ("Tel.: ", "12345678", ""), ("call me at ", "555 0199", " today"),
        ('{"phone": "', "6502530000", '"}'), ('{"customerPhone":"', "491701234567", '"}'),
        ("телефон: ", "9123456789", ""),
        ("Telefonnummer ist ", "03012345678", ", danke"), ("teléfono: ", "612345678", ""),
        ("电话：", "13812345678", "。"),
        ("my password is ", "hunter2", "!"), ("PASSWORD=", "correct-horse-7", "\nUSER=bob"),
        ("api_key: ", "a8f5f167f44f49", ""),
        ('{"client_secret": "', "0123456789abcdef", '"}'), ("Authorization: Bearer ", "a1B2c3D4e5F6g7H8i9J0k", ""),
        ("postgres://app:", "s3cr3t!", "@db:5432/x"), ("token：", "secret7", ""),
    ],
)  # fmt: skip
def test_a_word_before_it_gives_a_number_or_a_secret_away(before: str, value: str, after: str) -> None:
    redacted = ALL.text(before + value + after)
    assert redacted.startswith(before) and redacted.endswith(after)
    assert re.fullmatch(r"<(PHONE|KEY)_\w{6}>", redacted[len(before) : len(redacted) - len(after)])


def test_what_a_word_gives_away_is_replaced_in_all_of_the_record() -> None:
    record = {
        "messages": [
            {"role": "user", "content": "6502530000"},
            {"role": "user", "content": "then correct horse7 it is"},
        ],
        "response": {"arguments": '{"phone_number": "6502530000", "password": "horse7"}'},
    }
    redacted = ALL.value(record)
    phone, password = TOKEN.findall(redacted["response"]["arguments"])
    assert redacted["messages"][0]["content"] == phone
    assert redacted["messages"][1]["content"] == f"then correct {password} it is"


def test_names_of_fields_and_numbers_stay() -> None:
    record = {"bob@x.com": 4111111111111111, "n": [6502530000, None, True], "to": "bob@x.com"}
    assert ALL.value(record) == {**record, "to": ALL.text("bob@x.com")}


def test_malformed_json_is_redacted_too() -> None:
    assert "bob" not in ALL.text('{"to": "a", "cc": "bob@x.com", "bcc": "carol@')
    assert ALL.text(r'{"to": "x\nbob@x.com') == r'{"to": "x\n' + ALL.text("bob@x.com")


def test_several_in_one_text() -> None:
    text = " and ".join(values[0] for values in VALUES.values())
    assert ALL.text(text) == " and ".join(ALL.text(values[0]) for values in VALUES.values())


def test_nothing_is_copied_where_nothing_changes() -> None:
    record = {"a": [{"b": "plain", "c": "x@y z@"}], "d": {"e": 1, "f": None}, "g": "bob@x.com"}
    redacted = ALL.value(record)
    assert redacted["a"] is record["a"] and redacted["d"] is record["d"] and record["g"] == "bob@x.com"
    del record["g"]
    assert ALL.value(record) is record


def test_a_record_nested_too_deeply_is_rejected_in_words() -> None:
    deep: Any = "bob@x.com"
    for _ in range(3000):
        deep = [deep]
    with pytest.raises(Rejected, match="nested too deeply"):
        ALL.value(deep)


# -- the oracle: libraries ------------------------------------------------------------------------------------------


def test_examples_of_every_region_are_found_in_international_format() -> None:
    found, examples = 0, 0
    for region in sorted(phonenumbers.SUPPORTED_REGIONS):
        for kind in (phonenumbers.PhoneNumberType.FIXED_LINE, phonenumbers.PhoneNumberType.MOBILE):
            number = phonenumbers.example_number_for_type(region, kind)
            if number is not None:
                written = phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.INTERNATIONAL)
                examples += 1
                found += (
                    re.fullmatch(r"Reach me: <PHONE_\w{6}>, please.", ALL.text(f"Reach me: {written}, please."))
                    is not None
                )
    assert examples > 450 and found / examples >= 0.99


def test_examples_of_every_region_are_found_bare_behind_a_word() -> None:
    for region in sorted(phonenumbers.SUPPORTED_REGIONS):
        number = phonenumbers.national_significant_number(phonenumbers.example_number(region))
        if len(number) >= 7:
            assert re.fullmatch(r"phone: <PHONE_\w{6}>", ALL.text(f"phone: {number}")), (region, number)


@given(st.from_regex(r"[0-9]{14,19}", fullmatch=True))
def test_a_card_passes_luhn(number: str) -> None:
    assert ("<CARD_" in ALL.text(f"paid with {number} today")) <= luhn.is_valid(number)


@given(st.sampled_from(VALUES["card"]), st.integers(0, 9))
def test_a_card_with_a_wrong_digit_stays(number: str, digit: int) -> None:
    wrong = f"card {number[:-1]}{digit} today"
    assert ("<CARD_" in ALL.text(wrong)) == luhn.is_valid(re.sub(r"\D", "", wrong))


@given(st.sampled_from(VALUES["iban"]), st.integers(0, 9))
def test_an_account_with_a_wrong_digit_stays(number: str, digit: int) -> None:
    compact = iban.compact(number)
    wrong = compact[:3] + str(digit) + compact[4:]
    assert ("<IBAN_" in ALL.text(f"to {wrong} today")) == iban.is_valid(wrong)


# -- properties -----------------------------------------------------------------------------------------------------

PIECES = st.one_of(
    st.sampled_from([value for _, value in FLAT]),
    st.sampled_from(STAYS),
    st.sampled_from(["phone: ", "tel", "my number is ", "password=", "token：", "Bearer "]),
    st.sampled_from(['"', "\\", "\\n", "\n", " ", "-", "/", ".", "00", "0", "@", "+", "\\u0040", "("]),
    st.text("0123456789 .-+()/@:abAB_é’٣＋\u00a0\u200e", max_size=12),
    st.text(max_size=5),
)  # fmt: skip
TEXTS = st.lists(PIECES, max_size=8).map("".join)
JSON = st.recursive(
    TEXTS | st.none() | st.integers() | st.floats(allow_nan=False),
    lambda inside: (
        st.lists(inside, max_size=3) | st.dictionaries(TEXTS | st.sampled_from(["phone", "token"]), inside, max_size=3)
    ),
    max_leaves=8,
)


@given(TEXTS)
def test_redacting_again_changes_nothing(text: str) -> None:
    once = ALL.text(text)
    assert ALL.text(once) is once


@given(JSON)
def test_the_sieve_is_certain_and_json_stays_json(value: Any) -> None:
    redacted = ALL.value(value)
    if redacted is not value:
        for ascii in (True, False):
            for separators in ((", ", ": "), (",", ":")):
                raw = json.dumps(value, ensure_ascii=ascii, separators=separators).encode("utf-8", "surrogatepass")
                assert ALL.may_contain(raw)
                assert ALL.may_contain(raw.replace(b"/", b"\\/"))
    assert ALL.value(redacted) is redacted
    if isinstance(value, dict | list | str):
        json.loads(ALL.text(json.dumps(value)))


@given(st.text())
def test_no_text_is_too_strange(text: str) -> None:
    assert isinstance(ALL.text(text), str)


@given(
    st.text(
        st.characters(exclude_characters="@", exclude_categories=["N", "Cs"]).filter(lambda c: c not in LOOK_ALIKES)
    )
)
def test_a_text_without_digits_and_addresses_is_the_same_object(text: str) -> None:
    assert ALL.text(text) is text


def test_the_sieve_knows_every_look_alike() -> None:
    for code, character in LOOK_ALIKES.items():
        if character in "0123456789+@":
            assert may_hold(f"x{chr(code)}{chr(code)}".encode()), hex(code)
        else:
            joined = f"tel 312{chr(code)}408{chr(code)}8720" if character != "=" else f"token{chr(code)}secret7"
            assert may_hold(joined.encode()), hex(code)


# -- real traffic ---------------------------------------------------------------------------------------------------


def test_real_traffic_loses_nothing_but_its_two_telephone_numbers(shared: Path) -> None:
    lost: list[str] = []
    lines = suspected = 0
    for file in sorted(shared.glob("*/*.jsonl*")):
        with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as stream:
            for raw in stream:
                lines, suspected = lines + 1, suspected + ALL.may_contain(raw)
                if ALL.value(record := json.loads(raw)) is not record:
                    lost += set(re.findall(r"312 408 8720|212-859-1650", raw.decode())) or [raw.decode()]
    assert lines > 25_000 and suspected / lines < 0.02
    assert sorted(lost) == ["212-859-1650", "312 408 8720"]


# -- the settings and the key ---------------------------------------------------------------------------------------


def test_the_default_redacts_everything_with_a_key_of_the_home(home: Path) -> None:
    made = redactor()
    assert made.kinds == KINDS and redactor() is made
    file = home / "redaction.key"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600 and sorted(home.iterdir()) == [file]
    assert made.key.hex() == file.read_text() and made.key.hex() not in repr(made)
    assert pickle.loads(pickle.dumps(made)).text("bob@x.com") == made.text("bob@x.com")


def test_kinds_and_key_come_from_the_environment(tmp_path: Path) -> None:
    with living_in(tmp_path / "home", REDACT="email, IP", REDACTION_KEY="a key"):
        assert redactor() == Redactor(("email", "ip"), b"a key")
        assert not (tmp_path / "home").exists()
    with living_in(tmp_path / "home", REDACT="none"):
        assert redactor().kinds == () and not redactor().may_contain(b'"bob@x.com"')
        assert not (tmp_path / "home").exists()


def test_a_wrong_kind_is_one_line_that_names_the_known_ones(tmp_path: Path) -> None:
    with living_in(tmp_path / "home", REDACT="email,telephone"), pytest.raises(SetupError) as raised:
        redactor()
    assert "'telephone'" in str(raised.value) and "email, phone, card, iban, ip, key" in str(raised.value)


def test_a_broken_key_file_is_not_used(home: Path) -> None:
    home.mkdir()
    for content in ("", "zz", "abcd"):
        (home / "redaction.key").write_text(content)
        with pytest.raises(SetupError, match=r"redaction\.key.*remove it"):
            redactor()


def test_processes_that_start_at_once_have_the_same_key(home: Path) -> None:
    code = "from infra.privacy.redaction import redactor; print(redactor().text('bob@x.com'))"
    running = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(6)]
    said = {process.communicate()[0] for process in running}
    assert len(said) == 1 and said == {redactor().text("bob@x.com") + "\n"}
