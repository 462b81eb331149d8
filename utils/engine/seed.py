"""Random seeds."""

import random

import numpy as np
import torch


def seed_everything(*keys: int) -> None:
    """Seed the global generators of python, numpy and torch from one or more whole numbers >= 0.

    Training calls this function at each epoch with (seed, epoch, rank): the randomness of an epoch
    depends on nothing before it, and resuming is exact on every rank and device without stored
    generator states.
    """
    seed = int(np.random.SeedSequence(keys).generate_state(1)[0])
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002  blocks of users may draw from the global generator
    torch.manual_seed(seed)
