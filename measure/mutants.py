"""Mutants: meaningful changes for the worse, and whether the tests notice them.

    python -m measure.mutants -j 2            # all of them, an hour or two on 2 cores
    python -m measure.mutants judges clip     # those of a kind, and those with a word in the name

Each is a row of mutants.csv beside this file: name, kind (the room that it is in), file, old text,
new text, the test files that concern it. Each is applied in a copy of the repository, where its
tests run; what survives is printed. At least 95 % must be noticed: exit status 1 if not. A test
that fails, cannot be imported or hangs has noticed; that all pass in the unchanged copy is seen to
first, since else nothing would be measured.
"""

import argparse
import csv
import multiprocessing
import os
import queue
import shutil
import signal
import sys
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
BAR = 0.95  # share of all mutants that are to be noticed
FORKS = multiprocessing.get_context("forkserver")
PRELOADED = [  # what the tests import and no mutant changes
    "torch.distributed.checkpoint",
    "torch.distributed.fsdp",
    "diffusers.pipelines.flux.pipeline_flux",
    "diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3",
    "transformers.models.clip.modeling_clip",
    "transformers.models.t5.modeling_t5",
    "peft",
    "openai",
    "scipy.ndimage",
    "matplotlib.figure",
]
LEFT_OUT = shutil.ignore_patterns(".git", "runs", "__pycache__", ".pytest_cache", "*.pyc")


def read_mutants() -> list[dict[str, str]]:
    with open(Path(__file__).with_name("mutants.csv"), newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def check_mutants(mutants: list[dict[str, str]]) -> None:
    """Raises ValueError for a name that stands twice, an old text that does not stand once, and
    tests that are no files, as a comma without quotes leaves them."""
    names = Counter(mutant["name"] for mutant in mutants)
    said = [f"{name} stands {n} times" for name, n in names.items() if n > 1]
    for mutant in mutants:
        found = (ROOT / mutant["file"]).read_text(encoding="utf-8").count(mutant["old"])
        if found != 1 or mutant["old"] == mutant["new"]:
            said.append(f"{mutant['name']}: its text stands {found} times in {mutant['file']}")
        if odd := [t for t in mutant["tests"].split() if not (ROOT / "tests" / t).is_file()]:
            said.append(f"{mutant['name']}: no tests {' '.join(odd)}")
    if said:
        raise ValueError("; ".join(said))


def run_tests(copy: Path, tests: list[str], said: Path) -> None:
    """In a process of its own: ends it with pytest's status, and leaves what it said in a file."""
    os.setsid()  # with the processes that tests start it can be ended as one
    with open(said, "wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.chdir(copy)
    sys.path[:] = [str(copy)] + [path for path in sys.path if Path(path).resolve() != ROOT]
    for name in [name for name in sys.modules if name.split(".")[0] == "measure"]:
        del sys.modules[name]
    options = ["-x", "-q", "-n0", "-p", "no:cacheprovider"]
    sys.exit(int(pytest.main([*options, *(f"tests/{name}" for name in tests)])))


def passes(copy: Path, tests: list[str], timeout: float | None) -> bool:
    """Whether these test files pass in a copy of the repository. A hang is a failure."""
    said = copy.with_suffix(".txt")
    process = FORKS.Process(target=run_tests, args=(copy, tests, said))
    process.start()
    process.join(timeout)
    if process.is_alive():
        os.killpg(process.pid, signal.SIGKILL)
        process.join()
        return False
    if process.exitcode not in (0, 1, 2):  # 1: a test failed; 2: a test file cannot be imported
        raise ValueError(f"{tests}: status {process.exitcode}: {said.read_text()[-3000:]}")
    return process.exitcode == 0


def noticed(mutant: dict[str, str], copy: Path, timeout: float) -> bool:
    """Whether a test fails once the old text stands no longer in the file, but the new one."""
    path = copy / mutant["file"]
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace(mutant["old"], mutant["new"]), encoding="utf-8")
    try:
        return not passes(copy, mutant["tests"].split(), timeout)
    finally:
        path.write_text(text, encoding="utf-8")


def tried(mutants: list[dict[str, str]], jobs: int, timeout: float) -> list[bool]:
    """Whether each was noticed, `jobs` at a time, each job in a copy of its own."""
    copies = queue.SimpleQueue()
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(jobs) as pool:
        for n in range(jobs):
            copies.put(shutil.copytree(ROOT, Path(folder) / str(n), ignore=LEFT_OUT))

        def in_a_copy(work, *args):
            copy = copies.get()
            try:
                return work(*args, copy)
            finally:
                copies.put(copy)

        files = sorted({name for mutant in mutants for name in mutant["tests"].split()})
        well = pool.map(lambda f: in_a_copy(lambda c: passes(c, [f], None)), files)
        if failing := [file for file, passed in zip(files, well) if not passed]:
            raise ValueError(f"these fail without any mutant: {', '.join(failing)}")
        found = pool.map(lambda m: in_a_copy(lambda c: noticed(m, c, timeout)), mutants)
        return list(tqdm(found, desc="mutants", total=len(mutants)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("words", nargs="*", help="a kind, or a word of names; none: all mutants")
    parser.add_argument("-j", "--jobs", type=int, default=1, help="mutants at a time (1)")
    text = "seconds after which a mutant's tests hang, which counts as noticed (600)"
    parser.add_argument("--timeout", type=float, default=600.0, help=text)
    args = parser.parse_args()
    mutants = read_mutants()
    check_mutants(mutants)
    fits = lambda m, words: any(word == m["kind"] or word in m["name"] for word in words)
    for word in args.words:
        if not any(fits(m, [word]) for m in mutants):
            raise SystemExit(f"no mutant is of the kind '{word}' or has it in its name")
    chosen = [m for m in mutants if not args.words or fits(m, args.words)]
    os.environ |= {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"
    FORKS.set_forkserver_preload(PRELOADED)  # the libraries, once for all mutants
    caught = tried(chosen, args.jobs, args.timeout)
    of_kind = Counter(m["kind"] for m in chosen)
    caught_of_kind = Counter(m["kind"] for m, seen in zip(chosen, caught) if seen)
    for kind, count in of_kind.items():
        print(f"{kind}: {caught_of_kind[kind]} of {count} noticed")
    print(f"all: {sum(caught)} of {len(chosen)} noticed (bar {BAR:.0%})")
    if survivors := [m["name"] for m, seen in zip(chosen, caught) if not seen]:
        print("survived:", "; ".join(survivors))
    raise SystemExit(int(sum(caught) < BAR * len(chosen)))


if __name__ == "__main__":
    main()
