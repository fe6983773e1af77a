"""A turn's time: what hears nothing of its end is ended."""

import subprocess
import sys

HEARS_NOTHING = """
import hashlib
from flows import turn
turn.STUCK = 0.5
with turn.within(1e-5, "the turn of 'shop' took over hours=1e-05"):
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)  # many minutes in C, in which no signal is handled
"""


def test_a_process_that_does_not_hear_that_its_time_is_over_is_ended() -> None:
    done = subprocess.run([sys.executable, "-c", HEARS_NOTHING], stderr=subprocess.PIPE, text=True, timeout=100)
    assert done.returncode == 1
    assert "'shop' took over hours=1e-05: it did not hear that its time was over" in done.stderr
