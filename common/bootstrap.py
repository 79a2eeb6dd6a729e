"""How sure a mean over prompts is: the bootstrap. Images and testpoints of one prompt go together,
so what is drawn again is whole prompts.

    mean_interval([2, 0, 1], [3, 1, 1])         # 95 % of the accuracy: 3 of 5 testpoints
    draws = resample(len(correct))              # the same by hand, (replicates, prompts)
    interval((draws @ correct) / (draws @ total))
"""

import numpy as np


def resample(count: int) -> np.ndarray:
    """How often each of `count` prompts is drawn in each of 2,000 replicates: (2000, count)."""
    return np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), 2000)


def interval(values) -> tuple[float, float] | None:
    """The range of the middle 95 % of the replicates' values, NaN left out. None where it has no
    width, as of one prompt, or of prompts that are all alike: it would look like certainty."""
    values = np.asarray(values, float)
    values = values[~np.isnan(values)]
    low, high = np.percentile(values, [2.5, 97.5]) if values.size else (0.0, 0.0)
    wide = high - low > 1e-9 * max(1.0, abs(high))  # not rounding
    return (float(low), float(high)) if wide else None


def interval_text(bounds: tuple[float, float] | None, number) -> str:
    """The interval in words, number(bound) being one of its ends; or why there is none."""
    if bounds is None:
        return "no interval: its prompts do not differ"
    return f"95 % interval {number(bounds[0])} .. {number(bounds[1])}"


def mean_interval(numerators, denominators=None) -> tuple[float, float] | None:
    """95 % interval of sum(numerators) / sum(denominators), one of each per prompt; of the plain
    mean if only the first are given. Raises ValueError if there are no prompts."""
    numerators = np.asarray(numerators, float)
    if not numerators.size:
        raise ValueError("an interval needs at least one prompt")
    below = np.ones_like(numerators) if denominators is None else np.asarray(denominators, float)
    draws = resample(len(numerators))
    return interval((draws @ numerators) / (draws @ below))
