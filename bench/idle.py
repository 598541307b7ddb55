"What `SparsifyCallback` costs on a batch where no update is due, measured inside a running fit."
import torch
from fastai.callback.core import Callback
from fastai.learner import Learner
from measure import in_turns, to_rows

from early_prune.callbacks import SparsifyCallback
from early_prune.data import digits
from early_prune.models import resnet
from early_prune.schedules import Schedule, sched_linear

EMPTY = 'an empty fastai callback'

class Nothing(Callback):
    "A callback whose event does nothing."
    run_valid = False
    def before_step(self): pass

class Probe(Callback):
    "Times the event of other callbacks in the middle of a fit, with the gradients of a real batch."
    order,run_valid = 10.6,False
    def __init__(self, cb, moments, n, inner):
        self.cb,self.moments,self.n,self.inner,self.rows = cb,moments,n,inner,[]
        self.nothing = Nothing()

    def before_step(self):
        if self.train_iter not in self.moments: return
        self.nothing.learn,masks = self.learn,self.cb.masks
        step,upheld = round(self.pct_train*self.n_iter*self.n_epoch),masks.upheld
        assert not self.cb.due or step<self.cb.due[0], 'an update is due: this batch is not idle'
        masks.upheld = []
        fs = {'SparsifyCallback.before_step':lambda: self.cb('before_step'), EMPTY:lambda: self.nothing('before_step')}
        times = in_turns({nm:(lambda f=f: f) for nm,f in fs.items()}, self.n, self.inner)
        masks.upheld = upheld
        self.rows += to_rows(times, EMPTY, 'idle', self.moments[self.train_iter], 'us')

def idle(n=15, inner=1000):
    "One event before, in the middle of, and after the schedule; upkeep is switched off while it is timed."
    torch.manual_seed(0)
    dls = digits()
    n_batches = len(dls.train)
    moments = {n_batches//8:'before any mask exists', n_batches//2+1:'between two updates',
               n_batches-2:'after the schedule has ended'}
    cb = SparsifyCallback(.9, Schedule(sched_linear, .25, .75), every=max(2, n_batches//8))
    probe = Probe(cb, moments, n, inner)
    learn = Learner(dls, resnet(8), cbs=[cb, probe])
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-3)
    assert len(probe.rows)==2*len(moments)
    return probe.rows
