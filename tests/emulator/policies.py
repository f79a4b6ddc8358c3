"""What IAM answers to a request, by the policies that count: a simulator for the tests.

It knows what our policies use, and raises ValueError for everything else, so that nothing passes unread. After AWS's
pages "Policy evaluation logic", "IAM JSON policy elements" and "Session policies":

- an explicit Deny in any policy refuses;
- else an Allow is needed, in the role's own policies and, where there is one, in the session policy, too;
- `*` is any text and `?` one letter, within one of the six parts of an ARN; `${*}`, `${?}` and `${$}` are the letters;
- keys of a condition are all needed, of several values one. A key that the request has not holds for no operator but
  Null and the negated ones.

To take on a role needs the caller's permission and the role's trust. (In one account, AWS is content with the trust
alone, if that names the caller.)
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

Document = Mapping[str, Any]
VARIABLE = re.compile(r"\$\{([^}]*)\}")
LITERALS = ("*", "?", "$")
ELEMENTS = {"Sid", "Effect", "Action", "Resource", "Condition", "Principal"}


@dataclass(frozen=True)
class Request:
    """`context` has the condition keys of the request, `s3:prefix`, as text."""

    action: str
    resource: str
    context: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Caller:
    """Who asks: the role's policies, and the policy of the session."""

    role: str  # its ARN
    policies: Sequence[Document]
    session: Document | None = None

    def may(self, request: Request) -> bool:
        return not self.why_not(request)

    def why_not(self, request: Request) -> str:
        """As AWS's messages end; "" if the request is allowed."""
        session = [] if self.session is None else [self.session]
        answers = [effect(policy, request) for policy in (*self.policies, *session)]
        if "Deny" in answers:
            return "with an explicit deny in an identity-based policy"
        if "Allow" not in answers[: len(self.policies)]:
            return f"because no identity-based policy allows the {request.action} action"
        if session and answers[-1] != "Allow":
            return f"because no session policy allows the {request.action} action"
        return ""

    def may_assume(self, role: str, trust: Document) -> bool:
        return self.may(Request("sts:AssumeRole", role)) and trusts(trust, self.role)


def trusts(trust: Document, caller: str, context: Mapping[str, str] = MappingProxyType({})) -> bool:
    """Whether a role's trust policy names the caller, a role's ARN or a service, or the caller's account, and no
    condition is in the way. Where a service asks, `context` says for whom: aws:SourceAccount, aws:SourceArn.

    Raises ValueError for everybody, which this simulator does not know.
    """
    account = caller.split(":")[4] if caller.startswith("arn:") else ""
    callers = {caller, *((account, f"arn:aws:iam::{account}:root") if account else ())}
    if any("*" in names for one in statements(trust) for names in map(texts, one["Principal"].values())):
        raise ValueError("the principal * stands for everybody: the simulator does not know it")
    said = [
        statement["Effect"]
        for statement in statements(trust)
        if "sts:AssumeRole" in texts(statement["Action"])
        and callers & {name for names in statement["Principal"].values() for name in texts(names)}
        and all(holds(operator, keys, context) for operator, keys in statement.get("Condition", {}).items())
    ]
    return "Allow" in said and "Deny" not in said


def effect(policy: Document, request: Request) -> str:
    """ "Deny", "Allow", or "" where the policy says nothing of the request."""
    said = {statement["Effect"] for statement in statements(policy) if applies(statement, request)}
    return "Deny" if "Deny" in said else "Allow" if "Allow" in said else ""


def statements(policy: Document) -> list[Document]:
    """Raises ValueError for what this simulator does not know."""
    found = policy["Statement"]
    found = [found] if isinstance(found, Mapping) else [*found]
    for statement in found:
        if unknown := statement.keys() - ELEMENTS:
            raise ValueError(f"{sorted(unknown)} in {statement}: the simulator does not know it")
        if statement["Effect"] not in ("Allow", "Deny") or not texts(statement["Action"]):
            raise ValueError(f"{statement} has no Effect or no Action")
        for operator in statement.get("Condition", {}):
            operator_of(operator)
    return found


def applies(statement: Document, request: Request) -> bool:
    return (
        any(matches(action.lower(), request.action.lower(), {}) for action in texts(statement["Action"]))
        and any(matches_arn(arn, request.resource, request.context) for arn in texts(statement["Resource"]))
        and all(holds(operator, keys, request.context) for operator, keys in statement.get("Condition", {}).items())
    )


def texts(value: str | Iterable[str]) -> list[str]:
    return [value] if isinstance(value, str) else [*value]


def matches(pattern: str, text: str, context: Mapping[str, str]) -> bool:
    """Whether the text is as the pattern says. A variable without a value matches nothing."""
    expression, at = "", 0
    for variable in VARIABLE.finditer(pattern):
        value = variable[1] if variable[1] in LITERALS else get(context, variable[1])
        if value is None:
            return False
        expression += wild(pattern[at : variable.start()]) + re.escape(value)
        at = variable.end()
    return re.fullmatch(expression + wild(pattern[at:]), text, re.DOTALL) is not None


def wild(pattern: str) -> str:
    return re.escape(pattern).replace(r"\*", ".*").replace(r"\?", ".")


def matches_arn(pattern: str, arn: str, context: Mapping[str, str]) -> bool:
    if pattern == "*" or pattern.count(":") < 5 or arn.count(":") < 5:
        return pattern in ("*", arn)
    pairs = zip(split_arn(pattern), split_arn(arn), strict=True)
    return all(matches(one, other, context) for one, other in pairs)


def split_arn(arn: str) -> list[str]:
    """In six. The colon of a variable's name does not count."""
    held = VARIABLE.sub(lambda found: found[0].replace(":", "\0"), arn)
    return [part.replace("\0", ":") for part in held.split(":", 5)]


def get(context: Mapping[str, str], name: str) -> str | None:
    """Names of keys are alike in any case."""
    return next((value for key, value in context.items() if key.lower() == name.lower()), None)


def equal(pattern: str, text: str, context: Mapping[str, str]) -> bool:
    return pattern == text


def as_bool(pattern: str, text: str, context: Mapping[str, str]) -> bool:
    return pattern.lower() == text.lower()


Comparison = Callable[[str, str, Mapping[str, str]], bool]
OPERATORS: dict[str, tuple[Comparison, bool]] = {  # and whether it is negated
    "StringEquals": (equal, False),
    "StringNotEquals": (equal, True),
    "StringLike": (matches, False),
    "StringNotLike": (matches, True),
    "ArnEquals": (matches_arn, False),
    "ArnLike": (matches_arn, False),
    "ArnNotLike": (matches_arn, True),
    "Bool": (as_bool, False),
    "Null": (as_bool, False),
}


def operator_of(name: str) -> tuple[Comparison, bool]:
    if name not in OPERATORS:
        raise ValueError(
            f"the condition operator {name} is not one of {', '.join(OPERATORS)}: the simulator has no other"
        )
    return OPERATORS[name]


def holds(operator: str, keys: Mapping[str, Any], context: Mapping[str, str]) -> bool:
    compare, negated = operator_of(operator)
    for key, values in keys.items():
        found = get(context, key)
        if operator == "Null":
            found = str(found is None)
        if found is None:
            if not negated:
                return False
        elif any(compare(value, found, context) for value in texts(values)) == negated:
            return False
    return True


def parse(text: str) -> Document:
    """A session policy, as STS gets it. Raises ValueError for what AWS or this simulator would not take."""
    if len(text) > 2048:
        raise ValueError(f"the session policy has {len(text)} characters, and STS takes 2,048")
    policy: Document = json.loads(text)
    for statement in statements(policy):
        texts(statement["Resource"])
    return policy
