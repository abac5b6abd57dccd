"""What the kernel counts, from the texts of its files: both versions of cgroups, pressure, steal."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from profiler.loop.kernel import (
    MachineLoad,
    Throttling,
    cpu_stat_paths,
    pressure_seconds,
    stolen_seconds,
    throttled_ns,
)

V1_STAT = "nr_periods 16\nnr_throttled 12\nthrottled_time 688732118\nnr_bursts 0\nburst_time 0\n"
V2_STAT = (
    "usage_usec 1900\nuser_usec 1200\nsystem_usec 700\nnr_periods 9\nnr_throttled 4\nthrottled_usec 31007\n"
)
V1_MOUNTS = """\
24 1 0:21 / /proc rw,nosuid - proc proc rw
31 25 0:27 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid shared:9 - cgroup cgroup rw,cpu,cpuacct
32 25 0:28 / /sys/fs/cgroup/memory rw,nosuid - cgroup cgroup rw,memory
33 25 0:29 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw,nsdelegate
"""
V2_MOUNTS = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
DOCKER_MOUNTS = "40 23 0:26 /docker/3f9 /sys/fs/cgroup/cpu ro,nosuid - cgroup cgroup rw,cpu\n"


@pytest.mark.parametrize(
    ("text", "nanoseconds"),
    [
        (V1_STAT, 688_732_118),
        (V2_STAT, 31_007_000),
        ("usage_usec 1900\nuser_usec 1200\n", None),  # the root of version 2 has no quota
        ("", None),
    ],
)
def test_throttled_time_of_both_versions(text: str, nanoseconds: int | None) -> None:
    assert throttled_ns(text) == nanoseconds


@pytest.mark.parametrize(
    ("memberships", "mounts", "paths"),
    [
        (
            "4:memory:/other\n3:cpu,cpuacct:/kubepods/pod7\n0::/unified\n",
            V1_MOUNTS,
            ["kubepods/pod7/", "kubepods/", ""],
        ),
        ("0::/user.slice/a.scope\n", V2_MOUNTS, ["user.slice/a.scope/", "user.slice/", ""]),
        ("0::/\n", V2_MOUNTS, [""]),
        ("0::/../sibling\n", V2_MOUNTS, ["sibling/", ""]),
    ],
)
def test_cpu_stat_is_that_of_the_group_and_those_around_it(
    memberships: str, mounts: str, paths: list[str]
) -> None:
    root = "/sys/fs/cgroup/cpu,cpuacct/" if mounts is V1_MOUNTS else "/sys/fs/cgroup/"
    assert cpu_stat_paths(memberships, mounts) == [f"{root}{path}cpu.stat" for path in paths]


def test_group_of_a_container_is_what_is_mounted_there() -> None:
    assert cpu_stat_paths("3:cpu:/docker/3f9\n", DOCKER_MOUNTS) == ["/sys/fs/cgroup/cpu/cpu.stat"]
    inner = ["/sys/fs/cgroup/cpu/job/cpu.stat", "/sys/fs/cgroup/cpu/cpu.stat"]
    assert cpu_stat_paths("3:cpu:/docker/3f9/job\n", DOCKER_MOUNTS) == inner
    assert cpu_stat_paths("3:cpu:/elsewhere\n", DOCKER_MOUNTS) == ["/sys/fs/cgroup/cpu/cpu.stat"]


def test_without_a_cpu_controller_there_is_no_path() -> None:
    assert cpu_stat_paths("4:memory:/a\n", V1_MOUNTS) == []
    assert cpu_stat_paths("", "") == []


def files(**texts: str) -> Callable[[str], str | None]:
    """A reader of files whose names are the last parts of their paths."""

    def read(path: str) -> str | None:
        return texts.get(path.rpartition("/")[2].replace(".", "_"))

    return read


def test_throttling_counts_from_when_it_was_made() -> None:
    texts = {"cgroup": "0::/", "mountinfo": V2_MOUNTS, "cpu_stat": V2_STAT}
    names = {"/proc/self/cgroup": "cgroup", "/proc/self/mountinfo": "mountinfo"}
    throttling = Throttling(lambda path: texts[names.get(path, "cpu_stat")])
    assert throttling.read_ns() == 0
    texts["cpu_stat"] = V2_STAT.replace("31007", "41007")
    assert throttling.read_ns() == 10_000_000
    assert throttling.read_ns() == 10_000_000


def test_throttling_follows_a_process_into_another_group() -> None:
    inside, counted = "", {"/sys/fs/cgroup/cpu.stat": 5, "/sys/fs/cgroup/b/cpu.stat": 100}

    def read(path: str) -> str | None:
        if path == "/proc/self/cgroup":
            return f"0::/{inside}"
        return V2_MOUNTS if path == "/proc/self/mountinfo" else f"throttled_usec {counted[path]}"

    throttling = Throttling(read)
    counted["/sys/fs/cgroup/cpu.stat"] = 7
    assert throttling.read_ns() == 2_000
    inside = "b"  # what it counted before is not ours
    assert throttling.read_ns() == 2_000
    counted["/sys/fs/cgroup/b/cpu.stat"] = 140
    counted["/sys/fs/cgroup/cpu.stat"] = 8
    assert throttling.read_ns() == 43_000


def test_throttling_is_unknown_where_nothing_counts() -> None:
    assert Throttling(lambda path: None).read_ns() is None
    assert Throttling(files(cgroup="0::/", mountinfo=V2_MOUNTS, cpu_stat="usage_usec 1")).read_ns() is None


def test_machine_load_from_pressure_and_steal() -> None:
    pressure = "some avg10=62.33 avg60=19.15 avg300=6.71 total=11345166\nfull avg10=0.00 total=0\n"
    stat = "cpu  100 0 50 900 3 0 2 7431 0 0\ncpu0 50 0 25 450 1 0 1 3715 0 0\n"
    assert pressure_seconds(pressure) == pytest.approx(11.345166)
    assert stolen_seconds(stat, ticks=100) == pytest.approx(74.31)
    assert pressure_seconds("") is None
    assert stolen_seconds("intr 7\n") is None
    assert MachineLoad.now(lambda path: None) == MachineLoad(None, None)
    assert MachineLoad.now(files(cpu=pressure)).waited == pytest.approx(11.345166)
