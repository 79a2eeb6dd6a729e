"""Prompt sets by name: those of shapes, our own, the official ones, or any file.

prompts = find_prompts("en")               # data/test_prompts_en.csv
"""

from pathlib import Path

from shapes import prompts as shapes_prompts
from unigenbench.testpoints import Prompt, load_prompts

ASSETS = Path(__file__).resolve().parents[1] / "assets"
PROMPT_FILES = {
    "own": ASSETS / "prompts_en.csv",
    **{n: Path("data", f"test_prompts_{n}.csv") for n in ("en", "zh", "en_long", "zh_long")},
}


def prompt_file(name: str) -> Path:
    return PROMPT_FILES.get(name, Path(name))


def find_prompts(name: str) -> list[Prompt]:
    """The prompts of a known set or of a file. Raises ValueError if there is no such file."""
    if name == "shapes":
        return [
            Prompt(i, p.text, list(p.testpoints), "Shapes", p.kind, "en")
            for i, p in enumerate(shapes_prompts.heldout_prompts())
        ]
    path = prompt_file(name)
    if not path.is_file():
        raise ValueError(
            f"no prompt file '{path}'; sets: shapes, {', '.join(PROMPT_FILES)}. The "
            "official files are in data/ of github.com/CodeGoat24/UniGenBench"
        )
    return load_prompts(path)
