"use strict";
// Drawing over the image.

function draw() {
  const ratio = devicePixelRatio || 1, {width, height} = stage.getBoundingClientRect();
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(height * ratio);
  const scale = canvas.width / now().width, tall = canvas.height / now().height;
  const place = ({y, x}) => [x * scale, y * tall];
  context.lineJoin = "round";
  byId("overlay").hidden = !(now().overlay && state.boxes);
  if (state.boxes) now().detections.forEach((found, index) => drawBox(found, index, place, ratio));
  if (state.mode === "parts") drawParts(place, ratio);
  else if (unit()) drawUnit(place, ratio);
  describe();
}

function drawBox({box: [x0, y0, x1, y1], label, score}, index, place, ratio) {
  const chosen = state.mode === "parts" && index === state.detection;
  const [left, top] = place({x: x0, y: y0}), [right, bottom] = place({x: x1, y: y1});
  context.globalAlpha = state.mode === "parts" && !chosen ? 0.4 : 1;
  for (const [color, size] of [["rgb(0 0 0 / .65)", 3], [chosen ? UNIT : "#fff", chosen ? 2 : 1.2]]) {
    context.strokeStyle = color;
    context.lineWidth = size * ratio;
    context.strokeRect(left, top, right - left, bottom - top);
  }
  context.globalAlpha = 1;
  if (state.mode === "parts" && !chosen) return;
  const text = `${label} ${score.toFixed(2)}`;
  context.font = `600 ${11 * ratio}px system-ui, sans-serif`;
  const size = context.measureText(text).width + 8 * ratio;
  if (!chosen && (size > 1.6 * (right - left) || stage.clientWidth < 500)) return;
  const y = Math.max(top, 15 * ratio);
  context.fillStyle = "rgb(0 0 0 / .7)";
  context.fillRect(left, y - 15 * ratio, size, 15 * ratio);
  context.fillStyle = chosen ? UNIT : "#fff";
  context.fillText(text, left + 4 * ratio, y - 4 * ratio);
}

// Markers are smaller on small images.
const small = () => (devicePixelRatio || 1) * Math.min(1, Math.max(0.6, stage.clientWidth / 800));
function drawUnit(place, ratio) {
  const found = follow(unit(), true), radius = [4.2, 3.2, 2.4][state.depth - 1] * small();
  if (state.plain) {
    const spots = new Map(follow(unit(), false).points.map(point => [`${point.y},${point.x}`, point]));
    const side = Math.max(radius * 1.7, 5 * small());
    for (const [color, size] of [["rgb(255 255 255 / .85)", 3], [PLAIN, 1.4]]) {
      context.strokeStyle = color;
      context.lineWidth = size * ratio;
      for (const spot of spots.values()) {
        const [x, y] = place(spot);
        context.strokeRect(x - side / 2, y - side / 2, side, side);
      }
    }
  }
  for (const [color, extra] of [["rgb(255 255 255 / .85)", ratio], [MOVED, 0]]) {
    context.fillStyle = color;
    context.beginPath();
    for (const point of found.points) {
      if (!point.inside) continue;
      const [x, y] = place(point);
      context.moveTo(x + radius + extra, y);
      context.arc(x, y, radius + extra, 0, 7);
    }
    context.fill();
  }
  const [x, y] = place(centre(unit()));
  for (const [color, size] of [["#000", 6], [UNIT, 3]]) {
    context.strokeStyle = color;
    context.lineWidth = size * ratio;
    context.beginPath();
    context.arc(x, y, 9 * ratio, 0, 7);
    context.stroke();
  }
}

// The class whose offsets are shown: the chosen one, otherwise that of the detection.
function shownKind(pool) {
  if (pool.classes.length < 2) return 0;
  return Math.max(pool.classes.indexOf(state.kind ?? now().detections[state.detection].label), 0);
}
function drawParts(place, ratio) {
  const pool = now().pools[state.pool];
  if (!now().detections.length) return;
  const [, kinds, rows, columns] = pool.parts.shape, bins = rows * columns;
  const boxes = (packed, first) => Array.from({length: bins}, (_, bin) =>
    Array.from(unpack(packed).subarray((first + bin) * 4, (first + bin) * 4 + 4)));
  const moved = boxes(pool.parts, (state.detection * kinds + shownKind(pool)) * bins);
  const regular = boxes(pool.regular, state.detection * bins);
  const middle = ([x0, y0, x1, y1]) => place({x: (x0 + x1) / 2, y: (y0 + y1) / 2});
  const stroke = (color, width, path) => {
    context.strokeStyle = color;
    context.lineWidth = width * ratio;
    context.beginPath();
    path();
    context.stroke();
  };
  const outlines = () => moved.forEach(([x0, y0, x1, y1]) => {
    const [left, top] = place({x: x0, y: y0}), [right, bottom] = place({x: x1, y: y1});
    context.rect(left, top, right - left, bottom - top);
  });
  const ways = () => moved.forEach((box, bin) => {
    context.moveTo(...middle(regular[bin]));
    context.lineTo(...middle(box));
  });
  stroke("rgb(255 255 255 / .5)", 3, outlines);
  stroke(MOVED, 1.3, outlines);
  if (state.plain) {
    stroke("#fff", 3.4, ways);
    stroke("#000", 1.4, ways);
    mark(regular.map(middle), PLAIN, small(), ([x, y], r) => context.rect(x - r, y - r, 2 * r, 2 * r));
  }
  mark(moved.map(middle), MOVED, small(), ([x, y], r) => context.arc(x, y, r * 1.1, 0, 7));
}
function mark(spots, color, ratio, shape) {
  for (const [fill, radius] of [["#fff", 4.4], [color, 3.2]]) {
    context.fillStyle = fill;
    context.beginPath();
    for (const spot of spots) {
      context.moveTo(spot[0] + radius * ratio, spot[1]);
      shape(spot, radius * ratio);
    }
    context.fill();
  }
}
