"""What goes wrong on machines."""

from __future__ import annotations

from dataclasses import dataclass

RECLAIMED = "Server.SpotInstanceTermination"
# Why a machine ends young: (its life in seconds, EC2's code for the end).
OFF = "Client.InstanceInitiatedShutdown"
YOUNG = {
    "dies at boot": ((40, 240), OFF),  # a kernel that panics, a disk that is full
    "no metadata": ((75, 115), OFF),  # boot/deadline: 60 s of tries, 15 s to power off, and nobody knows the run
    "bucket denied": ((380, 450), OFF),  # four starts that crash; setting the group to 0 is denied as well
    "no route": ((1100, 1200), OFF),  # every call runs into its timeout
    "no KMS grant": ((3, 15), "Client.InternalError"),  # EC2 cannot attach the disk
}


@dataclass
class Trouble:
    """Rates are per hour of training."""

    crashes_per_hour: float = 0.0
    hangs_per_hour: float = 0.0
    mute_share: float = 0.5  # of hangs: the heartbeat stops, too; otherwise only the progress
    frozen_share: float = 0.0  # of hangs: the whole machine stands still, its deadline timer with it
    boot_hangs: float = 0.0  # share of boots that never come to a trainer
    bug_at: int = 0  # the step that always crashes
    hang_at: int = 0  # the step that always hangs
    refuses: bool = False  # exit code 78
    loner_share: float = 0.0  # of the machines of a run of several: they never reach the others
    young: str = ""  # one of YOUNG: why machines end before their first heartbeat, and leave their group as it is
    young_share: float = 1.0  # of the machines: perhaps only one of the subnets has no route
