"""ECR in the emulator: moto's repositories, filled from and emptied in a real Docker registry (settings: registry)."""

from __future__ import annotations

import base64
import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any

from moto.core.responses import ActionResult
from moto.ecr import models as ecr
from moto.ecr import responses as ecr_http

from tests.emulator.aws_control import SETTINGS

MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"


def patch() -> dict[str, Callable[[], None]]:
    names_are_those_of_the_registry()
    images_are_those_of_the_registry()
    return {}


def names_are_those_of_the_registry() -> None:
    """moto tells a repository's name on AWS's host, and a token for it."""

    def uri(self: ecr.Repository) -> str:
        return f"{SETTINGS.registry}/{self.name}"

    def token(self: ecr_http.ECRResponse) -> ActionResult:
        login = {
            "authorizationToken": base64.b64encode(b"AWS:local").decode(),
            "expiresAt": time.time() + 43200,
            "proxyEndpoint": f"http://{SETTINGS.registry}",
        }
        return ActionResult({"authorizationData": [login]})

    ecr.Repository.uri = property(uri, lambda self, value: None)
    ecr_http.ECRResponse.get_authorization_token = token


def ask(repository: str, path: str, method: str = "GET") -> tuple[bytes, str]:
    """The body and the digest."""
    url = f"http://{SETTINGS.registry}/v2/{repository}/{path}"
    request = urllib.request.Request(url, method=method, headers={"Accept": MANIFEST})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return answer.read(), answer.headers.get("Docker-Content-Digest", "")


def images_are_those_of_the_registry() -> None:
    """moto knows only what was put by ECR's own API; `docker push` and `pull` go to the registry."""
    backend = ecr.ECRBackend
    deletes = backend.batch_delete_image

    def fill(self: ecr.ECRBackend, name: str) -> None:
        try:
            tags = json.loads(ask(name, "tags/list")[0])["tags"] or []
        except urllib.error.URLError:  # nothing was pushed, or there is no registry
            return
        known = {tag for image in self.repositories[name].images for tag in image.image_tags}
        for tag in set(tags) - known:
            manifest, digest = ask(name, f"manifests/{tag}")
            self.put_image(name, manifest.decode(), tag, MANIFEST, digest)

    def filled(method: Callable[..., Any]) -> Callable[..., Any]:
        def call(self: ecr.ECRBackend, repository_name: str, *args: Any, **kwargs: Any) -> Any:
            if repository_name in self.repositories:
                fill(self, repository_name)
            return method(self, repository_name, *args, **kwargs)

        return call

    def delete(self: ecr.ECRBackend, repository_name: str, *args: Any, **kwargs: Any) -> Any:
        before = {image.get_image_digest() for image in self.repositories[repository_name].images}
        answer = deletes(self, repository_name, *args, **kwargs)
        for digest in before - {image.get_image_digest() for image in self.repositories[repository_name].images}:
            ask(repository_name, f"manifests/{digest}", "DELETE")
        return answer

    for name in ("list_images", "describe_images", "batch_get_image"):
        setattr(backend, name, filled(getattr(backend, name)))
    backend.batch_delete_image = filled(delete)
