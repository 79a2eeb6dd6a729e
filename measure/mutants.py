"""Mutants: meaningful changes for the worse, and whether the tests notice them.

    python -m measure.mutants                 # all of them, some minutes on 2 cores
    python -m measure.mutants guard clip      # those whose name holds one of the words

Each is a row of mutants.csv beside this file: name, kind (core: pure functions; loop: the loop, its
update and its measure), file, old text, new text, the test files that concern it. It is applied in
a copy of the repository, the tests run there, and what survives is printed. At least 95 % of the
core's mutants and 90 % of the loop's must be noticed: exit status 1 if not.
"""

import csv
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
BARS = {"core": 0.95, "loop": 0.90}
LEFT_OUT = shutil.ignore_patterns(".git", "runs", "__pycache__", ".pytest_cache", "*.pyc")


def read_mutants() -> list[dict[str, str]]:
    with open(Path(__file__).with_name("mutants.csv"), newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def noticed(mutant: dict[str, str], copy: Path) -> bool:
    """Whether a test fails once the old text stands no longer in the file, but the new one.

    Raises ValueError unless the old text stands there exactly once.
    """
    path = copy / mutant["file"]
    text = path.read_text(encoding="utf-8")
    if text.count(mutant["old"]) != 1:
        found = text.count(mutant["old"])
        raise ValueError(f"{mutant['name']}: '{mutant['old']}' stands {found} times in {path.name}")
    path.write_text(text.replace(mutant["old"], mutant["new"]), encoding="utf-8")
    try:
        tests = [f"tests/{name}" for name in mutant["tests"].split()]
        pytest = [sys.executable, "-m", "pytest", *["-x", "-q", "-n0", "-p", "no:cacheprovider"]]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        done = subprocess.run(
            [*pytest, *tests], cwd=copy, env=environment, capture_output=True, text=True
        )
    finally:
        path.write_text(text, encoding="utf-8")
    if done.returncode not in (0, 1):  # 1: a test failed; 2 and above: pytest itself could not run
        raise ValueError(f"{mutant['name']}: pytest ended with {done.returncode}: {done.stdout}")
    return done.returncode == 1


def main() -> None:
    words = sys.argv[1:]
    mutants = [m for m in read_mutants() if not words or any(w in m["name"] for w in words)]
    caught, tried, survivors = Counter(), Counter(), []
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy"
        shutil.copytree(ROOT, copy, ignore=LEFT_OUT)
        for mutant in tqdm(mutants, desc="mutants"):
            tried[mutant["kind"]] += 1
            if noticed(mutant, copy):
                caught[mutant["kind"]] += 1
            else:
                survivors.append(mutant["name"])
    for kind in tried:
        print(f"{kind}: {caught[kind]} of {tried[kind]} noticed (bar {BARS[kind]:.0%})")
    if survivors:
        print("survived:", "; ".join(survivors))
    raise SystemExit(int(any(caught[kind] < BARS[kind] * tried[kind] for kind in tried)))


if __name__ == "__main__":
    main()
