"""What the trainer and its surroundings agree on: the environment, the keys of the store, the exit codes.

Standard library only, so that the supervisor and the AWS app can read it at no cost. Nothing here does I/O.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from enum import IntEnum

RUN_ID_RULE = r"[a-z0-9][a-z0-9_.-]{0,62}"


class Exit(IntEnum):
    """Exit codes of the container and of every `python -m trainer.*`; anything else is a crash."""

    FINISHED = 0
    INTERRUPTED = 75  # everything is committed: start again to continue
    HELD = 76  # another trainer holds the run
    USER = 78  # the user must change something


class UserError(ValueError):
    """Something only the user can change: the message says the bad value, the rule and the fix. Exit code 78."""


class RefusedError(UserError):
    """This start is refused, while the run itself is fine: it is not marked as failed."""


class LostRunError(Exception):
    """A later attempt owns the run: this one may commit nothing more. Exit code 76."""


class Phase:
    """What the trainer is doing, as `heartbeat.json` tells it."""

    STARTING = "starting"
    STAGING = "staging"
    COMPILING = "compiling"
    TRAINING = "training"
    EVALUATING = "evaluating"
    SAVING = "saving"
    WAITING_FOR_STORE = "waiting-for-store"


@dataclass(frozen=True, kw_only=True)
class RunEnv:
    """Where a run lives. One field per environment variable; what it computes is the config's business."""

    store: str = field(metadata={"variable": "TRAINER_STORE"})  # s3://bucket/prefix or a directory
    run_id: str = field(metadata={"variable": "TRAINER_RUN_ID"})
    scratch_dir: str = field(metadata={"variable": "TRAINER_SCRATCH_DIR"})  # local, fast, may be lost
    data: str = field(default="", metadata={"variable": "TRAINER_DATA"})  # URI, folder, hub id; "": the recipe's own
    attempt: str = field(default="", metadata={"variable": "TRAINER_ATTEMPT"})  # given by the uploader, "1", "2", …
    secrets_dir: str = field(default="", metadata={"variable": "TRAINER_SECRETS_DIR"})  # files; hf_token is one

    def to_environ(self) -> dict[str, str]:
        """The variables, passed through untouched; empty ones are left out."""
        return {f.metadata["variable"]: getattr(self, f.name) for f in fields(self) if getattr(self, f.name)}

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> RunEnv:
        """Read and validate; raises UserError naming the variable, its value and the rule."""
        values = {f.name: environ.get(f.metadata["variable"], "") for f in fields(cls)}
        for name in ("store", "run_id", "scratch_dir"):
            if not values[name]:
                variable = cls.variable(name)
                raise UserError(f"{variable} is not set: it is required; `make train` sets it, or export {variable}=…")
        if not re.fullmatch(RUN_ID_RULE, values["run_id"]):
            raise UserError(
                f"{cls.variable('run_id')}={values['run_id']!r} is not a run id: use {RUN_ID_RULE} "
                "(lower case, digits, '-', '_', '.'), for example RUN=digits-2"
            )
        if values["attempt"] and not values["attempt"].isdecimal():
            raise UserError(f"{cls.variable('attempt')}={values['attempt']!r} is not a number: leave it unset")
        return cls(**values)

    @classmethod
    def variable(cls, name: str) -> str:
        """The environment variable of a field."""
        return str(next(f.metadata["variable"] for f in fields(cls) if f.name == name))


# Keys of the store. The first element is the lifetime: IAM and lifecycle rules are by prefix.


def dataset_key(name: str, version: str, file: str) -> str:
    """`datasets/<name>/<version>/<file>`; `index.json` is written last."""
    return f"datasets/{name}/{version}/{file}"


def run_key(run_id: str, file: str) -> str:
    """`runs/<run_id>/<file>`: spec.json, config.json, heartbeat.json, result.json, done.json, failed.json, report/…

    `failed.json` names its attempt, and counts while there is no later one.
    """
    return f"runs/{run_id}/{file}"


def attempt_key(run_id: str, attempt: int) -> str:
    return run_key(run_id, f"attempts/{attempt}.json")


def metrics_key(run_id: str, attempt: int, file: str) -> str:
    return run_key(run_id, f"metrics/{attempt}/{file}")


def tensorboard_key(run_id: str, attempt: int, file: str) -> str:
    return run_key(run_id, f"tensorboard/{attempt}/{file}")


def checkpoint_key(run_id: str, file: str) -> str:
    """`checkpoints/<run_id>/<file>`: data/…, manifest/…, HEAD.json."""
    return f"checkpoints/{run_id}/{file}"


def manifest_key(run_id: str, step: int, attempt: int) -> str:
    """Sorts by step. The attempt is part of the name, so that a redone step never meets the manifest of a lost one."""
    return checkpoint_key(run_id, f"manifest/step-{step:08d}.{attempt}.json")


def snapshot_key(run_id: str, step: int, attempt: int) -> str:
    return checkpoint_key(run_id, f"data/step-{step:08d}.{attempt}.safetensors")


@dataclass(frozen=True, kw_only=True)
class Head:
    """`checkpoints/<run_id>/HEAD.json`, moved by compare-and-swap only: the fence and the commit point in one object.

    `newest`, `previous` and `best` are keys of manifests ("" where there is none yet) and are never retired.
    """

    attempt: int  # the attempt that owns the run; one that reads a higher number than its own has lost it
    newest: str = ""
    previous: str = ""
    best: str = ""

    def to_json(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    @classmethod
    def from_json(cls, body: bytes) -> Head:
        return cls(**json.loads(body))

    def advance(self, manifest: str, *, is_best: bool) -> Head:
        """The head after committing `manifest`; committing it once more changes at most whether it is the best."""
        if self.newest == manifest:
            return replace(self, best=manifest if is_best else self.best)
        return replace(self, newest=manifest, previous=self.newest, best=manifest if is_best else self.best)

    def keys(self) -> set[str]:
        return {self.newest, self.previous, self.best} - {""}


HEAD_FILE = "HEAD.json"
SUPERSEDED_TAG = ("superseded", "true")  # on S3 objects that a lifecycle rule may expire
