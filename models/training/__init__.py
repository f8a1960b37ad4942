"""Training: data up to one moment, evaluation, calibration, builds and updates."""
