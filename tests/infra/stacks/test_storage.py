"""The storage stack: its template as CloudFormation gets it, and the context that it is made from."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import aws_cdk as cdk
import pytest
from aws_cdk.assertions import Match, Template

from infra.config import Installation, Output, context_key
from infra.operate.installation.versions import keep_versions
from infra.operate.runs import ExplainedBucket
from infra.stacks.storage import StorageStack
from tests import ROOT
from tests.emulator.aws import Aws
from trainer.contract import Exit, UserError, dataset_key, manifest_key, run_key, snapshot_key


def template_of(installation: Installation) -> Template:
    return Template.from_stack(StorageStack(cdk.App(), installation))


@pytest.fixture(scope="module")
def template() -> Template:
    return template_of(Installation())


def lifecycle_rules(template: Template) -> list[dict[str, Any]]:
    (bucket,) = template.find_resources("AWS::S3::Bucket").values()
    rules: list[dict[str, Any]] = bucket["Properties"]["LifecycleConfiguration"]["Rules"]
    return rules


def test_the_stack_is_one_bucket_with_its_policy_and_one_secret(template: Template) -> None:
    types = [resource["Type"] for resource in template.to_json()["Resources"].values()]
    assert sorted(types) == ["AWS::S3::Bucket", "AWS::S3::BucketPolicy", "AWS::SecretsManager::Secret"]


def test_nothing_in_the_bucket_can_be_made_public(template: Template) -> None:
    template.has_resource_properties(
        "AWS::S3::Bucket",
        {
            "PublicAccessBlockConfiguration": {
                "BlockPublicAcls": True,
                "BlockPublicPolicy": True,
                "IgnorePublicAcls": True,
                "RestrictPublicBuckets": True,
            },
            "OwnershipControls": {"Rules": [{"ObjectOwnership": "BucketOwnerEnforced"}]},
        },
    )


def test_the_only_policy_refuses_whoever_comes_without_tls(template: Template) -> None:
    (name,) = template.find_resources("AWS::S3::Bucket")
    arn = {"Fn::GetAtt": [name, "Arn"]}
    (policy,) = template.find_resources("AWS::S3::BucketPolicy").values()
    assert policy["Properties"]["Bucket"] == {"Ref": name}
    assert policy["Properties"]["PolicyDocument"]["Statement"] == [
        {
            "Effect": "Deny",
            "Principal": {"AWS": "*"},
            "Action": "s3:*",
            "Resource": [arn, {"Fn::Join": ["", [arn, "/*"]]}],
            "Condition": {"Bool": {"aws:SecureTransport": "false"}},
        }
    ]


def test_objects_are_encrypted_and_keep_old_versions(template: Template) -> None:
    template.has_resource_properties(
        "AWS::S3::Bucket",
        {
            "BucketEncryption": {
                "ServerSideEncryptionConfiguration": [{"ServerSideEncryptionByDefault": {"SSEAlgorithm": "AES256"}}]
            },
            "VersioningConfiguration": {"Status": "Enabled"},
        },
    )


def test_what_is_stored_survives_the_stack_and_a_first_deploy_that_rolls_back_leaves_nothing(
    template: Template, aws: Aws
) -> None:
    cloudformation, s3, secrets = (aws.client(name) for name in ("cloudformation", "s3", "secretsmanager"))
    body = json.dumps({"Resources": template.to_json()["Resources"]})  # its parameter is of a bootstrapped account

    def create() -> str:
        cloudformation.create_stack(StackName="new", TemplateBody=body)
        (stack,) = cloudformation.describe_stacks(StackName="new")["Stacks"]
        return str(stack["StackStatus"])

    aws.set(create_failures={"new": "a policy of the organisation denies s3:PutBucketPolicy"})
    assert create() == "ROLLBACK_COMPLETE"
    assert (s3.list_buckets()["Buckets"], secrets.list_secrets()["SecretList"]) == ([], [])
    cloudformation.delete_stack(StackName="new")
    aws.set(create_failures={"new": ""})
    assert create() == "CREATE_COMPLETE"
    cloudformation.delete_stack(StackName="new")
    assert len(s3.list_buckets()["Buckets"]) == len(secrets.list_secrets()["SecretList"]) == 1


def test_a_bucket_with_a_name_stays_whatever_is_rolled_back_since_it_may_have_data_of_before() -> None:
    named = template_of(Installation(bucket_name="my-imagenet"))
    named.has_resource("AWS::S3::Bucket", {"DeletionPolicy": "Retain", "UpdateReplacePolicy": "Retain"})
    named.has_resource("AWS::SecretsManager::Secret", {"DeletionPolicy": "RetainExceptOnCreate"})


def test_the_secret_has_a_fixed_name_and_no_value_of_its_own(template: Template) -> None:
    template.has_resource_properties(
        "AWS::SecretsManager::Secret",
        {
            "Name": Installation().secret_name,
            "SecretString": Match.absent(),
            "GenerateSecretString": Match.absent(),
        },
    )


def test_an_upload_that_no_one_completes_is_aborted_after_a_day(template: Template) -> None:
    # S3 refuses a filter by tag in such a rule; without a filter it holds for the whole bucket.
    assert [rule for rule in lifecycle_rules(template) if "AbortIncompleteMultipartUpload" in rule] == [
        {
            "Id": "abort-stale-uploads",
            "Status": "Enabled",
            "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": 1},
        }
    ]


def test_only_superseded_checkpoints_expire_and_old_versions_go_after_days(template: Template) -> None:
    ends = [rule for rule in lifecycle_rules(template) if "AbortIncompleteMultipartUpload" not in rule]
    assert ends == [
        {
            "Id": "expire-superseded-checkpoints",
            "Status": "Enabled",
            "Prefix": "checkpoints/",
            "TagFilters": [{"Key": "superseded", "Value": "true"}],
            "ExpirationInDays": 1,
            "NoncurrentVersionExpiration": {"NoncurrentDays": 2},
        },
        {
            "Id": "expire-old-versions",
            "Status": "Enabled",
            "ExpiredObjectDeleteMarker": True,
            "NoncurrentVersionExpiration": {"NoncurrentDays": 7},
        },
    ]


def test_a_bucket_that_is_adopted_gets_the_rules_and_versions_of_the_stack(template: Template, aws: Aws) -> None:
    s3 = aws.client("s3")
    resources = {"Resources": template.to_json()["Resources"]}  # its parameter is of a bootstrapped account
    aws.client("cloudformation").create_stack(StackName="new", TemplateBody=json.dumps(resources))
    (made,) = [found["Name"] for found in s3.list_buckets()["Buckets"]]
    s3.create_bucket(Bucket="adopted")
    own = {"ID": "mine", "Status": "Enabled", "Filter": {"Prefix": "mine/"}, "Expiration": {"Days": 5}}
    s3.put_bucket_lifecycle_configuration(Bucket="adopted", LifecycleConfiguration={"Rules": [own]})
    keep_versions(ExplainedBucket(s3, "adopted"))
    for bucket in (made, "adopted"):
        assert s3.get_bucket_versioning(Bucket=bucket)["Status"] == "Enabled"
    first, *rest = s3.get_bucket_lifecycle_configuration(Bucket="adopted")["Rules"]
    assert first == own
    assert rest == s3.get_bucket_lifecycle_configuration(Bucket=made)["Rules"]


def test_the_expiring_prefix_holds_checkpoints_and_neither_runs_nor_datasets(template: Template) -> None:
    (prefix,) = [rule["Prefix"] for rule in lifecycle_rules(template) if "Prefix" in rule]
    assert manifest_key("digits", 10, 1).startswith(prefix)
    assert snapshot_key("digits", 10, 1).startswith(prefix)
    assert not run_key("digits", "result.json").startswith(prefix)
    assert not dataset_key("imagenet-1k", "1", "index.json").startswith(prefix)


def test_the_stack_tells_the_name_of_its_bucket_and_its_secret(template: Template) -> None:
    for output, type in ((Output.BUCKET, "AWS::S3::Bucket"), (Output.SECRET, "AWS::SecretsManager::Secret")):
        (name,) = template.find_resources(type)
        template.has_output(output, {"Value": {"Ref": name}})


def test_aws_makes_up_the_name_of_the_bucket_unless_one_is_given(template: Template) -> None:
    template.has_resource_properties("AWS::S3::Bucket", {"BucketName": Match.absent()})
    named = template_of(Installation(bucket_name="my-imagenet"))
    named.has_resource_properties("AWS::S3::Bucket", {"BucketName": "my-imagenet"})


@pytest.mark.slow
def test_the_app_names_a_bad_value_and_makes_no_template(tmp_path: Path) -> None:
    environ = os.environ | {
        "CDK_OUTDIR": str(tmp_path),
        "CDK_CONTEXT_JSON": json.dumps({context_key("bucket_name"): "My_Bucket"}),
    }
    done = subprocess.run(
        [sys.executable, "-m", "infra.app"], cwd=ROOT, env=environ, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == Exit.USER
    assert done.stderr.startswith("error: resnet-spot:bucket_name='My_Bucket' in the CDK context is not valid: use ")
    assert "(3 to 63 lower case letters" in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("context", "message"),
    [
        ({"resnet-spot:name": "Mine"}, r"resnet-spot:name='Mine' .* \(at most 24 lower case letters"),
        ({"resnet-spot:name": ""}, r"resnet-spot:name='' .* for example resnet-spot"),
        ({"resnet-spot:name": "a" * 25}, r"resnet-spot:name='a{25}' .* \(at most 24 "),
        ({"resnet-spot:name": 7}, r"resnet-spot:name=7 .* is not a string: put it in"),
        ({"resnet-spot:bucket_name": "a.b.c"}, r"resnet-spot:bucket_name='a.b.c' .* or \"\" and AWS makes one up"),
        ({"resnet-spot:bucket_name": None}, r"resnet-spot:bucket_name=None .* is not a string"),
        ({"resnet-spot:market": "cheap"}, r"resnet-spot:market='cheap' .* \(spot or on-demand\), for example spot"),
        ({"resnet-spot:vpc_id": "vpc-0a"}, r"vpc_id='vpc-0a' and .*subnet_ids='' .* belong together: give both"),
        (
            {"resnet-spot:vpc_id": "vpc-0a", "resnet-spot:subnet_ids": "subnet-0a", "resnet-spot:zones": "us-east-1a"},
            r"resnet-spot:zones='us-east-1a' .* has no effect with a given VPC",
        ),
        ({"resnet-spot:image_uri": "trainer"}, r"resnet-spot:image_uri='trainer' .*an image with its digest"),
        ({"resnet-spot:tags": "team"}, r"tags='team' .* is not valid: .* for example team=vision,cost-center=42"),
        ({"resnet-spot:tags": "cost center=1"}, r"tags='cost center=1' .* is not valid"),
        ({"resnet-spot:tags": "a/b=1"}, r"tags='a/b=1' .* is not valid"),
        ({"resnet-spot:tags": "a=1,"}, r"tags='a=1,' .* is not valid"),
        ({"resnet-spot:tags": "a=1,a=2"}, r"tags='a=1,a=2' in the CDK context: 'a' is there twice; leave it out"),
        ({"resnet-spot:tags": "Resnet-Spot=x"}, r"'Resnet-Spot' is a key that AWS or this project uses itself"),
        ({"resnet-spot:tags": "AWS:x=1"}, r"'AWS:x' is a key that AWS or this project uses itself"),
        ({"resnet-spot:tags": "_index=1"}, r"'_index' is a key that AWS"),
        ({"resnet-spot:tags": ",".join(f"k{n}=" for n in range(41))}, r"it has 41 tags, and AWS takes 40 beside ours"),
        ({"resnet-spot:bucket": "x"}, r"resnet-spot:bucket='x' .* use one of .*resnet-spot:bucket_name"),
    ],
)
def test_a_bad_value_in_the_context_is_told_with_rule_and_fix(context: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Installation.from_context(context)


def test_keys_of_cdk_itself_are_left_alone() -> None:
    assert Installation.from_context({"aws:cdk:version-reporting": False, "name": "x"}) == Installation()


def test_cdk_json_shows_every_setting_with_its_default() -> None:
    shown = json.loads((ROOT / "cdk.json").read_text())["context"]
    assert shown == {context_key(name): value for name, value in asdict(Installation()).items()}
