"""What concerns several hosts at once: trust between them, VMs that leave together, what they share."""
