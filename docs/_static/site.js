// A table that is a little too wide is set smaller, so that its last column is seen.
function tighten() {
  for (const table of document.querySelectorAll('.cell_output .output table.dataframe')) {
    const box = table.closest('.output');
    table.classList.remove('tight');
    if (box.scrollWidth > box.clientWidth) table.classList.add('tight');
  }
}

// What scrolls can be reached and scrolled with the keyboard.
function reachable() {
  for (const el of document.querySelectorAll('pre, .cell_output .output, .table-wrapper, div.equation .math'))
    if (el.scrollWidth > el.clientWidth || el.scrollHeight > el.clientHeight) el.tabIndex = 0;
    else el.removeAttribute('tabindex');
}
function fit() { tighten(); reachable(); }
addEventListener('load', fit);
addEventListener('resize', fit);
