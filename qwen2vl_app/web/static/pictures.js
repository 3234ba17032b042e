// The pictures and clips that the model is shown: drawings, photos, clips.

import { clearBoxes } from "./answers.js";
import { byId, check, element, radios } from "./dom.js";
import * as server from "./server.js";
import { Sketch } from "./sketch.js";

const DRAWING = [448, 336];
const CLIP_NAME = /\.(mp4|m4v|mov|webm|mkv|avi)$/i; // some systems know no type for these files

export class Pictures {
  // changed: called whenever what the model would be shown is another.
  constructor(changed) {
    this.items = [];
    this.current = null;
    this.changed = changed;
    radios(byId("tray"), (key) => this.show(this.items.find((item) => item.key === key)));
  }

  add(item) {
    item.key = crypto.getRandomValues(new Uint32Array(2)).join("-");
    item.uploaded = null;
    item.version = 0; // of what is drawn on it
    // A drawing that was never begun makes room.
    this.items = this.items.filter((one) => !one.isDrawing || one.sketch.isTouched);
    if (this.items.length >= server.facts.maxMedia) this.items.shift();
    this.items.push(item);
    this.show(item);
    this.changed();
  }

  addDrawing() {
    const item = { kind: "image", isDrawing: true, name: "drawing" };
    item.sketch = new Sketch(...DRAWING, () => this.touched(item));
    this.add(item);
  }

  // A file, as it came from a picker, the clipboard or a drop. The model gets it as it is.
  // isAlone: it takes the place of all others.
  async addFile(file, name = file.name || "", isAlone = false) {
    const isClip = file.type.startsWith("video/") || (!file.type && CLIP_NAME.test(name));
    const kind = isClip ? "video" : "image";
    const uploaded = await server.upload(kind, file); // what it can't read is said now
    const item = { kind, file, name: name || kind };
    if (isClip) {
      item.frames = uploaded.frames;
      item.element = film(uploaded.frames);
    } else {
      const image = new Image();
      image.src = URL.createObjectURL(file);
      await image.decode();
      item.sketch = Sketch.fromImage(image, () => this.touched(item));
    }
    if (isAlone) this.items = [];
    this.add(item);
    item.uploaded = uploaded;
    this.changed();
  }

  remove(item) {
    this.items = this.items.filter((one) => one !== item);
    if (!this.items.length) this.addDrawing();
    else if (this.current === item) this.show(this.items.at(-1));
    else this.drawTray();
    this.changed();
  }

  touched(item) {
    item.version += 1;
    item.uploaded = null;
    clearBoxes(byId("stage"));
    this.drawTools();
    this.drawTray();
    this.changed();
  }

  // What the model is shown: all but an empty drawing.
  get shown() {
    return this.items.filter((item) => !isEmpty(item));
  }

  // Tells whether the model would be shown something else.
  get state() {
    return this.shown.map((item) => `${item.key} ${item.version}`).join();
  }

  // Their ids at the server, after what it lacks was sent.
  async ids() {
    const ids = [];
    for (const item of this.shown) {
      const { version } = item;
      let { uploaded } = item;
      if (!uploaded) {
        const isOriginal = item.file && !item.sketch?.isTouched;
        uploaded = await server.upload(item.kind, isOriginal ? item.file : await item.sketch.blob());
        if (item.version === version) item.uploaded = uploaded; // else it was drawn on meanwhile
      }
      ids.push(uploaded.id);
    }
    return ids;
  }

  forget() {
    for (const item of this.items) item.uploaded = null;
  }

  size(item) {
    return item.sketch ? [item.sketch.canvas.width, item.sketch.canvas.height] : null;
  }

  // ------------------------------------------------------------------------------- on the page

  show(item) {
    if (!item) return;
    this.current = item;
    const stage = byId("stage");
    const inside = item.element || item.sketch.canvas;
    const sheet = element("div", { class: "sheet" }, inside);
    if (item.sketch) {
      const [width, height] = this.size(item);
      sheet.style.maxWidth = `${(68 * width) / height}vh`;
      inside.setAttribute("aria-label", `Your ${item.name}: draw on it with a finger or the mouse. `
        + "Without them, Enter puts the chosen shape into the middle.");
    }
    stage.replaceChildren(sheet);
    this.drawTools();
    this.drawTray();
    this.changed();
  }

  drawTools() {
    const { sketch, isDrawing } = this.current;
    byId("tools").hidden = !sketch;
    byId("clear").textContent = isDrawing ? "Clear" : "Clear strokes"; // the picture under them stays
    byId("undo").disabled = byId("clear").disabled = !sketch?.isTouched;
  }

  drawTray() {
    const tray = byId("tray");
    const thumbs = this.items.map((item, i) => {
      const name = `Picture ${i + 1}: ${item.name}`;
      const button = element("button", { type: "button", role: "radio", "aria-label": name, title: name, "data-value": item.key });
      button.append(this.thumb(item));
      const away = element("button", {
        type: "button", class: "away", "aria-label": `Remove picture ${i + 1}`, click: () => this.remove(item),
      }, "×");
      return element("div", { class: "thumb" }, button, away);
    });
    tray.replaceChildren(...thumbs);
    tray.hidden = this.items.length < 2 && this.items[0].isDrawing; // that one can be cleared
    check(tray, this.current.key);
    const { length } = this.shown;
    byId("sent").hidden = this.items.length < 2;
    byId("sent").textContent = `${length} ${length === 1 ? "picture is" : "pictures are"} sent with your question`
      + (length < this.items.length ? "; an empty drawing is not." : ".");
  }

  thumb(item) {
    if (!item.sketch) return element("img", { src: item.frames[0].source, alt: "" });
    const [width, height] = this.size(item);
    const scale = 60 / Math.max(width, height);
    const small = element("canvas", { "aria-label": item.name, width: Math.ceil(width * scale), height: Math.ceil(height * scale) });
    small.getContext("2d").drawImage(item.sketch.canvas, 0, 0, small.width, small.height);
    return small;
  }
}

export const isEmpty = (item) => Boolean(item.isDrawing) && !item.sketch.isTouched;

// The frames of a clip that the model sees, each with its time; it sees them in pairs.
function film(frames) {
  const strip = element("div", { class: "film", role: "group", "aria-label": "The frames of the clip that the model sees" });
  for (let i = 0; i < frames.length; i += 2) {
    const pair = element("div", { class: "pair" });
    for (const { time, source } of frames.slice(i, i + 2)) {
      const name = `${time.toFixed(1)} s`;
      pair.append(element("div", {}, element("img", { src: source, alt: `The frame at ${name}` }), element("small", {}, name)));
    }
    strip.append(pair);
  }
  return strip;
}
