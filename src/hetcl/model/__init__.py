"""Views to parts: any backbone as a pyramid C2..C5, branches on it, and the pair that momentum ties together.

``pyramid.py`` builds a backbone of torchvision or timm; ``branches.py`` turns its maps into vectors;
``embedding.py`` joins them into normalised parts; ``momentum.py`` holds query and key encoder and batch norm
over groups.
"""
