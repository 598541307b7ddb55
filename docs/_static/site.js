// A table that is a little too wide is set smaller, so that its last column is seen; if that is not enough its names
// break as well. One that is much too wide scrolls.
function tighten() {
  for (const table of document.querySelectorAll('.cell_output .output table.dataframe')) {
    const box = table.closest('.output'), fits = () => box.scrollWidth <= box.clientWidth;
    table.classList.remove('tight', 'breaks');
    table.style.fontSize = '';
    if (fits()) continue;
    table.classList.add('tight');
    if (!fits() && !shrink(table, box)) {
      table.classList.add('breaks');
      if (!fits() && !shrink(table, box)) table.classList.remove('breaks');
    }
  }
}

// Whether the font can be made so small that a table fits, and still be read.
function shrink(table, box) {
  const share = box.clientWidth / box.scrollWidth;
  if (share > .85) table.style.fontSize = `${parseFloat(getComputedStyle(table).fontSize) * share * .97}px`;
  return share > .85;
}

// Printed columns stay columns: they scroll, other printed lines wrap.
function columns() {
  for (const pre of document.querySelectorAll('.cell_output pre'))
    pre.classList.toggle('columns', /\S {2,}\S.*\n.*\S {2,}\S/.test(pre.textContent));
}

// What goes on beyond the right edge fades there, until it has been scrolled to its end.
function fade(el) { el.classList.toggle('more', el.scrollWidth - el.clientWidth - el.scrollLeft > 2); }

// What scrolls can be reached and scrolled with the keyboard.
function reachable() {
  for (const el of document.querySelectorAll('pre, .cell_output .output, .table-wrapper, div.equation .math')) {
    if (el.scrollWidth > el.clientWidth || el.scrollHeight > el.clientHeight) el.tabIndex = 0;
    else el.removeAttribute('tabindex');
    fade(el);
    el.onscroll = () => fade(el);
  }
}
function fit() { columns(); tighten(); reachable(); }
addEventListener('load', fit);
addEventListener('resize', fit);
