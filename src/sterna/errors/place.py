"""Images, pools and switches."""

from __future__ import annotations

from sterna.errors.family import Conflict, Failed, NotFound, Refused


class ImageMissing(Refused):
    code = "image.missing"
    text = "{what} {path} does not exist on {host}"
    hint = "Put it there, or give another path"


class ImageRefused(Refused):
    code = "image.refused"
    text = "image {path} cannot be used: {reason}"
    hint = "Make one that stands alone with: qemu-img convert -O qcow2 {path} NEW.qcow2"


class ImageFailed(Failed):
    code = "image.failed"
    text = "qemu-img could not {action} {path}: {reason}"


class VolumeExists(Conflict):
    code = "volume.exists"
    text = "{path} exists already in pool {pool}"
    hint = "Use it with volume={volume} and no size, or choose another volume name"


class VolumeForbidden(Refused):
    code = "volume.forbidden"
    text = "{volume!r} cannot be a volume of pool {pool}: {reason}"
    hint = "Use a plain file name whose file lies in the pool"


class PoolNotFound(NotFound):
    code = "pool.not-found"
    text = "{host} has no pool called {pool}"
    hint = "Make it with: sterna pool create {pool} --path DIR"


class PoolExists(Conflict):
    code = "pool.exists"
    text = "{host} already has a pool called {pool}"
    hint = "See: sterna pool list"


class PoolInUse(Conflict):
    code = "pool.in-use"
    text = "pool {pool} is used by {users}"
    hint = "Delete or move these VMs first"


class PoolUnusable(Refused):
    code = "pool.unusable"
    text = "pool {pool} cannot be used: {reason}"
    hint = "{fix}"


class SwitchNotFound(NotFound):
    code = "switch.not-found"
    text = "{host} has no switch called {switch}"
    hint = "Make it with: sterna switch create {switch}"


class SwitchExists(Conflict):
    code = "switch.exists"
    text = "{host} already has a switch called {switch}"
    hint = "See: sterna switch list"


class SwitchInUse(Conflict):
    code = "switch.in-use"
    text = "switch {switch} is used by {users}"
    hint = "Delete or move these VMs first"


class SwitchHasPorts(Conflict):
    code = "switch.has-ports"
    text = "bridge {bridge} of switch {switch} still has the interfaces {ports}"
    hint = "Unplug each with: ip link set dev NAME nomaster"


class SwitchUnusable(Refused):
    code = "switch.unusable"
    text = "switch {switch} cannot be used: {reason}"
    hint = "{fix}"


class NetworkFailed(Failed):
    code = "network.failed"
    text = "could not {action}: {reason}"


class VLANUnsupported(Refused):
    code = "switch.vlan-unsupported"
    text = (
        "switch {switch} cannot tag VLAN {vlan}: the kernel of {host} has no bridge VLAN filtering"
    )
    hint = "Boot a kernel with CONFIG_BRIDGE_VLAN_FILTERING, or remove the VLAN from the NIC"


class NoRoom(Refused):
    code = "pool.no-room"
    text = "{vm} needs {needed} bytes in pool {pool} of {host}, which has {free} bytes free"
    hint = "Make room there, or name another pool"


class KeptNotFound(NotFound):
    code = "kept.not-found"
    text = "no copy {copy} is kept on this host"
    hint = "List them with: sterna disk kept"
