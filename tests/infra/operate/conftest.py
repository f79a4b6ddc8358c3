"""What the tests of the operator's commands begin with: an account at some stage, and a hub of data sets."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from infra import __main__ as program
from infra.config import Installation
from infra.operate.commands import destroy, logs, preflight, stop
from infra.operate.planning.options import Request
from infra.operate.session import Aws as Operator
from tests.emulator.aws import Aws
from tests.infra import hub
from tests.infra.deployed import Deployed, deploy, storage_template
from tests.infra.operate.log_writer import Writer
from tests.infra.operator import GIVEN_IMAGE, prepare_account, put_token, session


@pytest.fixture
def deployed(aws: Aws) -> Deployed:
    """Deployed, but nothing else is ready for a launch."""
    return deploy(aws)


@pytest.fixture
def ready(aws: Aws) -> Aws:
    """A prepared account with the token, after `make secret`; training is not deployed yet."""
    prepare_account(aws)
    storage = Installation().storage_stack
    aws.client("cloudformation").create_stack(StackName=storage, TemplateBody=json.dumps(storage_template()))
    put_token(aws)
    return aws


@pytest.fixture
def place(aws: Aws) -> Deployed:
    """A prepared account, deployed, with the token: every check passes."""
    prepare_account(aws)
    account = deploy(aws)
    put_token(aws)
    return account


@pytest.fixture
def installed(place: Deployed) -> Aws:
    return place.aws


@pytest.fixture
def writer(deployed: Deployed) -> Writer:
    """Writes lines into the log of a run."""
    return Writer(deployed.aws)


@pytest.fixture
def quick_logs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same steps of `logs` in less time."""
    for name, seconds in (("LINES", 0.05), ("ENDING", 0.2), ("QUIET", 0.5), ("SWEEP", 0.5), ("MOST_WAIT", 0.2)):
        monkeypatch.setattr(logs, f"{name}_SECONDS", seconds)


@pytest.fixture
def quick_destroy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same steps of `destroy` in less time."""
    for module in (destroy, stop):
        monkeypatch.setattr(module, "ASK_SECONDS", 0.05)
    monkeypatch.setattr(destroy, "SETTLE_SECONDS", 0.5)


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[hub.Hub]:
    """A hub on this machine, which the commands ask instead of Hugging Face's."""
    with hub.serve() as served:
        monkeypatch.setenv("HF_ENDPOINT", served.endpoint)
        yield served


@pytest.fixture
def look(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Run preflight in this process, without Docker; what it printed."""

    def shown(request: Request | None = None, **context: str) -> str:
        installation = Installation(**{"image_uri": GIVEN_IMAGE} | context)
        preflight.preflight(Operator(session()), installation, request or Request(), None, deploys=True)
        return capsys.readouterr().out

    return shown


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str, str]]:
    """`python -m infra …` in this process: exit code, standard output, standard error."""

    def ended(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["infra", *arguments])
        code = program.main()
        told = capsys.readouterr()
        return code, told.out, told.err

    return ended


@pytest.fixture
def use(aws: Aws, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Take away the keys, and use the profile `me` of this configuration."""

    def used(configuration: str, profile: str = "me") -> None:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.delenv(name)
        (tmp_path / "config").write_text(configuration)
        monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
        monkeypatch.setenv("AWS_PROFILE", profile)

    return used
