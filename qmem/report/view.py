"""What ``qmem estimate`` shows: one ledger and what stands beside it.  It knows nothing of terminals."""

import msgspec

from qmem.estimator.rule_of_thumb import RuleOfThumb
from qmem.ledger import Ledger
from qmem.planner import Verdict


class EstimateView(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to ``qmem estimate``, ready to be shown.

    Attributes:
        ledger: the job's ledger, from any instrument.
        rule: the hand calculation of the same job; absent where it was not asked for.
        verdicts: one for ``--gpu`` (it is then shown part by part), several for a row of cards, or none.
        other_stacks: bytes requested at the peak of the same job under other stacks, by stack.
    """

    ledger: Ledger
    rule: RuleOfThumb | None = None
    verdicts: tuple[Verdict, ...] = ()
    other_stacks: dict[str, int] = {}
