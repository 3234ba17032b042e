// An answer as text with the boxes that it names, and those boxes on the picture.

import { element } from "./dom.js";

const BOX = /(?:<\|object_ref_start\|>([^<]*)<\|object_ref_end\|>)?<\|box_start\|>\((\d+),(\d+)\),\((\d+),(\d+)\)<\|box_end\|>/g;
const COLOURS = ["#d62728", "#1f77b4", "#2ca02c", "#9467bd", "#c05f00", "#555555"];

// Edges count from 0 to 1000 along the sides of the picture.
export function findBoxes(text) {
  return [...text.matchAll(BOX)].map((match, i) => ({
    name: match[1] || "here",
    edges: match.slice(2, 6).map(Number),
    colour: COLOURS[i % COLOURS.length],
    start: match.index,
    end: match.index + match[0].length,
  }));
}

// The parts of an answer as nodes: a box becomes its name in a frame.
export function answerNodes(text) {
  const nodes = [];
  let start = 0;
  for (const box of findBoxes(text)) {
    nodes.push(text.slice(start, box.start));
    const found = element("span", { class: "found", title: `box ${box.edges.join(", ")} of 1000` }, box.name);
    found.style.borderColor = box.colour;
    nodes.push(found);
    start = box.end;
  }
  nodes.push(text.slice(start).replace(/<\|[a-z_]*\|?>?/g, "")); // half a box, while it comes
  return nodes;
}

// Where the numbers of its boxes come from; "" if an answer has none.
export function boxNote(text) {
  const corners = findBoxes(text).map(({ edges: [x0, y0, x1, y1] }) => `(${x0},${y0}),(${x1},${y1})`);
  if (!corners.length) return "";
  return `The model wrote ${corners.length > 1 ? "each" : "the"} box as text, two corners: ${corners.join("; ")}. `
    + "The numbers are thousandths of the picture’s width and height, not pixels.";
}

// Lay the boxes of an answer over the canvas in the stage.
export function drawBoxes(stage, text) {
  clearBoxes(stage);
  const canvas = stage.querySelector("canvas");
  if (!canvas) return 0;
  const boxes = findBoxes(text);
  for (const box of boxes) {
    const [x0, y0, x1, y1] = box.edges;
    const [left, right] = [Math.min(x0, x1), Math.max(x0, x1)];
    const [top, bottom] = [Math.min(y0, y1), Math.max(y0, y1)];
    const frame = element("div", { class: "box" }, element("span", {}, box.name));
    frame.style.cssText = `left:${left / 10}%;top:${top / 10}%;width:${(right - left) / 10}%;height:${(bottom - top) / 10}%;border-color:${box.colour}`;
    const name = frame.firstChild;
    name.style.background = box.colour;
    if (top < 90) frame.classList.add("inner"); // its name would leave the picture
    // The name begins or ends with the box, where it has more room, and takes no more than that.
    const isEnding = right > 1000 - left;
    if (isEnding) frame.classList.add("ending");
    const room = isEnding ? right : 1000 - left;
    name.style.maxWidth = `${(100 * room) / Math.max(1, right - left)}%`;
    stage.append(frame);
  }
  return boxes.length;
}

export function clearBoxes(stage) {
  for (const box of stage.querySelectorAll(".box")) box.remove();
}
