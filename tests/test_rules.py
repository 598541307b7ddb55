"The rules of the code base."
import ast
import importlib
import inspect
import json
import pkgutil
import re
import subprocess
import symtable
import sys
from pathlib import Path
from types import FunctionType

import pytest
from fastcore.docments import docments

import early_prune

ROOT = Path(__file__).parent.parent
NBS,LIB = ROOT/'nbs',ROOT/'early_prune'
MODS = [m.name for m in pkgutil.iter_modules(early_prune.__path__) if m.name[0]!='_' and m.name!='all']
SHELL = {'cli'} # modules that no notebook needs
FILES = [LIB/f'{m}.py' for m in MODS]

def _code(nb): return '\n'.join(''.join(c['source']) for c in json.loads(nb.read_text())['cells'] if c['cell_type']=='code')

def test_imports_point_down():
    "A chapter may import only from chapters with a lower number."
    code = {nb.name:_code(nb) for nb in sorted(NBS.glob('[0-9]*.ipynb'))}
    home = {m[1]:nm for nm,s in code.items() if (m := re.search(r'^#\|\s*default_exp:?\s+(\S+)', s, re.M))}
    assert set(home)==set(MODS)
    for nm,s in code.items():
        for mod in re.findall(r'^from early_prune\.(\w+) import', s, re.M):
            assert home[mod]<nm, f'{nm} imports `{mod}` from the later chapter {home[mod]}'

def _variadic(o): return [p.name for p in inspect.signature(o).parameters.values() if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]

@pytest.mark.parametrize('name', MODS)
def test_documented(name):
    "Every public symbol says what it does and what each parameter means."
    mod = importlib.import_module(f'early_prune.{name}')
    for o in (getattr(mod, nm) for nm in mod.__all__):
        if not isinstance(o, (type, FunctionType)) or o.__module__!=mod.__name__: continue
        assert o.__doc__, f'{name}.{o.__name__} has no docstring'
        missing = [k for k,v in docments(o).items() if v is None and k not in ('self', 'return', *_variadic(o))]
        assert not missing, f'{name}.{o.__name__}: no comment for {missing}'

@pytest.mark.parametrize('name', MODS)
def test_methods_documented(name):
    "Every public method of a public class has a docstring."
    mod = importlib.import_module(f'early_prune.{name}')
    for cls in (getattr(mod, nm) for nm in mod.__all__):
        if not isinstance(cls, type) or cls.__module__!=mod.__name__: continue
        for nm,f in vars(cls).items():
            inherited = any(getattr(b, nm, None) for b in cls.__mro__[1:])
            if nm[0]!='_' and callable(f) and not inherited: assert f.__doc__, f'{name}.{cls.__name__}.{nm} has no docstring'

@pytest.mark.parametrize('path', FILES, ids=MODS)
def test_module_is_clean(path):
    "No star import, no print, no catch-all, no function over 25 lines, no line over 120 columns."
    text = path.read_text()
    assert not [ln for ln in text.splitlines() if len(ln)>120 and not ln.startswith('__all__')]
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom): assert node.names[0].name!='*', node.module
        if isinstance(node, ast.Call) and getattr(node.func, 'id', '')=='print': assert path.stem=='cli', 'only the command line prints'
        if isinstance(node, ast.ExceptHandler):
            broad = node.type is None or ast.unparse(node.type) in ('Exception', 'BaseException')
            assert not broad or isinstance(node.body[-1], ast.Raise), 'a broad `except` may only raise a clearer error'
        if isinstance(node, ast.FunctionDef): assert node.end_lineno-node.lineno<=30, f'{node.name} is long'
    assert not re.search(r'TODO|FIXME|XXX', text)

def test_no_two_scripts_share_a_name():
    "Tests, benchmarks, studies and the site are imported side by side in one process, so a name belongs to one file."
    names = [f.stem for folder in ('tests', 'bench', 'nbs/studies', 'docs') for f in sorted((ROOT/folder).glob('*.py'))]
    assert [nm for nm in sorted(set(names)) if names.count(nm)>1]==[]

def test_nobody_imports_all():
    assert not [p.name for p in FILES if re.search(r'early_prune\.all|from \.all', p.read_text())]

def test_all_offers_everything():
    "`from early_prune.all import *` gives every public symbol of every chapter."
    import early_prune.all as everything
    for name in set(MODS)-SHELL:
        mod = importlib.import_module(f'early_prune.{name}')
        for nm in mod.__all__: assert getattr(everything, nm) is getattr(mod, nm), f'{name}.{nm} is hidden in `all`'

def test_the_star_brings_a_short_list():
    "What another framework calls `Callback`, and the module `copy`, are still theirs; the index lists what comes besides ours."
    import early_prune.all as everything
    space = dict(Callback='theirs', copy='theirs', Trainer='theirs')
    exec('from early_prune.all import *', space)
    assert [space[nm] for nm in ('Callback', 'copy', 'Trainer')]==['theirs']*3
    ours = {nm for name in set(MODS)-SHELL for nm in importlib.import_module(f'early_prune.{name}').__all__}
    besides = [nm for nm in vars(everything) if nm[0]!='_' and nm not in ours]
    listed = re.search('brings these, and no others: (.*?)\\. A script', (NBS/'index.ipynb').read_text())[1]
    assert sorted(re.findall('`(.*?)`', listed))==sorted(besides)

@pytest.mark.parametrize('name', ['early_prune', *(f'early_prune.{m}' for m in ('core', 'criteria', 'optimizers', 'masks', 'schedules', 'distributions', 'regrowth',
    'dependency', 'ranking', 'packing', 'surgery', 'products', 'triggers', 'engine'))])
def test_no_fastai_needed(name):
    "The core can be used in a plain PyTorch loop: importing it does not import fastai."
    code = f'import sys, {name}; sys.exit(any(m.split(".")[0]=="fastai" for m in sys.modules))'
    assert subprocess.run([sys.executable, '-W', 'error', '-c', code], cwd=ROOT).returncode==0

def test_schedules_need_the_standard_library_only():
    code = 'import sys, early_prune.schedules; sys.exit(any(m in sys.modules for m in ("torch", "numpy", "fastcore")))'
    assert subprocess.run([sys.executable, '-c', code], cwd=ROOT).returncode==0

def test_notebooks_have_no_dead_cells():
    "Every cell of every page runs."
    for nb in NBS.rglob('*.ipynb'):
        assert not re.search(r'#\|\s*eval:?\s*false|skip_exec', nb.read_text()), nb.name

def test_stored_outputs_are_clean():
    "No error, no absolute path and no progress bar is stored in a page."
    for nb in NBS.rglob('*.ipynb'):
        for cell in json.loads(nb.read_text())['cells']:
            for out in cell.get('outputs', []):
                text = json.dumps(out)
                assert out['output_type']!='error' and out.get('name')!='stderr', nb.name
                assert not re.search(r'/(home|tmp|root|Users)/|FutureWarning| at 0x[0-9a-f]{6}', text), nb.name

def _cells(nb): # `(whether it is exported, code)`
    for cell in json.loads(nb.read_text())['cells']:
        code = ''.join(cell['source'])
        if cell['cell_type']=='code' and code[:1] not in '!%': yield bool(re.match(r'#\|\s*export', code)), code

def _imported(code):
    found = [o for o in ast.parse(code).body if isinstance(o, (ast.Import, ast.ImportFrom))]
    return {a.asname or a.name:(getattr(o, 'module', None), a.name) for o in found for a in o.names}

def _bound(code): return {o.get_name() for o in symtable.symtable(code, '', 'exec').get_symbols() if o.is_assigned()
                          or o.is_imported() or o.is_namespace()}

def _read_by_functions(table):
    mine = {o.get_name() for o in table.get_symbols() if o.is_global()} if table.get_type()=='function' else set()
    return mine.union(*map(_read_by_functions, table.get_children()))

def rebound(nb):
    "Names that functions of a module use and that a lesson on its page gives another meaning: they run on the page only."
    exported = '\n'.join(code for mine,code in _cells(nb) if mine)
    used = _bound(exported) & _read_by_functions(symtable.symtable(exported, '', 'exec'))
    known,found = _imported(exported),set()
    for mine,code in _cells(nb):
        if not mine: found |= {nm for nm in _bound(code) & used if nm not in known or known[nm]!=_imported(code).get(nm)}
    return found

def test_lessons_leave_the_names_of_the_module_alone(tmp_path):
    "A page that imports `copy` where the module has `copy` from `copy` makes the functions of the module fail there."
    assert {nb.name:found for nb in sorted(NBS.glob('[0-9]*.ipynb')) if (found := rebound(nb))}=={}
    cells = '#| export\nfrom copy import copy\ndef f(x): return copy(x)', 'from copy import copy', 'y = [copy for copy in x]'
    page = tmp_path/'page.ipynb'
    for more,expected in ('', set()), ('import copy', {'copy'}), ('f = copy = 1', {'copy'}):
        source = [dict(cell_type='code', source=o) for o in (*cells, *filter(None, [more]))]
        page.write_text(json.dumps(dict(cells=source)))
        assert rebound(page)==expected

QUIET = re.compile(r'test_\w+|assert_\w+|use|cleanup|print')

def test_values_are_stored():
    "A cell that ends in a value has its output in the notebook, so that the page shows it."
    for nb in NBS.rglob('*.ipynb'):
        for cell in json.loads(nb.read_text())['cells']:
            code = ''.join(cell['source'])
            if cell['cell_type']!='code' or cell['outputs'] or re.match(r'#\|\s*(export|hide)', code) or '!' in code: continue
            body = ast.parse(code).body
            if code.rstrip().endswith(';') or not body or not isinstance(body[-1], ast.Expr): continue
            call = body[-1].value.func if isinstance(body[-1].value, ast.Call) else None
            name = getattr(call, 'attr', getattr(call, 'id', ''))
            assert QUIET.fullmatch(name), f'{nb.name}: no stored output of {code[-80:]!r}'

def test_sidebar_names_every_page_once():
    "`nbs/sidebar.yml` is the path through the book; it is written by hand."
    listed = re.findall(r'^ *- (\S+\.ipynb)$', (NBS/'sidebar.yml').read_text(), re.M)
    pages = {p.relative_to(NBS).as_posix() for p in NBS.rglob('*.ipynb') if '.ipynb_checkpoints' not in p.parts}
    assert not pages-set(listed) and len(listed)==len(set(listed))
