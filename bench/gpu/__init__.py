"""What ``python -m bench.gpu`` runs, and the archive that takes it to another machine."""
