"""The training stack: the groups of machines, their roles, network, image, log and guard. `destroy` removes it all."""

from __future__ import annotations

import aws_cdk as cdk
from aws_cdk import aws_logs as logs
from aws_cdk import aws_sns as sns
from constructs import Construct

from infra.config import Installation, Output
from infra.stacks import guards, permissions
from infra.stacks.groups import MachineGroup, MachineKind
from infra.stacks.image import image
from infra.stacks.network import Network
from infra.stacks.roles import MachineRoles
from infra.stacks.storage import StorageStack
from infra.stacks.tags import tag_all


class TrainingStack(cdk.Stack):
    def __init__(self, scope: Construct, installation: Installation, storage: StorageStack) -> None:
        super().__init__(
            scope,
            installation.training_stack,
            description="resnet-spot: machines, their guard and their log; costs cents while nothing trains",
            synthesizer=cdk.DefaultStackSynthesizer(docker_tag_prefix=installation.image_tag_prefix),
        )
        self.add_stack_dependency(storage)
        network = Network(self, installation)
        trainer = self.image = image(self, installation)
        run_logs = self._log_group("RunLogs", installation.log_group)
        guard_logs = self._log_group("GuardLogs", f"/aws/lambda/{installation.guard_function}")
        topic = guards.topic(self, installation)
        arns = permissions.Arns(
            installation=installation,
            partition=self.partition,
            region=self.region,
            account=self.account,
            bucket=storage.bucket_arn,
            secret=storage.secret_arn,
            run_logs=run_logs.log_group_arn,
            guard_logs=guard_logs.log_group_arn,
            topic=topic.topic_arn,
            repository=trainer.repository_arn,
        )
        environment = {
            "STORE": f"s3://{storage.bucket_name}",
            "LOG_GROUP": installation.log_group,
            "IMAGE": trainer.uri,
            "SECRET": storage.secret_arn,
            "REGION": self.region,
        }
        training = MachineRoles(self, "train", permissions.training_machine(arns), permissions.training_run(arns))
        preparing = MachineRoles(self, "prepare", permissions.preparing_machine(arns), permissions.preparing_run(arns))
        for kind, roles in (
            (MachineKind.train(installation), training),
            (MachineKind.on_demand(installation), training),
            (MachineKind.prepare(installation), preparing),
        ):
            told = {**environment, "RUN_ROLE": roles.run.role_arn}
            group = MachineGroup(
                self, kind, installation=installation, network=network, role=roles.machine, environment=told
            )
            group.node.add_dependency(roles.assume)  # no machine is there before it may take on its run's role
        self._add_watchers(arns, topic, storage.bucket_name, run_logs, guard_logs)
        schedules = guards.StopSchedules(self, installation=installation, arns=arns, topic=topic)

        tag_all(self, installation)
        for name, value, description in (
            (Output.IMAGE, trainer.uri, "the trainer's image"),
            (Output.TOPIC, topic.topic_arn, "who is told when the guard acts"),
            (Output.SCHEDULER_ROLE, schedules.role.role_arn, "with which a schedule sets a group to 0"),
            (Output.SUBNETS, ",".join(network.subnet_ids), "where machines start"),
            *([(Output.PLACEMENT_GROUP, network.placement_group, "of the machines of a run with several")]
              if network.placement_group else []),
        ):  # fmt: skip
            cdk.CfnOutput(self, name, value=value, description=description)

    def _add_watchers(
        self,
        arns: permissions.Arns,
        topic: sns.Topic,
        bucket_name: str,
        run_logs: logs.LogGroup,
        guard_logs: logs.LogGroup,
    ) -> None:
        installation = arns.installation
        guards.GuardFunction(
            self,
            installation=installation,
            arns=arns,
            log_group=guard_logs,
            topic=topic,
            bucket_name=bucket_name,
        )
        guards.MoneyAlarms(
            self,
            log_group=run_logs,
            topic=topic,
            bucket_name=bucket_name,
            group=installation.on_demand_group if installation.market == "on-demand" else installation.train_group,
        )

    def _log_group(self, id: str, name: str) -> logs.LogGroup:
        return logs.LogGroup(
            self,
            id,
            log_group_name=name,
            retention=logs.RetentionDays.ONE_MONTH,
            removal_policy=cdk.RemovalPolicy.DESTROY,
        )
