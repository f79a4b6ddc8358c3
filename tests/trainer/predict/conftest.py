from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.trainer.predict.website import Web


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    web = Web()
    yield web
    web.server.shutdown()
    web.thread.join()
    web.server.server_close()
