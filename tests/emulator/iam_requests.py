"""What IAM is asked about a call to AWS: actions, each on a resource, and their context.

After AWS's Service Authorization Reference: an action without a resource type is asked on "*", one that lists is asked
on "*" or on every name. A call may need more than the action of its name: whoever hands over a role passes it, and
whoever gives a group a launch template could run its machines.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qs, unquote

from moto.autoscaling.models import FakeAutoScalingGroup, autoscaling_backends
from moto.ec2.models import ec2_backends
from moto.fis.models import fis_backends
from moto.iam.models import iam_backends
from moto.secretsmanager.models import secretsmanager_backends

from tests.emulator import aws_placement
from tests.emulator.aws_control import read_body
from tests.emulator.policies import Request

ACCOUNT, REGION = "123456789012", "us-east-1"
S3_ACTIONS = {
    "HeadObject": "GetObject", "ListObjectsV2": "ListBucket", "ListObjects": "ListBucket", "HeadBucket": "ListBucket",
    "CreateMultipartUpload": "PutObject", "UploadPart": "PutObject", "CompleteMultipartUpload": "PutObject",
    "ListMultipartUploads": "ListBucketMultipartUploads", "ListParts": "ListMultipartUploadParts",
    "ListObjectVersions": "ListBucketVersions", "GetBucketLifecycleConfiguration": "GetLifecycleConfiguration",
    "PutBucketLifecycleConfiguration": "PutLifecycleConfiguration", "ListBuckets": "ListAllMyBuckets",
    "GetBucketLifecycle": "GetLifecycleConfiguration", "PutBucketLifecycle": "PutLifecycleConfiguration",
    "DeleteObjects": "DeleteObject",
}  # fmt: skip
CREATES = {"PutObject": "true", "CompleteMultipartUpload": "true", "CreateMultipartUpload": "false",
           "UploadPart": "false"}  # fmt: skip
OF_AN_UPLOAD = {"PUT": "UploadPart", "POST": "CompleteMultipartUpload", "DELETE": "AbortMultipartUpload",
                "GET": "ListParts"}  # fmt: skip  # `call_of` does not tell these from what is done with an object
PREFIXES = {"service-quotas": "servicequotas"}  # of actions, where the client's name is another
EC2_KINDS = {
    "i": "instance", "vol": "volume", "eni": "network-interface", "vpce": "vpc-endpoint", "subnet": "subnet",
    "igw": "internet-gateway", "rtb": "route-table", "sg": "security-group", "vpc": "vpc", "lt": "launch-template",
}  # fmt: skip
# Parts of an update of a group that AWS takes for a use of its launch template: who sends them needs what starting a
# machine needs. https://docs.aws.amazon.com/autoscaling/ec2/userguide/ec2-auto-scaling-launch-template-permissions.html
WITH_TEMPLATE = ("MixedInstancesPolicy.", "LaunchTemplate.")
RUN_ON = ("instance", "network-interface", "placement-group", "security-group", "subnet", "volume")
TAGGED_AT_LAUNCH = ("instance", "volume", "network-interface")


def requests(call: str, environ: dict[str, Any], user: str) -> list[Request]:
    """`user` is IAM's id of who asks."""
    service, _, operation = call.partition(".")
    if call == "sts.GetCallerIdentity":  # AWS: no permission is needed
        return []
    if service == "s3":
        return s3_requests(operation, environ)
    if call == "ssm.StartSession":
        id = str(as_json(environ)["Target"])
        return [Request("ssm:StartSession", ec2_arn(id), tags_of(id)), *more_requests(call, {}, user)]
    body = form(environ) if "x-www-form-urlencoded" in environ.get("CONTENT_TYPE", "") else as_json(environ)
    if service == "ec2":
        return ec2_requests(operation, body)
    if service == "fis":
        return fis_requests(operation, body, unquote(environ["PATH_INFO"]).rpartition("/")[2])
    if call == "autoscaling.CreateOrUpdateTags":
        groups = {one for name, one in body.items() if name.endswith(".ResourceId")}
        return [Request("autoscaling:CreateOrUpdateTags", group_arn(one)) for one in sorted(groups)]
    asked = Request(f"{PREFIXES.get(service, service)}:{operation}", resource_of(service, operation, body, environ))
    return [asked, *more_requests(call, body, user)]


def form(environ: dict[str, Any]) -> dict[str, str]:
    return {name: values[0] for name, values in parse_qs(read_body(environ).decode()).items()}


def as_json(environ: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(read_body(environ) or b"{}")
    return found


def s3_requests(operation: str, environ: dict[str, Any]) -> list[Request]:
    query = {name: values[0] for name, values in parse_qs(environ.get("QUERY_STRING", ""), True).items()}
    bucket, _, key = unquote(environ["PATH_INFO"]).lstrip("/").partition("/")
    arn = f"arn:aws:s3:::{bucket}" if bucket else "*"
    if "uploadId" in query:
        operation = OF_AN_UPLOAD[environ["REQUEST_METHOD"]]
    elif environ["REQUEST_METHOD"] == "DELETE" and "tagging" not in query:
        operation = "DeleteObject" if key else "DeleteBucket"
    action, context = S3_ACTIONS.get(operation, operation), dict[str, str]()
    if "prefix" in query:
        context["s3:prefix"] = query["prefix"]
    if operation in CREATES:
        context["s3:ObjectCreationOperation"] = CREATES[operation]
    for header in ("if-none-match", "if-match"):
        if value := environ.get(f"HTTP_{header.upper().replace('-', '_')}"):
            context[f"s3:{header}"] = value
    if "versionId" in query:
        action = action.replace("Object", "ObjectVersion")
    if operation == "DeleteObjects":
        entries = re.findall(r"<Object>(.*?)</Object>", read_body(environ).decode(), re.DOTALL)
        return [
            Request(f"s3:DeleteObject{'Version' if '<VersionId>' in one else ''}", f"{arn}/{key}")
            for one in entries for key in re.findall(r"<Key>(.*?)</Key>", one)
        ]  # fmt: skip
    found = [Request(f"s3:{action}", f"{arn}/{key}" if key else arn, context)]
    if source := environ.get("HTTP_X_AMZ_COPY_SOURCE"):
        found.append(Request("s3:GetObject", f"arn:aws:s3:::{unquote(source).lstrip('/').partition('?')[0]}"))
    if "HTTP_X_AMZ_TAGGING" in environ:
        found.append(Request("s3:PutObjectTagging", f"{arn}/{key}"))
    return found


def ec2_requests(operation: str, body: dict[str, str]) -> list[Request]:
    """On each thing that is named, with its tags. What only describes is asked on "*"."""
    if operation.startswith(("Describe", "Get")):
        return [Request(f"ec2:{operation}", "*")]
    if operation == "DeletePlacementGroup":  # its ARN has the name
        group = aws_placement.known(ACCOUNT, REGION)[body["GroupName"]]
        return [Request(f"ec2:{operation}", group.arn, {f"aws:ResourceTag/{k}": v for k, v in group.tags.items()})]
    ids = [one for name, one in sorted(body.items()) if re.fullmatch(r"[a-z]+-[0-9a-f]{8,}", one) and "Tag" not in name]
    return [Request(f"ec2:{operation}", ec2_arn(one), tags_of(one)) for one in ids]


def fis_requests(operation: str, body: dict[str, Any], last: str) -> list[Request]:
    """With the tags of what is made and of the template that is named. AWS's own role of the service is as missing."""
    given = {f"aws:RequestTag/{key}": value for key, value in body.get("tags", {}).items()}
    place, template = f"arn:aws:fis:{REGION}:{ACCOUNT}:", str(body.get("experimentTemplateId", last))
    named = f"{place}experiment-template/{template}"
    known = fis_backends[ACCOUNT][REGION].tagger.get_tag_dict_for_resource(named)
    of_template = {f"aws:ResourceTag/{key}": value for key, value in known.items()}
    action = f"fis:{operation}"
    if operation.startswith("List"):
        return [Request(action, "*")]
    if operation == "CreateExperimentTemplate":
        made = f"{place}experiment-template/*"
        parts = [f"{place}action/{one['actionId']}" for one in body["actions"].values()]
        passed = Request("iam:PassRole", body["roleArn"], {"iam:PassedToService": "fis.amazonaws.com"})
        tagged = Request("fis:TagResource", made, given)
        return [*(Request(action, one, given) for one in (made, *parts)), tagged, passed]
    if operation == "StartExperiment":
        made, own = f"{place}experiment/*", "aws-service-role/fis.amazonaws.com/AWSServiceRoleForFIS"
        by_service = {"iam:AWSServiceName": "fis.amazonaws.com"}
        return [
            Request(action, named, of_template | given), Request(action, made, given),
            Request("fis:TagResource", made, given),
            Request("iam:CreateServiceLinkedRole", f"arn:aws:iam::{ACCOUNT}:role/{own}", by_service),
        ]  # fmt: skip
    return [Request(action, named, of_template)]


def ec2_arn(id: str) -> str:
    return f"arn:aws:ec2:{REGION}:{ACCOUNT}:{EC2_KINDS[id.partition('-')[0]]}/{id}"


def tags_of(id: str) -> dict[str, str]:
    tags: dict[str, str] = ec2_backends[ACCOUNT][REGION].tags.get(id, {})
    return {f"aws:ResourceTag/{key}": value for key, value in tags.items()}


def more_requests(call: str, body: dict[str, Any], user: str) -> Iterator[Request]:
    """What a call needs beyond the action of its name."""
    if call in ("scheduler.CreateSchedule", "scheduler.UpdateSchedule"):
        context = {"iam:PassedToService": "scheduler.amazonaws.com"}
        yield Request("iam:PassRole", body["Target"]["RoleArn"], context)
    if call == "autoscaling.UpdateAutoScalingGroup" and any(name.startswith(WITH_TEMPLATE) for name in body):
        yield from requests_of_template(autoscaling_backends[ACCOUNT][REGION].autoscaling_groups[group_of_call(body)])
    if call == "iam.CreateRole" and any(name.startswith("Tags.") for name in body):
        yield Request("iam:TagRole", f"arn:aws:iam::{ACCOUNT}:role/{body['RoleName']}")
    if call == "ssm.StartSession":  # whoever opens a session then opens its channel
        place = f"arn:aws:ssm:{REGION}:{ACCOUNT}:"
        yield Request("ssm:StartSession", f"{place}document/SSM-SessionManagerRunShell")
        yield Request("ssmmessages:OpenDataChannel", f"{place}session/{user}-0a1b2c3d")


def requests_of_template(group: FakeAutoScalingGroup) -> Iterator[Request]:
    """Who sends a part of the policy must be allowed to start machines of the group's launch template."""
    place, id = f"arn:aws:ec2:{REGION}:{ACCOUNT}:", group.ec2_launch_template.id
    by_template = {"ec2:LaunchTemplate": ec2_arn(id)}
    data = group.ec2_launch_template.get_version(group.launch_template_version).data
    yield Request("ec2:RunInstances", ec2_arn(id), by_template | tags_of(id))
    yield Request("ec2:RunInstances", f"arn:aws:ec2:{REGION}::image/{data.get('ImageId', 'ami-1')}", by_template)
    for kind in RUN_ON:
        yield Request("ec2:RunInstances", f"{place}{kind}/*", by_template)
    for tagged in data.get("TagSpecifications", []):
        yield Request("ec2:CreateTags", f"{place}{tagged['ResourceType']}/*", {"ec2:CreateAction": "RunInstances"})
    if profile := data.get("IamInstanceProfile"):
        for role in roles_of(profile):
            yield Request("iam:PassRole", role, {"iam:PassedToService": "ec2.amazonaws.com"})


def roles_of(profile: dict[str, str]) -> list[str]:
    known = iam_backends[ACCOUNT]["aws"].instance_profiles.values()
    return [role.arn for one in known if profile in ({"Arn": one.arn}, {"Name": one.name}) for role in one.roles]


def resource_of(service: str, operation: str, body: dict[str, Any], environ: dict[str, Any]) -> str:
    """The ARN that a call is about; "*" where AWS knows no resource, or this emulator does not."""
    place, last = f"arn:aws:{service}:{REGION}:{ACCOUNT}:", unquote(environ["PATH_INFO"]).rpartition("/")[2]
    match service, body:
        case "sts", {"RoleArn": arn}:
            return str(arn)
        case "sns", {"TopicArn": arn}:
            return str(arn)
        case "secretsmanager", {"SecretId": name}:
            return secret_arn(name)
        case "logs", {"logGroupName": name}:
            return f"{place}log-group:{name}:log-stream:{body.get('logStreamName', '')}"
        case "ecr", _ if operation != "GetAuthorizationToken":
            return f"{place}repository/{body.get('repositoryName', '*')}"
        case "cloudformation", {"StackName": name}:
            return str(name) if name.startswith("arn:") else f"{place}stack/{name}/*"
        case "ssm", {"Name": name}:
            return f"arn:aws:ssm:{REGION}:{'' if name.startswith('/aws/') else ACCOUNT}:parameter{name}"
        case "ssm", {"SessionId": id}:
            return f"{place}session/{id}"
        case "events", {"Name": name} | {"Rule": name}:
            return f"{place}rule/{name}"
        case "events", {"ResourceARN": arn}:
            return str(arn)
        case "iam", {"RoleName": name}:
            return f"arn:aws:iam::{ACCOUNT}:role/{name}"
        case "codebuild", {"projectName": name}:
            return f"{place}project/{name}"
        case "codebuild", {"id": name} | {"name": name} | {"ids": [name, *_]} | {"names": [name, *_]}:
            return f"{place}project/{name.partition(':')[0]}"
        case "cloudwatch", {"AlarmNames": [name, *_]}:
            return f"{place}alarm:{name}"
        case "cloudwatch", _ if operation == "DescribeAlarms":
            return f"{place}alarm:*"
        case "lambda", _ if operation != "ListFunctions":
            return f"{place}function:{last}"
        case "autoscaling", _ if not operation.startswith("Describe"):
            return group_arn(group_of_call(body))
        case "scheduler", _ if not operation.startswith("List"):
            return f"{place}{schedule_of_call(operation, body, last, environ)}"
    return "*"


def secret_arn(name: str) -> str:
    known = secretsmanager_backends[ACCOUNT][REGION].secrets.values()
    missing = f"arn:aws:secretsmanager:{REGION}:{ACCOUNT}:secret:{name}"
    return next((str(secret.arn) for secret in known if name in (secret.name, secret.arn)), missing)


def group_of_call(body: dict[str, Any]) -> str:
    groups = autoscaling_backends[ACCOUNT][REGION].autoscaling_groups.values()
    instance = body.get("InstanceId")
    of_instance = (g.name for g in groups if any(i.instance.id == instance for i in g.instance_states))
    return str(body.get("AutoScalingGroupName") or next(of_instance, ""))


def group_arn(name: str) -> str:
    return f"arn:aws:autoscaling:{REGION}:{ACCOUNT}:autoScalingGroup:1:autoScalingGroupName/{name}"


def schedule_of_call(operation: str, body: dict[str, Any], last: str, environ: dict[str, Any]) -> str:
    if operation.endswith("ScheduleGroup"):
        return f"schedule-group/{last}"
    query = parse_qs(environ.get("QUERY_STRING", ""))
    return f"schedule/{body.get('GroupName') or query.get('groupName', ['default'])[0]}/{last}"
