"""The Hugging Face token in Secrets Manager, for everything but the command `secret`."""

from __future__ import annotations

import botocore.exceptions

from infra.operate.session import Aws


def stored_token(aws: Aws, name: str) -> str | None:
    """The token. None if there is no such secret, or if it is still empty."""
    try:
        return str(aws.client("secretsmanager").get_secret_value(SecretId=name)["SecretString"])
    except botocore.exceptions.ClientError as error:
        if error.response["Error"].get("Code") == "ResourceNotFoundException":
            return None
        raise


def secret_exists(aws: Aws, name: str) -> bool:
    try:
        aws.client("secretsmanager").describe_secret(SecretId=name)
    except botocore.exceptions.ClientError as error:
        if error.response["Error"].get("Code") == "ResourceNotFoundException":
            return False
        raise
    return True
