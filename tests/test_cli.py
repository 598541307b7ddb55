"The command line: results, files, and one clear line for every mistake."
import csv
import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from early_prune.cli import main
from early_prune.core import sparsity_of
from early_prune.models import get_model


@pytest.fixture
def cli(capsys):
    def run(*argv):
        try: code = main([str(o) for o in argv])
        except SystemExit as e: code = e.code
        out,err = capsys.readouterr()
        return code,out,err
    return run

def test_train_writes_weights_and_record(cli, tmp_path):
    code,out,err = cli('train', '--arch', 'small_cnn', '--epochs', 3, '--sparsity', .9, '--out', tmp_path/'new'/'deep')
    assert code==0 and 'sparsity 0.9000' in out and len(err.splitlines())==4
    assert sorted(p.name for p in (tmp_path/'new'/'deep').iterdir())==['checkpoint.safetensors', 'model.safetensors', 'record.json']
    model = get_model('small_cnn', n_in=1, n_out=10)
    model.load_state_dict(load_file(tmp_path/'new'/'deep'/'model.safetensors'), strict=True)
    record = json.loads((tmp_path/'new'/'deep'/'record.json').read_text())
    assert sparsity_of(model)==pytest.approx(record['sparsity_reached'])==pytest.approx(.9, abs=1e-3)
    assert {'accuracy', 'seconds', 'device', 'torch', 'fastai', 'seed', 'flops'}<=set(record)

@pytest.mark.parametrize('recipe', ['dense', 'one_shot', 'iterative', 'agp', 'gmp', 'one_cycle'])
def test_every_recipe(cli, recipe):
    code,out,_ = cli('train', '--arch', 'small_cnn', '--epochs', 2, '--limit', 200, '--recipe', recipe, '--json')
    record = json.loads(out)
    assert code==0 and record['recipe']==recipe and record['sparsity_reached']==pytest.approx(0 if recipe=='dense' else .95, abs=2e-3)

def test_demo_writes_table_and_pictures(cli, tmp_path):
    code,out,_ = cli('demo', '--seeds', 2, '--epochs', 1, '--arch', 'small_cnn', '--out', tmp_path)
    assert code==0 and '|--' not in out, 'a bar is for terminals'
    assert [ln.split()[0] for ln in out.splitlines() if ln][-7:-1]==['method', 'dense', 'one_shot', 'iterative', 'agp', 'one_cycle']
    rows = list(csv.DictReader((tmp_path/'table.csv').read_text().splitlines()))
    assert [r['recipe'] for r in rows]==[r['recipe'] for r in json.loads((tmp_path/'table.json').read_text())]
    assert {r['seeds'] for r in rows}=={'2'} and float(rows[-1]['sparsity_reached'])==pytest.approx(.95, abs=2e-3)
    for name in ('accuracy', 'curves', 'masks'): assert (tmp_path/f'{name}.png').read_bytes()[:4]==b'\x89PNG'
    before = (tmp_path/'runs.jsonl').read_text()
    assert cli('demo', '--seeds', 2, '--epochs', 1, '--arch', 'small_cnn', '--out', tmp_path)[0]==0
    assert (tmp_path/'runs.jsonl').read_text()==before, 'finished runs are not repeated'

def test_info(cli):
    code,out,_ = cli('info', '--json', '--arch', 'resnet20')
    found = json.loads(out)
    assert code==0 and found['arch']['params']==272474 and 'one_cycle' in found['recipes'] and 'cifar100' in found['data']
    shown = cli('info', '--arch', 'resnet20')[1]
    assert 'one_cycle' in shown and 'granet_neurons' in shown and 'params 272,474' in shown

MISTAKES = {
    '--sparsity 95': '`sparsity` is a fraction in [0, 1), got 95; write 0.95 for 95 %', '--sparsity 1': '`sparsity` is a fraction in [0, 1), got 1',
    '--sparsity -0.1': 'got -0.1', '--sparsity 0': '`sparsity` is 0 for dense and only for dense', '--sparsity nan': 'got nan',
    '--recipe onecycle': "`recipe` is unknown: 'onecycle'; did you mean 'one_cycle'?", '--data cifar01': "did you mean 'cifar10'",
    '--arch resnet9': "'resnet9'", '--epochs 0': '`epochs` is at least 1, got 0', '--lr 0': '`lr` is above 0, got 0', '--bs 0': '`bs` is at least 1, got 0',
    '--limit 0': '0', '--data cifar10 --path /nowhere/at/all': '/nowhere/at/all', '--device nonsense': 'nonsense',
    '--arch small_cnn --sparsity .9999': 'floors of 4 layers'}

@pytest.mark.parametrize('argv', MISTAKES)
def test_one_line_and_exit_code_2(cli, argv, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code,out,err = cli('train', '--out', 'results', *argv.split())
    lines = [ln for ln in err.splitlines() if ln.startswith('early_prune train:')]
    assert code==2 and not out and len(lines)==1 and err.splitlines()[-1]==lines[0] and MISTAKES[argv] in lines[0]
    assert not list(tmp_path.rglob('*.json')) and not list(tmp_path.rglob('*.safetensors'))

@pytest.mark.parametrize('argv', [['prune'], [], ['train', '--epochs', 'many'], ['train', '--nonsense']])
def test_wrong_calls(cli, argv):
    code,out,err = cli(*argv)
    assert code==2 and not out and err.startswith('usage: early_prune')

def test_folder_that_cannot_be_written(cli, tmp_path):
    (tmp_path/'file').write_text('')
    code,_,err = cli('train', '--arch', 'small_cnn', '--epochs', 1, '--out', tmp_path/'file'/'inside')
    assert code==2 and f'`--out` {tmp_path}/file/inside cannot be written' in err and len(err.splitlines())==1
    if os.getuid():
        (tmp_path/'ro').mkdir(mode=0o555)
        assert cli('demo', '--out', tmp_path/'ro')[0]==2 and not list((tmp_path/'ro').iterdir())

@pytest.mark.parametrize('damage,found', [(lambda b: b'', '0 bytes'), (lambda b: b[:-1], 'bytes'), (lambda b: b+b'x', 'bytes')], ids=['empty', 'truncated', 'longer'])
def test_damaged_data_files(cli, tmp_path, damage, found):
    folder = tmp_path/'cifar-10-batches-bin'
    folder.mkdir()
    rows = lambda n: b''.join(bytes([i%10]) + bytes(3072) for i in range(n))
    for nm in [*(f'data_batch_{i}' for i in range(1, 6)), 'test_batch']: (folder/f'{nm}.bin').write_bytes(rows(20))
    (folder/'batches.meta.txt').write_text('\n'.join('abcdefghij') + '\n')
    (folder/'data_batch_3.bin').write_bytes(damage(rows(20)))
    code,_,err = cli('train', '--data', 'cifar10', '--path', tmp_path, '--epochs', 1)
    assert code==2 and 'data_batch_3.bin' in err and found in err and len(err.splitlines())==1

def test_results_file_that_is_something_else(cli, tmp_path):
    (tmp_path/'runs.jsonl').write_bytes(struct.pack('<4I', *range(4)) + b'{"a')
    code,_,err = cli('demo', '--out', tmp_path)
    assert code==2 and 'runs.jsonl' in err and len(err.splitlines())==1

def test_as_a_process():
    "The installed module answers, and our own code warns of nothing."
    run = lambda *argv: subprocess.run([sys.executable, '-m', 'early_prune', *argv], capture_output=True, text=True, cwd=Path(__file__).parent.parent)
    assert run('--version').stdout.strip()
    bad = run('train', '--sparsity', '95')
    assert bad.returncode==2 and bad.stderr.strip().splitlines()==['early_prune train: `sparsity` is a fraction in [0, 1), got 95; write 0.95 for 95 %']
    assert 'Warning' not in run('info').stderr

def test_device_is_respected(cli):
    code,out,_ = cli('train', '--arch', 'small_cnn', '--epochs', 1, '--limit', 100, '--device', 'cpu', '--json')
    assert code==0 and json.loads(out)['threads']==torch.get_num_threads()

def test_report_draws_what_is_there(tmp_path, capsys):
    runs = tmp_path/'runs.jsonl'
    runs.write_text(''.join(json.dumps(dict(recipe=nm, sparsity=s, seed=i, accuracy=.9-.01*i, seconds=1., sparsity_reached=s) | extra)+'\n'
        for i in range(2) for nm,s,extra in [('dense', 0., {}), ('epi', .5, dict(training_share=.6))]))
    assert main(['report', str(runs), '--out', str(tmp_path/'out')])==0
    assert sorted(p.name for p in (tmp_path/'out').iterdir())==['accuracy.png', 'cost.png', 'report.html', 'table.csv']
    assert 'epi' in capsys.readouterr().out
    assert main(['report', str(runs), '--out', str(tmp_path/'out'), '--baseline', 'dense', '--json'])==0
    assert [r['verdict'] for r in json.loads(capsys.readouterr().out)['table']]==['', 'undecided']
    assert main(['report', str(runs), '--out', str(tmp_path/'other'), '--baseline', 'agp'])==2 and not (tmp_path/'other').exists()

COMPARE = ['compare', 'dense', 'agp', '--sparsity', .5, .9, '--seeds', 2, '--epochs', 1, '--arch', 'small_cnn', '--limit', 200, '--valid', .1, '--baseline', 'dense']

def test_compare_goes_on_where_it_was_stopped(cli, tmp_path):
    code,out,_ = cli(*COMPARE, '--seeds', 1, '--out', tmp_path)
    lines = (tmp_path/'runs.jsonl').read_text()
    assert code==0 and len(lines.splitlines())==3 and 'undecided' in out and '3 trainings' in out
    code,out,_ = cli(*COMPARE, '--out', tmp_path, '--json')
    result = json.loads(out)
    assert code==0 and result['runs']==6 and [r['seeds'] for r in result['table']]==[2, 2, 2]
    assert (tmp_path/'runs.jsonl').read_text().startswith(lines) and '<svg' in (tmp_path/'report.html').read_text()

def test_compare_reports_failures_and_exits_with_1(cli, tmp_path):
    code,out,err = cli('compare', 'dense', 'agp', '--sparsity', .9999, '--seeds', 1, '--epochs', 1, '--arch', 'small_cnn', '--limit', 100, '--out', tmp_path)
    assert code==1 and 'failed, and tried again by the next call: agp 0.9999, seed 0' in out and 'floors of 4 layers' in out and '1 trainings' in out

@pytest.mark.parametrize('argv,error', [(['agpp'], "did you mean 'agp'"), (['agp', '--sparsity', 95], 'write 0.95 for 95 %'), (['agp', '--valid', 2], '`valid` is a share'),
    (['agp', '--data', 'cifar01'], "did you mean 'cifar10'"), (['agp', '--baseline', 'gmp'], "is one of the recipes, agp; got 'gmp'")])
def test_compare_refuses_mistakes(cli, tmp_path, argv, error):
    code,out,err = cli('compare', *argv, '--out', tmp_path)
    assert code==2 and not out and error in err and len(err.splitlines())==1 and not (tmp_path/'runs.jsonl').exists()

@pytest.mark.parametrize('text,error', [('', 'no finished run'), ('{"a": 1}\n', 'without `recipe`'), ('{', 'no finished run'), ('no', 'is not a result'), (None, 'is no file')])
def test_report_refuses_other_files(tmp_path, capsys, text, error):
    runs = tmp_path/'runs.jsonl'
    if text is not None: runs.write_text(text)
    assert main(['report', str(runs), '--out', str(tmp_path/'out')])==2
    assert error in capsys.readouterr().err and not (tmp_path/'out').exists()

def _together(*argv):
    command = [sys.executable, '-m', 'early_prune', 'train', '--nproc', '2', '--device', 'cpu', '--arch', 'small_cnn', '--limit', '256', '--json']
    return subprocess.run([*command, *argv], capture_output=True, text=True, timeout=300)

def test_two_processes_train_one_network(tmp_path):
    done = _together('--epochs', '2', '--recipe', 'granet', '--out', tmp_path)
    record = json.loads(done.stdout)
    assert done.returncode==0 and len(done.stderr.splitlines())==3, 'one process speaks, and nobody warns'
    assert record['processes']==2 and record['bs']==64 and record['sparsity_reached']==pytest.approx(.95, abs=2e-3)
    assert json.loads((tmp_path/'record.json').read_text())==record and (tmp_path/'model.safetensors').exists()

@pytest.mark.slow
def test_one_line_says_what_stopped_a_process():
    done = _together('--recipe', 'epi', '--sparsity', '.999')
    assert done.returncode==2 and not done.stdout
    assert 'stopped: ' in done.stderr.splitlines()[-1] and 'cannot be met' in done.stderr.splitlines()[-1] and 'Traceback' not in done.stderr

@pytest.mark.parametrize('argv, named', [(['--nproc', 0], 'nproc'), (['--nproc', 3], 'divides `--bs`'), (['--nproc', 2, '--device', 'cpu:0'], 'cpu or cuda')])
def test_impossible_processes_are_refused_before_any_starts(cli, argv, named):
    code,out,err = cli('train', *argv)
    assert code==2 and not out and len(err.splitlines())==1 and named in err
