for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const headers = [...table.tHead.rows[0].cells];
  headers.forEach((header, column) => {
    if (!header.textContent) return;
    const button = document.createElement("button");
    button.type = "button";
    button.append(...header.childNodes);
    header.append(button);
    button.addEventListener("click", () => {
      const up = header.getAttribute("aria-sort") === "descending";
      headers.forEach((other) => other.removeAttribute("aria-sort"));
      header.setAttribute("aria-sort", up ? "ascending" : "descending");
      const key = (row) => row.cells[column].dataset.value;
      const compare = (a, b) => header.dataset.kind === "number"
        ? key(a) - key(b) : key(a).localeCompare(key(b), "en", { numeric: true });
      // What is not known stays at the end, whichever way.
      const missing = (row) => key(row) === "";
      const rows = [...body.rows].sort((a, b) =>
        missing(a) - missing(b) || (missing(a) ? 0 : up ? compare(a, b) : compare(b, a)));
      body.append(...rows);
    });
  });
}
