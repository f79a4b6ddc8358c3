"""The CDK app. `cdk` runs it as `python -m infra.app` (cdk.json says so). Only this module reads the CDK context.

The stacks name no account and no region: the credentials decide them at deploy time, and synthesis needs no network.
"""

from __future__ import annotations

import sys

import aws_cdk as cdk

from infra.config import Installation
from infra.run.values import printable_lines
from infra.stacks.builder import BuilderStack
from infra.stacks.storage import StorageStack
from infra.stacks.training import TrainingStack
from trainer.contract import Exit, UserError


def build(app: cdk.App, installation: Installation) -> tuple[StorageStack, TrainingStack]:
    storage = StorageStack(app, installation)
    training = TrainingStack(app, installation, storage)
    if not installation.image_uri:
        BuilderStack(app, installation, training.image)
    return storage, training


def main() -> int:
    app = cdk.App(performance_reporting=False)  # a slow synthesis would write its timings beside the templates
    try:
        installation = Installation.from_context(app.node.get_all_context())
        build(app, installation)
    except UserError as error:
        print(f"error: {printable_lines(str(error))}", file=sys.stderr)
        return Exit.USER
    app.synth()
    return Exit.FINISHED


if __name__ == "__main__":
    sys.exit(main())
