"""The questions of the released code, read from a person's own copy of the file that holds them.

github.com/CodeGoat24/Pref-GRPO, fastvideo/rewards/templates.py, has no license file, so nothing of
it ships here; nor is it imported or executed. Its client sends JPEGs (`jpeg_uri`), asks for up to
TOKENS, and sends no temperature, so that the server's own settings sample; it asks in one order
(ours: greedily, in both).

    released_question("think:templates.py")       # UnifiedReward-Think's, with {prompt}
"""

import ast
import contextlib
import io
from pathlib import Path
from typing import Any

from PIL import Image

from judges.openai_client import data_uri
from judges.templates import check_template, read_template

# kind of question -> the function that returns it as a format string
FUNCTIONS = {
    "think": "get_unifiedreward_think_image_template",
    "flex": "get_unifiedreward_flex_image_template",
}
TOKENS = 4096  # of the longest answer


def kind_of(spec: str) -> tuple[str, str]:
    """("think" or "flex", path) of "KIND:PATH"; ("", spec) of any other text."""
    kind, colon, path = spec.partition(":")
    return (kind, path) if colon and kind in FUNCTIONS else ("", spec)


def constant(node: ast.AST, known: dict):
    """The value of an expression of literals and of names in known; a dictionary is without what
    is no constant in it. Raises ValueError."""
    match node:
        case ast.Name(name) if name in known:
            return known[name]
        case ast.BinOp(left, ast.Add(), right):
            both = constant(left, known), constant(right, known)
            if all(isinstance(text, str) for text in both):
                return "".join(both)
        case ast.Dict(keys, values):
            found = {}
            for key, value in zip(keys, values):
                with contextlib.suppress(ValueError):
                    item = constant(value, known)
                    found |= {constant(key, known): item} if key else item
            return found
        case ast.JoinedStr(parts):  # a template of the older scripts: its names are placeholders
            return "".join(map(template_part, parts))
    return ast.literal_eval(node)


def template_part(node: ast.AST) -> str:
    match node:
        case ast.Constant(text):
            return text.replace("{", "{{").replace("}", "}}")
        case ast.FormattedValue(ast.Name(name), -1, None):
            return f"{{{name}}}"
    raise ValueError("not a constant")


def constants_of(text: str) -> tuple[dict[str, Any], dict[str, int]]:
    """What the names of a Python file stand for that are assigned constants, or are functions that
    return one and do nothing else; and the lines of the others' names.

    What is assigned again in the module, or added to, and is no constant then, is none.
    """
    known, others, tree = {}, {}, ast.parse(text)
    for node in ast.walk(tree):
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        name, value = getattr(target, "id", None), getattr(node, "value", None)
        if isinstance(node, ast.FunctionDef) and node in tree.body:
            name, last = node.name, node.body[-1]
            idle = len(node.body) - (ast.get_docstring(node) is not None) == 1
            value = last.value if idle and isinstance(last, ast.Return) else None
        if name and isinstance(node, ast.stmt):
            try:
                known[name] = constant(None if isinstance(node, ast.AugAssign) else value, known)
            except (ValueError, TypeError):
                others[name] = node.lineno
                if node in tree.body:
                    known.pop(name, None)
    return known, others


def constants(path: str | Path, flag: str = "the file") -> dict[str, Any]:
    """Those of a file. Raises ValueError if it cannot be read, or is no Python.

    flag: what errors call the file.
    """
    text = read_template(path, flag)
    try:
        return constants_of(text)[0]
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"{flag} '{path}' is no Python file ({error})") from None


def jpeg_uri(image: Image.Image) -> str:
    """An image as both released clients send it, of this paper's judges and of the benchmark's."""
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "JPEG", quality=95)
    return data_uri("image/jpeg", buffer.getvalue())


def released_question(spec: str, flag: str = "--judge_prompt") -> str:
    """The question of "think:PATH" or "flex:PATH", filled in but for {prompt}.

    Raises ValueError in one sentence if the file does not hold it, or not with {prompt} alone.
    """
    kind, path = kind_of(spec)
    text, where = constants(path, flag).get(FUNCTIONS[kind]), f"{flag} '{spec}'"
    if not isinstance(text, str):
        raise ValueError(
            f"{where}: no function {FUNCTIONS[kind]} returns a text there; give your own copy of "
            "fastvideo/rewards/templates.py of github.com/CodeGoat24/Pref-GRPO"
        )
    check_template(text, where, ["prompt"], formatted=True)
    if "{{prompt}}" in text:
        raise ValueError(f"{where}: it has {{{{prompt}}}}, which would be taken for {{prompt}}")
    return text.format(prompt="{prompt}")
