"""Models: load, build and describe networks."""

from compress.models.card import ModelCard
from compress.models.loading import load_model
from compress.models.overrides import ModelOverrides
from compress.models.registry import build_model, build_model_like, register_module

__all__ = ["ModelCard", "ModelOverrides", "build_model", "build_model_like", "load_model", "register_module"]
