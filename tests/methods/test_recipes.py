"""The shipped recipes have the published settings."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest
import tiny

TABLE_1 = {"epochs": 200, "batch_size": 128}
#: recipe -> published settings of the method, and of the training
RECIPES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "balanced-cifar100": ({"temperature": 5, "lr": 0.1, "max_repeats": 50}, TABLE_1),
    "fitnet-cifar100": ({"hint": 100, "stage": 2, "temperature": 5}, TABLE_1),
    "rkd-cifar100": ({"distance": 25, "angle": 50, "kl": 1, "relate": "features"}, TABLE_1),
    "crd-cifar100": ({"nce": 0.8, "kl": 1, "negatives": 16384, "tau": 0.07, "embedding_dim": 128}, TABLE_1),
    "sskd-cifar100": (
        {"head_fraction": 60 / 300, "kl": 0.9, "rotated": 2.7, "similarity": 10}, {"epochs": 300, "batch_size": 64},
    ),
    "dfnd-cifar100": (
        {"keep_images": 600_000, "teacher_accuracy": 0.7774, "temperature": 4}, {"steps": 77_300, "batch_size": 256},
    ),
    "dafl-cifar10": (
        {"one_hot": 0.05, "balance": 5, "activation": 0.01, "lr": 0.1, "weight_decay": 5e-4, "z_dim": 1000},
        {"steps": 2000 * 120, "batch_size": 1024},
    ),
    "dfad-cifar10": (
        {"student_steps": 5, "lr": 0.1, "weight_decay": 5e-4, "lr_G": 1e-3, "z_dim": 256, "log_gap": None},
        {"steps": 500 * 50, "batch_size": 256},
    ),
    "dfad-nyuv2": (
        {"student_steps": 5, "lr": 0.1, "weight_decay": 5e-5, "lr_G": 1e-3, "z_dim": 256, "generator": "dcgan"},
        {"steps": 300 * 50, "batch_size": 64},
    ),
    "dfq-cifar100": (
        {"adv": 1, "bn": 1, "one_hot": 1, "balance": 20, "student_steps": 10, "lr": 0.05, "weight_decay": 1e-4,
         "lr_G": 1e-3, "z_dim": 256},
        {"steps": 200 * 400 // 10, "batch_size": 256},
    ),
    "zskt-cifar10": (
        {"attention": 250, "student_steps": 10, "max_grad_norm": 5, "lr": 2e-3, "lr_G": 1e-3, "z_dim": 100},
        {"steps": 80_000, "batch_size": 128},
    ),
    "deepinversion-cifar10": (
        {"iterations": 1000, "student_steps": 400, "images_per_synthesis": 256, "bn": 10, "cross_entropy": 1, "adv": 1,
         "tv": 1e-3, "temperature": 20},
        {"steps": 200 * 400, "batch_size": 256},
    ),
    "cmi-cifar10": (
        {"iterations": 200, "student_steps": 400, "images_per_synthesis": 256, "bn": 1, "cross_entropy": 1, "adv": 0.5,
         "contrast": 0.8, "contrast_temperature": 0.1, "bank_size": 40960, "negatives": 4096, "embedding_dim": 256,
         "z_dim": 256},
        {"steps": 200 * 400, "batch_size": 128},
    ),
    "fastdfkd-cifar100": (
        {"iterations": 10, "student_steps": 400, "images_per_synthesis": 256, "bn": 10, "cross_entropy": 0.4,
         "adv": 1.1, "bn_momentum": 0.9, "lr_G": 2e-3, "lr_z": 0.01, "lr": 0.2, "warmup": 20, "reset": 120},
        {"steps": 20 + 200 * 400, "batch_size": 256},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_has_published_settings(name):
    settings, training = RECIPES[name]
    config, method = tiny.read_recipe(name)
    assert settings == {key: pytest.approx(asdict(method)[key]) for key in settings}
    assert training == {key: getattr(config.training, key) for key in training}


@pytest.mark.parametrize("name", [name for name, (_, training) in RECIPES.items() if training is TABLE_1])
def test_table_1_recipe_uses_cifar10(name):
    assert tiny.read_recipe(name)[0].data.unlabeled == "cifar10"
