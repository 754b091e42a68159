"""TASKS: what kind of answer a network gives, and how it is judged."""

from __future__ import annotations

from compress.tasks.classification import Classification

TASKS = {"classification": Classification}
