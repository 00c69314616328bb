"""Native code: compiled, kept on disk, mapped, run by a pool of threads, recorded."""
