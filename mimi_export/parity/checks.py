"""A report against budgets: what was got, what was wanted, which clip or state is to blame.

An exact variant (float32) has to be exact on every clip and in every state. For the others, budgets in decibels and
codes hold for speech and music, not for clips marked `stress`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from mimi_export.contract.manifest import Manifest
from mimi_export.contract.recipes import Budget, Variant
from mimi_export.contract.spec import GraphKind
from mimi_export.parity.results import Check, ClipNumbers, Outcome, VariantReport, all_codes, number
from mimi_export.parity.ties import DIFFERS, Agreement

EXACT = "fp32"
STATE_DB = 90.0
STRUCTURE = "structure_faults"
NOT_MEASURED = "not measured: the graph does not name its latents"
STATE_REASON = "rounding leaves more than 110 dB in every state; one that is lost, swapped or shifted has 40 dB or less"
SITUATION_REASON = (
    "with the weights of the file itself, PyTorch and the graph differ by rounding: more than 110 dB in float32, 30 dB "
    "by activations of 8 bits"
)
FAULT_REASON = "what is in the files can be known without a tolerance but that of the recorded rounding"

_EXACT_REASON = "a stream computes what the batch computes; only rounding may differ"
_SEARCH = Budget(
    "search_agreement_percent", 100.0, None, "the search is exact, whatever the precision of what comes before it"
)
DEFAULT_BUDGETS: dict[str, tuple[Budget, ...]] = {
    EXACT: (
        _SEARCH,
        Budget("code_agreement_percent", 100.0, None, _EXACT_REASON),
        Budget("code_tie_percent", None, 0.1, "rounding decides about one frame in 500"),
        Budget("decoder_snr_db", 110.0, None, _EXACT_REASON),
    ),
    "fp16": (
        _SEARCH,
        Budget("codebook_agreement_percent", 70.0, None, "one code in 70 flips, more in later levels or a short clip"),
        Budget("latent_snr_db", 60.0, None, "weights rounded to 11 bits leave 61 to 63 dB"),
        Budget("decoder_snr_db", 60.0, None, "weights rounded to 11 bits leave 61 to 63 dB"),
    ),
    "int8": (
        _SEARCH,
        Budget("codebook_agreement_percent", 10.0, None, "the finest trained level keeps 18 %, a constant code 5 %"),
        Budget("latent_snr_db", 33.0, None, "8-bit weights, rounded with error feedback, leave 36 dB and more"),
        Budget("decoder_snr_db", 33.0, None, "8-bit weights, rounded with error feedback, leave 36 dB and more"),
    ),
}


def budgets_for(manifest: Manifest, variants: Mapping[str, Variant]) -> tuple[Budget, ...]:
    """The budgets of the configuration of the same name, else those of the precision; none for unknown ones."""
    if manifest.name in variants and variants[manifest.name].budgets:
        return variants[manifest.name].budgets
    budgets, shape = DEFAULT_BUDGETS.get(manifest.precision, ()), manifest.shape
    if shape.head != "codes" and manifest.precision == EXACT:
        budgets += (Budget("latent_snr_db", 100.0, None, _EXACT_REASON),)
    if not shape.num_codebooks:
        budgets = tuple(budget for budget in budgets if not budget.metric.endswith("_percent"))
    return budgets if "decoder" in shape.kinds else tuple(b for b in budgets if b.metric != "decoder_snr_db")


def judge(report: VariantReport, budgets: Sequence[Budget]) -> list[Check]:
    """Every budget as a check; an exact variant's states, too."""
    exact = report.manifest.precision == EXACT
    clips: Sequence[ClipNumbers] = [clip for clip in report.clips if exact or not clip.stress] or report.clips
    checks = [_fault_check(metric, lines) for metric, lines in report.faults.items() if metric != STRUCTURE]
    for metric in dict.fromkeys(outcome.metric for outcome in report.outcomes):
        checks.append(_situation_check([outcome for outcome in report.outcomes if outcome.metric == metric]))
    checks += check_budgets(clips, budgets)
    if exact and report.states:
        checks.append(_state_check(report))
    if STRUCTURE in report.faults:  # the last, for what a graph does says more than what it is made of
        checks.append(_fault_check(STRUCTURE, report.faults[STRUCTURE]))
    return checks


def check_budgets(clips: Sequence[ClipNumbers], budgets: Sequence[Budget]) -> list[Check]:
    """Every budget against the worst of these clips; codes of all of them together."""
    found = ((budget, *_value(budget.metric, clips)) for budget in budgets)
    return [Check(b.metric, got, b.wanted, b.holds(got), where, b.reason) for b, got, where in found]


def computation_order(manifest: Manifest, kind: GraphKind) -> list[str]:
    """Names of a graph's states in the order in which a call meets them."""
    graph = manifest.spec(kind)
    convs = [state.name for state in graph.states if state.kind in ("conv", "conv_tr")]
    others = [state.name for state in graph.states if state.name not in convs]
    middle = len(convs) - 1 if kind == "encoder" else 1  # the transformer stands before or after the resampling
    return [*convs[:middle], *others, *convs[middle:]]


def _value(metric: str, clips: Sequence[ClipNumbers]) -> tuple[float, str]:
    total = all_codes(clips)
    if metric == "code_agreement_percent":
        return 100 * total.apart_from_ties, f"{total.differ} of {total.codes} codes differ without being ties"
    if metric == "code_tie_percent":  # one tie in a short clip is more than 0.1 % and proves nothing
        percent = 100 * total.ties / total.codes if total.ties > 1 else 0.0
        return percent, f"{total.ties} ties and {total.follow} codes that follow from them"
    if metric == "codebook_agreement_percent":
        worst = int(np.argmin(total.per_codebook))
        return 100 * total.per_codebook[worst], f"codebook {worst}"
    if metric == "search_agreement_percent":
        total = Agreement.total(clip.searched for clip in clips if clip.searched)
        if not total.codes:
            return math.nan, NOT_MEASURED
        wrong = total.counts[:, DIFFERS]
        return 100 * total.apart_from_ties, f"{total.differ} of {total.codes}, most in codebook {int(np.argmax(wrong))}"
    getters: dict[str, Callable[[ClipNumbers], list[float]]] = {
        "latent_snr_db": lambda clip: [d.snr_db for d in (clip.latents, *clip.latent_calls.values()) if d],
        "decoder_snr_db": lambda clip: [clip.decoder.snr_db, *(call.snr_db for call in clip.decoder_calls.values())],
        "end_to_end_snr_db": lambda clip: [clip.end_to_end.snr_db],
    }
    values = [(value, clip.name) for clip in clips for value in getters[metric](clip)]
    if not values:
        return math.nan, NOT_MEASURED
    value, name = min(values)
    return value, f"worst clip {name}"


def _fault_check(metric: str, lines: Sequence[str]) -> Check:
    where = _first_of(lines) if lines else "all of them looked at"
    return Check(metric, len(lines), "at most 0", not lines, where, FAULT_REASON)


def _situation_check(outcomes: Sequence[Outcome]) -> Check:
    wrong = [outcome for outcome in outcomes if not outcome.passed]
    shown = wrong[0] if wrong else min(outcomes, key=lambda outcome: outcome.got_db - outcome.limit_db)
    more = f", and {len(wrong) - 1} more of {len(outcomes)}" if len(wrong) > 1 else ""
    wanted = f"at least {shown.limit_db:g}"
    return Check(shown.metric, shown.got_db, wanted, not wrong, shown.where + more, SITUATION_REASON)


def _state_check(report: VariantReport) -> Check:
    values = [
        (states[name], f"{kind} {name}")
        for kind, states in report.states.items()
        for name in computation_order(report.manifest, kind)
    ]
    worst, where = min(values, default=(math.nan, "no states"))
    weak = [f"{name} ({number(value, 1)} dB)" for value, name in values if not value >= STATE_DB]
    if weak:
        where = f"first state that differs: {_first_of(weak)}"
    return Check("state_snr_db", worst, f"at least {STATE_DB:g}", worst >= STATE_DB, where, STATE_REASON)


def _first_of(lines: Sequence[str]) -> str:
    return lines[0] + (f", and {len(lines) - 1} more" if len(lines) > 1 else "")
