"use strict";
// What every chart needs: the data, which strategies are shown, a redraw when the width changes.
const report = JSON.parse(document.getElementById("data").textContent);
const strategies = report.strategies;
const shown = new Set(strategies.map((_, index) => index));

const frame = {
  draws: new Map(),
  widths: new Map(),

  // `draw(width)` returns the chart, or null for none.
  add(id, draw) {
    const place = document.getElementById(id);
    if (!place) return;
    frame.draws.set(place, draw);
    frame.paint(place);
    frame.observer.observe(place);
  },

  paint(place) {
    const width = Math.floor(place.clientWidth);
    if (width < 40) return;
    frame.widths.set(place, width);
    const chart = frame.draws.get(place)(width);
    // Plot labels its groups; a label is read out only of an element with a role.
    for (const group of chart?.querySelectorAll("g[aria-label]") ?? []) group.setAttribute("role", "group");
    place.replaceChildren(...(chart ? [chart] : []));
  },

  repaint() {
    for (const place of frame.draws.keys()) frame.paint(place);
  },

  observer: new ResizeObserver((entries) => {
    for (const { target } of entries) {
      if (Math.floor(target.clientWidth) !== frame.widths.get(target)) frame.paint(target);
    }
  }),

  // Options that all charts share. Axes and labels take the colour of the text around them.
  options(width, height, more) {
    return {
      width, height, marginTop: 24, marginRight: 16, marginBottom: 34, marginLeft: 44,
      style: { background: "none", fontSize: "12px", fontFamily: "var(--sans)", color: "inherit" },
      ...more,
    };
  },

  // A band per strategy, its name on the left.
  rows(width, margin) {
    const longest = Math.floor((margin - 12) / 6.9);
    return {
      type: "band", domain: strategies.map((_, index) => index), label: null, padding: 0.25,
      tickFormat: (index) => format.cut(strategies[index].name, longest), tickSize: 0,
    };
  },

  margin(width) {
    const longest = Math.max(...strategies.map((one) => one.name.length), 4);
    return Math.round(Math.min(longest * 6.9 + 14, width * 0.34));
  },

  colour: (index) => (index >= 0 ? strategies[index].colour : "#8A8F98"),
  visible: (index) => index < 0 || shown.has(index),

  // 1, 2, 5, 10, ... inside the domain, at most as many as fit.
  logTicks([low, high], most) {
    const inside = (steps) => d3.range(Math.floor(Math.log10(low)), Math.log10(high) + 1)
      .flatMap((power) => steps.map((step) => +`${step}e${power}`))
      .filter((tick) => tick >= low * 0.999 && tick <= high * 1.001);
    let ticks = inside([1, 2, 5]);
    if (ticks.length < 4) ticks = inside([1, 1.5, 2, 3, 4, 5, 7]);
    const every = Math.ceil(ticks.length / Math.max(2, most));
    return ticks.filter((_, place) => place % every === 0);
  },

  logDomain(values) {
    const positive = values.filter((value) => value > 0);
    if (!positive.length) return [0.001, 1];
    const low = Math.min(...positive), high = Math.max(...positive);
    return low === high ? [low / 2, high * 2] : [low * 0.9, high * 1.12];
  },
};

function installTheme() {
  const root = document.documentElement;
  const stored = (() => { try { return localStorage.getItem("theme"); } catch { return null; } })();
  if (stored === "dark" || stored === "light") root.dataset.theme = stored;
  document.getElementById("theme").addEventListener("click", () => {
    const dark = getComputedStyle(root).colorScheme === "dark";
    root.dataset.theme = dark ? "light" : "dark";
    try { localStorage.setItem("theme", root.dataset.theme); } catch { /* a file may have no storage */ }
  });
}

function installToggles() {
  for (const button of document.querySelectorAll("#toggles button")) {
    button.addEventListener("click", () => {
      const index = +button.dataset.index;
      if (shown.has(index)) shown.delete(index); else shown.add(index);
      button.setAttribute("aria-pressed", String(shown.has(index)));
      frame.repaint();
    });
  }
}

function installSorting() {
  for (const table of document.querySelectorAll("table[data-sortable]")) {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
      const descending = head.getAttribute("aria-sort") === "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", descending ? "descending" : "ascending");
      const key = (row) => {
        const cell = row.cells[column];
        return cell.dataset.sort === undefined ? cell.textContent.trim() : +cell.dataset.sort;
      };
      const compare = (a, b) => {
        const [x, y] = [key(a), key(b)];
        if (typeof x !== typeof y) return typeof x === "number" ? -1 : 1; // rows without a figure come last
        const order = typeof x === "number" ? x - y : x.localeCompare(y, undefined, { numeric: true });
        return descending ? -order : order;
      };
      table.tBodies[0].append(...[...table.tBodies[0].rows].sort(compare));
    }));
  }
}

function installCopying() {
  for (const button of document.querySelectorAll(".copy")) {
    const label = button.textContent;
    button.addEventListener("click", async () => {
      const copied = await copy(button.dataset.copies === "table"
        ? [...button.parentElement.querySelectorAll("tr")].map(
            (row) => [...row.cells].map((cell) => cell.innerText.replace(/\s+/g, " ").trim()).join("\t")).join("\n")
        : button.previousElementSibling.textContent);
      button.textContent = copied ? "Copied" : "Select and copy";
      setTimeout(() => { button.textContent = label; }, 1500);
    });
  }
}

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    // A page opened from disk may have no clipboard API; the older way works there.
    const area = Object.assign(document.createElement("textarea"), { value: text });
    document.body.append(area);
    area.select();
    const copied = document.execCommand("copy");
    area.remove();
    return copied;
  }
}
