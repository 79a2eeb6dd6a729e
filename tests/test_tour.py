"""tour.ipynb: what it is allowed to be. .ci/run executes it."""

import ast
import json

from conftest import ROOT

CELLS = json.loads((ROOT / "tour.ipynb").read_text(encoding="utf-8"))["cells"]
CODE = ["".join(cell["source"]) for cell in CELLS if cell["cell_type"] == "code"]
DEFINITIONS = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda


def test_it_is_short_without_outputs_and_defines_nothing():
    assert len(CELLS) <= 15 and len(CODE) >= 7
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in CELLS)
    for source in CODE:
        python = "\n".join(line for line in source.splitlines() if not line.startswith("%"))
        assert not [node for node in ast.walk(ast.parse(python)) if isinstance(node, DEFINITIONS)]


def test_ci_makes_fewer_steps_of_what_it_trains():
    """The words that .ci/run replaces stand in it."""
    for words in ("steps, folder = 16,", "--steps=16"):
        assert sum(words in source for source in CODE) == 1
        assert words in (ROOT / ".ci" / "run").read_text(encoding="utf-8")
