// A canvas to draw on, with a finger, a pen or a mouse. Each picture has one of its own.

export const COLOURS = {
  red: "#d62728", orange: "#ff8c00", yellow: "#f0d414", green: "#22963c", cyan: "#1ec8d7",
  blue: "#235ad2", purple: "#8232aa", pink: "#fa82be", brown: "#7d4b23", grey: "#808080",
  black: "#161616", white: "#fafafa",
};
export const TOOLS = {
  pen: "Pen", fill: "Fill", circle: "Circle", square: "Square", triangle: "Triangle", star: "Star",
};
export const GROUND = "#faf3e0"; // a pale ivory
const MAX_SIDE = 1600; // of a photo that is drawn on
const MAX_UNDO = 20;

// What the next stroke does; the same for all pictures.
export const pen = { tool: "pen", colour: "red", width: 6 };

export class Sketch {
  constructor(width, height, changed) {
    this.canvas = document.createElement("canvas");
    this.canvas.width = width;
    this.canvas.height = height;
    this.canvas.tabIndex = 0;
    this.canvas.setAttribute("role", "img");
    this.context = this.canvas.getContext("2d", { willReadFrequently: true });
    this.changed = changed;
    this.undoable = [];
    this.start = null;
    this.context.fillStyle = GROUND;
    this.context.fillRect(0, 0, width, height);
    this.canvas.addEventListener("pointerdown", (event) => this.down(event));
    this.canvas.addEventListener("pointermove", (event) => this.move(event));
    this.canvas.addEventListener("pointerup", () => this.up());
    this.canvas.addEventListener("pointercancel", () => this.up());
    this.canvas.addEventListener("keydown", (event) => this.key(event));
  }

  static fromImage(image, changed) {
    const scale = Math.min(1, MAX_SIDE / Math.max(image.naturalWidth, image.naturalHeight));
    const width = Math.max(1, Math.round(image.naturalWidth * scale));
    const height = Math.max(1, Math.round(image.naturalHeight * scale));
    const sketch = new Sketch(width, height, changed);
    sketch.context.fillStyle = "#fff"; // what is transparent lies on white, as for the model
    sketch.context.fillRect(0, 0, width, height);
    sketch.context.drawImage(image, 0, 0, width, height);
    return sketch;
  }

  get isTouched() {
    return this.undoable.length > 0;
  }

  remember() {
    this.undoable.push(this.context.getImageData(0, 0, this.canvas.width, this.canvas.height));
    if (this.undoable.length > MAX_UNDO) this.undoable.splice(1, 1); // the first is the original
  }

  undo() {
    const before = this.undoable.pop();
    if (!before) return;
    this.context.putImageData(before, 0, 0);
    this.changed();
  }

  // Back to how it began: an empty canvas, or the photo as it was.
  clear() {
    if (!this.undoable.length) return;
    this.context.putImageData(this.undoable[0], 0, 0);
    this.undoable = [];
    this.changed();
  }

  point(event) {
    const shown = this.canvas.getBoundingClientRect();
    // object-fit: contain may leave a margin on two sides.
    const scale = Math.min(shown.width / this.canvas.width, shown.height / this.canvas.height);
    const left = shown.left + (shown.width - this.canvas.width * scale) / 2;
    const top = shown.top + (shown.height - this.canvas.height * scale) / 2;
    return [(event.clientX - left) / scale, (event.clientY - top) / scale];
  }

  down(event) {
    if (event.button !== 0 || this.start) return;
    event.preventDefault();
    this.canvas.setPointerCapture(event.pointerId);
    this.remember();
    this.start = this.point(event);
    this.last = this.start;
    if (pen.tool === "pen") this.line(this.start, this.start);
    if (pen.tool === "fill") this.fill(...this.start);
  }

  move(event) {
    if (!this.start) return;
    const now = this.point(event);
    if (pen.tool === "pen") {
      this.line(this.last, now);
    } else if (pen.tool !== "fill") {
      this.context.putImageData(this.undoable.at(-1), 0, 0);
      this.shape(this.start, now);
    }
    this.last = now;
  }

  up() {
    if (!this.start) return;
    // A mere tap with a shape puts one of a usual size there.
    const [dx, dy] = [this.last[0] - this.start[0], this.last[1] - this.start[1]];
    if (pen.tool !== "pen" && pen.tool !== "fill" && Math.hypot(dx, dy) < 8) this.stamp(...this.start);
    this.start = null;
    this.changed();
  }

  // Without a pointer: Enter puts a shape into the middle.
  key(event) {
    if (event.key !== "Enter" && event.key !== " ") return;
    event.preventDefault();
    this.remember();
    if (pen.tool === "fill") this.fill(2, 2);
    else this.stamp(this.canvas.width / 2, this.canvas.height / 2);
    this.changed();
  }

  stamp(x, y) {
    const r = Math.min(this.canvas.width, this.canvas.height) / 6;
    this.shape([x - r, y - r], [x + r, y + r]);
  }

  line([x0, y0], [x1, y1]) {
    const c = this.context;
    c.strokeStyle = COLOURS[pen.colour];
    c.lineWidth = (pen.width / 100) * Math.max(this.canvas.width, this.canvas.height);
    c.lineCap = c.lineJoin = "round";
    c.beginPath();
    c.moveTo(x0, y0);
    c.lineTo(x1 + 0.01, y1);
    c.stroke();
  }

  // A filled shape between two corners; as wide as high.
  shape([x0, y0], [x1, y1]) {
    const c = this.context;
    const r = Math.max(Math.abs(x1 - x0), Math.abs(y1 - y0)) / 2;
    const x = x0 + Math.sign(x1 - x0 || 1) * r;
    const y = y0 + Math.sign(y1 - y0 || 1) * r;
    c.fillStyle = COLOURS[pen.colour];
    c.beginPath();
    if (pen.tool === "square") {
      c.rect(x - 0.86 * r, y - 0.86 * r, 1.72 * r, 1.72 * r);
    } else if (pen.tool === "triangle") {
      polygon(c, [[0, -0.95], [1, 0.85], [-1, 0.85]], x, y, r);
    } else if (pen.tool === "star") {
      const corners = [];
      for (let i = 0; i < 10; i++) {
        const [angle, length] = [(i * Math.PI) / 5, i % 2 ? 0.42 : 1];
        corners.push([length * Math.sin(angle), -length * Math.cos(angle)]);
      }
      polygon(c, corners, x, y, r);
    } else {
      c.arc(x, y, r, 0, 2 * Math.PI);
    }
    c.fill();
  }

  // Fill an area of about one colour.
  fill(x, y) {
    const { width, height } = this.canvas;
    const image = this.context.getImageData(0, 0, width, height);
    const data = image.data;
    const value = Number.parseInt(COLOURS[pen.colour].slice(1), 16);
    const paint = [value >> 16, (value >> 8) & 255, value & 255];
    const at = (px, py) => 4 * (py * width + px);
    const first = at(Math.floor(x), Math.floor(y));
    if (!(x >= 0 && x < width && y >= 0 && y < height)) return;
    const from = [data[first], data[first + 1], data[first + 2]];
    const isLike = (i) => [0, 1, 2].every((k) => Math.abs(data[i + k] - from[k]) < 48);
    const seen = new Uint8Array(width * height);
    const todo = [[Math.floor(x), Math.floor(y)]];
    while (todo.length) {
      const [px, py] = todo.pop();
      if (px < 0 || py < 0 || px >= width || py >= height || seen[py * width + px]) continue;
      if (!isLike(at(px, py))) continue;
      seen[py * width + px] = 1;
      todo.push([px + 1, py], [px - 1, py], [px, py + 1], [px, py - 1]);
    }
    // With the pixels around them: where a stroke begins they are half its colour, a pale seam.
    for (let py = 0; py < height; py++) {
      for (let px = 0; px < width; px++) {
        if (isNear(seen, px, py, width, height)) data.set(paint, at(px, py));
      }
    }
    this.context.putImageData(image, 0, 0);
  }

  blob() {
    return new Promise((resolve) => this.canvas.toBlob(resolve, "image/png"));
  }
}

// Whether a pixel or one of the eight around it is set.
function isNear(seen, px, py, width, height) {
  for (let y = Math.max(0, py - 1); y <= Math.min(height - 1, py + 1); y++) {
    for (let x = Math.max(0, px - 1); x <= Math.min(width - 1, px + 1); x++) {
      if (seen[y * width + x]) return true;
    }
  }
  return false;
}

function polygon(context, corners, x, y, r) {
  for (const [dx, dy] of corners) context.lineTo(x + dx * r, y + dy * r);
  context.closePath();
}
