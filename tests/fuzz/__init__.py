"""A hunt for input that ends in anything but an answer or a clear error of one line."""
