"""What is wrong with the credentials, in one sentence with the command that mends it.

botocore raises a class of its own for each way to log in. AWS answers with a code, and each service has codes of its
own. The configuration tells which command renews the credentials: `aws sso login`, `aws login`, or new keys.
"""

from __future__ import annotations

import getpass
import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import botocore.session
from botocore import exceptions

UNUSABLE = (  # classes of botocore: the configuration has a mistake, or the program that it names failed
    exceptions.CredentialRetrievalError, exceptions.InvalidConfigError, exceptions.UnknownCredentialError,
    exceptions.ConfigParseError, exceptions.ConfigNotFound, exceptions.MissingDependencyException,
    exceptions.MetadataRetrievalError,
)  # fmt: skip
ENDED = frozenset({"ExpiredToken", "ExpiredTokenException", "RequestExpired", "TokenRefreshRequired"})
UNKNOWN_KEYS = frozenset(  # codes for keys that AWS does not know, or not in this region
    {"InvalidClientTokenId", "UnrecognizedClientException", "AuthFailure", "InvalidAccessKeyId", "InvalidToken"}
)
WRONG_CLOCK = frozenset({"RequestTimeTooSkewed", "RequestInTheFuture"})
WRONG_SIGNATURE = frozenset({"SignatureDoesNotMatch", "InvalidSignatureException", "IncompleteSignature"})
MOST_SKEW_SECONDS = 240  # AWS refuses a signature from 5 minutes on
CLOCK_WORDS = ("Signature expired", "Signature not yet current")
WEB_IDENTITY = "AssumeRoleWithWebIdentity"
SET_CLOCK = "set the clock (`sudo timedatectl set-ntp true`)"
SIGN_UP = "https://portal.aws.amazon.com/billing/signup"


@dataclass(frozen=True)
class Login:
    """How the user logs in, as environment and configuration tell it."""

    profile: str = "default"
    values: Mapping[str, str] = field(default_factory=dict)  # of the profile that has the credentials
    source: str = "default"  # the name of that profile: a role's profile names another
    has_keys: bool = False  # in the environment: then botocore does not look at the profile

    @property
    def renewal(self) -> str:
        """The command that renews the credentials."""
        profile = shlex.quote(self.source)
        if self.has_keys:
            return "export new AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN, or unset all three"
        if self.values.get("sso_session") or self.values.get("sso_start_url"):
            return f"`aws sso login --profile {profile}`"
        if self.values.get("login_session"):
            return f"`aws login --profile {profile}`"
        if process := self.values.get("credential_process"):
            return f"look why this program gives no good credentials: `{process}`"
        return f"`aws login --profile {profile}`, or `aws configure --profile {profile}`"

    @property
    def is_configured(self) -> bool:
        """Whether the user ever set something up. A machine's role, and half a key, do not count."""
        return self.has_keys or bool(self.values)

    @property
    def whose(self) -> str:
        return "the keys in the environment" if self.has_keys else f"the credentials of profile {self.profile!r}"


def find_login(environ: Mapping[str, str] = os.environ) -> Login:
    """Read environment and configuration. It asks nobody."""
    name = environ.get("AWS_PROFILE") or environ.get("AWS_DEFAULT_PROFILE") or "default"
    try:
        profiles: dict[str, dict[str, Any]] = botocore.session.Session().full_config["profiles"]
    except exceptions.BotoCoreError:
        profiles = {}
    source = name
    for _ in profiles:  # never longer than there are profiles, even if two name each other
        following = profiles.get(source, {}).get("source_profile", "")
        if following not in profiles or following == source:
            break
        source = following
    return Login(name, profiles.get(source, {}), source, has_keys=bool(environ.get("AWS_ACCESS_KEY_ID")))


def trouble(error: BaseException) -> str:
    """What is wrong with the credentials, and the fix. Returns "" if the error has another reason."""
    if isinstance(error, exceptions.ClientError):
        return _of_code(error, find_login())
    if isinstance(error, (EOFError, getpass.GetPassWarning)):
        name = shlex.quote(find_login().profile)
        return (
            "the profile asks for an MFA code, and there is no terminal to type it: type in one, "
            f'`eval "$(aws configure export-credentials --profile {name} --format env)"`, then the command again there'
        )
    if isinstance(error, OSError) and error.filename:
        return _unreadable(error)
    return _not_found(error) or _not_logged_in(error)


def fix() -> str:
    """The command alone, for a table of commands."""
    login = find_login()
    return (
        login.renewal.strip("`") if login.is_configured else "aws configure (or `aws login`, or export AWS_PROFILE=…)"
    )


def _not_found(error: BaseException) -> str:
    if isinstance(error, exceptions.NoCredentialsError):
        if half := _half_set():
            return half
        return "there are no AWS credentials: export AWS_PROFILE=… of a profile, or `aws login`, or `aws configure sso`"
    if isinstance(error, exceptions.PartialCredentialsError):
        return _half_set() or (
            f"{find_login().whose} are half of what is needed ({error}): "
            f"`aws configure --profile {shlex.quote(find_login().profile)}`"
        )
    if isinstance(error, exceptions.ProfileNotFound):
        there = ", ".join(botocore.session.Session().available_profiles) or "none"
        name = find_login().profile
        return (
            f"AWS_PROFILE={name} names no profile; there are: {there}: export AWS_PROFILE=… with one of them, or "
            f"`aws configure sso --profile {shlex.quote(name)}`"
        )
    return ""


def _half_set(environ: Mapping[str, str] = os.environ) -> str:
    """Which variable lacks where a key is in the environment without its other half."""
    names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
    there = [name for name in names if environ.get(name)]
    if len(there) != 1:
        return ""
    (lacks,) = set(names) - {*there}
    return f"{there[0]} is set without {lacks}: `export {lacks}=…`, or `unset {there[0]}` to use a profile"


def _not_logged_in(error: BaseException) -> str:
    login = find_login()
    if isinstance(error, (exceptions.SSOError, exceptions.TokenRetrievalError)):
        never = isinstance(error, exceptions.SSOTokenLoadError) or "does not exist" in str(error)
        how = "was never made on this machine, or was ended" if never else "has ended"
        return f"the SSO login of profile {login.profile!r} {how}: {login.renewal}"
    if isinstance(error, exceptions.LoginInsufficientPermissions):
        return (
            f"profile {login.profile!r} may not renew its login: ask the administrator for the policy "
            "SignInLocalDevelopmentAccess"
        )
    if isinstance(error, exceptions.LoginError):
        return f"the login of profile {login.profile!r} has ended or was never made: {login.renewal}"
    if isinstance(error, exceptions.RefreshWithMFAUnsupportedError):
        return "the hour of the MFA code has ended: the same command again asks for a new one"
    if isinstance(error, UNUSABLE):
        return f"{login.whose} cannot be used: {error}: mend the profile, or {login.renewal}"
    return ""


def _unreadable(error: OSError) -> str:
    """A file that credentials come from, and that is not there: a token, or a program of the profile."""
    login = find_login()
    token = os.environ.get("AWS_WEB_IDENTITY_TOKEN_FILE") or login.values.get("web_identity_token_file")
    if error.filename == token:
        return (
            f"the web identity's token {token!r} cannot be read ({error.strerror}): export "
            "AWS_WEB_IDENTITY_TOKEN_FILE=… with the file that your CI or cluster writes, or unset it to use a profile"
        )
    if error.filename in login.values.get("credential_process", "").split():
        return f"credential_process of profile {login.source!r} cannot be started ({error}): mend it in ~/.aws/config"
    return ""


def _of_code(error: exceptions.ClientError, login: Login) -> str:
    code, said = error.response["Error"].get("Code", ""), error.response["Error"].get("Message", "")
    if error.operation_name == WEB_IDENTITY:
        return f"AWS does not take the web identity's token ({code}: {said}): start the CI job or the pod again"
    if clock := _wrong_clock(error, code, said):
        return clock
    if code in ENDED:
        return f"{login.whose} have expired: {login.renewal}"
    if code in WRONG_SIGNATURE:
        return f"{login.whose} have a wrong secret key ({code}): {login.renewal}"
    if code in UNKNOWN_KEYS:
        if os.environ.get("AWS_ACCESS_KEY_ID", "").startswith("ASIA") and not os.environ.get("AWS_SESSION_TOKEN"):
            return (
                "AWS_ACCESS_KEY_ID is a temporary key, and AWS_SESSION_TOKEN is not set: `export AWS_SESSION_TOKEN=…`"
            )
        return f"AWS does not know {login.whose} ({code}): {login.renewal}"
    if code == "OptInRequired":
        return f"AWS has not activated this account yet ({said}): finish the registration at {SIGN_UP}"
    if error.operation_name == "GetRoleCredentials":
        return (
            f"the SSO login has no access to the role or account of profile {login.profile!r} ({said}): "
            f"`aws configure sso --profile {shlex.quote(login.profile)}` lists those it has"
        )
    if error.operation_name == "AssumeRole":
        return f"profile {login.profile!r} may not take on its role ({said}): export AWS_PROFILE=… with another profile"
    return ""


def _wrong_clock(error: exceptions.ClientError, code: str, said: str) -> str:
    """EC2 answers to a wrong clock as it does to keys that have expired. So its own clock tells which of them it is."""
    if code not in WRONG_CLOCK | WRONG_SIGNATURE | ENDED | UNKNOWN_KEYS:
        return ""
    date, now = error.response.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("date", ""), datetime.now(UTC)
    try:
        is_off = abs((parsedate_to_datetime(date) - now).total_seconds()) > MOST_SKEW_SECONDS
    except (TypeError, ValueError):  # no date, or one without a zone
        is_off = False
    if not is_off and code not in WRONG_CLOCK and not any(words in said for words in CLOCK_WORDS):
        return ""
    theirs = f", AWS says {date}" if date else ""
    return f"this machine's clock is wrong: it says {now:%a, %d %b %Y %H:%M:%S} GMT{theirs}: {SET_CLOCK}"
