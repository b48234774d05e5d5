"use strict";
// Tables that sort and search. Texts come as JSON and go in as textContent: nothing in them is ever markup.
(() => {
  const STEP = 100;
  const number = new Intl.NumberFormat("en-US", { maximumFractionDigits: 3 });
  const compare = new Intl.Collator(undefined, { numeric: true }).compare;

  function mount(host) {
    const { columns, rows } = JSON.parse(document.getElementById(host.dataset.rows).textContent);
    const head = host.querySelector("thead tr"), body = host.querySelector("tbody");
    const search = host.querySelector("input"), count = host.querySelector("output"), more = host.querySelector("button.more");
    const haystack = rows.map((row) => row.filter((v) => typeof v === "string").join("\n").toLowerCase());
    let order = -1, down = true, shown = STEP, order_of = rows.map((_, i) => i);

    function draw() {
      const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
      const found = order_of.filter((i) => words.every((w) => haystack[i].includes(w)));
      body.replaceChildren(...found.slice(0, shown).map((i) => {
        const tr = document.createElement("tr");
        rows[i].forEach((value, c) => {
          const td = document.createElement("td");
          td.className = columns[c].kind;
          if (columns[c].kind === "text") td.dir = "auto";
          td.textContent = value === null ? "" : typeof value === "number" ? number.format(value) : value;
          tr.append(td);
        });
        return tr;
      }));
      count.textContent = `${number.format(found.length)} of ${number.format(rows.length)} rows`;
      more.hidden = found.length <= shown;
    }

    [...head.children].forEach((th, c) => th.querySelector("button").addEventListener("click", () => {
      down = order === c ? !down : columns[c].kind === "n";
      order = c;
      order_of = rows.map((_, i) => i).sort((a, b) => {
        const x = rows[a][c], y = rows[b][c];
        if (x === null || y === null) return (x === null) - (y === null);
        return (typeof x === "number" ? x - y : compare(x, y)) * (down ? -1 : 1);
      });
      [...head.children].forEach((other) => other.removeAttribute("aria-sort"));
      th.setAttribute("aria-sort", down ? "descending" : "ascending");
      draw();
    }));
    search.addEventListener("input", () => { shown = STEP; draw(); });
    more.addEventListener("click", () => { shown += 4 * STEP; draw(); });
    addEventListener("beforeprint", () => { shown = Math.max(shown, 4 * STEP); draw(); });
    draw();
  }
  document.querySelectorAll("[data-rows]").forEach(mount);
})();
