"""Files are written completely or not at all, by threads at the same time too."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

from zeropass._io.atomic import atomic_write
from zeropass.errors import BadOption


def test_threads_that_write_the_same_file_leave_one_of_theirs(tmp_path: Path) -> None:
    threads, path = 4, tmp_path / "file"
    all_there = Barrier(threads, timeout=60)

    def write(text: str) -> None:
        with atomic_write(path, BadOption) as temporary:
            all_there.wait()
            temporary.write_text(text)
            all_there.wait()

    texts = [str(i) * (1000 + i) for i in range(threads)]
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(write, texts))
    assert path.read_text() in texts
    assert list(tmp_path.iterdir()) == [path]
