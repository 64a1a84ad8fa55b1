"""Short programs over modexp() to copy from; ``bench/modexp.py`` measures them."""
