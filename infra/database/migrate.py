"""`python -m infra.database.migrate`: bring the database that the settings name to the newest migration, and say so.

Any process does so when it first opens the database; a deployment does it once, before it starts what serves.
"""

import sys

from infra.database.session import database, hidden, translated
from infra.settings import SetupError, settings


def main() -> int:
    try:
        url = settings().database_url
        with translated(url):
            database(url)
    except SetupError as problem:
        print(f"flywheel: {problem}", file=sys.stderr)
        return 2
    print(f"{hidden(url)} is at the newest migration")
    return 0


if __name__ == "__main__":
    sys.exit(main())
