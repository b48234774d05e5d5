"""An S3 server that a test starts, from the package index, and a lake in it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

ENVIRONMENT = {"AWS_ALLOW_HTTP": "true", "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_REGION": "us-east-1"}


@contextmanager
def s3(bucket: str) -> Iterator[str]:
    """Its URL; the environment names it, as it would a real one."""
    server = pytest.importorskip("moto.server", reason="no S3 server: pip install -c constraints.txt -e '.[dev]'")
    boto3 = pytest.importorskip("boto3")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    patch = pytest.MonkeyPatch()
    running = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    try:
        url = f"http://127.0.0.1:{running.get_host_and_port()[1]}"
        for name, value in {**ENVIRONMENT, "AWS_DEFAULT_REGION": "us-east-1", "AWS_ENDPOINT_URL": url}.items():
            patch.setenv(name, value)
        boto3.client("s3", endpoint_url=url).create_bucket(Bucket=bucket)
        yield url
    finally:
        patch.undo()
        running.stop()
