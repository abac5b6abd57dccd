"""The answer of a search, as data and as sentences that claim no more than was shown."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from profiler.report.ci import Findings
from profiler.report.text import percent
from profiler.statistics.gates import Outcome
from profiler.statistics.quantiles import Estimate
from profiler.statistics.summary import fit
from profiler.strategies import Knob, parse_strategy
from profiler.tune.candidates import EQUIVALENT, SEMAPHORE, Candidate, Shape, best_of, equivalent
from profiler.tune.dial import Dial
from profiler.tune.quotas import RateAdvice

AS_GOOD = 0.97
"""A candidate is as good when no difference is shown and its score is at least this share of the best."""

HEADROOM_AT = 0.8
"""The share of the limit at which headroom is measured."""


@dataclass(frozen=True, slots=True)
class AtLoad:
    """The setting and the baseline at another load, which is `share` times the load that was tuned for."""

    share: float
    users: int
    setting: Candidate
    gathered: Candidate | None


def at_other_loads(
    found: Mapping[int, Sequence[Candidate]], spec: str, baseline: str, users: int, how: str
) -> tuple[list[AtLoad], str | None]:
    """A setting and the baseline at each load but `users`, and `how` goodput scales over all of them."""
    loads, rates = [], []
    for level, candidates in sorted(found.items()):
        named = {one.spec: one for one in candidates}
        at, beside = named.get(spec), named.get(baseline)
        if at is None:
            continue
        if level != users:
            loads.append(AtLoad(level / users, level, at, None if beside is at else beside))
        if at.goodput.value:
            rates.append((level, [at.goodput.value]))
    fitted = fit([level for level, _ in rates], [rate for _, rate in rates])
    return loads, None if fitted is None else f"{how}: {fitted.sentence}"


@dataclass(frozen=True, slots=True)
class Answer:
    """The setting found, with the evidence for it.

    `dial` is the setting of the agent that was searched, None for the limit of a semaphore, and `baseline`
    what the candidates are held against: its largest value, or gathering.

    `final`: the candidates of the last stage, measured in the same paired blocks, the best first. `curve`:
    every value that was tried, in order (`candidates.on_one_scale`), `shape` what it shows.
    `stopped` says in words what ended the search early: a limit on what may be spent, an experiment that
    `failed`, or the user (`ended`). Where that was before the end of the last stage the setting is not
    `proven`, and `final` is the last stage with results. `spent` is what the search spent, in words,
    `untried` what there was no time for. The goodput of `setting` is what another measurement of it will
    find, with an interval for that (`candidates.promised`); those of `final` are as measured together.
    `rates_leave_out` says of what quotas the `rates` could not take into account, `refused` that the
    model's server refused requests. `invalid` says which figures are the client's, in sentences; `valid`:
    not those of the setting itself.
    `edge` says in words that the setting is the largest or smallest value that was asked for.
    `short_windows` says in words that they were shorter than they ought to be, None where they were not.
    `prediction` says in words what was predicted and how well that agreed, or why nothing was; `surprise`
    that it was wrong. `servers`: what the recording tells of those that are known. Of `curve` and `loads`
    some may be predicted, as each of them says.
    `moved` says in words that its goodput was another one at the end than in the final stage. `slo` is
    whether any setting that was tried meets `--slo`, None without one. `nothing` says in words that no loop
    of the final stage was good, `unanswered` that nothing came back to any request of it. `internal` loops of
    the search were ended by a defect of ours.
    """

    setting: Candidate
    objective: str
    final: tuple[Candidate, ...]
    curve: tuple[Candidate, ...]
    shape: Shape | None
    gathered_is_as_good: bool
    loads: tuple[AtLoad, ...]
    scalability: str | None
    rates: tuple[RateAdvice, ...]
    python: str
    toml: str
    effective: str
    runs: tuple[str, ...]
    seconds: float
    invalid: tuple[str, ...] = ()
    valid: bool = True
    stopped: str | None = None
    failed: bool = False
    ended: Literal["interrupted", "terminated"] | None = None
    proven: bool = True
    spent: str = ""
    untried: tuple[str, ...] = ()
    short_windows: str | None = None
    moved: str | None = None
    prediction: str | None = None
    surprise: str | None = None
    servers: tuple[str, ...] = ()
    rates_leave_out: tuple[str, ...] = ()
    refused: str | None = None
    slo: Outcome | None = None
    nothing: str | None = None
    unanswered: bool = False
    internal: int = 0
    baseline: str = "gathered"
    dial: str | None = None
    edge: str | None = None

    def outcomes(self, allow_saturated: bool = False) -> tuple[Outcome, ...]:
        """What was asked of the search, and whether it holds."""
        said = "; ".join(self.invalid) or "the figures are valid"
        ended = f"{self.stopped or 'the search came to its end'}."
        measured = f"{self.nothing or 'loops were measured'}."
        found = (
            Outcome("valid", "", self.valid or allow_saturated, f"{said}.", kind="validity"),
            Outcome("loops", "", self.nothing is None, measured, kind="loops"),
            Outcome("end", "", self.stopped is None, ended, kind="end"),
        )
        return found if self.slo is None else (*found, self.slo)

    @property
    def sentence(self) -> str:
        """The setting with its evidence."""
        setting, gathered = self.setting, _named(self.final, self.baseline)
        measured = f"{self.objective} {_figure(setting, self.objective)}"
        against = ""
        if gathered is not None and gathered.spec != setting.spec:
            against = f" against {_figure(gathered, self.objective)} for {self.baseline}"
        if not self.proven:
            return f"best so far {setting.spec}: {measured}{against}; the search had not come to its end"
        if self.gathered_is_as_good:
            best = best_of(self.final)
            # Where nothing else was measured beside it, that is a prediction.
            alone = len(self.final) == 1 and any(one.predicted for one in self.curve)
            is_as_good = "is predicted to be" if alone else "is"
            text = f"gathered: at this load gathering {is_as_good} as good as any limit: {measured}"
            if best.spec != "gathered":
                shown = "within 5 % of" if setting.shown_worse else "no difference shown from"
                text += f"; {shown} {best.spec}, {_figure(best, self.objective)}"
            return text
        if against and gathered is not None and not gathered.shown_worse:
            against += " (no difference shown)"
        shared = ", shared" if Knob().value(setting.spec) is not None else ""
        text = f"{setting.spec}{shared}: {measured}{against}"
        if setting.limit is not None and self.shape is not None and self.shape.low < self.shape.high:
            text += f"; between {self.shape.low} and {self.shape.high} no difference shown"
        return text

    @property
    def overlooked(self) -> str | None:
        """A value that looked better before the final stage, and was not measured in that, in words."""
        final = {one.spec for one in self.final}
        # That of the final stage: what is promised was measured at another time.
        same = next((one for one in self.final if one.spec == self.setting.spec), self.setting)
        clearly = same.points * (1 + EQUIVALENT)
        others = [
            one for one in self.curve if one.spec not in final and one.points > clearly and not one.predicted
        ]
        if not others:
            return None
        best = best_of(others)
        return (
            f"{best.spec} looked better in an earlier stage ({_figure(best, self.objective)}) and was not "
            "measured again beside it: a longer --budget has time for that"
        )

    @property
    def headroom(self) -> str | None:
        """The score that is left at 80 % of the limit."""
        limit = self.setting.limit
        if limit is None or not self.proven:
            return None
        at = round(HEADROOM_AT * limit)
        lower = next((one for one in (*self.final, *self.curve) if one.limit == at != limit), None)
        same = next((one for one in self.final if one.spec == self.setting.spec), self.setting)
        if lower is None or not lower.points or not same.points:
            return None
        share = lower.points / same.points
        left = _figure(lower, self.objective) + _label(lower)
        return f"headroom: at {lower.spec} (80 % of the limit) {share:.0%} of it are left: {left}"


def choose(final: Sequence[Candidate], dial: Dial = SEMAPHORE) -> tuple[Candidate, bool]:
    """(the setting, whether gathering is as good), of at least one candidate.

    Where no difference is shown, or none that matters, the simpler wins: gathering, then the shared
    semaphore under which the fewest loops fail. Of a setting of the agent's own it is the smallest value.
    """
    scored = [one for one in final if one.score.value is not None] or list(final)
    best, gathered = best_of(scored), _named(scored, dial.baseline)
    as_good = [one for one in scored if not one.shown_worse and one.points >= AS_GOOD * best.points]
    if dial.setting is not None:
        enough = [one for one in scored if one in as_good or equivalent(one.against_best)]
        return min(enough, key=lambda one: (round(one.failures.value or 0.0, 2), one.limit or 0)), False
    if gathered is not None and (gathered in as_good or equivalent(gathered.against_best)):
        return gathered, True
    semaphores = [one for one in as_good if one.limit is not None]
    if not semaphores:
        return best, False
    return min(semaphores, key=lambda one: (round(one.failures.value or 0.0, 2), -one.points)), False


def _named(candidates: Sequence[Candidate], spec: str) -> Candidate | None:
    return next((one for one in candidates if one.spec == spec), None)


def render(answer: Answer) -> str:
    """The answer as text for a terminal."""
    lines = [] if answer.nothing is None else [f"{answer.nothing}."]
    lines += ([] if answer.stopped is None else [f"{answer.stopped}."]) + list(answer.invalid)
    lines += [] if answer.slo is None or answer.slo.holds else [answer.slo.sentence]
    lines += [] if answer.short_windows is None else [answer.short_windows + "."]
    lines += [] if answer.surprise is None else [answer.surprise + "."]
    lines += [answer.sentence + "."] + ([] if answer.moved is None else [answer.moved + "."])
    lines += [] if answer.prediction is None else [answer.prediction + "."]
    lines += [] if answer.overlooked is None else [answer.overlooked + "."]
    lines += [] if answer.edge is None else [answer.edge + "."]
    lines += [] if answer.refused is None else [answer.refused + "."]
    lines += [answer.slo.sentence] if answer.slo is not None and answer.slo.holds else []
    if answer.curve and answer.shape is not None:
        lines += ["", _row_of("limit" if answer.dial is None else "value", answer.objective, "p95", "failed")]
        for one in answer.curve:
            mark = "  ←" if one.limit == answer.setting.limit else ""
            lines.append(_row(str(one.limit), one, answer.objective) + _label(one) + mark)
        shape = answer.shape
        cliff = f"cliff at {shape.cliff}" if shape.cliff is not None else "no cliff seen"
        lines += ["", f"knee at {shape.knee}, {cliff}"]
    if answer.headroom:
        lines.append(answer.headroom)
    lines += answer.servers
    lines += ["", "in the same paired blocks:"]
    width = max(24, *(len(one.spec) for one in answer.final))
    lines += [_row_of("strategy", answer.objective, "p95", "failed", width)]
    lines += [_row(one.spec, one, answer.objective, width) for one in answer.final]
    if answer.loads:
        foreseen = any(at.setting.predicted for at in answer.loads)
        lines += ["", "at other loads, as predicted:" if foreseen else "at other loads:"]
        for at in answer.loads:
            other = (
                ""
                if at.gathered is None
                else f"; {at.gathered.spec} {_figure(at.gathered, answer.objective)}"
            )
            lines.append(
                f"  {at.share - 1:+.0%} ({at.users} agents): {at.setting.spec} "
                f"{_figure(at.setting, answer.objective)}{other}"
            )
    if answer.scalability:
        lines += ["", answer.scalability]
    for advice in answer.rates:
        lines += ["", advice.sentence]
        lines += [f"  {name}: {rate:.3g} calls/s at that rate" for name, rate in advice.tools.items()]
        lines += [f"  {name}: {share:.0%} of the tokens" for name, share in advice.models.items()]
    lines += [line for sentence in answer.rates_leave_out for line in ("", sentence)]
    lines += ["", answer.effective, "", answer.python, answer.toml]
    if answer.untried:
        lines.append(f"no time for {', '.join(answer.untried)}: a longer --budget has it")
    lines.append(f"{answer.seconds:.0f} s, {len(answer.runs)} experiments: {', '.join(answer.runs)}")
    return "\n".join(lines)


def findings(answer: Answer, outcomes: tuple[Outcome, ...], scenario: str) -> Findings:
    """What a search found, to be rendered for machines that build software."""
    head = ("strategy", answer.objective, "p95", "failed")
    rows = [
        (one.spec, _figure(one, answer.objective), seconds(one.p95), percent(one.failures.value))
        for one in answer.final
    ]
    notes = (
        answer.short_windows,
        answer.surprise,
        answer.moved,
        answer.prediction,
        answer.overlooked,
        answer.edge,
        answer.refused,
    )
    said = (answer.sentence, *filter(None, notes))
    return Findings(
        subject=f"profiler tune: {scenario}",
        outcomes=outcomes,
        verdicts=tuple(f"{sentence}." for sentence in said),
        figures=(head, *rows),
        seconds=answer.seconds,
    )


def _row(name: str, one: Candidate, objective: str, width: int = 8) -> str:
    failed = "" if one.failures.value is None else f"{one.failures.value:.1%}"
    return _row_of(name, _figure(one, objective), seconds(one.p95), failed, width)


def _label(one: Candidate) -> str:
    return " predicted" if one.predicted else ""


def _row_of(name: str, figure: str, p95: str, failed: str, width: int = 8) -> str:
    return f"{name:>{width}}  {figure:<28} {p95:<26} {failed}"


def _figure(one: Candidate, objective: str) -> str:
    if objective == "p95":
        return seconds(one.p95)
    return per_second(one.goodput if objective == "goodput" else one.throughput)


def per_second(one: Estimate) -> str:
    """`5.7/s [5.5, 5.9]`."""
    return _with_interval(one, "/s")


def seconds(one: Estimate) -> str:
    """`1.2 s [1.1, 1.3]`."""
    return _with_interval(one, " s")


def _with_interval(one: Estimate, unit: str) -> str:
    if one.value is None:
        return "too few"
    interval = "" if one.low is None or one.high is None else f" [{one.low:.3g}, {one.high:.3g}]"
    return f"{one.value:.3g}{unit}{interval}"


# The setting that was found, as code and configuration to paste.


def python_snippet(
    spec: str, model_limits: str | None = None, workers: int = 1, agent: str | None = None
) -> str:
    """Python that applies a strategy's limits in an application, and the model's limiters if any.

    Of settings of `agent` (MODULE:FUNCTION) it is the call of that, beside what else it is called with; of
    another strategy for it, what its own code has to do.
    """
    strategy = parse_strategy(spec)
    if strategy.kind == "own":
        module, _, function = (agent or "").partition(":")
        imports = f"from {module} import {function}\n\n" if function.isidentifier() else ""
        given = ", ".join(f"{name}={value!r}" for name, value in strategy.variant)
        held = f"# model requests: {model_limits} (profiler.limited.LimitedModel)\n" if model_limits else ""
        return f"{imports}{function or 'make_agent'}(..., {given})\n{held}"
    share = f"share={workers}" if workers > 1 else ""
    lines: list[str] = []
    if strategy.rules:
        limits = "+".join(part for part in spec.split("+") if not part.startswith("eager"))
        lines += [
            "from profiler import Gate",
            "",
            f'gate = Gate("{limits}"{share and ", " + share})  # one for the process',
            "",
            'async with gate.slot("tool_name"):',
            "    ...  # one try of one call: what it raises is heeded",
        ]
        if agent is not None:
            if (limit := strategy.limit) is not None and not strategy.adapts:
                places = f"threading.BoundedSemaphore({limit})"
                lines += ["", f"# where tools run in threads: {places}, and `with` it around each call"]
            if model_limits:
                lines += ["", f"# model requests: {model_limits} (profiler.limited.LimitedModel)"]
            return "\n".join(lines) + "\n"
        lines += ["", "# or, with the built-in loop:"]
    elif agent is not None and strategy.kind == "gathered" and not model_limits:
        return "# nothing to change: the calls of a reply may all run at once\n"
    lines.append("from profiler import ToolLoop")
    model = "model"
    if model_limits:
        lines.append("from profiler.limited import LimitedModel")
        model = f'LimitedModel(model, "{model_limits}")'
    lines += ["from profiler.strategies import parse_strategy", ""]
    streamed = ", stream=True" if strategy.eager != "no" else ""
    shared = f".build({share})" if share and strategy.rules else ""
    lines.append(f'loop = ToolLoop({model}, tools, parse_strategy("{spec}"){shared}{streamed})')
    return "\n".join(lines) + "\n"


def toml_fragment(spec: str, model_limits: str | None = None) -> str:
    """The same as a table for a configuration file."""
    strategy = parse_strategy(spec)
    lines = ["[profiler.limits]", f'strategy = "{spec}"']
    if strategy.kind == "own":
        lines = ["[agent]", *(f"{name} = {json.dumps(value)}" for name, value in strategy.variant)]
        lines += ["", "[profiler.limits]"] if model_limits else []
    if model_limits:
        lines.append(f'model = "{model_limits}"')
    return "\n".join(lines) + "\n"
