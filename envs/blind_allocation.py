"""NSR/BlindAllocation: which allocation fits the present task, without being told the task."""

from __future__ import annotations

from nsr_gym.envs.tabular.allocation import AllocationEngine
from nsr_gym.envs.tabular.config import BlindConfig
from nsr_gym.envs.tabular.faces import ExactEnv, ExactVectorEnv


class BlindAllocationEnv(ExactEnv):
    """Recurring tasks, one best allocation for each, and an observation that may not tell which.

    ## Description

    Reading A of the regret theorem of Neural Subspace Reallocation (arXiv 2606.30067): M tasks
    come back C times, for L steps each. In every step the policy plays one of A allocations and is
    paid R[m, a], m being the present task. It sees a symbol drawn from O(o|m), afresh in
    every step. A policy that acts on that symbol alone, pi(a|o), is *memoryless*: against the best
    allocation of every task it loses at least C L M P_e Delta, where P_e is the Bayes error of
    naming the task from the symbol and Delta the smallest loss of a wrong allocation. Blind,
    P_e = 1 - 1/M, and this is T(M-1)Delta_switch with T = C and Delta_switch = L Delta.

    ## Action Space

    `Discrete(A)`: the allocation to play.

    ## Observation Space

    A flat float32 `Box` in [0, 1], or with `observation="dict"` a `Dict` of the same fields:

    | field | values | when | meaning |
    |---|---|---|---|
    | `observation` | O | always | the symbol, one-hot |
    | `last_reward` | 1 | `feedback` is not `"none"` | scaled to the table's range; first 0 |
    | `last_action` | A | `feedback="last-action+reward"` | one-hot; first all 0 |
    | `clock` | p | `clock=p` | number of the visit modulo p, one-hot |

    With feedback or a clock the observation itself is a memory, and the bound for memoryless
    policies no longer holds: that is what these arguments are there to show. Visits left are not
    shown, they would be a clock; the episode's length does not depend on the actions.

    ## Rewards

    R[m, a], of which the best allocation of each task has 1 unless a table is given.

    ## Starting State

    The first visit of task 0 (`order="fixed"`), or of a drawn task. All that an episode draws is
    fixed by its seed at the reset.

    ## Episode End

    `terminated` after C M visits of L steps; never `truncated` by the environment. The last
    observation, after the end, is all zeros.

    ## Information

    Flat, on every step and with the same keys at a reset (where none has been made yet): `visit`,
    `cycle`, `task`, `is_return`, `tries` (steps of the visit so far), `correct`, `projected`
    (never), `oracle_reward` (of the step), `regret` (sum of the oracle's rewards less sum of
    rewards), `split`, `instance`, `action_mask`.

    ## Arguments

    | argument | default | meaning |
    |---|---|---|
    | `split` | `"train"` | set of instances: `"train"` or `"test"` |
    | `instance` | 0 | number in the set, 0 to 999; None draws one for every episode |
    | `num_tasks` | 10 | M |
    | `num_allocations` | None | A; None for M (one more with `rewards="compromise"`) |
    | `cycles` | 50 | C |
    | `steps` | 1 | L |
    | `rewards` | `"equal"` | a wrong allocation loses `gap`; `"random"`: `gap` to twice that; |
    | | | `"compromise"`: one more allocation loses `gap`/10 on every task; or a table, M rows |
    | `gap` | 0.5 | Delta |
    | `obs` | `"blind"` | or `"classes:n"`, `"channel:q"`, `"full"`, or O(o given m) as M rows |
    | `order` | `"fixed"` | or `"reshuffled"` in every cycle, or `"iid"` |
    | `feedback` | `"none"` | or `"last-reward"`, `"last-action+reward"` |
    | `clock` | 0 | period of the observed clock; 0 for none |
    | `observation` | `"flat"` | or `"dict"` |

    The vector environment also takes `autoreset_mode`: `"next_step"` (default), `"same_step"` or
    `"disabled"`.

    ## Instances and Splits

    An instance says which allocation is right for which task (and the gaps, and which tasks look
    alike, where these are drawn). Completed by the unused allocations it is a permutation: even
    ones are in the train set, odd ones in the test set, so that the two share none. With one
    task, or with a table of rewards, there is one instance in both.

    ## Oracle and Baselines

    `oracle_reward` is the best allocation's. `nsr_gym.regret.solve_blind` gives the exact optimum
    among memoryless policies with its certificate, `best-memoryless` plays it; `pin` and
    `uniform-random` are memoryless too. `history-aware`, `clock`, `last-action`, `elimination` and
    the bandits remember. `nsr-gym regret NSR/BlindAllocation-v0` shows where each lies.

    ## Cost

    A table look-up: millions of steps a second through `gym.make_vec` (`make bench`).

    ## Version History

    - v0: first version.
    """

    config_class = BlindConfig
    engine_class = AllocationEngine


class BlindAllocationVectorEnv(ExactVectorEnv):
    """`BlindAllocationEnv`, n episodes side by side in arrays."""

    single_class = BlindAllocationEnv
