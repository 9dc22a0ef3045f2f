"""What a run measured of the promises in `promises.toml`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

from mimi_export.contract.records import tomllib
from mimi_export.contract.spec import GRAPH_KINDS

Record = Mapping[str, Any]
CLOCKS = ("p50", "cpu_p50")
_USUAL = {"way": "bare", "age_seconds": 20.0, "batch": 1, "threads": 1}


@dataclass(frozen=True)
class Promise:
    """One promise, see `promises.toml`."""

    name: str
    of: Mapping[str, Any] | Literal["audio", "weights"]
    over: Mapping[str, Any]
    must: float | None = None
    aim: float | None = None
    at_most: bool = False

    def verdict(self, measured: float | None) -> str:
        """`aim`, `must`, `missed`, `reported` (nothing is demanded), or `not measured`."""
        if measured is None:
            return "not measured"
        for word, bound in (("aim", self.aim), ("must", self.must)):
            if bound is not None and (measured <= bound if self.at_most else measured >= bound):
                return word
        return "reported" if self.must is None else "missed"


def load_promises() -> list[Promise]:
    """All promises, each direction's its own."""
    tables = tomllib.loads(Path(__file__).with_name("promises.toml").read_text("utf-8"))["promise"]
    promises = []
    for table in tables:
        for direction in GRAPH_KINDS if "{direction}" in table["name"] else (None,):
            only = {} if direction is None else {"direction": direction}
            filled = {"name": table["name"].format(direction=direction), "over": {**table["over"], **only}}
            promises.append(Promise(**{**table, **filled}))
    return promises


def judge(report: Record) -> list[dict[str, Any]]:
    """All promises with what a report (see `report`) measured of them.

    `measured` is the ratio of times on the wall, `processor` that of processor times: where the two differ much, other
    programs disturbed the run. Both are `None` where this run did not measure it; `detail` names what was compared.
    """
    contenders = {contender["name"]: contender for contender in report["contenders"]}
    records = [{**contenders.get(record["contender"], {}), **record} for record in report["measurements"]]
    found = []
    for promise in load_promises():
        wall, processor = (max(_ratios(promise, records, report["frame_ms"], clock), default=None) for clock in CLOCKS)
        measured, detail = wall or (None, "")
        found.append({
            "name": promise.name, "must": promise.must, "aim": promise.aim, "measured": measured, "detail": detail,
            "at_most": promise.at_most, "processor": processor and processor[0], "verdict": promise.verdict(measured),
        })  # fmt: skip
    return found


def _ratios(
    promise: Promise, records: list[dict[str, Any]], frame_ms: float, clock: str
) -> Iterator[tuple[float, str]]:
    """Every ratio that a promise may mean, and what was compared."""
    for mine in records:
        if not _fits(mine, {"group": "ours", **_USUAL, **promise.over}):
            continue
        below = f"{mine['contender']}, {mine['direction']}, {mine[clock]:.2f} ms"
        if promise.of == "audio":
            yield mine["batch"] * frame_ms / mine[clock], below
        elif promise.of == "weights":
            if "bandwidth_ms" in mine:
                yield mine["bandwidth_ms"] / mine[clock], f"{mine['bandwidth_ms']:.2f} ms; {below}"
        else:
            same = {name: mine[name] for name in ("contender", "direction")}
            for other in records:
                if _fits(other, {**_USUAL, **same, **promise.of}):
                    yield other[clock] / mine[clock], f"{other['contender']} {other[clock]:.2f} ms; {below}"


def _fits(record: Record, wanted: Mapping[str, Any]) -> bool:
    return all(
        fnmatchcase(str(record.get(name)), value) if isinstance(value, str) else record.get(name) == value
        for name, value in wanted.items()
    )
