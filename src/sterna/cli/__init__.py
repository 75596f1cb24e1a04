"""The command `sterna`. Every module here is imported only when its command runs."""
