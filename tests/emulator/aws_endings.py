"""How machines end in the emulator, for tests that boot them: moto 5.2.5 has them gone at once.

Each function that patches says which gap it closes."""

from __future__ import annotations

from collections.abc import Callable

from moto.core.responses import ActionResult
from moto.ec2.models import ec2_backends
from moto.ec2.models.instances import Instance, InstanceState
from moto.ec2.responses.instances import InstanceResponse

from tests.emulator.aws_control import CUT, SETTINGS

ACCOUNT, REGION = "123456789012", "us-east-1"


def patch() -> dict[str, Callable[[], None]]:
    terminations_without_a_shutdown()
    terminations_take_their_time()
    return {"off": tell_who_is_off}


def terminations_without_a_shutdown() -> None:
    """moto ignores SkipOsShutdown."""
    terminate = InstanceResponse.terminate_instances

    def terminated(self: InstanceResponse) -> ActionResult:
        if self._get_bool_param("SkipOsShutdown", False):
            CUT.extend(self._get_param("InstanceIds", []))
        return terminate(self)

    InstanceResponse.terminate_instances = terminated


def terminations_take_their_time() -> None:
    """A machine of moto does not shut down: it is terminated with the call that asks for it."""
    terminate = Instance.terminate

    def terminated(self: Instance) -> InstanceState:
        before = terminate(self)
        if SETTINGS.machines_boot and before.name != "terminated":
            self._state.name, self._state.code = "shutting-down", 32
        return before

    Instance.terminate = terminated


def tell_who_is_off() -> None:
    """Whoever boots the machines has seen these power off."""
    backend = ec2_backends[ACCOUNT][REGION]
    for id in SETTINGS.off:
        if (instance := backend.get_instance_by_id(id)) is not None:
            instance._state.name, instance._state.code = "terminated", 48
