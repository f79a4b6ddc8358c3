"""The machines' network: public subnets without NAT, a gateway endpoint for S3, no inbound rule from outside.

A machine has a public address, with which it reaches ECR, Logs, Secrets Manager and the hub. Nothing can connect to it,
but other training machines of the installation: a run on several is one that talks.
"""

from __future__ import annotations

import aws_cdk as cdk
from aws_cdk import aws_ec2 as ec2
from constructs import Construct

from infra.config import ZONES, Installation
from infra.stacks.acknowledge import acknowledge


class Network(Construct):
    """The machines' subnets, in a new VPC or in the one that the context names, and their security group.

    The VPC is made of L1 constructs. In a stack without account and region, the L2 construct `ec2.Vpc` would make only
    two subnets. In a stack with them, it would need AWS during synthesis.
    """

    def __init__(self, scope: Construct, installation: Installation) -> None:
        super().__init__(scope, "Network")
        if installation.vpc_id:
            vpc_id, self.subnet_ids = installation.vpc_id, installation.subnet_ids.split(",")
        else:
            vpc_id, self.subnet_ids = self._vpc(installation)
        self.security_group_id = self._security_group(vpc_id)
        self.nodes_group_id, self.placement_group = "", ""  # what only runs on several machines need
        if installation.has_nodes:
            self.nodes_group_id = self._nodes_group(vpc_id)
            self.placement_group = ec2.CfnPlacementGroup(self, "Placement", strategy="cluster").ref

    def _vpc(self, installation: Installation) -> tuple[str, list[str]]:
        vpc = ec2.CfnVPC(self, "Vpc", cidr_block="10.0.0.0/16", enable_dns_hostnames=True, enable_dns_support=True)
        acknowledge(vpc, "VPC7", "Flow logs bill by the gigabyte, and nothing can connect to a machine.")
        gateway = ec2.CfnInternetGateway(self, "Gateway")
        attachment = ec2.CfnVPCGatewayAttachment(self, "Attachment", vpc_id=vpc.ref, internet_gateway_id=gateway.ref)
        routes = ec2.CfnRouteTable(self, "Routes", vpc_id=vpc.ref)
        route = ec2.CfnRoute(
            self,
            "DefaultRoute",
            route_table_id=routes.ref,
            destination_cidr_block="0.0.0.0/0",
            gateway_id=gateway.ref,
        )
        route.add_resource_dependency(attachment)
        ec2.CfnVPCEndpoint(
            self,
            "S3",
            vpc_id=vpc.ref,
            service_name=f"com.amazonaws.{cdk.Aws.REGION}.s3",
            vpc_endpoint_type="Gateway",
            route_table_ids=[routes.ref],
        )
        zones = installation.zones.split(",") if installation.zones else [_zone(index) for index in range(ZONES)]
        return vpc.ref, [self._subnet(index, zone, vpc.ref, routes.ref) for index, zone in enumerate(zones)]

    def _subnet(self, index: int, zone: str, vpc_id: str, route_table_id: str) -> str:
        subnet = ec2.CfnSubnet(
            self,
            f"Subnet{index}",
            vpc_id=vpc_id,
            availability_zone=zone,
            cidr_block=f"10.0.{16 * index}.0/20",
        )
        ec2.CfnSubnetRouteTableAssociation(
            self, f"Routes{index}", subnet_id=subnet.ref, route_table_id=route_table_id
        )  # fmt: skip
        return subnet.ref

    def _security_group(self, vpc_id: str) -> str:
        group = ec2.CfnSecurityGroup(
            self,
            "SecurityGroup",
            group_description="resnet-spot: machines; nothing comes in",
            vpc_id=vpc_id,
            security_group_egress=[ec2.CfnSecurityGroup.EgressProperty(ip_protocol="-1", cidr_ip="0.0.0.0/0")],
        )
        return group.attr_group_id

    def _nodes_group(self, vpc_id: str) -> str:
        """All from and to members of this very group, and nothing else.

        An Elastic Fabric Adapter needs both rules: its traffic has no IP address, so the rule to 0.0.0.0/0 does not
        hold for it (EC2 user guide, "Get started with EFA and NCCL", the step on the security group).
        """
        words = "training machines of one installation"
        group = ec2.CfnSecurityGroup(self, "NodesGroup", group_description=f"resnet-spot: {words}", vpc_id=vpc_id)
        own = group.attr_group_id
        ec2.CfnSecurityGroupIngress(
            self, "FromNodes", description=words, group_id=own, source_security_group_id=own, ip_protocol="-1"
        )
        ec2.CfnSecurityGroupEgress(
            self, "ToNodes", description=words, group_id=own, destination_security_group_id=own, ip_protocol="-1"
        )
        return own


def _zone(index: int) -> str:
    """The region's zone of this index, chosen at deploy time. Zones without a default subnet do not count."""
    return cdk.Fn.select(index, cdk.Fn.get_azs())
