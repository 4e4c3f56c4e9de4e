"use strict";
// Without this script the page shows everything; it finds and sorts.
{
  const byId = (id) => document.getElementById(id);

  // Shows those of some elements that hold the text of an input and are of the chosen kind.
  function finds(elements, input, output, select) {
    if (!input) return;
    const texts = elements.map((element) => element.textContent.toLowerCase());
    const show = () => {
      const wanted = input.value.toLowerCase();
      const kind = select ? select.value : "";
      let shown = 0;
      elements.forEach((element, i) => {
        element.hidden = !texts[i].includes(wanted) || (kind !== "" && element.dataset.kind !== kind);
        shown += element.hidden ? 0 : 1;
      });
      output.value = wanted || kind ? `${shown} of ${elements.length}` : "";
    };
    input.addEventListener("input", show);
    if (select) select.addEventListener("change", show);
  }

  const body = byId("rows").tBodies[0];
  finds([...body.rows], byId("find-rows"), byId("rows-shown"));
  finds([...document.querySelectorAll("#answers article")], byId("find-answers"),
    byId("answers-shown"), byId("kind"));

  // Headings of numbers become buttons that sort.
  for (const heading of document.querySelectorAll("[data-sort]")) {
    const button = document.createElement("button");
    button.append(...heading.childNodes);
    heading.append(button);
    button.addEventListener("click", () => {
      const down = heading.getAttribute("aria-sort") === "ascending";
      for (const other of document.querySelectorAll("[aria-sort]")) other.removeAttribute("aria-sort");
      heading.setAttribute("aria-sort", down ? "descending" : "ascending");
      const value = (row) => Number(row.cells[heading.cellIndex].textContent);
      body.append(...[...body.rows].sort((a, b) => (down ? -1 : 1) * (value(a) - value(b))));
    });
  }
}
