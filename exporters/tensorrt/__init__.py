"""Engines of TensorRT and TensorRT-RTX: build, metadata, libraries."""
