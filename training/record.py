"""What a judge was asked and what it answered, written down for people, and bounded.

Nothing is read back: a run that goes on asks at most about the step that was interrupted.

verdicts.jsonl    one line an answer: question, answer and how it was read; at SIZE bytes it becomes
                  verdicts.old.jsonl, and a new one begins
pair_00.png, ...  the images of the first question of each call, the last PICTURES of them; the line
                  of that answer names the file

Record("runs/served/verdicts").write(rewards.comparisons)
"""

import itertools
import json
import os
from collections.abc import Sequence
from pathlib import Path

from figures.pictures import sample_grid

SIZE = 16_000_000  # bytes of one file of lines, of which there are two
PICTURES = 100


class Record:
    def __init__(self, folder: str | Path):
        self.folder, self.batches = Path(folder), itertools.count()
        self.folder.mkdir(parents=True, exist_ok=True)

    def write(self, comparisons: Sequence) -> None:
        """comparisons: rewards.Comparison, each with its query."""
        if not comparisons:  # of a scorer, which answers no question
            return
        name = f"pair_{next(self.batches) % PICTURES:02}.png"
        images = list(comparisons[0].query.images)
        sample_grid([images], ["as they were shown"], self.folder / name)
        for k, comparison in enumerate(comparisons):
            for outcome in (*comparison.lost, comparison.outcome):
                self._write("" if k else name, comparison.query.text, outcome)

    def _write(self, pictures: str, question: str, outcome) -> None:
        answer = outcome.answer._asdict() if outcome.answer else {}
        line = {"pictures": pictures, "read_as": outcome.read_as, **answer, "question": question}
        path = self.folder / "verdicts.jsonl"
        with open(path, "ab") as file:
            file.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
            if file.tell() > SIZE:
                os.replace(path, self.folder / "verdicts.old.jsonl")
