"""What the training stack has for runs on several machines: a cluster, and templates with a faster network."""

from __future__ import annotations

import pytest

from infra.config import Installation, Output, efa_template
from infra.stacks.image import build_arguments
from tests.infra.synthesized import VARIANTS, flat, stacks

pytestmark = pytest.mark.slow  # CDK runs in Node.js
INSTALLATION = Installation()


def test_only_where_it_is_asked_for_there_is_a_template_with_an_efa_and_an_image_for_it() -> None:
    """Of each group of trainings; but for the interface it is the group's own."""
    templates = stacks("changed").training.all("EC2::LaunchTemplate")
    named = {one.get("LaunchTemplateName", ""): one["LaunchTemplateData"] for one in templates.values()}
    del named[""]
    assert set(named) == {efa_template(group) for group in INSTALLATION.groups_of("train")}
    (interface,) = named[efa_template(INSTALLATION.train_group)].pop("NetworkInterfaces")
    usual = dict(stacks("changed").training.one("EC2::LaunchTemplate", "TrainLaunchTemplate")["LaunchTemplateData"])
    (other,) = usual.pop("NetworkInterfaces")
    assert named[efa_template(INSTALLATION.train_group)] == usual
    assert interface == other | {"InterfaceType": "efa"}
    assert len(stacks().training.all("EC2::LaunchTemplate")) == 3
    assert build_arguments(Installation(efa=VARIANTS["changed"]["efa"]))["EFA"] == VARIANTS["changed"]["efa"]
    assert "EFA" not in build_arguments(Installation())


def test_launch_finds_the_subnets_and_the_cluster_in_the_outputs() -> None:
    training = stacks().training
    outputs = {name: one["Value"] for name, one in training.template["Outputs"].items()}
    (name,) = training.all("EC2::PlacementGroup")
    assert outputs[Output.PLACEMENT_GROUP] == {"Ref": name}
    assert flat(outputs[Output.SUBNETS]) == ",".join(3 * ["<NetworkSubnet>"])
    assert training.one("EC2::PlacementGroup")["Strategy"] == "cluster"
    assert Output.PLACEMENT_GROUP not in stacks("given").training.template["Outputs"]
