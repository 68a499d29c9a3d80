"""Where images come from: a folder, tar shards or the built-in scenes, and how their bytes become pixels.

``sources.open_source`` reads the ``DATA`` argument and gives a ``types.Source``; ``decode.open_image``
turns a ``types.Sample`` into RGB pixels, upright. Listings live in memory-mapped tables, so that nothing here
grows in memory with the number of images.
"""
