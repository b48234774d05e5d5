"use strict";
// Tables that sort, search, and open a row's evidence. Texts come as JSON and go in as textContent: nothing in them is ever markup.
(() => {
  const STEP = 100;
  const number = new Intl.NumberFormat("en-US", { maximumFractionDigits: 3 });
  const compare = new Intl.Collator(undefined, { numeric: true }).compare;
  const told = (value) => value === null ? "" : typeof value === "number" ? number.format(value) : value;

  function make(tag, text, more) {
    const element = Object.assign(document.createElement(tag), more);
    if (text !== undefined) element.textContent = text;
    return element;
  }

  function mount(host) {
    const { columns, rows } = JSON.parse(document.getElementById(host.dataset.rows).textContent);
    const head = host.querySelector("thead tr"), body = host.querySelector("tbody");
    const search = host.querySelector("input"), count = host.querySelector("output"), more = host.querySelector("button.more");
    const haystack = rows.map((row) => row.filter((v) => typeof v === "string").join("\n").toLowerCase());
    const cells = columns.map((_, c) => c).filter((c) => columns[c].kind !== "more");
    const folded = columns.map((_, c) => c).filter((c) => columns[c].kind === "more");
    const open = new Set();
    let order = -1, down = true, shown = STEP, order_of = rows.map((_, i) => i);

    function evidence(i) {
      const tr = make("tr", undefined, { className: "evidence" }), td = make("td", undefined, { colSpan: cells.length + 1 }), list = make("dl");
      for (const c of folded) {
        if (rows[i][c] !== null) list.append(make("dt", columns[c].title), make("dd", told(rows[i][c]), { dir: "auto" }));
      }
      td.append(list);
      tr.append(td);
      return tr;
    }

    function fold(i, tr) {
      const td = make("td", undefined, { className: "fold" }), button = make("button", undefined, { type: "button" });
      const say = () => {
        button.textContent = open.has(i) ? "\u2212" : "+";
        button.setAttribute("aria-expanded", open.has(i));
        button.setAttribute("aria-label", `Evidence of ${rows[i].find((v, c) => columns[c].kind === "text" && v) || "this row"}`);
      };
      button.addEventListener("click", () => {
        if (open.delete(i)) tr.nextElementSibling.remove();
        else { open.add(i); tr.after(evidence(i)); }
        say();
      });
      say();
      td.append(button);
      return td;
    }

    function draw() {
      const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
      const found = order_of.filter((i) => words.every((w) => haystack[i].includes(w)));
      body.replaceChildren(...found.slice(0, shown).flatMap((i) => {
        const tr = make("tr");
        if (folded.length) tr.append(fold(i, tr));
        for (const c of cells) {
          const td = make("td", told(rows[i][c]), { className: columns[c].kind });
          if (columns[c].kind === "text") td.dir = "auto";
          tr.append(td);
        }
        return open.has(i) ? [tr, evidence(i)] : [tr];
      }));
      count.textContent = `${number.format(found.length)} of ${number.format(rows.length)} rows`;
      more.hidden = found.length <= shown;
    }

    cells.forEach((c, n) => {
      const th = head.children[n + (folded.length > 0)];
      th.querySelector("button").addEventListener("click", () => {
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
      });
    });
    search.addEventListener("input", () => { shown = STEP; draw(); });
    more.addEventListener("click", () => { shown += 4 * STEP; draw(); });
    addEventListener("beforeprint", () => { shown = Math.max(shown, 4 * STEP); draw(); });
    draw();
  }
  document.querySelectorAll("[data-rows]").forEach(mount);
})();
