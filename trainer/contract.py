"""What the trainer and its surroundings agree on: the environment, the keys of the store, the exit codes.

Standard library only, so that the supervisor and the AWS app can read it at no cost. Nothing here does I/O.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from enum import IntEnum
from typing import Any

RUN_ID_RULE = r"[a-z0-9][a-z0-9_.-]{0,62}"


class Exit(IntEnum):
    """Exit codes of the container and of every `python -m trainer.*`; anything else is a crash."""

    FINISHED = 0
    INTERRUPTED = 75  # everything is committed: start again to continue
    HELD = 76  # another trainer holds the run
    USER = 78  # the user must change something


CRASH = 1  # the exit code where no other is known
HEARTBEAT_SECONDS = 30
MOST_SECONDS = 1e10  # of Unix time, in the year 2286: no clock of a run shows more
DRAIN_SECONDS = 90  # from a signal to the end of the last upload: within the 100 s of `docker stop`


class UserError(ValueError):
    """Something only the user can change: the message says the bad value, the rule and the fix. Exit code 78."""


class RefusedError(UserError):
    """This start is refused, while the run itself is fine: it is not marked as failed."""


class MachineError(Exception):
    """This machine cannot do the work, and another one may: the message says why. Exit code 1, as a crash."""


class LostRunError(Exception):
    """Another attempt owns the run: this one may commit nothing (more). Exit code 76."""


class Phase:
    """What the trainer is doing, as `heartbeat.json` tells it."""

    STARTING = "starting"
    STAGING = "staging"
    PREPARING = "preparing"  # of `trainer.prepare` on AWS
    COMPILING = "compiling"
    TRAINING = "training"
    EVALUATING = "evaluating"
    SAVING = "saving"
    WAITING_FOR_STORE = "waiting-for-store"


@dataclass(frozen=True, kw_only=True)
class RunEnv:
    """Where a run lives: one field for each environment variable. What a run computes is in its config."""

    store: str = field(metadata={"variable": "TRAINER_STORE"})  # s3://bucket/prefix or a directory
    run_id: str = field(metadata={"variable": "TRAINER_RUN_ID"})
    scratch_dir: str = field(metadata={"variable": "TRAINER_SCRATCH_DIR"})  # local, fast, may be lost
    data: str = field(default="", metadata={"variable": "TRAINER_DATA"})  # URI, folder, hub id; "": the recipe's own
    attempt: str = field(default="", metadata={"variable": "TRAINER_ATTEMPT"})  # set by the uploader: "1", "2", …
    secrets_dir: str = field(default="", metadata={"variable": "TRAINER_SECRETS_DIR"})  # has the file hf_token
    lease_seconds: str = field(default="60", metadata={"variable": "TRAINER_LEASE_SECONDS"})  # see Lease
    deadline: str = field(default="", metadata={"variable": "TRAINER_DEADLINE"})  # of the last save, in Unix seconds
    nodes: str = field(default="1", metadata={"variable": "TRAINER_NODES"})  # the most machines of the run
    rendezvous: str = field(default="", metadata={"variable": "TRAINER_RENDEZVOUS"})  # host:port of the one that leads
    address: str = field(default="", metadata={"variable": "TRAINER_ADDRESS"})  # of this machine, for the others
    node: str = field(default="", metadata={"variable": "TRAINER_NODE"})  # this machine's name in the run

    def to_environ(self) -> dict[str, str]:
        """The variables, passed through untouched; empty ones are left out."""
        return {f.metadata["variable"]: getattr(self, f.name) for f in fields(self) if getattr(self, f.name)}

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> RunEnv:
        """Read and validate; raises UserError naming the variable, its value and the rule."""
        given = {f.name: environ.get(f.metadata["variable"], "") for f in fields(cls)}
        values = {f.name: given[f.name] or (f.default if isinstance(f.default, str) else "") for f in fields(cls)}
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
        for name, least, example in (("lease_seconds", 1, "60"), ("deadline", 0, "1790000000, in Unix seconds")):
            number = re.fullmatch(r"[0-9]+(\.[0-9]*)?", values[name])
            if values[name] and not (number and float(values[name]) >= least):
                raise UserError(
                    f"{cls.variable(name)}={values[name]!r} is not a number of at least {least}: "
                    f"leave it unset, or write for example {example}"
                )
        return cls(**values)

    @classmethod
    def variable(cls, name: str) -> str:
        """The environment variable of a field."""
        return str(next(f.metadata["variable"] for f in fields(cls) if f.name == name))


def check_hub_address(address: str) -> str:
    """The address of the hub, from HF_ENDPOINT. Raises UserError for one to which a token would travel without TLS."""
    if not re.fullmatch(r"https://.+|http://(localhost|127(\.[0-9]{1,3}){3})(:[0-9]+)?(/.*)?", address):
        raise UserError(
            f"HF_ENDPOINT={address!r} is not asked, since a token would travel without TLS: use https://…, or "
            "http:// on 127.0.0.1 or localhost"
        )
    return address


# Keys of the store. The first element is the lifetime: IAM and lifecycle rules are by prefix.
RESERVED = ".store-"  # the files of a store that is a folder begin so; no part of a key may


def is_key(text: str) -> bool:
    """Whether a store takes it for a key, and a folder for a path below it."""
    return "\0" not in text and all(
        part not in ("", ".", "..") and not part.startswith(RESERVED) for part in text.split("/")
    )


def check_key(key: str) -> str:
    """The key. Raises ValueError if it is none."""
    if not is_key(key):
        raise ValueError(f"{key!r} is not a key: no part between '/' is empty, '.', '..', or begins with {RESERVED!r}")
    return key


def check_key_of(run_id: str, key: str) -> str:
    """The key of a file of the run. Raises ValueError if it is none, or if it lies elsewhere."""
    folders = (run_key(run_id, ""), checkpoint_key(run_id, ""))
    if not check_key(key).startswith(folders):
        raise ValueError(f"{key!r} is no key of run {run_id!r}: those begin with {' or '.join(folders)}")
    return key


def dataset_key(name: str, version: str, file: str) -> str:
    """`datasets/<name>/<version>/<file>`; `index.json` is written last."""
    return f"datasets/{name}/{version}/{file}"


def run_key(run_id: str, file: str) -> str:
    """`runs/<run_id>/<file>`: spec.json, config.json, heartbeat.json, result.json, done.json, failed.json, report/…

    `failed.json` names its attempt, and counts while there is no later one. `nodes/<node>.json`: a machine of several.
    """
    return f"runs/{run_id}/{file}"


def attempt_key(run_id: str, attempt: int) -> str:
    """`attempts/<n>.json`: attempt, started, machine (id, type, zone, market; {} outside EC2), has_data if it had it.
    Its end adds exit, message, ended, reason if interrupted, nodes, processes; without them it runs, or was killed.
    """
    return run_key(run_id, f"attempts/{attempt}.json")


def metrics_key(run_id: str, attempt: int, file: str) -> str:
    return run_key(run_id, f"metrics/{attempt}/{file}")


def tensorboard_key(run_id: str, attempt: int, file: str) -> str:
    return run_key(run_id, f"tensorboard/{attempt}/{file}")


def checkpoint_key(run_id: str, file: str) -> str:
    """`checkpoints/<run_id>/<file>`: data/…, manifest/…, HEAD.json."""
    return f"checkpoints/{run_id}/{file}"


def manifest_key(run_id: str, step: int, attempt: int) -> str:
    """Manifests sort by step. The attempt is in the name, since two attempts may save the same step."""
    return checkpoint_key(run_id, f"manifest/step-{step:08d}.{attempt}.json")


def snapshot_key(run_id: str, step: int, attempt: int) -> str:
    return checkpoint_key(run_id, f"data/step-{step:08d}.{attempt}.safetensors")


def parse_manifest_key(key: str) -> tuple[int, int] | None:
    """(attempt, step) of a manifest's key, None for any other key. Manifests are compared by this pair."""
    found = re.fullmatch(r"checkpoints/[^/]+/manifest/step-([0-9]{1,15})\.([0-9]{1,15})\.json", key)
    return (int(found[2]), int(found[1])) if found else None


def is_sha256(text: object) -> bool:
    """Whether this is a SHA-256 in hex digits."""
    return isinstance(text, str) and bool(re.fullmatch(r"[0-9a-f]{64}", text))


def seal(value: Mapping[str, Any]) -> bytes:
    """JSON with the CRC-32 of its text: otherwise one changed bit in a counter would go unnoticed."""
    text = json.dumps(dict(value))
    return json.dumps(json.loads(text) | {"crc32": zlib.crc32(text.encode())}, indent=1).encode()


def unseal(body: bytes) -> dict[str, Any]:
    """The value that `seal` was given. Raises ValueError if the bytes are not those that `seal` wrote."""
    try:
        value = json.loads(body)
        if not isinstance(value, dict) or "crc32" not in value:
            raise ValueError("it has no checksum")
        found = value.pop("crc32")
        if zlib.crc32(json.dumps(value).encode()) != found or seal(value) != body:
            raise ValueError("its checksum is wrong")
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    return value


@dataclass(frozen=True, kw_only=True)
class Lease:
    """`checkpoints/<run_id>/HEAD.json`, moved by compare-and-swap only: lease, fence and commit point in one object.

    The owner writes it at least every quarter of a lease. An attempt that wants the run watches it for a whole lease,
    by its own monotonic clock: if nothing has changed, the owner is dead. Wall clocks are never compared.
    `newest`, `previous` and `best` are keys of manifests, or "". What they name is never retired.
    """

    attempt: int  # the attempt that owns the run; an attempt that reads a higher number than its own has lost the run
    owner: str = ""  # the machine's name, for people; "" after a clean end, so that the next attempt need not wait
    since: float = 0.0  # Unix seconds, for people
    renewed: int = 0  # a counter, so that each renewal changes the object
    newest: str = ""
    previous: str = ""
    best: str = ""
    swept: int = 0  # what attempts before this one left unreferenced has been retired
    sha256: Mapping[str, str] = field(default_factory=dict)  # of what it names; older versions did not compute it
    rendezvous: str = ""  # host:port where the owner, the head, meets the other machines of the run

    def to_json(self) -> bytes:
        return seal({name: value for name, value in asdict(self).items() if value or name != "rendezvous"})  # as before

    @classmethod
    def from_json(cls, body: bytes) -> Lease:
        """Raises ValueError if the bytes are not those of a lease."""
        value = unseal(body)
        if value.keys() | {"sha256", "rendezvous"} != {f.name for f in fields(cls)}:
            raise ValueError(f"it was written by another version: {sorted(value)}")
        lease = cls(**value)
        counts, texts = (lease.attempt, lease.renewed, lease.swept), (lease.owner, lease.rendezvous, *lease.names())
        if any(type(count) is not int or count < 0 for count in counts) or any(type(text) is not str for text in texts):
            raise ValueError("its attempt, renewed and swept must be counts, and what it names must be texts")
        if type(lease.since) not in (int, float) or not 0 <= lease.since < MOST_SECONDS:
            raise ValueError("its since must be in Unix seconds")
        if type(lease.sha256) is not dict or not all(map(is_sha256, lease.sha256.values())):
            raise ValueError("its sha256 must have 64 hex digits of each manifest")
        return lease

    def of_run(self, run_id: str) -> Lease:
        """The lease. Raises ValueError if it names what is no manifest of this run."""
        here = checkpoint_key(run_id, "manifest/")
        if others := {key for key in self.keys() if not (key.startswith(here) and parse_manifest_key(key))}:
            raise ValueError(f"it names what is no manifest of the run: {sorted(others)}"[:400])
        return self

    def names(self) -> tuple[str, str, str]:
        return self.newest, self.previous, self.best

    def advance(self, manifest: str, sha256: str, *, is_best: bool) -> Lease:
        """The lease after a commit of `manifest`. A second commit of it can only make it the best."""
        best = manifest if is_best else self.best
        if self.newest == manifest:
            return replace(self, best=best)._knowing(manifest, sha256)
        return replace(self, newest=manifest, previous=self.newest, best=best)._knowing(manifest, sha256)

    def rewound(self, manifest: str, sha256: str, *, best: str, swept: int) -> Lease:
        """The lease after a rewind: what it named before is named no more, and attempts before `swept` keep all."""
        after = replace(self, newest=manifest, previous="", best=best, swept=max(self.swept, swept))
        return after._knowing(manifest, sha256)

    def _knowing(self, manifest: str, sha256: str) -> Lease:
        known = {**self.sha256, manifest: sha256}
        return replace(self, sha256={key: known[key] for key in sorted(self.keys()) if known.get(key)})

    def parent_of(self, manifest: str) -> dict[str, str]:
        """What this manifest, the next one or the newest, says of the one before."""
        before = self.previous if manifest == self.newest else self.newest
        return {"manifest": before, "sha256": self.sha256.get(before, "")} if before else {}

    def keys(self) -> set[str]:
        return {*self.names()} - {""}


HEAD_FILE = "HEAD.json"
SHEET_COLUMNS = 8  # of the pictures that `evaluations/<name>.jpg` of a run has
SUPERSEDED_TAG = ("superseded", "true")  # on S3 objects that a lifecycle rule may expire
