"""The command: `python -m trainer.watch --store out --run-id digits`, or `make watch RUN=digits STORE=out`."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import sys
import time
import webbrowser
from dataclasses import dataclass
from typing import TYPE_CHECKING

import tyro

from trainer.contract import RUN_ID_RULE, Exit, RunEnv, UserError
from trainer.text import forgive_output, tell

if TYPE_CHECKING:
    from trainer.store import ObjectStore
    from trainer.watch.reader import RunReader
    from trainer.watch.server import PageServer


@dataclass(frozen=True, kw_only=True)
class Options:
    """Show a run as it runs, on a page that only this machine can open. It waits for a run that is not there yet."""

    store: str
    """Where the run lives: s3://bucket/prefix or a directory; else $TRAINER_STORE."""
    run_id: str
    """The run to show; else $TRAINER_RUN_ID."""
    port: int | None = None
    """The port of the page on 127.0.0.1; 0 = any that is free; none = 8400, or the next one that is free."""
    open: bool = False
    """Open the page in a browser."""


def listen_on(reader: RunReader, port: int | None) -> PageServer:
    """The server, on the port that was asked for, else on the first one that is free. Raises UserError."""
    from trainer.watch.server import FIRST_PORT, MOST_PORTS, PageServer

    if port is not None and not 0 <= port < 1 << 16:
        raise UserError(f"--port {port} is no port: use 1024 to 65535, or 0 for any that is free")
    for number in range(FIRST_PORT, FIRST_PORT + MOST_PORTS) if port is None else (port,):
        try:
            server = PageServer(reader, number)
        except OSError as error:
            if error.errno == errno.EADDRINUSE and port is None:
                tell(f"port {number} is taken, trying the next one", sys.stderr)
                continue
            fix = "leave --port out, or name another one"
            raise UserError(f"port {number} cannot be used ({error.strerror}): {fix}") from error
        return server
    raise UserError(f"ports {FIRST_PORT} to {FIRST_PORT + MOST_PORTS - 1} are all taken: name another one with --port")


def watch_run(store: ObjectStore, options: Options) -> None:
    """Serve the page until Ctrl-C."""
    from trainer.watch.reader import RunReader

    reader = RunReader(store, options.run_id)
    with listen_on(reader, options.port) as server:
        tell(f"{server.address}  shows run {options.run_id} of {store.uri}; Ctrl-C ends it")
        reader.look()
        found = reader.document(time.time())
        for line in (*found["wrong"], found["state"]):
            tell(f"  {line}")
        if found.get("others"):
            tell(f"  the store has: {', '.join(found['others'])}")
        reader.start()
        if options.open:
            webbrowser.open(server.address)
        try:
            server.serve_forever()
        finally:
            reader.stop()


def main(arguments: list[str] | None = None) -> int:
    store, run_id = (os.environ.get(RunEnv.variable(name)) or tyro.MISSING for name in ("store", "run_id"))
    try:
        options = tyro.cli(
            Options, default=Options(store=store, run_id=run_id), prog="python -m trainer.watch", args=arguments
        )
    except SystemExit as stop:  # tyro has said what is wrong
        return Exit.USER if stop.code else Exit.FINISHED
    from trainer.store import open_store

    try:
        if not re.fullmatch(RUN_ID_RULE, options.run_id):
            raise UserError(f"{options.run_id!r} is not a run id: use {RUN_ID_RULE}, for example RUN=digits")
        watch_run(open_store(options.store), options)
    except UserError as error:
        tell(f"error: {error}", sys.stderr)
        return Exit.USER
    except KeyboardInterrupt:
        tell("\nthe page has ended; the run goes on")
    return Exit.FINISHED


if __name__ == "__main__":
    forgive_output()
    with contextlib.suppress(OSError):
        os.nice(10)  # a training on this machine goes first
    sys.exit(main())
