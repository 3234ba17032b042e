"""This project and `transformers` side by side on the same weights: `python -m benchmarks`.

Read `stage.py` first (what is compared), then any file in `stages/` (one job each), then
`measure.py` (how it is timed) and `__main__.py` (the order of things). `processes/` holds the small
programs that run in processes of their own: peak memory, loading, the cold start.
"""
