"""Everything that wants a GPU, in slices of at most nine minutes: `python bench/gpu.py`, again and again until it says *all done*.

First correctness on CUDA against the CPU, then `bench/run.py --device cuda`, then trainings at the scale of the papers.
Without a GPU it says so and does its dry run, which is `--device cpu --quick`."""
import argparse
import json
import sys
import warnings
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from shutil import rmtree
from subprocess import TimeoutExpired, run
from tempfile import TemporaryDirectory
from time import perf_counter

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)] # a checkout is enough, nothing is installed
NEEDED = 'torch', 'torchvision', 'fastai', 'fastprogress', 'filelock', 'joblib', 'scipy', 'safetensors', 'pandas', 'matplotlib'
if missing := [nm for nm in NEEDED if find_spec(nm) is None]: sys.exit(f'Missing packages: {", ".join(missing)}')
warnings.filterwarnings('ignore', message='.*torch.jit.script.*')

import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from fastai.callback.core import Callback  # noqa: E402
from fastai.callback.fp16 import MixedPrecision  # noqa: E402
from fastai.torch_core import set_seed  # noqa: E402
from measure import child_env, machine  # noqa: E402
from run import SECTIONS  # noqa: E402

from early_prune.callbacks import SparsifyCallback  # noqa: E402
from early_prune.checkpoint import CheckpointCallback  # noqa: E402
from early_prune.compare import Results, Run, conditions, make_learner, make_runs, train_run  # noqa: E402
from early_prune.criteria import magnitude  # noqa: E402
from early_prune.dependency import trace  # noqa: E402
from early_prune.distributions import erk, global_  # noqa: E402
from early_prune.masks import Masks  # noqa: E402
from early_prune.models import get_model  # noqa: E402
from early_prune.ranking import Neurons, rank, scores  # noqa: E402
from early_prune.regrowth import by_gradient  # noqa: E402
from early_prune.surgery import cut  # noqa: E402

FAILURES = (ArithmeticError, AttributeError, LookupError, NotImplementedError, RuntimeError, TypeError, ValueError)

class OutOfTime(Exception): pass

class Deadline(Callback):
    "End a training between two epochs when the slice is over; the checkpoint of the epoch is written by then."
    run_valid = False
    def __init__(self, left): self.left,self.stepped = left,False
    def state(self): return {} # the time that is left is this process's own, and no checkpoint's
    def load_state(self, state): return self
    def before_train(self): self.stepped = False # an epoch taken up at its end has no step, and does not count
    def after_step(self): self.stepped = True
    def after_epoch(self):
        if self.stepped and self.left()<=0 and self.epoch<self.n_epoch-1: raise OutOfTime('the slice is over')

# ------------------------------------------------------------------ correctness: the largest difference to the CPU
def _network(device, arch='resnet8', form=torch.contiguous_format):
    torch.manual_seed(0)
    net,x = get_model(arch, n_in=3),torch.randn(16, 3, 32, 32)
    F.cross_entropy(net(x), torch.arange(16)%10).backward() # gradients of the CPU on both sides: the choice is compared
    grads = {nm:p.grad for nm,p in net.named_parameters()}
    net.to(device, memory_format=form)
    for nm,p in net.named_parameters(): p.grad = grads[nm].to(device).clone(memory_format=torch.preserve_format)
    return net,x.to(device, memory_format=form)

def _difference(mine, theirs):
    return max(float((mine[nm].detach().cpu().float()-theirs[nm].detach().cpu().float()).abs().max()) for nm in theirs)

def _masks(device, form=torch.contiguous_format):
    net,_ = _network(device, form=form)
    masks = Masks(net)
    masks.update(magnitude, .5).update(magnitude, dict.fromkeys(masks.params, .9)).apply()
    return masks.masks | dict(net.named_parameters())

def _regrowth(device):
    masks = Masks(_network(device)[0]).update(magnitude, .9)
    return masks.swap(.3).swap(.3, together=True).masks

def _surgery(device):
    net,x = _network(device)
    optimizer = torch.optim.SGD(net.parameters(), lr=.01, momentum=.9)
    optimizer.step()
    groups = trace(net, x[:2])
    cut(net, groups, rank(groups, scores(net, groups, magnitude), Neurons(.5), net, (x[:2],)), optimizer)
    return dict(net.named_parameters()) | dict(output=net.eval()(x))

def _learner(device, epochs=2):
    return make_learner(Run(arch='resnet8', epochs=epochs, limit=256), device=device)

def _swaps(): return SparsifyCallback(.9, start=.9, distribution=erk, every=2, regrowth=by_gradient)

def _fit(learn, *cbs, epochs=2):
    with learn.no_bar(), learn.no_logging(): learn.fit(epochs, 1e-2, cbs=list(cbs))
    return dict(learn.model.named_parameters())

def checkpoint(device):
    "A training that was stopped and continued against the same training in one go, both on `device`."
    whole = _fit(_learner(device), _swaps())
    with TemporaryDirectory() as folder:
        path = Path(folder)/'fit.safetensors'
        try: _fit(_learner(device), _swaps(), CheckpointCallback(path), Deadline(lambda: 0))
        except OutOfTime: return _difference(_fit(_learner(device), _swaps(), CheckpointCallback(path, resume=True)), whole)
    raise ValueError('the training was not stopped')

def _mixed(mode):
    def check(device):
        "Share of pruned weights that are not zero after a training in mixed precision, and of losses that are not finite."
        learn,method = _learner(device),SparsifyCallback(.9, distribution=global_, every=2)
        with warnings.catch_warnings():
            warnings.filterwarnings('ignore', message='.*CUDA is not available.*')
            _fit(learn, method, MixedPrecision(mode))
        awake = [((p.detach()!=0) & ~method.masks[nm]).float().mean() for nm,p in method.masks.params.items()]
        lost = [float(not torch.isfinite(o)) for o in learn.recorder.losses]
        return float(max(awake))+max(lost)+abs(round(method.masks.sparsity-.9, 3))
    return check

def _one_process(device):
    backend = 'nccl' if torch.device(device).type=='cuda' else 'gloo'
    with TemporaryDirectory() as folder:
        dist.init_process_group(backend, init_method=f'file://{folder}/meet', rank=0, world_size=1)
        try:
            net,x = _network(device)
            net.zero_grad()
            together = torch.nn.parallel.DistributedDataParallel(net)
            masks = Masks(net).update(magnitude, .9).apply()
            F.cross_entropy(together(x), torch.arange(16, device=device)%10).backward()
            masks.mask_grads()
            return masks.masks | {nm:p.grad for nm,p in net.named_parameters()}
        finally: dist.destroy_process_group()

def _alone(device):
    net,x = _network(device)
    net.zero_grad()
    masks = Masks(net).update(magnitude, .9).apply()
    F.cross_entropy(net(x), torch.arange(16, device=device)%10).backward()
    masks.mask_grads()
    return masks.masks | {nm:p.grad for nm,p in net.named_parameters()}

def _against_cpu(f, theirs=None): return lambda device: _difference(f(device), (theirs or f)('cpu'))

CHECKS = { # name: (largest difference, what it may be)
    'masks'        :(_against_cpu(_masks), 0.),
    'channels_last':(_against_cpu(lambda d: _masks(d, torch.channels_last), _masks), 0.),
    'regrowth'     :(_against_cpu(_regrowth), 0.),
    'surgery'      :(_against_cpu(_surgery), 1e-3),
    'checkpoint'   :(checkpoint, 1e-4),
    'fp16'         :(_mixed('fp16'), 0.),
    'bf16'         :(_mixed('bf16'), 0.),
    'one process'  :(_against_cpu(_one_process, _alone), 1e-3)}

def checks(device, out):
    "Run what is not in the file; one line for each check in it."
    done = {r['key'] for r in Results(out).read()}
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    for nm,(check, allowed) in CHECKS.items():
        if nm in done: continue
        set_seed(0, reproducible=True)
        start = perf_counter()
        try: found = dict(difference=check(device))
        except FAILURES as e: found = dict(difference=None, said=f'{type(e).__name__}: {e}')
        ok = found['difference'] is not None and found['difference']<=allowed
        Results(out).add(dict(key=nm, ok=ok, allowed=allowed, seconds=perf_counter()-start, machine=machine()) | found)
    failed = [r['key'] for r in Results(out).read() if not r['ok']]
    print(f'correctness: {len(CHECKS)-len(failed)} of {len(CHECKS)} as on the CPU' + (f', not {", ".join(failed)}' if failed else ''))

# ------------------------------------------------------------------ speed: one section of `run.py` after the other
def measure(device, out, quick, left):
    "Run the sections that have no file; whether all have."
    out.mkdir(parents=True, exist_ok=True)
    whole = left()
    for nm in ['idle', 'upkeep'] if quick else SECTIONS:
        path,draft = out/f'{nm}.json',out/f'{nm}.json.tmp'
        if path.exists(): continue
        if left()<whole/2 and not quick: return False # a section gets at least half a slice
        cmd = [sys.executable, '-W', 'ignore', str(ROOT/'bench'/'run.py'), nm, '--device', device, '--out', str(draft)]
        try: done = run(cmd+['--quick']*quick, env=child_env(), capture_output=True, text=True, timeout=max(1, left()))
        except TimeoutExpired: failed = f'not finished after {left():.0f} s of {whole:.0f}'
        else: failed = (done.stderr.strip().splitlines() or ['no message'])[-1] if done.returncode else ''
        if failed: draft.write_text(json.dumps(dict(failed=failed, machine=machine()))+'\n')
        draft.rename(path)
        print(f'speed, {nm}: {failed or "measured"}')
    return True

# ------------------------------------------------------------------ trainings at the scale of the papers
def grid(quick):
    "What to train, the most telling first: 160 epochs of all of CIFAR-10 as in the papers, in bfloat16, data on the device."
    if quick: return make_runs(['dense', 'granet'], .9, 1, arch='small_cnn', epochs=2, limit=256, training='sgd_steps', lr=.05)
    papers = dict(data='cifar10', epochs=160, bs=128, valid=.1, lr=.1, training='sgd_steps', bf16=True, channels_last=True)
    recipes = ['dense', 'gmp', 'granet', 'rigl', 'static_erk', 'set', 'granet_sparse', 'one_cycle', 'one_shot', 'iterative', 'agp']
    runs = [r for s in (.95, .98, .9) for r in make_runs(recipes, s, 3, arch=['cifar_resnet18', 'small_vgg16'], **papers)]
    return list(dict.fromkeys(runs))

def train(device, out, quick, left):
    "Go on with the grid until the slice is over; whether all is trained."
    results,runs = Results(out),grid(quick)
    for todo in runs:
        if todo.key in {r['key'] for r in (*results.read(), *results.failed())}: continue
        if left()<=0: return False
        folder = out.with_name(f'.{todo.key}.state')
        folder.mkdir(parents=True, exist_ok=True)
        spent = folder/'seconds'
        before,start = float(spent.read_text()) if spent.exists() else 0.,perf_counter()
        learn = make_learner(todo, device=device)
        learn.add_cbs([CheckpointCallback(folder/'fit.safetensors', resume=True), Deadline(left)])
        try:
            with learn.no_bar(), learn.no_logging(): record = train_run(learn, todo)
        except OutOfTime:
            spent.write_text(str(before+perf_counter()-start))
            return False
        except FAILURES as e:
            results.add(asdict(todo) | dict(key=todo.key, error=f'{type(e).__name__}: {e}') | conditions(learn.dls.device))
            continue
        results.add(record | dict(seconds=record['seconds']+before, cpu_seconds=None if before else record['cpu_seconds']))
        rmtree(folder)
        print(f'trained {todo}: {record["accuracy"]:.4f}')
    return True

def main(argv=None):
    "Read the command line and do one slice."
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--device', default='cuda')
    p.add_argument('--quick', action='store_true', help='A dry run on small networks, in a folder that is thrown away')
    p.add_argument('--minutes', type=float, default=8.5, help='Length of the slice')
    args = p.parse_args(argv)
    end = perf_counter()+60*args.minutes
    if args.device=='cuda' and not torch.cuda.is_available():
        print('No GPU: PyTorch finds no CUDA device here. This is the dry run, `python bench/gpu.py --device cpu --quick`.')
        args.device,args.quick = 'cpu',True
    def left(): return end-perf_counter()
    with TemporaryDirectory() as folder:
        speed = Path(folder)/'speed' if args.quick else ROOT/'bench'/'results'/args.device
        out = Path(folder)/'trained.jsonl' if args.quick else ROOT/'nbs'/'studies'/'results'/f'cifar10_{args.device}.jsonl'
        checks(args.device, speed.with_name(f'{speed.name}_checks.jsonl'))
        done = measure(args.device, speed, args.quick, left) and train(args.device, out, args.quick, left)
    print('all done' if done else 'the slice is over: call me again')
    return 0

if __name__=='__main__': sys.exit(main())
