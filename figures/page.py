"""Pages of one file, that work offline: what unigenbench/report.html and gallery.html share.

A template has slots @@NAME@@. Of these, STYLE and SCRIPT are filled from page.css and page.js, and
DATA with what the script then finds in `data`.

    write_page("report.html", Path("template.html"), {"title": "..."}, NOTES="<p>...</p>")
"""

import base64
import json
from io import BytesIO
from pathlib import Path

from common.files import write_atomic
from common.rgb import to_rgb

HERE = Path(__file__).parent
THUMBNAIL = 384  # pixels: larger images are shrunk to this before they are put into a page


def image_uri(image) -> str:
    """An image for an <img>: PNG, or WebP shrunk from larger ones."""
    image = to_rgb(image)
    small = max(image.size) <= THUMBNAIL
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    data = BytesIO()
    kind = "png" if small else "webp"  # half of JPEG: a page may hold 2,400 of them
    image.save(data, kind, quality=75)
    return f"data:image/{kind};base64,{base64.b64encode(data.getvalue()).decode()}"


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
