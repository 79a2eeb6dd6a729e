"""The question that a judge gets about an image and its testpoints.

It is in our own words; the official one, or another template, can be given instead.

    text = question(prompts[0])                    # one call an image asks for all its testpoints
    judges.answers.parse_scores(answer, len(prompts[0].testpoints))      # [1, 0, 1], or None
"""

import hashlib

from common.wording import one_line
from judges.templates import check_template
from unigenbench.official import Official
from unigenbench.testpoints import DIMENSIONS, SUBS, Prompt, fold

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


def question(prompt: Prompt, template: str | None = None, official: Official | None = None) -> str:
    """What the judge is asked about an image of this prompt.

    template: the released one's text, with {prompt}, {testpoint}, {explanation}, {test_explanation}
    official: whose template and definitions are taken; its definitions alone beside a template
    Raises ValueError if a template has other placeholders, or lacks {prompt} or the testpoints, and
    if the official file lacks the language or a definition.
    """
    language = prompt.language
    rows = [
        (DIMENSIONS[sub].label(language), DIMENSIONS[sub].definition(language), one_line(text))
        for sub, text in prompt.testpoints
    ]
    labels = [label for label, _, _ in rows]
    if template is not None or official:
        where = f"that of {official.path}" if template is None else "the template (--template)"
        filled = dict(
            explanation="\n".join(f"{label}: {meaning}" for label, meaning, _ in rows),
            test_explanation="\n".join(f"{label}: {text}" for label, _, text in rows),
        )
        if official:
            wording = official.wording(language)
            filled = wording.blocks(labels, [text for _, text in prompt.testpoints])
            template = wording.template if template is None else template
        tested = ("test_explanation", "testpoint")
        check_template(template, where, PLACEHOLDERS, tested, formatted=True)
        return template.format(prompt=prompt.text, testpoint=labels, **filled)
    point, definition, description, colon = WORDS[language]
    listed = "\n\n".join(
        f"{point} {n}{colon}{label}\n{definition}{colon}{meaning}\n{description}{colon}{text}"
        for n, (label, meaning, text) in enumerate(rows, 1)
    )
    how = dict(testpoints=listed, count=len(rows), form=answer_form(len(rows)))
    return TEMPLATES[language].format(caption=one_line(prompt.text), **how)


OFFICIAL = "the official question"
KNOWN = {  # sha256 of the official question as question_record has it: since when it was published
    "321c4c8cbfe3a313366c9f1513452ba16665621b2ec4d75c409ecffdfd12979e": "2025-08-29",  # en, offline
    "e185e63cf94f7e1085078886633227c375e5a3fe96b134d13fa08703b1275588": "2025-08-29",  # zh, offline
    "3154393100dfaa22fcd705151bc1ef38ce70cc256dff67929220d6c9909106b8": "2025-09-05",  # zh, offline
    "58af69d5ab30a2386d39b34d3c209d080a71fd191bb277399990af9b8a3f4275": "2026-02-13",  # en
    "613a319ec71470e106d215b4e5b3f1239cc54d396a10641a2de31024d4e41fcd": "2026-02-13",  # zh
}


def question_record(
    prompts: list[Prompt], template: str | None = None, official: Official | None = None
) -> dict:
    """For the settings: how many questions there are, their sha256, and under "question" what they
    are whatever the prompts: a name, and sha256s by language, each of one about all testpoints.

    Raises ValueError as question does.
    """
    texts, digests = [question(p, template, official) for p in prompts], {}
    for language in sorted({p.language for p in prompts}):
        known = official and official.wording(language).definitions
        points = [
            (s, "...") for s in SUBS if not known or fold(DIMENSIONS[s].label(language)) in known
        ]
        text = question(Prompt(0, "...", points, "", "", language), template, official)
        digests[language] = hashlib.sha256(text.encode()).hexdigest()
    name = "this repository's question"
    if template is not None:
        name = f"--template with {'the official' if official else 'our'} definitions"
    elif official:
        dates = {KNOWN.get(digest, "an unknown version") for digest in digests.values()}
        name = f"{OFFICIAL} of {' and '.join(sorted(dates))}"
    asked = {"name": name, "question_sha256": digests}
    if official:
        asked |= {"file": str(official.path), "file_sha256": official.sha256, "form": official.form}
    whole = hashlib.sha256("".join(texts).encode()).hexdigest()
    return {"question": asked, "prompts": len(prompts), "questions_sha256": whole}
