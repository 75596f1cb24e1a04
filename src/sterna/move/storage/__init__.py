"""Disks to other pools of the same host, under a running VM or of one that is off."""
