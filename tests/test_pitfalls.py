"""docs/pitfalls.md: what it names is there, line by line."""

import re
from dataclasses import fields

import pytest
from conftest import ROOT

from training.config import Config

PAGE = (ROOT / "docs" / "pitfalls.md").read_text(encoding="utf-8")
ROWS = [
    [cell.strip() for cell in line.strip().strip("|").split("|")]
    for line in PAGE.partition("## Seen")[0].splitlines()
    if re.match(r"\| (?!you see)", line)
]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_each_pitfall_has_a_cause_a_cure_a_report_and_a_guard_that_stands(row):
    seen, cause, log, cure, guard, report = row
    assert all(row) and re.search(r"\d|\[", report)
    file, line = re.fullmatch(r"`([\w./]+)`: `(.+)`", guard).groups()
    assert line in (ROOT / file).read_text(encoding="utf-8")


def test_flags_that_the_page_names_are_those_of_train_py():
    named = set(re.findall(r"--(\w+)", PAGE))
    assert named and named <= {field.name for field in fields(Config)}


def test_there_are_some_twenty_and_each_symptom_stands_once():
    symptoms = [row[0] for row in ROWS]
    assert len(symptoms) >= 20 and len(set(symptoms)) == len(symptoms)
