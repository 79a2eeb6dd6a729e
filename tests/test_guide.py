"""The pages against the code: links, files and lines; GUIDE.md's names, breaks and commands.

Commands run in this process, in a short form: few steps and images, one prompt, a smaller group.
"""

import doctest
import importlib
import pkgutil
import re
import shlex
from pathlib import Path

import pytest
from conftest import ROOT

import bench
from figures import explain
from training.checks import check_config
from training.config import Config, parse_config

GUIDE = (ROOT / "GUIDE.md").read_text()
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
BLOCKS = FENCE.findall(GUIDE)  # (kind, text)
PROSE = FENCE.sub("", GUIDE)
# in `FILE`, `old text` → `new text`
BREAK = re.compile(r"[Ii]n\s+`([^`]+)`,\s+`([^`]+)`\s+→\s+`([^`]+)`")
TOKENS = sorted(set(re.findall(r"`([^`]+)`", BREAK.sub("", PROSE))))
COMMANDS = [line for kind, block in BLOCKS if kind == "sh" for line in block.splitlines()]
RUNS = [c for c in COMMANDS if c.startswith("python train.py") and "--dry_run" not in c]
OUTS = re.findall(r"--out (runs/\w+)", " ".join(COMMANDS))
TRAIN = "--steps 1 --prompts_per_step 2 --group_size 2 --micro_batch 1 --heldout 2"
SMALL_GROUP = explain.Settings(group_size=3, num_steps=3)
MODULES = [p for p in (*ROOT.glob("*.py"), *ROOT.glob("*/*.py")) if p.parent.name != "tests"]
# Of names alone: in the code, or among the numbers of a run, some of whose names are put together.
NAMED = "\n".join(path.read_text() for path in (*MODULES, ROOT / "docs" / "runs.md"))
FLAGS = {*vars(Config()), *re.findall(r'"--(\w+)"', (ROOT / "bench.py").read_text())}


def exists(token: str) -> bool:
    """Whether there is such a flag (and value), file, file of a run, dotted name, or plain name."""
    if token.startswith("--"):
        parse_config(token.split() if " " in token else [])  # SystemExit for an unknown recipe
        return token.split()[0][2:].removeprefix("no-") in FLAGS
    if token.startswith("runs/"):
        return token.rpartition("/")[0] in OUTS
    if "/" in token or Path(token).suffix in (".py", ".md", ".png", ".csv"):
        return (ROOT / token).is_file()
    if "." in token:  # resolve_name raises where there is none
        return pkgutil.resolve_name(token.removeprefix("python -m ")) is not None
    return bool(re.search(rf"\b{re.escape(token)}\b", NAMED))


def test_what_stands_in_backticks_exists():
    assert TOKENS and [token for token in TOKENS if not exists(token)] == []
    exercises = {p.relative_to(ROOT).as_posix() for p in ROOT.glob("exercises/ex_*.py")}
    assert exercises <= set(TOKENS)  # each has its part


@pytest.mark.parametrize("folder", [".", "docs", "exercises", "measure"])
def test_links_and_figures_of_pages_exist(folder):
    for page in (ROOT / folder).glob("*.md"):
        for path, anchor in re.findall(r"\]\((?!http)([^)#]*)#?([^)]*)\)", page.read_text()):
            target = page.parent / path if path else page
            assert target.exists(), f"{page.name}: {path}"
            text = re.sub(r"[^\w\s#-]", "", target.read_text().lower()) if anchor else "# "
            assert re.search(f"^#+-{anchor}$", text.replace(" ", "-"), re.M), f"{path}#{anchor}"


def test_the_readme_names_files_that_exist_and_about_their_lines():
    text = FENCE.sub("", (ROOT / "README.md").read_text())
    named = re.findall(r"`((?!runs/)[\w/]+(?:/|\.py))`", text)
    assert named and [name for name in named if not (ROOT / name).exists()] == []
    for name, lines in re.findall(r"^\| `(\w+\.py)` \|.*\| (\d+) \|$", text, re.M):
        assert len((ROOT / name).read_text().splitlines()) == pytest.approx(int(lines), rel=0.1)


@pytest.fixture(autouse=True)
def undrawn():
    """Commands leave all that they say."""


def test_what_is_to_be_broken_stands_in_its_file_once():
    breaks = BREAK.findall(PROSE)
    assert breaks and len(breaks) == len(re.findall(r"`\s+→", PROSE))  # each arrow is one of them
    for file, old, new in breaks:
        text = (ROOT / file).read_text()
        assert text.count(old) == 1, f"'{old}' stands {text.count(old)} times in {file}"
        compile(text.replace(old, new), file, "exec")


def test_the_examples_print_what_stands_below_them():
    assert {kind for kind, _ in BLOCKS} == {"sh", "pycon"} and GUIDE.count("```") == 2 * len(BLOCKS)
    source = "\n".join(block for kind, block in BLOCKS if kind == "pycon")
    examples = doctest.DocTestParser().get_doctest(source, {}, "GUIDE.md", "GUIDE.md", 0)
    result = doctest.DocTestRunner().run(examples)  # prints what differs
    assert result.attempted and not result.failed


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_runs_and_leaves_the_files_that_are_named(
    command, tmp_path, monkeypatch, uncounted
):
    """Runs leave files of the same names: one is made, and the settings of the others checked."""
    module, *flags = shlex.split(re.sub("^python (-m )?", "", command))
    module, planned = module.removesuffix(".py"), "--dry_run" in flags
    if command in RUNS[1:]:
        return check_config(parse_config(flags), 1)
    flags += TRAIN.split() if command in RUNS else []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", [module, *flags])
    monkeypatch.setattr(explain, "Settings", lambda: SMALL_GROUP)
    short = [re.sub("^(generate|judge) ", r"\1 --limit 1 ", line) for line in bench.DEFAULT]
    monkeypatch.setattr(bench, "DEFAULT", short)
    ending = None
    try:
        importlib.import_module(module).main()
    except SystemExit as stop:
        ending = stop.code
    assert str(ending).startswith("verdict: ") if planned else not ending
    for out in re.findall(r"--out (\S+)", command):
        likewise = re.findall(r"--out (\S+)", " ".join(RUNS)) if command in RUNS else [out]
        named = [t.removeprefix(o) for t in TOKENS for o in likewise if t.startswith(o + "/")]
        assert all(Path(out + name).exists() for name in ("", *named))
