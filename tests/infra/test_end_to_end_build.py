"""The image is built in the account, over HTTP and without AWS: the real `make deploy` of a user who has no Docker
engine, with the unmodified `cdk`. CodeBuild's emulator runs the project's own buildspec with this machine's engine, as
the project's role, and pushes to a real registry.
"""

from __future__ import annotations

import docker
import pytest

from infra.config import Installation, Output
from tests.emulator.aws import Aws
from tests.emulator.inventory import COVERED, inventory
from tests.emulator.registry import Registry
from tests.infra.checkout import Checkout, prepare_the_account
from tests.infra.test_end_to_end import INSTALLATION, checkout, outputs, pushed, resource_types

__all__ = ["checkout"]  # the fixture
BUCKET = "cdk-hnb659fds-assets-123456789012-us-east-1"


@pytest.fixture
def without_docker(checkout: Checkout) -> Checkout:
    """No engine answers the user. CodeBuild's is another."""
    stub = checkout.folder.parent / "bin" / "docker"
    stub.write_text("#!/bin/sh\necho Cannot connect to the Docker daemon >&2; exit 1\n")
    stub.chmod(0o755)
    return checkout


def sources(aws: Aws) -> list[str]:
    found = aws.client("s3").list_object_versions(Bucket=BUCKET, Prefix=Installation().source_prefix)
    return [one["Key"] for one in found.get("Versions", []) + found.get("DeleteMarkers", [])]


@pytest.mark.engine
def test_who_has_no_docker_engine_deploys_and_a_second_deploy_builds_nothing(
    aws: Aws, registry: Registry, engine: docker.DockerClient, without_docker: Checkout
) -> None:
    user = without_docker
    prepare_the_account(aws, user)
    before = inventory(aws)
    said = user.make("deploy", "NO_LAUNCH=1", "RECIPE=digits")
    assert "CodeBuild builds the image: the engine does not answer: Cannot connect to the Docker daemon" in said
    assert said.index("about 12 min and $0.06; at most 45 min and $0.23") < said.index("Running command docker build")
    assert "docker push" in said
    image = outputs(aws, INSTALLATION.training_stack)[Output.IMAGE]
    repository, _, tag = image.partition("/")[2].partition(":")
    assert pushed(registry) == {repository: [tag]}
    assert resource_types(aws) <= COVERED
    assert holds_the_trainer(engine, f"{registry.host}/{repository}:{tag}")

    aws.clear_calls()
    said = user.make("deploy", "NO_LAUNCH=1", "RECIPE=digits")
    assert "the registry has the image of this code: nothing is built" in said
    assert "codebuild.StartBuild" not in aws.calls()
    assert pushed(registry) == {repository: [tag]}

    assert len(sources(aws)) >= 2  # the source, and the stack's template
    said = user.make("destroy")
    assert {kind for kind, _ in inventory(aws) - before} == {"S3 bucket", "secret", "CloudFormation stack"}, said
    assert (sources(aws), pushed(registry)) == ([], {})


def holds_the_trainer(engine: docker.DockerClient, image: str) -> bool:
    made = engine.images.pull(image)
    try:
        assert made.labels["commit"]
        return b"__init__.py" in engine.containers.run(image, ["ls", "/app/trainer"], network_mode="none", remove=True)
    finally:
        engine.images.remove(made.id, force=True)
