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
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from stdnum import iban, luhn

from infra.database.jsontext import Rejected
from infra.privacy.plain import LOOK_ALIKES
from infra.privacy.pseudonyms import KINDS, Kind
from infra.privacy.redaction import Redactor, redactor
from infra.privacy.sieve import may_hold
from infra.settings import SetupError
from tests.conftest import living_in
from tests.infra.privacy.samples import STAYS, VALUES

ALL = Redactor(KINDS, b"a key")
FLAT = [(kind, value) for kind, values in VALUES.items() for value in values]


WORDS = {
    "email": r"[b-df-hj-np-tv-xz]{7}@example\.com",
    "ip": r"2(?:4\d|5[0-4])(?:\.\d{1,3}){3}|2001:db8::[0-9a-f]{4}:[0-9a-f]{4}",
    "key": r"redacted-[b-df-hj-np-tv-xz]{7}",
}


def is_pseudonym(kind: Kind, text: str, written: str) -> bool:
    """Whether `text` may stand for a value of this kind that is `written` so."""
    if kind in WORDS:
        return re.fullmatch(WORDS[kind], text) is not None
    character = r"\w" if kind == "iban" else r"\d"
    is_zeros = "000" in "".join(str(int(c)) for c in text if c.isdecimal())
    return is_zeros and text != written and re.sub(character, "x", text) == re.sub(character, "x", written)


def pseudonym(kind: Kind, text: str) -> str:
    """The one pseudonym that a text becomes."""
    redacted = ALL.text(text)
    assert is_pseudonym(kind, redacted, text), f"{text!r} became {redacted!r}"
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
    assert ALL.text(frame.format(value)) == frame.format(pseudonym(kind, value))


@pytest.mark.parametrize(("kind", "value"), FLAT)
@pytest.mark.parametrize("ascii", [True, False])
def test_every_kind_is_found_in_json_and_in_json_within_json(kind: Kind, value: str, ascii: bool) -> None:
    inner = json.dumps({"note": f"é\n{value}\tü", "n": 1.50}, ensure_ascii=ascii)
    record = {"messages": [{"role": "tool", "content": inner}, {"role": "user", "content": [{"text": value}]}]}
    redacted = ALL.value(record)
    assert redacted["messages"][1]["content"] == [{"text": pseudonym(kind, value)}]
    old, new = (json.dumps(text, ensure_ascii=ascii)[1:-1] for text in (value, pseudonym(kind, value)))
    assert redacted["messages"][0]["content"] == inner.replace(old, new)
    assert ALL.may_contain(json.dumps(record, ensure_ascii=ascii).encode())


@pytest.mark.parametrize(("kind", "value"), FLAT)
def test_only_the_kinds_that_were_asked_for_are_redacted(kind: Kind, value: str) -> None:
    text = f"here: {value}, there"
    assert Redactor((kind,), b"a key").text(text) == ALL.text(text)
    assert Redactor((), b"a key").text(text) is text
    others = tuple(other for other in KINDS if other != kind)
    assert pseudonym(kind, value) not in Redactor(others, b"a key").text(text)


@pytest.mark.parametrize("text", STAYS)
@pytest.mark.parametrize("frame", ["{}", "It says {}, right?", '{{"seen": "{}"}}'])
def test_what_is_no_personal_data_stays(text: str, frame: str) -> None:
    whole = frame.format(text)
    assert ALL.text(whole) is whole


@pytest.mark.parametrize(
    "spellings",
    [
        ["bob@company.com", "Bob@Company.COM", "BOB@COMPANY.COM"],
        ["2001:db8::1", "2001:0DB8:0:0:0:0:0:1"],
    ],
)
def test_an_address_has_one_pseudonym_however_it_is_written(spellings: list[str]) -> None:
    assert len({ALL.text(f"it is {spelling}, yes") for spelling in spellings}) == 1


@pytest.mark.parametrize(
    ("last", "spellings"),
    [
        (10, [
            "+1 650-253-0000", "+16502530000", "(650) 253-0000", "650.253.0000", "1-650-253-0000", "phone: 6502530000",
            "+1\u00a0650\u2011253\u20110000", "phone: 16502530000", "001 650 253 0000",
        ]),
        (9, [
            "+49 30 1234567", "030 1234567", "030/1234567", "0049 30 1234567", "+49 (0)30 123 45 67", "tel 30/1234567",
            "tel: (30) 1234567", "phone 4930/1234567",
        ]),
        (9, ["+39 06 698 12345", "+390669812345", "tel: 06 69812345", "+39 (06) 69812345"]),  # Italy dials the zero
        (11, ["+54 9 11 2345 6789", "+54 011 15 2345 6789", "0054 9 11 2345-6789"]),  # what is 9 abroad is 15 at home
        (9, ["+992 372 123 456", "+992 37 212 3456"]),
        (16, ["4111 1111 1111 1111", "4111-1111-1111-1111", "4111111111111111", "４１１１１１１１１１１１１１１１"]),
        (20, ["DE89 3704 0044 0532 0130 00", "DE89370400440532013000", "de89370400440532013000"]),
        (14, ["GB29 NWBK 6016 1331 9268 19", "GB29NWBK60161331926819", "gb29-nwbk-6016-1331-9268-19"]),
    ],
)  # fmt: skip
def test_a_number_has_the_same_digits_in_each_grouping(last: int, spellings: list[str]) -> None:
    told = set()
    for spelling in spellings:
        made = ALL.text(f"it is {spelling}, yes")
        assert re.sub(r"\w", "x", made) == re.sub(r"\w", "x", f"it is {spelling}, yes")
        told.add("".join(str(int(character)) for character in made if character.isdecimal())[-last:])
    assert len(told) == 1 and re.match("000.*[1-9]", told.pop())


def test_a_number_keeps_the_code_of_its_country_and_its_trunk_zero() -> None:
    assert ALL.text("+49 30 1234567").startswith("+49 00 0")
    assert ALL.text("0049 30 1234567").startswith("0049 00 0")
    assert ALL.text("030 1234567").startswith("000 0")
    assert ALL.text("1-650-253-0000").startswith("1-000-")
    assert ALL.text("call me at 491701234567").startswith("call me at 49000")
    # So short, 298000 may begin someone's number.
    assert ALL.text("call me at 298211234") == "call me at 000" + ALL.text("+298211234").removeprefix("+298")
    assert ALL.text("+992 372 123 456").startswith("+000 000")  # where a number may begin with 000


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
        words = redacted[0]["content"]
        rene, bob = re.findall(WORDS["email"], words)
        assert rene != bob and learned["to"] == [rene, f"\n{bob}"]
        assert is_pseudonym("phone", learned["phone"], said["phone"])
        assert re.sub(r"\D", "", words.partition("call")[2]) == learned["phone"] + "48213"
        assert (learned["order"], words[-6:]) == (48213, "48213.")
        assert "1.5" in redacted[1]["tool_calls"][0]["function"]["arguments"]


@pytest.mark.parametrize(("kind", "value"), FLAT)
def test_arguments_have_the_pseudonym_that_the_words_have(kind: Kind, value: str) -> None:
    arguments = json.dumps({"value": f"({value})", "n": 1})
    redacted = ALL.value({"content": f"Take {value}, please.", "arguments": arguments})
    assert redacted["content"] == f"Take {pseudonym(kind, value)}, please."
    assert json.loads(redacted["arguments"]) == {"value": f"({pseudonym(kind, value)})", "n": 1}


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
    made = redacted[len(before) : len(redacted) - len(after)]
    assert is_pseudonym("phone", made, value) or is_pseudonym("key", made, value)


def test_what_a_word_gives_away_is_replaced_in_all_of_the_record() -> None:
    record = {
        "messages": [
            {"role": "user", "content": "6502530000"},
            {"role": "user", "content": "then correct horse7 it is"},
        ],
        "response": {"arguments": '{"phone_number": "6502530000", "password": "horse7"}'},
    }
    redacted = ALL.value(record)
    learned = json.loads(redacted["response"]["arguments"])
    assert redacted["messages"][0]["content"] == learned["phone_number"]
    assert redacted["messages"][1]["content"] == f"then correct {learned['password']} it is"
    assert is_pseudonym("phone", learned["phone_number"], "6502530000")
    assert is_pseudonym("key", learned["password"], "horse7")


def test_a_number_keeps_its_script() -> None:
    assert re.fullmatch(r"\+٩٦٦ ٠٠ ٠[٠-٩]{2} [٠-٩]{4}", ALL.text("+٩٦٦ ٥٠ ١٢٣ ٤٥٦٧"))


def test_what_was_learned_in_one_place_is_written_as_each_other_place_groups_it() -> None:
    said = ["mobile: 3334445556", "333-444-5556", "0333 444 5556", "(333) 4445556 or 333/444/5556", "333 444 5557"]
    redacted = ALL.value(said)
    digits = redacted[0].removeprefix("mobile: ")
    assert is_pseudonym("phone", digits, "3334445556")
    a, b, c = digits[:3], digits[3:6], digits[6:]
    assert redacted[1:] == [f"{a}-{b}-{c}", f"0{a} {b} {c}", f"({a}) {b}{c} or {a}/{b}/{c}", said[4]]


def test_what_was_learned_is_sought_in_zeros_but_not_in_pseudonyms() -> None:
    known = ["tel: 638-2871", "password: 00041234", "token: k3f7q2"]
    there = ["+1 000-638-2871", "so it is 00041234", "<KEY_k3f7q2>"]
    redacted = ALL.value([*known, *there])
    assert all(new != old for new, old in zip(redacted, known, strict=False))
    assert redacted[3:] == [there[0], f"so it is {redacted[1].removeprefix('password: ')}", there[2]]


def test_the_tokens_of_earlier_databases_stay() -> None:
    old = [f"<{kind.upper()}_k3f7q2>" for kind in KINDS] + ["<PHONE_234567>"]
    text = f"phone: {old[1]}, password={old[5]} {' '.join(old)}, Bearer {old[6]} https://a:{old[5]}@b.com"
    assert ALL.text(text) is text
    both = ALL.text(f"{text} bob@x.com")
    assert both.startswith(text) and "bob" not in both


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


def is_replaced(frame: str, number: str) -> bool:
    """Whether a telephone number in a text becomes a pseudonym, and nothing is left of it."""
    made = ALL.text(frame.format(number)).removeprefix(frame.partition("{")[0]).removesuffix(frame.partition("}")[2])
    return is_pseudonym("phone", made, number)


def test_examples_of_every_region_are_found_in_international_format() -> None:
    found, examples = 0, 0
    for region in sorted(phonenumbers.SUPPORTED_REGIONS):
        for kind in (phonenumbers.PhoneNumberType.FIXED_LINE, phonenumbers.PhoneNumberType.MOBILE):
            number = phonenumbers.example_number_for_type(region, kind)
            if number is not None:
                written = phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.INTERNATIONAL)
                examples += 1
                found += is_replaced("Reach me: {}, please.", written)
    assert examples > 450 and found / examples >= 0.99


def test_examples_of_every_region_are_found_bare_behind_a_word() -> None:
    for region in sorted(phonenumbers.SUPPORTED_REGIONS):
        number = phonenumbers.national_significant_number(phonenumbers.example_number(region))
        if len(number) >= 7:
            assert is_replaced("phone: {}", number), (region, number)


@given(st.from_regex(r"[1-9][0-9]{13,18}", fullmatch=True))  # 00 begins a telephone number
def test_a_card_passes_luhn(number: str) -> None:
    assert (number not in ALL.text(f"paid with {number} today")) <= luhn.is_valid(number)


@given(st.sampled_from(VALUES["card"]), st.integers(0, 9))
def test_a_card_with_a_wrong_digit_stays(number: str, digit: int) -> None:
    wrong = f"card {number[:-1]}{digit} today"
    assert (ALL.text(wrong) != wrong) == luhn.is_valid(re.sub(r"\D", "", wrong))


@given(st.sampled_from(VALUES["iban"]), st.integers(0, 9))
def test_an_account_with_a_wrong_digit_stays(number: str, digit: int) -> None:
    compact = iban.compact(number)
    wrong = compact[:3] + str(digit) + compact[4:]
    assert (wrong not in ALL.text(f"to {wrong} today")) == iban.is_valid(wrong)


# -- properties -----------------------------------------------------------------------------------------------------

EXAMPLES = [
    phonenumbers.format_number(number, way)
    for region in sorted(phonenumbers.SUPPORTED_REGIONS)
    if (number := phonenumbers.example_number_for_type(region, phonenumbers.PhoneNumberType.MOBILE))
    for way in (phonenumbers.PhoneNumberFormat.INTERNATIONAL, phonenumbers.PhoneNumberFormat.NATIONAL)
]
PIECES = st.one_of(
    st.sampled_from([value for _, value in FLAT]),
    st.sampled_from([ALL.text(value) for _, value in FLAT]),
    st.sampled_from(EXAMPLES),
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


@hypothesis_settings(deadline=None)
@given(TEXTS)
def test_redacting_again_changes_nothing(text: str) -> None:
    once = ALL.text(text)
    assert ALL.text(once) is once


@hypothesis_settings(deadline=None)
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


@hypothesis_settings(deadline=None)
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


@pytest.mark.parametrize(("kind", "value"), FLAT)
def test_a_client_gets_a_name_that_is_nobody_else_s_and_that_redacting_again_leaves(kind: Kind, value: str) -> None:
    named = ALL.record({"client_id": f"web/{value}", "said": f"I am {value}"}, "client_id")
    assert value not in named["client_id"] and re.search(r"redacted-[b-df-hj-np-tv-xz]{24}", named["client_id"])
    assert ALL.record(named, "client_id") == named
    assert ALL.client(f"web/{value}") == named["client_id"], "by which it is found again"


def test_clients_in_whose_names_nothing_is_redacted_keep_them() -> None:
    for record in ({"client_id": "web/ann"}, {"client_id": None}, {"client_id": 5}, {}):
        said = {**record, "said": "I am bob@company.com"}
        assert {**ALL.record(said, "client_id"), "said": ""} == {**record, "said": ""}
    assert Redactor((), b"").client("bob@company.com") == "bob@company.com"
