"""How boto3 is told to behave: how long it waits, how often it tries, and what it computes of each body."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import boto3
from botocore.config import Config

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client


@dataclass(frozen=True, kw_only=True)
class S3Settings:
    connect_timeout_seconds: float = 3
    read_timeout_seconds: float = 5  # for each read of the socket, so a large body may take longer
    attempts: int = 3  # of one request, the first one included
    part_bytes: int = 16 << 20  # larger bodies go in parts of this size …
    parts_at_once: int = 4  # … and so many at a time, which also bounds the memory
    connections: int = 32  # at most
    page_keys: int = 1000  # per request of a listing; S3 gives no more
    adds_checksums: bool = True  # boto3 adds a CRC32 to every body, which not every endpoint knows


def connect(settings: S3Settings) -> S3Client:
    config = Config(
        connect_timeout=settings.connect_timeout_seconds,
        read_timeout=settings.read_timeout_seconds,
        retries={"mode": "standard", "total_max_attempts": settings.attempts},
        max_pool_connections=settings.connections,
        tcp_keepalive=True,
        user_agent="resnet-spot",  # boto3 takes a quarter of a small request's time to compose its own
    )
    if not settings.adds_checksums:
        config = config.merge(Config(request_checksum_calculation="when_required"))
    session = boto3.session.Session()  # not boto3's default session, which threads may not share
    client = session.client("s3", config=config)
    if client.meta.endpoint_url.startswith("https:"):
        # A CRC protects every body, and TLS the connection, so a sha256 of it would be computed in vain.
        client = session.client("s3", config=config.merge(Config(s3={"payload_signing_enabled": False})))
    return client
