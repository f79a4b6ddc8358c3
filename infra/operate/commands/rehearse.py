"""`rehearse`: the whole path on your own account, for the price of a coffee, and nothing of it is left.

It deploys an installation of its own, prepares and trains digits, loses a machine, lets the guard stop the run, and
removes everything again: also after Ctrl-C, after an error, and when an earlier rehearsal was cut off.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from infra.config import Installation
from infra.operate.command_line import CommandLine
from infra.operate.commands import destroy
from infra.operate.commands.deploy import deploy_stacks
from infra.operate.commands.launch import launch
from infra.operate.commands.preflight import preflight
from infra.operate.installation import leftovers
from infra.operate.installation.standing import kept_buckets
from infra.operate.installation.token import find_secret
from infra.operate.planning.options import by_commas
from infra.operate.planning.prices import find_prices
from infra.operate.rehearsal.acts import Rehearsal
from infra.operate.rehearsal.cleaning import heard_signals, mute_if_unheard
from infra.operate.rehearsal.notice import forget_notice
from infra.operate.rehearsal.record import Record
from infra.operate.rehearsal.scope import Scope, make_scope, rehearsal_of
from infra.operate.session import Aws, AwsError, ExitCode, explained
from infra.operate.terminal import ask, display, show_line
from infra.operate.text import usd
from trainer.contract import UserError

HELP = "deploy, prepare, train, lose a machine, be stopped and destroy, with digits, for at most $0.50; writes a report"
REPORT_FILE = Path("rehearsal.json")
NOT_GOOD = 1
# Of the cleaning: AWS may not answer, or a bucket may just have got another object.
CLEANING_TRIES, CLEANING_PAUSE_SECONDS = 3, 5.0


def configure(parser: CommandLine) -> None:
    parser.option("types", "only these GPU types, by ',' (default: the cheapest now)", type=by_commas, default=())
    parser.option("fis", "also let AWS send a real notice of two minutes (up to 30 cents more)", action="store_true")
    parser.option("yes", "do not ask before it spends", action="store_true")


def run(aws: Aws, installation: Installation, given: argparse.Namespace) -> int:
    rehearsed, record = rehearsal_of(installation), Record(account=aws.account)  # a wrong login ends it here
    types = {*given.types, *rehearsed.instance_types.split(","), *rehearsed.prepare_instance_types.split(",")}
    scope = make_scope(rehearsed, given.types, find_prices(aws, sorted(types)), has_notice=given.fis)
    earlier = what_is_left(aws, rehearsed)
    confirm(aws, scope, earlier, is_asked=not given.yes)
    record.facts |= {"region": aws.region, "types": list(scope.types), "most_usd": round(scope.most_usd, 2)}
    with heard_signals() as signals:
        if earlier:
            show_line("\nan earlier rehearsal was cut off: it is cleaned up first")
            with signals.put_off():
                clean_up(aws, scope.installation)
        if not preflight(aws, rehearsed, scope.training("", 0.0), None, deploys=True):
            return ExitCode.PREFLIGHT
        rehearsal = Rehearsal(
            aws=aws, scope=scope, record=record, deploy=lambda one: deploy_stacks(aws, one),
            launch=lambda one, request: launch(aws, one, request, is_checked=True),
        )  # fmt: skip
        try:
            rehearsal.perform()
            record.is_whole = True
        finally:
            signals.is_cleaning = True
            clean_and_tell(aws, rehearsal)
    return ExitCode.DONE if record.is_good else ExitCode.LEFT_OVERS if record.left else NOT_GOOD


def what_is_left(aws: Aws, installation: Installation) -> list[str]:
    """What AWS has of a rehearsal, the data included."""
    found = [*leftovers.find(aws, installation), *leftovers.stack(aws, installation.storage_stack)]
    names = [f"bucket {bucket.name}" for bucket in kept_buckets(aws, installation)]
    with explained(f"the secret {installation.secret_name}"):
        if find_secret(aws, installation.secret_name):
            names.append(f"secret {installation.secret_name}")
    return [f"{one.service} {one.id}" for one in found] + names


def confirm(aws: Aws, scope: Scope, earlier: list[str], *, is_asked: bool) -> None:
    """Say what it does and the most that it costs, and ask. Raises UserError without a yes."""
    name = scope.installation.name
    show_line(
        f"the rehearsal deploys {name} in account {aws.account}, {aws.region}, and removes it again: no other "
        "installation is touched.\n"
        f"It prepares digits on a CPU machine and trains them on {' or '.join(scope.types)} from the spot market. It "
        "ends that machine, and watches the next one go on.\n"
        f"It costs at most {usd(scope.most_usd)}, and takes about half an hour; the image is built and pushed before, "
        f"if it is not there. No machine lives longer than {scope.minutes:.0f} minutes."
    )
    if earlier:
        show_line(
            f"An earlier rehearsal left {len(earlier)} things, among them {', '.join(earlier[:3])}: they are removed "
            "first. If somebody else rehearses in this account now, this ends that rehearsal."
        )
    if not is_asked:
        return
    if not sys.stdin.isatty():
        raise UserError("rehearse asks before it spends, and there is no terminal: add --yes (make: YES=1)")
    if ask("go on? [y/N] ").lower() not in ("y", "yes"):
        raise UserError("not confirmed: nothing was changed" + ("; what is left is still there" if earlier else ""))


def clean_and_tell(aws: Aws, rehearsal: Rehearsal) -> None:
    """Clean up, ask AWS what is left, and tell what was seen. Raises AwsError if AWS does not answer."""
    mute_if_unheard()
    record, installation = rehearsal.record, rehearsal.scope.installation
    show_line("\ncleaning up …")
    try:
        clean_up(aws, installation)
        record.left = what_is_left(aws, installation)
    finally:
        record.write(REPORT_FILE)
        display("", record.shown())
        if record.left:
            show_line(f"\nleft over: {', '.join(record.left)}")
        elif record.left is None:
            show_line(
                f"\nNOT CLEANED UP: the guards end its machines by themselves, {rehearsal.scope.minutes:.0f} minutes "
                "after the first launch at the latest; `make rehearse` again removes the rest first"
            )
        else:
            show_line("\nnothing is left of the rehearsal, says AWS")
        show_line(
            f"{REPORT_FILE}: what was seen, in {record.took()}; it names no account: send it to the project, please"
        )


def clean_up(aws: Aws, installation: Installation) -> None:
    """Destroy the installation with its data. Raises AwsError if AWS does not answer for too long."""
    for attempt in range(CLEANING_TRIES):
        try:
            forget_notice(aws, installation)
        except AwsError as error:  # costs nothing, and what is left of it shows in what_is_left: the role goes last
            show_line(f"{error}; what bills is removed all the same")
        try:
            destroy.run(aws, installation, argparse.Namespace(purge=True, yes=True))
            return
        except AwsError as error:
            if attempt + 1 == CLEANING_TRIES:
                raise
            show_line(f"{error}; trying again")
            time.sleep(CLEANING_PAUSE_SECONDS)
