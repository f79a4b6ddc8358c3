"""What belongs to an installation: the values under `context` in cdk.json, checked.

Not here: what belongs to a run (recipe, data, budget, hours), which goes to `launch`. Knows nothing of CDK.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields

from trainer.contract import UserError

CONTEXT_PREFIX = "resnet-spot:"  # CDK keeps keys of its own in the same context
NAME_RULE = r"[a-z][a-z0-9-]{0,23}"
BUCKET_NAME_RULE = r"[a-z0-9][a-z0-9-]{1,61}[a-z0-9]"  # S3's rule without dots, which break TLS to the bucket's host


@dataclass(frozen=True, kw_only=True)
class Installation:
    """One field per context key `resnet-spot:<field>`: edit cdk.json, or `cdk … -c resnet-spot:<field>=<value>`.

    Account and region are not among them: they are those of the credentials.
    """

    name: str = "resnet-spot"  # the stacks are called <name>-storage, …; another name is another installation
    bucket_name: str = ""  # unique in all of S3; "": AWS makes one up

    def __post_init__(self) -> None:
        for f in fields(self):
            if not isinstance(value := getattr(self, f.name), str):
                raise UserError(
                    f'{context_key(f.name)}={value!r} in the CDK context is not a string: put it in "…" in cdk.json'
                )
        if not re.fullmatch(NAME_RULE, self.name):
            raise UserError(
                f"{context_key('name')}={self.name!r} in the CDK context is not a name for stacks: use {NAME_RULE} "
                "(at most 24 lower case letters, digits and '-', a letter first), for example resnet-spot"
            )
        if self.bucket_name and not re.fullmatch(BUCKET_NAME_RULE, self.bucket_name):
            raise UserError(
                f"{context_key('bucket_name')}={self.bucket_name!r} in the CDK context is not a bucket's name: use "
                f"{BUCKET_NAME_RULE} (3 to 63 lower case letters, digits and '-'), or \"\" and AWS makes one up"
            )

    @classmethod
    def from_context(cls, context: Mapping[str, object]) -> Installation:
        """The installation's values among all of CDK's context; raises UserError naming the key, value and rule."""
        values = {
            key.removeprefix(CONTEXT_PREFIX): value for key, value in context.items() if key.startswith(CONTEXT_PREFIX)
        }
        known = [f.name for f in fields(cls)]
        for name, value in values.items():
            if name not in known:
                raise UserError(
                    f"{context_key(name)}={value!r} in the CDK context is not a setting: "
                    f"use one of {', '.join(map(context_key, known))}"
                )
        return cls(**values)  # type: ignore[arg-type]  # checked above, in __post_init__


def context_key(name: str) -> str:
    """The key of a field in the CDK context."""
    return CONTEXT_PREFIX + name
