"""`cost`: what a run would cost, what it has cost, and what the installation costs while nothing runs. Changes nothing.

The guard counts the spend, from the machine-seconds that EC2 reports. The attempts, which the machines write
themselves, are only shown beside it.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from botocore.exceptions import NoCredentialsError, NoRegionError

from infra.config import OLD_SUPERSEDED_DAYS, SUPERSEDED_DAYS, Installation
from infra.operate.command_line import CommandLine
from infra.operate.installation.offers import offered_here
from infra.operate.installation.standing import S3_USD_PER_GB_MONTH, Kept, kept_data, kept_image, print_kept
from infra.operate.planning import options
from infra.operate.planning.catalog import HOURS_PER_MONTH
from infra.operate.planning.estimate import Estimate
from infra.operate.planning.plan import make_plan
from infra.operate.planning.shown import describe
from infra.operate.runs import (
    ExplainedBucket,
    active_run,
    choose_run,
    open_bucket,
    read_attempts,
    read_spec,
    read_spend,
)
from infra.operate.session import Aws, AwsError, ExitCode, explained
from infra.operate.terminal import display, display_json, next_commands, show_line, styled, table
from infra.operate.text import date_time, duration, size, usd
from infra.run.spec import Spec
from infra.run.spend import Spend

NOBODY = (NoCredentialsError, NoRegionError)  # there is no account, or not yet
HELP = "estimate before, spend after, and what is paid while nothing runs"
# List prices of us-east-1: aws.amazon.com/cloudwatch/pricing, /lambda/pricing, /s3/pricing
ALARM_USD_PER_MONTH = 0.10
ALARMS = 5  # the guard, the stop schedules, log lines, traffic, the bucket's size
LOGS_USD_PER_GB_MONTH = 0.03
INGESTED_USD_PER_GB = 0.50  # a log line when it comes in
PUT_USD = 0.005 / 1000
LAMBDA_USD_PER_REQUEST = 0.20 / 1e6
LAMBDA_USD_PER_GB_SECOND = 0.0000166667
INGESTED_DAYS = 30
TICKS_PER_MONTH = HOURS_PER_MONTH * 60
TICK_GB_SECONDS = 0.25  # 256 MB for a second: an assumption, the guard was not yet timed on AWS
# What a ResNet-50 with momentum and average stores while it trains (docs/results.md, docs/guarantees.md)
CHECKPOINT_GB = 0.307
CHECKPOINTS_PER_HOUR = 3600 / 45
CHECKPOINT_REQUESTS = 16 + 2 + 2  # to save it, two tags later, and two files of metrics
SMALL_WRITES_PER_HOUR = 3600 / 15 + 3600 / 30 + 2 * 3600 / 30  # HEAD.json as a lease, heartbeat, metrics
KEPT_DAYS = SUPERSEDED_DAYS + 0.5 + OLD_SUPERSEDED_DAYS + 1  # S3 counts from the next midnight on, each time


def configure(parser: CommandLine) -> None:
    options.configure(parser)
    parser.json_option()


def run(aws: Aws, installation: Installation, given: argparse.Namespace) -> int:
    request, as_json = options.request_and_json(given)
    (bucket, trouble), now = find_bucket(aws, installation), time.time()
    plan = None
    if not (trouble or request.run_id):
        installation = offered_here(aws, installation).installation
    if not request.run_id:
        plan = make_plan(None if trouble else aws, installation, bucket, options.without_limits(request), now)
    if plan and not as_json:  # at once: what comes after may be refused
        title = f"estimate: {plan.spec.recipe}, {plan.spec.data or 'the data of the recipe'}"
        display(styled(title, "bold"), describe(plan), extras(plan.spec))
    if trouble and (request.run_id or not isinstance(trouble.__cause__, NOBODY)):
        raise trouble
    run_id = chosen(aws, installation, bucket, request.run_id) if bucket else ""
    kept = kept_data(bucket, installation) + standing(aws, installation) if bucket else []
    if as_json:
        spent = spent_document(bucket, run_id, now) if bucket and run_id else None
        display_json({
            "estimate": estimate_document(plan.spec, plan.offered) if plan else None, "spent": spent,
            "standing": None if trouble else [
                {"what": one.what, "name": one.name, "usd_per_month": one.usd_per_month} for one in kept
            ],
        })  # fmt: skip
        return ExitCode.DONE
    if trouble:
        show_line(f"\nwhat runs have cost, and what is paid while nothing runs, only AWS can tell. {trouble}")
        next_commands(("make preflight", "what a first run needs"), ("make recipes", "what other recipes would cost"))
        return ExitCode.DONE
    if bucket and run_id:
        display(styled(f"\nspent: {run_id}", "bold"))
        print_spent(bucket, run_id, now)
    if kept:
        display(styled("\nwhile nothing runs", "bold"))
        print_kept(kept)
    next_commands(
        ("make cost RUN=…", "what another run has cost"),
        ("make launch BUDGET=…", "stop at so many dollars"),
        ("make destroy", "remove all but the data and the token"),
    )
    return ExitCode.DONE


def find_bucket(aws: Aws, installation: Installation) -> tuple[ExplainedBucket | None, AwsError | None]:
    """The installation's bucket, None before the first deploy; or why AWS does not tell whether there is one."""
    try:
        return open_bucket(aws, installation), None
    except AwsError as error:
        return None, error


def estimate_document(spec: Spec, offered: Sequence[Estimate]) -> dict[str, Any]:
    """What `--json` prints of an estimate. Fields are added, never renamed."""
    return {
        "recipe": spec.recipe, "data": spec.data, "market": spec.market, "budget_usd": spec.budget_usd,
        "hours": spec.hours, "nodes": spec.nodes, "extras_usd_per_hour": spec.extras_usd_per_hour,
        "bucket_usd_per_hour": bucket_usd_per_hour(spec), "prices_source": spec.prices_source,
        "types": [asdict(one) for one in offered],
    }  # fmt: skip


def spent_document(bucket: ExplainedBucket, run_id: str, now: float) -> dict[str, Any]:
    """What `--json` prints of a run's spend. A machine whose `ended` is None still bills."""
    spec, spend = read_spec(bucket, run_id), read_spend(bucket, run_id)
    return {
        "run": run_id, "budget_usd": spec.budget_usd if spec else None,
        "usd": spend.usd(now), "usd_per_hour": spend.usd_per_hour(),
        "machines": [
            {"id": one.id, "type": one.type, "zone": one.zone, "market": one.market, "launched": one.launched,
             "ended": one.ended or None, "usd_per_hour": one.usd_per_hour, "usd": one.usd(spend.until(now))}
            for one in spend.machines
        ],
        "attempts": read_attempts(bucket, run_id),
    }  # fmt: skip


def chosen(aws: Aws, installation: Installation, bucket: ExplainedBucket, asked: str) -> str:
    """The run that the user asked for, else the active or the newest one. Returns "" if there is no run yet."""
    if not asked and not bucket.runs():
        return ""
    return choose_run(bucket, asked, active_run(aws, installation))


def extras(spec: Spec) -> str:
    hourly = f"${spec.nodes * spec.extras_usd_per_hour:.3f} an hour"
    each = "" if spec.nodes == 1 else f" of {spec.nodes} machines"
    said = f"of it     {hourly} for disk and public address{each}, by list prices; the budget counts them, too"
    if stored := bucket_usd_per_hour(spec):
        said += f"\non top    ${stored:.3f} an hour for checkpoints in the bucket; the budget does not count them"
    return said


def bucket_usd_per_hour(spec: Spec) -> float:
    """Dollars in S3 for an hour of training a ResNet-50: checkpoints until they have expired, and requests."""
    if spec.kind != "train":
        return 0.0
    stored = CHECKPOINTS_PER_HOUR * CHECKPOINT_GB * KEPT_DAYS * 24 / HOURS_PER_MONTH * S3_USD_PER_GB_MONTH
    requests = CHECKPOINTS_PER_HOUR * CHECKPOINT_REQUESTS + SMALL_WRITES_PER_HOUR
    return stored + requests * PUT_USD


def print_spent(bucket: ExplainedBucket, run_id: str, now: float) -> None:
    spec, spend = read_spec(bucket, run_id), read_spend(bucket, run_id)
    rows = [
        (machine.id, machine.type, machine.zone, machine.market, date_time(machine.launched),
         date_time(machine.ended) if machine.ended else "still there",
         duration((machine.ended or spend.until(now)) - machine.launched), f"{machine.usd_per_hour:.4f}",
         f"{machine.usd(spend.until(now)):.2f}")
        for machine in spend.machines
    ]  # fmt: skip
    if rows:
        display(table(rows, ("machine", "type", "zone", "market", "from", "to", "for", "$/hour", "dollars")))
    else:
        show_line("no machine yet")
    show_line(total(spec, spend, now) + (f", with up to {spec.nodes} nodes at once" if spec and spec.nodes > 1 else ""))
    if ledger := read_attempts(bucket, run_id):
        header = ("attempt", "machine", "type", "market", "from", "for", "exit")
        display("\nattempts, as the machines recorded them:", table(map(attempt_row, ledger), header))


def total(spec: Spec | None, spend: Spend, now: float) -> str:
    said = f"together {usd(spend.usd(now))}"
    if rate := spend.usd_per_hour():
        said += f", now {usd(rate)} an hour"
    return said + (f", of {usd(spec.budget_usd)}" if spec else "")


def attempt_row(attempt: dict[str, Any]) -> tuple[str, ...]:
    machine, started, ended = attempt.get("machine") or {}, attempt.get("started", 0), attempt.get("ended", 0)
    machine = machine if isinstance(machine, dict) else {"id": str(machine)}
    lasted = duration(ended - started) if ended else "no end recorded"
    return (
        str(attempt.get("attempt", "")), machine.get("id", ""), machine.get("type", ""), machine.get("market", ""),
        date_time(started), lasted, attempt.get("problem", str(attempt.get("exit", ""))),
    )  # fmt: skip


def standing(aws: Aws, installation: Installation) -> list[Kept]:
    """What the training stack costs while its groups are empty."""
    if not aws.outputs(installation.training_stack):
        return []
    with explained("the log groups"):
        groups = aws.client("logs").describe_log_groups(logGroupNamePrefix=installation.log_group)["logGroups"]
    stored = sum(group.get("storedBytes", 0) for group in groups)
    came_in = ingested_bytes(aws, installation.log_group, time.time())
    guard = TICKS_PER_MONTH * (LAMBDA_USD_PER_REQUEST + TICK_GB_SECONDS * LAMBDA_USD_PER_GB_SECOND)
    return [
        *kept_image(aws, installation),
        Kept("guard", installation.guard_function, "a tick a minute", guard),
        Kept(
            "alarms", "guard, schedules, log lines, traffic, bucket", f"{ALARMS} of them", ALARMS * ALARM_USD_PER_MONTH
        ),
        Kept("logs", installation.log_group, size(stored), stored / 1e9 * LOGS_USD_PER_GB_MONTH),
        Kept("log lines", f"new in the last {INGESTED_DAYS} days", size(came_in), came_in / 1e9 * INGESTED_USD_PER_GB),
    ]


def ingested_bytes(aws: Aws, log_group: str, now: float) -> float:
    """What came into the log group within INGESTED_DAYS, as CloudWatch counts it."""
    with explained("the log lines that came in"):
        found = aws.client("cloudwatch").get_metric_statistics(
            Namespace="AWS/Logs", MetricName="IncomingBytes", Statistics=["Sum"], Period=86400,
            Dimensions=[{"Name": "LogGroupName", "Value": log_group}],
            StartTime=datetime.fromtimestamp(now - INGESTED_DAYS * 86400, UTC),
            EndTime=datetime.fromtimestamp(now, UTC),
        )["Datapoints"]  # fmt: skip
    return float(sum(point["Sum"] for point in found))
