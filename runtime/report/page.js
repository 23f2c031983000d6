"use strict";
(() => {
  const make = (tag, properties = {}, ...children) => {
    const made = Object.assign(document.createElement(tag), properties);
    made.append(...children);
    return made;
  };

  // Theme: the system's until the reader chooses.
  const root = document.documentElement;
  document.getElementById("theme").addEventListener("click", () => {
    const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
  });

  // Zoom: one dialog for all pictures of the page. The arrow keys go through the neighbours.
  const caption = make("p"), shown = make("div", { className: "shown" });
  const before = make("button", { type: "button", textContent: "← Previous" });
  const after = make("button", { type: "button", textContent: "Next →" });
  const shut = make("button", { type: "button", textContent: "Close" });
  const dialog = make("dialog", {}, make("div", { className: "bar" }, caption, before, after, shut), shown);
  dialog.setAttribute("aria-label", "Pictures of one image");
  document.body.append(dialog);
  let neighbours = [], place = 0;
  const go = (to) => {
    if (to < 0 || to >= neighbours.length) return;
    place = to;
    const one = neighbours[place];
    caption.textContent = one.caption;
    shown.replaceChildren(...one.pictures.map(([name, source]) =>
      make("figure", {}, make("img", { src: source, alt: name }), make("figcaption", { textContent: name }))));
    before.disabled = place === 0;
    after.disabled = place === neighbours.length - 1;
  };
  const open = (all, at) => { neighbours = all; go(at); dialog.showModal(); };
  before.addEventListener("click", () => go(place - 1));
  after.addEventListener("click", () => go(place + 1));
  shut.addEventListener("click", () => dialog.close());
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  dialog.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (step) { event.preventDefault(); go(place + step); }
  });
  for (const gallery of document.querySelectorAll(".gallery")) {
    const buttons = [...gallery.querySelectorAll("button.zoom")];
    const all = () => buttons.map((button) => ({
      caption: button.closest("figure").querySelector("figcaption").textContent.trim(),
      pictures: [...button.querySelectorAll("img")].map((one) => [one.alt, one.src]),
    }));
    buttons.forEach((button, at) => button.addEventListener("click", () => open(all(), at)));
  }

  // Tables. A row is {values, element()}: rows of a small table stand in the page, rows of a large one in its JSON.
  const compare = (a, b) => {
    if (a === b) return 0;
    if (a === null || a === "") return 1;
    if (b === null || b === "") return -1;
    return typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), "en", { numeric: true });
  };
  const sortable = (table, rows, show) => {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => head.querySelector("button")?.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const missing = (row) => row.values[column] === null || row.values[column] === "";
      // Rows without a value stay at the end in both directions.
      rows.sort((a, b) => (down && !missing(a) && !missing(b) ? -1 : 1) * compare(a.values[column], b.values[column]));
      show();
    }));
  };
  for (const table of document.querySelectorAll("table.sortable")) {
    const body = table.tBodies[0];
    const value = (cell) => {
      const text = cell.textContent.trim();
      const amount = parseFloat(text);
      return !cell.classList.contains("n") ? text : isNaN(amount) ? null : amount;
    };
    const rows = [...body.rows].map((element) => ({ values: [...element.cells].map(value), element }));
    sortable(table, rows, () => body.append(...rows.map((row) => row.element)));
  }

  const PAGE = 50;
  for (const holder of document.querySelectorAll(".images")) {
    const data = JSON.parse(document.getElementById(holder.dataset.source).textContent);
    const table = holder.querySelector("table"), body = table.tBodies[0];
    const rows = data.rows.map((values, at) => ({ values, pictures: data.pictures[at] ?? [] }));
    const named = (row) => row.pictures.flatMap((source, at) => (source ? [[data.captions[at], source]] : []));
    const spoken = (row) => data.columns.map((column, at) =>
      [column, row.values[at]]).filter(([, one]) => one !== null && one !== "").map(([column, one]) =>
      column.kind === "number" ? `${column.name} ${one.toFixed(column.digits)}` : one).join(", ");
    const search = holder.querySelector("input"), choices = [...holder.querySelectorAll("select")];
    const count = holder.querySelector(".count"), pager = holder.querySelector(".pager");
    const [back, on] = pager.querySelectorAll("button"), where = pager.querySelector("span");
    let found = rows, start = 0;

    const cell = (column, value) => {
      const text = value === null ? "" : column.kind === "number" ? value.toFixed(column.digits) : String(value);
      const made = make("td", { textContent: text });
      if (column.kind === "number") made.className = "n";
      else made.className = { name: "file", text: "wide" }[column.kind] ?? "";
      if (column.kind === "number") made.dataset.name = column.name;
      if (column.styles?.[value]) made.classList.add(column.styles[value]);
      return made;
    };
    const line = (row, at) => {
      const made = make("tr");
      const first = make("td");
      if (named(row).length) {
        const button = make("button", { type: "button", className: "zoom" });
        button.setAttribute("aria-label", `Enlarge the pictures of ${row.values[0]}`);
        button.append(...named(row).slice(0, 2).map(([name, source]) => make("img", { src: source, alt: name })));
        button.addEventListener("click", () => {
          const others = found.filter((one) => named(one).length);
          open(others.map((one) => ({ caption: spoken(one), pictures: named(one) })), others.indexOf(row));
        });
        first.append(button);
      }
      if (data.captions.length) made.append(first);
      made.append(...data.columns.map((column, at) => cell(column, row.values[at])));
      return made;
    };
    const draw = () => {
      const end = Math.min(start + PAGE, found.length);
      body.replaceChildren(...found.slice(start, end).map(line));
      count.textContent = `${found.length} of ${rows.length} images`;
      where.textContent = found.length ? `${start + 1} to ${end} of ${found.length}` : "No image matches.";
      back.disabled = start === 0;
      on.disabled = end === found.length;
    };
    const filter = () => {
      const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
      const wanted = choices.filter((one) => one.value !== "").map((one) => [Number(one.dataset.column), one.value]);
      found = rows.filter((row) =>
        wanted.every(([column, value]) => row.values[column] === value) &&
        words.every((word) => row.values.some((value) => typeof value === "string" && value.toLowerCase().includes(word))));
      start = 0;
      draw();
    };
    search.addEventListener("input", filter);
    choices.forEach((one) => one.addEventListener("change", filter));
    back.addEventListener("click", () => { start = Math.max(0, start - PAGE); draw(); });
    on.addEventListener("click", () => { start += PAGE; draw(); });
    // The picture's column has no values: the heads that sort are those of the data's columns.
    const all = rows.map((row) => row);
    sortable({ tHead: { rows: [{ cells: [...table.tHead.rows[0].cells].slice(data.captions.length ? 1 : 0) }] } }, all, () => {
      rows.splice(0, rows.length, ...all);
      filter();
    });
    draw();
  }
})();
