// Look inside: the picture in patches, the prompt in tokens, and each token of the answer.

import { element, percent, visible } from "./dom.js";
import { drawGrid, drawMap, Maps } from "./maps.js";

const NOTEBOOKS = {
  "01_pixels_to_patches": "01, From pixels to patches",
  "03_words_and_chat": "03, Words and chat",
  "04_mrope": "04, M-RoPE",
  "05_decoder": "05, The decoder",
  "06_generation": "06, Generation",
};
const NUM_BARS = 10;

export class Inside {
  constructor(section, body, what, facts) {
    this.section = section;
    this.body = body;
    this.what = what;
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
    this.row = 0;
    for (const medium of data.media) medium.images = await Promise.all(medium.frames.map(loaded));
    this.section.hidden = false;
    const count = data.media.reduce((sum, medium) => sum + medium.count, 0);
    this.what.textContent = `The answer “${said.replace(/<\|[a-z_]*\|>/g, " ").trim()}” came from ${data.promptLength} tokens of prompt`
      + (count ? `, of which ${count} are the picture.` : ".");
    const figures = data.media.map((medium, i) => this.patchFigure(medium, i));
    this.body.replaceChildren(...figures, this.promptFigure(), this.answerFigure());
    this.choose(0);
  }

  note(name) {
    const text = NOTEBOOKS[name];
    if (!this.facts.notebooks) return element("p", { class: "nb" }, `The course builds this in notebook ${text}.`);
    const link = element("a", { href: `/notebooks/${name}.ipynb`, download: `${name}.ipynb` }, `notebook ${text}`);
    return element("p", { class: "nb" }, "The course builds this in ", link, ".");
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
    const facts = element("p", { class: "facts caption", "aria-live": "polite" },
      "Touch a square to see which token it is.");
    canvas.addEventListener("pointerdown", (event) => this.touchSquare(event, canvas, medium, facts));
    canvas.addEventListener("pointermove", (event) => this.touchSquare(event, canvas, medium, facts));
    const title = this.data.media.length > 1 ? `Picture ${number + 1} in patches` : "The picture in patches";
    const read = `This is what the model sees, ${medium.width} × ${medium.height} pixels. Thin lines cut it into `
      + `${h} × ${w} = ${h * w} patches of ${patch} × ${patch} pixels; a patch is the smallest thing that it looks at. Thick lines join `
      + `${merge} × ${merge} patches to one token: ${h / merge} × ${w / merge} = ${(h * w) / merge ** 2} tokens`
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
    facts.textContent = `Token ${index} of the prompt: row ${row}, column ${column} of the picture. `
      + `Its M-RoPE position is time ${position[0]}, row ${position[1]}, column ${position[2]}.`;
    drawGrid(canvas, medium, medium.images[frame], this.data, row * w + column);
    this.light(index);
  }

  light(index) {
    for (const lit of this.body.querySelectorAll(".chips .lit")) lit.classList.remove("lit");
    const chip = this.body.querySelector(`[data-index="${index}"]`);
    chip?.classList.add("lit");
    chip?.parentElement?.closest(".chips")?.scrollTo({ top: Math.max(0, chip.offsetTop - chip.closest(".chips").offsetTop - 120) });
  }

  // ---------------------------------------------------------------------------------- the prompt

  promptFigure() {
    const { tokens, promptLength, media } = this.data;
    const chips = element("div", { class: "chips", tabindex: 0, role: "list", "aria-label": "All tokens of the prompt" });
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
    for (const [kind, text] of [["text", "text"], ["control", "control token: begins and ends turns and pictures"], ["image", "picture: one square, one token"]]) {
      legend.append(element("span", {}, element("i", { class: kind }), text));
    }
    legend.append(element("span", {}, "· a blank, ↵ a new line"));
    const read = "From left to right, line by line, this is all that the decoder reads. Under a token stand its number in the "
      + "vocabulary (#) and its three positions: time, row, column (M-RoPE). For text all three are equal and count on by one. All squares of a picture "
      + "have one time (in a clip each pair of frames has the next one); their row and column tell where they lie, so the model knows which squares are neighbours. The text after it goes on after the "
      + "largest number so far.";
    return element("figure", {}, element("h3", {}, "The prompt in tokens, and where each one stands"),
      howTo(read), legend, chips, this.note("03_words_and_chat"), this.note("04_mrope"));
  }

  // The tokens of a picture in their rows, each with its piece of the picture.
  squares(medium) {
    const { tokens, merge } = this.data;
    const [t, h, w] = [medium.grid[0], medium.grid[1] / merge, medium.grid[2] / merge];
    const block = element("div", { class: "block", role: "listitem" });
    block.append(element("p", {}, `${medium.count} × ${tokens.texts[medium.first]} #${tokens.ids[medium.first]}: placeholders. In the place of each the decoder reads what the vision transformer made of its square. Positions: time · row · column.`));
    for (let frame = 0; frame < t; frame++) {
      const grid = element("div", { class: "squares" });
      grid.style.gridTemplateColumns = `repeat(${w}, 50px)`;
      const source = medium.frames[frame];
      for (let i = 0; i < h * w; i++) {
        const index = medium.first + frame * h * w + i;
        const square = element("div", { class: "square", "data-index": index }, element("small", {}, tokens.positions[index].join("·")));
        if (source) {
          square.style.backgroundImage = `url(${source})`;
          square.style.backgroundSize = `${50 * w}px ${50 * h}px`;
          square.style.backgroundPosition = `${-50 * (i % w)}px ${-50 * Math.floor(i / w)}px`;
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
      const small = isEnd ? "after it" : `#${answer[row]} · ${tokens.positions[promptLength + row][0]}`;
      this.words.append(element("button", { type: "button", class: "chip", click: () => this.choose(row) }, text, element("small", {}, small)));
    }
    const read = "Touch a token: everything below then shows the moment in which the model chose it. Behind # stands its number in the vocabulary, "
      + "then its position, which is the same on all three axes." + (this.data.wasCut ? " Only the beginning of this long answer is shown." : "");
    this.mapHolder = element("div");
    this.lensHolder = element("div", { class: "wide" });
    this.barHolder = element("div");
    return element("figure", {}, element("h3", {}, "The answer, token by token"), howTo(read), this.words,
      element("div", { class: "two" }, element("div", {}, ...this.mapParts()), element("div", {}, ...this.barParts())), ...this.lensParts());
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
    const parts = [element("h3", {}, "Where it looked"), element("p", { class: "read", id: "map-read" }), this.mapHolder,
      element("p", { class: "legend" }, element("span", {}, element("i", { class: "ramp" }), "dark: no attention; bright: most")),
      this.slider("Layer", 0, this.data.layers, 1, this.layer, (value) => { this.layer = value; this.drawMaps(); }, orMean)];
    if (this.data.heads > 1) {
      parts.push(this.slider("Head", 0, this.data.heads, 1, this.head, (value) => { this.head = value; this.drawMaps(); }, orMean));
    } else {
      this.head = 0;
      parts.push(element("p", { class: "caption" }, `The mean of ${this.data.allHeads} heads.`));
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
    const canvases = media.map((medium) => {
      const canvas = element("canvas", { class: "picture map", role: "img", "aria-label": "The picture, bright where the model looked" });
      drawMap(canvas, medium, weights, this.data);
      return canvas;
    });
    this.mapHolder.replaceChildren(...canvases);
    const onPicture = media.reduce((sum, one) => sum + sumOf(weights, one.first, one.count), 0);
    const others = [...weights.keys()].filter((i) => i < promptLength + this.row && tokens.kinds[i] !== "image" && tokens.kinds[i] !== "video");
    others.sort((a, b) => weights[b] - weights[a]);
    const named = others.slice(0, 3).map((i) => `${visible(tokens.texts[i])} ${percent(weights[i])}`).join(", ");
    const read = this.body.querySelector("#map-read");
    const text = `While it chose this token, the model spread its attention, 100\u00a0% in all, over what it had read. `
      + (media.length ? `A square is as bright as its share; the picture got ${percent(onPicture)} in all. ` : "There was no picture. ")
      + `Of the text most went to ${named}. Attention tells where it read from, not why.`;
    read.replaceChildren(...howTo(text).childNodes);
  }

  lensParts() {
    const read = "Each column is a token of the answer, each row a layer. A cell is the token that the model would have said had it "
      + "stopped after that layer, darker the surer it was. Read a column downwards to see the answer form; framed cells are what was said in the end.";
    return [element("h3", {}, "What each layer would have said (logit lens)"), howTo(read), this.lensHolder, this.lensLegend(), this.note("05_decoder")];
  }

  lensLegend() {
    return element("p", { class: "legend" }, element("span", {}, element("i", { class: "bar" }), "darker: more probable"),
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
        const cell = element("td", { class: isRight ? "right" : "", title: percent(probability) }, visible(text));
        cell.style.background = `color-mix(in srgb, var(--accent) ${Math.round(8 + 55 * probability)}%, var(--card))`;
        line.append(cell);
      }
      table.append(line);
    }
    this.lensHolder.replaceChildren(table);
  }

  barParts() {
    const read = `Before it chooses, the model gives every token a probability. These are the ${NUM_BARS} highest; the framed one was said. `
      + "Move the temperature: lower makes the first surer, higher makes all more alike. Top-p strikes out the improbable ones.";
    return [element("h3", {}, "What it nearly said"), howTo(read), this.barHolder,
      element("p", { class: "legend" }, element("span", {}, element("i", { class: "bar" }), "probability"), element("span", {}, element("i", { class: "frame" }), "said")),
      this.slider("Temperature", 0.1, 2, 0.1, this.temperature, (value) => { this.temperature = value; this.drawBars(); }, (value) => value.toFixed(1)),
      this.slider("Top-p", 0.05, 1, 0.05, this.topP, (value) => { this.topP = value; this.drawBars(); }, (value) => value.toFixed(2)),
      this.note("06_generation")];
  }

  drawBars() {
    const { candidates, temperatures, answer } = this.data;
    const one = candidates[this.row];
    const step = temperatures.findIndex((value) => Math.abs(value - this.temperature) < 0.01);
    // The softmax over the whole vocabulary: the listed tokens, and the sum of all others.
    const powers = one.logits.map((logit) => Math.exp(logit / this.temperature));
    const rest = Math.exp(one.rest[step]);
    const total = powers.reduce((sum, value) => sum + value, rest);
    let before = 0;
    let kept = 0;
    const rows = powers.map((power, i) => {
      const share = power / total;
      const isCut = before >= this.topP && i > 0;
      before += share;
      if (!isCut) kept += share;
      return { share, isCut, text: one.texts[i], isChosen: one.ids[i] === answer[this.row] };
    });
    if (before < this.topP) kept = Math.min(1, Math.max(this.topP, kept)); // it goes on among the others
    const bars = element("div", { class: "bars", role: "table", "aria-label": "The most probable tokens" });
    for (const { share, isCut, text, isChosen } of rows.slice(0, NUM_BARS)) {
      const drawn = isCut ? 0 : share / kept;
      const bar = element("div", { class: "bar" });
      bar.style.width = `${100 * drawn}%`;
      bars.append(element("code", { class: `${isCut ? "cut" : ""} ${isChosen ? "chosen" : ""}` }, visible(text)), bar, element("span", { class: "value" }, percent(drawn)));
    }
    const others = element("p", { class: "caption" }, this.topP < 1
      ? `Of all ${percent(before)} shown or listed, the most probable that together reach ${percent(this.topP)} are kept.`
      : `All other tokens together: ${percent(Math.max(0, 1 - rows.slice(0, NUM_BARS).reduce((sum, row) => sum + row.share, 0)))}.`);
    this.barHolder.replaceChildren(bars, others);
  }
}

const howTo = (text) => element("p", { class: "read" }, element("b", {}, "How to read it: "), text);

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
