#!/usr/bin/env bash
# A number read from a reduction over a DTensor is that of one process, and nothing says so.
#
# torch 2.14.1, CPU, gloo, two processes. A tensor of 4 rows is divided by rows; 3 of its numbers are not zero in the half
# of process 0, and 1 in the half of process 1. `t.count_nonzero()`, `(t != 0).sum()`, `t.norm()` and `t.max()` return a
# DTensor whose placement is partial: processes have still to be brought together. `.item()` of it, and `float()`, do not
# wait for that, and return the part of the process that asks. `.full_tensor().item()` is right, and so is `.item()` of
# `std`, whose result is brought together at once: two reductions that look alike differ in what can be read from them.
#
# Seen, read by `.item()` and after `.full_tensor()`:
#   process 0: count 3 of 4, sum 3 of 4, norm 1.7321 of 3.4641, max 1 of 3, std .9045 of .9045, float 3 of 4
#   process 1: count 1 of 4, sum 1 of 4, norm 3.0000 of 3.4641, max 3 of 3, std .9045 of .9045, float 1 of 4
# Expected by a reader of the code: the same number in both processes.
# Consequence: a sparsity or a norm that is read this way differs from process to process, and nothing says so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.14.1 numpy==2.4.6
cat > "$folder/parts.py" <<'PY'
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

dist.init_process_group('gloo')
whole = torch.tensor([[1., 1., 1.], [0., 0., 0.], [0., 0., 0.], [3., 0., 0.]])
t = distribute_tensor(whole, init_device_mesh('cpu', (2,)), [Shard(0)])
found = dict(count=t.count_nonzero(), sum=(t != 0).sum(), norm=t.norm(), max=t.max(), std=t.std())
said = [f'{name} {o.item():.4f} of {o.full_tensor().item():.4f}' for name, o in found.items()]
said.append(f'float {float(found["count"]):.4f} of {found["count"].full_tensor().item():.4f}')
Path(sys.argv[1], str(dist.get_rank())).write_text(', '.join(said))
dist.destroy_process_group()
PY
OMP_NUM_THREADS=1 "$folder/venv/bin/python" -W ignore -m torch.distributed.run --standalone --nproc_per_node=2 \
    "$folder/parts.py" "$folder" > "$folder/log" 2>&1 || { cat "$folder/log"; exit 2; }
for process in 0 1; do echo "process $process: $(cat "$folder/$process")"; done
grep -qx 'count 3.0000 of 4.0000, sum 3.0000 of 4.0000, norm 1.7321 of 3.4641, max 1.0000 of 3.0000, std 0.9045 of 0.9045, float 3.0000 of 4.0000' "$folder/0"
grep -qx 'count 1.0000 of 4.0000, sum 1.0000 of 4.0000, norm 3.0000 of 3.4641, max 3.0000 of 3.0000, std 0.9045 of 0.9045, float 1.0000 of 4.0000' "$folder/1"
echo 'as described'
