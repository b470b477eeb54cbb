"""Settings of the whole test run: one thread, and the same examples every time."""

import torch
from hypothesis import settings

torch.set_num_threads(1)
settings.register_profile("fairway", deadline=None, derandomize=True, database=None, max_examples=100)
settings.load_profile("fairway")
