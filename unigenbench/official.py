"""The official question, read out of a person's own copy of the official evaluator (CC-BY-4.0).

Nothing of its words ships here, and nothing of the file is run: constants are read by `ast`, out of
eval/src/eval_common.py, or out of one of the scripts that it replaced on 2026-02-13. Their clients
differ in how they ask, too (FORMS).

    official = read_official("UniGenBench/eval/src/eval_common.py", "offline")
    question(prompts[0], official=official)              # of questions.py: word for word theirs
"""

import hashlib
import io
import mimetypes
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from judges import released
from judges.openai_client import data_uri, png_uri
from unigenbench.testpoints import fold, language_of

PLACES = ("", "eval/src/eval_common.py", "src/eval_common.py", "eval_common.py")
OPENING, CLOSING = ":\u300c", "\n\u300d"  # of a block, after its heading and after its lines
TRIES = 11  # of one image until an answer has scores, in the very same words


class Wording(NamedTuple):
    """The question in one language."""

    template: str  # a format string
    openings: tuple[str, str]  # of the blocks of definitions and of descriptions
    definitions: dict[str, str]  # by folded label

    def blocks(self, labels: list[str], descriptions: list[str]) -> dict[str, str]:
        """The two blocks about these testpoints, by their placeholders. Raises ValueError."""
        if lacks := [label for label in labels if fold(label) not in self.definitions]:
            raise ValueError(f"the official question has no definition of '{lacks[0]}'")
        meanings = [self.definitions[fold(label)] for label in labels]
        filled = {}
        for name, opening, texts in zip(
            ("explanation", "test_explanation"), self.openings, (meanings, descriptions)
        ):
            lines = [f"\n{label}: {text}" for label, text in zip(labels, texts)]
            filled[name] = opening + "".join(lines) + CLOSING
        return filled


class Official(NamedTuple):
    path: Path
    sha256: str  # of the file
    wordings: dict[str, Wording]  # by language
    form: str  # one of FORMS

    def wording(self, language: str) -> Wording:
        if language not in self.wordings:
            has = ", ".join(self.wordings)
            raise ValueError(f"{self.path} has no question for prompts of '{language}', but: {has}")
        return self.wordings[language]


# ----------------------------------------------------------------------------- reading


def wordings_of(known: dict) -> dict[str, Wording]:
    """By language. Raises KeyError or TypeError for a file of another form."""
    if "system_prompt" in known and "LANG_CONFIGS" not in known:
        names = ("system_prompt", "explanation", "test_explanation", "explanation_dict")
        one = [known[name] for name in names]
        found = {language_of(next(iter(one[3]))): one}
    else:
        found = {
            language: (
                config["system_prompt_template"],
                config["checkpoint_header"] + OPENING,
                config["checkpoint_desc_header"] + OPENING,
                config["explanation_dict"],
            )
            for language, config in known["LANG_CONFIGS"].items()
        }
    return {
        language: Wording(template, (first, second), {fold(k): v for k, v in meanings.items()})
        for language, (template, first, second, meanings) in found.items()
    }


def read_official(
    path: str | Path | None, form: str | None = None, model: str | None = None
) -> Official | None:
    """The evaluator's file, or its folder; None where none is given.

    form: of FORMS; by default that of the client that asks this model, by its name
    Raises ValueError that names the file and what it lacks.
    """
    if not path:
        if form:
            raise ValueError("--official_form says how --official is asked: give that too")
        return None
    form = form or ("api" if "gemini" in (model or "").lower() else "offline")
    file = next((p for place in PLACES if (p := Path(path) / place).is_file()), None)
    if file is None:
        raise ValueError(
            f"--official '{path}': no eval_common.py there; it is in eval/src/ of a copy of "
            "github.com/CodeGoat24/UniGenBench"
        )
    data, others = file.read_bytes(), {}
    try:
        known, others = released.constants_of(data.decode("utf-8-sig"))
        wordings = wordings_of(known)
        for wording in wordings.values():
            "".join((wording.template, *wording.openings, *wording.definitions.values()))
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"--official '{file}' is no Python that can be read: {error}") from None
    except (LookupError, TypeError, AttributeError, StopIteration) as error:
        run = [n for n in others if n.startswith(("LANG_CONFIGS", "SYSTEM_PROMPT", "EXPLANATION"))]
        why = f"it lacks, or has in another form, {error}"
        if run:
            why = f"{run[0]} (line {others[run[0]]}) is no constant, and nothing of it is run"
        raise ValueError(f"--official '{file}' is not the evaluator's file: {why}") from None
    return Official(file, hashlib.sha256(data).hexdigest(), wordings, form)


# ----------------------------------------------------------------------------- asking


def jpeg_of_file(image: Image.Image) -> str:
    """The image's file, as it is decoded, as a JPEG."""
    _, data = image.info.get("file", ("", None))
    return released.jpeg_uri(Image.open(io.BytesIO(data)) if data else image)


def file_uri(image: Image.Image) -> str:
    """The bytes of the image's file; the kind is what the name says."""
    if "file" not in image.info:  # one of check_sight's
        return png_uri(image)
    name, data = image.info["file"]
    return data_uri(mimetypes.guess_type(name)[0] or "application/octet-stream", data)


SAMPLING = dict(temperature=None, seed=None)  # neither is sent: the server's own decide
FORMS = {  # how the two clients ask, as settings of OpenAIMLLM
    "offline": SAMPLING | dict(encode=jpeg_of_file, others={"do_sample": False}, max_retries=9),
    "api": SAMPLING | dict(encode=file_uri, text_first=True, max_retries=10),
}
