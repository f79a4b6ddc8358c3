"""What lacks before there are credentials and a region, in the order of a first hour. Nothing here asks AWS."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from infra.operate.checks.account import HOME_REGION
from infra.operate.checks.finding import Finding, Wanted
from infra.operate.credentials import SIGN_UP, find_login
from infra.operate.installation import cdk
from infra.operate.planning import catalog, datasets

ACCOUNT = "AWS account"
FIRST_HOUR = (ACCOUNT, "vCPU quota", "credentials", "region", "CDK bootstrap", "token")
WORDS: Mapping[str, str] = MappingProxyType(
    {
        ACCOUNT: "on the paid plan: the free plan starts no machine with a GPU",
        "vCPU quota": "0 for GPUs in a new account, and AWS takes hours or days to raise it: ask now, in the browser",
        "CDK bootstrap": "once for each account and region",
        "token": "of Hugging Face, for data that is gated",
    }
)


def first_hour(wanted: Wanted, found: Mapping[str, Finding]) -> dict[str, Finding]:
    """All findings, those of the first hour in their order. `found` has what could be checked, by name.

    A step that could not be checked keeps its state, and gets the command of that step.
    """
    commands = {
        ACCOUNT: f"open {SIGN_UP}", "vCPU quota": f"open {_quota_page(wanted)}",
        "CDK bootstrap": _bootstrap(wanted), "token": "make secret" if datasets.is_hub_id(wanted.data) else "",
    }  # fmt: skip
    if found["credentials"].state == "failed" and find_login().is_configured:
        return dict(found)  # there is an account, and its login alone lacks
    account = {} if found["credentials"].state == "ok" else {ACCOUNT: Finding("unknown", WORDS[ACCOUNT])}
    steps = {name: one for name in FIRST_HOUR if (one := {**account, **found}.get(name))}
    told = {name: replace(one, fix=one.fix or commands.get(name, "")) for name, one in steps.items()}
    return {**told, **{name: one for name, one in found.items() if name not in told}}


def hints(found: Mapping[str, Finding]) -> list[str]:
    """What one must know of the steps that are not done yet."""
    return [f"{name}: {words}" for name, words in WORDS.items() if name in found and found[name].state != "ok"]


def _quota_page(wanted: Wanted) -> str:
    kind = catalog.quota_of(wanted.types[0])
    region = wanted.aws.session.region_name or HOME_REGION
    code = kind.code(wanted.market) if kind else ""
    return f"https://{region}.console.aws.amazon.com/servicequotas/home/services/ec2/quotas/{code}"


def _bootstrap(wanted: Wanted) -> str:
    account = "$(aws sts get-caller-identity --query Account --output text)"
    return f"{cdk.shell_command('bootstrap')} aws://{account}/{wanted.aws.session.region_name or HOME_REGION}"
