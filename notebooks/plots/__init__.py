"""The drawings of the notebooks: a module for each, and `shared` for what several need."""
