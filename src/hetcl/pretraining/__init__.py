"""Composition: images, views, model and training become a pre-training run.

``run.py`` is the verb: it reads, trains each stage and hands weights over to the next; ``plan.py`` says what is to be
done, ``build.py`` builds a stage from the settings, ``stages.py`` has its training step, ``memory.py`` what it takes;
``monitors.py`` and ``knn_check.py`` tell whether it works. ``demo.py`` and ``doctor.py`` are verbs of their own.
"""
