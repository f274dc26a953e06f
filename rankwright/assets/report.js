
// Sorting tables by a click on a column head. Everything else on the page works without scripts.
"use strict";
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const descending = head.getAttribute("aria-sort") !== "descending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", descending ? "descending" : "ascending");
      const value = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent;
      const order = (left, right) => {
        const difference = Number(left) - Number(right);
        return Number.isNaN(difference) ? left.localeCompare(right) : difference;
      };
      const rows = [...table.tBodies[0].rows].sort((left, right) => order(value(left), value(right)));
      table.tBodies[0].append(...(descending ? rows.reverse() : rows));
    });
  });
}
