"""The lab's guest: a small real Linux whose workload can be chosen and whose life can be measured.

`image` builds its kernel and initramfs, `wire` is the layout of what it sends and writes, and the
C files are its only program: PID 1, which beats, dirties memory and writes its disk.
"""
