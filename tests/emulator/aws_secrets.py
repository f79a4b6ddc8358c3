"""Secrets in the emulator: AWS deletes one in the background, and until then it is there with a date."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from moto.secretsmanager.models import SecretsManagerBackend

from tests.emulator.aws_control import SETTINGS


def patch() -> dict[str, Callable[[], None]]:
    """moto forgets a secret at once that is deleted without recovery."""
    delete, describe = SecretsManagerBackend.delete_secret, SecretsManagerBackend.describe_secret

    def deleted(
        self: Any, secret_id: str, recovery_window_in_days: Any, force_delete_without_recovery: bool
    ) -> tuple[str, str, float]:
        if not (force_delete_without_recovery and SETTINGS.secret_lingers and secret_id in self.secrets):
            return delete(self, secret_id, recovery_window_in_days, force_delete_without_recovery)
        secret, now = self.secrets[secret_id], time.time()
        secret.delete(now)
        return secret.arn, secret.name, now

    def described(self: Any, secret_id: str) -> Any:
        if secret_id in self.secrets and self.secrets[secret_id].is_deleted() and SETTINGS.secret_lingers:
            SETTINGS.secret_lingers -= 1
            if not SETTINGS.secret_lingers:
                self.secrets.pop(secret_id)
        return describe(self, secret_id)

    SecretsManagerBackend.delete_secret = deleted
    SecretsManagerBackend.describe_secret = described
    return {}
