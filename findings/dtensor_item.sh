#!/usr/bin/env bash
# A number read from a reduction over a DTensor is that of one process, and nothing says so.
#
# torch 2.14.1, CPU, gloo, two processes. A tensor of 4 rows is divided by rows; 3 of its numbers are not zero in the half
# of process 0, and 1 in the half of process 1. `t.count_nonzero()`, `(t != 0).sum()` and `t.norm()` return a DTensor whose
# placement is Partial: the sum over processes is still to come. `.item()` of it (as of `float()` or `int()`) does not wait
# for the sum, and returns the part of the process that asks. `.full_tensor().item()` is right, and so is `.item()` of
# `max`, of `std` and of `median`, so the mistake shows only where parts are added.
#
# Seen:    process 0: count 3 of 4, sum 3 of 4, norm 1.7321 of 2.0000, std .4924 of .4924
#          process 1: count 1 of 4, sum 1 of 4, norm 1.0000 of 2.0000, std .4924 of .4924
# Expected by a reader of the code: the same number in both, 4, 4 and 2.
# Consequence: a sparsity, a norm for clipping or a loss that is read this way differs from process to process.
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
whole = torch.tensor([[1., 1., 1.], [0., 0., 0.], [0., 0., 0.], [1., 0., 0.]])
t = distribute_tensor(whole, init_device_mesh('cpu', (2,)), [Shard(0)])
found = dict(count=t.count_nonzero(), sum=(t != 0).sum(), norm=t.norm(), std=t.std())
said = [f'{name} {o.item():.4f} of {o.full_tensor().item():.4f}' for name, o in found.items()]
Path(sys.argv[1], str(dist.get_rank())).write_text(', '.join(said))
dist.destroy_process_group()
PY
OMP_NUM_THREADS=1 "$folder/venv/bin/python" -W ignore -m torch.distributed.run --standalone --nproc_per_node=2 \
    "$folder/parts.py" "$folder" > "$folder/log" 2>&1 || { cat "$folder/log"; exit 2; }
for process in 0 1; do echo "process $process: $(cat "$folder/$process")"; done
grep -qx 'count 3.0000 of 4.0000, sum 3.0000 of 4.0000, norm 1.7321 of 2.0000, std 0.4924 of 0.4924' "$folder/0"
grep -qx 'count 1.0000 of 4.0000, sum 1.0000 of 4.0000, norm 1.0000 of 2.0000, std 0.4924 of 0.4924' "$folder/1"
echo 'as described'
