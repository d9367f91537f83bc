// The table of stays: rows are fetched as they scroll into sight, and only those in sight are in the page.
"use strict";
const PAGE = 100, MOST_HEIGHT = 8_000_000; // pixels; browsers cannot scroll through much more
const grid = document.getElementById("grid");
const form = document.getElementById("filters");
const [head, body] = [grid.querySelector(".head"), grid.querySelector(".rows")];
const columns = JSON.parse(grid.dataset.columns);
const numeric = new Set(["stay_id", "subject_id", "age", "n_hours", "los", "probability", "difference", "error"]);
let pages = new Map(), total = 0, chosen = 0, query = "", order = { sort: grid.dataset.sort, down: grid.dataset.down };

function shown(name, value) {
  if (value === null || value === undefined) return "–";
  if (typeof value === "boolean") return value ? "yes" : "no";
  if (name === "probability" || name === "error") return value.toFixed(3);
  if (name === "difference") return (value > 0 ? "+" : value < 0 ? "−" : "") + Math.abs(value).toFixed(3);
  if (name === "los") return value.toFixed(1);
  return String(value);
}

function element(kind, className, text) {
  const made = document.createElement(kind);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

function rowHeight() { return Math.max(head.offsetHeight, 28); }
function height() { return Math.min(total * rowHeight(), MOST_HEIGHT); }
function seen() { return Math.max((grid.clientHeight - head.offsetHeight) / rowHeight(), 1); }
function inSight() { return Math.floor(seen()); }
function scale() { // rows a pixel
  const whole = total * rowHeight() <= MOST_HEIGHT;
  return whole ? 1 / rowHeight() : (total - seen()) / (MOST_HEIGHT - seen() * rowHeight());
}
function firstRow() { return grid.scrollTop * scale(); } // with its fraction

async function page(number) {
  if (!pages.has(number)) {
    const asked = query;
    pages.set(number, fetch(`/stays.json?${asked}&start=${number * PAGE}&count=${PAGE}`).then((answer) => answer.json()));
  }
  return pages.get(number);
}

async function draw() {
  const asked = query, near = Math.floor(firstRow());
  const from = Math.max(near - 10, 0), to = Math.min(near + inSight() + 12, total);
  const numbers = [...new Set([Math.floor(from / PAGE), Math.floor(Math.max(to - 1, 0) / PAGE)])];
  const fetched = new Map(await Promise.all(numbers.map(async (number) => [number, await page(number)])));
  if (asked !== query || near !== Math.floor(firstRow())) return; // scrolled on meanwhile: drawn again
  const top = grid.scrollTop, first = firstRow();
  const made = [];
  for (let at = from; at < to; at++) {
    const values = fetched.get(Math.floor(at / PAGE)).rows[at % PAGE];
    if (!values) continue;
    const row = element("div", at === chosen ? "row chosen" : "row");
    row.setAttribute("role", "row");
    row.setAttribute("aria-rowindex", at + 2);
    row.setAttribute("aria-selected", at === chosen);
    row.id = `row${at}`;
    row.style.transform = `translateY(${top + (at - first) * rowHeight()}px)`;
    columns.forEach(([name], c) => {
      const cell = element("div", numeric.has(name) ? `cell ${name} number` : `cell ${name}`);
      cell.setAttribute("role", c ? "gridcell" : "rowheader");
      if (c) cell.textContent = shown(name, values[c]);
      else {
        const link = element("a", "", values[0]);
        link.href = `/stays/${values[0]}?${query}`;
        link.tabIndex = -1;
        cell.append(link);
      }
      if (name === "label") cell.title = values[c] ?? "";
      row.append(cell);
    });
    made.push(row);
  }
  body.replaceChildren(...made);
  grid.setAttribute("aria-activedescendant", `row${chosen}`);
}

async function show(push = true) {
  form.elements.present.disabled = !columns.some(([name]) => name === "label") && !form.elements.label.value;
  const given = [...new FormData(form), ...Object.entries(order)].filter(([name, value]) => value && !(name === "sort" && value === "stay_id"));
  query = new URLSearchParams(given).toString();
  if (push) history.replaceState(null, "", query ? `/stays?${query}` : "/stays");
  document.getElementById("export").href = `/stays.csv?${query}`;
  pages = new Map();
  const asked = query, found = await page(0), status = document.getElementById("total");
  if (asked !== query) return;
  total = found.total ?? 0;
  chosen = 0;
  status.textContent = found.problem ?? `${total.toLocaleString("en")} stays`;
  grid.setAttribute("aria-rowcount", total + 1);
  body.style.height = `${height()}px`;
  grid.scrollTop = 0;
  for (const cell of head.children) {
    const sorted = cell.dataset.name === order.sort;
    cell.setAttribute("aria-sort", sorted ? (order.down === "yes" ? "descending" : "ascending") : "none");
  }
  for (const button of form.querySelectorAll("[data-sort]")) {
    button.setAttribute("aria-pressed", button.dataset.sort === order.sort && order.down === "yes");
  }
  if (total) draw();
  else body.replaceChildren();
}

function sortBy(name, down) { order = { sort: name, down }; show(); }

function move(by) {
  chosen = Math.min(Math.max(chosen + by, 0), Math.max(total - 1, 0));
  const first = firstRow();
  if (chosen < first) grid.scrollTop = chosen / scale();
  if (chosen >= first + inSight()) grid.scrollTop = Math.ceil((chosen - inSight() + 1) / scale());
  draw();
}

head.append(...columns.map(([name, title]) => {
  const cell = element("div", numeric.has(name) ? `cell ${name} number` : `cell ${name}`);
  cell.setAttribute("role", "columnheader");
  cell.dataset.name = name;
  const button = element("button", "", title);
  button.type = "button";
  button.addEventListener("click", () => sortBy(name, order.sort === name && order.down !== "yes" ? "yes" : ""));
  cell.append(button);
  return cell;
}));
for (const button of form.querySelectorAll("[data-sort]")) {
  button.addEventListener("click", () => sortBy(button.dataset.sort, "yes"));
}
let typing;
form.addEventListener("input", () => { clearTimeout(typing); typing = setTimeout(show, 250); });
form.addEventListener("submit", (event) => { event.preventDefault(); show(); });
grid.addEventListener("scroll", () => requestAnimationFrame(draw));
addEventListener("resize", () => total && draw());
body.addEventListener("click", (event) => {
  const row = event.target.closest(".row");
  if (row && !event.target.closest("a")) row.querySelector("a").click();
});
const steps = { ArrowDown: () => 1, ArrowUp: () => -1, PageDown: inSight, PageUp: () => -inSight(), Home: () => -total, End: () => total };
grid.addEventListener("keydown", (event) => {
  if (event.target !== grid || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key in steps) move(steps[event.key]());
  else if (event.key === "Enter") document.getElementById(`row${chosen}`)?.querySelector("a").click();
  else return;
  event.preventDefault();
});
show(false);
