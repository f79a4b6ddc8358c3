"""What a browser makes of a page at several widths, told by a script beside the page: the page itself has none."""

from __future__ import annotations

import html
import json
import re
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests import PATIENCE

# Each frame is as wide as a window. Whatever a frame loads, is in its list of resources; what is forged tries to set
# `hacked`.
_BESIDE = """<!doctype html><meta charset="utf-8"><link rel="icon" href="data:,">
%s<pre id="found"></pre><script>
const look = async frame => {
  const page = frame.contentDocument, all = (query) => [...page.querySelectorAll(query)];
  for (const one of all('details')) one.open = true;
  const reached = all('summary, [tabindex="0"]').filter(one => { one.focus(); return page.activeElement === one });
  const sheets = all('.mistakes i').map(one => frame.contentWindow.getComputedStyle(one).backgroundImage.slice(5, -2));
  const picture = new Image(); picture.src = sheets[0] || '';
  await picture.decode().catch(() => 0);
  return {
    width: page.documentElement.scrollWidth,
    resources: frame.contentWindow.performance.getEntriesByType('resource').map(one => one.name),
    points: Object.fromEntries(all('svg g[id*="/"] > path:not(defs path)').map(
      path => [path.parentNode.id, (path.getAttribute('d').match(/[ML]/g) || []).length])),
    ranges: all('svg g[id$="/range"]').map(one => one.id),
    letters: Math.min(...all('svg text').filter(one => one.textContent.trim()).map(
      one => one.getBoundingClientRect().height)),
    unreached: all('summary, [tabindex="0"]').length - reached.length, reached: reached.length,
    unnamed: all('[role=img], [role=region], progress').filter(one => !one.getAttribute('aria-label')).length,
    narrow: all('.wide').filter(one => one.scrollWidth > one.clientWidth).length,
    sheet: picture.naturalWidth, tiles: sheets.length,
    hacked: 'hacked' in window || 'hacked' in frame.contentWindow,
    odd: all('script, img, link, object, embed, iframe, base, form').length,
    text: page.body.innerText,
  };
};
onload = async () => {
  const found = {};
  for (const frame of document.querySelectorAll('iframe')) found[frame.width] = await look(frame);
  document.getElementById('found').textContent = JSON.stringify(found);
};
</script>"""


def browse(chromium: str, folder: Path, page: bytes, widths: Sequence[int]) -> dict[int, dict[str, Any]]:
    """What the page is like in each width. Fails where the browser complains, or asks for anything but the page."""
    frames = "".join(f'<iframe src="/page" width="{width}" height="900" style="border:0"></iframe>' for width in widths)
    with serving({"/": (_BESIDE % frames).encode(), "/page": page}) as (address, asked):
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
        flags += [f"--user-data-dir={folder}", "--window-size=1400,2000", "--enable-logging=stderr", "--log-level=0"]
        flags += ["--virtual-time-budget=5000", "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1"]
        done = subprocess.run(
            [chromium, *flags, "--dump-dom", address], capture_output=True, text=True, check=True, timeout=PATIENCE
        )
    assert "CONSOLE" not in done.stderr, done.stderr
    assert set(asked) == {"/", "/page"}
    found = re.search(r'<pre id="found">(.+?)</pre>', done.stdout, re.DOTALL)
    assert found, done.stdout[-2000:]
    return {int(width): one for width, one in json.loads(html.unescape(found[1])).items()}


@contextmanager
def serving(pages: dict[str, bytes]) -> Iterator[tuple[str, list[str]]]:
    """The pages at an address on this machine, and the paths that were asked for."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            body = pages.get(self.path, b"")
            self.send_response(200 if body else 404)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
