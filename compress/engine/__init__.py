"""The loop and what a run keeps. Knows no method, no task and no model."""
