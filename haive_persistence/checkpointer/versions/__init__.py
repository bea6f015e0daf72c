"""Version control for threads: branches and tags, differences, merges."""
