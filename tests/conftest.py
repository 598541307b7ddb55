"Shared set-up: one thread, a fixed seed, and no warning of our own that goes unseen."
import os

os.environ.setdefault('OMP_NUM_THREADS', '1')
import matplotlib
import pytest
import torch

matplotlib.use('agg')

@pytest.fixture(autouse=True)
def _seed():
    torch.set_num_threads(1)
    torch.manual_seed(0)
