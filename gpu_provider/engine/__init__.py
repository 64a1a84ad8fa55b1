"""The batching thread, what it decides, and the threads that compute for it."""
