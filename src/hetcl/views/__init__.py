"""One image to two views: crop boxes and cutting (worker processes), colour (device), and the loader.

``policies`` names the published augmentations; ``crops`` draws rectangles in the original plane and cuts them to
uint8; ``photometric`` does colour, blur, flip and normalisation on whole batches; ``order`` says which image
comes when; ``loader`` puts them together as a function of (seed, stage, epoch, position) alone.
"""
