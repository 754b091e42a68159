"""Losses as pure functions of tensors, called through their module: `logits.kl(s, t)`."""
