"use strict";
// Loops of the same tape entry side by side, on one time axis; a row shows its details when it is chosen.

const WORDS = { model: "model", server_tools: "server tools", backoff: "backoff", queue: "queued", tools: "ran", failed: "failed" };
const rowPitch = 17;
let chosenRow = null;

const spanColour = (kind) => report.phases[kind] ?? "#8A8F98";
const spent = (row, kinds) => d3.sum(row.spans.filter((span) => kinds.includes(span.kind)), (span) => span.to - span.from);

function showCase() {
  const one = report.waterfalls.cases[+document.getElementById("pick-case").value];
  const loops = one.loops.map((row) => report.waterfalls.loops[row]);
  const longest = Math.max(...loops.map((loop) => loop.wall), 1e-9);
  const panels = loops.map((loop, place) => panel(loop, place));
  if (one.missing.length) {
    const words = `No loop that counts of ${one.missing.join(" or ")} worked on this tape entry.`;
    panels.push(element("p", { className: "waterfall missing", textContent: words }));
  }
  frame.draws.forEach((_, place) => { if (place.closest("#waterfalls")) frame.draws.delete(place); });
  document.getElementById("waterfalls").replaceChildren(...panels);
  loops.forEach((loop, place) => frame.add(`waterfall-${place}`, (width) => drawLoop(width, loop, longest)));
  fillTable(loops);
}

function element(tag, properties, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

function panel(loop, place) {
  const swatch = element("span", { className: "swatch" });
  swatch.style.setProperty("--c", frame.colour(loop.strategy));
  const took = element("span", { className: "took", textContent: format.duration(loop.wall) });
  const who = element("span", {}, swatch, element("bdi", { textContent: strategies[loop.strategy]?.name ?? "?" }));
  const why = loop.why.map((line) => element("div", { textContent: line }));
  if (loop.status !== "ok") why.unshift(element("div", { className: "bad", textContent: `${loop.status}: ${loop.error ?? "unknown"}` }));
  if (loop.more) why.push(element("div", { textContent: `${loop.more} more rows are not drawn` }));
  const chart = element("div", { className: "chart", id: `waterfall-${place}` });
  chart.style.minHeight = `${30 + rowPitch * loop.rows.length}px`;
  return element("section", { className: "waterfall" }, element("h3", {}, who, took), element("div", { className: "why" }, ...why), chart);
}

function drawLoop(width, loop, longest) {
  const rows = loop.rows.map((row, place) => ({ ...row, place }));
  const spans = rows.flatMap((row) => row.spans.map((span) => ({ ...span, place: row.place })));
  const marginLeft = Math.round(Math.min(Math.max(...rows.map((row) => row.label.length), 4) * 6.2 + 12, width * 0.38));
  const plot = Plot.plot(frame.options(width, 30 + rowPitch * rows.length, {
    marginTop: 4, marginBottom: 24, marginLeft, marginRight: 8,
    x: { domain: [0, longest], label: null, ticks: Math.max(2, Math.floor((width - marginLeft) / 70)), tickFormat: format.tick, grid: true },
    y: {
      type: "band", domain: rows.map((row) => row.place), label: null, tickSize: 0, padding: 0.28,
      tickFormat: (place) => format.cut(rows[place].label, Math.floor((marginLeft - 10) / 6.2)),
    },
    style: { background: "none", fontSize: "11px", fontFamily: "var(--sans)", color: "inherit" },
    marks: [
      Plot.barX(spans, {
        y: "place", x1: "from", x2: "to", rx: 1, fill: (d) => (d.kind === "failed" ? "url(#failed)" : spanColour(d.kind)),
        fillOpacity: (d) => (["queue", "never_ended"].includes(d.kind) ? 0.45 : 1), pointerEvents: "none",
      }),
      Plot.dot(spans.filter((span) => span.kind === "failed"), { x: "to", y: "place", symbol: "times", stroke: "#CE0E0A", strokeWidth: 1.8, r: 3, dx: 4, pointerEvents: "none" }),
      () => d3.create("svg:defs").call((defs) => defs.append("pattern")
        .attr("id", "failed").attr("width", 5).attr("height", 5).attr("patternUnits", "userSpaceOnUse").attr("patternTransform", "rotate(45)")
        .call((pattern) => pattern.append("rect").attr("width", 5).attr("height", 5).attr("fill", "#f7b5b3"))
        .call((pattern) => pattern.append("rect").attr("width", 3).attr("height", 5).attr("fill", "#CE0E0A"))).node(),
      Plot.barX(rows, { y: "place", x1: 0, x2: longest, inset: -1.5, insetLeft: -marginLeft + 2, fill: null, className: "rows" }),
    ],
  }));
  const targets = [...plot.querySelectorAll(".rows rect")];
  targets.forEach((target, place) => arm(target, targets, rows[place], place, loop));
  return plot;
}

// One stop for the Tab key per chart; arrows move inside it.
function arm(target, targets, row, place, loop) {
  target.setAttribute("class", "row");
  target.setAttribute("tabindex", place ? -1 : 0);
  target.setAttribute("role", "button");
  target.setAttribute("aria-label", `${row.label}, ${row.status}, ${row.took === null ? "" : (row.bound ?? "") + format.duration(row.took)}`);
  target.addEventListener("click", () => choose(target, row, loop));
  target.addEventListener("keydown", (event) => {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (event.key === "Enter" || event.key === " ") choose(target, row, loop);
    else if (step && targets[place + step]) {
      target.setAttribute("tabindex", -1);
      targets[place + step].setAttribute("tabindex", 0);
      targets[place + step].focus();
    } else return;
    event.preventDefault();
  });
}

function choose(target, row, loop) {
  chosenRow?.classList.remove("chosen");
  chosenRow = target;
  target.classList.add("chosen");
  const whose = `${strategies[loop.strategy]?.name ?? "?"}: ${row.label}`;
  const pairs = row.detail.map(([term, value]) => element("div", {}, element("dt", { textContent: term }), element("dd", {}, element("bdi", { textContent: value }))));
  document.getElementById("call-detail").replaceChildren(element("h4", { textContent: whose }), element("dl", {}, ...pairs));
}

function fillTable(loops) {
  const cell = (text, numeric) => element("td", { textContent: text, className: numeric ? "n" : "" });
  const rows = loops.flatMap((loop) => loop.rows.map((row) => element("tr", {},
    cell(strategies[loop.strategy]?.name ?? "?"), cell(row.label), cell(row.status),
    cell(format.duration(row.spans[0]?.from ?? 0, "s"), true),
    cell(format.duration(spent(row, ["queue", "backoff", "wait", "session_wait", "client_wait"])), true),
    cell((row.bound ?? "") + format.duration(spent(row, ["model", "tools", "failed", "parsing", "upper_bound"])), true))));
  document.querySelector("#table-loops tbody").replaceChildren(...rows);
}

function installWaterfalls() {
  const pick = document.getElementById("pick-case");
  if (!pick) return;
  pick.addEventListener("change", showCase);
  showCase();
}
