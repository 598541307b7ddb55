"What a callback says of its state is everything that changes in a fit."
import pytest
import torch
from fastai.callback.schedule import Learner
from fastai.metrics import accuracy
from fastai.torch_core import set_seed

from early_prune.callbacks import EarlyPruneCallback, SparsifyCallback
from early_prune.criteria import Running, movement
from early_prune.data import digits
from early_prune.models import resnet, small_cnn
from early_prune.ranking import Neurons, taylor_bn
from early_prune.regrowth import by_momentum
from early_prune.triggers import AtEpoch, Never

# Arguments, what a fit makes anew from them, and what only a first batch needs
SAME = {'learn', 'run', 'columns', 'previous', 'kwargs', 'schedule', 'criterion', 'distribution', 'every', 'start', 'regrowth', 'real', 'proof', 'end',
        'losses', 'trigger', 'steps', 'burst', 'physical', 'limits', 'inputs', 'readers', 'bytes_before', 'within', 'started', 'score', 'grow', 'near', 'fits'}
STORED = {'within':'floors', 'started':'elapsed', 'criterion':'score', 'score':'score', 'grow':'grow'}

def trained(cb, net=small_cnn):
    set_seed(0, reproducible=True)
    learn = Learner(digits(limit=256, valid_limit=64), net(), metrics=accuracy)
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(2, 1e-2, cbs=cb)
    return learn

@pytest.mark.filterwarnings('ignore:.*epochs and one after the cut') # one is to be cut at the end
@pytest.mark.parametrize('cb,net', [
    (lambda: SparsifyCallback(.9, criterion=Running(movement), regrowth=by_momentum, every=2), small_cnn),
    (lambda: EarlyPruneCallback(Neurons(.3), taylor_bn, AtEpoch(1), steps=3), lambda: resnet(8)),
    (lambda: EarlyPruneCallback(Neurons(.3), taylor_bn, AtEpoch(2), steps=1, regrowth=by_momentum, every=2), lambda: resnet(8)),
    (lambda: EarlyPruneCallback(Neurons(.3), taylor_bn, Never(), regrowth=by_momentum, every=2), lambda: resnet(8))])
def test_all_that_changes_is_state(cb, net):
    learn,known = trained(cb := cb(), net),cb.state()
    missing = {nm for nm in vars(cb) if nm not in known and nm not in SAME}
    assert not missing, f'{type(cb).__name__} changes {missing}: put them into its `state`, or say here why not'
    assert all(o in known for nm,o in STORED.items() if nm in vars(cb))
    with learn.added_cbs(other := type(cb)(*((.9,) if 'sparsity' in vars(cb) else (cb.budget,)), **arguments(cb))):
        other.columns = cb.columns
        other.load_state(known)
        again = other.state()
    assert flat(again)==flat(known | dict(elapsed=again.get('elapsed')))

def arguments(cb):
    if isinstance(cb, EarlyPruneCallback): return dict(criterion=taylor_bn, trigger=cb.trigger, regrowth=cb.regrowth)
    return dict(criterion=Running(movement), regrowth=cb.regrowth)

def flat(o):
    "The state in a form that can be compared."
    if isinstance(o, torch.Tensor): return o.tolist()
    if isinstance(o, dict): return {k:flat(v) for k,v in o.items() if k!='elapsed'}
    if isinstance(o, list | tuple): return [flat(v) for v in o]
    return str(o) if isinstance(o, float) and o!=o else o
