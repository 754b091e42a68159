"""One file a family: a dict MODELS of name -> factory(classes, channels). The table in `compress.models` finds it."""
