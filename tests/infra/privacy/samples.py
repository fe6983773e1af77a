"""Values that are redacted, and what looks like them and is not.

Cards are the test numbers that Stripe and Adyen publish, IBANs the examples of the SWIFT registry; keys follow their
issuers' formats and open nothing. They are put together here so that no scanner of this repository takes them for real.
"""

from infra.privacy.redaction import Kind

A20, A36 = "a1B2c3D4e5F6g7H8i9J0", "a1B2c3D4e5F6g7H8i9J0k1L2m3N4o5P6q7R8"
JWT = "ey" + "JhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9P"

VALUES: dict[Kind, list[str]] = {
    "email": [
        "bob@example.com", "first.last+tag@sub.example.co.uk", "o'brien@example.ie", "x_y-z@example.museum",
        "rené@exämple.fr", "почта@пример.рф", "bob@xn--exmple-cua.com", "1@2.de",
    ],
    "phone": [
        "+1 650-253-0000", "+16502530000", "(650) 253-0000", "650-253-0000", "650.253.0000", "1-650-253-0000",
        "+49 30 1234567", "030 1234567", "030/1234567", "0171-1234567", "0171 123 45 67", "0049 30 1234567",
        "+44 20 7946 0958", "020 7946 0958", "07700 900123", "(020) 7946 0958", "+33 6 12 34 56 78", "06 12 34 56 78",
        "06.12.34.56.78", "+41 44 668 18 00", "044 668 18 00", "03-1234-5678", "090-1234-5678", "0412 345 678",
        "(11) 96123-4567", "138-1234-5678", "98765 43210", "8 (912) 345-67-89", "612 34 56 78", "+7 912 345-67-89",
        "+٩٦٦ ٥٠ ١٢٣ ٤٥٦٧", "（03）1234－5678", "+1\u00a0650\u2011253\u20110000",
    ],
    "card": [
        "4111 1111 1111 1111", "4242424242424242", "5555-5555-5555-4444", "2223003122003222", "378282246310005",
        "3782 822463 10005", "6011111111111117", "3056930902" + "5904", "3566002020360505", "6200000000000005",
        "4111 1111 1111 1111".replace(" ", "\u00a0"),
    ],
    "iban": [
        "DE89 3704 0044 0532 0130 00", "DE89370400440532013000", "GB29 NWBK 6016 1331 9268 19",
        "FR1420041010050500013M02606", "NL91ABNA0417164300", "NO9386011117947", "ES91 2100 0418 4502 0005 1332",
        "IT60X0542811101000000123456",
        "CH93 0076 2011 6238 5295 7", "MT84MALT011000012345MTLCAST001S", "BR1800360305000010009795493C1",
        "KW81CBKU0000000000001234560101", "SA0380000000608010167519", "PL61109010140000071219812874",
        "de89370400440532013000", "gb29 nwbk 6016 1331 9268 19",
    ],
    "ip": [
        "203.0.113.7", "8.8.8.80", "10.20.30.40", "192.168.1.1", "2001:db8::1", "fe80::1ff:fe23:4567:890a",
        "2001:0db8:0:0:0:0:0:1",
    ],
    "key": [
        "sk-" + A20 + A20, "sk-proj-" + A36, "sk-ant-api03-" + A36, "ghp_" + A36, "github_pat_" + A20 + "_" + A36,
        "glpat-" + A20, "AKIA" + "IOSFODNN7EXAMPLE", "xoxb-123456789012-" + A20, "AIza" + A36[:35], "sk_live_" + A20,
        "hf_" + A36, "npm_" + A36, "gsk_" + A36 + A20, JWT,
        "-----BEGIN RSA PRIVATE KEY-----\nMIIEpAIBAAKCAQEA7bq3\n-----END RSA PRIVATE KEY-----",
    ],
}  # fmt: skip

STAYS = [
    "order 48213", "order 48213999", "order number 0123 456789", "Bestellnummer: 030 1234567", "INV-2024-0012345",
    "RMA-650-253-0000", "2026-11-24", "24.11.2026", "01.02.2024", "01-02-2024 10:30", "2026-11-24 10:30:45",
    "1718000000", "1718000000123", "1718000000123456789", "2026-11-24T10:22:31.123456Z", "+02:00", "10:30-12:45",
    "$1,234.56", "1.234.567,89 EUR", "1 234 567", "12 345 678", "100.000.000", "-0.0001234567890123",
    "52.520008, 13.404954", "3.14159265358979", "version 10.1.2.3", "v2.10.33.4", "1.2.3.4", "§ 3.1.4.12", "127.0.0.1",
    "0.0.0.0", "255.255.255.0", "::1", "std::vector", "Abc::def", "Chrome/120.0.0.0",
    "0194157f-fd28-7501-9f11-0c1eb0ef5d51", "12345678-1234-4123-8123-123456789012",
    "chatcmpl-9f86d081884c7d659a2feaa0c55ad015", "call_447c999d19de2deda0e20045",
    "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855", "1Z999AA10123456784",
    "00340434161094042557", "4006381333931", "978-0-306-40615-7", "0-306-40615-2", "4111 1111 1111 1112",
    "1234567890123456", "DE89 3704 0044 0532 0130 01", "AB12 3456 7890 1234 5678", "pages 1997-2003", "70 76 71 70",
    "@bob", "price @ 5.00", "next@14.2.3", "bob at example dot com", "user@localhost", "I forgot my password.",
    "password: required", "max_tokens: 100000", "the token is invalid", "risk-free-and-without-any-obligation-2024",
    "sk-learn-contrib-packages", "Bearer of good news", "basic understanding of this", "my phone has 128 GB",
    "hotel 12345678", "<EMAIL_k3f9q2>", "phone: <PHONE_234567>", "password=<KEY_234567>", "C++ 20240101",
]  # fmt: skip
