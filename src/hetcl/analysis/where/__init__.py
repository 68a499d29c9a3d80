"""Where things are, asked of frozen maps: correspondence, localization, and classes of cells."""
