"""What stands in tests for what is slow, random or far away."""

from judges.mllm import Answer


class FakeMLLM:
    """Answers each query with what `answer` makes of it, a text or an Answer; keeps the queries."""

    def __init__(self, answer, name: str = "fake"):
        self.answer, self.name, self.asked, self.sizes = answer, name, [], set()

    def ask(self, queries):
        self.asked += queries
        self.sizes.add(len(queries))
        answers = map(self.answer, queries)
        return [Answer(a) if isinstance(a, str) else a for a in answers]


def in_turn(*answers, name: str = "fake") -> FakeMLLM:
    """A judge that gives these answers, whatever it is asked."""
    given = iter(answers)
    return FakeMLLM(lambda _: next(given), name)
