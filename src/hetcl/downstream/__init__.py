"""Boxes, masks and pixels: data sets in their own layouts, detectors and segmenters, fine-tuning and evaluation."""
