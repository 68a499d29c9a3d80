"""What was learned: the contrastive test, PCA, and probes of frozen features."""
