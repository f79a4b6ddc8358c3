"""A machine's first minute, where the AMI is not as quiet as one would like: upgrades, and two ways to the GPU."""

from __future__ import annotations

import pytest

from tests.infra.boot.boot_machines import Machine

pytestmark = pytest.mark.engine
UPGRADES = "unattended-upgrades.service"
SLOW_UPGRADES = b"[Service]\nExecStart=sh -c 'trap \"\" TERM; while :; do sleep 1; done'\nTimeoutStopSec=1800\n"
# A Docker with a GPU: it knows the GPU's device, unless that is stale, and needs none of the two options.
DOCKER = b"""#!/bin/sh
case $1 in
info) echo '{"DiscoveredDevices":[{"Source":"cdi","ID":"nvidia.com/gpu=all"}]}' && exit ;;
run)
  echo "$*" >>/var/tmp/runs
  case $* in *--device*) [ ! -e /var/tmp/stale ] || { echo "unresolvable CDI devices" && exit 125; } ;; esac
  for word; do
    shift
    case $word in --device | nvidia.com/gpu=all | --gpus | all) ;; *) set -- "$@" "$word" ;; esac
  done
  ;;
esac
exec /usr/bin/docker "$@"
"""


def test_an_upgrade_that_does_not_stop_delays_nothing_and_the_gpu_is_a_device_that_a_reload_leaves(
    machine: Machine,
) -> None:
    """The GPU is one of the stand-in's. If its device has gone stale, a start fails, and --gpus helps."""
    machine.settings["GPU"] = "--gpus all"
    machine.files |= {"usr/local/bin/docker": DOCKER, f"usr/lib/systemd/system/{UPGRADES}": SLOW_UPGRADES}
    machine.launched().boot("hold 1", "serve", before=f"systemctl start {UPGRADES}")
    machine.wait_for_life(1)
    assert machine.sh(f"systemctl show --property ActiveState --value {UPGRADES}").strip() == "deactivating"
    assert machine.sh("systemctl show --property ActiveState --value resnet-spot-deadline").strip() == "active"
    for unit in ("apt-daily", "apt-daily-upgrade", "unattended-upgrades"):
        assert machine.sh(f"readlink /etc/systemd/system/{unit}.service").strip() == "/dev/null"

    machine.sh("touch /var/tmp/stale")
    machine.let_go(1)
    machine.wait_for_life(2)
    runs = machine.sh("cat /var/tmp/runs").splitlines()
    assert ["--device nvidia.com/gpu=all" in run for run in runs] == [True, True, False]
    assert ["--gpus all" in run for run in runs] == [False, False, True]
    assert "unresolvable CDI devices" in machine.console()
