"""Which base model everything runs on: the one line that chooses.

`import sd3 as flux` instead trains and measures Stable Diffusion 3: the same functions, another
file.
"""

import flux  # noqa: F401 - imported from here by train, learner, heldout and bench
