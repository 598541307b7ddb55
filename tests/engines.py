"Run by `torchrun`: Lightning, or the `Trainer` of transformers, cuts the network it wraps. `engines.py OUT ENGINE RENEW`"
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from early_prune.dependency import trace
from early_prune.masks import digest
from early_prune.models import small_cnn
from early_prune.surgery import cut, rewrap


def half(net, groups, optimizer): cut(net, groups, {g.name:range(g.n//2) for g in groups}, optimizer)

def data():
    g = torch.Generator().manual_seed(5)
    return torch.utils.data.TensorDataset(torch.randn(64, 1, 8, 8, generator=g), torch.randint(0, 10, (64,), generator=g))

def lightning(net, groups, renew):
    import lightning
    class Network(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = net
        def training_step(self, batch, i): return nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        def configure_optimizers(self): return torch.optim.AdamW(self.net.parameters(), 1e-2)
        def on_train_batch_end(self, *args):
            if self.global_step!=3: return
            half(self.net, groups, self.trainer.optimizers[0])
            if renew: self.trainer.strategy.model = rewrap(self.trainer.strategy.model)
    trainer = lightning.Trainer(accelerator='cpu', devices=2, strategy='ddp_find_unused_parameters_true', max_steps=8, max_epochs=-1, logger=False,
                                enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
    trainer.fit(Network(), torch.utils.data.DataLoader(data(), batch_size=8))

def transformers(net, groups, renew):
    from transformers import Trainer, TrainerCallback, TrainingArguments
    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net
        def forward(self, x, labels):
            logits = self.net(x)
            return dict(loss=nn.functional.cross_entropy(logits, labels), logits=logits)
    class Cut(TrainerCallback):
        def on_step_end(self, args, state, control, optimizer=None, **kwargs):
            if state.global_step!=3: return
            half(net, groups, optimizer)
            if renew: rewrap(trainer.model_wrapped, in_place=True)
    args = TrainingArguments(sys.argv[1], use_cpu=True, report_to=[], max_steps=8, save_strategy='no', logging_strategy='no', disable_tqdm=True,
                             ddp_find_unused_parameters=True)
    batch = lambda o: dict(x=torch.stack([x for x,_ in o]), labels=torch.stack([y for _,y in o]))
    trainer = Trainer(Network(), args, data_collator=batch, train_dataset=data(), callbacks=[Cut()])
    trainer.train()

if __name__=='__main__':
    out,engine,renew = sys.argv[1:]
    torch.manual_seed(0)
    net = small_cnn()
    groups = trace(net, torch.zeros(2, 1, 8, 8))
    try: globals()[engine](net, groups, renew=='yes')
    except RuntimeError as e: said = str(e)
    else: said = f'{sum(p.numel() for p in net.parameters())} {digest(*(p.tolist() for p in net.parameters()))}'
    Path(out, f'{dist.get_rank()}.txt').write_text(said)
