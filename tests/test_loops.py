"The adapters of the page *Any training loop*: Lightning and the Trainer end with the bits of a plain loop."
import ast
import json
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from early_prune.core import sparsity_of
from early_prune.engine import Training
from early_prune.recipes import recipe
from early_prune.triggers import AtEpoch

PAGE = Path(__file__).parent.parent/'nbs'/'tutorials'/'any_loop.ipynb'
EPOCHS,STEPS,SIZE = 4,6,16
torch.manual_seed(1)
X,Y = torch.randn(STEPS*SIZE, 1, 8, 8),torch.randint(0, 4, (STEPS*SIZE,))

def adapter(library):
    "The code of the page that imports a library."
    text = '\n'.join(''.join(c['source']) for c in json.loads(PAGE.read_text())['cells'] if c['cell_type']=='markdown')
    code, = (o for o in re.findall(r'```python\n(.*?)```', text, re.S) if library in o)
    scope = {}
    exec(compile(code, f'{PAGE.name}: {library}', 'exec'), scope)
    return scope

class Net(nn.Module):
    "A network with a norm, which a Trainer may call by names."
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 16, 3, stride=2), nn.ReLU(), nn.Flatten(),
                                  nn.Linear(144, 24), nn.ReLU(), nn.Linear(24, 4))
    def forward(self, x, labels=None):
        logits = self.body(x)
        return dict(logits=logits) if labels is None else dict(loss=F.cross_entropy(logits, labels), logits=logits)

WAYS = {'one_cycle':lambda: recipe('one_cycle', .8), 'granet':lambda: recipe('granet', .8, every=3),
        'cut':lambda: recipe('epi', ratio=.5, trigger=AtEpoch(1), floor=.2),
        'both':lambda: [recipe('at_epoch', ratio=.4, trigger=AtEpoch(1), floor=.2), recipe('granet', .6, every=3)]}

def network():
    torch.manual_seed(0)
    return Net()

def plain(pruners, clip=.5, parts=1):
    net = network()
    opt = torch.optim.AdamW(net.parameters(), lr=3e-3)
    training = Training(net, opt, pruners, X[:SIZE], EPOCHS, STEPS//parts)
    for _ in range(EPOCHS):
        training.begin_epoch()
        net.train()
        for i in range(STEPS):
            (net(X[i*SIZE:(i+1)*SIZE], Y[i*SIZE:(i+1)*SIZE])['loss']/parts).backward()
            if (i+1)%parts: continue
            training.before_step()
            nn.utils.clip_grad_norm_(net.parameters(), clip)
            opt.step()
            training.after_step()
            opt.zero_grad()
        training.end_epoch()
    return net

def same(a, b):
    a,b = a.state_dict(),b.state_dict()
    return list(a)==list(b) and all(torch.equal(a[nm], b[nm]) for nm in a)

@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('parts', [1, 2])
@pytest.mark.parametrize('way', WAYS)
def test_lightning(way, parts, tmp_path):
    pl = pytest.importorskip('lightning.pytorch')
    net,pruners,held = network(),WAYS[way](),[]
    class Module(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = net
        def forward(self, x): return self.net(x)
        def training_step(self, batch, i): return self.net(*batch)['loss']
        def validation_step(self, batch, i): held.append(sparsity_of(self.net))
        def configure_optimizers(self): return torch.optim.AdamW(self.parameters(), lr=3e-3)
    batches = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X, Y), SIZE)
    prune = adapter('lightning')['PruneLightning'](pruners, X[:SIZE])
    trainer = pl.Trainer(max_epochs=EPOCHS, accelerator='cpu', callbacks=[prune], logger=False, enable_checkpointing=False, enable_progress_bar=False,
                         enable_model_summary=False, gradient_clip_val=.5, accumulate_grad_batches=parts, default_root_dir=tmp_path)
    trainer.fit(Module(), batches, batches)
    assert prune.training.epoch==EPOCHS and same(net, plain(WAYS[way](), parts=parts))
    if way!='cut': assert held[-1]==pytest.approx(sparsity_of(net)) and held[-1]>.5

@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('parts', [1, 2])
@pytest.mark.parametrize('way', WAYS)
def test_trainer(way, parts, tmp_path):
    transformers = pytest.importorskip('transformers')
    net,pruners = network(),WAYS[way]()
    args = transformers.TrainingArguments(
        tmp_path, num_train_epochs=EPOCHS, per_device_train_batch_size=SIZE, learning_rate=3e-3, lr_scheduler_type='constant', max_grad_norm=.5,
        gradient_accumulation_steps=parts, use_cpu=True, report_to='none', save_strategy='no', logging_strategy='no', disable_tqdm=True, weight_decay=.01,
        optim='adamw_torch', remove_unused_columns=False, seed=0)
    class InOrder(adapter('transformers')['PruneTrainer']):
        def _get_train_sampler(self, *args): return torch.utils.data.SequentialSampler(self.train_dataset)
        def create_optimizer(self, *args):
            self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=3e-3)
            return self.optimizer
    trainer = InOrder(net, args, train_dataset=[dict(x=x, labels=y) for x,y in zip(X, Y, strict=True)], pruners=pruners, inputs=X[:SIZE])
    trainer.train()
    assert trainer.pruning.epoch==EPOCHS and same(net, plain(WAYS[way](), parts=parts))

@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('way', ['one_cycle', 'granet'])
def test_lightning_goes_on_from_its_checkpoint(way, tmp_path):
    pl = pytest.importorskip('lightning.pytorch')
    class Module(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = network()
        def forward(self, x): return self.net(x)
        def training_step(self, batch, i): return self.net(*batch)['loss']
        def configure_optimizers(self): return torch.optim.AdamW(self.parameters(), lr=3e-3)
    def fit(path=None):
        batches = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X, Y), SIZE)
        prune,module = adapter('lightning')['PruneLightning'](WAYS[way](), X[:SIZE]),Module()
        kept = pl.callbacks.ModelCheckpoint(tmp_path, '{epoch}', save_top_k=-1)
        trainer = pl.Trainer(max_epochs=EPOCHS, accelerator='cpu', callbacks=[prune, kept], logger=False, enable_progress_bar=False,
                             enable_model_summary=False, default_root_dir=tmp_path)
        trainer.fit(module, batches, ckpt_path=path)
        return module
    whole,again = fit(),fit(tmp_path/'epoch=1.ckpt')
    assert sparsity_of(whole)>.7 and same(whole, again)

@pytest.mark.parametrize('library', ['lightning', 'transformers'])
def test_an_adapter_makes_every_call(library):
    "Also where the library is not installed: each adapter comes through all four calls of a training."
    text = '\n'.join(''.join(c['source']) for c in json.loads(PAGE.read_text())['cells'] if c['cell_type']=='markdown')
    code, = (o for o in re.findall(r'```python\n(.*?)```', text, re.S) if f'import {library}' in o or f'from {library}' in o)
    calls = {o.func.attr for o in ast.walk(ast.parse(code)) if isinstance(o, ast.Call) and isinstance(o.func, ast.Attribute)}
    assert {'begin_epoch', 'before_step', 'after_step', 'end_epoch'}<=calls
