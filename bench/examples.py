"The neighbours' own examples beside ours: lines of user code, seconds, result, and what survives."
import inspect
import io
import json
import subprocess
import sys
import tempfile
import warnings
from contextlib import redirect_stdout
from pathlib import Path
from statistics import median
from time import perf_counter

import torch
from contenders import have
from fastai.callback.core import Callback
from fastai.callback.schedule import Learner  # this import gives it `fit_one_cycle`
from fastai.metrics import accuracy
from fastai.torch_core import set_seed
from fastcore.foundation import L
from measure import child_env, device, spread
from nets import build

from early_prune.core import cost, sparsity_of
from early_prune.criteria import rms_magnitude
from early_prune.data import digits
from early_prune.dependency import trace
from early_prune.models import get_model
from early_prune.ranking import Neurons, rank, scores
from early_prune.recipes import recipe
from early_prune.surgery import cut, load, save

OURS,FASTERAI,TP,DENSE = 'early_prune','fasterai','torch-pruning','dense'
SPARSITY,RATIO = .9,.5

# What a user writes: each body is counted ------------------------------------------------------------

def sparse_early_prune(learn, epochs):
    learn.fit_one_cycle(epochs, 1e-2, cbs=recipe('agp', sparsity=SPARSITY))

def sparse_fasterai(learn, epochs):
    from fasterai.sparse.all import SparsifyCallback, agp, large_final
    learn.fit_one_cycle(epochs, 1e-2, cbs=SparsifyCallback(SPARSITY, 'weight', 'local', large_final, agp))

def cut_early_prune(net, x, optimizer):
    groups = trace(net, x)
    keep = rank(groups, scores(net, groups, rms_magnitude), Neurons(RATIO), per_group=True, round_to=8)
    cut(net, groups, keep, optimizer)

def cut_torch_pruning(net, x, optimizer):
    import torch_pruning as tp
    imp = tp.importance.GroupMagnitudeImportance(p=2)
    ignored = [m for m in net.modules() if isinstance(m, torch.nn.Linear) and m.out_features==1000]
    pruner = tp.pruner.BasePruner(net, x, importance=imp, pruning_ratio=RATIO, ignored_layers=ignored, round_to=8)
    pruner.step()

def whole_early_prune(learn, epochs):
    learn.fit_one_cycle(epochs, 1e-2, cbs=recipe('epi', ratio=RATIO))

def whole_fasterai(learn, epochs):
    from fasterai.core.criteria import large_final
    from fasterai.core.schedule import agp
    from fasterai.prune.prune_callback import PruneCallback
    learn.fit_one_cycle(epochs, 1e-2, cbs=PruneCallback(RATIO, agp, 'global', large_final,
                                                              example_inputs=learn.dls.one_batch()[0][:2]))

def whole_torch_pruning(learn, epochs):
    import torch_pruning as tp
    class Prune(Callback):
        def before_epoch(self):
            if self.epoch!=min(5, self.n_epoch-1): return
            head = [m for m in self.model.modules() if isinstance(m, torch.nn.Linear)][-1:]
            imp,x = tp.importance.GroupMagnitudeImportance(p=2),self.dls.one_batch()[0][:2]
            tp.pruner.BasePruner(self.model, x, importance=imp, pruning_ratio=RATIO, ignored_layers=head, global_pruning=True).step()
            self.model.train()
            self.learn.create_opt()
    learn.fit_one_cycle(epochs, 1e-2, cbs=Prune())

def whole_dense(learn, epochs):
    learn.fit_one_cycle(epochs, 1e-2)

SPARSE = {OURS:sparse_early_prune, FASTERAI:sparse_fasterai}
CUT    = {OURS:cut_early_prune, TP:cut_torch_pruning}
WHOLE  = {DENSE:whole_dense, OURS:whole_early_prune, FASTERAI:whole_fasterai, TP:whole_torch_pruning}

def n_lines(f):
    "Lines of the body of a function."
    return len(inspect.getsource(f).strip().splitlines())-1

def present(table):
    "Those whose package is installed."
    return {nm:f for nm,f in table.items() if nm in (OURS, DENSE) or have(nm.replace('-', '_'))}

# A Learner made sparse -------------------------------------------------------------------------------

class _Keys(Callback):
    order = 60
    def after_epoch(self):
        if self.epoch==self.n_epoch//2: self.keys = set(self.model.state_dict())

def make(seed, splitter=None):
    "A seeded `Learner` on digits."
    set_seed(seed, reproducible=True)
    parts = {} if splitter is None else dict(splitter=splitter)
    learn = Learner(digits(), get_model('resnet8', n_in=1, n_out=10), metrics=accuracy, **parts)
    learn.remove_cbs(learn.cbs.filter(lambda cb: cb.name=='progress'))
    return learn

def _first_and_rest(net):
    first,*rest = [p for p in net.parameters()]
    return L([first], rest)

def _held(learn, names):
    "Whether weights that are zero have no state in the optimizer."
    state = [(p, learn.opt.state[p]) for p in learn.model.parameters() if p.ndim>1]
    return all(not o[nm][p==0].any() for p,o in state for nm in names if nm in o)

def _frozen(f):
    learn = make(0, _first_and_rest)
    learn.freeze()
    first = next(learn.model.parameters())
    before = first.detach().clone()
    with learn.no_logging(): f(learn, 2)
    return torch.equal(before, first)

def sparse(seeds, epochs):
    "Sparsify a `Learner` on digits: accuracy, seconds, and what survives."
    found = {}
    for nm,f in present(SPARSE).items():
        runs = []
        for seed in range(seeds):
            learn,keys = make(seed),_Keys()
            dense = set(learn.model.state_dict())
            learn.add_cb(keys)
            start = perf_counter()
            with learn.no_logging(): f(learn, epochs)
            runs.append((learn.recorder.values[-1][2], perf_counter()-start))
        found[nm] = dict(lines=n_lines(f), accuracy=[o[0] for o in runs], seconds=[o[1] for o in runs],
                         sparsity=sparsity_of(learn.model), survives={
            'pruned weights have no momentum':_held(learn, ('grad_avg', 'sqr_avg')),
            'state dict has the names of the dense model in mid-training':keys.keys==dense,
            'a frozen layer is left alone':_frozen(f)})
    return found

# A network cut in half -------------------------------------------------------------------------------

def _trained(name):
    net = build(name).to(memory_format=torch.channels_last).train()
    for p in list(net.parameters())[:3]: p.requires_grad_(False)
    x = torch.randn(2, 3, 64, 64).to(device())
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], .01, momentum=.9)
    net(x).square().mean().backward()
    optimizer.step()
    return net,x,optimizer

def _survives_cut(f, name, folder):
    net,x,optimizer = _trained(name)
    frozen = [nm for nm,p in net.named_parameters() if not p.requires_grad]
    f(net, x, optimizer)
    live,known = {id(p) for p in net.parameters()},{id(p) for o in optimizer.param_groups for p in o['params']}
    convs = [m.weight for m in net.modules() if isinstance(m, torch.nn.Conv2d) and m.weight.shape[2]>1]
    holds = [p for p in net.parameters() if p.requires_grad]
    return {'the optimizer holds every live parameter':{id(p) for p in holds}<=known,
            'momentum goes on':all('momentum_buffer' in optimizer.state.get(p, {}) for p in holds) and bool(live & known),
            'frozen parameters stay frozen':not any(dict(net.named_parameters())[nm].requires_grad for nm in frozen),
            'a layer with frozen parameters is cut like the others':net.conv1.out_channels<64,
            'training mode is kept':net.training,
            'channels_last is kept':all(w.is_contiguous(memory_format=torch.channels_last) for w in convs),
            'the small network is saved and loaded without pickle':_round_trip(f, net, name, folder)}

def _round_trip(f, net, name, folder):
    if f is not cut_early_prune: return False # its README saves the whole model with `torch.save`
    save(net, path := Path(folder)/'small.safetensors')
    again,now = load(lambda: build(name), path).state_dict(),net.state_dict()
    return again.keys()==now.keys() and all(torch.equal(t, again[nm]) for nm,t in now.items())

def cuts(n, name, size, folder):
    "Cut half of the channels of a torchvision network: seconds, what is left, what survives."
    found = {}
    for nm,f in present(CUT).items():
        took,x = [],torch.randn(1, 3, size, size).to(device())
        for _ in range(n+1):
            net = build(name)
            optimizer = torch.optim.SGD(net.parameters(), .01, momentum=.9)
            start = perf_counter()
            f(net, x, optimizer)
            took.append(perf_counter()-start)
        left = sum(p.numel() for p in net.parameters())/sum(p.numel() for p in build(name).parameters())
        found[nm] = dict(lines=n_lines(f), seconds=took[1:], params_left=left, survives=_survives_cut(f, name, folder))
    return found

# A whole training ------------------------------------------------------------------------------------

def child(name, seed, epochs):
    "Train in this process: accuracy, seconds, what is left of the network."
    learn = make(seed)
    dense = cost(learn.model, learn.dls.one_batch()[0][:1].as_subclass(torch.Tensor))
    start = perf_counter()
    with learn.no_logging(): WHOLE[name](learn, epochs)
    took = perf_counter()-start
    left = cost(learn.model, learn.dls.one_batch()[0][:1].as_subclass(torch.Tensor))
    return dict(accuracy=learn.recorder.values[-1][2], seconds=took, params_left=left.params/dense.params,
                flops_left=left.flops/dense.flops)

def whole(seeds, epochs):
    "Half of the channels gone while training goes on: each run in a process of its own."
    found = {}
    for seed in range(seeds):
        for nm in present(WHOLE):
            cmd = [sys.executable, '-W', 'ignore', __file__, nm, str(seed), str(epochs)]
            out = subprocess.run(cmd, env=child_env(OMP_NUM_THREADS='1'), capture_output=True, text=True, check=True).stdout
            found.setdefault(nm, []).append(json.loads(out.splitlines()[-1]))
    return {nm:dict(lines=n_lines(WHOLE[nm])) | {k:[r[k] for r in runs] for k in runs[0]} for nm,runs in found.items()}

# Rows of the record ----------------------------------------------------------------------------------

def _row(case, what, values, unit, ratio=None, **more):
    one = spread(values)
    return dict(table='examples', case=case, what=what, unit=unit, value=one, rounds=len(values),
                ratio=spread(ratio or [1.]), against=OURS, **more)

def _rows(case, found, field, unit):
    ours = median(found[OURS][field])
    return [_row(case, nm, o[field], unit, [v/ours for v in o[field]], note=f'{o["lines"]} lines')
            for nm,o in found.items()]

def examples(seeds=3, epochs=20, n=5, net='resnet18', size=224):
    "Rows of seconds and accuracies, on one thread; the whole finding is in `details` of the first row of each case."
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
        warnings.simplefilter('ignore')
        with redirect_stdout(io.StringIO()): # fasterai prints a report of each fit
            made = {'a Learner made sparse':sparse(seeds, epochs), 'a network cut in half':cuts(n, net, size, folder),
                    'half of the channels while training':whole(seeds, epochs)}
    torch.set_num_threads(threads)
    rows = []
    for case,found in made.items():
        of = _rows(f'{case}, seconds', found, 'seconds', 's')
        of[0]['details'] = found
        rows += of
        if 'accuracy' in found[OURS]: rows += _rows(f'{case}, accuracy', found, 'accuracy', '')
    return rows

if __name__=='__main__': print(json.dumps(child(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))))
