"""VMs as folders: written by one host, read by any other."""
