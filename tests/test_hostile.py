"Broken and hostile files: one clear error that names the file, nothing run, nothing changed, no memory beyond the file's."
import gzip
import json
import os
import pickle
import random
import signal
import struct
from contextlib import contextmanager
from pathlib import Path
from time import process_time

import numpy as np
import pytest
import torch
from fastai.callback.schedule import Learner
from fastai.metrics import accuracy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file

from early_prune import checkpoint, surgery
from early_prune.callbacks import SparsifyCallback
from early_prune.checkpoint import CheckpointCallback, contents, read_state, resume, write_state
from early_prune.compare import Results
from early_prune.data import digits, load_official, read_cifar_bin, read_cifar_pickle, read_idx, read_pngs
from early_prune.models import small_cnn
from early_prune.surgery import load, save


class Ran(BaseException): pass

def boom(*args): raise Ran

class Bomb:
    def __reduce__(self): return boom,()

def new_learner(): return Learner(digits(limit=64, valid_limit=32), small_cnn(), metrics=accuracy)

def a_checkpoint(path):
    learn = new_learner()
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(1, cbs=[SparsifyCallback(.5, every=1), CheckpointCallback(path)])
    return path

def a_network(path): return save(small_cnn(), path)

def an_idx(path):
    path.write_bytes(bytes((0, 0, 8, 3))+struct.pack('>3I', 5, 28, 28)+bytes(5*784))
    return path

def a_gzip(path):
    path = path.with_suffix('.gz')
    path.write_bytes(gzip.compress(an_idx(path.with_suffix('.idx')).read_bytes()))
    return path

def a_bin(path):
    path.write_bytes(b''.join(bytes([i%10])+bytes(3072) for i in range(4)))
    return path

def a_pickle(path):
    path.write_bytes(pickle.dumps({b'data':np.zeros((4, 3072), np.uint8), b'labels':[0, 1, 2, 3]}, protocol=2))
    return path

def results(path):
    path.unlink(missing_ok=True)
    for i in range(3): Results(path).add(dict(key=str(i), accuracy=.5))
    return path

READERS = dict(checkpoint=(a_checkpoint, read_state), network=(a_network, lambda path: load(small_cnn, path)), idx=(an_idx, read_idx),
               gzip=(a_gzip, read_idx), cifar_bin=(a_bin, read_cifar_bin), cifar_pickle=(a_pickle, read_cifar_pickle),
               results=(results, lambda path: Results(path).read()))

def mutate(data, chance):
    "Change, cut, repeat or insert bytes, mostly near the beginning, where headers are."
    data,n = bytearray(data),len(data)
    for _ in range(chance.choice((1, 1, 2, 8))):
        at = chance.randrange(max(1, min(len(data), chance.choice((16, 400, 4000, n)))))
        how = chance.randrange(7)
        if how==0 and data: data[min(at, len(data)-1)] ^= 1<<chance.randrange(8)
        elif how==1 and data: data[min(at, len(data)-1)] = chance.randrange(256)
        elif how==2: del data[at:]
        elif how==3: del data[at:at+chance.randrange(1, 64)]
        elif how==4: data[at:at] = chance.randbytes(chance.randrange(1, 64))
        elif how==5: data[at:at+8] = struct.pack('<Q', chance.choice((0, 2**31, 2**40, 2**63, 2**64-1, n, n-8)))
        else: data[at:at+chance.randrange(64)] = data[:chance.randrange(64)]
    return bytes(data)

@contextmanager
def in_time(seconds=20):
    "End what hangs."
    def stop(*args): raise TimeoutError('it hangs')
    old = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try: yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, old)

def refused(read, path):
    "Whether a file is refused, by an error that names it; any other error comes through."
    try: read(path)
    except ValueError as e:
        assert path.name in str(e), f'the error does not name the file: {e}'
        return True
    return False

def status(field): return int(next(o for o in Path('/proc/self/status').read_text().splitlines() if o.startswith(field)).split()[1])*1024

def peak_of(f):
    "Bytes that the process held at most while `f` ran, beyond what it held before."
    Path('/proc/self/clear_refs').write_text('5')
    before = status('VmRSS')
    f()
    return status('VmHWM')-before

NOISE = 2**23 # bytes: the interpreter makes its table of interned names anew after each 183,000 of them, and takes up to 7.7 MB for it

def watched(read, path):
    "Whether a file is refused, in less than a second and with at most twice its size; the seconds and the bytes beyond it."
    found,start = [],process_time() # of this process, so that a busy machine does not matter; `in_time` ends what hangs
    with in_time(): grown = peak_of(lambda: found.append(refused(read, path)))
    spent,size = process_time()-start,path.stat().st_size
    assert spent<1 and grown<2*size+NOISE, (spent, grown, size, path.read_bytes()[:400])
    return found[0],spent,grown

def many(tmp_path, name, n, seed=0, readers=READERS):
    make,read = readers[name]
    path,chance = make(tmp_path/f'{name}.safetensors'),random.Random(seed)
    good = path.read_bytes()
    read(path)
    def one():
        path.write_bytes(mutate(good, chance))
        return watched(read, path)
    found = [one() for _ in range(n)]
    return *(f(o) for f,o in zip((sum, max, max), zip(*found))),len(good)

@pytest.mark.parametrize('name', READERS)
def test_mutated_files(tmp_path, name): assert many(tmp_path, name, 60)[0]>10

@pytest.mark.slow
@pytest.mark.parametrize('name', READERS)
def test_twenty_thousand_mutated_files(tmp_path, name):
    count,spent,grown,size = many(tmp_path, name, 20_000, 1)
    print(f'{name}: {count} of 20000 refused, at most {spent:.3f} s and {grown} bytes for one, whole file {size} bytes')
    assert count>10_000

def a_png(path):
    folder = path.with_suffix('')/'a'
    folder.mkdir(parents=True)
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(folder/'x.png')
    return folder/'x.png'

TRUNCATED = {nm:READERS[nm] for nm in ('checkpoint', 'network', 'idx', 'gzip', 'cifar_bin', 'cifar_pickle')} | dict(
    png=(a_png, lambda path: read_pngs(path.parent.parent, ['a'])))

@pytest.mark.parametrize('name', TRUNCATED)
def test_a_truncated_file_says_so(tmp_path, name):
    make,read = TRUNCATED[name]
    path = make(tmp_path/f'{name}.safetensors')
    whole = path.read_bytes()
    for left in (len(whole)-20, len(whole)*2//3, len(whole)//3, 30):
        path.write_bytes(whole[:left])
        with pytest.raises(ValueError, match='truncated') as e: read(path)
        assert path.name in str(e.value)

def test_a_file_of_an_early_version_says_what_to_do(tmp_path):
    "It has no checksum, and everything else is right."
    path = tmp_path/'x.safetensors'
    save_file(small_cnn().state_dict(), path, dict(format=surgery.FORMAT, early_prune='{}'))
    with pytest.raises(ValueError, match='x.safetensors .*it has no checksum, as files of early versions: .*write it again'): load(small_cnn, path)

def test_a_truncated_archive_says_so(tmp_path):
    "The archive of CIFAR, as a broken download leaves it, before anything is downloaded again."
    path = tmp_path/'cifar-10-python.tar.gz'
    path.write_bytes(gzip.compress(random.Random(0).randbytes(10_000))[:5000])
    with pytest.raises(ValueError, match='cifar-10-python.tar.gz.* is damaged: truncated'): load_official('CIFAR10', tmp_path)

@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=400), name=st.sampled_from(list(READERS)))
def test_any_bytes(tmp_path, data, name):
    path = tmp_path/'any.safetensors'
    path.write_bytes(data)
    with in_time(): refused(READERS[name][1], path)

def rewrite(path, change):
    "A file with another header and other tensors, and a checksum that is right."
    meta,tensors = surgery.read_tensors(path, checkpoint._FORMAT)
    plain = change(json.loads(meta['state']), tensors)
    text = plain if isinstance(plain, str) else json.dumps(plain)
    surgery.write_tensors(path, tensors, meta | dict(state=text))

def bomb_of_bits(plain, tensors):
    tensors['x'] = torch.zeros(8, dtype=torch.uint8)
    return {'dict':{'x':{'tensor':'x', 'shape':[2**40, 2**20]}}}
def bomb_of_names(plain, tensors):
    tensors['x'] = torch.zeros(2**20, dtype=torch.uint8)
    return {'dict':{'x':{'list':[{'tensor':'x', 'shape':[2**23]}]*20_000}}}
def bomb_of_nothing(plain, tensors):
    tensors['x'] = torch.zeros(2**40, 0)
    return {'dict':{'x':{'scalars':{'tensor':'x'}}}}
def bomb_of_depth(plain, tensors): return '['*100_000
def bomb_of_digits(plain, tensors): return '{"dict":{"x":'+'9'*100_000+'}}'
def negative(plain, tensors):
    tensors['x'] = torch.zeros(1, dtype=torch.uint8)
    return {'dict':{'x':{'tensor':'x', 'shape':[-1, -8]}}}
def no_dict(plain, tensors): return {'list':[1, 2]}
def unknown(plain, tensors): return {'dict':{'x':{'function':'os.system'}}}
def missing(plain, tensors): return {'dict':{'x':{'tensor':'nowhere'}}}
def unhashable(plain, tensors): return {'dict':{'x':{'tensor':[]}}}
def bare(plain, tensors): return [1]

HARMLESS = [bomb_of_names, bomb_of_nothing] # one tensor under many names is one tensor; a list of nothing is empty
LIES = [bomb_of_bits, bomb_of_names, bomb_of_nothing, bomb_of_depth, bomb_of_digits, negative, no_dict, unknown, missing, unhashable, bare]

@pytest.mark.parametrize('lie', LIES)
def test_lies_in_the_header(tmp_path, lie):
    "The checksum is right, and the header is not: little memory, no time, one error."
    path = write_state(tmp_path/'x.safetensors', dict(a=1))
    rewrite(path, lie)
    def read():
        with in_time():
            assert refused(read_state, path)==(lie not in HARMLESS)
    refused(read_state, path)
    assert peak_of(read)<10*path.stat().st_size+2**24

def claim(length, text, rest=b''): return struct.pack('<Q', length)+text+rest

@pytest.mark.parametrize('data', [
    claim(2**63, b'{}'), claim(10**8, b'{}'), claim(2, b'{}'), claim(0, b''), b'', b'\x80\x04\x95', claim(8, b'[[[[[[[['),
    claim(62, b'{"a":{"dtype":"F32","shape":[99999999999],"data_offsets":[0,4]}}'.ljust(62)),
    claim(70, b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,99999999999999]}}'.ljust(70)),
    claim(63, b'{"a":{"dtype":"F32","shape":[1,0],"data_offsets":[4,0]},"b":[]}'.ljust(63))])
def test_headers_that_claim_too_much(tmp_path, data):
    path = tmp_path/'x.safetensors'
    path.write_bytes(data)
    def read():
        with in_time():
            assert refused(read_state, path)
            assert refused(lambda p: load(small_cnn, p), path)
    read()
    assert peak_of(read)<2**24

def entry(dtype='F32', shape=(1,), at=(0, 4)): return dict(dtype=dtype, shape=list(shape), data_offsets=list(at))

def a_header(chance):
    "A header that lies in one or several of many ways, and the bytes it promises, or fewer."
    n = chance.choice((1, 2, 5))
    header = {f'{i}.weight':entry(at=(4*i, 4*i+4)) for i in range(n)} | {'__metadata__':dict(format=chance.choice(
        ('early_prune 1', checkpoint._FORMAT)), check='00000000', state='{}', early_prune='{}')}
    odd = [-1, 0, 2**31, 2**63, 2**64, 10**400, 1.5, True, None, '4', [], {}, float('nan'), 'F4', 'F8_E8M0', 'x'*10**5]
    for _ in range(chance.randrange(1, 4)):
        key = chance.choice(list(header))
        how = chance.randrange(8)
        if how==0: header[key] = chance.choice(odd)
        elif how==1 and isinstance(header[key], dict): header[key][chance.choice(('dtype', 'shape', 'data_offsets', 'format', 'check'))] = chance.choice(odd)
        elif how==2: header[key] = entry(shape=[chance.choice((0, 1, 2**20, 2**40, 2**62)) for _ in range(chance.randrange(70))])
        elif how==3: header[key] = entry(at=chance.choice(((0, 0), (4, 0), (0, 2**60), (-4, 0), (8, 12), (0,), (0, 4, 8))))
        elif how==4: header |= {f't{i}':entry(shape=(0,), at=(0, 0)) for i in range(chance.choice((10, 3000, 60_000)))}
        elif how==5: header['n'*chance.choice((1, 10**4, 10**6))] = entry()
        elif how==6: header['__metadata__'] = chance.choice((None, [], dict(format=1), {'format':'x'*10**6}, {'format':'early_prune 1', 'early_prune':'['*10**5}))
        else: header[key] = entry(dtype=chance.choice(('F4', 'F6_E2M3', 'F8_E8M0', 'f32', '', 'C128')))
    text = json.dumps(header)
    text = chance.choice((text, text, text[:-1], '['*10**5, '{"a":'*10**4, '1'*10**5, text.replace('"shape": [1]', '"shape": ['+'9'*5000+']')))
    data = text.encode(chance.choice(('utf-8', 'utf-8', 'utf-16')))
    return struct.pack('<Q', len(data)+chance.choice((0, 0, 0, -1, 1)))+data+bytes(4*n-chance.choice((0, 0, 1)))

def an_idx_header(chance):
    "Types, numbers of dimensions and sizes that agree with nothing, or nearly."
    kind,n = chance.choice((8, 8, 8, 9, 0x0D, 0, 255)),chance.choice((0, 1, 3, 3, 3, 4, 255))
    sizes = [chance.choice((5, 28, 28, 0, 1, 27, 10, 2**16, 2**31, 2**32-1)) for _ in range(min(n, 6))]
    body = chance.choice((5*784, 5*784-1, 5*784+1, 0, 784, 28))
    return bytes((0, chance.choice((0, 0, 1)), kind, n))+struct.pack(f'>{len(sizes)}I', *sizes)+bytes(body)

def a_gzip_header(chance):
    "Streams of zeros that are longer than they say, several in one file, fields without an end, and sums that are wrong."
    start = bytes((0, 0, 8, 3))+struct.pack('>3I', chance.choice((1, 5, 10, 11, 2**31)), 28, 28)
    data = bytearray(gzip.compress(start+bytes(chance.choice((0, 784, 5*784, 5*784+1, 10**7))), 9))
    how = chance.randrange(8)
    if how==0: data[3] = chance.randrange(256)
    elif how==1: data[-4:] = struct.pack('<I', chance.choice((0, 16+784, 2**31, 2**32-1)))
    elif how==2: data[-8:-4] = b'1234'
    elif how==3: data += data*chance.choice((1, 50))
    elif how==4: data = data[:chance.randrange(len(data))]
    elif how==5: data += bytes(chance.choice((1, 8, 1000)))
    elif how==6: data[2] = chance.randrange(256)
    else: data[10:10] = struct.pack('<H', 2**16-1)
    return bytes(data)

def a_bin_header(chance):
    "Rows of the wrong number and length, and labels that are none."
    n,label = chance.choice((0, 1, 2, 10, 11, 40)),chance.choice((0, 9, 10, 99, 255))
    data = (bytes([label])+bytes(3072))*n
    return data+bytes(chance.choice((0, 1, 3072))) if chance.random()<.8 else data[:max(0, len(data)-chance.choice((1, 3000)))]

def a_pickle_header(chance):
    "Dictionaries that are none, arrays whose shapes and types lie, lengths beyond the file, names of functions, and nesting."
    x = np.zeros((chance.choice((1, 4, 11)), chance.choice((3072, 3071, 0))), chance.choice((np.uint8, np.uint8, np.int64, np.float16, object, 'U5')))
    good = dict(data=x, labels=chance.choice(([0]*len(x), [0]*len(x), [10], [-1]*len(x), [None]*len(x), [True]*len(x), [10**40]*len(x), 'no', None)))
    tops = (good, good, [good], None, 3, {'data':1}, {b'data':{}, b'labels':[]}, {(1,):good})
    data = pickle.dumps({nm.encode():o for nm,o in good.items()} if chance.random()<.6 else chance.choice(tops), protocol=chance.choice((0, 1, 2, 3, 4, 5)))
    odd = (b'', b'\x80\x02'+b']'*10**5+b'.', b'\x80\x04\x8e'+struct.pack('<Q', 2**62), b'B'+struct.pack('<I', 2**31-1), b'\x8b'+struct.pack('<I', 2**31-1),
           b'cos\nsystem\n(S"true"\ntR.', b'('*10**5+b't'*10**5+b'.', b'I'+b'9'*10**5+b'\n.', b'\x80\x04\x95'+struct.pack('<Q', 2**63), b'}'+b'2'*10**5+b'.')
    return chance.choice((data, data, data[:-1], data+b'.', data.replace(b'\xc0\x0c', b'\xff\xff'), data.replace(b'u1', b'u8'), chance.choice(odd)))

def lines_of_results(chance):
    "Lines of wrong types, ends, texts and depths."
    line = dict(key='a', recipe='agp', sparsity=.9, seed=0, accuracy=.5)
    nm,odd = chance.choice((*line, 'error', 'accuracies', 'lr', 'x')),chance.choice((None, True, [], {}, '', 'x'*10**5, 10**400, -1, float('inf'), [[[]]]))
    texts = (json.dumps(line | {nm:odd}), '['*10**5, '{"a":'*10**4, '{"a":'+'9'*10**5+'}', '', '\x00', '3', '[]', '{"key": "a"', '\ud800', '"'*99, '{"key": "a"} {"key": "b"}')
    text = chance.choice(('\n', '\r', '\r\n', '\x85', '\u2028', ' ')).join(chance.choice(texts) for _ in range(chance.randrange(1, 5)))
    return (text+chance.choice(('', '\n', '\r'))).encode(chance.choice(('utf-8', 'utf-8', 'utf-16', 'utf-8-sig')), 'surrogatepass')

def few(read): return lambda path: read(path, max_rows=10) # so that an official file is small

CONSTRUCTED = dict(checkpoint=(a_header, read_state), network=(a_header, READERS['network'][1]), idx=(an_idx_header, few(read_idx)),
                   gzip=(a_gzip_header, few(read_idx)), cifar_bin=(a_bin_header, few(read_cifar_bin)),
                   cifar_pickle=(a_pickle_header, few(read_cifar_pickle)), results=(lines_of_results, READERS['results'][1]))

def constructed(tmp_path, name, n, seed):
    "How many of `n` files are refused, the slowest and the one that takes most memory."
    (make,read),chance = CONSTRUCTED[name],random.Random(seed)
    path = tmp_path/f"x.{'gz' if name=='gzip' else 'safetensors'}"
    path.write_bytes(make(random.Random(0)))
    refused(read, path) # what it imports is no memory of its own
    def one():
        path.write_bytes(make(chance))
        return watched(read, path)
    return tuple(f(o) for f,o in zip((sum, max, max), zip(*(one() for _ in range(n)))))

@pytest.mark.parametrize('name', CONSTRUCTED)
def test_constructed_headers(tmp_path, name): assert constructed(tmp_path, name, 40, 0)[0]>(39 if name in ('checkpoint', 'network') else 15)

@pytest.mark.parametrize('data', [b'('*3*10**7, b'}'+b'2'*10**7+b'.', b'\x80\x04\x95'+struct.pack('<Q', 10**7)+b']'*10**7+b'.'])
def test_a_pickle_of_millions_of_instructions(tmp_path, data):
    "Of an official file's size, and not one byte of it pixels: what is worth more than its rows is not run."
    path = tmp_path/'x'
    path.write_bytes(data)
    def read():
        with in_time(): assert refused(read_cifar_pickle, path)
    assert peak_of(read)<2*len(data)+NOISE

@pytest.mark.slow
@pytest.mark.parametrize('name', CONSTRUCTED)
def test_five_hundred_constructed_headers(tmp_path, name):
    count,spent,grown = constructed(tmp_path, name, 500, 1)
    print(f'{name}: {count} of 500 refused, at most {spent:.3f} s and {grown} bytes for one')
    assert count>(499 if name in ('checkpoint', 'network') else 200)

def reheaded(path, change, tensors=lambda o: None):
    "A network whose header is another, with a checksum that is right."
    meta,found = surgery.read_tensors(path, surgery.FORMAT)
    header = json.loads(meta['early_prune'])
    header = change(header) or header
    tensors(found)
    surgery.write_tensors(path, found, dict(format=surgery.FORMAT, early_prune=json.dumps(header)))

def half_the_channels(header): next(iter(header['sizes'].values()))['out_channels'] //= 2
def more_groups(header): next(iter(header['sizes'].values()))['groups'] = 3
def too_wide(header): next(iter(header['sizes'].values()))['in_channels'] = 10**9
def of_no_type(header): header['sizes'] = [1]
def no_table(header): return [1]
def as_true(header): next(iter(header['sizes'].values()))['groups'] = True

@pytest.mark.parametrize('change', [half_the_channels, more_groups, too_wide, of_no_type, no_table, as_true])
def test_networks_whose_sizes_lie(tmp_path, change):
    path = a_network(tmp_path/'x.safetensors')
    reheaded(path, change)
    assert refused(lambda p: load(small_cnn, p), path)

def test_no_weight_is_left_to_chance(tmp_path):
    "A header that says a weight may be missing does not make it so."
    path,names = a_network(tmp_path/'x.safetensors'),list(small_cnn().state_dict())
    for nm in names:
        a_network(path)
        reheaded(path, lambda header: header.update(passing=names), lambda found, nm=nm: found.pop(nm))
        assert refused(lambda p: load(small_cnn, p), path), nm

@pytest.mark.parametrize('shape', ['zero', 'shorter bias', 'complex', 'int'])
def test_networks_whose_tensors_lie(tmp_path, shape):
    path,nm = a_network(tmp_path/'x.safetensors'),next(iter(small_cnn().state_dict()))
    def tensors(found):
        t = found[nm]
        found[nm] = dict(zero=t[:0], complex=t.to(torch.complex64), int=t.long()).get(shape, t[:2])
    reheaded(path, lambda header: None, tensors)
    assert refused(lambda p: load(small_cnn, p), path)

def test_a_file_that_is_rewritten_while_it_is_read(tmp_path):
    "Shrunk, overwritten and replaced by another process: the old state, the new one, or the documented error."
    path,found = write_state(tmp_path/'x.safetensors', dict(x=torch.ones(2**20))),set()
    good = path.read_bytes()
    if (pid := os.fork())==0:
        try:
            while True:
                with open(path, 'r+b') as f: f.truncate(1000); f.seek(0); f.write(good)
        finally: os._exit(0)
    try:
        for _ in range(60): found.add(refused(read_state, path))
    finally: os.kill(pid, signal.SIGKILL); os.waitpid(pid, 0)
    assert True in found

def test_long_histories_are_numbers(tmp_path):
    "Ten times as many entries make the header no longer."
    history = [(i, i/7) for i in range(100_000)]
    path = write_state(tmp_path/'x.safetensors', dict(history=history, due=[1]*20, odd=[(1, 2.), (1, 2)]*10))
    assert int.from_bytes(path.read_bytes()[:8], 'little')<2000
    state = read_state(path)
    assert state['history']==history and state['due']==[1]*20 and [type(b) for _,b in state['odd']]==[float, int]*10

def leaves(o, at=()):
    "Paths to all values of a state that is ready for JSON."
    if isinstance(o, dict): return [p for k,v in o.items() for p in leaves(v, (*at, k))] or [at]
    if isinstance(o, list): return [p for k,v in enumerate(o) for p in leaves(v, (*at, k))] or [at]
    return [at]

def everything(learn):
    "What must not change."
    sizes = [{k:v for k,v in vars(m).items() if isinstance(v, (int, tuple))} for m in learn.model.modules()]
    return [t.clone() for t in learn.model.state_dict().values()],sizes,learn.opt,[dict(vars(cb)) for cb in learn.cbs],torch.get_rng_state()

def unchanged(a, b):
    assert all(torch.equal(x, y) for x,y in zip(a[0], b[0], strict=True)) and a[1]==b[1] and a[2] is b[2] and torch.equal(a[4], b[4])
    assert len(a[3])==len(b[3])

WEIRD = [None, -1, 0, 10**30, 1e308, float('nan'), '', 'x'*1000, True, {'list':[]}, {'dict':{}}, {'tuple':[None]}]

def wrong_states(tmp_path, n, seed):
    path,chance,wrong = a_checkpoint(tmp_path/'x.safetensors'),random.Random(seed),0
    good,learn = path.read_bytes(),new_learner()
    for _ in range(n):
        path.write_bytes(good)
        def change(plain, tensors):
            *up,last = chance.choice(leaves(plain))
            inner = plain
            for k in up: inner = inner[k]
            inner[last] = chance.choice(WEIRD)
            return plain
        rewrite(path, change)
        before = everything(learn)
        with in_time():
            try: contents(path)._repr_html_()
            except ValueError as e: assert path.name in str(e)
        with in_time():
            try: resume(learn, path)
            except ValueError as e:
                wrong += 1
                assert path.name in str(e)
                unchanged(everything(learn), before)
            else: learn = new_learner()
    return wrong

def test_states_of_wrong_types(tmp_path): assert wrong_states(tmp_path, 30, 0)>3

@pytest.mark.filterwarnings('ignore:.*was not complete')
@pytest.mark.slow
def test_a_thousand_states_of_wrong_types(tmp_path): assert wrong_states(tmp_path, 1000, 1)>100

def test_nothing_is_run(tmp_path):
    "A pickle in place of a file is not opened as one."
    path = tmp_path/'x.safetensors'
    for data in (pickle.dumps(Bomb()), pickle.dumps({b'data':Bomb(), b'labels':[0]}, protocol=2)):
        path.write_bytes(data)
        for _,read in READERS.values(): refused(read, path)
    torch.save(dict(a=Bomb()), path)
    for _,read in READERS.values(): refused(read, path)
    with pytest.raises(Ran): pickle.loads(pickle.dumps(Bomb()))

def test_a_folder_and_a_link_to_nothing(tmp_path):
    os.symlink(tmp_path/'nowhere', tmp_path/'link.safetensors')
    for path in (tmp_path, tmp_path/'link.safetensors', tmp_path/'none.safetensors'):
        with pytest.raises(FileNotFoundError, match=path.name): read_state(path)
        with pytest.raises(FileNotFoundError, match=path.name): resume(new_learner(), path)
