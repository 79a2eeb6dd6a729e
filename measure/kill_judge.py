"""A weekend's judging in small: kills `bench.py judge` at random moments and counts what is left.

    python -m measure.kill_judge            # 600 prompts x 4 images, three kills; Linux
    python -m measure.kill_judge --kills 0  # the memory of one process over all of them

Not a test of the suite, which has a small one (test_judge.py). Judge server and judging process
are the real commands, over loopback, 16 calls at a time. The last image of each prompt is empty, so
that a score that strayed to another image shows.
"""

import argparse
import json
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

from shapes.prompts import all_prompts, sample_scene
from shapes.render import Scene, render
from unigenbench.results import read_results
from unigenbench.testpoints import Prompt, write_prompts

ROOT = Path(__file__).resolve().parent.parent


def draw(folder: Path, count: int) -> None:
    """prompts.csv in the official form; images/: three that show what is asked, one empty."""
    rng = np.random.default_rng(0)
    every = [
        p for split in ("heldout", "train") for kind in all_prompts(split).values() for p in kind
    ]
    chosen = [every[i] for i in rng.permutation(len(every))[:count]]
    write_prompts(
        [
            Prompt(i, p.text, list(p.testpoints), "Shapes", p.kind, "en")
            for i, p in enumerate(chosen)
        ],
        folder / "prompts.csv",
    )
    (folder / "images").mkdir()
    for index, prompt in enumerate(chosen):
        shown = [sample_scene(prompt, rng) for _ in range(3)] + [Scene(())]
        for i, pixels in enumerate(render(shown)):
            Image.fromarray(pixels).save(folder / "images" / f"{index}_{i}.png")


def memory(pid: int) -> dict[str, float]:
    """Resident memory now (VmRSS) and at its highest (VmHWM), MiB; {} once the process is gone."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return {}
    return {name: int(kib) / 1024 for name, kib in re.findall(r"(VmRSS|VmHWM):\s+(\d+) kB", text)}


def judge(folder: Path, url: str, kill_at: int | None) -> int:
    """Start judging; kill it at `kill_at` judgements, or let it end. Prints its memory."""
    command = [
        sys.executable,
        str(ROOT / "bench.py"),
        "judge",
        "--judge",
        "openai",
        "--base_url",
        url,
        "--prompts",
        str(folder / "prompts.csv"),
        "--images",
        str(folder / "images"),
        "--out",
        str(folder / "results.csv"),
    ]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    journal, start, samples = folder / "results.journal.jsonl", time.monotonic(), []
    while process.poll() is None:
        done = journal.read_bytes().count(b"\n") - 1 if journal.exists() else 0
        if kill_at is not None and done >= kill_at:
            process.send_signal(signal.SIGKILL)
            break
        if now := memory(process.pid):
            samples.append((done, now))
        time.sleep(0.02)
    process.wait()
    seconds = time.monotonic() - start
    begun = [s for s in samples if s[0] > samples[0][0]] or samples
    marks = [begun[round(q * (len(begun) - 1))] for q in (0, 0.25, 0.5, 0.75, 1)]
    print(
        f"{'killed' if kill_at is not None else 'ended'} after {seconds:.1f} s at {begun[-1][0]} "
        "judgements; resident MiB "
        + ", ".join(f"{m['VmRSS']:.0f} at {n}" for n, m in marks)
        + f"; highest {max(m['VmHWM'] for _, m in samples if 'VmHWM' in m):.0f}",
        flush=True,
    )
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
        serve = subprocess.Popen(
            [sys.executable, "-m", "shapes.server", "--port", "0", "--latency", "0.005"],
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            url = serve.stdout.readline().split()[-1]
            for moment in moments:
                assert judge(folder, url, moment) == -signal.SIGKILL, "ended before the kill"
            assert judge(folder, url, None) == 0
        finally:
            serve.send_signal(signal.SIGINT)
            answered = serve.communicate()[0].strip()
        lines = (folder / "results.journal.jsonl").read_text().splitlines()[1:]
        judged = Counter(json.loads(line)["image"] for line in lines)
        results = read_results(folder / "results.csv")
        strayed = [
            r.image
            for r in results
            if set(r.scores or [2]) != {int(not r.image.endswith("_3.png"))}
        ]
    twice = sum(n > 1 for n in judged.values())
    print(
        f"{len(lines)} judgements in the journal, {twice} images twice, "
        f"{total - len(judged)} lost; {len(results)} results, {len(strayed)} wrong or unjudged; "
        f"server: {answered}"
    )
    raise SystemExit(int(len(lines) != total or len(judged) != total or bool(strayed)))


if __name__ == "__main__":
    main()
