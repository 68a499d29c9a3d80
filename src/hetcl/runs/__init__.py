"""The folder that ``--out`` names: what is in it, who may write it, and what work goes on from.

``folder.py`` has the paths of a run folder and its small files, ``table.py`` its CSV tables; ``files.py`` writes so
that a kill loses nothing, ``archive.py`` and ``checkpoint.py`` do so for checkpoints and tell damaged ones;
``lock.py`` keeps a second writer out; ``output.py`` makes and locks a folder; ``resume.py`` says whether work begins,
goes on or is refused. Verbs that train write such a folder; ``weights`` and ``reporting`` read it.
"""
