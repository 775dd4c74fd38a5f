// Sorting for the tables that compare families. Without this file they stand in the order of the chapters.

const valueOf = (row, column) => {
  const cell = row.cells[column];
  return column === 0 ? cell.textContent : cell.dataset.value === undefined ? null : Number(cell.dataset.value);
};

/** Rows by one column; what has no value goes last. Data stay below the families: they are sorted among themselves. */
function sortBy(table, column, direction) {
  const compare = (a, b) => {
    const [x, y] = [valueOf(a, column), valueOf(b, column)];
    if (x === null || y === null) return (x === null) - (y === null);
    return direction * (typeof x === "string" ? x.localeCompare(y) : x - y);
  };
  for (const body of table.tBodies) body.append(...[...body.rows].sort(compare));
}

for (const table of document.querySelectorAll("table.families")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const title = head.querySelector(".families-title") ?? head;
    const button = document.createElement("button");
    button.type = "button";
    button.append(...title.childNodes);
    title.append(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      sortBy(table, column, down ? -1 : 1);
    });
  });
}
