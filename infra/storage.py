"""The storage stack: what outlives every run and every `make destroy`.

Not here: who may read or write the bucket; the roles, with their statements, belong to the training stack.
"""

from __future__ import annotations

import aws_cdk as cdk
from aws_cdk import aws_s3 as s3
from constructs import Construct

from infra.config import Installation
from trainer.contract import SUPERSEDED_TAG

ABORT_UPLOADS_DAYS = 1  # of a multipart upload that no one completes: it bills, but shows in no listing
SUPERSEDED_DAYS = 3  # that a superseded checkpoint can still be read


class StorageStack(cdk.Stack):
    """The bucket. It is the whole store (`s3://<bucket>`), since the lifecycle rules name the first key element."""

    def __init__(self, scope: Construct, installation: Installation) -> None:
        super().__init__(
            scope,
            installation.storage_stack,
            description="resnet-spot: datasets, runs and checkpoints; kept when training is destroyed",
        )
        self.bucket = s3.Bucket(
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
        cdk.CfnOutput(self, "BucketName", value=self.bucket.bucket_name, description="the store is s3://<this>")
