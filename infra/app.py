"""The CDK app, which `cdk` runs as cdk.json says: `python -m infra.app`. The only reader of the CDK context.

Account and region are left to the credentials at deploy time, so that synthesis needs no network.
"""

from __future__ import annotations

import sys

import aws_cdk as cdk

from infra.config import Installation
from infra.stacks.storage import StorageStack
from infra.stacks.training import TrainingStack
from trainer.contract import Exit, UserError


def build(app: cdk.App, installation: Installation) -> tuple[StorageStack, TrainingStack]:
    storage = StorageStack(app, installation)
    return storage, TrainingStack(app, installation, storage)


def main() -> int:
    app = cdk.App(performance_reporting=False)  # on a slow machine it writes its timings beside the templates
    try:
        installation = Installation.from_context(app.node.get_all_context())
        build(app, installation)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return Exit.USER
    app.synth()
    return Exit.FINISHED


if __name__ == "__main__":
    sys.exit(main())
