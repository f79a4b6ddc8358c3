"""The command: `make tensorboard RUN=digits`. All its words go to TensorBoard: `ARGS="--port 7000"`.

It runs in `.venv-trackers`, which has TensorBoard and no torch.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from trainer.contract import Exit, RunEnv, UserError, run_key
from trainer.store import StoreError, naming_the_fix, open_store
from trainer.store.retry import Retry
from trainer.tensorboard.mirror import Mirror
from trainer.text import forgive_output, say, tell

MIRROR_SECONDS = 10.0  # between two looks into the store
PORTS = 100  # that are tried, from the given one on
POINTS = "scalars=10000"  # of a curve that TensorBoard keeps: its own 1,000 would drop steps of a short run


def serve(folder: Path, words: Sequence[str]) -> str:
    """Start TensorBoard on the folder in threads of this process. Returns its address. Raises UserError."""
    from tensorboard import program
    from tensorboard.plugins.base_plugin import FlagsError

    if any(word.startswith("--logdir") for word in words):
        raise UserError("ARGS=--logdir…: the folder is that of RUN= in STORE=; to open another: tensorboard --logdir …")
    board = program.TensorBoard()
    try:
        board.configure(["tensorboard", "--logdir", str(folder), "--samples_per_plugin", POINTS, *words])
        if board.flags.port:
            board.flags.port = free_port(board.flags.port)
        return str(board.launch())
    except (FlagsError, program.TensorBoardServerException) as error:
        raise UserError(f"TensorBoard does not start: {error or getattr(error, 'msg', '')}; correct ARGS=") from error


def free_port(wanted: int) -> int:
    """This port of the local machine, or the next one that nobody uses. Raises UserError."""
    for port in range(wanted, min(wanted + PORTS, 1 << 16)):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise UserError(f"--port {wanted} is in use, and so are the next {PORTS}: name another, or leave it out")


def follow_forever(follow: Callable[[], int]) -> None:
    """Bring the folder up to date, again and again. A store that fails is tried again, with few words."""
    retry, had = Retry(say), -1
    while True:
        try:
            has = follow()
            if has == 0 and had < 0:
                tell("it has no rows yet: they are shown as soon as they come (or correct RUN= and STORE=)")
            elif has and had <= 0:
                tell("what there is now is in TensorBoard; more comes while the run goes on")
            had = has
        except StoreError as error:
            retry.complain(f"the store fails, and is asked again: {error}")
        time.sleep(MIRROR_SECONDS)


def main(words: Sequence[str]) -> int:
    try:
        env = RunEnv.from_environ(os.environ)
        store, scratch = open_store(env.store), Path(env.scratch_dir, "tensorboard")
        with naming_the_fix(f"the store {env.store}"), suppress(StoreError):  # one that may pass is told below
            next(store.list(run_key(env.run_id, "")), None)
        with naming_the_fix(f"the scratch folder {scratch}"):
            scratch.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=scratch, prefix=f"{env.run_id}-") as folder:
                address = serve(Path(folder), words)
                tell(f"run {env.run_id!r} of {store.uri}: {address} (Ctrl-C ends it)")
                follow_forever(Mirror(store, env.run_id, Path(folder)).follow)
    except UserError as error:
        say(f"error: {error}")
        return Exit.USER
    except SystemExit as stop:  # TensorBoard has said what is wrong with its options
        return Exit.USER if stop.code else Exit.FINISHED
    except KeyboardInterrupt:
        pass
    return Exit.FINISHED


if __name__ == "__main__":
    forgive_output()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the folder goes, too
    raise SystemExit(main(sys.argv[1:]))
