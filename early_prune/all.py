"""What a notebook needs: every chapter of early_prune, and a short list besides. No module imports this one.

A script names what it imports: `from early_prune.callbacks import EarlyPruneCallback`."""
import math
import os
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import nn

with warnings.catch_warnings():
    warnings.filterwarnings('ignore', '.*torch.jit.script', FutureWarning) # fastai scripts a function when it is imported
    import fastai.callback.all
    from fastai.learner import Learner
    from fastai.metrics import accuracy
    from fastai.torch_core import set_seed

from early_prune.core import *
from early_prune.data import *
from early_prune.models import *
from early_prune.criteria import *
from early_prune.optimizers import *
from early_prune.masks import *
from early_prune.schedules import *
from early_prune.distributions import *
from early_prune.regrowth import *
from early_prune.dependency import *
from early_prune.ranking import *
from early_prune.packing import *
from early_prune.surgery import *
from early_prune.products import *
from early_prune.triggers import *
from early_prune.engine import *
from early_prune.callbacks import *
from early_prune.recipes import *
from early_prune.checkpoint import *
from early_prune.compare import *

del fastai, warnings # what is left is what the star brings
