"""The benchmark of large data: its pictures, and what it reads from /proc."""

import sys
from pathlib import Path

import large_data
import memory
import pytest
from PIL import Image

from dataset import folders, store

SMAPS = """
7f00-7f80 r--s 00000000 fd:00 11 /data/decoded/ab/train.npy
Size: 2000 kB
Rss: 1500 kB
Pss: 750 kB
7f80-7f90 r--p 00000000 fd:00 12 /lib/libc.so.6
Rss: 10000 kB
Pss: 10 kB
7f90-7fa0 r--s 00000000 fd:00 11 /data/decoded/ab/train.npy
Rss: 100 kB
Pss: 50 kB
VmFlags: rd mr
7fb0-7fc0 rw-p 00000000 00:00 0
Rss: 5 kB
""".strip()


def test_pictures_have_many_names_for_few_files(tmp_path):
    large_data.draw_pictures(tmp_path, 50, 20, distinct=20)
    listing = folders.list_split(tmp_path, "train")
    assert len(listing.files) == 50 and len(folders.list_split(tmp_path, "test").files) == 20
    files = [listing.folder / name for name in listing.names]
    assert len({file.stat().st_ino for file in files}) == 20
    with Image.open(files[0]) as picture:
        assert picture.size == (256, 224)
    for name, label in zip(listing.names, listing.labels, strict=True):
        number = int(Path(name).stem)
        assert listing.classes[label] == large_data.CLASSES[number % 20 % 10]  # drawn classes alternate


def test_the_mapping_is_found_among_all():
    assert memory.store_pages(SMAPS) == (1600 * 1024, 800 * 1024)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc and the page cache")
def test_the_rate_of_the_disk_and_what_is_mapped(folder, tmp_path):
    assert large_data.disk_rate(folder, tmp_path / "root", 32, batches=3, batch_size=8) > 0
    images = store.load_folder(folder, "train", tmp_path / "root", 32).images
    assert images.sum() > 0
    resident, share = memory.store_pages(Path("/proc/self/smaps").read_text())
    assert images.numel() <= resident <= 2**20 and 0 < share <= resident
