"""Gets files out of Debian packages, without installing them.

Promises that nothing outside the given folder changes (but apt's own lists, refreshed once when a
package cannot be found or downloaded), and that every failure names what was missing and the
package that has it. Works as root or not, wherever apt and dpkg are set up.
"""

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from sterna.errors import Failed

_DOWNLOAD_S = 300  # a kernel package is some 30 MB; slower than this is as good as unreachable
_QUICK_S = 60


class GuestBuildError(Failed):
    """The lab's guest cannot be built on this machine; nothing was left behind."""

    code = "lab.guest-build"
    text = "The lab's guest cannot be built: {detail}"

    def __init__(self, detail: str) -> None:
        super().__init__(detail=detail)


def need(tool: str, package: str) -> str:
    """The path of `tool`, or an error that names the package to install."""
    found = shutil.which(tool)
    if found is None:
        raise GuestBuildError(f"{tool} is not installed (apt-get install {package})")
    return found


def run(argv: list[str], *, cwd: Path | None = None, deadline_s: float = _QUICK_S) -> str:
    """The output of a program that must succeed; its last words are in the error if it does not."""
    try:
        done = subprocess.run(
            argv,
            cwd=cwd,
            capture_output=True,
            text=True,
            timeout=deadline_s,
            check=False,
            env={**os.environ, "LC_ALL": "C"},
        )
    except subprocess.TimeoutExpired as error:
        raise GuestBuildError(f"{argv[0]} did not end within {deadline_s:.0f} s") from error
    if done.returncode:
        words = "; ".join((done.stderr or done.stdout).strip().splitlines()[-3:])
        raise GuestBuildError(f"{' '.join(argv[:3])} failed: {words}")
    return done.stdout


class Packages:
    """Debian's packages as apt sees them now, unpacked below `folder` on demand."""

    def __init__(self, folder: Path, say: Callable[[str], None]) -> None:
        self._folder = folder
        self._say = say
        self._refreshed = False
        need("apt-get", "apt")
        need("dpkg", "dpkg")

    def _retried(self, action: Callable[[], str]) -> str:
        try:
            return action()
        except GuestBuildError:
            if self._refreshed or os.geteuid() != 0:
                raise
        self._refreshed = True
        self._say("refreshing apt's package lists")
        run(["apt-get", "update"], deadline_s=_DOWNLOAD_S)
        return action()

    def concrete(self, package: str, prefix: str) -> str:
        """The dependency of the metapackage `package` whose name starts with `prefix`."""

        def look() -> str:
            for line in run(["apt-cache", "depends", package]).splitlines():
                kind, _, name = line.strip().partition(": ")
                if kind == "Depends" and name.startswith(prefix):
                    return name
            raise GuestBuildError(f"apt knows no {package} (apt-get update)")

        return self._retried(look)

    def unpacked(self, package: str) -> Path:
        """A folder with the files of `package`; the same folder if asked again."""
        place = self._folder / package
        if place.exists():
            return place
        self._say(f"downloading {package}")
        downloads = self._folder / f"{package}.download"
        downloads.mkdir(parents=True)
        sandbox = ["-o", "APT::Sandbox::User=root"] if os.geteuid() == 0 else []

        def download() -> str:
            return run(
                ["apt-get", "-q", *sandbox, "download", package],
                cwd=downloads,
                deadline_s=_DOWNLOAD_S,
            )

        self._retried(download)
        archives = list(downloads.glob("*.deb"))
        if len(archives) != 1:
            raise GuestBuildError(f"apt-get download {package} left {len(archives)} packages")
        run(["dpkg", "-x", str(archives[0]), str(place)])
        return place
