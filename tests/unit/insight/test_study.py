"""A study outlives its processes: none of its trials is lost or doubled, and foreign files are refused."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hf_freeze.config.ranges import Range
from hf_freeze.errors import ConfigError, SearchError
from hf_freeze.insight import study as study_module
from hf_freeze.insight.space import DEPTH, Axis, Point, Space
from tests.conftest import REPOSITORY
from tests.unit.insight.cheap_search import main, open_study, outcome, section, space

NOBODY = 65534


def start(path: Path, log: Path, *, seconds: float, trials: int = 12, at_once: int = 1) -> subprocess.Popen[bytes]:
    numbers = map(str, (seconds, trials, at_once))
    command = [sys.executable, "-m", "tests.unit.insight.cheap_search", path, log, *numbers]
    return subprocess.Popen(command, cwd=REPOSITORY)


def wait_for(log: Path, text: str) -> None:
    deadline = time.monotonic() + 60
    while not (log.exists() and text in log.read_text()):
        assert time.monotonic() < deadline, f"{text!r} was not logged"
        time.sleep(0.02)


def ended(log: Path) -> Counter[str]:
    return Counter(line.removeprefix("ends ") for line in log.read_text().splitlines() if line.startswith("ends "))


@contextlib.contextmanager
def as_nobody() -> Iterator[None]:
    """Has root give up its rights, since it may write anything."""
    if os.geteuid() != 0:
        yield
        return
    os.setresuid(NOBODY, NOBODY, 0)
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)


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
        processes = [start(path, log, seconds=0.1, at_once=2) for _ in range(2)]
        assert [process.wait(timeout=120) for process in processes] == [0, 0]
        assert log.read_text().count("begins") == len(ended(log)) == 12
        assert set(ended(log).values()) == {1}
        study = open_study(path, space(4, 3), section(trials=12, pruner="none"))
        assert [(trial.number, trial.state) for trial in study.trials] == [(each, "complete") for each in range(12)]
        study.close()

    def test_a_process_whose_trial_another_took_for_killed_is_told_that_locks_do_not_hold(self, tmp_path: Path) -> None:
        """As on a filesystem that keeps locks to one machine: locks of one process do not keep itself out either."""
        path = tmp_path / "study.db"
        one, other = (open_study(path, space(4, 3), section(trials=1, pruner="none")) for _ in range(2))
        asked, again = one.ask(), other.ask()
        assert asked is not None
        assert again is not None
        assert asked.point == again.point
        for told in (
            lambda: one.report(asked, 0.5, 1, is_last=True),
            lambda: one.tell(asked, outcome(0.5), is_pruned=False),
            lambda: one.tell_failure(asked, "broken"),
        ):
            with pytest.raises(SearchError) as caught:
                told()
            assert str(caught.value) == (
                f"search.study: another process took a trial that runs here for a killed one; got {str(path)!r}. "
                "Processes lock the trials that they run, and on this filesystem not all of them see these locks. Keep "
                "the study where all machines share POSIX locks, or search on one machine."
            )
        other.tell(again, outcome(0.5), is_pruned=False)
        assert [trial.state for trial in other.trials] == ["complete"]
        for study in (one, other):
            study.close()

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

    def test_a_trial_that_ends_while_others_look_is_not_taken_for_killed(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path, log = tmp_path / "study.db", tmp_path / "log"
        process = start(path, log, seconds=2, trials=1)
        wait_for(log, "begins")
        study = open_study(path, space(4, 3), section(trials=1, pruner="none"))
        claim = study._claims.claim_trial

        def claim_after_its_end(number: int) -> bool:
            deadline = time.monotonic() + 60
            while not claim(number):
                assert time.monotonic() < deadline
                time.sleep(0.02)
            return True

        monkeypatch.setattr(study._claims, "claim_trial", claim_after_its_end)
        assert study.ask() is None
        assert [trial.state for trial in study.trials] == ["complete"]
        study.close()
        assert process.wait(timeout=60) == 0


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
    assert sorted(orders[0]) == sorted(tuple(point.values()) for point in space(4, 3).points or ())
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
    study = open_study(tmp_path / "study.db", Space(axes), section(trials=14, pruner="none"))
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


class TestRanges:
    RATES = Axis("rate", "search.learning_rates", {1e-5: 1e-5, 1e-3: 1e-3}, Range(low=1e-5, high=1e-3, log=True))
    SIZES = Axis("size", "search.axes", {8: 8, 64: 64}, Range(low=8, high=64, log=True))
    KINDS = Axis("kind", "search.axes", {name: name for name in "ab"})

    @staticmethod
    def points(path: Path, axes: tuple[Axis, ...], value: Callable[[Point], float], **options: object) -> list[Point]:
        """Runs all trials of a study, each with this metric, and returns their plans in order."""
        study = open_study(path, Space(axes), section(pruner="none", **options))
        points = []
        while (asked := study.ask()) is not None:
            points.append(asked.point)
            study.tell(asked, outcome(value(asked.point)), is_pruned=False)
        study.close()
        return points

    @staticmethod
    def distance(point: Point) -> float:
        """How many times the rate is above or below 1e-4, as a power of ten."""
        return abs(math.log10(float(str(point["rate"]))) + 4)

    def test_values_stay_within_their_range_and_are_what_tables_show(self, tmp_path: Path) -> None:
        axes = (self.RATES, self.SIZES, self.KINDS)
        points = self.points(tmp_path / "study.db", axes, lambda point: -self.distance(point), trials=14)
        assert all(1e-5 <= float(str(point["rate"])) <= 1e-3 for point in points)
        assert all(isinstance(point["size"], int) and 8 <= point["size"] <= 64 for point in points)
        assert all(len(f"{point['rate']:e}".partition("e")[0].rstrip("0")) <= 4 for point in points)
        assert len({tuple(point.values()) for point in points}) == 14
        assert [[point["kind"] for point in points[:10]].count(kind) for kind in "ab"] == [5, 5]
        again = self.points(tmp_path / "again.db", axes, lambda point: -self.distance(point), trials=14)
        assert again == points

    def test_tpe_turns_to_the_part_of_a_range_that_was_good(self, tmp_path: Path) -> None:
        points = self.points(tmp_path / "study.db", (self.RATES,), lambda point: -self.distance(point), trials=30)
        assert statistics.mean(map(self.distance, points[20:])) < statistics.mean(map(self.distance, points[:10])) / 2

    @pytest.mark.parametrize("sampler", ["tpe", "grid"])
    def test_trials_end_with_the_values_that_can_be_counted(self, tmp_path: Path, sampler: str) -> None:
        decays = Axis("decay", "search.axes", {0.0: 0.0, 0.5: 0.5}, Range(low=0, high=0.5, step=0.1))
        axes = (decays, self.KINDS)
        points = self.points(tmp_path / "study.db", axes, lambda point: 0.5, trials=99, sampler=sampler)
        tried = sorted((point["kind"], point["decay"]) for point in points)
        assert tried == [(kind, decay) for kind in "ab" for decay in (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)]

    def test_a_grid_of_more_values_than_are_listed_tries_none_twice(self, tmp_path: Path) -> None:
        steps = Axis("steps", "search.axes", {0: 0, 10**6: 10**6}, Range(low=0, high=10**6, step=1))
        points = self.points(tmp_path / "study.db", (steps,), lambda point: 0.5, trials=20, sampler="grid")
        assert len({point["steps"] for point in points}) == 20

    def test_depths_share_the_time_at_all_values_of_a_range(self, tmp_path: Path) -> None:
        depths = Axis(DEPTH, "search.depths", {depth: depth for depth in (1, 2)})
        points = self.points(tmp_path / "study.db", (depths, self.RATES), lambda point: 0.5, trials=6)
        assert [point[DEPTH] for point in points] == [2, 1, 2, 1, 2, 1]

    def test_a_killed_trial_is_trained_at_the_same_values(self, tmp_path: Path) -> None:
        study = open_study(tmp_path / "study.db", Space((self.RATES,)), section(trials=2))
        killed = study.ask()
        assert killed is not None
        study.close()  # It holds the trial no more, as a process that ended does not.
        study = open_study(tmp_path / "study.db", Space((self.RATES,)), section(trials=2))
        again = study.ask()
        assert again is not None
        assert again.number != killed.number
        assert again.point == killed.point
        study.close()


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
        num_trials = sum(map(len, values.values()))
        study = open_study(path, Space(axes), section(min_complete=0, sampler="grid", trials=num_trials))
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
            f"search.study: was made for another config or other rows; got {str(path)!r}, in which dropout was None "
            "and is True here; epochs was 3 and is 5 here. The trials of a study have one config and the same rows. "
            "Restore what differs, or name another file."
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

    def test_a_study_that_cannot_be_written_is_refused(self) -> None:
        # Not in tmp_path: nobody may look into the folders of root.
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "study.db"
            open_study(path, space(2), section()).close()
            for each in (path, path.with_name("study.db.lock")):
                each.chmod(0o444)
            Path(folder).chmod(0o555)
            with as_nobody(), pytest.raises(SearchError) as caught:
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
