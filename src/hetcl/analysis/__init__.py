"""What was learned: the contrastive test, what frozen features know of labels, and what their maps know of places.

``contrast/`` holds test and PCA, ``probe/`` kNN and linear classifiers, ``where/`` the questions of places. Beside
them lies what they share: ``extractor.py``, ``feature_pass.py`` and ``store.py`` bring features to the disk,
``search.py`` is exact search, ``yardstick.py`` adds random weights to the models, ``statistics.py`` has intervals,
``vector_spread.py`` alignment and uniformity, ``text.py`` words of reports.
"""
