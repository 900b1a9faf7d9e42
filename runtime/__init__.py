"""What every script needs: devices, processes, files, signals, progress, errors, randomness."""
