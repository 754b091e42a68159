"""Losses as pure functions of tensors. A loss is a noun and is called through its module: `logits.kl(s, t)`."""
