// Renders what Sphinx marked as mathematics, with the KaTeX that lies beside this file.
document.addEventListener('DOMContentLoaded', () => {
  for (const el of document.querySelectorAll('.math[data-tex]'))
    katex.render(el.dataset.tex, el, {displayMode: el.tagName === 'DIV', throwOnError: true, output: 'htmlAndMathml'});
});
