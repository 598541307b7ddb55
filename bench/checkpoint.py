"What it costs to write a checkpoint, in the middle of a fit, and how large it is."
import os
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from fastai.callback.core import Callback
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from measure import in_turns, to_rows
from nets import build

from early_prune.checkpoint import CheckpointCallback, save_checkpoint
from early_prune.data import ImageSet, image_loaders
from early_prune.optimizers import layout_of
from early_prune.recipes import recipe

WRITE,PLAIN,FORCED = 'save_checkpoint','torch.save','torch.save, forced to the disk'
SIZE,LEAST = 'size of a checkpoint','network, optimizer and one bit per maskable weight'

def _plain(learn):
    "What is in the checkpoint, as tensors without a format."
    masks = learn.sparsify.masks.masks
    memory = [t for mine in layout_of(learn.opt).read(list(learn.model.parameters())) for *_,t,_ in mine]
    return dict(net=dict(learn.model.state_dict()), memory=memory, bits={nm:torch.zeros(-(-m.numel()//8), dtype=torch.uint8) for nm,m in masks.items()})

def _bytes(o):
    if isinstance(o, torch.Tensor): return o.nbytes
    return sum(map(_bytes, o.values() if isinstance(o, dict) else o))

def _save(tensors, path, sync=False):
    with open(path, 'wb') as f:
        torch.save(tensors, f)
        if sync: f.flush(); os.fsync(f.fileno())

def _flushed(f):
    os.sync() # what others have written and left to the system is not on this one's bill
    return f

class Probe(Callback):
    "Writes in turns after the last batch, when masks and optimizer are there."
    order,run_valid = 110,False
    def __init__(self, case, folder, n): self.case,self.folder,self.n,self.rows = case,folder,n,[]

    def after_batch(self):
        if self.train_iter<self.n_iter: return
        tensors,path = _plain(self.learn),self.folder/'x.safetensors'
        fs = {WRITE:lambda: save_checkpoint(self.learn, path), PLAIN:lambda: _save(tensors, self.folder/'x.pth'),
              FORCED:lambda: _save(tensors, self.folder/'x.pth', True)}
        self.rows += to_rows(in_turns({nm:partial(_flushed, f) for nm,f in fs.items()}, self.n), PLAIN, 'checkpoint', self.case)
        size,least = path.stat().st_size/1e6,_bytes(tensors)/1e6
        self.rows += to_rows({SIZE:[size/1e3], LEAST:[least/1e3]}, LEAST, 'checkpoint size', self.case)
        for row in self.rows[-2:]: row['unit'] = 'MB'

def checkpoint(names=('resnet18', 'resnet50'), n=7):
    "A file of everything that decides how a training goes on, against the bare numbers in it."
    rows = []
    for name in names:
        torch.manual_seed(0)
        images = ImageSet(torch.randint(0, 256, (16, 3, 32, 32), dtype=torch.uint8), torch.arange(16)%10, map(str, range(10)))
        learn = Learner(image_loaders(images, images, bs=4, device='cpu'), build(name), CrossEntropyLossFlat())
        with TemporaryDirectory() as folder, learn.no_bar(), learn.no_logging():
            cbs = [recipe('one_cycle', .9), CheckpointCallback(Path(folder)/'last.safetensors'), Probe(f'{name}, Adam, masks', Path(folder), n)]
            learn.fit(1, 1e-3, cbs=cbs)
            rows += cbs[-1].rows
    return rows
