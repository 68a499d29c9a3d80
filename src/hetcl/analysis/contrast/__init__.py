"""How well features tell images apart: the contrastive test (paper sections 3.2 and 3.4)."""
