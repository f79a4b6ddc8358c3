"""`make test-alert`: send one alert to the webhook now, and tell whether it was taken."""

from __future__ import annotations

import os
import sys
import time

from trainer.alerts import Alert
from trainer.alerts.webhook import (
    FORM_VARIABLE,
    REQUEST_SECONDS,
    WEBHOOK_VARIABLE,
    Post,
    RefusedAlertError,
    find_webhook,
    message,
)
from trainer.contract import CRASH, Exit, UserError
from trainer.text import filter_tracebacks, say, tell

FORM_NAMES = {"slack": "Slack's form", "discord": "Discord's form", "json": "JSON"}


def main() -> int:
    try:
        webhook = find_webhook(os.environ)
        if not webhook:
            raise UserError(
                f"no webhook is set: export {WEBHOOK_VARIABLE}=https://…, or name a folder with the file webhook in "
                "TRAINER_SECRETS_DIR"
            )
        run_id = os.environ.get("TRAINER_RUN_ID") or "test"
        text = "this is a test: alerts of your runs arrive here"
        alert = Alert(kind="test", level="info", text=text, run_id=run_id, step=0, time=time.time(), id="test")
        Post(webhook, message(alert, webhook.form)).wait(REQUEST_SECONDS)
    except UserError as error:
        say(f"error: {error}")
        return Exit.USER
    except RefusedAlertError as error:
        say(f"error: the webhook did not take the alert: {error}")
        return CRASH
    tell(f"the webhook took a test alert, in {FORM_NAMES[webhook.form]} ({FORM_VARIABLE} changes the form)")
    return Exit.FINISHED


if __name__ == "__main__":
    filter_tracebacks()
    sys.exit(main())
