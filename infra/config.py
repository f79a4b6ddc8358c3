"""The installation: its settings under `context` in cdk.json, checked, and the AWS names that follow from them.

A run's own options (recipe, data, budget, hours) are not here: `launch` takes them. This module does not import CDK.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

from trainer.contract import UserError

ROOT = Path(__file__).parents[1]  # of the checkout
CONTEXT_PREFIX = "resnet-spot:"  # CDK keeps keys of its own in the same context
GPU_TYPES = "g6.xlarge,g6.2xlarge,g6.4xlarge,g5.xlarge,g5.2xlarge,g5.4xlarge,g6e.xlarge,g6e.2xlarge,g6e.4xlarge"
CPU_TYPES = "c7a.2xlarge,c7i.2xlarge,c6a.2xlarge,c6i.2xlarge,m7a.2xlarge,m7i.2xlarge,m6a.2xlarge,m6i.2xlarge"
# The SSM parameter that names the machines' AMI: Ubuntu with Docker, AWS's command line and the NVIDIA driver.
# CPU machines use the same AMI, so that both kinds boot the same way. AWS lists it for GPU types only, but nothing
# that we start there needs the driver.
AMI = "/aws/service/deeplearning/ami/x86_64/base-oss-nvidia-driver-gpu-ubuntu-24.04/latest/ami-id"
AMI_GIB = 75  # of a machine's root volume: the AMI's snapshot
PREPARE_DISK_GIB = 450  # disk of a CPU machine: AMI_GIB, 150 GB for ImageNet's parquet files, 200 for the prepared form
PREPARE_PREFIX = "prepare-"  # run ids of preparations begin so: roles and schedules tell them from trainings by it
ZONES = 3  # if the context names no zones
MOST_BUILD_MINUTES = 45  # then CodeBuild ends a build of the image, and what hangs bills no longer
# The bucket's lifecycle, in days. S3 counts from the next midnight UTC on, so each takes up to a day longer.
ABORT_UPLOADS_DAYS = 1  # for so long a multipart upload may stay incomplete: it bills, and no listing shows it
SUPERSEDED_DAYS = 1  # for so long a superseded checkpoint can still be read
OLD_SUPERSEDED_DAYS = 2  # and then be brought back; most of what a run writes goes this way, so longer would cost
OLD_VERSION_DAYS = 7  # for so long anything else that was overwritten or deleted can be brought back
# A tag of every resource. Machines read their tags from IMDS, so a key has none of the letters that IMDS refuses: EC2
# would start no machine (EC2 user guide, "View tags for your EC2 instances using instance metadata").
TAG_RULE = r"[A-Za-z0-9+.:@_-]{1,128}=[A-Za-z0-9 +=.:/@_-]{0,256}"
MOST_TAGS = 40  # AWS takes 50 on a machine, and these come on top of the installation's own
RULES = {  # field: the pattern that its value matches, the rule in words, an example
    "name": (r"[a-z][a-z0-9-]{0,23}", "at most 24 lower case letters, digits and '-', a letter first", "resnet-spot"),
    "bucket_name": (
        r"([a-z0-9][a-z0-9-]{1,61}[a-z0-9])?",  # S3's rule without dots, which break TLS to the bucket's host
        "3 to 63 lower case letters, digits and '-', or \"\" and AWS makes one up",
        "my-resnet-spot",
    ),
    "instance_types": (r"[a-z0-9-]+\.[a-z0-9]+(,[a-z0-9-]+\.[a-z0-9]+)*", "types with GPUs, by ','", GPU_TYPES),
    "prepare_instance_types": (r"[a-z0-9-]+\.[a-z0-9]+(,[a-z0-9-]+\.[a-z0-9]+)*", "CPU types, by ','", CPU_TYPES),
    "market": (r"spot|on-demand", "spot or on-demand", "spot"),
    "zones": (r"([a-z0-9-]+(,[a-z0-9-]+)*)?", "zones, by ',', or \"\" for the three with most types", "us-east-1a"),
    "email": (r"([^@\s]+@[^@\s]+)?", 'an address, or "" for none', "me@example.org"),
    "vpc_id": (r"(vpc-[0-9a-f]+)?", 'an existing VPC, or "" for one of its own', "vpc-0123456789abcdef0"),
    "subnet_ids": (
        r"(subnet-[0-9a-f]+(,subnet-[0-9a-f]+)*)?",
        "public subnets of vpc_id, by ','",
        "subnet-0123456789abcdef0",
    ),
    "image_uri": (r"(\S+[:@]\S+)?", 'an image with its digest, or "" to build it', "registry/image@sha256:0123…"),
    "disk_gib": (r"[1-9][0-9]{1,4}", "10 to 99999", "120"),
    "max_nodes": (r"[1-9]|1[0-6]", "1 to 16", "16"),
    "efa": (
        r"([0-9]+(\.[0-9]+)+=[0-9a-f]{64})?",
        'version=SHA-256 of AWS\'s EFA installer, or "" for none',
        "1.51.0=0123…",
    ),
    "tags": (
        rf"({TAG_RULE}(,{TAG_RULE})*)?",
        "key=value, by ',': letters, digits and + - . : @ _; values also spaces, '=' and '/'",
        "team=vision,cost-center=42",
    ),
}


@dataclass(frozen=True, kw_only=True)
class Installation:
    """One field for each context key `resnet-spot:<field>`: edit cdk.json, or `cdk … -c resnet-spot:<field>=<value>`.

    All values are strings. Account and region are no fields: the credentials decide them. Values that exist only
    after the deploy, such as the bucket's name, are outputs of the stacks.
    """

    name: str = "resnet-spot"  # the stacks are called <name>-storage, …; another name is another installation
    bucket_name: str = ""  # unique in all of S3; "": AWS makes one up
    instance_types: str = GPU_TYPES  # a type in a zone is a pool; with twelve pools or more, spot capacity is likely
    prepare_instance_types: str = CPU_TYPES
    market: str = "spot"  # in which a run begins
    zones: str = ""
    email: str = ""  # gets a mail when the guard acts
    vpc_id: str = ""
    subnet_ids: str = ""
    image_uri: str = ""
    disk_gib: str = "120"  # root volume of a GPU machine: AMI_GIB, and 10 for the image
    max_nodes: str = "16"  # of one run; with 1 there is nothing by which machines could talk to each other
    efa: str = ""  # the installer of what the image needs for Elastic Fabric Adapters
    tags: str = ""  # of every resource, for organisations that require some: key=value,key=value

    def __post_init__(self) -> None:
        for f in fields(self):
            key, value = context_key(f.name), getattr(self, f.name)
            if not isinstance(value, str):
                raise UserError(f'{key}={value!r} in the CDK context is not a string: put it in "…" in cdk.json')
            rule, words, example = RULES[f.name]
            if not re.fullmatch(rule, value):
                raise UserError(
                    f"{key}={value!r} in the CDK context is not valid: use {rule} ({words}), for example {example}"
                )
        self._check_tags()
        if bool(self.vpc_id) != bool(self.subnet_ids):
            raise UserError(
                f"{context_key('vpc_id')}={self.vpc_id!r} and {context_key('subnet_ids')}={self.subnet_ids!r} in the "
                'CDK context belong together: give both, or neither ("" for both)'
            )
        if self.vpc_id and self.zones:
            raise UserError(
                f"{context_key('zones')}={self.zones!r} in the CDK context has no effect with a given VPC, whose "
                f'subnets have their zones: leave it "", and choose among {context_key("subnet_ids")}'
            )

    def _check_tags(self) -> None:
        keys = [pair.partition("=")[0] for pair in self.tags.split(",")] if self.tags else []
        ours = [key for key in keys if key.lower().startswith(("aws:", Tag.INSTALLATION)) or key in RESERVED_KEYS]
        twice = [key for key in dict.fromkeys(keys) if keys.count(key) > 1]
        if problem := (
            (f"{ours[0]!r} is a key that AWS or this project uses itself" if ours else "")
            or (f"{twice[0]!r} is there twice" if twice else "")
            or (f"it has {len(keys)} tags, and AWS takes {MOST_TAGS} beside ours" if len(keys) > MOST_TAGS else "")
        ):
            raise UserError(f"{context_key('tags')}={self.tags!r} in the CDK context: {problem}; leave it out")

    def image_by_tag(self) -> str:
        """Why no machine may be given this image: a tag may name another one for the next machine. "" if none is.

        Only a deploy asks. A stop must work with whatever an older deploy was given.
        """
        if not self.image_uri or re.search(r"@sha256:[0-9a-f]{64}$", self.image_uri):
            return ""
        return (
            f"{context_key('image_uri')}={self.image_uri!r} has no digest, and a tag may name another image for the "
            "next machine of the same run: write registry/image@sha256:…"
        )

    @property
    def all_tags(self) -> dict[str, str]:
        """The tags of every resource of the stacks, by key. The installation's own says whose it is."""
        pairs = (pair.partition("=") for pair in self.tags.split(",") if pair)
        return {Tag.INSTALLATION: self.name} | {key: value for key, _, value in pairs}

    @property
    def storage_stack(self) -> str:
        return f"{self.name}-storage"

    @property
    def training_stack(self) -> str:
        return f"{self.name}-training"

    @property
    def train_group(self) -> str:
        """The Auto Scaling group of GPU machines, all of them spot."""
        return f"{self.name}-train"

    @property
    def on_demand_group(self) -> str:
        """The Auto Scaling group of the same GPU machines, all of them on-demand."""
        return f"{self.name}-on-demand"

    @property
    def prepare_group(self) -> str:
        """The Auto Scaling group of the CPU machines, which `prepare` uses."""
        return f"{self.name}-prepare"

    @property
    def has_nodes(self) -> bool:
        """Whether a run may have several machines."""
        return int(self.max_nodes) > 1

    @property
    def has_efa(self) -> bool:
        """Whether machines of a run with several get AWS's Elastic Fabric Adapter, where their type has it."""
        return self.has_nodes and bool(self.efa)

    @property
    def groups(self) -> tuple[str, ...]:
        """All Auto Scaling groups. One that an older deploy did not make is still asked for."""
        return (*self.groups_of("train"), *self.groups_of("prepare"))

    def groups_of(self, kind: str) -> tuple[str, ...]:
        """The groups from which a run of this kind may have machines."""
        return (self.train_group, self.on_demand_group) if kind == "train" else (self.prepare_group,)

    @property
    def log_group(self) -> str:
        return f"/{self.name}/runs"

    @property
    def image_tag_prefix(self) -> str:
        """Tags of this installation's images begin so: all CDK apps of the account push into one repository."""
        return f"{self.name}-"

    @property
    def builder_stack(self) -> str:
        """Builds the image in the account. Only a deploy that cannot build it here makes this stack."""
        return f"{self.name}-builder"

    @property
    def notice_role(self) -> str:
        """Of a rehearsal. CloudFormation names roles of the stack so, and `destroy` finds those that are left."""
        return f"{self.training_stack}-Notice-Rehearsal"

    @property
    def build_project(self) -> str:
        """The CodeBuild project."""
        return f"{self.name}-image"

    @property
    def build_log_group(self) -> str:
        return f"/{self.name}/builds"

    @property
    def source_prefix(self) -> str:
        """Keys of what a build reads begin so, in the bucket of CDK's assets, which is the account's."""
        return f"{self.name}/"

    @property
    def guard_function(self) -> str:
        return f"{self.name}-guard"

    @property
    def schedule_group(self) -> str:
        """The EventBridge Scheduler group of the one-time stop schedules."""
        return self.name

    @property
    def secret_name(self) -> str:
        """The Hugging Face token, in Secrets Manager."""
        return f"{self.name}/hf-token"

    @classmethod
    def from_context(cls, context: Mapping[str, object]) -> Installation:
        """Picks the installation's values out of CDK's context. UserError names a bad key or value and the rule."""
        values = {
            key.removeprefix(CONTEXT_PREFIX): value for key, value in context.items() if key.startswith(CONTEXT_PREFIX)
        }
        known = [f.name for f in fields(cls)]
        for name, value in values.items():
            if name not in known:
                raise UserError(
                    f"{context_key(name)}={value!r} in the CDK context is not a setting: "
                    f"use one of {', '.join(map(context_key, known))}"
                )
        return cls(**values)  # type: ignore[arg-type]  # __post_init__ refuses what is not a string


def schedule_names(run_id: str) -> tuple[str, str]:
    """The names that a run's stop schedules have: of its first group, and of the on-demand group.

    AWS takes 64 letters. A run id has at most 63, and no capital.
    """
    return run_id, f"{run_id}D"


def efa_template(group: str) -> str:
    """The launch template of a group's machines with an Elastic Fabric Adapter."""
    return f"{group}-efa"


def context_key(name: str) -> str:
    """The CDK context's key for a field."""
    return CONTEXT_PREFIX + name


class Tag:
    """Tags of machines. `launch` tags the group, the group tags its machines, and boot reads the tags from IMDS."""

    INSTALLATION = "resnet-spot"  # the installation's name; every resource of both stacks has it
    RUN = "resnet-spot:run"  # the id of the run that pays for the machine
    DEADLINE = "resnet-spot:deadline"  # Unix seconds: by then the machine must be gone


RESERVED_KEYS = ("Name", ".", "..", "_index")  # the machines' own, and what IMDS refuses as a key


class Output:
    """Names of the stacks' outputs."""

    BUCKET = "BucketName"  # of the storage stack; the store is s3://<this>
    SECRET = "SecretArn"  # of the storage stack
    IMAGE = "ImageUri"  # of the training stack, as the next two; of the builder stack: what it builds
    TOPIC = "TopicArn"  # the SNS topic that the guard writes to
    SUBNETS = "SubnetIds"  # of the training stack, by ',': in one of them each zone's machines start
    PLACEMENT_GROUP = "PlacementGroup"  # of the training stack, with max_nodes above 1: where a run's nodes lie close
    SCHEDULER_ROLE = "SchedulerRoleArn"  # the role with which a stop schedule sets a group to 0
