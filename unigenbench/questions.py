"""The question that a judge gets about an image and its testpoints, and how its answer is read.

The question is in our own words; the released template can be given instead.

    text = question(prompts[0])                    # one call an image asks for all its testpoints
    parse_scores(answer, len(prompts[0].testpoints))                  # [1, 0, 1], or None
"""

import ast
import json
import re

from common.wording import one_line
from judges.answers import final_part
from judges.templates import check_template
from unigenbench.testpoints import DIMENSIONS, Prompt

TEMPLATES = {
    "en": """\
You check whether a generated image shows what its caption asks for.

Caption: {caption}

Judge each testpoint by itself, by what can be seen in the image and by nothing else. Score 1 if the
image meets it, 0 if it does not or if you cannot tell.

{testpoints}

First write one sentence for each testpoint on what the image shows, then one score for each, in the
order above: two lists of {count}, in exactly this form, with 0 or 1 in place of each X, and with
nothing after it.
{form}""",
    "zh": """\
请检查一张生成的图像是否呈现了提示词的要求。

提示词：{caption}

请逐个考点独立判断，只依据图像中看得见的内容。满足则得 1 分，不满足或无法确定则得 0 分。

{testpoints}

先为每个考点写一句话说明图像呈现了什么，再按上面的顺序逐个打分：两个列表各有 {count} 项，
严格使用下面的格式，把每个 X 换成 0 或 1，之后不写任何内容。
{form}""",
}
PLACEHOLDERS = ("prompt", "testpoint", "explanation", "test_explanation")  # of the released one
WORDS = {
    "en": ("Testpoint", "Definition", "Description", ": "),
    "zh": ("考点", "定义", "描述", "："),
}


def answer_form(count: int) -> str:
    """The form of an answer about so many testpoints, which is no answer itself."""
    analysis, score = ", ".join(['"..."'] * count), ", ".join("X" * count)
    return f"<analysis>[{analysis}]</analysis> <score>[{score}]</score>"


def question(prompt: Prompt, template: str | None = None) -> str:
    """What the judge is asked about an image of this prompt.

    template: the released one's text, with {prompt}, {testpoint}, {explanation}, {test_explanation}
    Raises ValueError if a template has other placeholders, or lacks {prompt} or the testpoints.
    """
    if template is not None:
        tested = ("test_explanation", "testpoint")
        check_template(template, "the template (--template)", PLACEHOLDERS, tested, formatted=True)
    language = prompt.language
    rows = [
        (DIMENSIONS[sub].label(language), DIMENSIONS[sub].definition(language), one_line(text))
        for sub, text in prompt.testpoints
    ]
    if template is None:
        point, definition, description, colon = WORDS[language]
        listed = "\n\n".join(
            f"{point} {n}{colon}{label}\n{definition}{colon}{meaning}\n{description}{colon}{text}"
            for n, (label, meaning, text) in enumerate(rows, 1)
        )
        return TEMPLATES[language].format(
            caption=one_line(prompt.text),
            testpoints=listed,
            count=len(rows),
            form=answer_form(len(rows)),
        )
    return template.format(
        prompt=prompt.text,
        testpoint=[label for label, _, _ in rows],
        explanation="\n".join(f"{label}: {meaning}" for label, meaning, _ in rows),
        test_explanation="\n".join(f"{label}: {text}" for label, _, text in rows),
    )


PLAIN = str.maketrans("，［］【】“”‘’０１", ',[][]""""01')  # what Chinese keyboards put for ,[]""01


def read_literal(text: str):
    """A value in JSON, or as Python prints it. Raises ValueError."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        try:
            return ast.literal_eval(text)
        except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError):
            raise ValueError(f"cannot read {text[:60]!r}") from None


def read_answer(text: str):
    """A value that a model wrote, perhaps fenced or with Chinese punctuation; or None."""
    body = re.sub(r"```\w*", "", text).strip()
    for candidate in (body, body.translate(PLAIN)):
        try:
            return read_literal(candidate)
        except ValueError:
            continue
    return None


def binary_scores(value, count: int) -> list[int] | None:
    """`count` numbers, each 0 or 1, however a judge writes them: 1.0, true or "1"; else None.

    The official script takes what is neither for wrong without a word, and "1" too; of true it
    writes a row that its own scorer skips.
    """
    if not isinstance(value, (list, tuple)) or len(value) != count:
        return None
    scores = [{"0": 0, "1": 1}.get(v.strip()) if isinstance(v, str) else v for v in value]
    ok = all(isinstance(s, (int, float)) and s in (0, 1) for s in scores)
    return [int(s) for s in scores] if ok else None


def final_answer(text: str | None, unfinished: object = None) -> dict:
    """The last answer in a text: {"score": ..., "analysis": ...}, either may be absent.

    Tags <analysis> and <score>, or a JSON object with those keys, or a list and nothing else. What
    stands in <think> is no answer, and a text that ends while still thinking has none. (The
    official script takes the first tags, of the thinking too, and insists on an analysis.)
    unfinished: true if the text was cut off. Then one that begins another answer has none either.
    """
    text = final_part(text or "", unfinished)
    if unfinished and max(map(text.rfind, ("<score>", "{"))) > max(
        map(text.rfind, ("</score>", "}"))
    ):
        return {}
    tagged = {}
    for key in ("analysis", "score"):
        found = re.findall(rf"<{key}>((?:(?!<{key}>).)*?)</{key}>", text, re.DOTALL)
        if found:
            tagged[key] = read_answer(found[-1])
    if "score" in tagged:
        return tagged
    if isinstance(whole := read_answer(text), list):
        return {"score": whole}
    found = last_json(text, ("score", "scores"))
    return {"score": found.get("score", found.get("scores")), "analysis": found.get("analysis")}


def last_json(text: str, keys: tuple[str, ...]) -> dict:
    """The last JSON object in a text that has one of the keys; {} if there is none."""
    answer, decoder, start = {}, json.JSONDecoder(), text.find("{")
    while start >= 0:
        try:
            value, end = decoder.raw_decode(text, start)
        except (json.JSONDecodeError, RecursionError):
            value, end = {}, start + 1
        if any(key in value for key in keys):
            answer = value
        start = text.find("{", end)
    return answer


def parse_scores(text: str | None, count: int, unfinished: object = None) -> list[int] | None:
    """One 0 or 1 for each of `count` testpoints, in order; None if the answer is not just that."""
    return binary_scores(final_answer(text, unfinished).get("score"), count)


def parse_reasons(text: str | None, count: int, unfinished: object = None) -> list[str]:
    """The judge's analysis of each testpoint; empty if there is not one for each."""
    reasons = final_answer(text, unfinished).get("analysis")
    fits = isinstance(reasons, (list, tuple)) and len(reasons) == count
    return [str(reason) for reason in reasons] if fits else []
