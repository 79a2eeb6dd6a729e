"""What libraries read from the environment when they are imported: imported before torch is, and
before transformers. What the user has set is left.

Idle threads of GNU's OpenMP, which torch uses on a CPU, spin 300,000 rounds before they sleep, and
take the cores from whatever else works there. At 2,000 rounds a step takes 1.02 of the time on two
quiet cores, and beside two busy processes it is as quick as one thread; at 400 it would take 1.2
when quiet, at 40,000 up to four times when busy.

transformers warns that image processors, which nothing here uses, miss torchvision.
"""

import os

if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
