"""The Auto Scaling groups: what each offers to AWS, in which market, and how large it may become."""

from __future__ import annotations

import pytest

from infra.config import Installation
from tests.infra.synthesized import stacks

pytestmark = pytest.mark.slow  # CDK runs in Node.js
INSTALLATION = Installation()


@pytest.mark.parametrize(
    ("machine", "name", "types", "on_demand"),
    [
        ("Train", INSTALLATION.train_group, INSTALLATION.instance_types, 0),
        ("OnDemand", INSTALLATION.on_demand_group, INSTALLATION.instance_types, 100),
        ("Prepare", INSTALLATION.prepare_group, INSTALLATION.prepare_instance_types, 0),
    ],
)
def test_a_group_offers_every_type_at_the_price_of_its_market(
    machine: str, name: str, types: str, on_demand: int
) -> None:
    group = stacks().training.one("AutoScaling::AutoScalingGroup", machine)
    assert (group["AutoScalingGroupName"], group["MaxSize"]) == (name, "1" if machine == "Prepare" else "16")
    policy = group["MixedInstancesPolicy"]
    assert [one["InstanceType"] for one in policy["LaunchTemplate"]["Overrides"]] == types.split(",")
    assert policy["InstancesDistribution"] == {
        "OnDemandAllocationStrategy": "prioritized",
        "OnDemandBaseCapacity": 0,
        "OnDemandPercentageAboveBaseCapacity": on_demand,
        "SpotAllocationStrategy": "price-capacity-optimized",
    }


def test_the_default_is_twelve_spot_pools_or_more() -> None:
    group = stacks().training.one("AutoScaling::AutoScalingGroup", "Train")
    types = group["MixedInstancesPolicy"]["LaunchTemplate"]["Overrides"]
    assert len(types) * len(group["VPCZoneIdentifier"]) >= 12


def test_the_market_and_the_number_of_nodes_come_from_the_context() -> None:
    """The two groups for trainings have their markets in any case, and `launch` chooses between them."""
    found = stacks("changed").training.all("AutoScaling::AutoScalingGroup").values()
    share = {
        group["AutoScalingGroupName"]: (
            group["MixedInstancesPolicy"]["InstancesDistribution"]["OnDemandPercentageAboveBaseCapacity"],
            group["MaxSize"],
        )
        for group in found
    }
    assert share == {
        INSTALLATION.train_group: (0, "2"),
        INSTALLATION.on_demand_group: (100, "2"),
        INSTALLATION.prepare_group: (100, "1"),
    }
