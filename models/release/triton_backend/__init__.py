"""The Triton backend that is copied beside each bundle: one model.py for every model."""
