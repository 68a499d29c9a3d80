"""The loop: steps, schedule, logging, checkpoints, signals, resume. It knows nothing of what it trains."""
