"""What carries a move: the link between two hosts, and what knows pages on either side of it."""
