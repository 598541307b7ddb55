"Measure early_prune against other libraries: `python bench/run.py`, or `--quick` for a smoke test."
import argparse
import json
import os
import sys
import warnings
from operator import ge, gt, le, lt
from pathlib import Path

warnings.filterwarnings('ignore', message='.*torch.jit.script.*')

from checkpoint import SIZE, WRITE, checkpoint  # noqa: E402
from contenders import EarlyPrune, Fasterai, FasteraiLocal, GraNet, have  # noqa: E402
from early import AFTER, WATCHED, early  # noqa: E402
from examples import examples  # noqa: E402
from idle import idle  # noqa: E402
from imports import imports, longest  # noqa: E402
from measure import device, find, machine, show  # noqa: E402
from memory import METHOD, can_measure, memory  # noqa: E402
from regrow import regrow  # noqa: E402
from selecting import select, select_each, ties  # noqa: E402
from step import MASKS, step  # noqa: E402
from surgery import TorchPruning, surgery  # noqa: E402
from training import training  # noqa: E402
from upkeep import upkeep  # noqa: E402

from early_prune.ranking import taylor_fo  # noqa: E402

PEERS = 'fasterai', 'timm', 'torch_pruning'

def quick_select(): return select('tiny', 1, (.5,)) + select_each('tiny', 1, (.5,)) + ties('tiny')
def full_select(): return select() + select_each() + ties()
def full_training(): return training(bs=4 if device().type=='cpu' else 64)
def quick_imports(): return imports(('torch', 'early_prune', 'early_prune.schedules'), 1)

SECTIONS = {
    'select' :(full_select, quick_select),
    'regrow' :(regrow,      lambda: regrow('tiny', 1, (.5,))),
    'upkeep' :(upkeep,      lambda: upkeep(['tiny'], 1, 2)),
    'idle'   :(idle,        lambda: idle(1, 5)),
    'surgery':(surgery,     lambda: surgery(dict(tiny=1), dict(tiny=1), 0)),
    'early'  :(early,       lambda: early([('tiny', 4, 16)], [.3], 1, 1, taylor_fo)),
    'step'   :(step,        lambda: step('resnet8', 8, 2, 16, 1, 0)),
    'training':(full_training, lambda: training('resnet18', 2, 32, (0., .5), 2)),
    'examples':(examples,   lambda: examples(1, 1, 1, 'resnet18', 64)),
    'checkpoint':(checkpoint, lambda: checkpoint(['tiny'], 1)),
    'memory' :(memory,      lambda: memory('wide', 1)),
    'imports':(imports,     quick_imports)}

def _middle(rows, field='ratio', **where): return [r[field][1] for r in find(rows, **where)]

def _upkeep_gains(rows, peer):
    return [p/e for r in find(rows, table='upkeep', what=peer)
            for e in _middle(rows, 'value', table='upkeep', case=r['case'], what=EarlyPrune.name) for p in [r['value'][1]]]

def _cuts(rows, net, field='ratio', what=TorchPruning.name):
    case = f'{net}, trace and first cut'
    return [r[field][1] for r in find(rows, table='surgery', case=case, what=what) if 'failed' not in r['note']]

def targets(rows):
    "What the library wants, the worst median of this run, and whether it is met; `None` where nothing was measured."
    early = EarlyPrune.name
    held = [r for r in find(rows, table='memory', what=early) if 'peak' not in r['case']]
    checks = [
        ('update, times faster than fasterai', ge, 4, min, _middle(rows, table='select', what=Fasterai.name)),
        ('update of each layer, times faster than fasterai', ge, 4, min, _middle(rows, table='select', what=FasteraiLocal.name)),
        ('update, times faster than GraNet', ge, 10, min, _middle(rows, table='select', what=GraNet.name)),
        ('drop and regrow, times faster than GraNet', ge, 5, min, _middle(rows, table='regrow', what=GraNet.name)),
        ('upkeep, times faster than fasterai', gt, 1, min, _upkeep_gains(rows, Fasterai.name)),
        ('upkeep, times faster than GraNet', gt, 1, min, _upkeep_gains(rows, GraNet.name)),
        ('upkeep, ratio to one _foreach_mul_', le, 2, max, _middle(rows, table='upkeep', what=early)),
        ('idle batch, microseconds', lt, 50, max, _middle(rows, 'value', table='idle', what='SparsifyCallback.before_step')),
        ('trace and first cut of DenseNet-201, times faster than torch-pruning', ge, 20, min, _cuts(rows, 'densenet201')),
        ('trace and first cut of ResNet-50, times faster than torch-pruning', ge, 5, min, _cuts(rows, 'resnet50')),
        ('trace and first cut of ResNet-50, milliseconds', lt, 1000, max, _cuts(rows, 'resnet50', 'value', early)),
        ('watched training step, ratio to a plain one', lt, 1.02, max, _middle(rows, table='early', what=WATCHED)),
        ('training step after a cut of half the FLOPs, ratio', le, .65, max,
         _middle(rows, table='early', case='resnet18, 64 images of 32 x 32', what=AFTER.format(.5))),
        ('images a second with masks, share of a plain PyTorch loop', ge, .8, min,
         [1/r for r in _middle(rows, table='step', what=MASKS)]),
        ('checkpoint, ratio to torch.save', le, 2, max, _middle(rows, table='checkpoint', what=WRITE)),
        ('size of a checkpoint, ratio to network, optimizer and one bit a weight', le, 1.01, max,
         _middle(rows, table='checkpoint size', what=SIZE)),
        ('memory, bytes per maskable weight', le, 1, max, [round(r['value'][1], 1) for r in held])]
    sign = {ge:'>=', gt:'>', le:'<=', lt:'<'}
    return [dict(what=what, rule=f'{sign[op]} {limit}', got=pick(got) if got else None, met=op(pick(got), limit) if got else None)
            for what,op,limit,pick,got in checks]

def record(sections, quick=False, save=lambda result: None):
    "Run `sections` and return everything that is worth storing; `save` sees it after each section."
    found = can_measure()
    r = dict(quick=quick, sections=[], machine=machine(), load_at_end=[], missing_peers=[nm for nm in PEERS if not have(nm)],
             memory_method=METHOD if found else 'not measured: on another device, or this system has no /proc/self/clear_refs',
             spread='[min, median, max] over rounds; a ratio is taken within its round', longest_imports={}, targets=[], rows=[])
    for nm in sections:
        r['rows'] += SECTIONS[nm][quick]()
        if nm=='imports' and not quick: r['longest_imports'] = {m:longest(m) for m in ('early_prune.masks', 'early_prune.core')}
        if not quick: r['targets'] = targets(r['rows'])
        r['sections'].append(nm)
        r['load_at_end'] = [round(o, 2) for o in os.getloadavg()]
        save(r)
    return r

def _target_line(t):
    got,met = '-' if t['got'] is None else f'{t["got"]:.3g}',{True:'met', False:'MISSED', None:'not measured'}[t['met']]
    return f'  {t["what"]:70}{t["rule"]:>7}{got:>10}  {met}'

def report(result):
    "The record as text."
    m = result['machine']
    lines = [f'{m["cpu"]}, {m["cores"]} cores, {m["threads"]} threads, load {m["load"][0]} to {result["load_at_end"][0]}',
             ', '.join(f'{k} {v}' for k,v in m['versions'].items())]
    lines += [f'{nm} is not installed: its rows are left out (`make bench` installs it)' for nm in result['missing_peers']]
    lines += [show(result['rows']), '']
    lines += ['A smoke test: these numbers say nothing about speed'] if result['quick'] else ['targets']
    return '\n'.join(lines + [_target_line(t) for t in result['targets']])

def main(argv=None):
    "Read the command line, measure, print the table and store the record."
    parser = argparse.ArgumentParser(description=__doc__)
    names,default = ', '.join(SECTIONS),Path(__file__).parent/'results'/'latest.json'
    parser.add_argument('sections', nargs='*', metavar='section', help=f'what to measure, of {names}; default: all')
    parser.add_argument('--quick', action='store_true', help='tiny networks, one round: a smoke test, no measurement')
    parser.add_argument('--device', default='cpu', help='where networks and images are: cpu, cuda, ...; memory is that of the CPU only')
    parser.add_argument('--out', type=Path, default=default, help='where the record is stored; default: bench/results/latest.json')
    args = parser.parse_args(argv)
    if unknown := [s for s in args.sections if s not in SECTIONS]: parser.error(f'no section {unknown[0]!r}, of {names}')
    os.environ['BENCH_DEVICE'] = args.device
    args.out.parent.mkdir(parents=True, exist_ok=True)
    def save(result): args.out.write_text(json.dumps(result, indent=1)+'\n')
    print(report(record(args.sections or list(SECTIONS), args.quick, save)))
    return 0

if __name__=='__main__': sys.exit(main())
