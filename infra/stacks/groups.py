"""The Auto Scaling groups, with the launch templates of their machines.

A group has no machine until `launch` asks for one, so a deploy never waits for capacity. The user data carries
`infra/boot/`, which decides what happens on a machine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TypeAlias

import aws_cdk as cdk
from aws_cdk import aws_autoscaling as autoscaling
from aws_cdk import aws_ec2 as ec2
from aws_cdk import aws_iam as iam
from aws_cdk import aws_ssm as ssm
from constructs import Construct

from infra.config import AMI, PREPARE_DISK_GIB, Installation, efa_template
from infra.stacks.acknowledge import acknowledge
from infra.stacks.network import Network
from infra.stacks.tags import listed_tags
from infra.stacks.user_data import user_data

ROOT_DEVICE = "/dev/sda1"
LaunchData: TypeAlias = ec2.CfnLaunchTemplate.LaunchTemplateDataProperty


@dataclass(frozen=True, kw_only=True)
class MachineKind:
    """What differs between the machines of the groups."""

    id: str  # of the group's construct
    kind: str  # train or prepare
    group: str
    market: str
    types: str
    max_machines: int
    disk_gib: int
    docker_options: str  # options of `docker run` that give the container the GPU

    @classmethod
    def train(cls, installation: Installation) -> MachineKind:
        return cls(
            id="Train",
            kind="train",
            group=installation.train_group,
            market="spot",
            types=installation.instance_types,
            max_machines=int(installation.max_nodes),
            disk_gib=int(installation.disk_gib),
            docker_options="--gpus all",
        )

    @classmethod
    def on_demand(cls, installation: Installation) -> MachineKind:
        """Machines for training of the other market. The guard changes to them by a size alone, see infra.guard."""
        return replace(cls.train(installation), id="OnDemand", group=installation.on_demand_group, market="on-demand")

    @classmethod
    def prepare(cls, installation: Installation) -> MachineKind:
        return cls(
            id="Prepare",
            kind="prepare",
            group=installation.prepare_group,
            market=installation.market,
            types=installation.prepare_instance_types,
            max_machines=1,
            disk_gib=PREPARE_DISK_GIB,
            docker_options="",
        )

    def environment(self, shared: Mapping[str, str]) -> dict[str, str]:
        """/etc/resnet-spot.env, which `infra/boot/` reads."""
        return {**shared, "GROUP": self.group, "KIND": self.kind, "GPU": self.docker_options}


class MachineGroup(Construct):
    def __init__(
        self,
        scope: Construct,
        kind: MachineKind,
        *,
        installation: Installation,
        network: Network,
        role: iam.Role,
        environment: Mapping[str, str],
    ) -> None:
        super().__init__(scope, kind.id)
        data = self._launch_data(kind, installation, network, role, user_data(kind.environment(environment)))
        template = self._launch_template(kind, installation, "LaunchTemplate", data(None))
        if installation.has_efa and kind.kind == "train":  # `launch` names it for the types that have one
            self._launch_template(kind, installation, "EfaTemplate", data("efa"), efa_template(kind.group))
        group = autoscaling.CfnAutoScalingGroup(
            self,
            "Group",
            auto_scaling_group_name=kind.group,
            vpc_zone_identifier=network.subnet_ids,
            min_size="0",
            max_size=str(kind.max_machines),  # no desired capacity: an update of the stack leaves it as it is
            health_check_type="EC2",
            new_instances_protected_from_scale_in=False,
            # If it were on, AWS would launch a second machine on a mere warning. That machine would bill while it waits
            # for the first one's lease. Instead the trainer saves within the two minutes of an interruption notice,
            # and then the group replaces the machine.
            capacity_rebalance=False,
            mixed_instances_policy=autoscaling.CfnAutoScalingGroup.MixedInstancesPolicyProperty(
                launch_template=autoscaling.CfnAutoScalingGroup.LaunchTemplateProperty(
                    launch_template_specification=autoscaling.CfnAutoScalingGroup.LaunchTemplateSpecificationProperty(
                        launch_template_id=template.ref, version=template.attr_latest_version_number
                    ),
                    overrides=[
                        autoscaling.CfnAutoScalingGroup.LaunchTemplateOverridesProperty(instance_type=type)
                        for type in kind.types.split(",")
                    ],
                ),
                instances_distribution=autoscaling.CfnAutoScalingGroup.InstancesDistributionProperty(
                    on_demand_base_capacity=0,
                    on_demand_percentage_above_base_capacity=0 if kind.market == "spot" else 100,
                    on_demand_allocation_strategy="prioritized",  # in the order of the types
                    # AWS recommends this. It ignores the order of the types, so `catalog.offered` leaves out the dear
                    # ones. There is no maximum price, since it would cause interruptions.
                    spot_allocation_strategy="price-capacity-optimized",
                ),
            ),
        )
        cdk.Tags.of(group).add("Name", kind.group)
        acknowledge(
            group,
            "AS3",
            "A mail at each start and end of a spot machine would teach to ignore mails; the guard tells what matters.",
        )
        acknowledge(
            group,
            "EC26",
            "The rule fails on a group with several types; its launch template encrypts the volume (tested).",
        )

    def _launch_template(
        self, kind: MachineKind, installation: Installation, id: str, data: LaunchData, name: str | None = None
    ) -> ec2.CfnLaunchTemplate:
        tags = listed_tags(installation, kind.group)
        own = ec2.CfnLaunchTemplate.LaunchTemplateTagSpecificationProperty(resource_type="launch-template", tags=tags)
        return ec2.CfnLaunchTemplate(
            self, id, launch_template_data=data, launch_template_name=name, tag_specifications=[own]
        )

    def _launch_data(
        self, kind: MachineKind, installation: Installation, network: Network, role: iam.Role, user_data: str
    ) -> Callable[[str | None], LaunchData]:
        """What a machine starts with, by the kind of its network interface: None, or "efa"."""
        ami = ssm.StringParameter.value_for_typed_string_parameter_v2(
            cdk.Stack.of(self), AMI, ssm.ParameterValueType.AWS_EC2_IMAGE_ID
        )  # fmt: skip
        profile = iam.CfnInstanceProfile(self, "Profile", roles=[role.role_name])
        tags = listed_tags(installation, kind.group)
        groups = [network.security_group_id]
        if kind.kind == "train" and network.nodes_group_id:
            groups.append(network.nodes_group_id)
        template = ec2.CfnLaunchTemplate  # whose property types are named below

        def data(interface: str | None) -> LaunchData:
            return LaunchData(
                image_id=ami,
                iam_instance_profile=template.IamInstanceProfileProperty(arn=profile.attr_arn),
                instance_initiated_shutdown_behavior="terminate",
                user_data=cdk.Fn.base64(user_data),
                metadata_options=template.MetadataOptionsProperty(
                    http_endpoint="enabled",  # whatever the account's own default is: boot needs it
                    http_tokens="required",
                    http_put_response_hop_limit=1,  # no container on a network of its own gets an answer
                    instance_metadata_tags="enabled",  # the machine reads its run and its deadline there
                ),
                network_interfaces=[
                    template.NetworkInterfaceProperty(
                        device_index=0,
                        associate_public_ip_address=True,
                        delete_on_termination=True,
                        groups=groups,
                        interface_type=interface,
                    )
                ],
                block_device_mappings=[
                    template.BlockDeviceMappingProperty(
                        device_name=ROOT_DEVICE,
                        ebs=template.EbsProperty(
                            volume_size=kind.disk_gib, volume_type="gp3", encrypted=True, delete_on_termination=True
                        ),
                    )
                ],
                tag_specifications=[
                    template.TagSpecificationProperty(resource_type=resource, tags=tags)
                    for resource in ("instance", "volume", "network-interface")
                ],
            )

        return data
