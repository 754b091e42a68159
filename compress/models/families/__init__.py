"""Network families: each module has a dict MODELS, name -> factory(classes, channels)."""
