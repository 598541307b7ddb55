"Mask, bring back, cut and resume with every optimizer we know of, one JSON line each. `python tests/optimizers_zoo.py --help`"
import argparse
import copy
import json
import os
import random
import sys
import tempfile
import time
import warnings
from collections import Counter, deque
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType

os.environ.setdefault('OMP_NUM_THREADS', '1')
warnings.filterwarnings('ignore')
import numpy as np  # noqa: E402
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from fastcore.foundation import L  # noqa: E402
from torch import nn  # noqa: E402

from early_prune.checkpoint import read_state, write_state  # noqa: E402
from early_prune.compare import conditions  # noqa: E402
from early_prune.criteria import gradient, magnitude  # noqa: E402
from early_prune.dependency import trace  # noqa: E402
from early_prune.masks import Masks  # noqa: E402
from early_prune.optimizers import Unreadable, layout_of, load_memory, memory_state  # noqa: E402
from early_prune.regrowth import by_gradient  # noqa: E402, F401  gives masks their `swap`
from early_prune.surgery import cut  # noqa: E402

RESULTS = Path(__file__).resolve().parent.parent/'nbs'/'studies'/'results'/'optimizers.jsonl'
STEPS,BOUND = 12,1e-10 # steps after the cut, and how far a weight may be from the twin's in float64
OWN = partial,FunctionType,BuiltinFunctionType,ModuleType,type,torch.dtype,torch.device,int,float,str

# The optimizers -----------------------------------------------------------------------------------

@dataclass(frozen=True)
class Entry:
    "An optimizer of the zoo."
    name:str     # `library/name`, the key in the file of results
    make:object  # `(net) -> optimizer`, or a list of optimizers

    @property
    def library(self): return self.name.partition('/')[0]

def _of(cls, **kwargs): return lambda net: cls(net.parameters(), **kwargs)

def _matrices(net): return [p for p in net.parameters() if p.ndim==2]
def _others(net): return [p for p in net.parameters() if p.ndim!=2]

def _torch():
    o = torch.optim
    plain = {nm:getattr(o, nm) for nm in ('SGD', 'Adam', 'AdamW', 'NAdam', 'RAdam', 'Adamax', 'Adagrad', 'Adadelta', 'RMSprop', 'Rprop',
                                          'ASGD', 'Adafactor', 'LBFGS')}
    found = {nm:_of(c) for nm,c in plain.items()}
    for nm in ('SGD', 'Adam', 'AdamW', 'NAdam', 'RAdam', 'Adamax', 'Adagrad', 'Adadelta', 'RMSprop', 'Rprop', 'ASGD', 'Adafactor'):
        found[f'{nm} foreach'] = _of(plain[nm], foreach=True)
    for nm in ('SGD', 'Adam', 'AdamW', 'Adagrad'): found[f'{nm} fused'] = _of(plain[nm], fused=True)
    for nm in ('Adam', 'AdamW'): found[f'{nm} amsgrad'] = _of(plain[nm], amsgrad=True)
    found |= {'SGD momentum':_of(o.SGD, lr=.05, momentum=.9), 'SGD nesterov':_of(o.SGD, lr=.05, momentum=.9, nesterov=True, weight_decay=1e-3),
              'RMSprop centered':_of(o.RMSprop, centered=True, momentum=.9), 'Adagrad start':_of(o.Adagrad, initial_accumulator_value=.1),
              'SGD maximize':_of(o.SGD, lr=1e-3, momentum=.9, maximize=True), 'Adam wd':_of(o.Adam, weight_decay=.1),
              'SWA of SGD':_of(o.SGD, lr=.05, momentum=.5, dampening=.1),
              'Muon and AdamW':lambda net: [o.Muon(_matrices(net), lr=1e-2), o.AdamW(_others(net))],
              'two groups':lambda net: o.AdamW([dict(params=_matrices(net), weight_decay=.1), dict(params=_others(net), lr=1e-2)])}
    return found

def _fastai():
    f = import_module('fastai.optimizer')
    def two(net): return [_matrices(net), _others(net)]
    found = {nm:(lambda net, c=getattr(f, nm): c(two(net), 1e-2)) for nm in ('SGD', 'Adam', 'RAdam', 'RMSProp', 'QHAdam', 'Larc', 'Lamb', 'ranger')}
    wrap = lambda net,c,**kw: f.OptimWrapper(two(net), c, **kw)
    return found | {'SGD mom':lambda net: f.SGD(two(net), 1e-2, mom=.9, wd=.1), 'Adam L2':lambda net: f.Adam(two(net), 1e-2, wd=.1, decouple_wd=False),
        'Lookahead of SGD':lambda net: f.Lookahead(f.SGD(two(net), 1e-2, mom=.9)), 'Lookahead of Adam':lambda net: f.Lookahead(f.Adam(two(net), 1e-2)),
        'OptimWrapper AdamW':lambda net: wrap(net, torch.optim.AdamW, lr=1e-2), 'OptimWrapper Adafactor':lambda net: wrap(net, torch.optim.Adafactor),
        'Lookahead of OptimWrapper':lambda net: f.Lookahead(wrap(net, torch.optim.AdamW, lr=1e-2))}

def _timm():
    t = import_module('timm.optim')
    make = lambda nm: lambda net: t.create_optimizer_v2(net, nm, lr=1e-2)
    names = [nm for nm in t.list_optimizers() if not nm.startswith(('bnb', 'fused'))]
    return {nm:make(nm) for nm in names} | {f'lookahead {nm}':make(f'lookahead_{nm}') for nm in ('sgd', 'adamw', 'lion', 'adafactor', 'muon', 'lamb', 'kron')}

def _pytorch_optimizer():
    po = import_module('pytorch_optimizer')
    wd = dict(weight_decay=1e-2)
    base = torch.optim.AdamW
    special = {'Lookahead':lambda net: po.Lookahead(base(net.parameters())), 'SAM':lambda net: po.SAM(net.parameters(), base),
        'GSAM':lambda net: po.SAM(net.parameters(), base, adaptive=True), 'WSAM':lambda net: po.WSAM(net, net.parameters(), base),
        'LookSAM':lambda net: po.LookSAM(net.parameters(), base), 'FriendlySAM':lambda net: po.FriendlySAM(net.parameters(), base),
        'ScheduleFreeWrapper':lambda net: po.ScheduleFreeWrapper(base(net.parameters())), 'TRAC':lambda net: po.TRAC(base(net.parameters())),
        'OrthoGrad':lambda net: po.OrthoGrad(base(net.parameters())), 'PCGrad':lambda net: po.PCGrad(base(net.parameters())),
        'Lookahead of SGD':lambda net: po.Lookahead(torch.optim.SGD(net.parameters(), 1e-2, momentum=.9)),
        'Lookahead of AdaBelief':lambda net: po.Lookahead(po.AdaBelief(net.parameters())),
        'ScheduleFreeWrapper of Lion':lambda net: po.ScheduleFreeWrapper(po.Lion(net.parameters()))}
    special |= {'adammini':lambda net: po.AdamMini(net), 'bsam':lambda net: po.BSAM(net.parameters(), num_data=70),
        'ranger21':lambda net: po.Ranger21(net.parameters(), num_iterations=1000), 'lomo':lambda net: po.LOMO(net), 'adalomo':lambda net: po.AdaLOMO(net),
        'spectralsphere':lambda net: [po.SpectralSphere(_matrices(net)), base(_others(net))]}
    muons = {'muon', 'adamuon', 'normuon', 'muonclip', 'adago', 'distributedmuon'}
    split = lambda nm: lambda net: po.load_optimizer(nm)([dict(params=_matrices(net), use_muon=True), dict(params=_others(net), use_muon=False)])
    found = {nm:split(nm) if nm in muons else (lambda net, nm=nm: po.load_optimizer(nm)(net.parameters())) for nm in po.get_supported_optimizers()}
    decayed = {f'{nm} wd':(lambda net, nm=nm: po.load_optimizer(nm)(net.parameters(), **wd)) for nm in ('adabelief', 'adopt', 'lion', 'ranger', 'came', 'sm3')}
    return found | special | decayed

def _bitsandbytes():
    b = import_module('bitsandbytes').optim
    names = [nm for nm in dir(b) if nm[0].isupper() and nm not in ('GlobalOptimManager',) and isinstance(getattr(b, nm), type)]
    return {nm:_of(getattr(b, nm), lr=1e-3, **(dict(momentum=.9) if nm.startswith(('SGD', 'LARS')) else {})) for nm in names}

def _heavyball():
    h = import_module('heavyball')
    import_module('heavyball.utils').compile_mode = None # no compiler for each optimizer
    names = [nm for nm in dir(h) if nm[0].isupper() and isinstance(getattr(h, nm), type) and issubclass(getattr(h, nm), torch.optim.Optimizer)]
    return {nm:_of(getattr(h, nm)) for nm in names}

def _torchao():
    a = import_module('torchao.optim')
    return {nm:_of(getattr(a, nm)) for nm in ('Adam4bit', 'Adam8bit', 'AdamFp8', 'AdamW4bit', 'AdamW8bit', 'AdamWFp8')}

def _schedulefree():
    s = import_module('schedulefree')
    found = {nm:_of(getattr(s, nm)) for nm in dir(s) if nm[0].isupper() and 'Wrapper' not in nm and isinstance(getattr(s, nm), type)}
    base = lambda net: torch.optim.SGD(net.parameters(), lr=.05)
    return found | {'ScheduleFreeWrapper':lambda net: s.ScheduleFreeWrapper(base(net))}

def _small():
    lion,prodigy = import_module('lion_pytorch'),import_module('prodigyopt')
    return {'lion-pytorch/Lion':_of(lion.Lion, lr=1e-3), 'lion-pytorch/Lion wd':_of(lion.Lion, lr=1e-3, weight_decay=.1),
            'prodigyopt/Prodigy':_of(prodigy.Prodigy), 'prodigyopt/Prodigy sliced':_of(prodigy.Prodigy, slice_p=11)}

LIBRARIES = dict(torch=('torch', _torch), fastai=('fastai', _fastai), timm=('timm', _timm), pytorch_optimizer=('pytorch_optimizer', _pytorch_optimizer),
                 bitsandbytes=('bitsandbytes', _bitsandbytes), heavyball=('heavyball', _heavyball), torchao=('torchao', _torchao),
                 schedulefree=('schedulefree', _schedulefree))

def zoo():
    "`{name: Entry}` of all libraries that are installed."
    found = {}
    for library,(module,make) in LIBRARIES.items():
        if find_spec(module): found |= {f'{library}/{nm}':make_one for nm,make_one in make().items()}
    if find_spec('lion_pytorch') and find_spec('prodigyopt'): found |= _small()
    return {nm:Entry(nm, make) for nm,make in found.items()}

# The training -------------------------------------------------------------------------------------

WIDTHS = 8,16,24,20 # all sizes of a weight differ, so that an axis of the memory can be one dimension only
KEPT = tuple(np.sort(np.random.default_rng(0).permutation(n)[:n//2]) for n in WIDTHS)

def data(n=70, seed=7):
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(n)%7
    return torch.randn(7, 1, 8, 8, generator=g)[y]+.7*torch.randn(n, 1, 8, 8, generator=g),y

def network(a=WIDTHS[0], b=WIDTHS[1], c=WIDTHS[2], d=WIDTHS[3], seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, a, 3, padding=1, bias=False), nn.BatchNorm2d(a), nn.ReLU(), nn.Conv2d(a, b, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(b), nn.ReLU(), nn.Flatten(), nn.Linear(b*16, c), nn.ReLU(), nn.Linear(c, d), nn.ReLU(), nn.Linear(d, 7))

def kept():
    "By hand: which indices of each dimension of each tensor stay."
    a,b,c,d = KEPT
    columns = (b[:,None]*16+np.arange(16)).ravel() # a channel is 16 numbers once it is flattened
    return {'0.weight':{0:a}, '1':{0:a}, '3.weight':{0:b, 1:a}, '4':{0:b}, '7.weight':{0:c, 1:columns}, '7.bias':{0:c},
            '9.weight':{0:d, 1:c}, '9.bias':{0:d}, '11.weight':{1:d}}

def kept_of(nm, t):
    found = kept().get(nm, kept().get(nm.split('.')[0], {})) if t.ndim else {}
    return [found.get(i, np.arange(n)) for i,n in enumerate(t.shape)]

def tops(opt): return opt if isinstance(opt, list) else [opt]

def mode(opt, name):
    for o in tops(opt):
        if hasattr(o, name): getattr(o, name)()

class Training:
    "A network, its optimizer and the images; every step has its own seed and begins with gradients."
    def __init__(self, net, opt, dtype):
        self.net,self.opt,self.n,(x,self.y) = net,opt,0,data()
        self.x,self.masks,self.closed = x.to(dtype),None,False

    def loss(self): return F.cross_entropy(self.net(self.x), self.y)

    def closure(self):
        for p in self.net.parameters(): p.grad = None
        loss = self.loss()
        loss.backward(create_graph=self.closed=='graph')
        if self.masks is not None: self.masks.mask_grads()
        return loss

    def step(self, n=1):
        for _ in range(n):
            torch.manual_seed(self.n)
            np.random.seed(self.n)
            self.n += 1
            self.closure() # also where the step is given one: SAM and its kin read the gradients that are there
            args = [self.closure] if self.closed is True else []
            if self.masks is not None: self.masks.step(self.opt, *args)
            else:
                for o in tops(self.opt): o.step(*args)
        return self

def begin(entry, dtype, closed, seed=0):
    net = network(seed=seed).to(dtype)
    torch.manual_seed(1)
    training = Training(net, entry.make(net), dtype)
    mode(training.opt, 'train')
    training.closed = closed
    return training

WAYS = [(dtype, closed) for dtype in (torch.float64, torch.float32) for closed in (False, True, 'graph')]

def way(entry):
    "The type and the kind of step with which the optimizer runs at all, for as many steps as the checks take."
    said = ''
    for dtype,closed in WAYS:
        try: training = begin(entry, dtype, closed).step(40)
        except Exception as e: said = said or f'{type(e).__name__}: {str(e):.120}'
        else: return dtype,closed,all(bool(p.isfinite().all()) for p in training.net.parameters()),''
    return None,None,False,said

# A twin, made by hand from what was there before the cut --------------------------------------------

class Hand:
    "Copies an optimizer with all it holds onto a small network; each tensor is cut by the indices of its parameter."
    def __init__(self, net, small, renewed):
        self.names = {id(p):nm for nm,p in net.named_parameters()}
        self.new,self.keep = {id(p):q for p,q in zip(net.parameters(), small.parameters())},[net]
        self.params,self.renewed,self.done = list(net.parameters()),renewed,{id(net):small}

    def __call__(self, o, owner=None):
        if id(o) in self.new: return self.new[id(o)]
        if id(o) in self.done: return self.done[id(o)]
        if isinstance(o, torch.Tensor): new = self.tensor(o, owner)
        elif isinstance(o, MethodType): new = MethodType(o.__func__, self(o.__self__))
        elif isinstance(o, torch.Generator): new = torch.Generator().set_state(o.get_state())
        elif isinstance(o, random.Random): new = copy.deepcopy(o)
        elif isinstance(o, OWN) or not (isinstance(o, (dict, list, tuple, deque, L)) or hasattr(o, '__dict__')): new = o
        elif isinstance(o, dict): return self.table(o, owner)
        elif isinstance(o, (list, tuple, deque, L)): new = self.sequence(o, owner)
        else: return self.thing(o, owner)
        self.done[id(o)] = new
        self.keep.append(o)
        return new

    def tensor(self, t, owner):
        whole = owner is None or all(len(k)==n for k,n in zip(kept_of(self.names[id(owner)], owner), owner.shape))
        if whole or t.numel()<=1: return copy.deepcopy(t.detach())
        if type(t) is not torch.Tensor: raise ValueError(f'{type(t).__name__} is not cut by hand')
        keep,shape = kept_of(self.names[id(owner)], owner),tuple(owner.shape)
        idxs = [self.axis(n, keep, shape, t.ndim==len(shape) and i) for i,n in enumerate(t.shape)]
        return t.detach()[np.ix_(*idxs)].clone()

    def axis(self, n, keep, shape, at):
        if n==1: return np.arange(1)
        if at is not False and shape[at]==n: return keep[at]
        for i in range(len(shape)):
            for j in range(i+1, len(shape)+1):
                if int(np.prod(shape[i:j]))==n: return np.arange(n).reshape(shape[i:j])[np.ix_(*keep[i:j])].ravel()
        raise ValueError(f'an axis of {n} numbers is none of {shape}')

    def table(self, o, owner):
        new = copy.copy(o)
        self.done[id(o)] = new
        new.clear()
        by_id = {id(p):p for p in self.params}
        for k,v in o.items():
            p = k if id(k) in self.new else by_id.get(k) if type(k) is int else None
            if p is not None and id(p) in self.renewed: continue
            key = k if p is None else self.new[id(p)] if p is k else id(self.new[id(p)])
            new[key] = self(v, owner if p is None else p)
        return new

    def sequence(self, o, owner):
        whose = [owner]*len(o)
        if owner is None: # in the order of parameters of this shape
            waiting = [p for p in self.params]
            for i,v in enumerate(o):
                if not isinstance(v, torch.Tensor) or id(v) in self.new: continue
                p = next((p for p in waiting if p.shape==v.shape), None)
                if p is not None: whose[i] = p; waiting = [q for q in waiting if q is not p]
        made = [self(v, p) for v,p in zip(o, whose)]
        if isinstance(o, tuple) and hasattr(o, '_fields'): return type(o)(*made)
        return deque(made, o.maxlen) if isinstance(o, deque) else type(o)(made)

    def thing(self, o, owner):
        new = type(o).__new__(type(o))
        self.done[id(o)] = new
        for k,v in vars(o).items(): vars(new)[k] = self(v, owner)
        return new

def small_twin(net):
    small = network(*map(len, KEPT)).to(next(net.parameters()).dtype)
    for (nm,t),new in zip([*net.named_parameters(), *net.named_buffers()], [*small.parameters(), *small.buffers()]):
        new.data = t.detach()[np.ix_(*kept_of(nm, t))].clone() if t.ndim else t.detach().clone()
    return small

def remembered(opt, params):
    "`id` of the parameters of which something longer than a number is held in a table."
    found = set()
    def look(o, depth=0):
        for v in (vars(o).values() if hasattr(o, '__dict__') else o):
            if isinstance(v, dict): found.update(id(k) for k,u in v.items() if isinstance(k, torch.Tensor) and u is not None and (torch.is_tensor(u) or u))
            elif depth<4 and hasattr(v, 'param_groups'): look(v, depth+1)
            elif depth<4 and isinstance(v, list) and v and hasattr(v[0], 'param_groups'): look(v, depth+1)
    look(tops(opt))
    for o in tops(opt): look(o)
    return {id(p) for p in params} & found

# The checks ---------------------------------------------------------------------------------------

def check_cut(entry, dtype, closed):
    "Cut half of the neurons after five steps; then twelve steps beside the twin."
    t = begin(entry, dtype, closed).step(5)
    groups = trace(t.net, t.x[:2])
    keep = {g.name:k for g,k in zip(groups, KEPT)}
    before,shapes = copy.deepcopy(t.net.state_dict()),[p.shape for p in t.net.parameters()]
    for p in t.net.parameters(): p.grad = None
    spare = begin(entry, dtype, closed).step(5) # the same training again: its memory is what was there before
    known = remembered(t.opt, t.net.parameters())
    try: cut(t.net, groups, keep, t.opt)
    except Unreadable as e:
        same = shapes==[p.shape for p in t.net.parameters()] and all(torch.equal(v, before[k]) for k,v in t.net.state_dict().items())
        return dict(how='refused' if same else 'broken', why=str(e)[:200])
    gone = known-remembered(t.opt, t.net.parameters())
    renewed = {id(q) for p,q in zip(t.net.parameters(), spare.net.parameters()) if id(p) in gone}
    small = small_twin(spare.net)
    for p in spare.net.parameters(): p.grad = None
    hand = Hand(spare.net, small, renewed)
    try:
        twin = Training(small, [hand(o) for o in tops(spare.opt)], dtype)
        for p,q in zip(spare.net.parameters(), small.parameters()): vars(q).update({k:hand(v, p) for k,v in vars(p).items()})
    except ValueError as e: return dict(how='unchecked', why=str(e)) | _alone(t)
    twin.closed,twin.n = closed,t.n
    gap = 0.
    for _ in range(STEPS):
        t.step(); twin.step()
        gap = max([gap, *((a-b).detach().abs().max().item() for a,b in zip(t.net.parameters(), twin.net.parameters()))])
    gap = gap if gap==gap else float('inf')
    return dict(how='equal' if gap<=(BOUND if dtype==torch.float64 else 1e-4) else 'differs', gap=gap, renewed=len(renewed), of=len(known))

def _alone(t):
    t.step(STEPS)
    return dict(finite=all(bool(p.isfinite().all()) for p in t.net.parameters()))

def off(masks): return sum(int((p.detach()[~masks[nm]]!=0).sum()) for nm,p in masks.params.items())

def check_masks(entry, dtype, closed):
    "Prune nine of ten weights after eight steps, go on for 15, look in both modes; then swap a third, and go on for 15."
    t = begin(entry, dtype, closed).step(8)
    try: masks = t.masks = Masks(t.net).update(magnitude, .9).apply(t.opt)
    except Unreadable as e: return dict(how='refused', why=str(e)[:200])
    wrong = 0
    for _ in range(15): wrong = max(wrong, off(t.step().masks))
    mode(t.opt, 'eval')
    wrong = max(wrong, off(masks))
    mode(t.opt, 'train')
    t.closure()
    masks.swap(.3, gradient).apply(t.opt)
    for _ in range(15): wrong = max(wrong, off(t.step().masks))
    finite = all(bool(p.isfinite().all()) for p in t.net.parameters())
    return dict(how='zero' if not wrong else 'off zero', wrong=wrong, finite=finite, holds=layout_of(t.opt).holds, loss=t.loss().item())

def check_resume(entry, dtype, closed):
    "Write what is there after seven steps into a file, and go on for six in another network."
    t = begin(entry, dtype, closed).step(7)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, 'x.safetensors')
        try: write_state(path, dict(optimizer=memory_state(t.opt), net=dict(t.net.state_dict())))
        except Unreadable as e: return dict(how='refused', why=str(e)[:200])
        state = read_state(path)
    again = begin(entry, dtype, closed, seed=5)
    again.net.load_state_dict(state['net'])
    load_memory(again.opt, state['optimizer'])
    again.n = t.n
    t.step(6); again.step(6)
    same = all(torch.equal(a, b) for a,b in zip(t.net.parameters(), again.net.parameters()))
    return dict(how='same bits' if same else 'differs')

CHECKS = dict(cut=check_cut, masks=check_masks, resume=check_resume)

def visit(entry):
    "The record of one optimizer."
    start,(dtype,closed,finite,said) = time.perf_counter(),way(entry)
    record = dict(name=entry.name, library=entry.library)
    if dtype is None: return record | dict(runs=False, why=said)
    record |= dict(runs=True, dtype=str(dtype).removeprefix('torch.'), closure=closed, dense_finite=finite)
    for nm,check in CHECKS.items():
        try: record[nm] = check(entry, dtype, closed)
        except Exception as e: record[nm] = dict(how='crash', why=f'{type(e).__name__}: {str(e):.160}')
    return record | dict(seconds=round(time.perf_counter()-start, 2))

# The file -----------------------------------------------------------------------------------------

def newest(path=RESULTS):
    "`{name: record}`: of several lines of one optimizer the last."
    return {r['name']:r for r in map(json.loads, path.read_text().splitlines())} if path.exists() else {}

PACKAGES = {nm:nm for nm in ('torch', 'fastai', 'timm', 'bitsandbytes', 'heavyball', 'torchao', 'schedulefree')} | {
    'pytorch_optimizer':'pytorch_optimizer', 'lion-pytorch':'lion-pytorch', 'prodigyopt':'prodigyopt'}

def main(argv=None):
    "Visit the optimizers that are not in the file yet."
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('names', nargs='*', help='parts of names; default: all')
    parser.add_argument('--again', action='store_true', help='also those that are in the file')
    parser.add_argument('--path', type=Path, default=RESULTS)
    args = parser.parse_args(argv)
    known = newest(args.path)
    for nm,entry in zoo().items():
        if args.names and not any(o in nm for o in args.names) or nm in known and not args.again: continue
        record = visit(entry) | dict(version=version(PACKAGES[entry.library])) | dict(conditions=conditions(torch.device('cpu')))
        with open(args.path, 'a') as f: f.write(json.dumps(record)+'\n')
        short = {k:record[k].get('how') for k in CHECKS if k in record}
        print(f'{nm:45} {short or record.get("why")}', flush=True)
    print(Counter(r.get('cut', {}).get('how', 'does not run') for r in newest(args.path).values()))
    return 0

if __name__=='__main__': sys.exit(main())
