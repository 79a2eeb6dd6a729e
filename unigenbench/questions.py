"""The question that a judge gets about an image and its testpoints.

It is in our own words; the released template can be given instead.

    text = question(prompts[0])                    # one call an image asks for all its testpoints
    judges.answers.parse_scores(answer, len(prompts[0].testpoints))      # [1, 0, 1], or None
"""

from common.wording import one_line
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
    if template is not None:
        return template.format(
            prompt=prompt.text,
            testpoint=[label for label, _, _ in rows],
            explanation="\n".join(f"{label}: {meaning}" for label, meaning, _ in rows),
            test_explanation="\n".join(f"{label}: {text}" for label, _, text in rows),
        )
    point, definition, description, colon = WORDS[language]
    listed = "\n\n".join(
        f"{point} {n}{colon}{label}\n{definition}{colon}{meaning}\n{description}{colon}{text}"
        for n, (label, meaning, text) in enumerate(rows, 1)
    )
    how = dict(testpoints=listed, count=len(rows), form=answer_form(len(rows)))
    return TEMPLATES[language].format(caption=one_line(prompt.text), **how)
