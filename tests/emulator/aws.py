"""AWS over HTTP for tests/infra: moto's server as a process of its own, with the gaps closed that the commands, the
guard and the unmodified `cdk` fall into. `python -m tests.emulator.aws` is the server; it prints its port, and ends
when its standard input does.

The fixture `aws` is an empty account and the environment of this process pointing to it:

    aws.client("ec2")                       a boto3 client
    aws.environ                             for subprocesses: endpoint, credentials, region, nothing else of AWS
    aws.set(quotas={"L-3819A6DF": 0})       a setting; dictionaries are merged; all are as before in the next test
    aws.fault("ec2.DescribeInstances", code="UnauthorizedOperation", times=1)
    aws.calls()                             ["ec2.DescribeInstances", …] in order of arrival; aws.clear_calls()
    aws.asked()                             what IAM was asked of roles, and why it refused

Settings (aws_control.py has the defaults):
    quotas            values by quota code: servicequotas GetServiceQuota and ListServiceQuotas; moto has VPC's only
    on_demand_usd     by instance type: pricing GetProducts, which moto lacks
    disk_usd          a gigabyte of gp3 for a month, in the same answer
    spot_usd          by instance type: [[Unix seconds, dollars from then on], …], the oldest first, for ec2
                      DescribeSpotPriceHistory; else 40 % of on-demand; moto says $0.00001
    zone_usd          by zone: its spot prices are so many times the others
    parameters        public SSM parameters (/aws/service/…): the AMI's; moto refuses to put them
    launch_failures   by Auto Scaling group: it launches nothing, and a Failed scaling activity has this StatusMessage;
                      set to "" again, the group gets its machines with the next describe
    end_reason        why machines end from now on, in EC2's StateReason: Server.SpotInstanceTermination, …
    stack_status      by stack name: CloudFormation tells this status (ROLLBACK_COMPLETE, …) until it is deleted
    create_failures   by stack name: its creation fails for this reason and is rolled back; "" again: it can be made
    delete_failures   by stack name: DeleteStack ends in DELETE_FAILED with this reason; "" again: it can be deleted
    session_seconds   a role that was taken on ends so long from now, and later ones after as long; 0: as asked
    log_delay_seconds FilterLogEvents shows an event only so long after it came in
    log_page_events   FilterLogEvents gives at most so many at once, and a token
    machines_boot     a machine that is terminated is shutting-down until `off` names it
    account_plan      FREE or PAID: freetier GetAccountPlanState
    secret_lingers    so often DescribeSecret shows a secret after it was deleted without recovery
    block_public_access   off, block-bidirectional or block-ingress: of all VPCs; exclusions can be made
    build_minute_seconds  how long a minute of a CodeBuild project's timeout is
    registry          host:port of the Docker registry behind ECR (fixture `registry` of registry.py)
    faults            see `Aws.fault`: call (`*` matches), code ("network": hangs up), message, status, times

Beyond moto 5.2.5 there are also, without a setting: scaling activities of launches and terminations; type and market of
a group's machines after its mixed-instances policy (the first override, the first subnet), their volumes and interfaces
with the launch template's tags, and gone with them; a changed distribution or desired capacity that leaves the rest of
the policy alone; desired above max refused; a suspended group launches nothing; placement groups;
the default key of disks; images as the
registry has them; the spot role by its real name; CloudFormation: AWS::SecretsManager::Secret,
AWS::Scheduler::ScheduleGroup, AWS::CloudWatch::Alarm, AWS::CodeBuild::Project; builds of CodeBuild, which run here
(aws_builds.py); updates in place of groups; outputs and exports after change sets; ImportExistingResources (buckets, no
secrets); deletion of VPC parts; exports in use keep their stack; recorded only: policies of buckets and
topics. A role that was taken on may do what its inline policies and its session's policy say (enforcement.py); the
tests' own keys may do anything. Not there: managed policies; machines that boot; reclaims; bucket policy and lifecycle
at work.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest

from tests import ROOT

REGION = "us-east-1"
ACCOUNT = "123456789012"


@dataclass(frozen=True)
class Aws:
    """The emulated account."""

    endpoint: str
    region: str = REGION
    account: str = ACCOUNT

    @property
    def environ(self) -> dict[str, str]:
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing",
            "AWS_REGION": self.region,
            "AWS_DEFAULT_REGION": self.region,
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        }

    def client(self, service: str) -> Any:
        return make_client(self, service)

    def set(self, **settings: Any) -> None:
        self._ask("/fake/settings", json.dumps(settings).encode())

    def fault(
        self, call: str, code: str = "AccessDenied", message: str = "planned by the test", *,
        status: int = 400, times: int = -1,
    ) -> None:  # fmt: skip
        """Refuse a call (`ec2.RunInstances`, `logs.*`) from now on, or so often; clients retry 5xx and Throttling."""
        known = self._ask("/fake/settings")["settings"]["faults"]
        fault = {"call": call, "code": code, "message": message, "status": status, "times": times}
        self.set(faults=[*known, fault])

    def heal(self) -> None:
        """No fault any more."""
        self.set(faults=[])

    def calls(self) -> list[str]:
        return list(self._ask("/fake/settings")["calls"])

    def cut(self) -> list[str]:
        """The machines that were terminated with SkipOsShutdown: whoever boots them cuts their power."""
        return list(self._ask("/fake/settings")["cut"])

    def asked(self) -> list[dict[str, Any]]:
        """What IAM was asked: action, resource, context, the role's ARN, and why it was refused, or ""."""
        return list(self._ask("/fake/settings")["asked"])

    def clear_calls(self) -> None:
        self._ask("/fake/calls", b"{}")

    def reset(self) -> None:
        self._ask("/moto-api/reset", b"")

    def _ask(self, path: str, body: bytes | None = None) -> Any:
        with urllib.request.urlopen(self.endpoint + path, body, timeout=60) as answer:
            return json.loads(answer.read())


@cache
def make_client(account: Aws, service: str) -> Any:
    """Once, since it takes a tenth of a second."""
    import boto3  # the process that serves has no need of it

    return boto3.client(
        service, endpoint_url=account.endpoint, region_name=account.region,
        aws_access_key_id="testing", aws_secret_access_key="testing",
    )  # fmt: skip


@pytest.fixture(scope="session")
def aws_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Aws]:
    """The emulator's process, for the session; tests take `aws`."""
    log = tmp_path_factory.mktemp("aws") / "server.log"
    with log.open("wb") as errors:
        server = subprocess.Popen(
            [sys.executable, "-m", "tests.emulator.aws"],
            cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors,
        )  # fmt: skip
    with server:  # closes the pipes and waits
        assert server.stdout is not None
        if not (port := server.stdout.readline().strip()):
            pytest.fail(f"the AWS emulator did not start:\n{log.read_text()}")
        yield Aws(f"http://127.0.0.1:{int(port)}")
        server.terminate()


@pytest.fixture
def aws(aws_server: Aws, monkeypatch: pytest.MonkeyPatch) -> Aws:
    """An empty account; this process, too, talks to it and to no other."""
    aws_server.reset()
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in aws_server.environ.items():
        monkeypatch.setenv(name, value)
    return aws_server


def serve() -> None:
    os.environ["MOTO_S3_DEFAULT_KEY_BUFFER_SIZE"] = str(1 << 30)  # smaller objects stay in memory
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
    from werkzeug.serving import make_server

    from tests.emulator import (
        aws_account,
        aws_builds,
        aws_endings,
        aws_images,
        aws_machines,
        aws_network,
        aws_placement,
        aws_rollbacks,
        aws_secrets,
        aws_spot,
        aws_stacks,
        enforcement,
    )
    from tests.emulator.aws_control import Front

    patched = (
        aws_stacks,
        aws_rollbacks,
        aws_account,
        aws_builds,
        aws_endings,
        aws_images,
        aws_machines,
        aws_network,
        aws_placement,
        aws_secrets,
        aws_spot,
        enforcement,
    )
    controls = {name: follow for one in patched for name, follow in one.patch().items()}
    front = Front(DomainDispatcherApplication(create_backend_app), controls, enforcement.refusal)
    server = make_server("127.0.0.1", 0, front, threaded=True, request_handler=MotoRequestHandler)
    aws_builds.ENDPOINT.append(f"http://127.0.0.1:{server.port}")
    threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
    print(server.port, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    serve()
