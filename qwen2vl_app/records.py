"""An answer as a line of JSON: what `--json` prints, and `--batch` for each of its lines."""

import json

from qwen2vl_app.boxes import find_boxes

# A record of a batch begins so: what begins otherwise was not written by `--batch`.
RECORD_START = '{"line": '


def answer_record(answer: str, prompt_tokens: int, tokens: int) -> dict[str, object]:
    """What is known of an answer: its text, its boxes, and how many tokens there were.

    Boxes have a name and their edges, from 0 to 1000 along the sides of the image.
    """
    return {
        "answer": answer,
        "boxes": [box._asdict() for box in find_boxes(answer)],
        "prompt_tokens": prompt_tokens,
        "tokens": tokens,
    }


def to_json_line(record: dict[str, object], encoding: str) -> str:
    """A record as JSON in one line, without the line's end.

    encoding: of the file that it goes to. Letters that it lacks are written as \\u and a number.
    """
    text = json.dumps(record, ensure_ascii=False, allow_nan=False)
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return json.dumps(record, allow_nan=False)
    return text
