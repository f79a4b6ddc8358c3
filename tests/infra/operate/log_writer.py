"""Lines of a run in the log group, as Docker's log driver puts them there."""

from __future__ import annotations

import time

from tests.emulator.aws import Aws
from tests.infra.deployed import INSTALLATION, RUN


class Writer:
    """A stream for each life of a machine, and events with the time of the machine's clock."""

    def __init__(self, aws: Aws) -> None:
        self.client = aws.client("logs")
        self.streams: set[str] = set()
        self.written: list[str] = []

    def write(self, *texts: str, machine: str = "i-1", number: str = "1", age_seconds: float = 0) -> None:
        stream = f"{RUN}/{machine}/{number}"
        if stream not in self.streams:
            self.client.create_log_stream(logGroupName=INSTALLATION.log_group, logStreamName=stream)
            self.streams.add(stream)
        at = int((time.time() - age_seconds) * 1000)
        events = [{"timestamp": at, "message": text} for text in texts]
        self.client.put_log_events(logGroupName=INSTALLATION.log_group, logStreamName=stream, logEvents=events)
        self.written += texts
