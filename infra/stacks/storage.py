"""The storage stack: the bucket and the secret, which outlive every run and every `make destroy`.

The roles that may read and write them belong to the training stack.
"""

from __future__ import annotations

import aws_cdk as cdk
from aws_cdk import aws_s3 as s3
from aws_cdk import aws_secretsmanager as secretsmanager
from constructs import Construct

from infra.config import (
    ABORT_UPLOADS_DAYS,
    OLD_SUPERSEDED_DAYS,
    OLD_VERSION_DAYS,
    SUPERSEDED_DAYS,
    Installation,
    Output,
)
from infra.stacks.acknowledge import acknowledge
from infra.stacks.tags import tag_all
from trainer.contract import SUPERSEDED_TAG

# CloudFormation's RetainExceptOnCreate: kept, unless the very operation that made it is rolled back. `Retain` keeps it
# then as well, and its name is taken for the next try (aws.amazon.com/about-aws/whats-new, 31 July 2023).
KEPT_ONCE_MADE = cdk.RemovalPolicy.RETAIN_ON_UPDATE_OR_DELETE


class StorageStack(cdk.Stack):
    """The bucket, which is the store `s3://<bucket>`, and the secret for the Hugging Face token."""

    def __init__(self, scope: Construct, installation: Installation) -> None:
        super().__init__(
            scope,
            installation.storage_stack,
            description="resnet-spot: datasets, runs, checkpoints, the token; kept when training is destroyed",
        )
        bucket = s3.Bucket(
            self,
            "Bucket",
            bucket_name=installation.bucket_name or None,
            block_public_access=s3.BlockPublicAccess.BLOCK_ALL,
            object_ownership=s3.ObjectOwnership.BUCKET_OWNER_ENFORCED,  # no ACLs
            encryption=s3.BucketEncryption.S3_MANAGED,
            enforce_ssl=True,
            versioned=True,  # a machine may overwrite and tag, but so nothing is lost at once: `checkpoints undelete`
            # A first deploy that rolls back must leave nothing: no later one could adopt it. A bucket with a name may
            # have been there before, with data, and the next deploy adopts it by its tag.
            removal_policy=cdk.RemovalPolicy.RETAIN if installation.bucket_name else KEPT_ONCE_MADE,
            lifecycle_rules=_lifecycle_rules(),
        )
        acknowledge(
            bucket.node.default_child,
            "S1",
            "Access logs would be a second bucket, which bills and grows. CloudTrail records reads and writes of "
            "objects only if you turn its data events on, for a price.",
        )
        # The L2 construct would put a random password in. This one is empty until `make secret` fills it.
        secret = secretsmanager.CfnSecret(
            self,
            "Secret",
            name=installation.secret_name,
            description="resnet-spot: the Hugging Face token; `make secret` puts it in",
        )
        secret.apply_removal_policy(KEPT_ONCE_MADE)
        acknowledge(secret, "SMG4", "Only its owner can renew a Hugging Face token, on the hub; AWS cannot rotate it.")
        self.bucket_arn = self.export_value(bucket.bucket_arn)
        self.bucket_name = self.export_value(bucket.bucket_name)
        self.secret_arn = self.export_value(secret.ref)

        tag_all(self, installation)
        for name, value, description in (
            (Output.BUCKET, bucket.bucket_name, "the store is s3://<this>"),
            (Output.SECRET, secret.ref, "the Hugging Face token"),
        ):
            cdk.CfnOutput(self, name, value=value, description=description)


def _lifecycle_rules() -> list[s3.LifecycleRule]:
    """`operate.installation.versions` gives the same to a bucket that is adopted."""
    return [
        s3.LifecycleRule(
            id="abort-stale-uploads",
            abort_incomplete_multipart_upload_after=cdk.Duration.days(ABORT_UPLOADS_DAYS),
        ),
        s3.LifecycleRule(
            id="expire-superseded-checkpoints",
            prefix="checkpoints/",
            tag_filters=dict([SUPERSEDED_TAG]),
            expiration=cdk.Duration.days(SUPERSEDED_DAYS),  # with versions, this only hides
            noncurrent_version_expiration=cdk.Duration.days(OLD_SUPERSEDED_DAYS),
        ),
        s3.LifecycleRule(
            id="expire-old-versions",
            noncurrent_version_expiration=cdk.Duration.days(OLD_VERSION_DAYS),
            expired_object_delete_marker=True,  # the mark of a deletion goes with what it hid
        ),
    ]
