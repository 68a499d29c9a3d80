"""Views to parts to a loss: any backbone as a pyramid C2..C5, branches on it, the pair that momentum ties together.

``pyramid.py`` builds a backbone of torchvision or timm; ``branches.py`` turns its maps into vectors; ``embedding.py``
joins them into normalised parts, ``build.py`` builds it for a method; ``momentum.py`` holds query and key encoder,
``queue.py`` the keys of earlier steps, ``infonce.py`` the loss. ``group_norm.py`` is batch norm over groups,
``norm_statistics.py`` measures the statistics of random weights.
"""
