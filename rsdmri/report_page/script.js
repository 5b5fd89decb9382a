"use strict";
document.documentElement.classList.add("js");
const all = (selector, within = document) => [...within.querySelectorAll(selector)];

// A page that follows a run is read again now and then, and must look as it did: the history of the tab keeps what was chosen.
const refresh = +document.documentElement.dataset.refresh || 0;
const before = history.state || {values: {}, open: [], views: {}};
const controls = all("input, select");
const nameOf = (control) => control.id || control.dataset.chooses || `${control.name} ${control.value}`;
const titleOf = (details) => details.querySelector("summary").firstChild.textContent.trim();
for (const control of controls)
  if (nameOf(control) in before.values) control[control.type === "radio" ? "checked" : "value"] = before.values[nameOf(control)];
for (const details of all("details")) if (before.open.includes(titleOf(details))) details.open = true;

// Window and level: out = (in - level) / window + 1/2, in one linear step of an SVG filter.
const level = document.getElementById("level");
if (level) {
  const width = document.getElementById("window"), reset = document.getElementById("reset");
  const parts = all('input[name="part"]');
  const images = all("[data-phase]");
  for (const image of images) image.dataset.magnitude = image.src;
  const apply = () => {
    const l = +level.value, w = +width.value, plain = l === 0.5 && w === 1;
    const phases = parts.some((part) => part.checked && part.value === "phase");
    for (const channel of all("#window-level feComponentTransfer > *")) {
      channel.setAttribute("slope", 1 / w);
      channel.setAttribute("intercept", 0.5 - l / w);
    }
    for (const slider of [level, width]) {
      slider.nextElementSibling.value = (+slider.value).toFixed(2);
      slider.disabled = phases;
    }
    for (const image of images) image.src = phases ? image.dataset.phase : image.dataset.magnitude;
    document.body.classList.toggle("phases", phases);
    document.body.classList.toggle("windowed", !plain && !phases);
    reset.disabled = plain || phases;
  };
  for (const control of [level, width, ...parts]) control.addEventListener("input", apply);
  reset.addEventListener("click", () => { level.value = 0.5; width.value = 1; apply(); });
  apply();
}

// Enlarging: a gallery is one stop of the Tab key, arrows go on from there, Enter opens.
const dialog = document.querySelector("dialog"), large = dialog.querySelector("img"), about = dialog.querySelector("p");
let shown = null;
const show = (image) => {
  shown = image;
  large.src = image.src;
  large.alt = image.alt;
  about.textContent = image.alt;
};
const step = (image, by) => {
  const images = all("img", image.closest("[data-gallery]"));
  return images[Math.min(images.length - 1, Math.max(0, images.indexOf(image) + by))];
};
const ways = {ArrowRight: 1, ArrowLeft: -1};
for (const gallery of all("[data-gallery]")) {
  const images = all("img", gallery);
  images.forEach((image, i) => { image.tabIndex = i ? -1 : 0; image.setAttribute("role", "button"); });
  const move = (to) => {
    for (const image of images) image.tabIndex = image === to ? 0 : -1;
    to.focus();
  };
  gallery.addEventListener("click", ({target}) => {
    if (target.tagName !== "IMG") return;
    move(target);
    show(target);
    dialog.showModal();
  });
  gallery.addEventListener("keydown", (event) => {
    if (event.key in ways) move(step(event.target, ways[event.key]));
    else if (event.key === "Enter" || event.key === " ") event.target.click();
    else return;
    event.preventDefault();
  });
  dialog.addEventListener("close", () => { if (gallery.contains(shown)) move(shown); });
}
dialog.addEventListener("click", () => dialog.close());
dialog.addEventListener("keydown", (event) => { if (event.key in ways) show(step(shown, ways[event.key])); });

// Of several tables one at a time.
for (const select of all("select[data-chooses]")) {
  const tables = all(".choice").filter((table) => table.dataset.choice.startsWith(`${select.dataset.chooses} `));
  const choose = () => { for (const table of tables) table.classList.toggle("chosen", table.dataset.choice === select.value); };
  select.addEventListener("input", choose);
  choose();
}

// Charts. The view is the part of both axes that is seen; of a logarithmic axis in powers of ten.
const MOST = 500;  // how far one can zoom in
const text = (value) => value.toLocaleString("en", {maximumSignificantDigits: 4});

function short(value) {
  for (const [size, unit] of [[1e6, "M"], [1e3, "k"]])
    if (Math.abs(value) >= size) return (+(value / size).toPrecision(6) + unit).replace("-", "−");
  return String(+value.toPrecision(6)).replace("-", "−");
}

function evenTicks(low, high, count) {
  const rough = (high - low) / count, unit = 10 ** Math.floor(Math.log10(rough));
  const near = (factor) => Math.abs(Math.log(factor * unit / rough));
  const size = unit * [1, 2, 5, 10].reduce((a, b) => near(b) < near(a) ? b : a);
  const ticks = [];
  for (let i = Math.ceil(low / size - 1e-9); i <= Math.floor(high / size + 1e-9); i++) ticks.push(i * size);
  return ticks;
}

function decadeTicks(low, high) {
  const ticks = [], factors = high - low < 3 ? [1, 2, 5] : [1];
  for (let decade = Math.floor(low); decade <= Math.ceil(high); decade++)
    for (const factor of factors) ticks.push(factor * 10 ** decade);
  const seen = ticks.filter((tick) => Math.log10(tick) >= low && Math.log10(tick) <= high);
  return seen.length > 1 ? seen : evenTicks(10 ** low, 10 ** high, 4).filter((tick) => tick > 0);
}

function makeChart(figure) {
  const {frame: [left, top, right, bottom], x, y, log, lines} = JSON.parse(figure.dataset.chart);
  const svg = figure.querySelector("svg"), curves = svg.querySelector(".curves"), cursor = svg.querySelector(".cursor");
  const dots = all(".dot", svg), now = all(".now", figure), where = figure.querySelector(".where");
  const [zoomIn, zoomOut, reset] = all(".tools button", figure);
  const home = {x: [...x], y: [...y]};
  let view = home, held = null;
  const at = {
    x: (value) => left + (value - view.x[0]) / (view.x[1] - view.x[0]) * (right - left),
    y: (value) => bottom - ((log ? Math.log10(value) : value) - view.y[0]) / (view.y[1] - view.y[0]) * (bottom - top),
  };

  const mark = (kind, attributes, content) => {
    const element = document.createElementNS(svg.namespaceURI, kind);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    if (content) element.textContent = content;
    return element;
  };
  const ticks = () => {
    svg.querySelector(".y-ticks").replaceChildren(...(log ? decadeTicks(...view.y) : evenTicks(...view.y, 5)).flatMap((tick) => [
      mark("line", {class: "gridline", x1: left, x2: right, y1: at.y(tick), y2: at.y(tick)}),
      mark("text", {x: left - 8, y: at.y(tick) + 4, "text-anchor": "end"}, short(tick)),
    ]));
    svg.querySelector(".x-ticks").replaceChildren(...evenTicks(...view.x, 5).flatMap((tick) => [
      mark("line", {class: "axis", x1: at.x(tick), x2: at.x(tick), y1: bottom, y2: bottom + 5}),
      mark("text", {x: at.x(tick), y: bottom + 18, "text-anchor": "middle"}, short(tick)),
    ]));
  };

  // One side of a view, no larger than the whole and inside it.
  const kept = ([low, high], [first, last]) => {
    const size = Math.max((last - first) / MOST, Math.min(high - low, last - first));
    const start = Math.min(last - size, Math.max(first, (low + high - size) / 2));
    return [start, start + size];
  };
  const see = (wanted) => {
    const before = view;
    view = {x: kept(wanted.x, home.x), y: kept(wanted.y, home.y)};
    const wide = (home.x[1] - home.x[0]) / (view.x[1] - view.x[0]), high = (home.y[1] - home.y[0]) / (view.y[1] - view.y[0]);
    const across = left - wide * left + (home.x[0] - view.x[0]) / (view.x[1] - view.x[0]) * (right - left);
    const down = bottom - high * bottom - (home.y[0] - view.y[0]) / (view.y[1] - view.y[0]) * (bottom - top);
    curves.setAttribute("transform", `matrix(${wide} 0 0 ${high} ${across} ${down})`);
    const moved = wide > 1.0001 || high > 1.0001;
    figure.classList.toggle("moved", moved);
    reset.disabled = zoomOut.disabled = !moved;
    ticks();
    forget();
    return [0, 1].some((i) => Math.abs(before.x[i] - view.x[i]) > 1e-12 || Math.abs(before.y[i] - view.y[i]) > 1e-12);
  };
  const stretched = ([low, high], by, about) => [about - (about - low) / by, about + (high - about) / by];
  const middle = ([low, high]) => (low + high) / 2;
  const zoom = (by, about = {x: middle(view.x), y: middle(view.y)}) =>
    see({x: stretched(view.x, by, about.x), y: stretched(view.y, by, about.y)});
  const shift = (dx, dy) => see({x: view.x.map((v) => v + dx * (view.x[1] - view.x[0])), y: view.y.map((v) => v + dy * (view.y[1] - view.y[0]))});
  const wholly = () => see(home);

  // The read-out.
  const forget = () => {
    figure.classList.remove("active");
    where.textContent = "";
    now.forEach((element) => { element.textContent = ""; });
    dots.forEach((dot) => { dot.style.visibility = "hidden"; });
  };
  const inside = ([px, py]) => px >= left - 1 && px <= right + 1 && py >= top - 1 && py <= bottom + 1;
  const placed = (point) => [at.x(point[0]), at.y(point[1])];
  const place = (event) => {
    const box = svg.getBoundingClientRect(), scale = svg.viewBox.baseVal.width / box.width;
    return [(event.clientX - box.left) * scale, (event.clientY - box.top) * scale];
  };
  const nearest = (points, to) => points.reduce((a, b) => Math.abs(at.x(b[0]) - to) < Math.abs(at.x(a[0]) - to) ? b : a);
  const read = (event) => {
    const points = lines.flatMap((line) => line.points).filter((point) => inside(placed(point)));
    if (!points.length) return forget();
    const found = nearest(points, place(event)[0]), found_at = at.x(found[0]);
    figure.classList.add("active");
    cursor.setAttribute("x1", found_at);
    cursor.setAttribute("x2", found_at);
    where.textContent = `at ${text(found[0])}`;
    lines.forEach((line, i) => {
      if (line.level !== null) { now[i].textContent = text(line.level); return; }
      const point = line.points.length ? nearest(line.points, found_at) : null;
      const [px, py] = point ? placed(point) : [];
      const near = point && Math.abs(px - found_at) < 12;  // a curve may have ended before
      now[i].textContent = near ? text(point[1]) : "";
      dots[i].style.visibility = near && inside([px, py]) ? "visible" : "hidden";
      if (near) { dots[i].setAttribute("cx", px); dots[i].setAttribute("cy", py); }
    });
  };

  svg.tabIndex = 0;
  svg.addEventListener("pointerdown", (event) => {
    if (event.button || !figure.classList.contains("moved")) return;
    held = place(event);
    svg.setPointerCapture(event.pointerId);
    figure.classList.add("held");
  });
  svg.addEventListener("pointermove", (event) => {
    if (!held) return read(event);
    const [px, py] = place(event);
    shift((held[0] - px) / (right - left), (py - held[1]) / (bottom - top));
    held = [px, py];
  });
  for (const end of ["pointerup", "pointercancel"])
    svg.addEventListener(end, () => { held = null; figure.classList.remove("held"); });
  svg.addEventListener("pointerleave", forget);
  svg.addEventListener("dblclick", wholly);
  svg.addEventListener("wheel", (event) => {
    // The page has to scroll past a chart that nobody chose.
    if (document.activeElement !== svg && !event.ctrlKey && !event.metaKey) return;
    const [px, py] = place(event);
    const about = {
      x: view.x[0] + (px - left) / (right - left) * (view.x[1] - view.x[0]),
      y: view.y[0] + (bottom - py) / (bottom - top) * (view.y[1] - view.y[0]),
    };
    if (zoom(Math.exp(-event.deltaY / 400), about) || event.ctrlKey) event.preventDefault();
  }, {passive: false});
  const keys = {
    "+": () => zoom(1.5), "=": () => zoom(1.5), "-": () => zoom(1 / 1.5), "0": wholly,
    ArrowLeft: () => shift(-0.1, 0), ArrowRight: () => shift(0.1, 0), ArrowUp: () => shift(0, 0.1), ArrowDown: () => shift(0, -0.1),
  };
  svg.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "Escape") svg.blur();
    else if (event.key in keys && (keys[event.key]() || event.key.length === 1)) event.preventDefault();
  });
  zoomIn.addEventListener("click", () => zoom(1.5));
  zoomOut.addEventListener("click", () => zoom(1 / 1.5));
  reset.addEventListener("click", wholly);
  wholly();
  const name = svg.getAttribute("aria-label");
  if (name in before.views) see(before.views[name]);
  return () => figure.classList.contains("moved") ? [[name, view]] : [];
}
const views = all(".chart").map(makeChart);

if (refresh) {
  const again = () => {
    if (dialog.open) return setTimeout(again, 1000);  // somebody is looking
    history.replaceState({
      values: Object.fromEntries(controls.map((control) => [nameOf(control), control.type === "radio" ? control.checked : control.value])),
      open: all("details[open]").map(titleOf),
      views: Object.fromEntries(views.flatMap((seen) => seen())),
    }, "");
    location.reload();
  };
  setTimeout(again, 1000 * refresh);
}

// Paper cannot be unfolded.
const folded = all("details:not([open])");
window.addEventListener("beforeprint", () => { for (const d of folded) d.open = true; });
window.addEventListener("afterprint", () => { for (const d of folded) d.open = false; });
