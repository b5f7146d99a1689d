"use strict";
// Figures: each replaces the drawing in its place, which stays where this does not run.
const figures = JSON.parse(document.getElementById("figures")?.textContent ?? "[]");
const common = {
  paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { color: "#888", size: 12 },
  modebar: { bgcolor: "rgba(0,0,0,0)", color: "#888", activecolor: "#2f78c4" },
  legend: { orientation: "h", y: 1.02, yanchor: "bottom" },
};
const axis = { gridcolor: "#8883", zerolinecolor: "#8886", automargin: true, minorloglabels: "complete" };
// On a logarithmic axis 1, 2 and 5 of each decade, or powers of ten: more labels lie on one another.
const few = (kind) => (kind === "log" ? 3 : 0);
function button(name, act) {
  const made = document.createElement("button");
  made.type = "button";
  made.textContent = name;
  made.addEventListener("click", () => act(made));
  return made;
}
function toggles(place, figure) {
  const tools = document.createElement("div");
  tools.className = "tools";
  for (const letter of figure.logs) {
    const key = letter + "axis.type";
    let log = figure.layout[letter + "axis"].type === "log";
    tools.append(button(`${letter}: ${log ? "linear" : "log"} axis`, (self) => {
      log = !log;
      self.textContent = `${letter}: ${log ? "linear" : "log"} axis`;
      const kind = log ? "log" : "linear";
      Plotly.relayout(place, { [key]: kind, [letter + "axis.nticks"]: few(kind), [letter + "axis.autorange"]: figure.reversed === letter ? "reversed" : true });
    }), " ");
  }
  if (figure.surface) {
    let flat = true;
    tools.append(button("surface", (self) => {
      flat = !flat;
      self.textContent = flat ? "surface" : "contour";
      draw(place, flat ? figure : figure.surface);
    }));
  }
  if (tools.childElementCount) place.before(tools);
}
const flatButtons = [["toImage", "zoom2d", "pan2d", "zoomIn2d", "zoomOut2d", "resetScale2d"]];
const deepButtons = [["toImage", "orbitRotation", "pan3d", "resetCameraDefault3d"]];
function draw(place, figure) {
  const margin = { l: 70, r: 20, t: figure.layout.showlegend ? 64 : 30, b: 50 };
  const layout = { ...common, margin, ...figure.layout };
  for (const name of ["xaxis", "yaxis"]) {
    const own = figure.layout[name];
    layout[name] = { ...axis, nticks: few(own?.type), ...own };
  }
  return Plotly.react(place, figure.data, layout, {
    responsive: true, displaylogo: false, modeBarButtons: figure.layout.scene ? deepButtons : flatButtons,
  });
}
async function all() {
  for (const place of document.querySelectorAll("[data-figure]")) {
    const figure = figures[Number(place.dataset.figure)];
    const height = figure.layout.height;
    place.replaceChildren();
    place.style.height = `${height}px`;
    await draw(place, figure);
    toggles(place, figure);
    await new Promise((go) => setTimeout(go, 0));
  }
  document.body.dataset.drawn = "yes";
}
// Tables: a click on a heading sorts by it.
function value(row, column) {
  const cell = row.cells[column];
  const number = cell.dataset.value === undefined ? NaN : Number(cell.dataset.value);
  return Number.isNaN(number) ? cell.textContent.trim() : number;
}
function order(a, b) {
  if (typeof a === "number" && typeof b === "number") return a - b;
  if (typeof a !== typeof b) return typeof a === "number" ? -1 : 1;
  return a.localeCompare(b, undefined, { numeric: true });
}
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    if (!head.textContent.trim()) return;
    const name = head.textContent;
    head.textContent = "";
    head.append(button(name, () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const rows = [...body.rows].sort((a, b) => order(value(a, column), value(b, column)));
      body.append(...(down ? rows.reverse() : rows));
    }));
  });
}
// Commands: copied by a button; a page from a file may not be allowed to use the clipboard directly.
for (const made of document.querySelectorAll("button.copy")) {
  made.addEventListener("click", async () => {
    const code = made.parentElement.querySelector("code");
    try {
      await navigator.clipboard.writeText(code.textContent);
    } catch {
      getSelection().selectAllChildren(code);
      document.execCommand("copy");
    }
    made.textContent = "copied";
    setTimeout(() => (made.textContent = "copy"), 1500);
  });
}
if (figures.length) all();
