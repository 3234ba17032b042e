"""The course. Its notebooks, and what lies beside them, import each other by their plain names."""
