"""The page: ask, draw, and see what the model sees. `python qwen2vl.py --web` serves it."""
