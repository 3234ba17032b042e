"""The cold start of `transformers`: the first token of an answer about an image, by `tiny`.

It imports nothing that it does not need. `python -m benchmarks.processes.first_token_of_reference`
"""

from pathlib import Path

from PIL import Image
from transformers import AutoTokenizer, Qwen2VLForConditionalGeneration, Qwen2VLImageProcessor

ROOT = Path(__file__).parent.parent.parent
CHECKPOINT = ROOT / "tiny" / "checkpoint"


def prompt(image_tokens: int) -> str:
    """One image and a question, as the chat template writes them without its system prompt."""
    image = "<|vision_start|>" + "<|image_pad|>" * image_tokens + "<|vision_end|>"
    question = f"<|im_start|>user\n{image}Describe this image.<|im_end|>\n"
    return question + "<|im_start|>assistant\n"


def main() -> None:
    model = Qwen2VLForConditionalGeneration.from_pretrained(CHECKPOINT)
    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINT)
    image_processor = Qwen2VLImageProcessor.from_pretrained(CHECKPOINT)
    image = Image.open(ROOT / "examples" / "shapes.png")
    features = image_processor([image], return_tensors="pt")
    image_tokens = int(features["image_grid_thw"].prod()) // 4
    inputs = tokenizer(prompt(image_tokens), return_tensors="pt")
    ids = model.generate(**inputs, **features, max_new_tokens=1)
    print(tokenizer.decode(ids[0, -1:]))


if __name__ == "__main__":
    main()
