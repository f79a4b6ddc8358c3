"""What tests set and ask of the AWS emulator, inside its process: one JSON document at /fake/settings, faults by
action, and the list of the calls. Also answers the services that moto does not know: the Price List and the plan.
"""

from __future__ import annotations

import io
import json
import re
import socket
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, fields
from functools import cache
from typing import Any
from urllib.parse import parse_qs
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

import botocore.session

# Round figures of about the right size; made up, so that no test can take them for a price list.
ON_DEMAND_USD = {
    "g6.xlarge": 0.8, "g6.2xlarge": 1.0, "g6.4xlarge": 1.3, "g5.xlarge": 1.0, "g5.2xlarge": 1.2, "g5.4xlarge": 1.6,
    "g6e.xlarge": 1.9, "g6e.2xlarge": 2.2, "g6e.4xlarge": 3.0, "c7a.2xlarge": 0.4, "c7i.2xlarge": 0.36,
    "c6a.2xlarge": 0.3, "c6i.2xlarge": 0.34, "m7a.2xlarge": 0.46, "m7i.2xlarge": 0.4, "m6a.2xlarge": 0.35,
    "m6i.2xlarge": 0.38,
}  # fmt: skip
QUOTAS = {  # vCPUs; VPCs; builds
    "L-3819A6DF": 64.0,  # All G and VT Spot Instance Requests
    "L-DB2E81BA": 64.0,  # Running On-Demand G and VT instances
    "L-34B43A08": 64.0,  # All Standard (A, C, D, H, I, M, R, T, Z) Spot Instance Requests
    "L-1216C47A": 64.0,  # Running On-Demand Standard (A, C, D, H, I, M, R, T, Z) instances
    "L-F678F1CE": 5.0,  # VPCs per Region
    "L-9D07B6EF": 1.0,  # Concurrently running builds for Linux/Small environment
}
SIGNING_NAMES = {"servicequotas": "service-quotas", "monitoring": "cloudwatch"}  # where the client's name is another


@dataclass
class Settings:
    """See tests/emulator/aws.py for what each one does."""

    on_demand_usd: dict[str, float] = field(default_factory=lambda: dict(ON_DEMAND_USD))
    spot_usd: dict[str, list[list[float]]] = field(default_factory=dict)
    zone_usd: dict[str, float] = field(default_factory=dict)
    disk_usd: float = 0.08
    quotas: dict[str, float] = field(default_factory=lambda: dict(QUOTAS))
    parameters: dict[str, str] = field(default_factory=dict)
    launch_failures: dict[str, str] = field(default_factory=dict)
    create_failures: dict[str, str] = field(default_factory=dict)
    end_reason: str = "Client.UserInitiatedShutdown"
    delete_failures: dict[str, str] = field(default_factory=dict)
    stack_status: dict[str, str] = field(default_factory=dict)
    faults: list[dict[str, Any]] = field(default_factory=list)
    session_seconds: float = 0.0
    log_delay_seconds: float = 0.0
    log_page_events: int = 0
    machines_boot: bool = False
    off: list[str] = field(default_factory=list)
    account_plan: str = "PAID"
    build_minute_seconds: float = 60.0
    registry: str = "127.0.0.1:1"
    secret_lingers: int = 0
    block_public_access: str = "off"
    exclusions: dict[str, str] = field(default_factory=dict)

    def change(self, changes: dict[str, Any]) -> None:
        for name, value in changes.items():
            current = getattr(self, name)  # a name that does not exist is the test's mistake
            setattr(self, name, current | value if isinstance(current, dict) else value)

    def reset(self) -> None:
        fresh = Settings()
        for f in fields(self):
            setattr(self, f.name, getattr(fresh, f.name))


SETTINGS = Settings()
CALLS: list[str] = []  # "ec2.DescribeInstances", in order of arrival
CUT: list[str] = []  # the instances that were terminated without a shutdown
ASKED: list[dict[str, Any]] = []  # what IAM was asked: action, resource, context, of which role, why refused, or ""


@cache
def rest_operations(service: str) -> list[tuple[str, str, re.Pattern[str], set[str]]]:
    """(name, method, path, query keys) of a service whose calls have no name in them; the most specific first."""
    model = botocore.session.get_session().get_service_model(service)
    found = []
    for name in sorted({*model.operation_names} - {"CopyObject", "UploadPartCopy"}):  # only a header tells them apart
        http = model.operation_model(name).http
        path, _, query = http["requestUri"].partition("?")
        pattern = re.sub(r"\\{\w+\\\+\\}", ".+", re.escape(path))
        pattern = re.sub(r"\\{\w+\\}", "[^/]+", pattern)
        found.append((name, http["method"], re.compile(pattern + "/?"), set(parse_qs(query, keep_blank_values=True))))
    return sorted(found, key=lambda entry: (-len(entry[3]), -len(entry[2].pattern)))


def call_of(environ: WSGIEnvironment) -> str:
    """`service.Action` of a request, with the service's name in boto3; "" where it is no call of AWS."""
    scope = re.search(r"Credential=[^/]+/\d+/[^/]+/([^/]+)/", environ.get("HTTP_AUTHORIZATION", ""))
    if not scope:  # a token signs for who asks, in one call
        is_form = environ.get("CONTENT_TYPE", "").startswith("application/x-www-form-urlencoded")
        named = is_form and parse_qs(read_body(environ).decode()).get("Action") == ["AssumeRoleWithWebIdentity"]
        return "sts.AssumeRoleWithWebIdentity" if named else ""
    service = SIGNING_NAMES.get(scope[1], scope[1])
    if target := environ.get("HTTP_X_AMZ_TARGET"):
        return f"{service}.{target.rpartition('.')[2]}"
    if environ.get("CONTENT_TYPE", "").startswith("application/x-www-form-urlencoded"):
        return f"{service}.{parse_qs(read_body(environ).decode()).get('Action', ['?'])[0]}"
    query = set(parse_qs(environ.get("QUERY_STRING", ""), keep_blank_values=True))
    for name, method, path, keys in rest_operations(service):
        if environ["REQUEST_METHOD"] == method and keys <= query and path.fullmatch(environ["PATH_INFO"]):
            return f"{service}.{name}"
    return f"{service}.?"


def read_body(environ: WSGIEnvironment) -> bytes:
    """The body, which whoever comes next can read again."""
    body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
    environ["wsgi.input"] = io.BytesIO(body)
    return body


def price_list(request: dict[str, Any]) -> dict[str, Any]:
    """The answer of pricing.GetProducts: Linux on-demand instances, and gp3, in the shape that the real one has."""
    wanted = {f["Field"]: f["Value"] for f in request.get("Filters", [])}
    if wanted.get("volumeApiName") == "gp3":
        price = {"unit": "GB-Mo", "pricePerUnit": {"USD": f"{SETTINGS.disk_usd:.10f}"}}
        terms = {"OnDemand": {"D.T": {"priceDimensions": {"D.T.D": price}}}}
        return {"FormatVersion": "aws_v1", "PriceList": [json.dumps({"product": {}, "terms": terms})]}
    products = [
        {
            "product": {
                "attributes": {
                    "instanceType": name, "regionCode": wanted.get("regionCode", "us-east-1"),
                    "operatingSystem": "Linux", "tenancy": "Shared", "preInstalledSw": "NA", "capacitystatus": "Used",
                    "operation": "RunInstances",
                }
            },
            "publicationDate": "2026-01-02T03:04:05Z",
            "terms": {
                "OnDemand": {
                    f"{name}.T": {
                        "priceDimensions": {f"{name}.T.D": {"unit": "Hrs", "pricePerUnit": {"USD": f"{usd:.10f}"}}},
                    }
                }
            },
        }
        for name, usd in SETTINGS.on_demand_usd.items()
        if name == wanted.get("instanceType", name)
    ]  # fmt: skip
    return {"FormatVersion": "aws_v1", "PriceList": [json.dumps(product) for product in products]}


class Front:
    """The WSGI application before moto's."""

    def __init__(
        self,
        moto: WSGIApplication,
        controls: dict[str, Callable[[], None]],
        refusal: Callable[[WSGIEnvironment], tuple[str, str] | None],
    ) -> None:
        self.moto = moto
        self.refusal = refusal  # code and message of what IAM refuses
        self.controls = controls  # what has to follow a change of a setting, by its name

    def __call__(self, environ: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        if path.startswith("/fake/"):
            return self.control(environ, start)
        if path == "/moto-api/reset":
            SETTINGS.reset()
            self.controls["session_seconds"]()
            CALLS.clear()
            CUT.clear()
            ASKED.clear()
        if call := call_of(environ):
            CALLS.append(call)
            if fault := planned_fault(call):
                return refuse(call, fault, environ, start)
            if refused := self.refusal(environ):
                answered = {"code": refused[0], "message": refused[1], "status": 403}
                return refuse(call, answered, environ, start)
        if call == "freetier.GetAccountPlanState":
            return answer(start, {"accountPlanType": SETTINGS.account_plan, "accountPlanStatus": "ACTIVE"})
        if call in ("ssm.StartSession", "ssm.ResumeSession", "ssm.TerminateSession"):
            return answer(start, {"SessionId": "me-0a1b2c3d"}, "application/x-amz-json-1.1")
        if call == "pricing.GetProducts":
            return answer(start, price_list(json.loads(read_body(environ))), "application/x-amz-json-1.1")
        return self.moto(environ, start)

    def control(self, environ: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] == "POST":
            changes = json.loads(read_body(environ))
            if environ["PATH_INFO"] == "/fake/calls":
                CALLS.clear()
                ASKED.clear()
            SETTINGS.change(changes)
            for name in changes:
                self.controls.get(name, lambda: None)()
        return answer(start, {"settings": asdict(SETTINGS), "calls": CALLS, "cut": CUT, "asked": ASKED})


def planned_fault(call: str) -> dict[str, Any] | None:
    """The first fault for a call that is not used up; its `times` counts down, and a negative one never ends."""
    for fault in SETTINGS.faults:
        if re.fullmatch(fault["call"].replace("*", ".*"), call) and fault["times"]:
            fault["times"] -= 1
            return fault
    return None


def refuse(call: str, fault: dict[str, Any], environ: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
    code, message, status = fault["code"], fault["message"], f"{fault['status']} planned"
    if code == "network":  # hang up without an answer
        environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
        return []
    read_body(environ)
    if environ.get("HTTP_X_AMZ_TARGET") or call.startswith(("fis.", "lambda.", "scheduler.")):
        return answer(start, {"__type": code, "message": message}, "application/x-amz-json-1.1", status, code)
    error = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>"
    if call.startswith("ec2."):
        error = f"<Response><Errors>{error}</Errors><RequestID>r</RequestID></Response>"
    elif not call.startswith("s3."):
        error = f"<ErrorResponse>{error}<RequestId>r</RequestId></ErrorResponse>"
    start(status, [("Content-Type", "text/xml"), ("Content-Length", str(len(error)))])
    return [error.encode()]


def answer(
    start: StartResponse, value: object, kind: str = "application/json", status: str = "200 OK", error: str = ""
) -> list[bytes]:
    body = json.dumps(value).encode()
    headers = [("Content-Type", kind), ("Content-Length", str(len(body)))]
    start(status, headers + ([("x-amzn-ErrorType", error)] if error else []))
    return [body]
