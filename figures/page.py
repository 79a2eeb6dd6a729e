"""Pages of one file, that work offline: what unigenbench/report.html and gallery.html share.

A template has slots @@NAME@@. Of these, STYLE and SCRIPT are filled from page.css and page.js, and
DATA with what the script then finds in `data`.

    write_page("report.html", Path("template.html"), {"title": "..."}, NOTES="<p>...</p>")
"""

import base64
import json
import math
from io import BytesIO
from pathlib import Path

from common.files import write_atomic
from common.rgb import to_rgb

HERE = Path(__file__).parent
THUMBNAIL = 384  # pixels: larger images are shrunk to this before they are put into a page,
SMALLEST = 64  # and to this at the least where many have to share its bytes


def image_uri(image, room: float = math.inf) -> str:
    """An image for an <img>, in at most `room` bytes: PNG, or WebP shrunk from larger ones, which
    looks the same in half the bytes of JPEG."""
    image = to_rgb(image)
    kind, side = "png" if max(image.size) <= THUMBNAIL else "webp", THUMBNAIL
    while True:
        image.thumbnail((side, side))
        data = BytesIO()
        image.save(data, kind, quality=75)
        uri = f"data:image/{kind};base64,{base64.b64encode(data.getvalue()).decode()}"
        if len(uri) <= room or side == SMALLEST:
            return uri
        # the bytes go about with the area; a twentieth less, since small ones hold more for theirs
        kind, side = "webp", max(SMALLEST, int(0.95 * max(image.size) * (room / len(uri)) ** 0.5))


def write_page(path, template: Path, data, **parts: str) -> None:
    """Fills a template's slots. parts: markup by name; data: for JSON, whatever it holds."""
    read = lambda file: file.read_text(encoding="utf-8")
    # no "</script>", no "<!--" can end or open a tag
    parts["DATA"] = json.dumps(data, ensure_ascii=False).replace("<", "\\u003c")
    parts |= {"STYLE": read(HERE / "page.css"), "SCRIPT": read(HERE / "page.js")}
    before, *slots = read(template).split("@@")  # text, name, ..., text
    filled = [parts[piece] if i % 2 == 0 else piece for i, piece in enumerate(slots)]
    # half of a pair of surrogates, which a judge may say, becomes its escape in JSON
    write_atomic(path, (before + "".join(filled)).encode(errors="backslashreplace"))
