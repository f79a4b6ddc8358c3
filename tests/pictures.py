"""`make docs-pictures`: the pictures of the pages, drawn anew from a run of made-up numbers, whose name says so."""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

from tests import ROOT
from tests.conftest import BROWSERS
from tests.trainer.made_run import MadeRun
from trainer.report import build_report
from trainer.store import open_store

RUN = "made-up-numbers"
FRAME = (
    '<!doctype html><body style="margin:0">'
    '<iframe src="{page}" style="display:block;border:0;width:{width}px;height:{height}px"></iframe>'
)
PICTURES = {  # name -> width and height in CSS pixels, pixels for each of them, whether dark
    "report.png": (1120, 1560, 1, False),
    "report-phone.png": (390, 1200, 2, True),
}


def photograph(browser: str, page: Path, size: tuple[int, int], scale: int, *, is_dark: bool) -> bytes:
    """A PNG of the top of the page. A frame is as narrow as a phone, which a window need not be."""
    frame, picture = page.with_name("frame.html"), page.with_name("picture.png")
    frame.write_text(FRAME.format(page=page.name, width=size[0], height=size[1]))
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--hide-scrollbars"]
    flags += [f"--user-data-dir={page.parent / 'profile'}", f"--window-size={size[0]},{size[1]}"]
    flags += [f"--force-device-scale-factor={scale}", f"--screenshot={picture}"]
    flags += ["--blink-settings=preferredColorScheme=0"] if is_dark else []
    subprocess.run([browser, *flags, frame.as_uri()], check=True, capture_output=True)
    image, small = Image.open(picture).convert("RGB"), io.BytesIO()
    image.quantize(256, dither=Image.Dither.NONE).save(small, "PNG", optimize=True)
    return small.getvalue()


def main() -> int:
    browser = next((path for name in BROWSERS if (path := shutil.which(name))), "")
    if not browser:
        print("error: no chromium: make ci-deps, as root, installs one", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory() as name:
        store, page = open_store(f"{name}/store"), Path(name) / "page.html"
        MadeRun(run_id=RUN).put(store)
        page.write_bytes(build_report(store, RUN).files["index.html"])
        for picture, (width, height, scale, is_dark) in PICTURES.items():
            (ROOT / "docs" / picture).write_bytes(photograph(browser, page, (width, height), scale, is_dark=is_dark))
            print(f"docs/{picture}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
