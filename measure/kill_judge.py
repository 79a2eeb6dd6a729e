"""A weekend's judging in small: kills `bench.py judge` at random moments and counts what is left.

    python -m measure.kill_judge            # 600 prompts x 4 images, three kills; Linux
    python -m measure.kill_judge --kills 0  # the memory of one process over all of them

Not a test of the suite, which has a small one (test_asking.py). The two judge servers, at which it
goes on in turn, and the judging process are the real commands, over loopback, 16 calls at a time.
The last image of each prompt is empty, so that a score that strayed to another image shows.
"""

import argparse
import itertools
import json
import math
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

from measure.servers import ROOT, judge_server
from shapes.prompts import all_prompts, sample_scene
from shapes.render import Scene, render
from unigenbench.results import read_results
from unigenbench.testpoints import Prompt, write_prompts


def draw(folder: Path, count: int) -> None:
    """prompts.csv in the official form; images/: three that show what is asked, one empty."""
    rng = np.random.default_rng(0)
    pools = [pool for split in ("heldout", "train") for pool in all_prompts(split).values()]
    every = [prompt for pool in pools for prompt in pool]
    chosen = [every[i] for i in rng.permutation(len(every))[:count]]
    rows = [(i, p.text, list(p.testpoints), "Shapes", p.kind, "en") for i, p in enumerate(chosen)]
    write_prompts([Prompt(*row) for row in rows], folder / "prompts.csv")
    (folder / "images").mkdir()
    for index, prompt in enumerate(chosen):
        shown = [sample_scene(prompt, rng) for _ in range(3)] + [Scene(())]
        for i, pixels in enumerate(render(shown)):
            Image.fromarray(pixels).save(folder / "images" / f"{index}_{i}.png")


def memory(pid: int) -> float:
    """Resident memory in MiB; nan once the process is gone."""
    try:
        found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    except OSError:
        found = None
    return int(found[1]) / 1024 if found else math.nan


def judge(folder: Path, url: str, kill_at: int | None) -> int:
    """Starts judging; kills it at `kill_at` judgements, or lets it end. Prints the memory while it
    judged."""
    command = [sys.executable, str(ROOT / "bench.py"), "judge", "--judge=openai"]
    command += [f"--base_url={url}", "--prompts=prompts.csv", "--images=images"]
    command += ["--out=results.csv"]
    process = subprocess.Popen(command, cwd=folder, stderr=subprocess.DEVNULL)
    journal, start, begun, held = folder / "results.journal.jsonl", time.monotonic(), None, []
    while process.poll() is None:
        done = journal.read_bytes().count(b"\n") - 1 if journal.exists() else 0
        begun = done if begun is None else begun  # by the process before it
        if kill_at is not None and done >= kill_at:
            process.kill()
            break
        held += [memory(process.pid)] if done > begun else []
        time.sleep(0.02)
    process.wait()
    how, seconds = "ended" if kill_at is None else "killed", time.monotonic() - start
    said = f"{how} after {seconds:.1f} s at {done} judgements; resident memory, MiB:"
    print(said, f"{np.nanmin(held):.0f} to {np.nanmax(held):.0f}" if held else "none", flush=True)
    return process.returncode


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--prompts", type=int, default=600)
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--seed", type=int, help="of the moments; by default new ones")
    args = parser.parse_args()
    total = 4 * args.prompts
    moments = sorted(random.Random(args.seed).sample(range(1, total), args.kills))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        draw(folder, args.prompts)
        slow = "--latency=0.005"
        with judge_server(slow) as one, judge_server(slow) as two:
            urls = itertools.cycle([one.url, two.url])
            for moment in moments:
                assert judge(folder, next(urls), moment) == -signal.SIGKILL, "ended before the kill"
            assert judge(folder, next(urls), None) == 0
        lines = (folder / "results.journal.jsonl").read_text().splitlines()[1:]
        judged = Counter(json.loads(line)["image"] for line in lines)
        results = read_results(folder / "results.csv")
    right = lambda result: int(not result.image.endswith("_3.png"))
    strayed = [r.image for r in results if set(r.scores or [2]) != {right(r)}]
    twice = sum(n > 1 for n in judged.values())
    print(
        f"{len(lines)} judgements in the journal, {twice} images twice, "
        f"{total - len(judged)} lost; {len(results)} results, {len(strayed)} wrong or unjudged; "
        f"servers: {one.answered}, {two.answered}"
    )
    raise SystemExit(int(len(lines) != total or len(judged) != total or bool(strayed)))


if __name__ == "__main__":
    main()
