"""`python bench.py` twice, from nothing and in processes of their own: the same bytes? how long?

    python -m measure.default_twice           # two runs of one to two minutes each

Not a test of the suite, which has the first prompts of it (test_bench.py).
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

BENCH = Path(__file__).resolve().parent.parent / "bench.py"


def run(folder: Path) -> tuple[dict[Path, bytes], float]:
    """What one run writes, but for the times of its files, and the seconds it took."""
    folder.mkdir()
    start = time.monotonic()
    subprocess.run([sys.executable, str(BENCH)], cwd=folder, check=True)
    seconds = time.monotonic() - start
    made = folder / "runs" / "bench"
    return {p.relative_to(made): p.read_bytes() for p in made.rglob("*") if p.is_file()}, seconds


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        (first, a), (second, b) = (run(Path(name) / folder) for folder in "ab")
    odd = sorted(str(p) for p in first.keys() | second.keys() if first.get(p) != second.get(p))
    print(
        f"{len(first)} files, {sum(p.suffix == '.png' for p in first)} of them PNG, in {a:.0f} s "
        f"and {b:.0f} s; different: {', '.join(odd) or 'none'}"
    )
    raise SystemExit(int(bool(odd) or Path("scores.json") not in first))


if __name__ == "__main__":
    main()
