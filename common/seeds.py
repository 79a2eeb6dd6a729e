"""Seeds that depend on all their parts and on nothing else: not on rank, batch or history.

seed_of(run_seed, step, prompt, image, "noise")
"""

import hashlib


def seed_of(*parts) -> int:
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=7).digest(), "big")
