"""This process towards its surroundings: forks and its end, signals, standard streams, modes of files."""
