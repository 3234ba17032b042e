// Look inside: the picture in patches, the prompt in tokens, and each token of the answer.

import { findBoxes } from "./answers.js";
import { element, mediaName, percent, visible } from "./dom.js";
import { drawGrid, drawMap, Maps } from "./maps.js";
import { meanings } from "./words.js";

const NOTEBOOKS = {
  "01_pixels_to_patches": "01, From pixels to patches",
  "03_words_and_chat": "03, Words and chat",
  "04_mrope": "04, M-RoPE",
  "05_decoder": "05, The decoder",
  "06_generation": "06, Generation",
};
const NUM_BARS = 10;
const MAX_UNFOLDED = 400; // squares of a picture; more are folded, so that the question stays near

export class Inside {
  constructor(section, body, what, words, facts) {
    this.section = section;
    this.body = body;
    this.what = what;
    this.meanings = words;
    this.facts = facts;
    this.layer = 0; // 0: the mean of all
    this.head = 0;
    this.temperature = 1;
    this.topP = 1;
  }

  get isOpen() {
    return !this.section.hidden;
  }

  hide() {
    this.section.hidden = true;
  }

  // data: what the server has sent about one answer.
  async show(data, said) {
    this.data = data;
    this.maps = new Maps(data);
    for (const medium of data.media) medium.images = await Promise.all(medium.frames.map(loaded));
    this.section.hidden = false;
    this.shown = mediaName(data.media.map((medium) => data.tokens.kinds[medium.first]));
    const count = data.media.reduce((sum, medium) => sum + medium.count, 0);
    this.what.textContent = `The answer “${said.replace(/<\|[a-z_]*\|>/g, " ").trim()}” came from ${data.promptLength} tokens of prompt`
      + (count ? `, of which ${count} are ${this.shown}.` : ".")
      + (findBoxes(said).length ? " Its numbers are corners of boxes, in thousandths of the picture’s width and height, not pixels." : "");
    const terms = meanings(data).flatMap(([word, text]) => [element("dt", {}, word), element("dd", {}, text)]);
    this.meanings.querySelector("dl").replaceChildren(...terms);
    const figures = data.media.map((medium, i) => this.patchFigure(medium, i));
    this.body.replaceChildren(...figures, this.promptFigure(), this.answerFigure());
    this.choose(this.leastCertain());
  }

  // Where a reader builds this, and how large the file is that a click saves.
  note(...names) {
    const line = element("p", { class: "nb" }, "To build it yourself, in this project’s course: ");
    names.forEach((name, i) => {
      const text = `notebook ${NOTEBOOKS[name]}`;
      const size = this.facts.notebooks[name];
      if (i) line.append("; ");
      if (!size) line.append(text);
      else line.append(element("a", { href: `/notebooks/${name}.ipynb`, download: `${name}.ipynb` }, `${text} (download, ${Math.round(size / 1000)} KB)`));
    });
    line.append(".");
    return line;
  }

  // --------------------------------------------------------------------------------- the patches

  patchFigure(medium, number) {
    const [t, h, w] = medium.grid;
    const { merge, patch } = this.data;
    const side = patch * merge;
    const isClip = t > 1;
    const canvas = element("canvas", {
      class: "picture", "data-medium": number, role: "img",
      "aria-label": `The picture in ${h} rows of ${w} patches; every ${merge} × ${merge} of them are one token.`,
    });
    drawGrid(canvas, medium, medium.images[0], this.data);
    const facts = element("p", { class: "facts caption", "aria-live": "polite" }, "Touch a square to see which token it is.");
    canvas.addEventListener("pointerdown", (event) => this.touchSquare(event, canvas, medium, facts));
    canvas.addEventListener("pointermove", (event) => this.touchSquare(event, canvas, medium, facts));
    const title = this.data.media.length > 1 ? `Picture ${number + 1} in patches` : "The picture in patches";
    const read = `This is what the model sees, ${medium.width} × ${medium.height} pixels. Thin lines cut it into `
      + `${h} × ${w} = ${h * w} patches of ${patch} × ${patch} pixels, this model’s patch size. ${merge} × ${merge} patches are merged into `
      + `one token (thick lines), so that the decoder reads ${merge ** 2} times fewer: ${h / merge} × ${w / merge} = ${(h * w) / merge ** 2} tokens`
      + (isClip ? `, for each of ${t} pairs of frames: ${medium.count} in all.` : ".");
    const legend = element("p", { class: "legend" }, `thin line: patch, ${patch} pixels`, element("span", {}, `thick line: token, ${side} pixels`));
    const slider = this.frameSlider(medium, (image) => drawGrid(canvas, medium, image, this.data));
    const beside = element("div", {}, howTo(read), legend, facts, slider, this.note("01_pixels_to_patches"));
    return element("figure", {}, element("h3", {}, title), element("div", { class: "beside" }, canvas, beside));
  }

  // A clip has several pictures: a slider chooses the pair of frames.
  frameSlider(medium, draw) {
    if (medium.images.length < 2) return "";
    const out = element("output", {}, "1");
    const id = `frames-${medium.first}`;
    const slider = element("input", { id, type: "range", min: 1, max: medium.images.length, value: 1, input: () => {
      medium.frame = Number(slider.value) - 1;
      out.textContent = slider.value;
      draw(medium.images[medium.frame]);
    } });
    return element("label", { for: id }, "Pair of frames ", out, ` of ${medium.grid[0]} `, slider);
  }

  touchSquare(event, canvas, medium, facts) {
    const shown = canvas.getBoundingClientRect();
    const [, h, w] = medium.grid.map((n, i) => (i ? n / this.data.merge : n));
    const column = Math.floor(((event.clientX - shown.left) / shown.width) * w);
    const row = Math.floor(((event.clientY - shown.top) / shown.height) * h);
    if (row < 0 || column < 0 || row >= h || column >= w) return;
    const frame = medium.frame ?? 0;
    const index = medium.first + (frame * h + row) * w + column;
    const position = this.data.tokens.positions[index];
    facts.textContent = `Token ${index} of the prompt: row ${row}, column ${column} of the picture, all counted from 0. `
      + `Its M-RoPE position is time ${position[0]}, row ${position[1]}, column ${position[2]}.`;
    drawGrid(canvas, medium, medium.images[frame], this.data, row * w + column);
    this.light(index);
  }

  // Frame a token of the prompt and tell its numbers, which its own square may be too small for.
  light(index) {
    for (const lit of this.body.querySelectorAll(".chips .lit")) lit.classList.remove("lit");
    const chip = this.body.querySelector(`[data-index="${index}"]`);
    chip.classList.add("lit");
    chip.closest("details")?.setAttribute("open", "");
    const { ids, texts, kinds, positions } = this.data.tokens;
    const [time, row, column] = positions[index];
    const what = { control: "a control token, from the chat template", image: "a square of a picture", video: "a square of a clip" }[kinds[index]];
    this.tokenFacts.classList.add("stays"); // in view, however long the prompt is
    this.tokenFacts.textContent = `Token ${index}: ${visible(texts[index])}, number ${ids[index]} of the vocabulary${what ? `, ${what}` : ""}. `
      + `Its position is time ${time}, row ${row}, column ${column}.`;
  }

  // ---------------------------------------------------------------------------------- the prompt

  promptFigure() {
    const { tokens, promptLength, media } = this.data;
    const chips = element("div", { class: "chips", role: "list", "aria-label": "All tokens of the prompt", click: (event) => {
      const touched = event.target.closest("[data-index]");
      if (touched) this.light(Number(touched.dataset.index));
    } });
    this.tokenFacts = element("p", { class: "told caption", "aria-live": "polite" }, "Touch a token for its numbers.");
    for (let i = 0; i < promptLength; ) {
      const medium = media.find((one) => one.first === i);
      if (medium) {
        chips.append(this.squares(medium));
        i += medium.count;
      } else {
        chips.append(chip(tokens, i));
        i += 1;
      }
    }
    const legend = element("p", { class: "legend" });
    for (const [kind, text] of [["text", "text"], ["control", "control token: the chat template writes it, to begin and end turns and pictures"], ["image", "picture: one square, one token"]]) {
      legend.append(element("span", {}, element("i", { class: kind }), text));
    }
    legend.append(element("span", {}, "· a blank, ↵ a new line"));
    const read = "From left to right, line by line, this is all that the decoder reads. Under a token stand its number in the "
      + "vocabulary (#) and its M-RoPE position: time · row · column. Positions are counted from 0.";
    const why = "M-RoPE stands for multimodal rotary position embedding. Attention compares queries with keys; before that, both are rotated by "
      + "angles made from these three numbers. So attention can tell near from far: in time, row and column. For text all three are equal and count on by one. "
      + "All squares of a picture have one time (in a clip each pair of frames has the next one), and their row and column tell where they lie. "
      + "The text after a picture goes on after the largest number so far.";
    return element("figure", {}, element("h3", {}, "The prompt in tokens, and where each one stands"),
      howTo(read), element("details", { class: "why" }, element("summary", {}, "What the three numbers are for"), element("p", { class: "read" }, why)),
      legend, chips, this.tokenFacts, this.note("03_words_and_chat", "04_mrope"));
  }

  // The tokens of a picture in their rows, each with its piece of the picture.
  squares(medium) {
    const { tokens, merge } = this.data;
    const [t, h, w] = [medium.grid[0], medium.grid[1] / merge, medium.grid[2] / merge];
    const block = element("details", { class: "block", role: "listitem", open: medium.count <= MAX_UNFOLDED });
    block.append(element("summary", {}, `${medium.count} × ${tokens.texts[medium.first]} #${tokens.ids[medium.first]}`),
      element("p", {}, "Placeholders: in the place of each the decoder reads what the vision transformer, the part that looks, made of its square."));
    for (let frame = 0; frame < t; frame++) {
      const grid = element("div", { class: "squares" });
      grid.style.gridTemplateColumns = `repeat(${w}, minmax(0, 50px))`;
      const source = medium.frames[frame];
      for (let i = 0; i < h * w; i++) {
        const index = medium.first + frame * h * w + i;
        const position = tokens.positions[index].join("·");
        const square = element("div", { class: `square${position.length > 8 ? " long" : ""}`, "data-index": index }, element("small", {}, position));
        if (source) {
          square.style.backgroundImage = `url(${source})`;
          square.style.backgroundSize = `${100 * w}% ${100 * h}%`;
          square.style.backgroundPosition = `${part(i % w, w)}% ${part(Math.floor(i / w), h)}%`;
        }
        grid.append(square);
      }
      if (t > 1) block.append(element("p", {}, `pair of frames ${frame + 1}`));
      block.append(grid);
    }
    return block;
  }

  // ---------------------------------------------------------------------------------- the answer

  answerFigure() {
    const { tokens, promptLength, answer } = this.data;
    this.words = element("div", { class: "chips", role: "group", "aria-label": "The tokens of the answer" });
    for (let row = 0; row <= answer.length; row++) {
      const isEnd = row === answer.length;
      const text = isEnd ? "what next?" : visible(tokens.texts[promptLength + row]);
      const small = isEnd ? "after it" : `${this.shareText(row)} · #${answer[row]} · ${tokens.positions[promptLength + row][0]}`;
      this.words.append(element("button", { type: "button", class: "chip", click: () => this.choose(row) }, text, element("small", {}, small)));
    }
    const read = "Touch a token: everything below then shows the moment in which the model chose it. Under it stand how probable it was, "
      + "its number in the vocabulary (#), and its position, the same on all three axes. At first the least certain one is framed." + (this.data.wasCut ? " Only the beginning of this long answer is shown." : "");
    this.mapHolder = element("div");
    this.lensHolder = element("div", { class: "wide" });
    this.barHolder = element("div");
    return element("figure", {}, element("h3", {}, "The answer, token by token"), howTo(read), this.words,
      element("div", { class: "two" }, element("div", {}, ...this.mapParts()), element("div", {}, ...this.barParts())), ...this.lensParts());
  }

  // The probability of a token of the answer when it was chosen, at temperature 1; 0 if it is not
  // among those that were sent.
  share(row) {
    const one = this.data.candidates[row];
    const chosen = one.ids.indexOf(this.data.answer[row]);
    return chosen < 0 ? 0 : shares(one, 1, this.data.temperatures)[chosen];
  }

  shareText(row) {
    return percent(this.share(row) || 1e-9);
  }

  // The token of the answer whose choice tells most.
  leastCertain() {
    let least = 0;
    for (let row = 1; row < this.data.answer.length; row++) {
      if (this.share(row) < this.share(least)) least = row;
    }
    return least;
  }

  choose(row) {
    this.row = row;
    [...this.words.children].forEach((one, i) => one.setAttribute("aria-pressed", i === row));
    this.drawMaps();
    this.drawBars();
    this.drawLens();
  }

  slider(text, low, high, step, value, take, label) {
    const out = element("output", {}, label(value));
    const id = `inside-${text.toLowerCase()}`;
    const input = element("input", { id, type: "range", min: low, max: high, step, value, input: () => {
      out.textContent = label(Number(input.value));
      take(Number(input.value));
    } });
    return element("label", { for: id }, `${text}: `, out, input); // else it would name the output
  }

  mapParts() {
    const orMean = (value) => (value ? `${value}` : "mean of all");
    const { layers, allHeads } = this.data;
    const parts = [element("h3", {}, "Where it looked"), element("p", { class: "read", id: "map-read" }), this.mapHolder,
      element("p", { class: "legend", id: "map-scale" }),
      element("p", { class: "caption" }, `The decoder has ${layers} layers, one after another. Each has ${allHeads} heads, and each head looks in its own way.`),
      this.slider("Layer", 0, this.data.layers, 1, this.layer, (value) => { this.layer = value; this.drawMaps(); }, orMean)];
    if (this.data.heads > 1) {
      parts.push(this.slider("Head", 0, this.data.heads, 1, this.head, (value) => { this.head = value; this.drawMaps(); }, orMean));
    } else {
      this.head = 0;
      parts.push(element("p", { class: "caption" }, "Shown is the mean of the heads."));
    }
    parts.push(this.note("05_decoder"));
    return parts;
  }

  drawMaps() {
    const { media, tokens, promptLength } = this.data;
    const weights = this.maps.row(this.layer, this.head, this.row);
    if (!weights) {
      this.mapHolder.replaceChildren(element("p", { class: "caption" }, "The map of this token was left out, since there are so many."));
      return;
    }
    const most = Math.max(0, ...media.map((one) => largest(weights.slice(one.first, one.first + one.count))));
    this.mapHolder.replaceChildren(...media.map((medium, i) => this.mapOf(medium, i, weights, most)));
    const scale = this.body.querySelector("#map-scale");
    scale.hidden = !media.length;
    scale.replaceChildren(element("span", {}, element("i", { class: "ramp" }), `dark: 0\u00a0%; bright: the largest share of any square, here ${percent(most)}`));
    const onPicture = media.reduce((sum, one) => sum + sumOf(weights, one.first, one.count), 0);
    const others = [...weights.keys()].filter((i) => i < promptLength + this.row && tokens.kinds[i] !== "image" && tokens.kinds[i] !== "video");
    others.sort((a, b) => weights[b] - weights[a]);
    const named = others.slice(0, 3).map((i) => `“${visible(tokens.texts[i])}” ${percent(weights[i])}`).join(", ");
    const read = this.body.querySelector("#map-read");
    const text = `While it chose this token, the model spread its attention, 100\u00a0% in all, over what it had read. `
      + (media.length ? `Of it, ${this.shown} got ${percent(onPicture)}. ` : "There was no picture. ")
      + `Of the text most went to ${named}. Attention tells where it read from, not why.`;
    read.replaceChildren(...howTo(text).childNodes);
  }

  // The map of a picture, or of each pair of frames of a clip.
  mapOf(medium, number, weights, most) {
    const isClip = medium.images.length > 1;
    const row = element("div", { class: isClip ? "maps" : "" });
    for (let frame = 0; frame < medium.images.length; frame++) {
      const name = isClip ? `pair ${frame + 1}` : `picture ${number + 1}`;
      const canvas = element("canvas", { class: "picture map", role: "img", "aria-label": `The ${name}, bright where the model looked` });
      drawMap(canvas, medium, frame, weights, most, this.data);
      const isNamed = isClip || this.data.media.length > 1;
      row.append(element("div", {}, canvas, isNamed ? element("p", { class: "caption" }, name) : ""));
    }
    return row;
  }

  lensParts() {
    const read = "Each column is a token of the answer, each row a layer. A cell is the token that the model would have said had it "
      + "stopped after that layer, and how sure it was. Read a column downwards to see the answer form; framed cells are what was said in the end.";
    const more = element("p", { class: "caption more" }, "The table goes on: move it sideways.");
    const fade = () => {
      const { scrollLeft, clientWidth, scrollWidth } = this.lensHolder;
      this.lensHolder.classList.toggle("goes-on", scrollLeft + clientWidth < scrollWidth - 2);
      more.hidden = scrollWidth <= clientWidth;
    };
    this.lensHolder.addEventListener("scroll", fade);
    new ResizeObserver(fade).observe(this.lensHolder);
    return [element("h3", {}, "What each layer would have said (logit lens)"), howTo(read), this.lensHolder, more, this.lensLegend(), this.note("05_decoder")];
  }

  lensLegend() {
    return element("p", { class: "legend" }, element("span", {}, element("i", { class: "bar" }), "stronger colour: more probable"),
      element("span", {}, element("i", { class: "frame" }), "what was said in the end"));
  }

  drawLens() {
    const { lens, tokens, promptLength, answer, layers } = this.data;
    const head = element("tr", {}, element("th", {}, "said"));
    for (let row = 0; row <= answer.length; row++) {
      head.append(element("th", { scope: "col", class: row === this.row ? "now" : "" }, row < answer.length ? visible(tokens.texts[promptLength + row]) : "next"));
    }
    const table = element("table", {}, head);
    for (let layer = 0; layer < layers; layer++) {
      const line = element("tr", {}, element("th", { scope: "row" }, `after layer ${layer + 1}`));
      for (let row = 0; row <= answer.length; row++) {
        const [text, probability] = lens[row][layer];
        const isRight = row < answer.length && text === tokens.texts[promptLength + row];
        const cell = element("td", { class: isRight ? "right" : "" }, visible(text), element("small", {}, percent(probability)));
        cell.style.background = `color-mix(in srgb, var(--accent) ${Math.round(6 + 42 * probability)}%, var(--card))`;
        line.append(cell);
      }
      table.append(line);
    }
    this.lensHolder.replaceChildren(table);
    const now = table.querySelector(".now");
    this.lensHolder.scrollLeft = now.offsetLeft - this.lensHolder.clientWidth / 2;
  }

  barParts() {
    const read = "Before it chooses, the model gives every token of the vocabulary a score, its logit; from the logits the probabilities are made. "
      + `These are the ${NUM_BARS} highest; the framed one was said.`;
    return [element("h3", {}, "What it nearly said"), howTo(read), this.barHolder,
      element("p", { class: "legend" }, element("span", {}, element("i", { class: "bar" }), "probability"), element("span", {}, element("i", { class: "frame" }), "said")),
      this.slider("Temperature", 0.1, 2, 0.1, this.temperature, (value) => { this.temperature = value; this.drawBars(); }, (value) => value.toFixed(1)),
      element("p", { class: "caption" }, "The logits are divided by it: below 1 the first gets surer, above 1 all get more alike."),
      this.slider("Top-p", 0.05, 1, 0.05, this.topP, (value) => { this.topP = value; this.drawBars(); }, (value) => value.toFixed(2)),
      element("p", { class: "caption" }, `It keeps the fewest tokens whose probabilities reach p together, and scales them up to 100\u00a0% again. `
        + "Both sliders show only what would be: for real answers see the settings under the question."),
      this.note("06_generation")];
  }

  drawBars() {
    const { candidates, temperatures, answer } = this.data;
    const one = candidates[this.row];
    const all = shares(one, this.temperature, temperatures);
    let before = 0;
    let kept = 0;
    const rows = all.map((share, i) => {
      const isCut = before >= this.topP && i > 0;
      before += share;
      if (!isCut) kept += share;
      return { share, isCut, text: one.texts[i], isChosen: one.ids[i] === answer[this.row] };
    });
    if (before < this.topP) kept = Math.min(1, Math.max(this.topP, kept)); // it goes on among the others
    const bars = element("div", { class: "bars", role: "table", "aria-label": "The most probable tokens" });
    for (const { share, isCut, text, isChosen } of rows.slice(0, NUM_BARS)) {
      const drawn = isCut ? 0 : share / kept;
      const bar = element("div", { class: drawn ? "bar" : "bar none" });
      bar.style.width = `${100 * drawn}%`;
      bars.append(element("code", { class: `${isCut ? "cut" : ""} ${isChosen ? "chosen" : ""}` }, visible(text)), bar, element("span", { class: "value" }, percent(drawn)));
    }
    const others = element("p", { class: "caption" }, this.topP < 1
      ? `Kept: the most probable tokens that together reach ${percent(this.topP)}, scaled up to 100\u00a0%; the rest are struck out.`
      : `All other tokens together: ${percent(Math.max(0, 1 - rows.slice(0, NUM_BARS).reduce((sum, row) => sum + row.share, 0)))}.`);
    this.barHolder.replaceChildren(bars, others);
  }
}

// The probabilities of the tokens that were sent, at a temperature: a softmax over the whole
// vocabulary, of which the others come as one sum.
function shares(one, temperature, temperatures) {
  const step = temperatures.findIndex((value) => Math.abs(value - temperature) < 0.01);
  const powers = one.logits.map((logit) => Math.exp(logit / temperature));
  const total = powers.reduce((sum, value) => sum + value, Math.exp(one.rest[step]));
  return powers.map((power) => power / total);
}

const largest = (weights) => weights.reduce((most, value) => Math.max(most, value), 0);

const howTo = (text) => element("p", { class: "read" }, element("b", {}, "How to read it: "), text);

// How far background-position must go for the piece i of n.
const part = (i, n) => (n > 1 ? (100 * i) / (n - 1) : 0);

const sumOf = (weights, first, count) => weights.slice(first, first + count).reduce((sum, value) => sum + value, 0);

function chip(tokens, i) {
  const positions = tokens.positions[i].join("·");
  return element("span", { class: `chip ${tokens.kinds[i]}`, role: "listitem", "data-index": i }, visible(tokens.texts[i]),
    element("small", {}, `#${tokens.ids[i]}  ${positions}`));
}

async function loaded(source) {
  const image = new Image();
  image.src = source;
  await image.decode();
  return image;
}
