"The bridge from notebooks to the site and to README.md, on small notebooks."
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT/'docs'))

import bridge
from bridge import Site, to_markdown, to_myst

PAGES = {'index.ipynb':'index', '00_core.ipynb':'core', '04_masks.ipynb':'masks',
         'tutorials/01_five.ipynb':'tutorials/five', '../CHANGELOG.md':'changelog'}
SITE = Site('early_prune', 'https://docs.example/book', 'https://github.com/u/repo', PAGES)

def md(src): return {'cell_type':'markdown', 'metadata':{}, 'source':src}
def raw(src): return {'cell_type':'raw', 'metadata':{}, 'source':src}
def code(src, *outputs): return md(src) | {'cell_type':'code', 'outputs':list(outputs), 'execution_count':None}
def out(**data):
    return {'output_type':'display_data', 'metadata':{}, 'data':{k.replace('_', '/', 1):v for k,v in data.items()}}
def stream(text, name='stdout'): return {'output_type':'stream', 'name':name, 'text':text}

def page(*cells, path='04_masks.ipynb'): return to_myst({'cells':list(cells)}, path, SITE)['cells']
def prose(*cells, **kw): return '\n'.join(c['source'] for c in page(*cells, **kw) if c['cell_type']=='markdown')
def link(url, path='04_masks.ipynb'): return prose(md(f'[x]({url})'), path=path).splitlines()[-1]

def test_pages_are_named_as_nbdev_names_them():
    names = '00_core.ipynb', 'index.ipynb', 'tutorials/01_Five.ipynb'
    assert [bridge.page_of(o) for o in names] == ['core', 'index', 'tutorials/five']

@pytest.mark.parametrize('title,anchor', [
    ('Which parameters', 'which-parameters'), ('`Masks.update`', 'masks.update'), ('1. What, and why?', 'what-and-why'),
    ('keep_top', 'keep_top'), ('???', 'section')])
def test_anchors_are_pandocs(title, anchor): assert bridge.slug(title) == anchor

def test_front_matter_becomes_a_numbered_title_and_a_subtitle():
    head = page(raw('---\ntitle: Masks\ndescription: Which ones?\n---'))[0]['source']
    assert head.startswith('# 4. Masks\n') and 'subtitle\nWhich ones?' in head

def test_a_page_says_where_to_run_it():
    head = page(md('x'), path='tutorials/01_five.ipynb')[0]['source']
    assert 'https://github.com/u/repo/blob/main/nbs/tutorials/01_five.ipynb' in head and '/lab/tree/nbs/tutorials/01_five.ipynb' in head
    assert 'https://colab.research.google.com/github/u/repo/blob/main/nbs/tutorials/01_five.ipynb' in head
    assert '/lab/tree' not in page(md('x'), path='index.ipynb')[0]['source']

def test_a_repository_that_is_not_on_github_has_no_colab():
    site = replace(SITE, git_url='https://git.example/u/repo')
    assert 'colab' not in to_myst({'cells':[md('x')]}, '04_masks.ipynb', site)['cells'][0]['source']

def test_a_tutorial_has_no_number():
    assert prose(raw('---\ntitle: Five\n---'), path='tutorials/01_five.ipynb').strip().startswith('# Five\n')

def test_the_notebook_is_valid():
    import nbformat
    shown = code('#| output: asis\n#| echo: false\nshow_doc(f)', out(text_markdown='### `f`'))
    nb = to_myst({'cells':[md('a'), code('1', stream('1')), shown]}, '04_masks.ipynb', SITE)
    nbformat.validate(nbformat.from_dict(nb))

@pytest.mark.parametrize('path,url,want', [
    ('04_masks.ipynb', 'https://docs.example/book/core.html#prunable', 'core.html#prunable'),
    ('tutorials/01_five.ipynb', 'https://docs.example/book/core.html#prunable', '../core.html#prunable'),
    ('04_masks.ipynb', 'https://docs.example/book/masks.html#masks.update', '#masks.update'),
    ('04_masks.ipynb', '00_core.ipynb#cost', 'core.html#cost'),
    ('tutorials/01_five.ipynb', '../00_core.ipynb', '../core.html'),
    ('04_masks.ipynb', 'tutorials/01_five.ipynb', 'tutorials/five.html'),
    ('04_masks.ipynb', '../CHANGELOG.md', 'changelog.html'),
    ('04_masks.ipynb', '#in-practice', '#in-practice'),
])
def test_links_are_relative(path, url, want): assert link(url, path) == f'[x](page:{want})'

def test_source_links_stay_on_the_site():
    url = 'https://github.com/u/repo/blob/main/early_prune/core.py#L12'
    assert link(url) == '[x](page:_modules/core.html#L-12){.source}'
    assert link(url, 'tutorials/01_five.ipynb') == '[x](page:../_modules/core.html#L-12){.source}'

def test_other_links_are_left_alone(): assert link('https://arxiv.org/abs/1710.01878') == '[x](https://arxiv.org/abs/1710.01878)'
def test_symbols_that_no_page_shows_are_not_linked():
    site = Site('early_prune', SITE.doc_url, SITE.git_url, PAGES, frozenset({'core.html#cost'}))
    urls = [f'[x]({SITE.doc_url}/core.html#{o})' for o in ('cost', 'masks._off')]
    assert [bridge.links(o, 'masks', site) for o in urls] == ['[x](page:core.html#cost)', 'x']

def test_anchors_of_symbols_are_found_in_headings_and_tables_of_methods():
    shown = code('', out(text_markdown='### [`B.f`](u)\n\n<span id="B.g"></span>`g`'))
    nb = {'cells':[md('### `A`\n\n## Not one'), shown]}
    assert bridge.symbol_anchors(nb, 'core') == {'core.html#a', 'core.html#b.f', 'core.html#b.g'}

def test_links_to_files_of_the_repository_are_dropped():
    assert link('../LICENSE') == 'x' and link('../../setup.py', 'tutorials/01_five.ipynb') == 'x'

def test_links_in_code_are_left_alone(): assert '[x](00_core.ipynb)' in prose(md('```\n[x](00_core.ipynb)\n```'))
def test_attributes_of_quarto_are_dropped():
    assert prose(md('[x](00_core.ipynb){target="_blank"}')).endswith('[x](page:core.html)')

def test_modules_are_linked():
    assert prose(md('`early_prune.core`, `early_prune.nothing`')).endswith(
        '[`early_prune.core`](page:core.html), `early_prune.nothing`')

def test_a_number_of_arxiv_is_a_link_once():
    want = '[arXiv:2106.10404](https://arxiv.org/abs/2106.10404)'
    assert prose(md('Liu et al. arXiv:2106.10404.')).endswith(f'{want}.') and prose(md(want)).endswith(want)
    assert prose(md('`arXiv:2106.10404`')).endswith('`arXiv:2106.10404`')

def test_headings_are_no_links(): assert '### `f`' in prose(md('### [`f`](https://docs.example/book/core.html#f)'))

def test_callout_with_and_without_title():
    res = prose(md('::: {.callout-warning title="A trap"}\nMind.\n:::\n\n'
                   '::: {.callout-note}\nPlain.\n:::\n\n'
                   '::: {.callout-tip}\n## Head\nBody.\n:::'))
    assert ':::{admonition} A trap\n:class: warning\n\nMind.\n:::' in res
    assert ':::{note}\nPlain.\n:::' in res
    assert ':::{admonition} Head\n:class: tip\n\nBody.\n:::' in res

def test_a_misspelt_callout_is_an_error():
    with pytest.raises(ValueError, match='warnign'): prose(md('::: {.callout-warnign}\nx\n:::'))

def test_equations_get_labels_of_their_page():
    res = prose(md('$$a=b$$ {#eq-x}\n\nBy @eq-x, not `@eq-x`, not me@eq-x.'))
    assert '$$a=b$$ (masks-eq-x)' in res and 'By {eq}`masks-eq-x`, not `@eq-x`, not me@eq-x.' in res

def test_asis_output_becomes_prose():
    shown = out(text_markdown=['### [`f`](https://docs.example/book/core.html#f)\n', 'Does.'])
    cells = page(code('#| echo: false\n#| output: asis\nshow_doc(f)', shown))
    assert [c['cell_type'] for c in cells] == ['markdown', 'markdown']
    assert cells[1]['source'] == '### `f`\nDoes.'

def test_directives_become_tags():
    cell = page(code('#| echo: false\n#| output: false\nf()', stream('1')))[1]
    assert cell['source'] == 'f()' and cell['metadata']['tags'] == ['remove-input', 'remove-output']
    assert page(code('#| include: false\nf()'))[1:] == []

def test_an_answer_is_hidden_until_asked_for():
    meta = page(code('#| answer: 2\nx'))[1]['metadata']
    assert meta['tags']==['hide-cell'] and meta['mystnb']['code_prompt_show']=='Answer 2'

def test_pictures_have_alternative_text():
    cell = page(md('First. Half of the `weights` are gone:'), code('plot()', out(image_png='xx')))[2]
    assert cell['metadata']['mystnb']['image']['alt'] == 'Half of the weights are gone'

def test_a_training_table_loses_style_and_progress():
    table = '<table class="fastprogress"><tr><td>0</td></tr></table>'
    plain = '<IPython.core.display.HTML object>'
    o = out(text_html=f'<style>\n.progress {{}}\n</style>{table}', text_markdown='```html```', text_plain=plain)
    assert bridge.clean_output(o)['data'] == {'text/html':'<table class="dataframe"><tr><td>0</td></tr></table>'}
    assert bridge.clean_output(out(text_html='<style>x</style>', text_plain=plain)) is None

def test_sentences_in_a_table_wrap_and_numbers_do_not():
    row = '<table border="1" class="dataframe"><tr><td>1.0 ± .3</td><td>{}</td></tr></table>'
    shown = bridge.clean_html(row.format('a sentence of more than forty characters is prose'))
    assert shown.count('<td class="prose">')==1 and '<td>1.0' in shown
    assert 'prose' not in bridge.clean_html(row.format('short'))

TABLE = """<table class="dataframe"><thead><tr><th></th><th>recipe</th><th>at</th></tr></thead><tbody>
<tr><th>0</th><td class="a">agp</td><td>3 ± .1</td></tr><tr><th>1</th><td></td><td>never</td></tr></tbody></table>"""

def test_columns_of_words_are_marked_and_mixed_ones_are_numbers():
    shown = bridge.mark_words(TABLE)
    assert '<th class="words">recipe</th>' in shown and '<td class="a words">agp</td>' in shown
    assert '<td class="words"></td>' in shown and shown.count('words')==3
    long = bridge.mark_words(TABLE.replace('<th>0', '<th>a_very_long_name'))
    assert '<th class="long">a_<wbr>very_<wbr>long_<wbr>name</th>' in long
    assert bridge.mark_words('<p>no table</p>')=='<p>no table</p>'

@pytest.mark.parametrize('name,shown', [
    ('train_loss', 'train_<wbr>loss'), ('4.shortcut.0.weight', '4.<wbr>shortcut.0.<wbr>weight'),
    ('0.95', '0.95'), ('v1.2.3', 'v1.2.3'), ('random_', 'random_'), ('at 40 %', 'at 40\N{NO-BREAK SPACE}%')])
def test_a_name_in_a_table_may_break_and_a_number_may_not(name, shown):
    assert f'>{shown}</th>' in bridge.mark_words(TABLE.replace('<th>0', f'<th>{name}'))

def test_standard_error_is_not_shown():
    assert bridge.clean_outputs([stream('warn', 'stderr'), stream('ok')]) == [stream('ok')]

def test_a_method_has_one_anchor():
    table = '| <span id="mask.update"></span>`update` | Change. |\n| <span id="mask.keep"></span>`keep` | Keep. |'
    res = prose(md(table), md('### `Mask.update`'))
    assert '[`update`](page:#mask.update)' in res and 'id="mask.keep"' in res
    linked = prose(md(table.replace('`update`', '[`update`](core.html#update)')), md('### `Mask.update`'))
    assert '[`update`](page:#mask.update)' in linked and 'core.html' not in linked

def test_a_number_stays_with_its_unit():
    assert prose(md('95 % in 3 ms, `95 %` of 3 sets')).endswith('95\u00a0% in 3\u00a0ms, `95 %` of 3 sets')

def readme(*cells): return to_markdown({'cells':list(cells)}, SITE)

def test_readme_hides_what_the_page_hides():
    text,_ = readme(md('# T\n\n> Sub'), code('#| hide\nx'), code('#| export\ny'),
                    code('#| echo: false\nz', stream('seen')), code('2*3', stream('6')))
    assert '# T\n\nSub' in text and '```text\nseen\n```' in text and '```python\n2*3\n```' in text
    assert not any(o in text for o in ('x\n', 'y\n', 'z\n'))

def test_readme_stores_pictures_as_files():
    svg = out(**{'image_svg+xml':['<svg/>']})
    text,images = readme(md('The picture:'), code('plot()', out(image_png='aGk=')), code('plot()', svg))
    assert '![The picture](docs/images/readme-1.png)' in text and 'base64' not in text
    assert images == {'docs/images/readme-1.png':b'hi', 'docs/images/readme-2.svg':b'<svg/>'}
    text,_ = readme(md('The picture:'), code('#| fig-alt: Two lines that cross.\nplot()', svg))
    assert '![Two lines that cross.](docs/images/readme-1.svg)' in text

def test_readme_links_lead_to_files():
    text,_ = readme(md('[a](00_core.ipynb) [b](tutorials/five.html) [c](../CHANGELOG.md)'))
    assert '[a](nbs/00_core.ipynb) [b](nbs/tutorials/01_five.ipynb) [c](CHANGELOG.md)' in text
    text,_ = readme(md('[d](https://x.example) [`f`](https://docs.example/book/core.html#f)'))
    assert '[d](https://x.example) `f`' in text

def test_readme_callouts_are_github_alerts():
    assert '> [!TIP]\n> **T**\n>\n> Body.' in readme(md('::: {.callout-tip title="T"}\nBody.\n:::'))[0]

def test_readme_tables_have_no_style():
    table = '<table border="1" class="dataframe"><tr style="text-align: right;"><th>a</th></tr></table>'
    text,_ = readme(code('df', out(text_html=f'<div>\n<style scoped>\n a\n</style>\n{table}\n</div>')))
    assert 'style' not in text and '<table class="dataframe"><tr><th>a</th></tr></table>' in text

def test_bridge_does_not_change_its_input():
    nb = {'cells':[md('[x](00_core.ipynb)'), code('df', out(text_html='<style>a</style><b>1</b>', text_plain='1'))]}
    before = json.dumps(nb)
    to_myst(nb, '04_masks.ipynb', SITE), to_markdown(nb, SITE)
    assert json.dumps(nb) == before

# The renderer of `show_doc`

class Unit:
    "What is kept as a whole."
    def __init__(self, dims:int|None=None): self.dims = dims # Leading dimensions
    def count(self): "Count the units."

def keep(
    scores:list,        # Scores, `(n,)`, a|b
    *others:list,       # More scores
    floor:int|None=.5,  # Least share
    **kwargs,
)->dict:                # Masks
    "Keep the best."

def bare(x): "No comments here."

def table(sym, **kwargs):
    from process import Table
    return Table(sym, **kwargs)._repr_markdown_()

def test_signature_keeps_stars_unions_and_defaults():
    assert '`keep`\n' in table(keep)
    assert '```python\nkeep(scores:list, *others:list, floor:int|None=.5, **kwargs)->dict\n```' in table(keep)

def test_parameters_are_a_table():
    res = table(keep)
    assert '| Name | Type | Default | Details |' in res
    assert r'| <code class="literal">floor</code> | `int\|None` | `.5` | Least share |' in res and r'`(n,)`, a\|b |' in res
    assert '| **Returns** | `dict` |  | Masks |' in res

def test_without_comments_there_is_no_table(): assert '|' not in table(bare)

def test_a_class_lists_its_methods():
    res = table(Unit)
    assert 'class Unit(dims:int|None=None)' in res and '<code class="literal">dims</code> |' in res and '&#42;others' in table(keep)
    assert '<span id="unit.count"></span>`count` | Count the units. |' in res
