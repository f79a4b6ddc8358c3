"""Young deaths: machines that end again and again before they have ever given a heartbeat. There is no I/O here.

Such a machine need not be hung, nor does it set its group to 0: it powers off, or EC2 cannot start it. Its group would
replace it until the budget is spent.
"""

from __future__ import annotations

from infra.run.spend import Machine, Spend

YOUNG_DEATHS = 4  # so many stop the run: as many machines as a run that hangs may have
# Ends that say nothing against the next machine. AWS took back a spot machine, which costs nothing in its first hour
# (AWS, "Billing for interrupted Spot Instances"), or had none to give. Budget and deadline bound these.
NO_FAULT = ("Server.Spot", "Server.InsufficientInstanceCapacity")
ENDS = {  # EC2's StateReason: what it says of a machine that never gave a heartbeat
    "Client.InstanceInitiatedShutdown": "they powered off: boot reached no metadata service or no bucket, or crashed",
    "Client.InternalError": "EC2 could not start them: perhaps Auto Scaling may not use the KMS key of their disks",
    "Client.UserInitiatedShutdown": "the guard, Auto Scaling or a person terminated them",
}


def young_deaths(spend: Spend, deadline: float, heartbeat: float) -> list[Machine]:
    """The machines of the launch with this deadline that were launched after the newest heartbeat and have ended.

    Only ends whose reason EC2 told count, and none of NO_FAULT: what is unknown is no reason.
    """
    return [
        machine
        for machine in spend.machines
        if machine.ended and machine.deadline == deadline and machine.launched > heartbeat
        if machine.end and not machine.end.startswith(NO_FAULT)
    ]


def explain_deaths(died: list[Machine], run_id: str) -> str:
    """What the ends have in common, and where to look."""
    lives = sorted((machine.ended - machine.launched) / 60 for machine in died)
    ends = sorted({machine.end for machine in died})
    why = "; ".join(f"{end}: {ENDS[end]}" if end in ENDS else end for end in ends)
    newest = max(died, key=lambda machine: machine.launched)
    return (
        f"{len(died)} machines ended without a heartbeat, after {lives[0]:.1f} to {lives[-1]:.1f} minutes ({why}). "
        f"Look at `make logs RUN={run_id}`, and within the hour at "
        f"`aws ec2 get-console-output --latest --output text --instance-id {newest.id}`"
    )
