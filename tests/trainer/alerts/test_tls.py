"""A webhook over TLS: only a server that can prove its name gets an alert."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.trainer.alerts.receiver import Receiver, made
from trainer.alerts.delivery import Delivery


def certify(path: Path, host: str) -> None:
    """Write a key and a certificate of the host that it signs itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(1).not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    plain = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path.write_bytes(key.private_bytes(*plain) + certificate.public_bytes(serialization.Encoding.PEM))


@pytest.mark.parametrize(
    ("host", "is_trusted", "arrives"), [("localhost", True, True), ("localhost", False, False), ("other", True, False)]
)
def test_only_a_server_that_proves_its_name_gets_an_alert(
    host: str, is_trusted: bool, arrives: bool, receiver: Receiver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certify(tmp_path / "server.pem", host)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "server.pem")
    receiver.server.socket = context.wrap_socket(receiver.server.socket, server_side=True)
    for name in ("https_proxy", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)
    if is_trusted:
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "server.pem"))
    said: list[str] = []
    url = receiver.url.replace("http://127.0.0.1", "https://localhost")
    delivery = Delivery.open({"TRAINER_WEBHOOK": url}, said.append)
    assert delivery
    delivery.send(made())
    delivery.close(5)
    refused = "the webhook did not take an alert (best): its certificate is not valid; the run goes on"
    assert said == ([] if arrives else [refused])
    assert len(receiver.got) == arrives
