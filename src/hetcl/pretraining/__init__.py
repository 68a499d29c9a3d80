"""Composition: images, views, model, contrast and training become a pre-training run."""
