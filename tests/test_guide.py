"""GUIDE.md against the code: its names, files, flags, breaks, examples and commands.

What stands in backticks must exist. Commands are run in this process, in a short form: train.py
with the few steps and images of TRAIN, bench.py on one prompt, the pictures of a smaller group.
"""

import dataclasses
import doctest
import importlib
import re
import shlex
from pathlib import Path

import pytest
from conftest import ROOT

import bench
from figures import explain
from training.config import Config, parse_config

GUIDE = (ROOT / "GUIDE.md").read_text()
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
BLOCKS = FENCE.findall(GUIDE)  # (kind, text)
PROSE = FENCE.sub("", GUIDE)
# in `FILE`, `old text` → `new text`
BREAK = re.compile(r"[Ii]n\s+`([^`]+)`,\s+`([^`]+)`\s+→\s+`([^`]+)`")
TOKENS = sorted(set(re.findall(r"`([^`]+)`", BREAK.sub("", PROSE))))
COMMANDS = [line for kind, block in BLOCKS if kind == "sh" for line in block.splitlines()]
# Those of exercises/ train for minutes, on what a student wrote: test_exercises_train.py runs them.
COMMANDS += [t for t in TOKENS if t.startswith("python ") and " exercises." not in t]

TRAIN = "--steps 1 --prompts_per_step 2 --group_size 2 --micro_batch 1 --heldout 2"
SMALL_GROUP = dataclasses.replace(Config(), group_size=3, num_steps=3)
MODULES = [p for p in (*ROOT.glob("*.py"), *ROOT.glob("*/*.py")) if p.parent.name != "tests"]
# Of names alone: in the code, or among the numbers of a run, some of whose names are put together.
NAMED = "\n".join(path.read_text() for path in (*MODULES, ROOT / "docs" / "runs.md"))
EXERCISES = {p.relative_to(ROOT).as_posix() for p in ROOT.glob("exercises/ex_*.py")}
FLAGS = {field.name for field in dataclasses.fields(Config)}
FLAGS |= set(re.findall(r'"--(\w+)"', (ROOT / "bench.py").read_text()))


def resolve(name: str):
    """What a dotted name stands for, such as models.base.Model.velocity."""
    parts = name.split(".")
    count = next(n for n in range(len(parts), 0, -1) if is_module(parts[:n]))
    found = importlib.import_module(".".join(parts[:count]))
    for part in parts[count:]:
        found = getattr(found, part)
    return found


def is_module(parts: list[str]) -> bool:
    path = ROOT.joinpath(*parts)
    return path.is_dir() or path.with_suffix(".py").is_file()


def is_file(token: str) -> bool:
    return "/" in token or Path(token).suffix in (".py", ".md", ".png", ".csv")


@pytest.mark.parametrize("token", [t for t in TOKENS if not t.startswith(("python ", "runs/"))])
def test_what_stands_in_backticks_exists(token):
    if token.startswith("--"):
        flag, *values = token.split()
        assert flag[2:].removeprefix("no-") in FLAGS
        if values:
            parse_config(token.split())  # of train.py; SystemExit for an unknown recipe
    elif is_file(token):
        assert (ROOT / token).is_file()
    elif "." in token:
        resolve(token)
    else:
        assert re.fullmatch(r"\w+", token), "neither a flag, a file, a command nor a name"
        assert re.search(rf"\b{token}\b", NAMED)


def test_each_exercise_has_its_part():
    assert set(TOKENS) >= EXERCISES


def test_links_and_pictures_exist():
    targets = re.findall(r"\]\(([^)]+)\)", PROSE)
    assert targets
    for target in targets:
        path, _, anchor = target.partition("#")
        assert (ROOT / path).is_file(), target
        lines = (ROOT / path).read_text().splitlines() if anchor else []
        headings = [line.strip("# ").lower().replace(" ", "-") for line in lines if "# " in line]
        assert not anchor or anchor in headings, target


def test_what_is_to_be_broken_stands_in_its_file_once():
    breaks = BREAK.findall(PROSE)
    assert breaks and len(breaks) == len(re.findall(r"`\s+→", PROSE))  # each arrow is one of them
    for file, old, new in breaks:
        text = (ROOT / file).read_text()
        assert text.count(old) == 1, f"'{old}' stands {text.count(old)} times in {file}"
        compile(text.replace(old, new), file, "exec")


def test_the_examples_print_what_stands_below_them():
    source = "\n".join(block for kind, block in BLOCKS if kind == "pycon")
    examples = doctest.DocTestParser().get_doctest(source, {}, "GUIDE.md", "GUIDE.md", 0)
    said = []
    result = doctest.DocTestRunner().run(examples, out=said.append)
    assert result.attempted and not result.failed, "".join(said)


def test_blocks_are_commands_or_examples():
    assert {kind for kind, _ in BLOCKS} == {"sh", "pycon"}
    assert GUIDE.count("```") == 2 * len(BLOCKS)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_runs_and_leaves_the_files_that_are_named(command, tmp_path, monkeypatch):
    python, *words = shlex.split(command)
    module, *flags = words[1:] if words[0] == "-m" else [words[0].removesuffix(".py"), *words[1:]]
    assert python == "python" and is_module(module.split("."))
    planned = "--dry_run" in flags
    if module == "train" and not planned:
        flags += TRAIN.split()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", [module, *flags])
    monkeypatch.setattr(explain, "Settings", lambda: SMALL_GROUP)
    limited = ("generate", "judge")
    short = [line + " --limit 1" * line.startswith(limited) for line in bench.DEFAULT]
    monkeypatch.setattr(bench, "DEFAULT", short)
    try:
        importlib.import_module(module).main()
        ending = None
    except SystemExit as stop:
        ending = stop.code
    assert str(ending).startswith("verdict: ") if planned else not ending
    if "--out" in flags:
        out = flags[flags.index("--out") + 1]
        named = [token for token in TOKENS if token.startswith(out + "/")]
        assert Path(out).exists() and all(map(Path.exists, map(Path, named)))


def test_every_file_of_a_run_belongs_to_a_command():
    made = [word for command in COMMANDS for word in command.split() if word.startswith("runs/")]
    named = [token for token in TOKENS if token.startswith("runs/")]
    assert named and all(token.startswith(tuple(f"{out}/" for out in made)) for token in named)
