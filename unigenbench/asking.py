"""Asking the judge: images and questions in, results out, nothing asked twice and nothing lost.

Each answer goes into a journal as soon as it is there; `kill -9` loses at most the calls in flight,
and a second start asks only for what is missing, failed or could not be parsed.

    results = judge_images(mllm, prompts, "images", "results.journal.jsonl", workers=16, batch=1)
"""

import itertools
import logging
import math
import queue
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from PIL import Image
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from common import wording
from common.files import Journal
from judges.answers import final_answer, parse_reasons, parse_scores, without_echo
from judges.mllm import MLLM, Answer, ask_again
from unigenbench.images import OFFICIAL_LAYOUT, Layout, digest_of, fingerprint, open_image
from unigenbench.official import TRIES
from unigenbench.questions import question
from unigenbench.results import Result
from unigenbench.testpoints import Prompt

log = logging.getLogger("bench")


def pace_of(judge: str, concurrency: int, patience: float, official: bool) -> dict:
    """How a judge of this kind is asked: settings of judge_images."""
    if judge == "openai":  # one image a call, so that each answer is kept at once
        return dict(workers=concurrency, batch=1, patience=patience, tries=TRIES * official)
    if judge == "local":  # greedy: the same words again would give the same answer
        return dict(batch=8, patience=patience, tries=int(official))
    # No server that may be dead: what the verifier does not know may come in any number.
    return dict(batch=64, patience=math.inf)


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
        for key in keep.keys() & {"judge", "writer"}:
            name = re.sub(r",? ?max_(?:new_)?tokens \d+", "", keep[key])
            keep[key] = re.sub(r" at https?://\S+(?= \()", "", name)
            if "weights" in old and "weights" in new:  # the name is a folder's
                keep[key] = header["weights"] + name[name.rfind(" (") :]
        return keep

    return decisive(old) == decisive(new)


# ----------------------------------------------------------------------------- one answer


class Task(NamedTuple):
    """A Query about all testpoints of one image, and what its answer is kept by."""

    images: tuple[Image.Image]
    text: str
    count: int  # testpoints
    name: str
    digest: str  # of the image's bytes and the question: an answer counts for these two only


class Judgement(NamedTuple):
    """What was read in an answer about one image."""

    scores: list[int] | None
    reasons: list[str]
    lost: str | None  # why there are no scores


def read_judgement(answer: Answer, text: str, count: int) -> Judgement:
    """text: the question, about so many testpoints."""
    response = without_echo(answer.text or "", text)
    scores = parse_scores(response, count, answer.unfinished)
    reasons = parse_reasons(response, count, answer.unfinished)
    given = final_answer(response, answer.unfinished).get("score")
    given = given if isinstance(given, (list, tuple)) else ()
    unknown = ", ".join(why for why, score in zip(reasons, given) if score is None)
    form = "an answer without one score per testpoint"
    lost = answer.error or answer.unfinished or unknown or form
    return Judgement(scores, reasons, None if scores else lost)


SCORES_REMINDER = (
    "\n\nYour last answer did not end with one list of {count} scores, each 0 or 1. Answer again."
)


def reminded(task: Task, answer: Answer) -> str | None:
    """The question with a reminder, where the judge responded, but not with scores."""
    responded = answer.text is not None or answer.unfinished
    if not responded or read_judgement(answer, task.text, task.count).scores:
        return None
    return task.text + SCORES_REMINDER.format(count=task.count)


# ----------------------------------------------------------------------------- all answers


class Patience:
    """Ends the work once a judge seems dead, so that a dead server does not cost hours of timeouts.

    That is after `most` calls in a row without an answer, or with the first failure once no
    call has been answered for `seconds`. With the defaults of OpenAIMLLM and 16 workers, a server
    that hangs is left after 3 to 5 minutes (its calls in flight end by their own timeouts), one
    that refuses connections after about 40 seconds. math.inf: never.
    """

    def __init__(self, seconds: float):
        self.seconds, self.most = seconds, 32 if seconds < math.inf else math.inf
        self.failures, self.answered = 0, time.monotonic()

    def check(self, lost: list[str | None]) -> None:
        """lost: of calls that ended together, why each has no answer, or None.

        Raises ValueError if they all failed, and that was one failure too many.
        """
        if None in lost:
            self.failures, self.answered = 0, time.monotonic()
            return
        self.failures += len(lost)
        silent = time.monotonic() - self.answered
        if self.failures >= self.most or silent > self.seconds:
            last = wording.one_line(lost[-1], 300)
            raise ValueError(
                f"no answer to the last {self.failures} calls in {silent:.0f} s ({last}); "
                "what was answered is kept: mend the server and start again"
            )


def unread(task: Task, answer: Answer) -> str | None:
    """The very same question, where the judge responded, but not with scores."""
    return task.text if reminded(task, answer) else None


def ask_all(
    ask: Callable,
    tasks: Iterator[Task],
    keep: Callable,
    workers: int,
    batch: int,
    patience: Patience,
) -> None:
    """Ask for every task, `workers` calls of `batch` tasks at a time; keep(task, answer) at once.

    ask: of tasks, all that is said of each, as ask_again has it

    Tasks are drawn when a call may begin, so that few images are in memory. A fault in one call
    ends the work after those that are in flight. Raises ValueError if the judge seems dead.
    """
    done, in_flight, fault = queue.SimpleQueue(), 0, None

    def call(chunk: list[Task]) -> None:
        try:
            done.put((chunk, ask(chunk)))
        except BaseException as error:
            done.put((chunk, error))

    while True:
        while not fault and in_flight < workers and (chunk := list(itertools.islice(tasks, batch))):
            # Daemons: Ctrl-C waits for no call that is in flight.
            threading.Thread(target=call, args=(chunk,), daemon=True).start()
            in_flight += 1
        if not in_flight:
            break
        chunk, responses = done.get()
        in_flight -= 1
        try:
            if isinstance(responses, BaseException):
                raise responses
            lost = []
            for task, said in zip(chunk, responses):
                answer = next((a for a in said[::-1] if a.text is not None), said[-1])
                keep(task, answer)
                lost.append(read_judgement(answer, task.text, task.count).lost)
            patience.check(lost)
        except Exception as error:
            fault = fault or error
    if fault:
        raise fault


class JudgmentStore:
    """The answers about images: those that a journal holds from earlier starts, and new ones."""

    def __init__(self, journal: Journal, texts: dict):
        """texts: the question about each prompt, by its index."""
        self.journal, self.texts = journal, texts
        self.earlier = {
            (line["image"], line["digest"]): Answer(
                line["output"] or None, line["error"], line.get("model"), line.get("unfinished")
            )
            for line in journal.lines
        }
        self.models = {answer.model for answer in self.earlier.values()} - {None}
        self.answers = {}  # about the images that could be opened, by name
        self.broken = []  # why others could not

    def keep(self, task: Task, answer: Answer) -> None:
        self.answers[task.name] = answer
        line = {"image": task.name, "digest": task.digest, "output": answer.text or ""}
        line |= {"error": answer.error, "unfinished": answer.unfinished, "model": answer.model}
        self.journal.write(line)
        if answer.model and answer.model not in self.models:
            if len(self.models) == 1:  # of a third one there is nothing more to say
                (before,) = self.models
                said = "another model answers than before, %s and not %s; all is kept, but score "
                said += "takes both together only with --allow_mixed_judges"
                log.warning(said, wording.one_line(answer.model), wording.one_line(before))
            self.models.add(answer.model)

    def tasks(self, prompts: list[Prompt], folder: Path, layout: Layout) -> Iterator[Task]:
        """What is left to be asked; an image is opened when its turn comes."""
        named = [(p, name) for p in prompts for name in layout.names(p.index)]
        for prompt, name in tqdm(named, desc="judge", leave=None):
            text = self.texts[prompt.index]
            try:
                image, data = open_image(folder / name, prompt.text)
            except ValueError as error:
                self.broken.append(str(error))
                continue
            image.info["file"] = name, data  # of which official.py's clients send the bytes
            digest = digest_of(data, text)
            self.answers[name] = answer = self.earlier.get((name, digest), Answer())
            task = Task((image,), text, len(prompt.testpoints), name, digest)
            if read_judgement(answer, text, task.count).scores is None:
                yield task

    def results(self, prompts: list[Prompt], folder: Path, layout: Layout) -> list[Result]:
        """One for each image of each prompt; the log says why there are no scores."""
        results, lost, last = [], Counter(), ""
        for p in prompts:
            subs, descriptions = map(list, zip(*p.testpoints))
            for name in layout.names(p.index):
                answer = self.answers.get(name, Answer())
                scores, reasons, why = read_judgement(answer, self.texts[p.index], len(subs))
                if why and name in self.answers:
                    lost[why], last = lost[why] + 1, answer.text or last
                image, output = str(folder / name), answer.text or ""
                judged = (subs, image, scores, output, reasons, descriptions)
                results.append(Result(p.index, p.text, *judged, p.language, answer.model))
        if self.broken:
            why = wording.reasons(self.broken)
            log.warning("%d images cannot be judged: %s", len(self.broken), why)
        if lost:
            why = wording.reasons(lost.elements())
            ends = f"; the last of these answers ends with {last[-80:]!r}" if last else ""
            log.warning("%d images were not judged: %s%s", lost.total(), why, ends)
        return results


def judge_images(
    mllm: MLLM,
    prompts: list[Prompt],
    folder,
    journal_path,
    template=None,
    official=None,
    workers=1,
    batch=16,
    limit=None,
    patience=180.0,
    tries=0,
    layout=OFFICIAL_LAYOUT,
) -> list[Result]:
    """One result for each of the images of each prompt, failed ones included.

    An image that is missing or broken is named in the log and is a failed result. Answers that are
    in the journal for the same image and question are not asked for again, unless they failed or
    could not be parsed.
    limit: only the first so many prompts; images of the others are nothing to warn of
    patience: seconds without any answer after which the judge counts as dead
    tries: how often a question is asked in the same words until there are scores; 0: twice, the
        second time with a reminder
    layout: how many images each prompt has, and how their files are named
    """
    folder = Path(folder)
    layout.check(folder, [p.index for p in prompts])
    prompts = prompts[:limit]
    if template is not None and official is None:
        log.info("the definitions in the template are this repository's; --official has others")
    header = header_of(mllm, **({"official": official.form} if official else {}))
    journal = Journal(journal_path, header, same_answers)
    store = JudgmentStore(journal, {p.index: question(p, template, official) for p in prompts})
    tasks = store.tasks(prompts, folder, layout)
    again, times = (unread, tries - 1) if tries else (reminded, 1)

    def ask(chunk: list[Task]) -> list[list[Answer]]:
        return ask_again(mllm.ask, chunk, again, times)

    # Closed, and so unlocked, also where this is cut short; and warnings do not end the bar's line.
    with journal.file, logging_redirect_tqdm():
        ask_all(ask, tasks, store.keep, workers, batch, Patience(patience))
    return store.results(prompts, folder, layout)
