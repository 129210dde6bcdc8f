"""How much memory a process can have: the machine's, or what control groups of either version leave of it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from lukshdrfs.errors import OutOfMemory, UsageError
from lukshdrfs.luks.keys import free_memory, kdf_cost
from lukshdrfs.luks.keys.free_memory import Bound, memory_bounds, require_memory
from lukshdrfs.luks.keys.kdf import check_memory
from lukshdrfs.luks.keys.kdf_cost import KdfWish, choose_kdf

MIB = 1 << 20
NONE = 9223372036854771712  # what version 1 says where there is no limit


def write(folder: Path, files: dict[str, object]) -> None:
    """Write the files of a folder, with a line in each."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_text(f"{content}\n")


def machine(root: Path, *, cgroup: str, mounts: list[str], swap_mib: int = 0) -> Path:
    """Make a machine with 8 GiB of memory, of which 6 are free, and its process's control groups."""
    kib = {"MemTotal": 8 << 20, "MemAvailable": 6 << 20, "SwapTotal": swap_mib * 1024, "SwapFree": swap_mib * 1024}
    write(root / "proc", {"meminfo": "\n".join(f"{name}: {size:>12} kB" for name, size in kib.items())})
    lines = [f"{20 + number} 1 0:{number} {mount}" for number, mount in enumerate(mounts)]
    write(root / "proc/self", {"cgroup": cgroup, "mountinfo": "\n".join(lines)})
    return root


def new_group(folder: Path, limit: object, used: int, cache: int = 0, **more: object) -> None:
    """Make a control group of version 2. Sizes are MiB."""
    write(folder, {
        "memory.max": limit if isinstance(limit, str) else int(str(limit)) * MIB,
        "memory.current": used * MIB,
        "memory.stat": f"anon {(used - cache) * MIB}\nfile {cache * MIB}\nactive_file {cache * MIB}\ninactive_file 0",
        **{name.replace("_", "."): value for name, value in more.items()},
    })  # fmt: skip


def old_group(folder: Path, limit: int, used: int, cache: int = 0, **more: object) -> None:
    """Make a control group of version 1. Sizes are MiB, but for the limit, which are bytes."""
    write(folder, {
        "memory.limit_in_bytes": limit,
        "memory.usage_in_bytes": used * MIB,
        "memory.use_hierarchy": 1,
        "memory.stat": f"cache {cache * MIB}\ntotal_inactive_file {cache * MIB}\ntotal_active_file 0",
        **{f"memory.{name}": value for name, value in more.items()},
    })  # fmt: skip


def sizes(bounds: list[Bound]) -> dict[str, tuple[int, int]]:
    """Return limit and free memory of each bound, in MiB."""
    return {bound.name: (bound.limit_kib // 1024, bound.free_kib // 1024) for bound in bounds}


MACHINE = {"this machine": (8192, 6144)}
NEW_MOUNT = "/ /sys/fs/cgroup rw shared:4 - cgroup2 cgroup rw,nsdelegate"
OLD_MOUNT = "/ /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory"


def test_a_machine_without_control_groups(tmp_path: Path) -> None:
    """What the kernel says is available counts, and swap."""
    root = machine(tmp_path, cgroup="", mounts=[], swap_mib=100)
    assert sizes(memory_bounds(root=root)) == {"this machine": (8192, 6244)}


def test_groups_of_version_2_bound_it_up_to_the_top(tmp_path: Path) -> None:
    """Each group from ours upwards has a say; what it can drop of its cache is free; one without a limit has none."""
    root = machine(tmp_path, cgroup="0::/a.slice/b.service", mounts=[NEW_MOUNT])
    top = root / "sys/fs/cgroup"
    write(top, {"memory.stat": "anon 1"})  # the root group has no limit
    new_group(top / "a.slice", 1000, 900, 300)
    new_group(top / "a.slice/b.service", "max", 500)
    assert sizes(memory_bounds(root=root)) == MACHINE | {"the control group /a.slice": (1000, 400)}

    new_group(top / "a.slice/b.service", 600, 550, 0)
    assert sizes(memory_bounds(root=root)) == MACHINE | {
        "the control group /a.slice": (1000, 400),
        "the control group /a.slice/b.service": (600, 50),
    }


def test_memory_high_bounds_what_is_taken_unasked(tmp_path: Path) -> None:
    """Nobody is ended above `memory.high`, so it counts only where we may choose."""
    root = machine(tmp_path, cgroup="0::/a", mounts=[NEW_MOUNT])
    new_group(root / "sys/fs/cgroup/a", "max", 50, memory_high=200 * MIB)
    assert sizes(memory_bounds(root=root)) == MACHINE
    assert sizes(memory_bounds(throttled=True, root=root)) == MACHINE | {"the control group /a": (200, 150)}


@pytest.mark.parametrize(("swap", "free"), [("max", 150), (30 * MIB, 70), (0, 50)])
def test_swap_of_version_2(swap: object, free: int, tmp_path: Path) -> None:
    """Swap counts as far as the group may use it, and as far as the machine has it."""
    root = machine(tmp_path, cgroup="0::/a", mounts=[NEW_MOUNT], swap_mib=100)
    more = {"memory_swap_max": swap, "memory_swap_current": 10 * MIB if swap == 30 * MIB else 0}
    new_group(root / "sys/fs/cgroup/a", 100, 50, 0, **more)
    assert sizes(memory_bounds(root=root))["the control group /a"] == (100, free)


def test_groups_of_version_1_bound_it_up_to_the_top(tmp_path: Path) -> None:
    """The memory hierarchy is found among the others, whatever else it is mounted with."""
    mounts = [NEW_MOUNT.replace("cgroup rw shared", "cgroup/unified rw shared"), OLD_MOUNT.replace("rw,", "rw,cpu,")]
    root = machine(tmp_path, cgroup="9:cpuset:/x\n4:cpu,memory:/a/b\n0::/", mounts=mounts)
    top = root / "sys/fs/cgroup/memory"
    old_group(top, NONE, 3000)
    old_group(top / "a", 256 * MIB, 200, 100)
    old_group(top / "a/b", NONE, 100)
    assert sizes(memory_bounds(root=root)) == MACHINE | {"the control group /a": (256, 156)}


def test_a_group_of_version_1_that_tells_little(tmp_path: Path) -> None:
    """Where nothing is said of what could be taken back, nothing can."""
    root = machine(tmp_path, cgroup="4:memory:/a", mounts=[OLD_MOUNT])
    old_group(root / "sys/fs/cgroup/memory/a", 128 * MIB, 100, 50, stat="cache 1")
    assert sizes(memory_bounds(root=root)) == MACHINE | {"the control group /a": (128, 28)}


def test_a_group_of_version_1_that_counts_itself_only(tmp_path: Path) -> None:
    """Without `memory.use_hierarchy`, a group above does not bound those below it."""
    root = machine(tmp_path, cgroup="4:memory:/a/b", mounts=[OLD_MOUNT])
    top = root / "sys/fs/cgroup/memory"
    old_group(top / "a", 64 * MIB, 60, use_hierarchy=0)
    old_group(top / "a/b", 128 * MIB, 100)
    assert sizes(memory_bounds(root=root)) == MACHINE | {"the control group /a/b": (128, 28)}


def test_a_limit_that_version_1_has_out_of_sight(tmp_path: Path) -> None:
    """In a container, groups above cannot be seen; the hierarchy's limit is told in `memory.stat`."""
    root = machine(tmp_path, cgroup="4:memory:/docker/1", mounts=[OLD_MOUNT.replace("/ ", "/docker/1 ", 1)])
    stat = f"hierarchical_memory_limit {100 * MIB}\ntotal_inactive_file 0\ntotal_active_file 0"
    old_group(root / "sys/fs/cgroup/memory", NONE, 80, stat=stat)
    assert sizes(memory_bounds(root=root)) == MACHINE | {"the control group /": (100, 20)}


@pytest.mark.parametrize(
    ("both", "swappiness", "free"), [(NONE, 60, 150), (120 * MIB, 60, 70), (NONE, 0, 50)], ids=["all", "some", "none"]
)
def test_swap_of_version_1(both: int, swappiness: int, free: int, tmp_path: Path) -> None:
    """There, the limit is of memory and swap together."""
    root = machine(tmp_path, cgroup="4:memory:/a", mounts=[OLD_MOUNT], swap_mib=100)
    more = {"memsw.limit_in_bytes": both, "memsw.usage_in_bytes": 50 * MIB, "swappiness": swappiness}
    old_group(root / "sys/fs/cgroup/memory/a", 100 * MIB, 50, **more)
    assert sizes(memory_bounds(root=root))["the control group /a"] == (100, free)


@pytest.mark.parametrize("cgroup", ["0::/", "0::/../other", "0::/elsewhere/that/is/not/shown"])
def test_a_container_that_sees_its_own_group_only(cgroup: str, tmp_path: Path) -> None:
    """What is mounted there is ours, whatever the process's group is called from where it looks."""
    mount = NEW_MOUNT if cgroup == "0::/" else NEW_MOUNT.replace("/ ", "/my/own ", 1)
    root = machine(tmp_path, cgroup=cgroup, mounts=[mount])
    new_group(root / "sys/fs/cgroup", 100, 50)
    assert sizes(memory_bounds(root=root)) == MACHINE | {"the control group /": (100, 50)}


def test_names_with_spaces(tmp_path: Path) -> None:
    """The mount table writes them as octal numbers."""
    root = machine(tmp_path, cgroup="0::/a b/c", mounts=[NEW_MOUNT.replace("/ /sys", "/a\\040b /my\\040sys", 1)])
    new_group(root / "my sys/fs/cgroup/c", 100, 50)
    assert sizes(memory_bounds(root=root)) == MACHINE | {"the control group /c": (100, 50)}


def test_the_default_cost_fits_the_smallest_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """A new keyslot takes at most half of a limit, and half of what is free; what is asked for and too much is told."""
    bounds = [Bound("this machine", 8 << 20, 6 << 20), Bound("the control group /a", 200 * 1024, 160 * 1024)]
    for module in (free_memory, kdf_cost):
        monkeypatch.setattr(module, "memory_bounds", lambda *, throttled=False: bounds)
    assert KdfWish().usual_memory_kib == 80 * 1024
    assert choose_kdf(KdfWish(time_ms=1 << 20)).memory_kib == 80 * 1024

    bounds[1] = Bound("the control group /a", 200 * 1024, 40 * 1024)
    assert KdfWish().usual_memory_kib == 16 * 1024

    bounds[1] = Bound("the control group /a", 200 * 1024, 1024)
    with pytest.raises(OutOfMemory, match="--pbkdf pbkdf2"):
        KdfWish().check()
    KdfWish("pbkdf2").check()
    with pytest.raises(OutOfMemory, match=r"needs 512 MiB.*control group /a has 1024 KiB left of 200 MiB"):
        KdfWish(memory_kib=512 * 1024).check()
    with pytest.raises(UsageError):
        KdfWish(memory_kib=1 << 40).check()


def test_what_is_needed_and_what_is_there_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """More than the least bound leaves is OutOfMemory; what is left to the rest of the program counts, too."""
    bounds = [Bound("this machine", 8 << 20, 6 << 20), Bound("the control group /a", 200 * 1024, 100 * 1024)]
    monkeypatch.setattr(free_memory, "memory_bounds", lambda: bounds)
    require_memory("it", 100 * 1024)
    with pytest.raises(OutOfMemory, match="it needs 101 MiB of memory; the control group /a has 100 MiB left of 200"):
        require_memory("it", 101 * 1024)
    with pytest.raises(OutOfMemory, match="argon2id needs 102 MiB"):
        check_memory("argon2id", 100 * 1024)
    bounds.clear()
    require_memory("it", 1 << 40)


@pytest.mark.parametrize("limit", ["RLIMIT_AS", "RLIMIT_DATA"])
def test_limits_of_the_process_itself(limit: str) -> None:
    """`ulimit -v` and `ulimit -d` bound it as well: a keyslot is made that fits."""
    program = f"""
import resource
from lukshdrfs.errors import OutOfMemory
from lukshdrfs.luks.keys.kdf import derive
from lukshdrfs.luks.keys.kdf_cost import KdfWish, choose_kdf
from lukshdrfs.luks.model import Kdf
from lukshdrfs.secret import SecretBytes
resource.setrlimit(resource.{limit}, (600 << 20, resource.RLIM_INFINITY))
kdf = choose_kdf(KdfWish(time_ms=20))
derive(kdf, SecretBytes.copy_of(b"x"), 32)
print(1024 <= kdf.memory_kib <= 300 << 10)
try:
    derive(Kdf("argon2id", bytes(32), 1, memory_kib=700 << 10, lanes=1), SecretBytes.copy_of(b"x"), 32)
except OutOfMemory as error:
    print("ulimit" in str(error))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "True"]
