"""The input and the answer of a check of `preflight`."""

from __future__ import annotations

from dataclasses import dataclass, field

from infra.config import Installation, Output
from infra.operate.installation.offers import Offered
from infra.operate.planning.options import Request, recipe_of
from infra.operate.planning.plan import Plan
from infra.operate.planning.refusals import types_of
from infra.operate.planning.work import work_of
from infra.operate.runs import ExplainedBucket
from infra.operate.session import Aws, AwsError

INFRA = ".venv-infra/bin/python -m infra"  # for what no make target says


@dataclass(frozen=True)
class Finding:
    state: str  # ok, warning, failed, unknown, not needed
    said: str
    fix: str = ""  # one command


def ok(said: str) -> Finding:
    return Finding("ok", said)


def wrong(said: str, fix: str) -> Finding:
    return Finding("failed", said, fix)


def doubtful(said: str) -> Finding:
    """Something that lets a run start, and that the user may not want."""
    return Finding("warning", said)


def unneeded(said: str) -> Finding:
    return Finding("not needed", said)


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What the user wants to deploy and launch, and where."""

    aws: Aws
    installation: Installation
    request: Request
    plan: Plan | None = None  # where it was made already
    build: str = ""  # BUILD=: where a deploy builds the image
    outputs: dict[str, str] | AwsError = field(default_factory=dict)  # of the storage stack, {} if there is none
    offered: Offered | None = None  # None before AWS was asked

    @property
    def types(self) -> tuple[str, ...]:
        return types_of(self.request, self.installation)

    @property
    def market(self) -> str:
        return self.request.market or self.installation.market

    @property
    def data(self) -> str:
        """The data that the request or the recipe names. The bucket may have a prepared form of it."""
        if self.request.kind == "prepare":
            return self.request.data
        return self.request.data or work_of(recipe_of(self.request)).data

    @property
    def bucket(self) -> ExplainedBucket | None:
        """None if the storage stack is not deployed. Raises AwsError if AWS did not tell whether it is."""
        if isinstance(self.outputs, AwsError):
            raise self.outputs
        name = self.outputs.get(Output.BUCKET)
        return ExplainedBucket(self.aws.client("s3"), name) if name else None
