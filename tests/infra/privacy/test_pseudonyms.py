"""What stands in a value's place has its form, is nobody's, and is known again; the libraries are the oracle."""

import ipaddress
import re
from collections.abc import Iterator

import phonenumbers
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from phonenumbers import PhoneNumber, PhoneNumberFormat
from stdnum import iban, luhn

from infra.privacy.plain import plain
from infra.privacy.pseudonyms import CODES, KINDS, TOKEN, Kind, is_unreal, pseudonym
from infra.privacy.redaction import FINDERS, Redactor
from tests.infra.privacy.samples import STAYS, VALUES

ALL = Redactor(KINDS, b"a key")
FLAT = [(kind, value) for kind, values in VALUES.items() for value in values]
MAY_BEGIN_WITH_ZEROS = {"598", "800", "881", "888", "992"}


def examples() -> Iterator[PhoneNumber]:
    """A number of each type of each region, and of each code that is no country's."""
    for region in sorted(phonenumbers.SUPPORTED_REGIONS):
        for sort in (phonenumbers.PhoneNumberType.FIXED_LINE, phonenumbers.PhoneNumberType.MOBILE):
            if number := phonenumbers.example_number_for_type(region, sort):
                yield number
    for code in sorted(phonenumbers.COUNTRY_CODES_FOR_NON_GEO_REGIONS):
        if number := phonenumbers.example_number_for_non_geo_entity(code):
            yield number


def is_valid(number: str, region: str | None) -> bool:
    try:
        return phonenumbers.is_valid_number(phonenumbers.parse(number, region))
    except phonenumbers.NumberParseException:
        return False


def test_no_pseudonym_of_a_number_is_valid_in_its_country() -> None:
    made = 0
    for number in examples():
        region = phonenumbers.region_code_for_number(number)
        for way in (PhoneNumberFormat.INTERNATIONAL, PhoneNumberFormat.E164, PhoneNumberFormat.NATIONAL):
            written = phonenumbers.format_number(number, way)
            new = pseudonym(b"a key", "phone", str(number.national_number), written)
            assert re.sub(r"\d", "0", new) == re.sub(r"\d", "0", written)
            assert is_unreal(new), (written, new)
            assert not is_valid(new, region if str(number.country_code) not in MAY_BEGIN_WITH_ZEROS else None)
            made += 1
    assert made > 1400


def test_the_codes_that_stay_are_those_of_the_plans_without_numbers_that_begin_with_zeros() -> None:
    assigned = {str(code) for code in phonenumbers.COUNTRY_CODE_TO_REGION_CODE}
    kept = {str(code) for code in range(1, 1000) if re.fullmatch(CODES, str(code))}
    assert kept & assigned == assigned - MAY_BEGIN_WITH_ZEROS
    for code in kept & assigned:
        for length in range(4, 11):  # Japan has free numbers that begin so and are longer, for calls within Japan
            numbers = (f"+{code}000" + digit * (length - 3) for digit in "0123456789")
            assert not [number for number in numbers if is_valid(number, None)] or (code, length) == ("672", 5)


@settings(deadline=None)
@given(st.sampled_from(VALUES["card"]), st.binary())
def test_a_card_begins_as_no_issuers_and_fails_luhn(written: str, key: bytes) -> None:
    new = pseudonym(key, "card", re.sub(r"\D", "", written), written)
    assert re.sub(r"\d", "0", new) == re.sub(r"\d", "0", written)
    assert re.sub(r"\D", "", new).startswith("000") and not luhn.is_valid(re.sub(r"\D", "", new))


@pytest.mark.parametrize("written", VALUES["iban"])
def test_an_account_keeps_country_and_structure_and_fails_its_check(written: str) -> None:
    def structure(text: str) -> str:
        return re.sub("[A-Z]", "A", re.sub("[a-z]", "a", re.sub("[0-9]", "0", text)))

    for key in range(100):  # one in 97 would pass by chance
        new = pseudonym(str(key).encode(), "iban", iban.compact(written), written)
        assert new[:4] == written[:2] + "00" and structure(new) == structure(written)
        assert not iban.is_valid(new, check_country=False)


@settings(deadline=None)
@given(st.ip_addresses(), st.binary())
def test_an_ip_address_is_reserved_and_no_netmask(address: ipaddress.IPv4Address, key: bytes) -> None:
    new = ipaddress.ip_address(pseudonym(key, "ip", str(address), str(address)))
    assert new.version == address.version
    reserved = ipaddress.ip_network("240.0.0.0/4" if new.version == 4 else "2001:db8::/32")
    assert new in reserved and new not in ipaddress.ip_network("255.0.0.0/8" if new.version == 4 else "ff00::/8")


@pytest.mark.parametrize(("kind", "value"), FLAT)
def test_no_finder_finds_it_and_the_token_pattern_does(kind: Kind, value: str) -> None:
    new = ALL.text(value)
    for frame in ("{}", "phone: {}", "call me at {}.", "password={}", "token: {}", "it is {}, or {}", "Bearer {}"):
        text = frame.format(new, new)
        assert TOKEN.search(plain(text))
        for other in KINDS if kind in ("email", "ip", "key") else ("email", "phone", "card", "iban", "ip"):
            assert Redactor((other,), b"another").text(text) == text
    assert list(FINDERS[kind](plain(value)))


@pytest.mark.parametrize("text", STAYS)
def test_what_is_no_personal_data_is_no_pseudonym(text: str) -> None:
    assert not TOKEN.search(text) or "<" in text or text == "0.0.0.0"


@pytest.mark.parametrize(
    "text",
    [
        "06 00 04 12 34", "+33 6 00 04 12 34", "+33 1 40 00 00 00", "call me at 60000 12345", "call me at 60005 12345",
        "tel: 700 012 3456", "+1 800-000-1234", "0003 650-253-0000", "00041234@uni.edu", "max.00041234@uni.edu",
        "ab00000212@company.com", "password: 00041234", "NL" + iban.calc_check_digits("NLxxABNA0004164300")
        + " ABNA 0004 1643 00", "4000 0001 2345 678" + luhn.calc_check_digit("400000012345678"), "+992 000 512345",
        "kqzwmtb@company.com", "kqzwmta@example.com", "bob@redacted.invalid",
    ],
)  # fmt: skip
def test_what_only_begins_or_goes_on_like_one_is_redacted(text: str) -> None:
    assert ALL.text(text) != text and ALL.text(f"I said: {text}.") == f"I said: {ALL.text(text)}."


@pytest.mark.parametrize("apart", [" ", " / ", ", ", "; ", " or "])
@pytest.mark.parametrize("number", ["+49 30 1234567", "(11) 96123-4567", "650-253-0000"])
def test_a_number_beside_a_pseudonym_is_found(number: str, apart: str) -> None:
    new, real = ALL.text(number), "212-555-0100"
    assert ALL.text(new + apart + real) == new + apart + ALL.text(real)


def test_pseudonyms_side_by_side_stay() -> None:
    first, second = ALL.text("call me at 491701234567"), ALL.text("0170 1234568")
    assert ALL.text("call me at 491701234567 / 0170 1234568") == f"{first} / {second}"


def test_a_short_number_has_as_many_pseudonyms_as_is_said() -> None:
    for digits, said in ((5, 10), (7, 1000), (9, 100_000)):
        numbers = map(str, range(10**digits // 2, 10**digits // 2 + 8000))
        made = {pseudonym(b"a key", "phone", number, number) for number in numbers}
        assert 0.9 * min(said, 8000) < len(made) <= said
