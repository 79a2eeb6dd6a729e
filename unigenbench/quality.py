"""What published scorers make of the benchmark's images, as in the paper's main table.

    text, whole = quality(prompts, "clip,pickscore", "images", "quality.csv", OFFICIAL_LAYOUT)

Each score goes into a journal as soon as it is there, with what it was made from: the image's bytes
and the prompt, the scorer's weights and processor. A later start computes only what is missing.
"""

import hashlib
import json
import logging
from pathlib import Path

import numpy as np
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from common import wording
from common.bootstrap import mean_interval
from common.files import Journal, journal_of
from unigenbench.images import Layout, digest_of, fingerprint, open_image
from unigenbench.tables import range_text, text_table
from unigenbench.testpoints import Prompt, write_table

log = logging.getLogger("bench")

HEADER = ["Scorer", "Mean", "95 % interval"]
NUMBER = "{:.4f}"  # in the third decimal HPSv2 tells images of one prompt apart
KEY = ("scorer", "made", "digest")  # of a line in the journal: what decides its score


def identity(scorer) -> str:
    """16 hex digits of what decides a scorer's numbers: its weights, and how its processor is set.
    A copy in another folder is the same."""
    parts = [fingerprint(vars(scorer))]
    if processor := getattr(scorer, "processor", None):
        parts += [processor.image_processor.to_dict(), processor.tokenizer.get_vocab()]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def score_images(
    scorers: dict, prompts: list[Prompt], folder: Path, layout: Layout, journal: Journal
) -> dict[str, tuple[float, ...]]:
    """The scores of each image that can be opened, by its name; the log says why others cannot.

    scorers: by name, in the order of an image's scores
    """
    known = {tuple(line[k] for k in KEY): line["score"] for line in journal.lines}
    made = {name: identity(scorer) for name, scorer in scorers.items()}
    found, broken = {}, []
    for prompt in tqdm(prompts, desc="quality"):  # whose images are one batch
        images, digests = {}, {}
        for name in layout.names(prompt.index):
            try:
                image, data = open_image(folder / name, prompt.text)
            except ValueError as error:
                broken.append(str(error))
                continue
            digests[name] = digest_of(data, prompt.text)
            images[digests[name]] = image
        columns = []
        for name, scorer in scorers.items():
            keys = {digest: (name, made[name], digest) for digest in images}
            left = [digest for digest in images if keys[digest] not in known]
            scores = scorer.score([prompt.text] * len(left), [images[digest] for digest in left])
            for digest, score in zip(left, scores):
                known[keys[digest]] = score
                journal.write(dict(zip((*KEY, "score"), (*keys[digest], score))))
            columns.append([known[keys[digest]] for digest in digests.values()])
        found |= dict(zip(digests, zip(*columns)))
    if broken:
        log.warning("%d images cannot be scored: %s", len(broken), wording.reasons(broken))
    return found


def mean_rows(names: list[str], groups: list[list]) -> list[list[str]]:
    """Rows for HEADER: each scorer's mean over images, and its 95 % interval over prompts.

    groups: for each prompt that has some, the scores of its images, in the order of the names
    """
    counts = [len(group) for group in groups]
    sums = np.array([np.sum(group, 0) for group in groups]).T  # (scorers, prompts)
    return [
        [name, NUMBER.format(s.sum() / sum(counts)), range_text(mean_interval(s, counts), NUMBER)]
        for name, s in zip(names, sums)
    ]


def quality(
    prompts: list[Prompt], names: str, folder, out, layout: Layout, *, limit: int | None = None
) -> tuple[str, bool]:
    """The table for a terminal, and whether each image has its scores; they are written to `out`.

    names: as parse_scorers reads them. limit: only the first so many prompts; images of the others
    are nothing to warn of. Raises ValueError for names, folders and files that are of no use.
    """
    import torch

    from judges.scorers import load, parse_scorers

    folder, out, sources = Path(folder), Path(out), parse_scorers(names)
    layout.check(folder, [p.index for p in prompts])
    path, device = journal_of(out), "cuda" if torch.cuda.is_available() else "cpu"
    scorers = {name: load(name, source, device) for name, source in sources.items()}
    prompts, journal = prompts[:limit], Journal(path, {"scores": "of images"})
    # Closed, and so unlocked, also where this is cut short; and warnings do not end the bar's line.
    with journal.file, logging_redirect_tqdm():
        found = score_images(scorers, prompts, folder, layout, journal)
    rows = [(p.index, p.text, name) for p in prompts for name in layout.names(p.index)]
    none = [""] * len(scorers)
    cells = [[*row, *found.get(row[-1], none)] for row in rows]
    write_table(out, ["index", "prompt", "image", *scorers], cells)
    groups = [[found[n] for n in layout.names(p.index) if n in found] for p in prompts]
    if not found:
        raise ValueError(f"'{folder}' has no image of these prompts that can be opened")
    table = text_table(HEADER, mean_rows(list(scorers), list(filter(None, groups))))
    whole = len(found) == len(rows)
    said = "" if whole else "INCOMPLETE. "
    said += f"Images: {len(rows)} expected, {len(found)} scored, of {len(prompts)} prompts."
    return f"{said}\n{table}", whole
