// Talking to the server. Every address here is one of its own.

export let facts = null; // what the server says about its model and limits
let session = null;

export class Gone extends Error {} // the server has forgotten this session

async function reach(path, options) {
  try {
    return await fetch(path, options);
  } catch {
    throw new Error("the server does not answer: is it still running?");
  }
}

async function checked(response) {
  if (response.ok) return response;
  let text = `the server answered ${response.status}`;
  try {
    text = (await response.json()).error || text;
  } catch {
    // No JSON: the status says enough.
  }
  throw response.status === 410 ? new Gone(text) : new Error(text);
}

async function post(path, content, signal) {
  const headers = { "content-type": "application/json" };
  const body = JSON.stringify({ session, ...content });
  return checked(await reach(path, { method: "POST", headers, body, signal }));
}

export async function hello() {
  facts = await (await post("/api/hello", {})).json();
  session = facts.session;
  return facts;
}

// An image or clip, as a Blob: {id, width, height}, of an image its cost, of a clip its frames.
export async function upload(kind, blob) {
  const path = `/api/media?kind=${kind}&session=${encodeURIComponent(session)}`;
  return (await checked(await reach(path, { method: "POST", body: blob }))).json();
}

export async function cost(width, height, maxPixels) {
  const path = `/api/cost?width=${width}&height=${height}&maxPixels=${maxPixels}`;
  return (await checked(await reach(path))).json();
}

// The frames that the model sees of an example clip: [{time, source}].
export const frames = async (name) => (await (await checked(await reach(`/api/frames/${name}`))).json()).frames;

// Ask a question; `take` gets each line of the answer as an object.
export async function ask(question, take) {
  const response = await post("/api/ask", question);
  const reader = response.body.getReader();
  const decoder = new TextDecoder();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (rest + decoder.decode(value, { stream: true })).split("\n");
    rest = lines.pop();
    for (const line of lines) take(JSON.parse(line));
  }
}

export const stop = () => post("/api/stop", {});
export const inside = async (turn) => (await post("/api/inside", { turn })).json();
export const state = async () => (await checked(await reach("/api/state"))).json();
