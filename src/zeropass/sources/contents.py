"""Files as they lie on the disk: what stands in place of the one that was meant is named before it is read."""

from pathlib import Path

from zeropass.errors import BadModel

__all__ = ["check_file"]

_HEAD = 256
_LFS = b"version https://git-lfs.github.com/spec/"
_HTML = (b"<!doctype html", b"<html")


def check_file(path: Path) -> None:
    """Look at the first bytes of a file that is to be read.

    Raises BadModel, naming what is there instead: a folder, a link to nothing, a file closed to us, an empty one,
    a pointer of Git LFS, a page of HTML.
    """
    try:
        if path.is_symlink() and not path.exists():
            raise BadModel(f"{path} is a link to {path.readlink()}, which is not there. Download it again.")
        if path.exists() and not path.is_file():  # to open a pipe would wait for who writes to it
            raise BadModel(f"{path} is a {'folder' if path.is_dir() else 'device or pipe'}; it should be a file.")
        with path.open("rb") as file:
            head = file.read(_HEAD)
    except OSError as error:
        raise BadModel(f"{path} cannot be read: {error}.") from error
    if reason := _stand_in(head):
        raise BadModel(f"{path} {reason}")


def _stand_in(head: bytes) -> str | None:
    """Say what a file is that begins like this and holds no model; None if it may hold one."""
    if not head:
        return "is empty (0 bytes). Download it again."
    if head.startswith(_LFS):
        return "is a pointer of Git LFS and not the file itself: run git lfs pull in its folder."
    if head.lstrip().lower().startswith(_HTML):
        return "is a page of HTML, such as a site sends in place of a file. Download it again."
    return None
