"""Images, pools and switches."""

from __future__ import annotations

from sterna.errors.family import Conflict, Failed, NotFound, Refused


class ImageMissing(Refused):
    code = "image.missing"
    text = "{what} {path} does not exist on {host}"
    hint = "Put it there, or give another path"


class VolumeMissing(Refused):
    """A file that a VM's record names."""

    code = "volume.missing"
    text = "{volume}, which {vm} needs, is not on {host}: {path} does not exist"
    hint = "See what of its disks is there: sterna disk check {vm}"


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
    hint = (
        "Rename or delete that file, or use another pool or name; a new VM takes it as it is with "
        "volume={volume} and no size"
    )


class VolumeForbidden(Refused):
    code = "volume.forbidden"
    text = "{volume!r} cannot be a volume of pool {pool}: {reason}"
    hint = "Use a plain file name whose file lies in the pool"


class VolumeRefused(Refused):
    code = "volume.refused"
    text = "{path} cannot be used for disk {disk} of {vm}: {reason}"
    hint = "{fix}"


class MediumMissing(Refused):
    """A CD that a VM has in a drive."""

    code = "cd.missing"
    text = "{medium}, which {vm} has in its CD drive {drive}, is not on {host}"
    hint = "Put it there, or take it out with: sterna vm eject {vm} {drive}"


class MediumRefused(Refused):
    code = "cd.refused"
    text = "{medium} cannot be inserted into {vm}: {reason}"
    hint = "{fix}"


class MediumDiffers(Refused):
    code = "cd.differs"
    text = "{volume} on {host} is not the same as the CD of that name that {vm} has in a drive"
    hint = "Rename the one on {host}, or do without: sterna vm eject {vm} {drive}"


class DriveNotFound(NotFound):
    code = "cd.no-drive"
    text = "{vm} has no CD drive{drive}; it has {known}"
    hint = "While it is off it can get one: sterna vm insert {vm} POOL/FILE --new-drive"


class DriveUnclear(Conflict):
    code = "cd.which-drive"
    text = "{vm} has more than one CD drive that may be meant: {known}"
    hint = "Name the drive: sterna vm {action} {vm} DRIVE{rest}"


class MediumStuck(Failed):
    """QEMU would not take it; what was in the drive before is in it again."""

    code = "cd.failed"
    text = "{medium} could not be inserted into CD drive {drive} of {vm}: {reason}"
    hint = "{fix}"


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


class NICNotFound(NotFound):
    code = "nic.not-found"
    text = "{vm} has no NIC called {nic}; it has {known}"
    hint = "See: sterna vm show {vm}"


class SwitchWouldCut(Conflict):
    code = "switch.would-cut"
    text = "switch {switch} cannot be changed so while {users} run: {reason}"
    hint = "Plug them into another switch first with: sterna vm nic set VM NIC --switch SWITCH"


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


class KeptInUse(Conflict):
    code = "kept.in-use"
    text = "{place} of the kept copy {copy} is a disk of a VM now"
    hint = "Delete that VM first; see: sterna disk check"


class FileCopyFailed(Failed):
    code = "file.copy-failed"
    text = "{source} could not be copied to {target}: {reason}"
    hint = "Look at the storage of both; it may be tried again at any time"


class FileUnreadable(Failed):
    code = "file.unreadable"
    text = "{path} on {host} cannot be read: {reason}"
    hint = "Look at the storage below it; what is readable of it can be copied with: ddrescue"


class FileChanged(Failed):
    code = "file.changed"
    text = "{path} on {host} was changed while it was sent"
    hint = "Find out which program writes to it with: lsof {path}; then try again"


class FileNotStored(Failed):
    code = "file.not-stored"
    text = "{volume} could not be stored on {host}: {reason}"
    hint = "Look at that pool with: sterna --host {host} pool list"


class FileDiffers(Failed):
    """Sent, read back from the target's storage, and not the same, more than once."""

    code = "file.differs"
    text = "{volume} reads differently on {host} than what was sent there"
    hint = "Look at the storage of {host}: it does not give back what was written"


class FileClosed(Conflict):
    """A chunk that comes late: its file is being checked, or is in its place."""

    code = "file.closed"
    text = "{volume} on {host} takes no more data"


class BaseDiffers(Refused):
    code = "image.base-differs"
    text = "{volume} on {host} is not the same as the template of that name that {vm} rests on"
    hint = "Rename the one on {host}; or move the VM while it runs, as one image, with --flatten"
