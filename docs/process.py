"nbdev's preprocessing of the notebooks, without Quarto: `nbs/*.ipynb` -> `_proc/*.ipynb`."
import ast
import inspect
import logging
import os
import re
import textwrap
from functools import partial
from importlib import import_module

import nbdev.config
import nbdev.doclinks
import nbdev.processors
import nbdev.quarto
import nbdev.serve
from execnb.nbio import mk_cell
from fastcore.basics import AttrDict
from fastcore.docments import docments
from nbdev.doclinks import NbdevLookup
from nbdev.showdoc import BasicMarkdownRenderer, show_doc

logging.getLogger('torch.utils.cpp_extension').setLevel(logging.ERROR) # a CUDA without a GPU is no news here

# Parts of a signature -----------------------------------------------------------------------------

STARS = {inspect.Parameter.VAR_POSITIONAL: '*', inspect.Parameter.VAR_KEYWORD: '**'}
EMPTY = inspect.Parameter.empty

def _tree(sym):
    "What says how `sym` is called, as syntax tree, and the source; `None` and '' where there is none."
    try: src = textwrap.dedent(inspect.getsource(sym)).rstrip()
    except (OSError, TypeError): return None, ''
    try: tree = ast.parse(src).body[0]
    except SyntaxError: return None, ''
    if isinstance(tree, ast.ClassDef):
        tree = next((o for o in tree.body if isinstance(o, ast.FunctionDef) and o.name == '__init__'), tree)
    return tree, src

def _written(sym):
    "Types and defaults of `sym` as its author wrote them: `({name: type}, {name: default})`."
    tree, src = _tree(sym)
    def text(o): return re.sub(r'\s+', ' ', ast.get_source_segment(src, o)) if o is not None else None
    types, defaults = {}, {}
    if isinstance(tree, (ast.FunctionDef, ast.AsyncFunctionDef)):
        a = tree.args
        pos = a.posonlyargs + a.args
        for o in pos + a.kwonlyargs + [x for x in (a.vararg, a.kwarg) if x]: types[o.arg] = text(o.annotation)
        defaults |= {o.arg: text(d) for o, d in zip(reversed(pos), reversed(a.defaults))}
        defaults |= {o.arg: text(d) for o, d in zip(a.kwonlyargs, a.kw_defaults) if d is not None}
        types['return'] = text(tree.returns)
    elif isinstance(tree, ast.ClassDef):
        for o in tree.body:
            if not isinstance(o, ast.AnnAssign): continue
            types[o.target.id] = text(o.annotation)
            defaults[o.target.id] = _field_default(o.value, text)
    return types, {k: v for k, v in defaults.items() if v is not None}

def _field_default(value, text):
    "Default of a dataclass field, `field(default_factory=list)` shown as `list()`."
    if not (isinstance(value, ast.Call) and getattr(value.func, 'id', '') == 'field'): return text(value)
    kw = {k.arg: k.value for k in value.keywords}
    if 'default' in kw: return text(kw['default'])
    return f'{text(kw["default_factory"])}()' if 'default_factory' in kw else None

def _type_name(o):
    "Short name of an annotation that was found at run time only."
    if o is EMPTY or o is None: return ''
    return o if isinstance(o, str) else getattr(o, '__name__', None) or re.sub(r'(\w+\.)+', '', repr(o))

def _one_line(doc): return (inspect.cleandoc(doc).splitlines() or [''])[0] if doc else ''

def _cell(s): return s.replace('|', r'\|').replace('\n', ' ')

def _code(s): return f'`{_cell(s)}`' if s else ''

def _name(s): # of a parameter, which is no link to a symbol of the same name
    return f'<code class="literal">{s.replace("*", "&#42;")}</code>'

# The renderer -------------------------------------------------------------------------------------

class Table(BasicMarkdownRenderer):
    "A symbol as heading, signature, docstring, table of parameters and table of methods, in MyST Markdown."
    def __init__(self, sym, **kwargs):
        super().__init__(sym, **kwargs)
        self.is_property = isinstance(sym, property)
        if hasattr(sym, '__wrapped__') and '.' in sym.__qualname__: # a patched method with a decorator
            self.nm, self.fn = sym.__qualname__, f'{sym.__module__}.{sym.__qualname__}'

    def rows(self):
        "Name, type, default and details of each parameter; the returned value last."
        types, defaults = _written(self.sym)
        try: details = docments(self.sym, returns=True, args_kwargs=True)
        except (OSError, TypeError, AttributeError): details = {}
        res = []
        for i, p in enumerate(self.sig.parameters.values() if self.sig else ()):
            if i == 0 and p.name in ('self', 'cls'): continue
            default = '' if p.default is EMPTY else defaults.get(p.name) or _short(p.default)
            res.append((STARS.get(p.kind, '') + p.name, types.get(p.name) or _type_name(p.annotation), default,
                        details.get(p.name) or '', p))
        if self.is_class: return res
        returns = types.get('return') or (_type_name(self.sig.return_annotation) if self.sig else '')
        if (returns or details.get('return')) and returns != 'None':
            res.append(('return', returns, '', details.get('return') or '', None))
        return res

    @property
    def is_class(self): return inspect.isclass(self.sym)

    def signature(self, rows):
        "The call as Python would accept it, on several lines where it is long."
        args, kind = [], None
        for name, typ, default, _, p in rows:
            if p is None: continue
            if kind == p.POSITIONAL_ONLY and p.kind != kind: args.append('/')
            if p.kind == p.KEYWORD_ONLY and kind not in (p.KEYWORD_ONLY, p.VAR_POSITIONAL): args.append('*')
            args.append(name + (f':{typ}' if typ else '') + (f'={default}' if default else ''))
            kind = p.kind
        ret = next((f'->{typ}' for name, typ, *_ in rows if name == 'return' and typ), '')
        one = self.nm + ret if self.is_property else f'{self.nm}({", ".join(args)}){ret}'
        if len(one) <= 80: return one
        return f'{self.nm}(\n' + ''.join(f'    {o},\n' for o in args) + f'){ret}'

    def methods(self):
        "Public methods that the class or its page defines: `[(name, first line of the docstring)]`."
        res = []
        for nm, o in vars(self.sym).items():
            if nm[0] == '_' and nm not in ('__call__', '__getitem__', '__iter__', '__len__'): continue
            if isinstance(o, (staticmethod, classmethod)): o = o.__func__
            if isinstance(o, property): o = o.fget
            if not inspect.isfunction(o) or o.__module__ != self.sym.__module__: continue
            if o.__name__ == '<lambda>' or not o.__doc__: continue
            res.append((nm, _one_line(o.__doc__)))
        return res

    def source_link(self):
        "Where the definition stands; nbdev knows the file, the module knows the line."
        src = NbdevLookup().code(self.fn)
        return src and src.partition('#')[0] + f'#L{inspect.getsourcelines(self.sym)[1]}'

    def _repr_markdown_(self):
        docs = self.docs if self.sym.__doc__ else ''
        if not docs and self.nm.endswith('__'): return '' # an undocumented `__repr__` has nothing to say
        if self.nm[0] == '_': return '' # an event of a private class
        rows, out = self.rows(), ['#' * self.title_level + f' `{self.nm}`', ':::{container} api']
        if src := self.source_link(): out.append(f'[source]({src})')
        bases = [b.__name__ for b in self.sym.__bases__ if b is not object] if self.is_class else []
        bases = [nm for nm in bases if nm[0] != '_']
        out.append(f'```python\n{"class " if self.is_class else ""}{self.signature(rows)}\n```')
        if docs: out.append(docs)
        if bases: out.append('A kind of ' + ', '.join(f'`{b}`' for b in bases) + '.')
        if any(r[3] for r in rows): out.append(self.table(rows))
        if self.is_class and (methods := self.methods()):
            out.append('| Method | |\n|---|---|\n' + '\n'.join(
                f'| <span id="{self.nm.lower()}.{nm}"></span>{_code(nm)} | {_cell(d)} |' for nm, d in methods))
        if code := _tree(self.sym)[1]:
            out.append(f'<details class="code"><summary>Code</summary>\n\n```python\n{code}\n```\n\n</details>')
        return '\n\n'.join(out + [':::']) + '\n'

    def table(self, rows):
        "Parameters as a table; a column that would be empty is left out."
        head = ['Name', 'Type', 'Default', 'Details']
        body = [['**Returns**' if p is None else _name(nm), _code(t), _code(d), _cell(c)] for nm, t, d, c, p in rows]
        cols = [i for i in range(4) if i == 0 or any(r[i] for r in body)]
        lines = [[r[i] for i in cols] for r in [head, ['---'] * 4] + body]
        return '\n'.join('| ' + ' | '.join(r) + ' |' for r in lines)

def _short(o):
    "A default value that was found at run time only."
    return getattr(o, '__name__', None) or re.sub(r' at 0x[0-9a-f]+', '', repr(o))

# The processors -----------------------------------------------------------------------------------

def _constants(cell):
    "Public names that an exported cell assigns at its top level, with their source."
    if cell.cell_type != 'code' or 'export' not in cell.directives_: return []
    code = re.sub(r'^#\|.*\n', '', cell.source, flags=re.M)
    lines, res = code.splitlines(), []
    for o in ast.parse(code).body:
        if not isinstance(o, (ast.Assign, ast.AnnAssign)): continue
        targets = o.targets if isinstance(o, ast.Assign) else [o.target]
        names = [n.id for t in targets for n in ast.walk(t) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)]
        names = [n for n in names if n[0] != '_']
        if names: res.append((names, '\n'.join(lines[o.lineno-1:o.end_lineno])))
    return res

def _helpers(cell):
    "Source of an exported cell from which no symbol is shown, and the names it defines."
    if cell.cell_type != 'code' or not {'export', 'exporti'} & cell.directives_.keys(): return '', []
    code = re.sub(r'^#\|.*\n', '', cell.source, flags=re.M).strip()
    tree = ast.parse(code).body
    found = [o.name for o in tree if isinstance(o, (ast.FunctionDef, ast.ClassDef))]
    if 'exporti' in cell.directives_:
        targets = [t for o in tree if isinstance(o, ast.Assign) for t in o.targets]
        found += [t.id for t in targets if isinstance(t, ast.Name)]
    shown = 'export' in cell.directives_ and any(nm[0] != '_' for nm in found)
    return ('', []) if shown or not found else (code, found)

class add_show_docs(nbdev.processors.add_show_docs):
    "Show the symbols of a cell in the order of the cell; nbdev shows the last one first."
    def begin(self):
        super().begin()
        runs = [[]]
        for c in self.nb.cells:
            if getattr(c, 'has_sd', False): runs[-1].append(c)
            elif runs[-1]: runs.append([])
        order = {id(a): b for run in runs for a, b in zip(run, reversed(run))}
        self.nb.cells[:] = [order.get(id(c), c) for c in self.nb.cells]

class show_code(nbdev.processors.Processor):
    """Show what nbdev's own `add_show_docs` leaves out: exported constants and aliases; folded, the code of what is
    private, or a rule among many, where the prose speaks of it."""
    def begin(self):
        cells = []
        for cell in self.nb.cells: cells += [cell, *map(_text_cell, [*_fold(cell), *map(_constant, _constants(cell))])]
        self.nb.cells[:] = cells
        for i, c in enumerate(cells): c.idx_ = i

def _text_cell(text):
    res = mk_cell(text, 'markdown')
    res.directives_ = {}
    return res

def _constant(found):
    names, src = found
    heads = '\n\n'.join(f'### `{n}`' for n in names)
    return f'{heads}\n\n:::{{container}} api\n```python\n{src}\n```\n:::'

def _fold(cell):
    code, names = _helpers(cell)
    names = list(dict.fromkeys(nm for nm in names if nm.strip('_'))) # `_` is one of several of a kind
    what = ': ' * bool(names) + ', '.join(names[:4]) + ', …' * (len(names) > 4)
    fold = f'<details class="code"><summary>Code{what}</summary>\n\n```python\n{code}\n```\n\n</details>'
    return [fold] if code else []

class render_show_docs(nbdev.processors.Processor):
    """Fill `show_doc` cells from the exported module.

    nbdev's own `exec_show_docs` runs every cell that holds an import, lessons included; a page needs none of that."""
    def begin(self):
        lib = nbdev.config.get_config().lib_path.name
        self.where = f'{lib}.{self.nb.default_exp_ or "all"}'
        self.ns = None

    def cell(self, cell):
        if cell.cell_type != 'code' or not nbdev.processors._is_showdoc(cell): return
        self.ns = self.ns or vars(import_module(self.where)) | {'show_doc': partial(show_doc, renderer=Table)}
        for o in nbdev.processors._show_docs(ast.parse(cell.source).body):
            try: doc = eval(compile(ast.Expression(o.value), self.where, 'eval'), self.ns)
            except (NameError, AttributeError) as e:
                raise LookupError(f'{self.where} differs from its notebook ({e}): run nbdev_export') from e
            if doc is None: continue
            data = AttrDict({'text/markdown': doc._repr_markdown_().splitlines(keepends=True)})
            cell.outputs.append(AttrDict(output_type='display_data', metadata={}, data=data))

class Processors(nbdev.processors.FilterDefaults):
    "nbdev's processors, with constants shown and with our renderer."
    def base_procs(self):
        res = []
        for o in super().base_procs():
            ours = {'exec_show_docs': render_show_docs, 'add_show_docs': add_show_docs}
            res.append(ours.get(o.__name__, o))
            if o.__name__ == 'add_show_docs': res.append(show_code)
        return res

    def __call__(self, nb):
        nb.default_exp_ = nbdev.processors._default_exp(nb)
        return super().__call__(nb)

# What `build.py` calls ----------------------------------------------------------------------------

def check_installed(lib):
    "nbdev finds symbols through the entry points of installed packages."
    from importlib.metadata import entry_points
    if lib not in entry_points(group='nbdev').names:
        raise SystemExit(f'{lib} is not installed here, so no symbol can be linked: pip install --no-deps -e .')

def preprocess(n_workers):
    "Write `nbs/*.yml`, `_modidx.py` and `_proc/`, as `nbdev_docs` would; needs no Quarto."
    os.environ['PYTHONWARNINGS'] = 'ignore::FutureWarning,ignore::DeprecationWarning' # of imports, in the workers
    nbdev.quarto.refresh_quarto_yml()
    nbdev.doclinks._build_modidx()
    nbdev.quarto.nbdev_sidebar.__wrapped__()
    nbdev.serve.FilterDefaults = Processors
    return nbdev.serve.proc_nbs(force=True, n_workers=n_workers)
