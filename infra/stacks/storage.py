"""The storage stack: what outlives every run and every `make destroy`.

Not here: who may read or write the bucket and the secret; the roles belong to the training stack.
"""

from __future__ import annotations

import aws_cdk as cdk
from aws_cdk import aws_s3 as s3
from aws_cdk import aws_secretsmanager as secretsmanager
from constructs import Construct

from infra.config import Installation, Output, Tag
from infra.stacks.acknowledge import acknowledge
from trainer.contract import SUPERSEDED_TAG

ABORT_UPLOADS_DAYS = 1  # of a multipart upload that no one completes: it bills, but shows in no listing
SUPERSEDED_DAYS = 3  # that a superseded checkpoint can still be read


class StorageStack(cdk.Stack):
    """The bucket, which is the whole store (`s3://<bucket>`), and the Hugging Face token's secret."""

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
            versioned=False,  # objects are immutable or small; old versions would only bill
            removal_policy=cdk.RemovalPolicy.RETAIN,
            lifecycle_rules=[
                s3.LifecycleRule(
                    id="abort-stale-uploads",
                    abort_incomplete_multipart_upload_after=cdk.Duration.days(ABORT_UPLOADS_DAYS),
                ),
                s3.LifecycleRule(
                    id="expire-superseded-checkpoints",
                    prefix="checkpoints/",
                    tag_filters=dict([SUPERSEDED_TAG]),
                    expiration=cdk.Duration.days(SUPERSEDED_DAYS),
                ),
            ],
        )
        acknowledge(
            bucket.node.default_child,
            "S1",
            "Access logs of a bucket with one user would be a second bucket that bills and grows; CloudTrail tells.",
        )
        # The L2 construct would fill it with a random password; without a value it is empty until `make secret`.
        secret = secretsmanager.CfnSecret(
            self,
            "Secret",
            name=installation.secret_name,
            description="resnet-spot: the Hugging Face token; `make secret` puts it in",
        )
        secret.apply_removal_policy(cdk.RemovalPolicy.RETAIN)
        acknowledge(secret, "SMG4", "Only its owner can renew a Hugging Face token, on the hub; AWS cannot rotate it.")
        self.bucket_arn = self.export_value(bucket.bucket_arn)
        self.bucket_name = self.export_value(bucket.bucket_name)
        self.secret_arn = self.export_value(secret.ref)

        cdk.Tags.of(self).add(Tag.INSTALLATION, installation.name)
        for name, value, description in (
            (Output.BUCKET, bucket.bucket_name, "the store is s3://<this>"),
            (Output.SECRET, secret.ref, "the Hugging Face token"),
        ):
            cdk.CfnOutput(self, name, value=value, description=description)
