"Everything a notebook needs: fastai's basics and every chapter of early_prune. No module imports this one."
import warnings

with warnings.catch_warnings():
    warnings.filterwarnings('ignore', '.*torch.jit.script', FutureWarning) # fastai scripts a function when it is imported
    from fastai.basics import *
    from fastai.callback.all import *

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
from early_prune.surgery import *
from early_prune.triggers import *
from early_prune.callbacks import *
from early_prune.recipes import *
from early_prune.checkpoint import *
from early_prune.compare import *
