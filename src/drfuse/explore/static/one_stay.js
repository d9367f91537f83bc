// One stay: what it is predicted with, the radiograph's window, attributions, and keys.
"use strict";
const stay = document.querySelector(".stay");
const number = (value, digits = 2) => (value < 0 ? "−" : "+") + Math.abs(value).toFixed(digits);

// What the model is given
const ranking = document.querySelector(".ranking tbody");
const given = [...document.querySelectorAll("[name=given]")];
function predictWith(key) {
  const rows = [...ranking.rows];
  const p = (row) => (row.dataset[key] === "" ? NaN : Number(row.dataset[key]));
  rows.sort((a, b) => (Number.isNaN(p(b)) ? -1 : p(b)) - (Number.isNaN(p(a)) ? -1 : p(a)));
  for (const row of rows) {
    row.querySelector(".p").textContent = Number.isNaN(p(row)) ? "–" : Math.round(100 * p(row));
    row.querySelector(".of-p").setAttribute("width", `${100 * (p(row) || 0)}%`);
    const weights = row.querySelectorAll(".of-p .ehr, .of-p .shared, .of-p .cxr");
    for (const part of weights) part.classList.toggle("hidden", key !== "both"); // they are those of the stay as it is
    row.querySelector(".of-p .plain").classList.toggle("hidden", weights.length > 0 && key === "both");
  }
  ranking.append(...rows);
  document.querySelector(".image")?.classList.toggle("taken-away", key === "ehr");
  document.querySelector(".record").classList.toggle("taken-away", key === "cxr");
}
for (const choice of given) choice.addEventListener("change", () => predictWith(choice.value));
function choose(key) {
  const choice = given.find((one) => one.value === key && !one.disabled);
  if (choice) { choice.checked = true; predictWith(key); }
}
const chosen = given.find((one) => one.checked);
if (chosen && chosen.value !== "both") predictWith(chosen.value); // a browser that went back keeps the choice

// The radiograph
const viewer = document.getElementById("viewer");
const film = { level: 128, width: 256, zoom: 1, x: 0, y: 0, inverted: false, pixels: null };
function reset() { Object.assign(film, { level: 128, width: 256, zoom: 1, x: 0, y: 0, inverted: false }); }
function paint() {
  const canvas = document.getElementById("radiograph");
  const bottom = film.level - film.width / 2, painted = new ImageData(canvas.width, canvas.height);
  const grey = Uint8ClampedArray.from({ length: 256 }, (_, value) => {
    const share = Math.min(Math.max((value - bottom) / film.width, 0), 1);
    return 255 * (film.inverted ? 1 - share : share);
  });
  for (let i = 0; i < painted.data.length; i += 4) {
    painted.data[i] = painted.data[i + 1] = painted.data[i + 2] = grey[film.pixels[i]];
    painted.data[i + 3] = 255;
  }
  canvas.getContext("2d").putImageData(painted, 0, 0);
  viewer.querySelector(".film").style.transform = `translate(${film.x}px, ${film.y}px) scale(${film.zoom})`;
  document.getElementById("window").textContent = `level ${Math.round(film.level)}, width ${Math.round(film.width)}, ${Math.round(100 * film.zoom)} %`;
}
function adjust(width, level) {
  film.width = Math.min(Math.max(film.width + width, 2), 512);
  film.level = Math.min(Math.max(film.level + level, 0), 255);
  paint();
}
function zoom(factor, x = 0, y = 0) { // about a point, from the middle of the film
  const before = film.zoom;
  film.zoom = Math.min(Math.max(before * factor, 1), 16);
  film.x = film.zoom === 1 ? 0 : x - ((x - film.x) * film.zoom) / before;
  film.y = film.zoom === 1 ? 0 : y - ((y - film.y) * film.zoom) / before;
  paint();
}
const tools = {
  in: () => zoom(1.25), out: () => zoom(0.8), reset: () => { reset(); paint(); },
  invert: () => { film.inverted = !film.inverted; paint(); },
};
const viewerKeys = {
  ArrowLeft: () => adjust(-8, 0), ArrowRight: () => adjust(8, 0), ArrowUp: () => adjust(0, -4), ArrowDown: () => adjust(0, 4),
  "+": tools.in, "=": tools.in, "-": tools.out, r: tools.reset, i: tools.invert,
};
function ready(image) {
  const canvas = document.getElementById("radiograph");
  [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(image, 0, 0);
  film.pixels = context.getImageData(0, 0, canvas.width, canvas.height).data;
  paint();
  const held = new Map(); // where the mouse button or each finger is
  const between = (a, b) => Math.hypot(a.clientX - b.clientX, a.clientY - b.clientY);
  const about = (factor, x, y) => { // a point of the window
    const box = viewer.getBoundingClientRect();
    zoom(factor, x - box.x - box.width / 2, y - box.y - box.height / 2);
  };
  viewer.addEventListener("pointerdown", (event) => {
    if (event.button > 1) return;
    held.set(event.pointerId, event);
    viewer.setPointerCapture(event.pointerId);
    viewer.focus();
    event.preventDefault();
  });
  viewer.addEventListener("pointermove", (event) => {
    const before = held.get(event.pointerId);
    if (!before) return;
    held.set(event.pointerId, event);
    if (held.size > 1) {
      const other = [...held.values()].find((one) => one.pointerId !== event.pointerId);
      const x = (event.clientX + other.clientX) / 2, y = (event.clientY + other.clientY) / 2;
      about(between(event, other) / Math.max(between(before, other), 1), x, y);
    } else if (event.buttons & 4) { film.x += event.movementX; film.y += event.movementY; paint(); }
    else adjust(event.movementX, event.movementY / 2);
  });
  for (const end of ["pointerup", "pointercancel"]) viewer.addEventListener(end, (event) => held.delete(event.pointerId));
  viewer.addEventListener("wheel", (event) => {
    event.preventDefault();
    about(2 ** (-event.deltaY / 400), event.clientX, event.clientY);
  }, { passive: false });
  viewer.addEventListener("dblclick", tools.reset);
  viewer.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || !(event.key in viewerKeys)) return;
    viewerKeys[event.key]();
    event.preventDefault();
    event.stopPropagation();
  });
  for (const button of document.querySelectorAll("[data-do]")) button.addEventListener("click", tools[button.dataset.do]);
}
if (viewer) {
  const image = new Image();
  image.addEventListener("load", () => ready(image));
  image.src = document.getElementById("radiograph").dataset.source;
}

// Attributions
const form = document.getElementById("explain");
const found = document.getElementById("found");
const sleep = (milliseconds) => new Promise((over) => setTimeout(over, milliseconds));
function line(text) { const made = document.createElement("p"); made.textContent = text; return made; }
async function explain() {
  const bar = document.getElementById("progress"), label = form.elements.label.value;
  const address = `/stays/${stay.dataset.stay}/explanation?${new URLSearchParams({ run: stay.dataset.run, label })}`;
  form.querySelector("button").disabled = true;
  bar.hidden = false;
  bar.value = 0;
  found.replaceChildren(line("computing …"));
  try {
    for (;;) {
      const state = await (await fetch(address, { method: "POST" })).json();
      if (state.problem) { found.replaceChildren(line(state.problem)); break; }
      if (state.result) { showFound(state.result); break; }
      bar.value = state.share;
      found.replaceChildren(line(`${state.evaluated} evaluations of the model`));
      await sleep(150);
    }
  } catch { found.replaceChildren(line("the server does not answer")); }
  bar.hidden = true;
  form.querySelector("button").disabled = false;
}
function showFound({ label, of_label, record, image, crop, notes }) {
  const shapley = of_label.shapley;
  const said = shapley.ehr === null ? [] : [`Logit of ${label}: the record adds ${number(shapley.ehr)}, the radiograph ${number(shapley.cxr)} (Shapley values).`];
  found.replaceChildren(...[...said, ...notes].map(line));
  const largest = record ? Math.max(...record.hours.flat().map(Math.abs), 1e-12) : 1;
  document.querySelectorAll(".chart").forEach((chart, v) => {
    const [drawing, by] = [chart.querySelector(".moved-hours"), chart.querySelector(".moved-by")];
    by.textContent = record ? number(record.variables[v], 3) : "";
    by.className = `moved-by ${record && record.variables[v] < 0 ? "lowers" : "raises"}`;
    const box = drawing.ownerSVGElement.viewBox.baseVal, hours = Number(document.querySelector(".charts").dataset.hours);
    drawing.replaceChildren(...(record ? record.hours : []).map((values, hour) => {
      const mark = document.createElementNS("http://www.w3.org/2000/svg", "rect");
      const share = values[v] / largest;
      mark.setAttribute("class", share < 0 ? "lowers" : "raises");
      for (const [name, value] of Object.entries({ x: (hour * box.width) / hours, width: box.width / hours, height: box.height, "fill-opacity": Math.abs(share) })) mark.setAttribute(name, value);
      return mark;
    }));
  });
  for (const entry of document.querySelectorAll(".legend .moved")) entry.hidden = !record;
  const heat = document.getElementById("heat");
  if (heat) heat.hidden = !image;
  if (!heat || !image) return;
  [heat.width, heat.height] = [image.pixels[0].length, image.pixels.length];
  Object.assign(heat.style, { inset: `${50 * (1 - crop)}%`, width: `${100 * crop}%`, height: `${100 * crop}%` });
  const most = Math.max(...image.pixels.map((row) => Math.max(...row.map(Math.abs))), 1e-12);
  const painted = new ImageData(heat.width, heat.height);
  image.pixels.flat().forEach((value, i) => painted.data.set([...(value < 0 ? [33, 102, 172] : [214, 96, 77]), 190 * Math.abs(value / most)], 4 * i));
  heat.getContext("2d").putImageData(painted, 0, 0);
}
form?.addEventListener("submit", (event) => { event.preventDefault(); explain(); });

// Keys
const keys = {
  ArrowLeft: () => document.getElementById("before")?.click(),
  ArrowRight: () => document.getElementById("after")?.click(),
  w: () => choose(given.find((one) => one.checked)?.value === "ehr" ? "both" : "ehr"),
  e: () => form && !form.querySelector("button").disabled && explain(),
  t: () => document.getElementById("list").click(),
};
addEventListener("keydown", (event) => {
  const isTyping = event.target.matches("input:not([type=radio]), select, textarea, .scroll");
  const isChoice = event.target.matches("[type=radio]") && event.key.startsWith("Arrow");
  if (isTyping || isChoice || event.ctrlKey || event.metaKey || event.altKey || !(event.key in keys)) return;
  event.preventDefault();
  keys[event.key]();
});
