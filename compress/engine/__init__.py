"""Training engine: the loop, trainable models, streams, checkpoints and logs."""
