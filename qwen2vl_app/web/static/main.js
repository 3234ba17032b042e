// The page: pictures at the left, the conversation at the right, and what is inside below.

import { answerNodes, clearBoxes, drawBoxes } from "./answers.js";
import { byId, check, element, radios } from "./dom.js";
import { Inside } from "./inside.js";
import { Pictures } from "./pictures.js";
import * as server from "./server.js";
import { COLOURS, pen, TOOLS } from "./sketch.js";

const EXAMPLES = [
  ["shapes.png", "Describe this image."],
  ["wide.png", "What colour is the ring?"],
  ["many.png", "Find the orange diamond."],
  ["number.png", "What number is written here?"],
  ["word.png", "What word is written here?"],
  ["moving.mp4", "Which way does the yellow circle move?"],
];
const SIGNS = { pen: "Pen", fill: "Fill", circle: "●", square: "■", triangle: "▲", star: "★" };

let shownBefore = null; // which pictures the conversation is about; null: there is none
let isAsking = false;
let lastQuestion = "";
let pictures;
let inside;

// ------------------------------------------------------------------------------------ notices

function notify(text) {
  byId("notice").textContent = text;
  byId("notice").hidden = !text;
}

async function guarded(work) {
  try {
    notify("");
    await work();
  } catch (error) {
    notify(error.message === "Failed to fetch" ? "The server does not answer: is it still running?" : error.message);
  }
}

// A session that the server has forgotten begins anew, once.
async function withSession(work) {
  try {
    return await work();
  } catch (error) {
    if (!(error instanceof server.Gone)) throw error;
    await server.hello();
    pictures.forget();
    shownBefore = null;
    return work();
  }
}

// ------------------------------------------------------------------------------------- asking

function settings() {
  return {
    maxPixels: maxPixels(),
    temperature: Number(byId("temperature").value),
    maxNewTokens: Number(byId("longest").value),
  };
}

async function ask(isRetry) {
  if (isAsking) return;
  const text = isRetry ? lastQuestion : byId("question").value.trim() || byId("question").placeholder;
  lastQuestion = text;
  setAsking(true);
  try {
    await withSession(() => askOnce(text, isRetry));
  } finally {
    setAsking(false);
  }
}

async function askOnce(text, isRetry) {
  const isNew = shownBefore === null || shownBefore !== pictures.state;
  const media = isNew ? await pictures.ids() : [];
  byId("empty")?.remove();
  if (isNew && shownBefore !== null) byId("turns").replaceChildren();
  if (isRetry && !isNew) byId("turns").lastElementChild?.remove();
  const turn = addTurn(text, isRetry && !isNew);
  let said = "";
  let isStarted = false;
  clearBoxes(byId("stage"));
  const question = { text, media, isNew, isRetry: isRetry && !isNew, ...settings() };
  byId("question").value = "";
  const began = performance.now();
  await server.ask(question, (event) => {
    if ("place" in event) byId("status").textContent = waitingText(event.place);
    if ("error" in event) {
      turn.answer.textContent = event.error;
      turn.answer.classList.add("fault");
    }
    if ("text" in event) {
      isStarted = true;
      said += event.text;
      turn.answer.replaceChildren(...answerNodes(said));
      turn.holder.scrollIntoView({ block: "nearest" });
    }
    if (event.done) finishTurn(turn, event, said, performance.now() - began);
  });
  turn.answer.classList.remove("waits");
  if (isStarted) shownBefore = pictures.state;
  else if (!turn.answer.textContent) turn.answer.textContent = "(stopped)";
}

const waitingText = (place) => (place > 0 ? `${place} before you in the queue …` : "It reads …");

function addTurn(text, isRetry) {
  const answer = element("p", { class: "answer waits" });
  const holder = element("div", { class: "said" }, answer);
  if (!isRetry) byId("turns").append(element("div", { class: "asked" }, text));
  byId("turns").append(holder);
  holder.scrollIntoView({ block: "nearest" });
  byId("status").textContent = "It reads …";
  return { answer, holder };
}

function finishTurn(turn, event, said, milliseconds) {
  const end = event.ended ? "" : " It was stopped before its end.";
  const pictureTokens = event.mediaTokens ? `, ${event.mediaTokens} of them the picture` : "";
  byId("status").textContent = `Read ${event.promptTokens} tokens${pictureTokens}; wrote ${event.answerTokens}. `
    + `${(milliseconds / 1000).toFixed(1)} s.${end}`;
  drawBoxes(byId("stage").firstElementChild, said);
  const button = element("button", { type: "button", click: () => guarded(() => lookInside(event.turn, said)) }, "Look inside");
  turn.holder.append(button);
  if (inside.isOpen) guarded(() => lookInside(event.turn, said, true));
  drawCrowd();
}

async function lookInside(turn, said, isQuiet) {
  inside.show(await server.inside(turn), said);
  if (!isQuiet) byId("inside").scrollIntoView({ behavior: "smooth" });
}

function setAsking(flag) {
  isAsking = flag;
  byId("ask").disabled = flag;
  byId("stop").disabled = !flag;
  byId("retry").disabled = flag || !lastQuestion;
  byId("new").disabled = flag || !lastQuestion;
  byId("turns").setAttribute("aria-busy", flag);
}

function startAnew() {
  shownBefore = null;
  lastQuestion = "";
  byId("turns").replaceChildren();
  byId("status").textContent = "";
  clearBoxes(byId("stage"));
  inside.hide();
  setAsking(false);
  byId("question").focus();
}

// ------------------------------------------------------------------------------------ settings

// The slider goes from the least to the most pixels in equal factors.
function maxPixels() {
  const { minPixels, maxPixels: most } = server.facts;
  return Math.round(minPixels * (most / minPixels) ** (Number(byId("detail").value) / 100));
}

function drawSettings() {
  const side = server.facts.tokenSide;
  byId("detail-out").textContent = Math.floor(maxPixels() / side ** 2);
  byId("temperature-out").textContent = Number(byId("temperature").value).toFixed(1);
  byId("longest-out").textContent = byId("longest").value;
}

let costNumber = 0;
async function drawCost() {
  const number = ++costNumber;
  const item = pictures.current;
  if (shownBefore !== null && shownBefore !== pictures.state) {
    byId("status").textContent = "The pictures have changed: your next question begins a new conversation.";
  }
  const size = pictures.size(item);
  if (!size) {
    byId("cost").textContent = "A clip: the model sees some of its frames, in pairs.";
    return;
  }
  const [width, height] = item.uploaded ? [item.uploaded.width, item.uploaded.height] : size;
  const cost = await server.cost(width, height, maxPixels());
  if (number !== costNumber) return; // a later one was asked for meanwhile
  const how = cost.width === width && cost.height === height ? "kept as it is" : `resized to ${cost.width} × ${cost.height}`;
  byId("cost").textContent = `${width} × ${height} pixels, ${how} → ${cost.patches} patches → ${cost.tokens} tokens for the model.`;
}

// ---------------------------------------------------------------------------------- the pieces

function buildTools() {
  for (const [tool, name] of Object.entries(TOOLS)) {
    byId("shapes").append(element("button", {
      type: "button", role: "radio", "data-value": tool, "aria-label": name, title: name,
    }, SIGNS[tool]));
  }
  for (const [name, value] of Object.entries(COLOURS)) {
    const dot = element("i");
    dot.style.background = value;
    byId("colours").append(element("button", {
      type: "button", role: "radio", "data-value": name, "aria-label": name, title: name,
    }, dot));
  }
  const choose = (group, key) => (value) => {
    pen[key] = value;
    check(byId(group), value);
  };
  radios(byId("shapes"), choose("shapes", "tool"));
  radios(byId("colours"), choose("colours", "colour"));
  check(byId("shapes"), pen.tool);
  check(byId("colours"), pen.colour);
  byId("width").addEventListener("input", (event) => (pen.width = Number(event.target.value)));
  byId("undo").addEventListener("click", () => pictures.current.sketch?.undo());
  byId("clear").addEventListener("click", () => pictures.current.sketch?.clear());
  byId("new-drawing").addEventListener("click", () => pictures.addDrawing());
}

function buildExamples() {
  for (const [file, question] of EXAMPLES) {
    const address = `/static/examples/${file}`;
    const isClip = file.endsWith(".mp4");
    const picture = isClip ? element("span", {}, "▶ clip") : element("img", { src: address, alt: "" });
    byId("examples").append(element("button", {
      type: "button", click: () => guarded(() => runExample(address, file, question)),
    }, picture, question));
  }
}

async function runExample(address, name, question) {
  if (isAsking) return;
  const blob = await (await fetch(address)).blob();
  startAnew();
  pictures.items = [];
  await withSession(() => pictures.addFile(blob, name));
  byId("question").value = question;
  await ask(false);
}

async function takeFiles(files) {
  for (const file of files) await withSession(() => pictures.addFile(file));
}

function buildFiles() {
  for (const id of ["file", "camera"]) {
    byId(id).addEventListener("change", (event) => {
      const files = [...event.target.files];
      event.target.value = ""; // the same file can be chosen again
      guarded(() => takeFiles(files));
    });
    byId(id).closest("label").addEventListener("keydown", (event) => {
      if (event.key !== "Enter" && event.key !== " ") return;
      event.preventDefault();
      byId(id).click();
    });
  }
  document.addEventListener("paste", (event) => {
    const files = [...(event.clipboardData?.files ?? [])];
    if (!files.length) return;
    event.preventDefault();
    guarded(() => takeFiles(files));
  });
  document.addEventListener("dragover", (event) => event.preventDefault());
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    guarded(() => takeFiles([...event.dataTransfer.files]));
  });
}

function buildForm() {
  byId("form").addEventListener("submit", (event) => {
    event.preventDefault();
    guarded(() => ask(false));
  });
  byId("question").addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    byId("form").requestSubmit();
  });
  byId("stop").addEventListener("click", () => guarded(() => server.stop()));
  byId("retry").addEventListener("click", () => guarded(() => ask(true)));
  byId("new").addEventListener("click", startAnew);
  for (const id of ["detail", "temperature", "longest"]) {
    byId(id).addEventListener("input", () => {
      drawSettings();
      if (id === "detail") guarded(drawCost);
    });
  }
}

function buildJoin() {
  byId("join").hidden = !server.facts.join;
  byId("join").addEventListener("click", async () => {
    if (!byId("join-code").firstChild) {
      const code = element("img", { src: "/api/join.svg", alt: `QR code of ${server.facts.join}`, width: 320, height: 320 });
      byId("join-code").append(code);
      byId("join-address").textContent = server.facts.join;
    }
    byId("join-box").showModal();
  });
}

async function drawCrowd() {
  if (document.hidden) return;
  try {
    const { running, waiting } = await server.state();
    byId("crowd").textContent = running ? `answering ${running}, waiting ${waiting}` : "";
  } catch {
    byId("crowd").textContent = "the server does not answer";
  }
}

async function start() {
  await server.hello();
  byId("model").textContent = server.facts.model;
  document.title = `${server.facts.model} · ask, draw, and see what it sees`;
  inside = new Inside(byId("inside"), byId("inside-body"), byId("inside-what"), server.facts);
  pictures = new Pictures(() => guarded(drawCost));
  buildTools();
  buildExamples();
  buildFiles();
  buildForm();
  buildJoin();
  byId("temperature").value = server.facts.temperature;
  byId("longest").value = server.facts.longest;
  drawSettings();
  pictures.addDrawing();
  setInterval(drawCrowd, 10_000);
  document.documentElement.dataset.ready = "yes";
}

guarded(start);
