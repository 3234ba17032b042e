// What the words of "Look inside" mean, with the numbers of the model that runs.

// Pairs of a word and its meaning; data: what the server has sent about an answer.
export function meanings({ patch, merge, layers, allHeads, vocabulary }) {
  return [
    ["Token", "What the decoder reads and writes one at a time: a word, a part of a word, a sign, or a square of a picture."],
    ["Vocabulary", `The list of all tokens that the model knows, here ${vocabulary.toLocaleString("en")}. Each has a number in it (#).`],
    ["Patch", `${patch} × ${patch} pixels, this model’s patch size. ${merge} × ${merge} patches are merged into one token, so that the decoder reads ${merge ** 2} times fewer tokens.`],
    ["Vision transformer", "The part that looks: it turns patches into numbers, and compares all patches of a picture with one another."],
    ["<|image_pad|>", "A placeholder. In its place the decoder reads what the vision transformer made of one square."],
    ["<|im_start|>, <|im_end|>", "Control tokens. They come from the chat template, which writes a conversation as one text: who speaks, and where each turn begins and ends."],
    ["Decoder", "The part that writes: it reads all tokens so far, and scores every token of the vocabulary as the next."],
    ["Layer", `A step of the decoder. It has ${layers}, one after another; each reads what the one before it wrote.`],
    ["Head", `Each layer has ${allHeads} heads. Each head looks at the tokens so far in its own way.`],
    ["Attention", "How a head looks: it spreads 100\u00a0% over the tokens so far, and takes most from where most went."],
    ["M-RoPE", "Multimodal rotary position embedding: queries and keys, which attention compares, are rotated by angles made from time, row and column."],
    ["Logit", "The score of a token of the vocabulary, before it is made a probability."],
    ["Temperature", "Every logit is divided by it before probabilities are made."],
    ["Top-p", "Only the fewest tokens whose probabilities reach p together are kept, and scaled up to 100\u00a0% again."],
  ];
}
