"use strict";
// Trace.points on the numbers in the page.

// Numbers are 16-bit integers in base64, times a step.
function unpack(packed) {
  if (!packed.values) {
    const text = atob(packed.data), bytes = Uint8Array.from(text, letter => letter.charCodeAt(0));
    packed.values = Float64Array.from(new Int16Array(bytes.buffer), value => value * packed.step);
  }
  return packed.values;
}

// The positions that a window reads for each of `points` [y, x, inside]; `moved` adds the interpolated offsets.
function read(points, window, group, moved) {
  const [rows, columns] = window.kernel, taps = rows * columns, result = [];
  const offset = moved && window.offset && unpack(window.offset);
  const [, , , height, width] = window.offset ? window.offset.shape : [];
  for (const [y, x, inside] of points) {
    const v = offset && Math.min(Math.max(y, 0), height - 1), u = offset && Math.min(Math.max(x, 0), width - 1);
    const top = Math.floor(v), left = Math.floor(u), bottom = Math.min(top + 1, height - 1);
    const right = Math.min(left + 1, width - 1), dv = v - top, du = u - left;
    const at = channel => {
      const plane = (group * taps * 2 + channel) * height * width;
      const above = offset[plane + top * width + left] * (1 - du) + offset[plane + top * width + right] * du;
      const below = offset[plane + bottom * width + left] * (1 - du) + offset[plane + bottom * width + right] * du;
      return above * (1 - dv) + below * dv;
    };
    for (let tap = 0; tap < taps; tap++) {
      let py = y * window.stride[0] - window.padding[0] + Math.floor(tap / columns) * window.dilation[0];
      let px = x * window.stride[1] - window.padding[1] + (tap % columns) * window.dilation[1];
      if (offset) { py += at(2 * tap); px += at(2 * tap + 1); }
      result.push([py, px, inside && py > -1 && px > -1 && py < window.map[0] && px < window.map[1]]);
    }
  }
  return result;
}

// Mean distance of neighbouring taps over all filters: the effective dilation.
function spread(points, [rows, columns]) {
  let sum = 0, count = 0;
  for (let first = 0; first < points.length; first += rows * columns)
    for (let tap = 0; tap < rows * columns; tap++)
      for (const next of [tap % columns < columns - 1 && tap + 1, tap + columns < rows * columns && tap + columns])
        if (next) {
          const [a, b] = [points[first + tap], points[first + next]];
          sum += Math.hypot(a[0] - b[0], a[1] - b[1]);
          count++;
        }
  return sum / count;
}
