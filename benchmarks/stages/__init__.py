"""One file a job. `catalogue.py` names them all."""
