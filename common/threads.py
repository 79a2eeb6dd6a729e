"""How idle threads wait: imported before torch, whose OpenMP reads it once.

On a CPU torch's threads are GNU's OpenMP's. Idle ones spin 300,000 rounds before they sleep, and
take the cores from whatever else works there. At 2,000 rounds a step takes 1.02 of the time on two
quiet cores, and beside two busy processes it is as quick as one thread; at 400 it would take 1.2
when quiet, at 40,000 up to four times when busy. What the user has set is left.
"""

import os

if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")
