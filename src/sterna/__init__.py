"""Sterna: live migration of virtual machines for QEMU/KVM hosts."""

__version__ = "0.1.0"
