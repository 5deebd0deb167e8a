"use strict";
const page = JSON.parse(document.getElementById("data").textContent);
const byId = id => document.getElementById(id);
const canvas = byId("canvas"), stage = byId("stage"), context = canvas.getContext("2d");
const style = getComputedStyle(document.documentElement);
const [MOVED, PLAIN, UNIT] = ["--moved", "--plain", "--unit"].map(name => style.getPropertyValue(name).trim());
const state = {image: 0, layer: 0, depth: 3, group: 0, mode: "units", detection: 0, pool: 0, kind: null,
               plain: true, boxes: true, hover: null, places: {}};
const now = () => page.images[state.image];

// All points of a unit in image pixels, and the effective dilation of each deformable layer on the path.
function follow([row, column], moved) {
  const layers = now().layers.slice(state.layer, state.layer + state.depth), dilations = [];
  let points = [[row, column, true]];
  layers.forEach((layer, level) => {
    const windows = level + 1 < layers.length ? layer.windows : layer.windows.slice(0, 1);
    for (const window of windows) {
      points = read(points, window, Math.min(state.group, layer.groups - 1), moved);
      if (window.offset) dilations.push({name: layer.name, value: spread(points, window.kernel)});
    }
  });
  const [scaleY, scaleX, shiftY, shiftX] = layers.at(-1).input;
  return {dilations, points: points.map(([y, x, inside]) => ({y: y * scaleY + shiftY, x: x * scaleX + shiftX, inside}))};
}

function unit() {
  return now().layers.length ? nearest(state.hover || state.places[state.image] || now().start) : null;
}
function centre([row, column]) {
  const [scaleY, scaleX, shiftY, shiftX] = now().layers[state.layer].output;
  return {y: row * scaleY + shiftY, x: column * scaleX + shiftX};
}
function nearest([y, x]) {
  const {size: [rows, columns], output: [scaleY, scaleX, shiftY, shiftX]} = now().layers[state.layer];
  const cell = (value, last) => Math.min(Math.max(Math.round(value), 0), last);
  return [cell((y - shiftY) / scaleY, rows - 1), cell((x - shiftX) / scaleX, columns - 1)];
}

function describe() {
  const text = byId("where"), list = byId("dilations");
  list.replaceChildren();
  if (state.mode === "parts") {
    const found = now().detections[state.detection], pool = now().pools[state.pool];
    text.textContent = !found ? "No detection here." :
      `${found.label} ${found.score.toFixed(2)}: ${pool.parts.shape[2]} × ${pool.parts.shape[3]} parts` +
      (pool.classes.length > 1 ? `, with the offsets of ${pool.classes[shownKind(pool)]}` : ", with the same offsets for all classes");
    return;
  }
  if (!unit()) { text.textContent = "No deformable convolution ran."; return; }
  const found = follow(unit(), true), plain = follow(unit(), false), {y, x} = centre(unit());
  const reach = points => ["x", "y"].map(axis => {
    const values = points.filter(point => point.inside).map(point => point[axis]);
    return Math.round(values.reduce((a, b) => Math.max(a, b), -Infinity) - values.reduce((a, b) => Math.min(a, b), Infinity));
  }).join(" × ");
  const inside = found.points.filter(point => point.inside).length;
  text.innerHTML = `Unit <b>(${unit().join(", ")})</b> at ${x.toFixed(0)}, ${y.toFixed(0)} px<br>` +
    `<b>${found.points.length}</b> points, ${inside} on the map<br>` +
    `over <b>${reach(found.points)}</b> px; plain ${reach(plain.points)} px`;
  const most = Math.max(...[...found.dilations, ...plain.dilations].map(({value}) => value).filter(isFinite)) || 1;
  found.dilations.forEach(({name, value}, level) => {
    if (!isFinite(value)) return;
    const title = document.createElement("dt"), bar = document.createElement("dd"), number = document.createElement("dd");
    title.textContent = short(name);
    title.title = name;
    bar.className = "bar";
    bar.innerHTML = `<i style="width:${90 * value / most}%"></i><s style="left:${90 * plain.dilations[level].value / most}%"></s>`;
    number.textContent = value.toFixed(2);
    number.title = `effective dilation; plain ${plain.dilations[level].value.toFixed(2)}`;
    list.append(title, bar, number);
  });
}

function choices(title, options, chosen, choose) {
  const row = document.createElement("div"), head = document.createElement("h2");
  row.className = "row";
  head.textContent = title;
  row.append(head);
  if (options.length > 6) {
    const select = document.createElement("select");
    select.setAttribute("aria-label", title);
    options.forEach(({name}, index) => select.add(new Option(name, index, false, index === chosen)));
    select.onchange = () => choose(Number(select.value));
    row.append(select);
  } else {
    const box = document.createElement("div");
    box.className = "choices";
    options.forEach(({name, more, pressed}, index) => {
      const button = document.createElement("button");
      button.textContent = name;
      if (more) button.append(Object.assign(document.createElement("small"), {textContent: more}));
      button.setAttribute("aria-pressed", pressed ?? index === chosen);
      button.onclick = () => choose(index);
      box.append(button);
    });
    row.append(box);
  }
  return row;
}

const depths = () => Math.min(3, now().layers.length - state.layer);
const groups = () =>
  Math.max(1, ...now().layers.slice(state.layer, state.layer + state.depth).map(layer => layer.groups));
const set = changes => { Object.assign(state, changes); fit(); };
function fit() {
  state.layer = Math.min(state.layer, Math.max(now().layers.length - 1, 0));
  state.depth = Math.min(state.depth, Math.max(depths(), 1));
  state.detection = Math.min(state.detection, Math.max(now().detections.length - 1, 0));
  if (!now().pools.length) state.mode = "units";
  else if (!now().layers.length) state.mode = "parts";
  const rows = [], {layers, pools, detections} = now();
  if (pools.length && layers.length) rows.push(choices("Show", [{name: "sampling points"}, {name: "parts of RoIs"}],
    state.mode === "parts" ? 1 : 0, index => set({mode: index ? "parts" : "units"})));
  if (state.mode === "parts") {
    rows.push(choices("Pooling", pools.map(({name}) => ({name: name.split(".").at(-1)})), state.pool, pool => set({pool})));
    rows.push(choices("Detection", detections.map(({label, score}) => ({name: `${label} ${score.toFixed(2)}`})),
      state.detection, detection => set({detection, kind: null})));
    const {classes} = pools[state.pool];
    if (classes.length > 1 && detections.length) rows.push(choices("Offsets of class", classes.map(name => ({name})),
      shownKind(pools[state.pool]), index => set({kind: classes[index]})));
  } else if (layers.length) {
    let points = 1;
    const numbers = [];
    layers.slice(state.layer, state.layer + depths()).forEach(({windows}) => {
      const taps = windows.map(({kernel}) => kernel[0] * kernel[1]);
      numbers.push(points * taps[0]);
      points *= taps.reduce((a, b) => a * b);
    });
    rows.push(choices("Deformable layers", numbers.map((number, index) => ({name: index + 1, more: `${number} points`})),
      state.depth - 1, index => set({depth: index + 1})));
    rows.push(choices("Unit of layer", layers.map(({name}) => ({name: short(name)})), state.layer, layer => set({layer})));
    state.group = Math.min(state.group, groups() - 1);
    if (groups() > 1) rows.push(choices("Offset group", Array.from({length: groups()}, (_, index) => ({name: index + 1})),
      state.group, group => set({group})));
  }
  const toggles = [{name: "plain network", pressed: state.plain}];
  const answer = now().overlay ? "prediction" : "detections";
  if (detections.length || now().overlay) toggles.push({name: answer, pressed: state.boxes});
  rows.push(choices("Compare with", toggles, -1, index => set(index ? {boxes: !state.boxes} : {plain: !state.plain})));
  const buttons = () => [...byId("controls").querySelectorAll("button, select")];
  const focused = buttons().indexOf(document.activeElement);
  byId("controls").replaceChildren(...rows);
  buttons()[focused]?.focus();
  document.querySelectorAll("#film button").forEach((button, index) =>
    button.setAttribute("aria-pressed", index === state.image));
  explain();
  draw();
}
const short = name => name.split(".").slice(-3).join(".");

function show(image) {
  Object.assign(state, {image, detection: 0, kind: null, hover: null});
  const {name, picture, overlay, width, height} = now();
  byId("picture").src = picture;
  byId("picture").alt = name;
  if (overlay) byId("overlay").src = overlay;
  stage.style.aspectRatio = `${width} / ${height}`;
  stage.style.width = `min(100%, calc((100dvh - ${page.images.length > 1 ? 10 : 5}rem) * ${width / height}))`;
  byId("title").textContent = `${page.title} · ${name}`;
  fit();
}

function explain() {
  const sign = shape => `<svg viewBox="0 0 20 20">${shape}</svg>`;
  const square = (color, fill = "none") =>
    sign(`<rect x="4" y="4" width="12" height="12" fill="${fill}" stroke="${color}" stroke-width="2"/>`);
  const solid = sign(`<rect x="5" y="5" width="10" height="10" fill="${PLAIN}"/>`);
  const disc = sign(`<circle cx="10" cy="10" r="5" fill="${MOVED}"/>`);
  const around = (shape, widths) => sign([["#000", widths[0]], [UNIT, widths[1]]].map(([color, width]) =>
    `<${shape} fill="none" stroke="${color}" stroke-width="${width}"/>`).join(""));
  const parts = state.mode === "parts", {detections, overlay, colours} = now();
  const lines = parts
    ? [[around('rect x="3" y="3" width="14" height="14"', [4, 2]), "the chosen detection"],
       [square(MOVED), "parts that the network pools"], [disc, "their centres"],
       [solid, "centres of the plain network's bins"],
       [sign(`<path d="M2 14 18 6" stroke="#fff" stroke-width="5"/><path d="M2 14 18 6" stroke="#000" stroke-width="2"/>`), "how far a part has moved"]]
    : [[around('circle cx="10" cy="10" r="7"', [6, 3]), "the unit"], [disc, "positions that it samples"],
       [square(PLAIN), "positions of the plain network"]];
  if (!parts && state.boxes && detections.length)
    lines.push([square("#fff", "#777"), "detections, with their classes and scores"]);
  if (overlay && state.boxes) colours.forEach(([name, color]) => lines.push([square("#777", color), name]));
  byId("legend").replaceChildren(...lines.flatMap(([shape, words]) => {
    const [left, right] = [document.createElement("span"), document.createElement("span")];
    left.innerHTML = shape;
    right.textContent = words;
    return [left, right];
  }));
  byId("meaning").innerHTML = (parts ? PARTS : UNITS).map(words => `<p>${words}</p>`).join("");
}
const UNITS = [
  "A <b>unit</b> is one cell of a layer's output. A plain layer computes it from a fixed grid of positions, usually 3 × 3; a " +
  "deformable layer moves each of these positions by an <b>offset</b>, which it predicts from the image. Through two layers " +
  "nine positions become 81, through three 729, and all of them are drawn in the image.",
  "<b>What was learned.</b> In a new network all offsets are zero, and the points lie in the blue squares. After training, " +
  "compare units on a large object, on a small one and on the background. Points that reach as far as the object, or gather on " +
  "it, show that the layers adapt to its size and shape. Points that have stayed in the squares show layers that hardly use " +
  "their offsets. A point says where the network reads, and not how much it counts there.",
  "<b>The bars</b> are the effective dilation of each layer here: the mean distance of neighbouring positions, in cells. The " +
  "blue mark is that of the plain layer. A longer bar means that the filter has spread. Points outside the image read zeros; " +
  "they are counted, and not drawn.",
];
const PARTS = [
  "A detection is classified from the features in its box, which are pooled in a grid of <b>bins</b>. A deformable layer moves " +
  "each bin by an offset, which it predicts from the features in the box.",
  "<b>What was learned.</b> In a new network no part has moved. After training, parts that have moved onto the object, away " +
  "from the background in the box, show that the network has found out where the object is.",
];

function pointed(event) {
  const {left, top, width, height} = stage.getBoundingClientRect();
  return [(event.clientY - top) / height * now().height, (event.clientX - left) / width * now().width];
}
stage.onpointermove = event => {
  if (state.mode !== "units" || !now().layers.length) return;
  state.hover = pointed(event);
  if (event.pointerType !== "mouse" || event.buttons) state.places[state.image] = state.hover;
  draw();
};
stage.onpointerleave = () => { state.hover = null; draw(); };
stage.onpointerdown = event => {
  const [y, x] = pointed(event);
  if (state.mode === "units") {
    if (!now().layers.length) return;
    state.places[state.image] = [y, x];
    state.hover = null;
    return draw();
  }
  const area = ([x0, y0, x1, y1]) => (x1 - x0) * (y1 - y0);
  const under = now().detections.map(({box}, index) => ({box, index}))
    .filter(({box: [x0, y0, x1, y1]}) => x >= x0 && x < x1 && y >= y0 && y < y1)
    .sort((a, b) => area(a.box) - area(b.box));
  if (under.length) set({detection: under[0].index, kind: null});
};

const cycle = (value, number) => number ? (value + 1) % number : 0;
const keys = {
  "1": () => set({depth: 1}), "2": () => set({depth: 2}), "3": () => set({depth: 3}),
  l: () => set({layer: cycle(state.layer, now().layers.length)}),
  g: () => set({group: cycle(state.group, groups())}),
  p: () => set({plain: !state.plain}), d: () => set({boxes: !state.boxes}),
  r: () => set({mode: state.mode === "parts" ? "units" : "parts"}),
  c: () => {
    if (state.mode !== "parts" || !now().detections.length) return;
    const {classes} = now().pools[state.pool];
    set({kind: classes[cycle(shownKind(now().pools[state.pool]), classes.length)]});
  },
  n: () => show(cycle(state.image, page.images.length)),
  t: () => byId("theme").click(),
};
addEventListener("keydown", event => {
  if (event.target.tagName === "SELECT" || event.ctrlKey || event.metaKey || event.altKey) return;
  const arrow = {ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1]}[event.key];
  if (arrow) {
    event.preventDefault();
    if (state.mode === "parts") {
      const number = now().detections.length;
      return number ? set({detection: (state.detection + arrow[0] + arrow[1] + number) % number, kind: null}) : undefined;
    }
    if (!now().layers.length) return;
    const [rows, columns] = now().layers[state.layer].size, [row, column] = unit(), far = event.shiftKey ? 5 : 1;
    const {y, x} = centre([Math.min(Math.max(row + arrow[0] * far, 0), rows - 1),
                           Math.min(Math.max(column + arrow[1] * far, 0), columns - 1)]);
    state.places[state.image] = [y, x];
    state.hover = null;
    return draw();
  }
  keys[event.key.toLowerCase()]?.();
});

byId("theme").onclick = () => {
  const dark = (document.documentElement.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "")) === "dark";
  document.documentElement.dataset.theme = dark ? "light" : "dark";
};
byId("keys").innerHTML = [["← ↑ → ↓", "move the unit (with Shift by five), or choose the detection"], ["1 2 3", "number of deformable layers"],
  ["L", "next layer"], ["G", "next offset group"], ["P", "plain network"], ["D", "detections"], ["R", "parts of RoIs"],
  ["C", "class"], ["N", "next image"], ["T", "light or dark"]]
  .map(([key, what]) => `<kbd>${key}</kbd> ${what}`).join("<br>");
if (page.images.length > 1) page.images.forEach(({name, picture}, index) => {
  const button = document.createElement("button"), image = new Image();
  button.onclick = () => show(index);
  image.src = picture;
  image.alt = button.title = name;
  button.append(image);
  byId("film").append(button);
});
for (const {title, note, columns, rows} of page.tables) {
  const card = document.createElement("div"), table = document.createElement("table"), words = document.createElement("p");
  card.className = "card";
  words.className = "note";
  words.textContent = note;
  table.createCaption().textContent = title;
  const line = (cells, kind, into) => {
    const row = into.insertRow();
    for (const cell of cells) row.append(Object.assign(document.createElement(kind), {textContent: cell}));
  };
  line(columns, "th", table.createTHead());
  const body = table.createTBody();
  for (const row of rows) line(row, "td", body);
  card.append(table, words);
  byId("tables").append(card);
}
document.title = `${page.title} · pliant look`;
state.depth = Math.max(1, Math.min(3, page.images[0].layers.length));
show(0);
new ResizeObserver(draw).observe(stage);
