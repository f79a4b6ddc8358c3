"""A webhook's address, which nobody gets to see, and the messages that it takes."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from tests.trainer.alerts.receiver import SECRET, made
from trainer.alerts.webhook import find_webhook, message
from trainer.contract import UserError

SLACK = "https://hooks.slack.com/services/T0/B0/SECRET"
PINGS = "<!channel> @everyone @here <@U123> *loud* & [click](https://example.org) \x1b[31m\nnew line `code`"


@pytest.mark.parametrize(
    ("url", "form"),
    [
        (SLACK, "slack"),
        ("https://discord.com/api/webhooks/1/SECRET", "discord"),
        ("https://canary.discord.com/api/webhooks/1/SECRET", "discord"),
        ("https://discordapp.com/api/webhooks/1/SECRET", "discord"),
        ("https://example.org/hooks.slack.com?key=SECRET", "json"),
        ("https://evildiscord.com/SECRET", "json"),
        ("http://127.0.0.1:8000/SECRET", "json"),
        ("http://[::1]:8000/SECRET", "json"),
        ("http://localhost/SECRET", "json"),
    ],
)
def test_the_host_tells_the_form_and_the_environment_may_name_another(url: str, form: str) -> None:
    found = find_webhook({"TRAINER_WEBHOOK": f" {url}\n"})
    assert found
    assert (found.url, found.form) == (url, form)
    assert "SECRET" not in f"{found!r} {found}"
    named = find_webhook({"TRAINER_WEBHOOK": url, "TRAINER_WEBHOOK_FORM": "slack"})
    assert named
    assert named.form == "slack"


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("http://hooks.slack.com/SECRET", "without TLS"),
        ("http://127.0.0.1.example.org/SECRET", "without TLS"),
        ("http://localhost@example.org/SECRET", "no user and password"),
        ("https://user:SECRET@example.org/", "no user and password"),
        ("ftp://example.org/SECRET", "it begins with https://"),
        ("file:///SECRET", "it begins with https://"),
        ("https:///SECRET", "it begins with https://"),
        ("https://example.org:SECRET/", "it begins with https://"),
        ("https://[SECRET/", "it begins with https://"),
        ("SECRET", "it begins with https://"),
        ("https://example.org/SECRET two", "one word"),
        ("https://example.org/SECRET\x00", "one word"),
        ("https://exämple.org/SECRET", "one word"),
        (f"https://example.org/SECRET{'x' * 5000}", "one word"),
    ],
)
def test_an_address_that_may_not_be_used_is_refused_without_being_repeated(url: str, why: str, tmp_path: Path) -> None:
    (tmp_path / "webhook").write_text(url)
    for environ in ({"TRAINER_WEBHOOK": url}, {"TRAINER_SECRETS_DIR": str(tmp_path)}):
        with pytest.raises(UserError) as refused:
            find_webhook(environ)
        assert why in str(refused.value)
        assert "SECRET" not in str(refused.value)
        assert refused.value.__cause__ is None


def test_the_secret_file_comes_first_and_without_either_there_is_no_webhook(tmp_path: Path) -> None:
    environ = {"TRAINER_SECRETS_DIR": str(tmp_path), "TRAINER_WEBHOOK": "https://example.org/of-the-environment"}
    assert find_webhook({}) is None
    assert find_webhook({"TRAINER_SECRETS_DIR": str(tmp_path), "TRAINER_WEBHOOK": ""}) is None
    found = find_webhook(environ)
    assert found
    assert found.url.endswith("of-the-environment")
    (tmp_path / "webhook").write_text(f"{SLACK}\n")
    found = find_webhook(environ)
    assert found
    assert found.url == SLACK
    (tmp_path / "webhook").unlink()
    (tmp_path / "webhook").mkdir()
    with pytest.raises(UserError, match="cannot be read"):
        find_webhook(environ)


def test_a_form_that_nobody_knows_is_refused() -> None:
    with pytest.raises(UserError, match=r"TRAINER_WEBHOOK_FORM='teams' is no form .* use one of slack, discord, json"):
        find_webhook({"TRAINER_WEBHOOK": SLACK, "TRAINER_WEBHOOK_FORM": "teams"})


def test_slack_gets_text_that_calls_nobody_and_formats_nothing() -> None:
    body = json.loads(message(made(text=PINGS), "slack"))
    assert body["text"].startswith("INFO, run rn50-1, step 1200, best: &lt;!channel&gt; @\u200beveryone")
    assert "<" not in body["text"]
    assert "\x1b" not in body["text"]
    assert "\n" not in body["text"]
    assert not re.search(r"@\w", body["text"])
    assert {name: body[name] for name in body.keys() - {"text"}} == {
        "mrkdwn": False, "parse": "none", "link_names": False, "unfurl_links": False, "unfurl_media": False,
    }  # fmt: skip


def test_discord_gets_text_that_calls_nobody_and_formats_nothing() -> None:
    body = json.loads(message(made(text=PINGS), "discord"))
    assert body["allowed_mentions"] == {"parse": []}
    assert not re.search(r"@\w", body["content"])
    assert r"\*loud\* & \[click\]\(https\://example.org\)" in body["content"]
    assert r"\`code\`" in body["content"]
    assert "\n" not in body["content"]
    for text in ("*" * 5000, "\\" * 5000, "a" + "*" * 5000):
        content = json.loads(message(made(text=text), "discord"))["content"]
        assert len(content) <= 2000  # Discord refuses more
        assert not re.search(r"(?<!\\)(\\\\)*\*", content)


def test_another_program_gets_the_fields_and_text_that_is_not_too_long() -> None:
    body = json.loads(message(replace(made(text="x" * 5000), level="warning", id="2-7"), "json", more=3))
    text = body.pop("text")
    assert len(text) == 1000
    assert text.endswith("…")
    assert body == {
        "run": "rn50-1", "id": "2-7", "kind": "best", "level": "warning", "step": 1200, "time": 1000.0,
        "not_sent_before": 3,
    }  # fmt: skip


def test_the_message_says_how_many_before_it_were_not_sent() -> None:
    assert "(2 alerts before this one were not sent)" in json.loads(message(made(), "slack", more=2))["text"]
    assert SECRET not in message(made(), "slack").decode()
