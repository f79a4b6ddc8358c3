"""What `rehearse` may do beyond the commands that it runs: with FIS=1, have AWS send a notice to one machine.

Which actions know which resources and conditions, and what a call needs beside its own action, is from AWS's Service
Authorization Reference of AWS Fault Injection Service.
"""

from __future__ import annotations

from infra.config import Tag
from infra.operate.rights.right import EVERYTHING, Names, Right

REHEARSE = ["rehearse"]
ID_OF_FIS = "AWS makes up the ids; the tag says which are ours."


def rehearsing(names: Names) -> list[Right]:
    role = [f"arn:aws:iam::{names.account}:role/{names.installation.notice_role}"]
    service = [f"arn:aws:iam::{names.account}:role/aws-service-role/fis.amazonaws.com/AWSServiceRoleForFIS"]
    action = names.of("fis", "action/aws:ec2:send-spot-instance-interruptions")
    templates, experiments = names.of("fis", "experiment-template/*"), names.of("fis", "experiment/*")
    as_ours = {"StringEquals": {f"aws:RequestTag/{Tag.INSTALLATION}": names.installation.name}}
    return [
        Right(by=REHEARSE, actions=["iam:GetRole", "iam:CreateRole", "iam:TagRole", "iam:PutRolePolicy",
                                    "iam:DeleteRolePolicy", "iam:DeleteRole"], on=role),
        Right(by=REHEARSE, actions=["iam:PassRole"], on=role,
              condition={"StringEquals": {"iam:PassedToService": "fis.amazonaws.com"}}),
        # "When you start an experiment, AWS FIS creates a service-linked role": its user guide, "Start an experiment".
        Right(by=REHEARSE, actions=["iam:CreateServiceLinkedRole"], on=service,
              condition={"StringEquals": {"iam:AWSServiceName": "fis.amazonaws.com"}}),
        Right(by=REHEARSE, actions=["fis:ListExperimentTemplates"], on=EVERYTHING,
              why="AWS knows no resource for an action that lists."),
        Right(by=REHEARSE, actions=["fis:CreateExperimentTemplate"], on=[templates, action], condition=as_ours,
              why=ID_OF_FIS),
        Right(by=REHEARSE, actions=["fis:StartExperiment"], on=[experiments], condition=as_ours, why=ID_OF_FIS),
        Right(by=REHEARSE, actions=["fis:TagResource"], on=[templates, experiments], condition=as_ours, why=ID_OF_FIS),
        Right(by=REHEARSE, actions=["fis:StartExperiment", "fis:DeleteExperimentTemplate"], on=[templates],
              condition=names.ours, why=ID_OF_FIS),
    ]  # fmt: skip
