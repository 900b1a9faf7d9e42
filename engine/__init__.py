"""Training and prediction: settings, steps, epochs, evaluation, checkpoints, records."""
