"""A study outlives its processes: none of its trials is lost or doubled, and foreign files are refused."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from hf_freeze.errors import ConfigError, SearchError
from hf_freeze.insight import study as study_module
from hf_freeze.insight.space import DEPTH, Axis, Space
from tests.conftest import REPOSITORY
from tests.unit.insight.cheap_search import main, open_study, outcome, section, space


def start(path: Path, log: Path, *, seconds: float, trials: int = 12) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "tests.unit.insight.cheap_search", path, log, str(seconds), str(trials)]
    return subprocess.Popen(command, cwd=REPOSITORY)


def wait_for(log: Path, text: str) -> None:
    deadline = time.monotonic() + 60
    while not (log.exists() and text in log.read_text()):
        assert time.monotonic() < deadline, f"{text!r} was not logged"
        time.sleep(0.02)


def ended(log: Path) -> Counter[str]:
    return Counter(line.removeprefix("ends ") for line in log.read_text().splitlines() if line.startswith("ends "))


class TestProcesses:
    def test_a_killed_search_goes_on_with_no_trial_lost_or_doubled(self, tmp_path: Path) -> None:
        path, log = tmp_path / "study.db", tmp_path / "log"
        main(path, log, seconds=0, trials=3)
        process = start(path, log, seconds=60)
        wait_for(log, "begins a")
        while log.read_text().count("begins") < 4:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
        killed = log.read_text().splitlines()[-1].removeprefix("begins ")
        trials = main(path, log, seconds=0, trials=12)
        assert len(ended(log)) == 12
        assert set(ended(log).values()) == {1}
        assert killed in ended(log)
        assert [trial.state for trial in trials] == ["complete"] * 12
        # What was interrupted is begun again before anything new.
        begun = [line.removeprefix("begins ") for line in log.read_text().splitlines() if line.startswith("begins")]
        assert begun[3:5] == [killed, killed]

    def test_several_processes_share_the_trials_and_leave_running_ones_alone(self, tmp_path: Path) -> None:
        path, log = tmp_path / "study.db", tmp_path / "log"
        processes = [start(path, log, seconds=0.1) for _ in range(2)]
        assert [process.wait(timeout=120) for process in processes] == [0, 0]
        assert len(ended(log)) == 12
        assert set(ended(log).values()) == {1}

    def test_a_trial_that_another_process_runs_is_not_taken(self, tmp_path: Path) -> None:
        path, log = tmp_path / "study.db", tmp_path / "log"
        process = start(path, log, seconds=60, trials=1)
        wait_for(log, "begins")
        study = open_study(path, space(4, 3), section(trials=1, pruner="none"))
        assert study.ask() is None
        assert [trial.state for trial in study.trials] == ["running"]
        process.send_signal(signal.SIGKILL)
        process.wait()
        asked = study.ask()
        assert asked is not None
        assert [trial.state for trial in study.trials] == ["running"]
        study.close()


class TestBudget:
    def test_trials_end_with_the_plans(self, tmp_path: Path) -> None:
        assert len(main(tmp_path / "study.db", tmp_path / "log", seconds=0, trials=100)) == 12

    def test_a_larger_budget_goes_on_where_a_smaller_one_ended(self, tmp_path: Path) -> None:
        for trials in (2, 5):
            assert len(main(tmp_path / "study.db", tmp_path / "log", seconds=0, trials=trials)) == trials
        assert sum(ended(tmp_path / "log").values()) == 5


@pytest.mark.parametrize("sampler", ["tpe", "grid"])
def test_every_plan_is_proposed_once_and_in_the_same_order_for_the_same_study(tmp_path: Path, sampler: str) -> None:
    orders = []
    for name in ("one.db", "other.db"):
        study = open_study(tmp_path / name, space(4, 3), section(trials=99, sampler=sampler, pruner="none"))
        points = []
        while (asked := study.ask()) is not None:
            points.append(tuple(asked.point.values()))
            study.tell(asked, outcome(float(asked.point["axis0"] == "a2")), is_pruned=False)
        study.close()
        orders.append(points)
    assert sorted(orders[0]) == sorted(space(4, 3).crossings)
    assert orders[0] == orders[1]


def test_the_first_axis_takes_its_values_in_turn(tmp_path: Path) -> None:
    study = open_study(tmp_path / "study.db", space(4, 3), section(trials=8, sampler="grid", pruner="none"))
    values = []
    while (asked := study.ask()) is not None:
        values.append(asked.point["axis0"])
        study.tell(asked, outcome(0.5), is_pruned=False)
    study.close()
    assert sorted(values[:4]) == sorted(values[4:]) == ["a0", "a1", "a2", "a3"]


def test_depths_share_the_time(tmp_path: Path) -> None:
    axes = (
        Axis(DEPTH, "search.depths", {depth: depth for depth in (0, 1, 2)}),
        Axis("x", "search.axes", {n: n for n in range(8)}),
    )
    plans = Space(axes, {(d, x): {DEPTH: d, "x": x} for d in axes[0].values for x in axes[1].values})
    study = open_study(tmp_path / "study.db", plans, section(trials=14, pruner="none"))
    depths = []
    while (asked := study.ask()) is not None:
        depths.append(asked.point[DEPTH])
        study.tell(asked, outcome(0.5, seconds={0: 4.0, 1: 2.0, 2: 1.0}[int(str(depths[-1]))]), is_pruned=False)
    study.close()
    assert depths[:4] == [2, 1, 0, 2]
    assert [depths.count(depth) for depth in (0, 1, 2)] == [2, 4, 8]


def test_tpe_turns_to_what_was_good(tmp_path: Path) -> None:
    study = open_study(tmp_path / "study.db", space(6, 6), section(trials=20, pruner="none"))
    points = []
    while (asked := study.ask()) is not None:
        points.append(asked.point)
        study.tell(asked, outcome(float(asked.point["axis0"] == "a2")), is_pruned=False)
    study.close()
    good = [point["axis0"] == "a2" for point in points]
    assert sum(good[10:]) > sum(good[:10])


class TestPruning:
    @staticmethod
    def states(path: Path, values: list[float], **options: float) -> list[str]:
        study = open_study(path, space(8, 8), section(trials=len(values), sampler="grid", **options))
        for value in values:
            asked = study.ask()
            assert asked is not None
            is_pruned = study.report(asked, value, 1, is_last=False)
            if not is_pruned:
                study.report(asked, value, 2, is_last=True)
            study.tell(asked, outcome(value), is_pruned=is_pruned)
        states = [trial.state for trial in study.trials]
        study.close()
        return states

    def test_the_worse_half_ends_early(self, tmp_path: Path) -> None:
        states = self.states(tmp_path / "study.db", [0.5, 0.1, 0.9, 0.2, 0.3, 0.95], min_complete=0)
        assert states == ["complete", "pruned", "complete", "pruned", "pruned", "complete"]

    def test_enough_trials_are_trained_to_the_end(self, tmp_path: Path) -> None:
        worse_and_worse = [1 - 0.01 * index for index in range(20)]
        assert self.states(tmp_path / "study.db", worse_and_worse, min_complete=0.6).count("complete") == 12

    def test_a_budget_of_time_keeps_the_share_at_any_moment(self, tmp_path: Path) -> None:
        states = self.states(tmp_path / "study.db", [0.9, 0.8, 0.7, 0.6, 0.5], min_complete=0.6, seconds=1e6)
        assert states == ["complete", "complete", "pruned", "complete", "pruned"]

    @staticmethod
    def depths_and_ends(path: Path, values: dict[int, list[float]]) -> list[tuple[object, bool]]:
        """Runs trials at some depths that report these values in turn; returns their depths, and which ended early."""
        axes = (
            Axis(DEPTH, "search.depths", {depth: depth for depth in values}),
            Axis("x", "search.axes", {n: n for n in range(max(map(len, values.values())))}),
        )
        plans = Space(axes, {(d, x): {DEPTH: d, "x": x} for d in axes[0].values for x in axes[1].values})
        num_trials = sum(map(len, values.values()))
        study = open_study(path, plans, section(min_complete=0, sampler="grid", trials=num_trials))
        left = {depth: list(found) for depth, found in values.items()}
        ends = []
        for _ in range(num_trials):
            asked = study.ask()
            assert asked is not None
            depth = asked.point[DEPTH]
            value = left[int(str(depth))].pop(0)
            is_pruned = study.report(asked, value, 1, is_last=False)
            if not is_pruned:
                study.report(asked, value, 2, is_last=True)
            study.tell(asked, outcome(value), is_pruned=is_pruned)
            ends.append((depth, is_pruned))
        study.close()
        return ends

    def test_a_plan_is_compared_with_those_of_its_depth(self, tmp_path: Path) -> None:
        ends = self.depths_and_ends(tmp_path / "study.db", {1: [0.9, 0.8], 2: [0.5, 0.4]})
        # The shallower plans are better than all deeper ones, but the second is worse than the first.
        assert ends == [(2, False), (1, False), (2, False), (1, True)]

    def test_a_plan_is_compared_with_cheaper_ones(self, tmp_path: Path) -> None:
        ends = self.depths_and_ends(tmp_path / "study.db", {1: [0.6, 0.95], 2: [0.7, 0.5], 3: [0.8, 0.7]})
        assert ends == [(3, False), (2, True), (1, True), (3, False), (2, True), (1, False)]

    def test_a_trial_past_its_half_goes_on(self, tmp_path: Path) -> None:
        study = open_study(tmp_path / "study.db", space(3), section(min_complete=0))
        ends = []
        for values in ((0.5, 0.9, 0.9), (0.6, 0.1, 0.1)):
            asked = study.ask()
            assert asked is not None
            ends += [study.report(asked, value, step, is_last=step == 3) for step, value in enumerate(values, 1)]
            study.tell(asked, outcome(values[-1]), is_pruned=False)
        study.close()
        assert not any(ends)

    def test_the_last_evaluation_ends_nothing_early(self, tmp_path: Path) -> None:
        study = open_study(tmp_path / "study.db", space(3), section(min_complete=0))
        for value in (0.9, 0.1):
            asked = study.ask()
            assert asked is not None
            assert not study.report(asked, value, 1, is_last=True)
        study.close()


class TestRefusals:
    def test_a_study_of_another_config_is_refused_with_the_difference(self, tmp_path: Path) -> None:
        path = tmp_path / "study.db"
        open_study(path, space(2), section(), epochs=3, rate=0.1).close()
        open_study(path, space(2), section(), epochs=3, rate=0.1).close()
        with pytest.raises(ConfigError) as caught:
            open_study(path, space(2), section(), epochs=5, dropout=True, rate=0.1)
        assert str(caught.value) == (
            f"search.study: was made for another config; got {str(path)!r}, in which dropout was None and is True "
            "here; epochs was 3 and is 5 here. The trials of a study have one config. Restore the config, or name "
            "another file."
        )

    def test_a_file_that_is_no_study_is_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "study.db"
        path.write_text("name,age\n" * 500)
        with pytest.raises(SearchError) as caught:
            open_study(path, space(2), section())
        assert str(caught.value) == (
            f"search.study: this file cannot be used as a study; got {str(path)!r}. SQLite says: file is not a "
            "database. Name a new file, or one that a search has written."
        )
        assert path.read_text().startswith("name,age")

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may write anything")
    def test_a_study_that_cannot_be_written_is_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "study.db"
        open_study(path, space(2), section()).close()
        path.chmod(0o400)
        with pytest.raises(SearchError) as caught:
            open_study(path, space(2), section())
        assert str(caught.value) == (
            f"search.study: this study cannot be written; got {str(path)!r}. Each trial is noted there. Make the file "
            "and its folder writable, or name another file."
        )

    def test_a_locked_study_is_refused(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(study_module, "LOCK_TIMEOUT", 0.1)
        path = tmp_path / "study.db"
        open_study(path, space(2), section()).close()
        holder = sqlite3.connect(path)
        holder.execute("BEGIN EXCLUSIVE")
        with pytest.raises(SearchError) as caught:
            open_study(path, space(2), section())
        holder.close()
        assert str(caught.value) == (
            "search.study: another process kept this study locked for 0.1 seconds; got "
            f"{str(path)!r}. Processes share a study, but one at a time writes. End the process that holds it open, "
            "and start again: nothing is lost."
        )
