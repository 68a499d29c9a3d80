"""What folders of runs and results say, on one page that opens from disk and asks the network for nothing."""
