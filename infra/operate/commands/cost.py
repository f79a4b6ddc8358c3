"""`cost`: what a run would cost, what it has cost, what stands costs while nothing runs. Changes nothing.

Spend is the guard's tally of machine-seconds, as EC2 tells them; the attempts ledger, written by the machines, is shown
beside it and counts nowhere.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

from infra.config import Installation
from infra.operate.command_line import CommandLine
from infra.operate.installation.standing import Kept, kept_data, kept_image, print_kept
from infra.operate.planning import options
from infra.operate.planning.catalog import HOURS_PER_MONTH
from infra.operate.planning.plan import describe, make_plan
from infra.operate.runs import Bucket, active_run, choose_run, open_bucket, read_spec, read_spend
from infra.operate.session import Aws, ExitCode, explained
from infra.operate.terminal import next_commands, say, styled, table
from infra.operate.text import date_time, duration, size, usd
from infra.run.spec import Spec
from infra.run.spend import Spend
from trainer.contract import run_key

HELP = "estimate before, spend after, and what is paid while nothing runs"
# List prices of us-east-1: aws.amazon.com/cloudwatch/pricing, /lambda/pricing
ALARM_USD_PER_MONTH = 0.10
LOGS_USD_PER_GB_MONTH = 0.03
LAMBDA_USD_PER_REQUEST = 0.20 / 1e6
LAMBDA_USD_PER_GB_SECOND = 0.0000166667
TICKS_PER_MONTH = HOURS_PER_MONTH * 60
TICK_GB_SECONDS = 0.25  # 256 MB for a second: an assumption, the guard was not yet timed on AWS


def configure(parser: CommandLine) -> None:
    options.configure(parser)


def run(aws: Aws, installation: Installation, given: argparse.Namespace) -> int:
    request = options.request_of(given)
    bucket = open_bucket(aws, installation)
    if not given.run_id:
        plan = make_plan(aws, installation, bucket, options.without_limits(request), time.time())
        title = f"estimate: {plan.spec.recipe}, {plan.spec.data or 'the data of the recipe'}"
        say(styled(title, "bold"), describe(plan), extras(plan.spec))
    if bucket and (run_id := chosen(aws, installation, bucket, given.run_id)):
        say(styled(f"\nspent: {run_id}", "bold"))
        print_spent(bucket, run_id, time.time())
    if bucket:
        say(styled("\nwhile nothing runs", "bold"))
        print_kept(kept_data(bucket, installation) + standing(aws, installation))
    next_commands(
        ("make cost RUN=…", "what another run has cost"),
        ("make launch BUDGET=…", "stop at so many dollars"),
        ("make destroy", "remove all but the data and the token"),
    )
    return ExitCode.DONE


def chosen(aws: Aws, installation: Installation, bucket: Bucket, asked: str) -> str:
    """ "" where there is no run yet."""
    if not asked and not bucket.runs():
        return ""
    return choose_run(bucket, asked, active_run(aws, installation))


def extras(spec: Spec) -> str:
    hourly = f"${spec.extras_usd_per_hour:.3f} an hour"
    return f"on top    {hourly} for disk and public address, by list prices; the budget counts them, too"


def print_spent(bucket: Bucket, run_id: str, now: float) -> None:
    spec, spend = read_spec(bucket, run_id), read_spend(bucket, run_id)
    rows = [
        (machine.id, machine.type, machine.zone, machine.market, date_time(machine.launched),
         date_time(machine.ended) if machine.ended else "still there",
         duration((machine.ended or spend.until(now)) - machine.launched), f"{machine.usd_per_hour:.4f}",
         f"{machine.usd(spend.until(now)):.2f}")
        for machine in spend.machines
    ]  # fmt: skip
    if rows:
        say(table(rows, ("machine", "type", "zone", "market", "from", "to", "for", "$/hour", "dollars")))
    else:
        print("no machine yet")
    print(total(spec, spend, now))
    attempts = [bucket.read_json(found.key) for found in bucket.list(run_key(run_id, "attempts/"))]
    if attempts:
        ledger = sorted(attempts, key=lambda one: one.get("attempt", 0))
        header = ("attempt", "machine", "type", "market", "from", "for", "exit")
        say("\nas the machines tell it (attempts):", table(map(attempt_row, ledger), header))


def total(spec: Spec | None, spend: Spend, now: float) -> str:
    said = f"together {usd(spend.usd(now))}"
    if rate := spend.usd_per_hour():
        said += f", now {usd(rate)} an hour"
    return said + (f", of {usd(spec.budget_usd)}" if spec else "")


def attempt_row(attempt: dict[str, Any]) -> tuple[str, ...]:
    machine = attempt.get("machine") or {}
    machine = machine if isinstance(machine, dict) else {"id": str(machine)}
    started, ended = float(attempt.get("started", 0)), float(attempt.get("ended", 0))
    lasted = duration(ended - started) if ended else "no end was told"
    return (
        str(attempt.get("attempt", "")), str(machine.get("id", "")), str(machine.get("type", "")),
        str(machine.get("market", "")), date_time(started), lasted, str(attempt.get("exit", "")),
    )  # fmt: skip


def standing(aws: Aws, installation: Installation) -> list[Kept]:
    """What the training stack costs while its groups are empty."""
    if not aws.outputs(installation.training_stack):
        return []
    with explained("the log groups"):
        groups = aws.client("logs").describe_log_groups(logGroupNamePrefix=installation.log_group)["logGroups"]
    stored = sum(group.get("storedBytes", 0) for group in groups)
    guard = TICKS_PER_MONTH * (LAMBDA_USD_PER_REQUEST + TICK_GB_SECONDS * LAMBDA_USD_PER_GB_SECOND)
    return [
        *kept_image(aws, installation),
        Kept("guard", installation.guard_function, "a tick a minute", guard),
        Kept("alarm", "the guard does not run", "", ALARM_USD_PER_MONTH),
        Kept("logs", installation.log_group, size(stored), stored / 1e9 * LOGS_USD_PER_GB_MONTH),
    ]
