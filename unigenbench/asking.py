"""Asking the judge: images and questions in, results out, nothing asked twice and nothing lost.

Each answer goes into a journal as soon as it is there; `kill -9` loses at most the calls in flight,
and a second start asks only for what is missing, failed or could not be parsed.

    results = judge_images(mllm, prompts, "images", "results.journal.jsonl", workers=16, batch=1)
"""

import hashlib
import itertools
import logging
import queue
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from PIL import Image
from tqdm import tqdm

from common import wording
from common.files import Journal
from judges.answers import without_echo
from judges.mllm import MLLM, Answer, Query, ask_again
from unigenbench.images import IMAGES, fingerprint, image_name, open_image, prompt_of
from unigenbench.questions import final_answer, one_line, parse_reasons, parse_scores, question
from unigenbench.results import Result
from unigenbench.testpoints import Prompt

log = logging.getLogger("bench")


def foreign_names(folder: Path, prompts: list[Prompt]) -> list[str]:
    """Files of an image folder that are no image of these prompts; they are never judged."""
    known = {image_name(p.index, i) for p in prompts for i in range(IMAGES)} | {"settings.json"}
    return sorted(p.name for p in folder.iterdir() if p.name not in known)


# ----------------------------------------------------------------------------- the judge


def header_of(mllm: MLLM, kind: str = "judge", **others) -> dict:
    """The first line of a journal: who answers, and for a model in process its weights."""
    model = getattr(mllm, "model", None)
    weights = fingerprint({"model": model}) if hasattr(model, "named_parameters") else None
    return {kind: mllm.name, **({"weights": weights} if weights else {}), **others}


def same_answers(old: dict, new: dict) -> bool:
    """Whether what a journal holds are the answers that its new header would be given.

    They are decided by model, temperature and seed, not by where the model is reached or by the
    longest answer: of a model in process by its weights, wherever its folder is. Journals of
    earlier versions do not hold those.
    """

    def decisive(header: dict) -> dict:
        keep = {key: value for key, value in header.items() if key != "weights"}
        for key in ("judge", "writer"):
            if key in keep:
                name = re.sub(r",? ?max_(?:new_)?tokens \d+", "", keep[key])
                keep[key] = re.sub(r" at https?://\S+(?= \()", "", name)
                if "weights" in old and "weights" in new:  # the name is a folder's
                    keep[key] = header["weights"] + name[name.rfind(" (") :]
        return keep

    return decisive(old) == decisive(new)


class Task(NamedTuple):
    """One call: all testpoints of one image."""

    name: str
    image: Image.Image
    digest: str  # of the image's bytes and the question: an answer counts for these two only
    text: str
    count: int  # testpoints


class Judgement(NamedTuple):
    """What was read in an answer about one image."""

    scores: list[int] | None
    reasons: list[str]
    lost: str | None  # why there are no scores


def read_judgement(answer: Answer, text: str, count: int) -> Judgement:
    """text: the question, about so many testpoints."""
    said = without_echo(answer.text or "", text)
    scores = parse_scores(said, count, answer.unfinished)
    reasons = parse_reasons(said, count, answer.unfinished)
    given = final_answer(said, answer.unfinished).get("score")
    listed = given if isinstance(given, (list, tuple)) and len(given) == count else ()
    null = [why for why, score in zip(reasons, listed) if score is None]
    lost = answer.error or answer.unfinished or ", ".join(null)
    lost = lost or "an answer without one score a testpoint"
    return Judgement(scores, reasons, None if scores else lost)


class Patience:
    """Ends the work once a judge seems dead, so that a dead server does not cost hours of timeouts.

    That is after `most` calls in a row without an answer, or with the first failure once no
    call has been answered for `seconds`. With the defaults of OpenAIMLLM and 16 workers, a server
    that hangs is left after 3 to 5 minutes (its calls in flight end by their own timeouts), one
    that refuses connections after about 40 seconds.
    """

    def __init__(self, seconds: float = 180.0, most: float = 32):
        self.seconds, self.most, self.failures = seconds, most, 0
        self.answered, self.lock = time.monotonic(), threading.Lock()

    def check(self, answers: list[Answer]) -> None:
        """Raises ValueError if these calls all failed, and that was one failure too many."""
        errors = [answer.error for answer in answers if answer.error is not None]
        with self.lock:
            if len(errors) < len(answers):
                self.failures, self.answered = 0, time.monotonic()
                return
            self.failures += len(errors)
            silent = time.monotonic() - self.answered
        if self.failures >= self.most or silent > self.seconds:
            last = wording.one_line(errors[-1], 300)
            raise ValueError(
                f"no answer to the last {self.failures} calls in {silent:.0f} s "
                f"({last}); what was answered is kept: mend the server and "
                "start again"
            )


SCORES_REMINDER = (
    "\n\nYour last answer did not end with one list of {count} scores, each 0 or 1. Answer again."
)


def ask(mllm: MLLM, tasks: list[Task]) -> list[Answer]:
    """One answer a task; one without scores is asked for once more, with a reminder."""
    counts = {task.text: task.count for task in tasks}

    def again(query: Query, answer: Answer) -> str | None:
        count = counts[query.text]
        heard = answer.text is not None or answer.unfinished
        if not heard or read_judgement(answer, query.text, count).scores:
            return None
        return query.text + SCORES_REMINDER.format(count=count)

    heard = ask_again(mllm.ask, [Query((t.image,), t.text) for t in tasks], again)
    return [next((a for a in said[::-1] if a.text is not None), said[-1]) for said in heard]


def ask_all(mllm: MLLM, tasks: Iterator[Task], keep, workers: int, batch: int, patience) -> None:
    """Ask for every task, `workers` calls of `batch` tasks at a time; keep(task, answer) at once.

    Tasks are drawn when a worker is free, so that few images are in memory. A fault in one worker
    stops the others after the call that they are in. Raises ValueError if the judge seems dead.
    """
    draw, stop, ended = threading.Lock(), threading.Event(), queue.SimpleQueue()

    def worker() -> None:
        error = None
        try:
            while not stop.is_set():
                with draw:
                    chunk = list(itertools.islice(tasks, batch))
                if not chunk:
                    break
                answers = ask(mllm, chunk)
                for task, answer in zip(chunk, answers):
                    keep(task, answer)
                lost = [read_judgement(a, t.text, t.count).lost for a, t in zip(answers, chunk)]
                patience.check([Answer(error=e) if e else a for e, a in zip(lost, answers)])
        except BaseException as fault:
            error = fault
            stop.set()
        ended.put(error)

    for _ in range(workers):  # daemons: Ctrl-C waits for no call that is in flight
        threading.Thread(target=worker, daemon=True).start()
    try:
        errors = [ended.get() for _ in range(workers)]
    finally:
        stop.set()
    if first := next(filter(None, errors), None):
        raise first


class JudgmentStore:
    """What a judge says of images: what its journal holds of earlier, and what comes."""

    def __init__(self, journal: Journal, texts: dict):
        """texts: the question about each prompt, by its index."""
        self.journal, self.texts = journal, texts
        self.answers = {  # by image and digest
            (line["image"], line["digest"]): Answer(
                line["output"] or None, line["error"], None, line.get("unfinished")
            )
            for line in journal.lines
            # which the verifier of earlier versions scored 0
            if "' cannot be verified" not in line["output"]
        }
        self.digests = {}  # of the images that could be opened with their questions, by name
        self.broken = []  # why others could not

    def keep(self, task: Task, answer: Answer) -> None:
        self.answers[task.name, task.digest] = answer
        self.journal.write(
            {
                "image": task.name,
                "digest": task.digest,
                "output": answer.text or "",
                "error": answer.error,
                "unfinished": answer.unfinished,
            }
        )

    def judgement(self, prompt: Prompt, name: str) -> tuple[Answer, Judgement]:
        none = Answer(error="no such image")
        answer = self.answers.get((name, self.digests.get(name)), none)
        return answer, read_judgement(answer, self.texts[prompt.index], len(prompt.testpoints))

    def tasks(self, prompts: list[Prompt], folder: Path) -> Iterator[Task]:
        """What is left to be asked; an image is opened when its turn comes."""
        bar = tqdm([(p, i) for p in prompts for i in range(IMAGES)], desc="judge")
        for prompt, i in bar:
            name, text = image_name(prompt.index, i), self.texts[prompt.index]
            try:
                image, data = open_image(folder / name)
                if (other := prompt_of(data)) not in (None, one_line(prompt.text)):
                    raise ValueError(f"{name}: drawn of another prompt, '{other[:60]}'")
            except ValueError as error:
                self.broken.append(str(error))
                continue
            digest = hashlib.sha256(data + text.encode()).hexdigest()[:16]
            self.digests[name] = digest
            if self.judgement(prompt, name)[1].scores is None:
                yield Task(name, image, digest, text, len(prompt.testpoints))

    def results(self, prompts: list[Prompt], folder: Path) -> list[Result]:
        """One for each image of each prompt; says in the log why those asked in vain were lost."""
        results, lost, said = [], Counter(), ""
        for p in prompts:
            subs, descriptions = map(list, zip(*p.testpoints))
            for name in (image_name(p.index, i) for i in range(IMAGES)):
                answer, (scores, reasons, why) = self.judgement(p, name)
                if why and name in self.digests:
                    lost[why], said = lost[why] + 1, answer.text or said
                image, output = str(folder / name), answer.text or ""
                judged = (subs, image, scores, output, reasons, descriptions)
                results.append(Result(p.index, p.text, *judged, p.language))
        if lost:
            why = wording.reasons(lost.elements())
            ends = f"; the last of these answers ends with {said[-80:]!r}" if said else ""
            log.warning("%d images were asked about in vain: %s%s", lost.total(), why, ends)
        return results


def judge_images(
    mllm: MLLM,
    prompts: list[Prompt],
    folder,
    journal_path,
    template=None,
    workers=1,
    batch=16,
    limit=None,
    patience=None,
) -> list[Result]:
    """One result for each of the four images of each prompt, failed ones included.

    An image that is missing or broken is named in the log and is a failed result. Answers that are
    in the journal for the same image and question are not asked for again, unless they failed or
    could not be parsed.
    limit: only the first so many prompts; images of the others are nothing to warn of
    patience: with a judge that fails
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"no image folder '{folder}'")
    if odd := foreign_names(folder, prompts):
        log.warning(
            "%d files are no image of these prompts and are not judged: %s",
            len(odd),
            wording.listed(odd),
        )
    prompts = prompts[:limit]
    journal = Journal(journal_path, header_of(mllm), same_answers)
    heard = JudgmentStore(journal, {p.index: question(p, template) for p in prompts})
    tasks = heard.tasks(prompts, folder)
    with journal.file:  # closed, and so unlocked, also where this is cut short
        ask_all(mllm, tasks, heard.keep, workers, batch, patience or Patience())
    if heard.broken:
        log.warning(
            "%d images cannot be judged: %s", len(heard.broken), wording.reasons(heard.broken)
        )
    return heard.results(prompts, folder)
