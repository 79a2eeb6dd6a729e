"""Exercise 9: what a score of UniGenBench is, and what failures do to it. 20 minutes.

The benchmark's prompts demand things that can be seen in a picture or not. Each such demand is a
testpoint. A judge is shown one picture and asked about all testpoints of its prompt at once, and
gives each of them a 1 or a 0. A testpoint is labelled with what it tests, for example
"Attribute - Color": its primary dimension, Attribute, and its sub dimension, Color. There are ten
primary dimensions; some, such as "Style", have no subs.

Some answers never come, or cannot be read. What then? Left out, they leave the denominator too, and
a model of which the hard pictures got no answer looks better than it is. So two scores are told:
one over what was judged, and a strict one in which each testpoint that was not judged counts as
wrong. As long as they agree, the score can be trusted.

The paper: UniGenBench. The official evaluator skips rows that have no judgment.

    python -m pytest exercises/test_09_bench_score.py
"""

from unigenbench.results import Result
from unigenbench.testpoints import primary_of


def overall(results: list[Result], strict: bool = False) -> float | None:
    """The benchmark's score, from 0 to 1; None if there is nothing to score.

    results: what the judge said of each picture. Of a Result you need
        subs: the labels of its testpoints, for example ["Style", "Attribute - Color"]
        scores: a 0 or 1 for each of them; None in place of the whole list where the judge's answer
        is missing

    1. Collect the 0s and 1s of all pictures by primary dimension. primary_of(label), which is
       given, makes "Attribute" of "Attribute - Color" and "Style" of "Style".
    2. A result without scores: left out, or, if strict is set, a 0 for each of its testpoints.
    3. A dimension's score is the mean of its 0s and 1s: testpoints weigh alike, whatever picture or
       sub dimension they are of. The overall score is the plain mean over the dimensions that have
       any 0s and 1s, so that one with few testpoints weighs as much as one with many.

    Hint: collections.defaultdict(list).
    """
    raise NotImplementedError
