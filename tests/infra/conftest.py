"""What the tests of the guard and of the fleet begin with."""

from __future__ import annotations

import pytest

from tests.emulator.aws import Aws
from tests.infra.fleets import Lab, make_lab


@pytest.fixture
def lab(aws: Aws) -> Lab:
    """Two groups and a guard, without the stacks."""
    return make_lab(aws)
