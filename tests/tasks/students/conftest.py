"""A dataset of a small log of the shop, and the home that it lies in, where students of a bare model are trained."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tasks.curate import CurateSpec, curate
from tasks.ingest import ingest
from tasks.sources import JSONL
from tests.conftest import living_in
from tests.shop_log import WORKLOAD, write_log


@pytest.fixture(scope="module")
def dataset(bare: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("students")
    log = write_log(folder / "log.jsonl", seed=1, conversations=40, day=1)
    with living_in(folder / "home", STUDENT=str(bare), TEACHER="", THREADS="1"):
        ingest(JSONL(paths=(str(log),)))
        yield curate(WORKLOAD, CurateSpec())["dataset_id"]
