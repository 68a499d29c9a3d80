"""The paper's tables and figures: as data, run cell by cell, and shown beside the paper's own numbers."""
