"""An S3 that nobody pays for: moto's server, in a process of its own."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import boto3

BUCKET = "mario-bucket"
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


@dataclass(frozen=True)
class S3:
    """A server with an empty bucket."""

    endpoint: str
    process: subprocess.Popen[bytes]

    @property
    def url(self) -> str:
        return f"s3://{BUCKET}/runs"

    @property
    def env(self) -> Mapping[str, str]:
        """What a process needs to find it."""
        return {**CREDENTIALS, "AWS_ENDPOINT_URL": self.endpoint}

    def names(self) -> list[str]:
        client = boto3.client("s3", endpoint_url=self.endpoint, **CLIENT)
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET)
        return sorted(item["Key"] for page in pages for item in page.get("Contents", []))


CLIENT = {
    "aws_access_key_id": "testing",
    "aws_secret_access_key": "testing",
    "region_name": "us-east-1",
}


@contextmanager
def s3_server() -> Iterator[S3]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, **CREDENTIALS},
    )
    try:
        endpoint = f"http://127.0.0.1:{port}"
        until = time.monotonic() + 120
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                assert process.poll() is None, "moto's server ended"
                assert time.monotonic() < until, "moto's server does not listen"
                time.sleep(0.1)
        boto3.client("s3", endpoint_url=endpoint, **CLIENT).create_bucket(Bucket=BUCKET)
        yield S3(endpoint, process)
    finally:
        process.kill()
        process.wait()
