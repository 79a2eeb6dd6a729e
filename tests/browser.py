"""A real browser for the tests of pages: Chromium, where it is installed."""

import html
import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
needs_browser = pytest.mark.skipif(
    BROWSER is None, reason="no Chromium is installed (apt-get install chromium)"
)
FLAGS = (
    "--headless --no-sandbox --disable-gpu --no-first-run --disable-sync "
    "--disable-background-networking --disable-component-update --dump-dom"
)


def seen(page: Path, script: str, folder: Path):
    """What a script leaves in its list `seen` that is put at the end of a copy of a page."""
    probe = f"""<script>
      const seen = [];
      {script}
      document.body.replaceChildren("SEEN" + JSON.stringify(seen) + "END");
      </script></body>"""
    copy = folder / "probe.html"
    copy.write_text(page.read_text(encoding="utf-8").replace("</body>", probe), encoding="utf-8")
    flags = [*shlex.split(FLAGS), f"--user-data-dir={folder / 'profile'}"]
    dom = subprocess.run(
        [BROWSER, *flags, copy.as_uri()], capture_output=True, text=True, timeout=120
    ).stdout
    return json.loads(html.unescape(re.search(r">SEEN(.*?)END", dom, re.DOTALL)[1]))
