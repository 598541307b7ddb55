"""A device that is not there: tensors that say `cuda:0`, compute on the CPU, refuse to meet others, and count waiting.

For autograd they are tensors of the CPU, because it would ask the driver for a stream; `device` is a property in Python."""
from contextlib import contextmanager

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map_only

CUDA = torch.device('cuda:0')
aten = torch.ops.aten
# the host waits for a number, or for a size that depends on numbers
READS = {aten._local_scalar_dense.default, aten.equal.default, aten.is_nonzero.default, aten.nonzero.default,
         aten.masked_select.default, aten._unique2.default, aten.unique_dim.default, aten.unique_consecutive.default}
INDEXING = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default}
waits = [] # what the host had to wait for, one name each

def _cuda(device): return device is not None and torch.device(device).type=='cuda'
def _tensors(o): return [t for t in tree_flatten(o)[0] if isinstance(t, torch.Tensor)]
def _outside(o): return tree_map_only(torch.Tensor, lambda t: t if isinstance(t, Pretended) else Pretended(t), o)
def _inside(o): return tree_map_only(Pretended, lambda t: t.inner, o)

def to_host(t, why):
    "Copy a tensor to the CPU, which waits."
    waits.append(why)
    return t.inner.detach().clone()

class Pretended(torch.Tensor):
    "A tensor of the CPU that says it is on `cuda:0`."
    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, inner.stride(), inner.storage_offset(),
                                                   device='cpu', dtype=inner.dtype, layout=inner.layout)
    def __init__(self, inner): self.inner = inner
    # in a closure: a tensor in `vars` would be what an optimizer remembers of a weight
    inner = property(lambda self: self.held(), lambda self, t: setattr(self, 'held', lambda: t))
    def __repr__(self): return f'Pretended({self.inner})'
    device,is_cuda,is_cpu = (property(lambda self, o=o: o) for o in (CUDA, True, False))

    @property
    def data(self): return self.detach()
    @data.setter
    def data(self, new):
        torch.Tensor.data.__set__(self, new)
        self.inner = new.inner

    def tolist(self): return to_host(self, 'tolist').tolist()
    def cpu(self): return to_host(self, 'cpu')
    def cuda(self, *args, **kwargs): return self
    def numpy(self, *args, **kwargs): raise TypeError("can't convert cuda:0 device type tensor to numpy")
    def __array__(self, *args, **kwargs): return self.numpy()

    def to(self, *args, **kwargs):
        place = _place(args, kwargs)
        if place is not None and not _cuda(place): return to_host(self, 'to').to(*args, **kwargs)
        dtype = next((o for o in (*args, kwargs.get('dtype')) if isinstance(o, torch.dtype)), self.dtype)
        form = kwargs.get('memory_format') or torch.preserve_format
        return self if dtype==self.dtype and form is torch.preserve_format else super().to(dtype=dtype, memory_format=form)

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        _meet(func, args, kwargs)
        _count(func, args)
        given = {id(t.inner):t for t in _tensors((args, kwargs)) if isinstance(t, Pretended)}
        out = func(*_inside(args), **_inside(kwargs))
        if func is aten.copy_.default and not isinstance(args[0], Pretended): return args[0]
        return tree_map_only(torch.Tensor, lambda t: given[id(t)] if id(t) in given else Pretended(t), out)

def _place(args, kwargs):
    "The device that a call names; `None`: it names none."
    named = [o for o in (*args, kwargs.get('device')) if isinstance(o, (str, torch.device))]
    return named[0] if named else next((o.device for o in args[:1] if isinstance(o, torch.Tensor)), None)

def _meet(func, args, kwargs):
    "Raise where a tensor of the CPU with dimensions meets one of the device; an index may come from the host."
    if func is aten.copy_.default: return
    whole = [args[0], *args[2:]] if func in INDEXING else (args, kwargs)
    if any(not isinstance(o, Pretended) and o.ndim for o in _tensors(whole)):
        raise RuntimeError(f'Expected all tensors to be on the same device, but found cuda:0 and cpu in {func}')

def _count(func, args):
    by_mask = func in INDEXING and any(o.dtype is torch.bool for o in _tensors(args[1]))
    back = func is aten.copy_.default and not isinstance(args[0], Pretended)
    if func in READS or by_mask or back: waits.append(str(func))

class _Redirected(TorchFunctionMode):
    "What is asked to be made on, or moved to, `cuda` becomes a pretended tensor; torch would ask the driver first."
    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func is torch.Tensor.to and not isinstance(args[0], Pretended) and _cuda(_place(args[1:], kwargs)):
            kwargs.pop('device', None)
            return Pretended(func(args[0], *(o for o in args[1:] if not isinstance(o, (str, torch.device))), **kwargs)
                             if len(args)>2 or kwargs else args[0].clone())
        if func is torch.Tensor.cuda: return Pretended(args[0].clone())
        if kwargs.get('device') is None: return func(*args, **kwargs)
        if not _cuda(kwargs['device']): return _inside(func(*args, **kwargs))
        return _outside(func(*args, **(kwargs | dict(device='cpu'))))

@contextmanager
def pretended_cuda():
    "Let `cuda:0` be there; yields the list of what the host waited for."
    waits.clear()
    with _Redirected(): yield waits

def to_cuda(o):
    "Move tensors, or a network in place, to the pretended device."
    if not isinstance(o, torch.nn.Module): return tree_map_only(torch.Tensor, lambda t: Pretended(t.clone()), o)
    for m in o.modules():
        for nm,p in m._parameters.items():
            if p is not None: m._parameters[nm] = torch.nn.Parameter(Pretended(p.detach().clone()), p.requires_grad)
        for nm,b in m._buffers.items():
            if b is not None: m._buffers[nm] = Pretended(b.clone())
    return o

def values(o):
    "Look at the numbers without being counted."
    return tree_map_only(Pretended, lambda t: t.inner.detach().clone(), o)
