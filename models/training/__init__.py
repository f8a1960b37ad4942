"""Training: point-in-time data, evaluation, calibration, builds and updates."""
