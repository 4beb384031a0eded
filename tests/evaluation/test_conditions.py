"""What passes on a host, read from made-up /proc and /sys trees."""

from __future__ import annotations

import json

import pytest

from vlm_edge.evaluation import latency_rounds
from vlm_edge.evaluation.host import passed, snapshot


def write(folder, files):
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


@pytest.fixture
def host(tmp_path, monkeypatch):
    monkeypatch.setattr("vlm_edge.evaluation.host.SYSTEM", tmp_path / "sys")
    monkeypatch.setattr("vlm_edge.evaluation.host.PROCESSES", tmp_path / "proc")
    return tmp_path


def test_what_is_read_between_two_snapshots(host):
    cpu = "sys/devices/system/cpu"
    write(
        host,
        {
            f"{cpu}/cpu0/cpufreq/scaling_cur_freq": "1500000\n",
            f"{cpu}/cpu1/cpufreq/scaling_cur_freq": "2100000\n",
            f"{cpu}/cpu0/cpufreq/cpuinfo_max_freq": "3000000\n",
            f"{cpu}/cpu0/thermal_throttle/core_throttle_count": "3\n",
            f"{cpu}/cpu0/thermal_throttle/package_throttle_count": "1\n",
            f"{cpu}/cpu1/thermal_throttle/core_throttle_count": "0\n",
            "sys/class/thermal/thermal_zone0/temp": "45500\n",
            "sys/class/thermal/thermal_zone1/temp": "none\n",
            "sys/class/thermal/cooling_device0/cur_state": "0\n",
            "proc/pressure/cpu": "some avg10=1.00 avg60=1.00 avg300=1.00 total=5000000\nfull avg10=0.00 total=0\n",
            "proc/stat": "cpu  100 0 50 800 50 0 0 0 0 0\ncpu0 50 0 25 400 25 0 0 0 0 0\n",
        },
    )
    before = snapshot()
    write(
        host,
        {
            f"{cpu}/cpu1/thermal_throttle/core_throttle_count": "7\n",
            "sys/class/thermal/cooling_device0/cur_state": "2\n",
            "proc/pressure/cpu": "some avg10=1.00 avg60=1.00 avg300=1.00 total=6000000\n",
            "proc/stat": "cpu  180 0 60 890 50 0 0 20 0 0\n",
        },
    )
    after = {**snapshot(), "clock_s": before["clock_s"] + 4}
    found = passed(before, after)
    assert found["seconds"] == 4
    assert found["mhz"] == {"before": [1500, 2100], "after": [1500, 2100], "max": [3000, 3000]}
    assert found["throttle_events"] == 7
    assert found["celsius"]["after"] == [45.5, 45.5]
    assert found["cooling_state"] == {"before": 0, "after": 2}
    assert found["cpu_waiting_share"] == 0.25
    assert found["cpu_busy_share"] == pytest.approx(90 / 200)
    assert found["cpu_stolen_share"] == pytest.approx(20 / 200)
    assert json.loads(json.dumps(found)) == found


@pytest.mark.usefixtures("host")
def test_what_cannot_be_read_is_none():
    found = passed(snapshot(), snapshot())
    for key in ("throttle_events", "cpu_waiting_share", "cpu_busy_share", "cpu_stolen_share"):
        assert found[key] is None
    assert found["mhz"] == {"before": None, "after": None, "max": None}


def test_this_host_can_be_read():
    found = passed(snapshot(), snapshot())
    assert found["seconds"] >= 0
    assert set(found["load_average"]) == {"before", "after"}


def stat(idle):
    rows = [f"cpu{cpu} 1 0 1 {ticks} 2 0 0 0 0 0" for cpu, ticks in idle.items()]
    return "\n".join(["cpu  9 9 9 9 9 0 0 0", *rows, "intr 5", ""])


@pytest.fixture
def cpus(tmp_path, monkeypatch):
    """Four CPUs on two cores; the first core is the slower one."""
    monkeypatch.setattr(latency_rounds, "CPUS", tmp_path / "cpu")
    monkeypatch.setattr(latency_rounds, "STAT", tmp_path / "stat")
    monkeypatch.setattr(latency_rounds, "allowed_cpus", lambda: [0, 1, 2, 3])
    for cpu in range(4):
        write(tmp_path / "cpu" / f"cpu{cpu}", {"topology/thread_siblings_list": "0-1" if cpu < 2 else "2-3"})
    (tmp_path / "stat").write_text(stat({0: 10, 1: 20, 2: 30, 3: 40}))
    return tmp_path


def test_the_idlest_cpus_of_different_cores_are_taken(cpus):
    before = latency_rounds.idle_ticks()
    assert before == {0: 12, 1: 22, 2: 32, 3: 42}
    (cpus / "stat").write_text(stat({0: 90, 1: 95, 2: 40, 3: 45}))
    after = latency_rounds.idle_ticks()
    assert latency_rounds.quiet_cpus(1, before, after) == [0]
    assert latency_rounds.quiet_cpus(2, before, after) == [0, 2]  # 1 is idler than 2, but of the same core as 0
    assert latency_rounds.quiet_cpus(3, before, after) == [0, 1, 2]
    assert latency_rounds.quiet_cpus(5, before, after) is None


def test_faster_cpus_come_before_idler_ones(cpus):
    for cpu in range(4):
        write(cpus / "cpu" / f"cpu{cpu}", {"cpu_capacity": "1024" if cpu > 1 else "446"})
    before = latency_rounds.idle_ticks()
    (cpus / "stat").write_text(stat({0: 99, 1: 99, 2: 31, 3: 41}))
    assert latency_rounds.quiet_cpus(1, before, latency_rounds.idle_ticks()) == [3]


def test_where_nothing_can_be_read_there_is_still_an_order(tmp_path, monkeypatch):
    monkeypatch.setattr(latency_rounds, "CPUS", tmp_path)
    monkeypatch.setattr(latency_rounds, "STAT", tmp_path / "none")
    monkeypatch.setattr(latency_rounds, "allowed_cpus", lambda: [0, 1, 2])
    assert latency_rounds.idle_ticks() == {}
    assert latency_rounds.quiet_cpus(2, {}, {}) == [1, 2]
    monkeypatch.setattr(latency_rounds, "allowed_cpus", lambda: None)
    assert latency_rounds.quiet_cpus(1, {}, {}) is None
