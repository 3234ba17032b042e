"""The checkers of the exercises, and what some notebooks borrow from transformers."""
