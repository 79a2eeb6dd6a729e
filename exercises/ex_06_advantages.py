"""Exercise 6: from rewards to advantages, and the illusion that can lie in them. 25 minutes.

GRPO asks of each image: how much better is it than the others that were drawn for the same prompt?
Its answer is the advantage: the reward less the mean of its group, divided by the group's standard
deviation. No network has to predict what a prompt is worth, since the group says it.

The division has a danger, which the paper calls illusory advantage. A model that scores each image
alone gives the images of one prompt nearly the same score. The paper's figure has four of them:

    HPS scores   0.3457  0.3530  0.3496  0.3494     deviation 0.0026
    advantages   -1.44   1.39    0.07    -0.01

The largest difference of 0.0073, which may mean nothing, has become 2.83. Win rates of four images
spread over all of 0 to 1, and the same division hardly stretches them:

    win rates    0       0.67    1       0.33       deviation 0.37
    advantages   -1.34   0.46    1.34    -0.46

The figure's rewards are rounded, so do not look for its last digit: from the HPS scores as they
stand here one gets 1.384 where it has 1.39, and from the exact thirds 0.447 where it has 0.46. When
your function passes,

    python -m exercises.ex_06_advantages

shows both examples, without a floor (see part 2 below) and with one.

The paper: illusory advantage, whose figure has these numbers; and the objective.

    python -m pytest exercises/test_06_advantages.py
"""

import torch


def group_advantages(
    rewards: torch.Tensor, std_floor: float = 0.0, clip: float = 5.0
) -> torch.Tensor:
    """Rewards (P, G) of P prompts with G images each, normalized within each group: (P, G) float32.

    1. In each row: the reward less the row's mean, divided by the row's standard deviation. The
       deviation is the population's, the root of the mean of the G squared differences: the group
       is all there is, no sample of something larger. (torch's std divides by G - 1 unless it is
       told otherwise. The code that the authors released does so; the paper's figure does not.)
    2. A floor: where the deviation is below std_floor, std_floor divides in its place, so that a
       spread that means nothing stays small. A group without any spread gets exactly 0 for each
       image, never NaN, with any floor, 0 too. For that take two precautions. Round the rewards to
       float32, and reckon in float64: sums of so short numbers are exact there, so that equal
       rewards equal their mean, and leave no tiny difference to be blown up. And let nothing below
       1e-12 divide. (A floor is in the units of its reward: for win rates train.py takes 0.05.)
    3. At last the advantages are clipped to lie between -clip and clip.

    Hint: rewards.float().double(), and of mean, std and clamp the arguments keepdim, correction and
    min. Without keepdim=True the rows' means are (P,), which torch lines up with the G columns; as
    (P, 1) each meets its own row.
    """
    raise NotImplementedError


def main() -> None:
    examples = {"HPS scores": [0.3457, 0.3530, 0.3496, 0.3494], "win rates": [0, 2 / 3, 1, 1 / 3]}
    for name, rewards in examples.items():
        for floor in (0.0, 0.05):
            advantages = group_advantages(torch.tensor([rewards]), std_floor=floor)[0]
            numbers = "  ".join(f"{a:6.3f}" for a in advantages)
            print(f"{name:<10}  floor {floor:<4}  advantages {numbers}")


if __name__ == "__main__":
    main()
