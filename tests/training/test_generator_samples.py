"""Samples from the generator of a run: its own weights, sorted by predicted class, reproducible by seed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from compress.data import open_images
from compress.errors import UsageError
from compress.models.generators import build_generator
from compress.models.loading import load_model
from compress.training.generator_samples import GeneratorSamples, iter_generator_samples, save_generator_samples
from compress.training.launch import run_training
from compress.training.recipes import resolve_config

TEACHER = "embedded/fashion_wrn16_2"
COUNT = 30


def train(photos: Path, method: str, run_dir: Path, **settings: object) -> Path:
    config, made = resolve_config(
        teacher=TEACHER, unlabeled=str(photos), student="wrn16_1", method=method, steps=1, batch_size=8, device="cpu",
        precision="32", settings={"data.views": 1, **settings},
    )  # fmt: skip
    run_training(config, made, output_dir=run_dir)
    return run_dir


@pytest.fixture(scope="module")
def mosaic_run(tmp_path_factory, photos) -> Path:
    run_dir = tmp_path_factory.mktemp("runs") / "mosaic"
    return train(photos, "mosaic", run_dir, **{"method.width_G": 8, "method.width_D": 8})


def save(run_dir: Path, output_dir: Path, seed: int = 0) -> GeneratorSamples:
    return save_generator_samples(run_dir, COUNT, output_dir, device="cpu", seed=seed, progress=lambda _: None)


@pytest.fixture(scope="module")
def samples_dir(mosaic_run) -> Path:
    output_dir = mosaic_run.with_name("samples")
    samples = save(mosaic_run, output_dir)
    assert (len(samples.pool), samples.method, samples.batches) == (COUNT, "mosaic", 1)
    return output_dir


def read_pixels(output_dir: Path) -> dict[str, np.ndarray]:
    images = open_images(str(output_dir / "compress-pool"))
    return {images.name_of(i): np.asarray(images.read_image(i)) for i in range(len(images))}


def expected_images(run_dir: Path) -> torch.Tensor:
    """Generate from the weights in the newest checkpoint."""
    checkpoint = sorted((run_dir / "checkpoints").glob("*.rank0.pt"))[-1]
    generator = build_generator(32, width=8, channels=1)
    generator.load_state_dict(torch.load(checkpoint, weights_only=True)["shared"]["trainables"]["G"]["net"])
    z = torch.randn(100, 100, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return generator.eval()(z)[:COUNT]


def test_samples_come_from_the_checkpoint_by_class(mosaic_run, samples_dir):
    x = expected_images(mosaic_run)
    teacher, _ = load_model(TEACHER)
    with torch.no_grad():
        labels = teacher(x).argmax(1).tolist()
    expected = (x * 255).round().byte().permute(0, 2, 3, 1).numpy()
    pixels = {Path(name).name: (Path(name).parent.name, image) for name, image in read_pixels(samples_dir).items()}
    for i, label in enumerate(labels):
        folder, image = pixels[f"0-{i:07d}.png"]
        assert folder.startswith(f"{label} ")
        assert np.abs(image.astype(int) - expected[i]).max() <= 1


def test_iterated_samples_match_the_checkpoint(mosaic_run):
    batches = list(iter_generator_samples(mosaic_run, 10))
    assert [tuple(batch.shape) for batch in batches] == [(8, 3, 32, 32), (2, 3, 32, 32)]
    torch.testing.assert_close(torch.cat(batches)[:8], expected_images(mosaic_run)[:8], rtol=1e-4, atol=1e-4)


def test_seed_determines_the_samples(mosaic_run, samples_dir, tmp_path):
    for seed, is_same in ((0, True), (1, False)):
        save(mosaic_run, tmp_path / str(seed), seed)
        first, second = (np.stack(list(read_pixels(folder).values())) for folder in (samples_dir, tmp_path / str(seed)))
        assert (first.sum() == second.sum()) == is_same


def test_directories_without_a_generator_are_refused(mosaic_run, photos, tmp_path):
    with pytest.raises(UsageError, match=r"recipe\.yaml"):
        save(tmp_path, tmp_path / "out")
    with pytest.raises(UsageError, match=str(mosaic_run)):
        save(mosaic_run, mosaic_run)
    with pytest.raises(UsageError, match="kd"):
        save(train(photos, "kd", tmp_path / "kd"), tmp_path / "out")
