"""Exercise 4: from comparisons to win rates, the reward of Pref-GRPO. 35 minutes.

A judge, a language model that sees images, is shown two images of one prompt and says which is
better. All pairs of a group, the G images of one prompt, are compared, and the share of its
comparisons that an image wins, its win rate, is its reward. On the way, three things go wrong
easily:

  Order.         Many judges favor the image that they see first. So each pair is asked about
                 twice, with the images in either order, and gets the mean of both answers: where
                 they disagree, the mean of 1 and 0, which is a tie. Where a judge gives
                 probabilities, it is their mean, and nothing else.
  Ties.          A tie is half a win for each. If every difference counted, a win rate would be a
                 rank, and a difference that nobody can see would weigh as much as a decisive one.
  Lost answers.  Some answers never come, or say nothing that can be read. Such a comparison is left
                 out. It is no tie: a tie would pull both images toward one half, though the judge
                 has said nothing of the kind.

What an image gets of one comparison are its points: 1, 1/2 or 0, or a probability in between; None
if the comparison was lost. The two images' points add up to 1.

The paper: comparisons of all pairs of a group, and win rates as rewards. In which order the two
images are shown it does not say; the released code asks in one order only.

    python -m pytest exercises/test_04_win_rates.py
"""

from collections import Counter
from collections.abc import Sequence

import torch

from judges.answers import ask
from judges.mllm import Query
from judges.templates import PAIRWISE_TEMPLATE
from rewards import Rewards, pair_schedule


def mean_points(forward: float | None, backward: float | None) -> float | None:
    """The points that image i gets of a pair (i, j), from both orders in which it was asked about.

    forward: the points of i when i was shown first; backward: the points of i, too, when j was
    shown first. Both in 0 to 1, or None if lost.
    Returns their mean. None if either was lost: the order that is left may be what decided.
    Hint: 0 counts as false in Python, and so does None, but 0 is a defeat and None is no answer.
    """
    raise NotImplementedError


def win_rates(
    pairs: Sequence[tuple[int, int]], points: Sequence[float | None], group_size: int
) -> torch.Tensor:
    """The mean of the points that each of G = group_size images got: (G,) float32, from 0 to 1.

    pairs: (i, j), two images by their numbers 0 ... G - 1; i may be above j
    points: of each pair, what its first image i gets; j gets 1 - points. None: not counted at all.
    An image without a single comparison that counts gets 0.5.

    By hand: pairs (0, 1), (0, 2), (1, 2) with points 1, 0.5, None give image 0 a win and a tie,
    0.75; image 1 a defeat, 0; image 2 a tie, 0.5.
    """
    raise NotImplementedError


class PairwiseReward:
    """Win rates within each group, from a judge: PairwiseReward(judge)(prompts, images).values."""

    def __init__(self, mllm):
        self.mllm = mllm

    def compare(self, prompt: str, shown: list[tuple]) -> list[float | None]:
        """Given: asks the judge about pairs of images of one prompt, (shown first, shown second).

        These are the images themselves, not their numbers.
        Returns, for each pair, the points of the image that was shown first.
        """
        text = PAIRWISE_TEMPLATE.replace("{prompt}", prompt)
        return [said[-1].points for said in ask(self.mllm, [Query(pair, text) for pair in shown])]

    def __call__(self, prompts: Sequence[str], images: Sequence[Sequence]) -> Rewards:
        """Rewards of P groups, one for each prompt: images is P lists of G images.

        For each prompt, and within its own group only:
        1. pair_schedule(G), which is given, lists all pairs (i, j) with i < j;
        2. compare them with image i shown first, and once more with image j shown first; whether in
           two calls of compare or in one, which takes a list of any length, makes no difference;
        3. the second answers speak of j: turn them into points of i (but None stays None);
        4. mean_points of each pair, then win_rates of the group, (G,).
        Returns Rewards(torch.stack(rates), Counter()). rates is the list of the P groups' win
        rates, so its values are (P, G). The second is for what the log counts, such as ties and
        lost answers; here it stays empty.
        """
        raise NotImplementedError
