"""What nobody had seen on AWS, as the docs list it, and how a rehearsal answers: seen or not seen, and by what."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

# docs/aws.md has the same sentences under "What was never tried".
UNTRIED: Mapping[str, str] = MappingProxyType(
    {
        "iam": "The roles at work: machine, container, guard.",
        "cpu": "The machine image on a CPU machine, which prepares data.",
        "spot": "A GPU machine from the spot market.",
        "gpu": "The machine image with its GPU, under the container's read-only root.",
        "boot": "How long a boot and a pull of the image take.",
        "resume": "A machine that is lost, and the next one that goes on.",
        "bits": "The same bits after it, on the same type.",
        "logs": "Every line of the container in the log, once.",
        "guard": "The guard's own stop, at the budget.",
        "notice": "A spot reclaim with its notice of two minutes.",
        "schedule": "The schedule that stops a run at its deadline.",
        "mail": "The delivery of mails.",
        "rollback": "CloudFormation's rollback.",
    }
)
OUT_OF_REACH: Mapping[str, str] = MappingProxyType(
    {
        "notice": "rehearse with FIS=1: AWS then sends one",
        "schedule": "nobody waits for the deadline: the guard stops the run before",
        "mail": "a mail cannot be seen from here: look into the mailbox of `email` in cdk.json",
        "rollback": "nothing failed to deploy",
    }
)
NOT_REACHED = "the rehearsal did not come so far"


@dataclass(frozen=True)
class Verdict:
    """Whether it was seen, and what was seen, or why it was not."""

    is_seen: bool
    said: str


def answers_of(known: Mapping[str, Verdict]) -> dict[str, Verdict]:
    """An answer to every question, in the order of the docs."""
    return {name: known.get(name) or Verdict(False, OUT_OF_REACH.get(name, NOT_REACHED)) for name in UNTRIED}
