"""The states of an account in which `destroy` asks AWS something else, with and without PURGE=1."""

from __future__ import annotations

from infra.guard.memory import Memory
from infra.operate.session import ExitCode
from tests.infra.deployed import INSTALLATION, RUN, client, push_image
from tests.infra.operate.builder import make_builder_stack, put_source
from tests.infra.operate.desk import Desk
from tests.infra.operate.strays import leave_everything
from trainer.contract import run_key


def destroy(desk: Desk) -> None:
    """The guard still has a message to send; somebody has raised the minimum of the groups."""
    account = desk.ready()
    push_image(desk.registry)
    memory = Memory(deadline=int(account.launch().deadline), untold={"stopped": "what SNS has refused"})
    account.put(run_key(RUN, "guard.json"), memory.to_json())
    account.train_to(150)
    desk.raise_minimum()
    desk.run("destroy")
    desk.run("destroy")


def destroy_a_stack_that_stays(desk: Desk) -> None:
    desk.ready()
    put_source(desk.aws)
    make_builder_stack(desk.aws)
    stacks = (INSTALLATION.training_stack, INSTALLATION.builder_stack)
    desk.aws.set(delete_failures=dict.fromkeys(stacks, "something depends on it"))
    desk.run("destroy", code=ExitCode.LEFT_OVERS)


def destroy_while_a_build_runs(desk: Desk) -> None:
    put_source(desk.aws)
    make_builder_stack(desk.aws, "sleep 300")
    client(desk.aws, "codebuild").start_build(projectName=INSTALLATION.build_project)
    desk.run("destroy")


def destroy_what_stacks_have_left(desk: Desk) -> None:
    leave_everything(desk.aws)
    desk.run("destroy")


def purge(desk: Desk) -> None:
    account = desk.ready()
    account.launch()
    account.train_to(150)
    client(desk.aws, "s3").create_multipart_upload(Bucket=account.bucket, Key="checkpoints/big")
    desk.run("destroy", "--purge", "--yes")
    desk.run("destroy", "--purge", "--yes")
