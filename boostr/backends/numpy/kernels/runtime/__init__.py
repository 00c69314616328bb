"""The kernel language, its compilation, and the native half of the thread pool."""
