"""The sections of ``bench/gpu.py``, each in a process of its own.

``isolate.py`` starts them and collects their rows; ``section.py`` is what a section is given; ``roof.py`` counts bytes
and operations; ``table.py`` turns the rows into Markdown. The sections: ``machine``, ``correct``, ``steps``,
``loader``, ``detect``, ``train``.
"""
