"""A report goes to strangers, so it names no account: words take the place of whatever could tell whose it is."""

from __future__ import annotations

import re
from typing import Any

WORDS_INSTEAD = tuple((word, re.compile(pattern)) for word, pattern in (
    ("<host>", r"(?:(?<=http://)|(?<=https://))[^\s/\"'<>]+"),  # of any address with http
    ("<arn>", r"\barn:aws[\w-]*:[^\s\"'<>,;)\]}]+"),
    ("<mail>", r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+"),
    ("<host>", r"\bip-\d{1,3}(?:-\d{1,3}){3}(?:\.[\w-]+)*"),
    ("<host>", r"\b(?:[\w-]+\.)+(?:amazonaws\.com(?:\.cn)?|api\.aws|on\.aws|internal|localdomain|local|lan)\b"),
    ("<address>", r"(?<![\w.])\d{1,3}(?:\.\d{1,3}){3}(?!\w|\.\d)"),
    ("<address>", r"(?<![\w:])(?:(?:[0-9A-Fa-f]{0,4}:){3,7}[0-9A-Fa-f]{0,4}|[0-9A-Fa-f]{1,4}::[0-9A-Fa-f:]*)(?![\w:])"),
    # docs.aws.amazon.com/IAM/latest/UserGuide/reference_identifiers.html: a key's id has the account in it
    ("<id>", r"\b(?:AKIA|ASIA|AROA|AIDA|AGPA|ANPA|AIPA)[A-Z0-9]{12,}\b"),
    ("<account>", r"(?<![0-9A-Za-z.])\d{12}(?![0-9A-Za-z])"),
    ("<account>", r"(?<![0-9A-Za-z.])\d{4}-\d{4}-\d{4}(?![0-9A-Za-z])"),
))  # fmt: skip


def hide_account(value: Any, account: str) -> Any:
    """The same document without account numbers, ARNs, addresses, hosts, mail addresses and ids of users."""
    if isinstance(value, dict):
        return {key: hide_account(one, account) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [hide_account(one, account) for one in value]
    if not isinstance(value, str):
        return value
    for word, pattern in WORDS_INSTEAD:
        value = pattern.sub(word, value)
    return value.replace(account, "<account>")
