"""Which base model everything runs on: the one line that chooses.

`import sd3 as flux` instead trains and measures Stable Diffusion 3: same functions, another file.
"""

from models import flux  # noqa: F401 - imported from here by train, policy, learner and heldout
