"""Know this device: its machine, its limits, and the cache of what was compiled and measured on it."""
