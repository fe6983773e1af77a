"""The way to MLflow, where its files lie in S3 and are fetched without its server."""

import sys
from pathlib import Path

import pytest

from infra.settings import SetupError, settings
from infra.tracking import connected, download


def test_files_in_s3_without_boto3_are_said_with_the_extra(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "boto3", None)  # as where it is not installed
    with (
        pytest.raises(SetupError, match=r"needs boto3; pip install 'flywheel\[s3\]'"),
        connected(settings().mlflow_uri),
    ):
        download("s3://bucket/model", home / "serving" / "1")
    assert not (home / "serving" / "1").exists()
