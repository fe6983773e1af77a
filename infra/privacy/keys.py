"""Secrets in a text: keys and tokens in their issuers' formats, private keys, passwords behind a word for one.

The scanners that exist (detect-secrets, gitleaks, TruffleHog) are made for source files. They judge by entropy and by
the line's syntax, and would take an order id for a secret and `my password is ...` for prose. What they know of value
is the issuers' formats, and these are a table. Sources: GitHub, "About authentication to GitHub"; AWS IAM, "Unique
identifiers"; Slack, "Token types"; Stripe, "API keys"; GitLab, "Token overview"; RFC 7519 (JWT), 6750 (Bearer), 7468
(PEM); for issuers that document none (OpenAI, Anthropic, Google, Hugging Face and others) the public rules of gitleaks.
"""

import re
from collections.abc import Iterator

from infra.privacy.phones import Span

FORMATS = {  # what a token begins with → what follows
    r"sk-": r"(?=[A-Za-z_-]*[0-9])[A-Za-z0-9_-]{20,}",  # OpenAI, Anthropic (sk-ant-), OpenRouter (sk-or-), DeepSeek
    r"gh[pousr]_": r"[A-Za-z0-9]{20,}",
    r"github_pat_": r"[A-Za-z0-9_]{22,}",
    r"glpat-": r"[A-Za-z0-9_-]{20,}(?:\.[A-Za-z0-9]+)*",
    r"A[KS]IA": r"[A-Z0-9]{16}(?![A-Za-z0-9])",  # AWS
    r"xox[abeoprs]-": r"[A-Za-z0-9-]{16,}",  # Slack
    r"xapp-": r"[A-Za-z0-9-]{16,}",
    r"AIza": r"[A-Za-z0-9_-]{35}",  # Google
    r"GOCSPX-": r"[A-Za-z0-9_-]{20,}",
    r"[sr]k_(?:live|test)_": r"[A-Za-z0-9]{16,}",  # Stripe
    r"hf_": r"[A-Za-z0-9]{30,}",
    r"nvapi-": r"[A-Za-z0-9_-]{40,}",
    r"gsk_": r"[A-Za-z0-9]{40,}",  # Groq
    r"xai-": r"[A-Za-z0-9]{40,}",
    r"pplx-": r"[A-Za-z0-9]{40,}",
    r"r8_": r"[A-Za-z0-9]{30,}",  # Replicate
    r"npm_": r"[A-Za-z0-9]{36}",
    r"pypi-": r"[A-Za-z0-9_-]{50,}",
    r"dop_v1_": r"[a-f0-9]{64}",  # DigitalOcean
    r"shpat_": r"[a-fA-F0-9]{32}",  # Shopify
    # JWS and JWE: base64 of `{"` comes first, and the header is long enough to name an algorithm.
    r"eyJ": r"[A-Za-z0-9_-]{17,}(?:\.[A-Za-z0-9_-]*){1,3}\.[A-Za-z0-9_-]+",
}
ISSUED = re.compile(rf"(?<![0-9A-Za-z_-])(?:{'|'.join(map(''.join, FORMATS.items()))})")
BEARER = re.compile(r"(?:[Bb]earer|BEARER|Basic)[ :=]([A-Za-z0-9_-]{20}[A-Za-z0-9._~+/=-]*)")
BEGINNING = re.compile(rf"(?:[bfnrt](?<=\\.))?(?:{'|'.join(FORMATS)})|(?<=(?:earer|EARER|Basic).)".encode())
PEM = re.compile(
    r"-----BEGIN ([A-Z0-9 ]{0,30}PRIVATE KEY(?: BLOCK)?)-----"
    r"(?:(?:[^-]|-(?!----))*+-----END \1-----|(?:\s+[A-Za-z0-9+/=]{40,})*)"
)
IN_URL = re.compile(r"://[^\s:/@\"'<>]{0,64}:([^\s/@\"'<>]{3,128})@(?=[0-9A-Za-z])")
ASSIGNED = re.compile(
    r"""(?:passw(?:or)?[dt]|PASSW(?:OR)?D|Passw(?:or)?[dt]|[Ss]ecret|[Tt]oken|TOKEN
        |(?:[a-zA-Z][_\ -]|[Aa]pi)[Kk]ey|(?:[A-Z]_|API)KEY)
    [\\"'\ ]{0,4}(?:[:=]{1,2}>?|\b(?:is|ist)\b)[\\"'`\ ]{0,4}
    ([^\s"'`<>{}\[\]\\,;]{6,256})""",
    re.VERBOSE,
)
NO_SECRET = ("$", "%", "*", "(", "http:", "https:", "os.", "process.")


def find(text: str) -> Iterator[Span]:
    """Secrets in a text, each as it is written; where two overlap, the surer one comes first."""
    for pattern in (PEM, ISSUED):
        for match in pattern.finditer(text):
            yield match.start(), match.end(), match[0]
    for match in IN_URL.finditer(text):
        yield match.start(1), match.end(1), match[1]
    for pattern in (BEARER, ASSIGNED):
        for match in pattern.finditer(text):
            secret = match[1].rstrip(".!?:)*")
            if is_plausible(secret):
                yield match.start(1), match.start(1) + len(secret), secret


def is_plausible(secret: str) -> bool:
    """Whether what stands behind a word for a password can be one: six characters, one of them a digit, no variable."""
    return len(secret) >= 6 and re.search("[0-9]", secret) is not None and not secret.startswith(NO_SECRET)
