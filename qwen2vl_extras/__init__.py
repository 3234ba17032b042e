"""Below the three files: opening media, resizing, speed. A first reading can skip it."""
