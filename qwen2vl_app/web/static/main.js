// The page: pictures at the left, the conversation at the right, and what is inside below.

import { answerNodes, boxNote, clearBoxes, drawBoxes } from "./answers.js";
import { byId, check, element, mediaName, radios, sentence } from "./dom.js";
import { Inside } from "./inside.js";
import { isEmpty, Pictures } from "./pictures.js";
import * as server from "./server.js";
import { COLOURS, pen, TOOLS } from "./sketch.js";

const EXAMPLES = [
  ["shapes.png", "Describe this image."],
  ["wide.png", "What colour is the ring?"],
  ["many.png", "Find the blue ring."],
  ["number.png", "What number is written here?"],
  ["word.png", "What word is written here?"],
  ["moving.mp4", "Which way does the yellow circle move?"],
];
const SIGNS = { pen: "Pen", fill: "Fill", circle: "●", square: "■", triangle: "▲", star: "★" };

let shownBefore = null; // which pictures the conversation is about; null: there is none
let isAsking = false;
let lastQuestion = "";
let wasAnswered = false; // the last question: then it is in the server's conversation
let hint; // stands where the first answer will
let pictures;
let inside;

// ------------------------------------------------------------------------------------ notices

function notify(text) {
  byId("notice").textContent = text;
  byId("notice").hidden = !text;
  if (text) byId("notice").scrollIntoView({ block: "nearest" });
}

// The line under the question. A change of the pictures goes before all else.
let statusText = "";
function say(text = statusText) {
  statusText = text;
  const isChanged = shownBefore !== null && shownBefore !== pictures.state;
  byId("status").textContent = isChanged
    ? "The pictures have changed: your next question begins a new conversation, and this one goes." : text;
  byId("status").classList.toggle("warning", isChanged);
}

async function guarded(work) {
  try {
    notify("");
    await work();
  } catch (error) {
    notify(sentence(error.message));
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
    topP: Number(byId("top-p").value),
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
  } catch (error) {
    byId("question").value ||= isRetry ? "" : text; // it can be sent again
    throw error;
  } finally {
    setAsking(false);
    drawCrowd();
  }
}

async function askOnce(text, isRetry) {
  const asked = pictures.state; // what is drawn while it answers was not sent
  const isNew = shownBefore !== asked;
  const media = isNew ? await pictures.ids() : []; // in one that goes on the server has them
  if (isNew) {
    shownBefore = null;
    byId("turns").replaceChildren();
  }
  const isAgain = isRetry && !isNew;
  const question = { text, media, isNew, isRetry: isAgain && wasAnswered, ...settings() };
  const turn = addTurn(text, isAgain);
  wasAnswered = false;
  if (!isRetry) byId("question").value = "";
  clearBoxes(byId("stage"));
  try {
    await readAnswer(turn, question, asked);
  } finally {
    turn.answer.classList.remove("waits");
    if (!turn.holder.innerText) turn.answer.textContent = "(stopped)";
    if (wasAnswered) shownBefore = asked;
    say();
  }
}

async function readAnswer(turn, question, asked) {
  let said = "";
  const began = performance.now();
  await server.ask(question, (event) => {
    if ("place" in event) say(waitingText(event.place));
    if ("error" in event) {
      turn.holder.append(element("p", { class: "fault" }, sentence(event.error)));
      say("");
    }
    if ("text" in event) {
      if (!wasAnswered) say("It writes …");
      wasAnswered = true;
      said += event.text;
      turn.answer.replaceChildren(...answerNodes(said));
      turn.holder.scrollIntoView({ block: "nearest" });
    }
    if (event.done) {
      wasAnswered = true;
      finishTurn(turn, event, said, performance.now() - began);
      if (pictures.state === asked) drawBoxes(byId("stage").firstElementChild, said);
    }
  });
}

const waitingText = (place) => (place > 0 ? `${place} before you in the queue …` : "It reads …");

// isAgain: the last question stays, and its answer goes.
function addTurn(text, isAgain) {
  const answer = element("p", { class: "answer waits" });
  const holder = element("div", { class: "said" }, answer);
  hint.remove();
  if (isAgain) byId("turns").lastElementChild.remove();
  else byId("turns").append(element("div", { class: "asked" }, text));
  byId("turns").append(holder);
  holder.scrollIntoView({ block: "nearest" });
  say("It reads …");
  return { answer, holder, shown: mediaName(pictures.shown.map((item) => item.kind)) };
}

function finishTurn(turn, event, said, milliseconds) {
  const end = event.ended ? "" : " It was stopped before its end.";
  const pictureTokens = event.mediaTokens ? `, ${event.mediaTokens} of them ${turn.shown}` : "";
  say(`Read ${event.promptTokens} tokens${pictureTokens}; wrote ${event.answerTokens} `
    + `${event.answerTokens === 1 ? "token" : "tokens"} in ${(milliseconds / 1000).toFixed(1)} s.${end}`);
  if (boxNote(said)) turn.holder.append(element("p", { class: "caption" }, boxNote(said)));
  const button = element("button", { type: "button", click: () => guarded(() => lookInside(event.turn, said)) }, "Look inside");
  turn.holder.append(button);
  if (inside.isOpen) guarded(() => lookInside(event.turn, said, true));
}

// isQuiet: the page stays where it is.
async function lookInside(turn, said, isQuiet) {
  await inside.show(await server.inside(turn), said);
  if (isQuiet) return;
  const isCalm = matchMedia("(prefers-reduced-motion: reduce)").matches;
  byId("inside-title").focus({ preventScroll: true });
  byId("inside").scrollIntoView({ behavior: isCalm ? "auto" : "smooth" });
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
  byId("turns").replaceChildren(hint);
  const { length } = pictures.shown;
  say(length ? `A new conversation, about the same ${length === 1 ? "picture" : `${length} pictures`}.` : "");
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
  byId("top-p-out").textContent = Number(byId("top-p").value).toFixed(2);
  byId("longest-out").textContent = byId("longest").value;
}

let costNumber = 0;
async function drawCost() {
  const number = ++costNumber;
  const item = pictures.current;
  say();
  const size = pictures.size(item);
  if (!size) {
    const { length } = item.frames;
    byId("cost").textContent = `These ${length} frames are all that the model sees of the clip: ${Math.ceil(length / 2)} pairs.`;
    return;
  }
  const [width, height] = item.uploaded ? [item.uploaded.width, item.uploaded.height] : size;
  const cost = await server.cost(width, height, maxPixels());
  if (number !== costNumber) return; // a later one was asked for meanwhile
  const how = cost.width === width && cost.height === height ? "kept as it is" : `resized to ${cost.width} × ${cost.height}`;
  byId("cost").textContent = `${width} × ${height} pixels, ${how} → ${cost.patches} patches → ${cost.tokens} tokens for the model.`
    + (isEmpty(item) ? " An empty drawing is not sent." : "");
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
    const picture = element("img", { src: isClip ? null : address, alt: "" });
    if (isClip) guarded(async () => (picture.src = (await server.frames(file))[0].source));
    byId("examples").append(element("button", {
      type: "button", click: () => guarded(() => runExample(address, file, question)),
    }, element("span", { class: isClip ? "clip" : "" }, picture), question));
  }
}

async function runExample(address, name, question) {
  if (isAsking) return;
  setAsking(true); // nothing else is asked while it is on its way
  try {
    const blob = await (await fetch(address)).blob();
    await withSession(() => pictures.addFile(blob, name, true));
  } finally {
    setAsking(false);
  }
  startAnew();
  byId("question").value = question;
  await ask(false);
}

async function takeFiles(files) {
  try {
    for (const file of files) await withSession(() => pictures.addFile(file));
  } catch (error) {
    throw new Error(`${sentence(error.message)} What was shown before stays.`);
  }
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
  for (const id of ["detail", "temperature", "top-p", "longest"]) {
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
    const answered = running === 1 ? "1 question is being answered" : `${running} questions are being answered`;
    byId("crowd").textContent = running ? `${answered}${waiting ? `, ${waiting} waiting` : ""}` : "";
  } catch {
    byId("crowd").textContent = "the server does not answer";
  }
}

async function start() {
  await server.hello();
  hint = byId("empty");
  byId("model").textContent = server.facts.model;
  byId("knows").textContent = server.facts.knows;
  byId("knows").hidden = !server.facts.knows;
  document.title = `${server.facts.model} · ask, draw, and see what it sees`;
  inside = new Inside(byId("inside"), byId("inside-body"), byId("inside-what"), byId("words"), server.facts);
  pictures = new Pictures(() => guarded(drawCost));
  buildTools();
  buildExamples();
  buildFiles();
  buildForm();
  buildJoin();
  byId("temperature").value = server.facts.temperature;
  byId("top-p").value = server.facts.topP;
  byId("longest").value = server.facts.longest;
  drawSettings();
  pictures.addDrawing();
  setInterval(drawCrowd, 10_000);
  document.documentElement.dataset.ready = "yes";
}

guarded(start);
