"""`launch`: start a run, or go on with one. It prints the cost before, and the next commands after.

`infra.operate.planning.plan` decides what to start. `infra.operate.planning.start` starts it.
"""

from __future__ import annotations

import argparse
import sys
import time

from infra.config import Installation, Output
from infra.operate.command_line import CommandLine
from infra.operate.commands.preflight import preflight
from infra.operate.installation.offers import offered_here
from infra.operate.planning import options
from infra.operate.planning.options import Request
from infra.operate.planning.placing import find_site
from infra.operate.planning.plan import Plan, make_plan, merge
from infra.operate.planning.refusals import check
from infra.operate.planning.shown import describe
from infra.operate.planning.start import Place, check_policy, is_running, start_run
from infra.operate.runs import open_bucket, read_ending
from infra.operate.session import Aws, ExitCode, explained
from infra.operate.terminal import ask, display, next_commands, show_line, styled
from infra.operate.text import usd
from trainer.contract import UserError

HELP = "start a run on the deployed installation, or go on with one (--run)"
INTERRUPTED = 130  # the shell's code for Ctrl-C


def configure(parser: CommandLine) -> None:
    options.configure(parser)


def run(aws: Aws, installation: Installation, given: argparse.Namespace) -> int:
    return launch(aws, installation, options.request_of(given))


def launch(aws: Aws, installation: Installation, request: Request, *, is_checked: bool = False) -> int:
    """Plan, run preflight unless `is_checked`, start the run, and print the next commands. Returns the exit code."""
    check(request, installation)
    installation = offered_here(aws, installation).installation
    place = find_place(aws, installation, request.kind)
    if is_running(aws.client, place, request.kind, request.run_id):
        bucket = open_bucket(aws, installation)
        if bucket and (ending := read_ending(bucket, request.run_id)) and ending.how == "failed":
            again = f"make stop, then make launch RUN={request.run_id}"
            show_line(f"{request.run_id} has failed ({ending.message}), and its machine is still there: {again}")
            return ExitCode.DONE
        show_line(f"{request.run_id} is running already")
        if options.changes_limits(request):
            show_line(f"to change its limits: make stop, then make launch RUN={request.run_id} with the new ones")
        _next(request.run_id)
        return ExitCode.DONE
    plan = make_plan(aws, installation, open_bucket(aws, installation), request, time.time())
    if plan.existing:
        confirm_inherited(plan)
        request = merge(request, plan.existing)
    check_policy(place, plan.spec)
    if not is_checked and not preflight(aws, installation, request, plan, deploys=False):
        return ExitCode.PREFLIGHT
    spec, types, etag = plan.spec, [one.type for one in plan.offered], plan.existing.etag if plan.existing else ""
    site, where = find_site(aws, place, plan)
    display("", describe(plan), *where, f"\nstarting {spec.run_id}")
    try:
        with explained("the launch"):
            start_run(aws.client, place, spec, types, site=site, replaces=etag)
    except KeyboardInterrupt:
        show_line(
            f"\ninterrupted: make launch RUN={spec.run_id} starts it all the same, make stop makes sure that nothing "
            "runs",
            file=sys.stderr,
        )
        return INTERRUPTED
    display(styled(f"{'goes on' if plan.existing else 'launched'}: {spec.run_id}", "green"))
    listed = spec.nodes * max(spec.prices[one.type] for one in plan.offered)
    machines = "" if spec.nodes == 1 else f"{spec.nodes} times "
    show_line(f"while it runs: at most {usd(listed)} an hour, {machines}the list price of the dearest type")
    _next(spec.run_id)
    return ExitCode.DONE


def confirm_inherited(plan: Plan) -> None:
    """Ask for limits of the run's file that exceed the defaults: others may have written it. Raises UserError."""
    if not plan.inherited:
        return
    again = f"RUN={plan.spec.run_id} {plan.inherited}"
    said = (
        f"RUN={plan.spec.run_id} has {plan.inherited} in the bucket, above the defaults of "
        f"BUDGET={plan.usual_usd:g} HOURS={plan.usual_hours:.0f}"
    )
    if not sys.stdin.isatty():
        raise UserError(f"{said}, and there is no terminal to ask at: give what you mean, make launch {again}")
    if ask(f"{said}\ngo on with {plan.inherited}? [y/N] ").lower() not in ("y", "yes"):
        raise UserError(f"not confirmed: nothing was started; give what you mean, make launch {again}")


def find_place(aws: Aws, installation: Installation, kind: str) -> Place:
    """Where the run can start. Raises UserError if the installation is not deployed."""
    storage, training = aws.outputs(installation.storage_stack), aws.outputs(installation.training_stack)
    if Output.BUCKET not in storage or Output.SCHEDULER_ROLE not in training:
        missing = installation.training_stack if Output.BUCKET in storage else installation.storage_stack
        fix = "`make deploy` deploys and launches" if kind == "train" else "`make deploy NO_LAUNCH=1` first"
        raise UserError(f"the stack {missing} is not deployed in {aws.region}: {fix}")
    return Place(
        installation=installation,
        bucket=storage[Output.BUCKET],
        scheduler_role=training[Output.SCHEDULER_ROLE],
        subnet_ids=tuple(filter(None, training.get(Output.SUBNETS, "").split(","))),
        placement_group=training.get(Output.PLACEMENT_GROUP, ""),
    )


def _next(run_id: str) -> None:
    next_commands(
        (f"make status RUN={run_id}", "step, images/s, dollars, and why no machine comes"),
        (f"make logs RUN={run_id}", "follow the log"),
        ("make stop", "stop and keep everything"),
    )
