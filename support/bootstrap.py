"""How sure a mean over prompts is: the bootstrap, drawn alike wherever this repository uses it.

The images and testpoints of one prompt go together, so what is drawn again is whole prompts.

    mean_interval([2, 0, 1], [3, 1, 1])         # 95 % of the share right: 3 of 5 testpoints
    draws = resample(len(correct))              # the same by hand, (replicates, prompts)
    interval((draws @ correct) / (draws @ total))
"""

import numpy as np


def resample(count: int, replicates: int = 2000, seed: int = 0) -> np.ndarray:
    """How often each of `count` prompts is drawn in each replicate: (replicates, count)."""
    return np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), replicates)


def interval(values) -> tuple[float, float]:
    """The range of the middle 95 % of the replicates' values."""
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


def mean_interval(numerators, denominators=None) -> tuple[float, float]:
    """95 % interval of sum(numerators) / sum(denominators), one of each a prompt.

    denominators: above zero; by default ones, so that it is the interval of a plain mean
    Raises ValueError if there are no prompts.
    """
    numerators = np.asarray(numerators, float)
    if not numerators.size:
        raise ValueError("an interval needs at least one prompt")
    below = np.ones_like(numerators) if denominators is None else np.asarray(denominators, float)
    draws = resample(len(numerators))
    return interval((draws @ numerators) / (draws @ below))
