// Drawing the picture with its grid, and the attention maps over it.

const SHOWN_WIDTH = 640; // pixels of a canvas, about

// The attention weights that the server has sent: one byte each, 255 times the root of the weight.
export class Maps {
  constructor(data) {
    this.layers = data.layers;
    this.heads = data.heads;
    this.keys = data.tokens.ids.length;
    const text = atob(data.maps);
    this.bytes = Uint8Array.from(text, (letter) => letter.charCodeAt(0));
    this.rows = this.bytes.length / (this.layers * this.heads * this.keys);
  }

  // The weights of one row, for a layer and head from 1 on; 0 is the mean of all. Null if left out.
  row(layer, head, row) {
    if (row >= this.rows) return null;
    const layers = layer ? [layer - 1] : [...Array(this.layers).keys()];
    const heads = head ? [head - 1] : [...Array(this.heads).keys()];
    const sums = new Float64Array(this.keys);
    for (const l of layers) {
      for (const h of heads) {
        const start = ((l * this.heads + h) * this.rows + row) * this.keys;
        for (let i = 0; i < this.keys; i++) sums[i] += (this.bytes[start + i] / 255) ** 2;
      }
    }
    return sums.map((sum) => sum / (layers.length * heads.length));
  }
}

function prepare(canvas, medium) {
  const factor = Math.max(1, Math.round(SHOWN_WIDTH / medium.width));
  canvas.width = medium.width * factor;
  canvas.height = medium.height * factor;
  const context = canvas.getContext("2d");
  context.imageSmoothingEnabled = false; // every pixel stays a square
  return [context, factor];
}

// The picture as the model sees it, cut into patches and tokens; `lit` is a token to be framed.
export function drawGrid(canvas, medium, image, data, lit) {
  const [context, factor] = prepare(canvas, medium);
  context.drawImage(image, 0, 0, canvas.width, canvas.height);
  const patch = data.patch * factor;
  const lines = (step, width, colour) => {
    context.lineWidth = width;
    context.strokeStyle = colour;
    context.beginPath();
    for (let x = step; x < canvas.width; x += step) line(context, x, 0, x, canvas.height);
    for (let y = step; y < canvas.height; y += step) line(context, 0, y, canvas.width, y);
    context.stroke();
  };
  lines(patch, 1, "rgb(90 90 90 / .55)");
  lines(patch * data.merge, 5, "rgb(255 255 255 / .8)");
  lines(patch * data.merge, 2.5, "rgb(20 20 20 / .9)");
  if (lit === undefined) return;
  const columns = medium.grid[2] / data.merge;
  const side = patch * data.merge;
  context.lineWidth = 6;
  context.strokeStyle = "#ff6a1f";
  context.strokeRect((lit % columns) * side, Math.floor(lit / columns) * side, side, side);
}

function line(context, x0, y0, x1, y1) {
  context.moveTo(x0, y0);
  context.lineTo(x1, y1);
}

// A frame under a veil that is thin where the model looked: `most` is the share without a veil.
export function drawMap(canvas, medium, frame, weights, most, data) {
  const [context, factor] = prepare(canvas, medium);
  const [h, w] = [medium.grid[1] / data.merge, medium.grid[2] / data.merge];
  context.drawImage(medium.images[frame], 0, 0, canvas.width, canvas.height);
  const side = data.patch * data.merge * factor;
  for (let i = 0; i < h * w; i++) {
    const share = weights[medium.first + frame * h * w + i] / Math.max(most, 1e-9);
    context.fillStyle = `rgb(16 13 11 / ${0.88 * (1 - share)})`;
    context.fillRect((i % w) * side, Math.floor(i / w) * side, side, side);
  }
}
