"""What frozen features hold: kNN and linear classification."""
