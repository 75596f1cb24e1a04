"""Kerberos: what a realm says of a user, of this host and of another one, and why it says no."""
