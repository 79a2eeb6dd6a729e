"""Sentences stay sentences, whatever stands in the lists and names that they are about."""

import pytest

from common.wording import columns_of, listed, one_line, reasons


@pytest.mark.parametrize("count", [0, 5, 6, 800])
def test_a_list_names_a_few_and_counts_the_others(count):
    text = listed(f"folder/{n}\n.png" for n in range(count))
    assert text.count(".png") == min(count, 5) and "\n" not in text
    assert text.endswith(f" and {count - 5} more") == (count > 5)


def test_errors_that_differ_in_identifiers_alone_are_of_a_kind():
    errors = [f"HTTP 503 (request req_{n:x}a1, port {40000 + n}): try\nagain" for n in range(500)]
    errors += [f"timeout after {n}.5 s" for n in range(200)]
    errors += ["HTTP 429: slow down", "HTTP 500: broken"] * 90
    errors += [f"{chr(97 + n)} fault" for n in range(10)]
    assert reasons(errors) == (
        "500 such as HTTP 503 (request req_0a1, port 40000): try again; "
        "200 such as timeout after 0.5 s; 90 x HTTP 429: slow down; 100 of other kinds"
    )
    assert reasons(["a"]) == "1 x a" and reasons([]) == ""
    long = [f"{letter * 10_000} 7f3a" for letter in "abcd" for _ in range(200)]
    assert len(reasons(long)) < 700


@pytest.mark.parametrize(
    ("text", "line"),
    [("a\r\nb\x00\x1b\u2028c\x85 ", "a b c"), ("\udcffx", "\ufffdx"), ("\u718a a", "\u718a a")],
)
def test_a_line_has_no_line_ends_and_can_be_written(text, line):
    assert one_line(text) == line and line.encode()


@pytest.mark.parametrize("text", ["abcdefghij" * 9, "\u718a" * 90, "a\u718a" * 40])
@pytest.mark.parametrize("most", [1, 2, 20])
def test_what_is_shortened_keeps_both_ends(text, most):
    short = one_line(text, most)
    assert columns_of(short) <= most and "…" in short
    if most >= 20:
        head, tail = short.split("…")
        assert text.startswith(head) and text.endswith(tail) and len(head) > len(tail) > 2
    assert one_line(text, 180) == text
