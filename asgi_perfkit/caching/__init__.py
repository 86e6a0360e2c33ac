"""Values that are made once: least recently used ones go, old ones go, and who asks while one is made waits for it."""
