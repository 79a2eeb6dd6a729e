"""The official question: read out of a stand-in of the evaluator's file, and asked as it asks."""

import base64
import io
import json
from pathlib import Path

import pytest
from fake_server import choice, client, serving
from PIL import Image

import bench
from unigenbench import official, results
from unigenbench.asking import judge_images, pace_of
from unigenbench.board import doubt
from unigenbench.questions import KNOWN, OFFICIAL, question, question_record
from unigenbench.testpoints import Prompt, write_prompts

# The form of eval_common.py with other words. Whoever ran it would notice.
STAND_IN = '''\
"""Not run."""
import no_such_module

raise SystemExit("this file was run")

HEAD = "Caption [{prompt}], "  # a name that another constant uses
EXPLANATION_DICT_EN = {
    "Style": "in what " "manner",
    "Grammar - Negation": ("what is " + "not {there}"),
}
EXPLANATION_DICT_ZH: dict = {"风格": "画风", "语法-否定": "不出现"}
SYSTEM_PROMPT_EN_TEMPLATE = (
    HEAD
    + "points {testpoint}, "
    """{explanation};
{test_explanation}; answer {{so}}: <score>[..]</score>"""
)
SYSTEM_PROMPT_ZH_TEMPLATE = "「{prompt}」{testpoint}{explanation}{test_explanation}"
LANG_CONFIGS = {
    "en": {
        "explanation_dict": EXPLANATION_DICT_EN,
        "system_prompt_template": SYSTEM_PROMPT_EN_TEMPLATE,
        "prompt_column": "prompt_en",
        "checkpoint_header": "What they mean",
        "checkpoint_desc_header": "What is asked",
    },
    "zh": {
        **{"explanation_dict": EXPLANATION_DICT_ZH, "columns": ("prompt_zh",)},
        "parser": no_such_module.parse,  # not read, and not needed
        "system_prompt_template": SYSTEM_PROMPT_ZH_TEMPLATE,
        "checkpoint_header": "定义",
        "checkpoint_desc_header": "要求",
    },
}


def build_system_prompt(lang):
    config = LANG_CONFIGS[lang]
    explanation = f"{config['checkpoint_header']}:"
    return explanation
'''
# The form of one of the scripts before, of which each has one language.
OLDER = """\
def call_evaluation(args):
    explanation_dict = {"风格": "画风", "语法-否定": "不出现"}
    explanation = "定义:「"
    for point in args:
        explanation += point
    test_explanation = "要求:「"
    while True:
        system_prompt = f"「{prompt}」{testpoint}{explanation}{test_explanation}"
"""
POINTS = [("Grammar - Negation", "no  dog"), ("Style", "ink")]
EN, ZH = Prompt(0, "a {red} hat", POINTS, "", "", "en"), Prompt(1, "帽子", POINTS, "", "", "zh")
EN_TEXT = """\
Caption [a {red} hat], points ['Grammar - Negation', 'Style'], What they mean:「
Grammar - Negation: what is not {there}
Style: in what manner
」;
What is asked:「
Grammar - Negation: no  dog
Style: ink
」; answer {so}: <score>[..]</score>"""
ZH_TEXT = "「帽子」['语法-否定', '风格']定义:「\n语法-否定: 不出现\n风格: 画风\n」" + (
    "要求:「\n语法-否定: no  dog\n风格: ink\n」"
)
GOOD = '<analysis>["a", "b"]</analysis> <score>[1, 0]</score>'


@pytest.fixture
def place(tmp_path, monkeypatch):
    """The evaluator's repository with its file, two prompts, and their images, one with alpha."""
    monkeypatch.chdir(tmp_path)
    file = Path("theirs/eval/src/eval_common.py")
    file.parent.mkdir(parents=True)
    file.write_text(STAND_IN, encoding="utf-8")
    Path("images").mkdir()
    for name in (f"{p}_{i}.png" for p in range(2) for i in range(4)):
        image = Image.effect_noise((24, 16), 80).convert("RGBA")
        image.putalpha(100)
        image.save(f"images/{name}")
    write_prompts([EN, EN._replace(index=1, text="another hat")], "p.csv")
    return file


def test_the_question_is_put_together_word_for_word_and_nothing_is_run(place):
    for path in (place, "theirs", "theirs/eval", place.parent):
        found = official.read_official(path)
        assert question(EN, official=found) == EN_TEXT and question(ZH, official=found) == ZH_TEXT
    template = question(EN, "{prompt}|{explanation}|{test_explanation}", found)
    assert template == EN_TEXT.split("'], ")[0].split("[")[1].split("]")[0] + "|" + (
        EN_TEXT.split("'], ")[1].split("; answer")[0].replace(";\n", "|")
    )
    Path("older.py").write_text(OLDER, encoding="utf-8")
    older = official.read_official("older.py")
    assert question(ZH, official=older) == ZH_TEXT
    with pytest.raises(ValueError, match="older.py has no question for prompts of 'en', but: zh"):
        question(EN, official=older)


def expected(form: str, text: str, path: Path) -> dict:
    """The request as the official client of this form makes it."""
    data, kind, words = path.read_bytes(), "png", {"type": "text", "text": text}
    if form == "offline":
        buffer, kind = io.BytesIO(), "jpeg"
        Image.open(path).convert("RGB").save(buffer, format="JPEG", quality=95)
        data = buffer.getvalue()
    url = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
    image = {"type": "image_url", "image_url": {"url": url}}
    content = [image, words] if form == "offline" else [words, image]
    others = {"do_sample": False} if form == "offline" else {}
    messages = [{"role": "user", "content": content}]
    return {"model": "m", "messages": messages, "max_tokens": 4096, **others}


@pytest.mark.parametrize(
    "form, flags",
    [
        ("offline", "--judge_model m"),
        ("api", "--judge_model m --official_form api"),
    ],
)
def test_requests_are_those_of_the_official_clients(place, form, flags, monkeypatch):
    """Nothing else is sent, and what has no scores is asked for in the same words, eleven times."""
    monkeypatch.setattr(bench, "check_sight", lambda *_, **__: "")
    line = f"judge --prompts p.csv --images images --limit 1 --official theirs {flags}"
    with serving() as server:
        mute = expected(form, EN_TEXT, Path("images/0_2.png"))
        say = lambda body: "I cannot tell" if body == mute else GOOD
        server.refuse = lambda body: (200, choice(say(body)))
        run = f"{line} --out r.csv --judge openai --base_url {server.url}".split()
        assert bench.run(run) == 0
        sent = [body for body, _ in server.requests]
        wanted = [expected(form, EN_TEXT, Path(f"images/0_{i}.png")) for i in (0, 1, 2, 3)]
        assert sorted(map(wanted.index, sent)) == [0, 1, *[2] * 11, 3]
        assert [r.state for r in results.read_results("r.csv")].count("unparsable") == 1
        with pytest.raises(ValueError, match="begun for .*official.*; choose another --out"):
            bench.run([*run, "--official_form", "api" if form == "offline" else "offline"])
    assert official.read_official(place, None, "gemini-2.5-pro").form == "api"
    image = Image.new("RGB", (2, 2))
    image.info["file"] = "0_0.jpg", b"whatever"
    assert official.file_uri(image) == "data:image/jpeg;base64,d2hhdGV2ZXI="


def test_a_changed_file_asks_again_about_what_it_changed_alone_and_settings_name_it(place):
    prompts = [EN, EN._replace(index=1, testpoints=POINTS[1:])]

    def ask(server):
        found = official.read_official(place)
        how = dict(official=found, **pace_of("openai", 2, 180, True))
        judge_images(client(server, **official.FORMS["offline"]), prompts, "images", "j", **how)
        calls, server.requests[:] = len(server.requests), []
        return calls, question_record(prompts, official=found)

    assert pace_of("openai", 2, 180, False)["tries"] == 0  # other questions have a reminder
    with serving() as server:
        server.refuse = lambda body: (
            (200, choice(GOOD if "Negation" in str(body) else "<score>[1]</score>"))
        )
        calls, first = ask(server)
        assert calls == 8 and ask(server) == (0, first)
        place.write_text(STAND_IN.replace("not {there}", "absent"), encoding="utf-8")
        calls, second = ask(server)
        assert calls == 4
        place.write_text("# only a comment\n" + place.read_text(encoding="utf-8"))
        calls, third = ask(server)
        assert calls == 0
    one, two, three = (record["question"] for record in (first, second, third))
    assert one["question_sha256"] != two["question_sha256"] == three["question_sha256"]
    assert len({record["file_sha256"] for record in (one, two, three)}) == 3
    assert one["name"] == f"{OFFICIAL} of an unknown version" and one["form"] == "offline"


def test_a_known_question_is_named_by_its_date_and_others_are_not_compared_without_a_word(
    place, monkeypatch, capsys
):
    found = official.read_official(place)
    (digest,) = question_record([EN], official=found)["question"]["question_sha256"].values()
    assert digest not in KNOWN and set(KNOWN.values()) == {"2025-08-29", "2025-09-05", "2026-02-13"}
    monkeypatch.setitem(KNOWN, digest, "2026-02-13")
    records = [
        question_record([EN], *how)
        for how in [(None, found), (None, found._replace(form="api")), (), ("{prompt}{testpoint}",)]
    ]
    records.append(question_record([EN], "{prompt}{testpoint}", found))
    names = [results.question_of(record) for record in records]
    assert names[0] == f"{OFFICIAL} of 2026-02-13 ({digest[:8]}; offline form)"
    assert len(set(names)) == 5 and "our definitions" in names[3] and "the official d" in names[4]
    rows = [results.Result(n, "p", ["Style"], f"{n}_0.png", [1]) for n in range(600)]
    for name, record in zip("abcde", records):
        results.write_results(rows, f"{name}.csv")
        results.settings_path(Path(f"{name}.csv")).write_text(json.dumps({"judge": "m", **record}))
    results.write_results(rows, "f.csv")
    note = "These files answer different questions, from which differences may come: "
    note += f"a.csv: {names[0]}; "
    for line, said in [
        ("score a.csv b.csv", f"{note}b.csv: {names[1]}."),
        ("agree a.csv c.csv", f"{note}c.csv: {names[2]}."),
        ("score a.csv f.csv", f"{note}f.csv: not known."),
        ("score a.csv", ""),
    ]:
        assert bench.run(line.split()) == 0
        out = capsys.readouterr().out
        assert said in out if said else "different questions" not in out
    bench.run(["report", "a.csv", "d.csv", "--out", "r.html"])
    assert f"{note}d.csv: {names[3]}." in Path("r.md").read_text()
    assert doubt("en", rows, "m", names[0]) == f"only with the same judge, {names[0]}"
    assert doubt("en", rows, "m", names[4]) == "no: another question"


@pytest.mark.parametrize(
    "change, said",
    [
        (
            ("LANG_CONFIGS =", "CONFIGS ="),
            "is not the evaluator's file: it lacks, .*'LANG_CONFIGS'",
        ),
        (('"checkpoint_header": "What they mean",', ""), "lacks, .*'checkpoint_header'"),
        (
            ("(\n    HEAD", "str(\n    HEAD"),
            r"SYSTEM_PROMPT_EN_TEMPLATE \(line 12\) is no constant",
        ),
        (
            ("LANG_CONFIGS = ", "SYSTEM_PROMPT_EN_TEMPLATE += HEAD\nLANG_CONFIGS = "),
            r"SYSTEM_PROMPT_EN_TEMPLATE \(line 19\) is no constant",
        ),
        (("HEAD =", "HEAD = ="), "is no Python that can be read: .*line 6"),
        (('"in what " "manner"', "5"), "it lacks, or has in another form"),
        (
            ('"Style": "in what " "manner",', ""),
            "the official question has no definition of 'Style'",
        ),
        (("{prompt}], ", "{caption}], "), "has a placeholder other than .*: {caption}"),
    ],
)
def test_files_of_another_form_are_one_sentence(place, change, said):
    assert STAND_IN.count(change[0]) == 1
    place.write_text(STAND_IN.replace(*change), encoding="utf-8")
    with pytest.raises(ValueError, match=said) as told:
        question(EN, official=official.read_official("theirs"))
    assert "\n" not in str(told.value)
    assert "definition" in said or "eval_common.py" in str(told.value)


def test_no_file_and_a_form_for_none_are_one_sentence(tmp_path):
    with pytest.raises(ValueError, match="no eval_common.py there; it is in eval/src/"):
        official.read_official(tmp_path)
    line = "judge --prompts en --images i --out r.csv --official x --temperature 0.7"
    with pytest.raises(ValueError, match="leave --temperature out"):
        bench.run(line.split())
    with pytest.raises(ValueError, match="--official_form says how --official is asked"):
        official.read_official(None, "api")
