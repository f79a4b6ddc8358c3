"""The installation's one secret in Secrets Manager: the Hugging Face token, and the webhook that alerts go to."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import botocore.exceptions

from infra.operate.session import Aws

SECRET_PARTS = ("hf_token", "webhook")


def stored_token(aws: Aws, name: str) -> str | None:
    """The token. None if there is no such secret, or if it has none."""
    return stored_parts(aws, name).get("hf_token")


def stored_parts(aws: Aws, name: str) -> dict[str, str]:
    """What the secret of this name holds, by SECRET_PARTS. {} if there is no such secret, or if it is still empty.

    A secret that is no JSON object is a token alone.
    """
    try:
        text = str(aws.client("secretsmanager").get_secret_value(SecretId=name)["SecretString"])
    except botocore.exceptions.ClientError as error:
        if error.response["Error"].get("Code") == "ResourceNotFoundException":
            return {}
        raise
    try:
        parts = json.loads(text)
    except (ValueError, RecursionError):
        parts = None
    if not isinstance(parts, dict):
        parts = {"hf_token": text.strip()}
    return {name: parts[name] for name in SECRET_PARTS if isinstance(parts.get(name), str) and parts[name]}


def store_part(aws: Aws, name: str, part: str, value: str) -> None:
    """Put one part into the secret; the other stays. A token alone is stored as it is, which older machines read."""
    parts = stored_parts(aws, name) | {part: value}
    text = value if parts.keys() == {"hf_token"} else json.dumps(parts)
    aws.client("secretsmanager").put_secret_value(SecretId=name, SecretString=text)


def find_secret(aws: Aws, name: str) -> dict[str, Any]:
    """What Secrets Manager tells of the secret, without its value. {} if there is none."""
    try:
        return dict(aws.client("secretsmanager").describe_secret(SecretId=name))
    except botocore.exceptions.ClientError as error:
        if error.response["Error"].get("Code") == "ResourceNotFoundException":
            return {}
        raise


def blocking_secret(found: Mapping[str, Any], name: str, *, is_deployed: bool) -> tuple[str, str] | None:
    """Why the secret blocks a deploy, and the command that helps. None if it does not.

    One that was deleted by hand stays with AWS for 7 to 30 days, and until then it can neither be read nor made anew.
    One without its stack comes from a storage stack that is gone: no new stack can take it over.
    """
    delete = f"aws secretsmanager delete-secret --force-delete-without-recovery --secret-id {name}"
    if found.get("DeletedDate"):
        said = f"the secret {name} was deleted by hand, and AWS keeps it for 7 to 30 days"
        if is_deployed:
            return f"{said}: nobody can read or change it", f"aws secretsmanager restore-secret --secret-id {name}"
        return f"{said}: until then no stack can make it anew", delete
    if found and not is_deployed:
        return (
            f"the secret {name} is there without its stack, and a new stack can neither adopt nor replace it: "
            "delete it, then store the token with `make secret`",
            delete,
        )
    return None
