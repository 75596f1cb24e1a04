"""Trust between the two hosts: certificates and names."""

from __future__ import annotations
