"""NSR/UntilRecovered: try allocations until the present task is recovered."""

from __future__ import annotations

from nsr_gym.envs.tabular.allocation import AllocationEngine
from nsr_gym.envs.tabular.config import RecoveryConfig
from nsr_gym.envs.tabular.faces import ExactEnv, ExactVectorEnv


class UntilRecoveredEnv(ExactEnv):
    """Recurring tasks; a visit goes on until the task's right allocation has been tried.

    ## Description

    Reading C of the regret theorem of Neural Subspace Reallocation (arXiv 2606.30067): M tasks
    come back C times. In every step the policy tries one of A allocations; a wrong try costs
    Delta_switch, the right one ends the visit. A policy that acts on the observed symbol alone,
    pi(a|o), is *memoryless*. Blind, the best such policy is the uniform one: M - 1 wrong tries in
    every visit on average, T(M-1)Delta_switch with T = C M visits, exactly; a deterministic one
    never finishes. If the symbol stays for the whole visit, the best policy plays the right
    allocation of task m in proportion to sqrt(O(o|m)).

    ## Action Space

    `Discrete(A)`: the allocation to try.

    ## Observation Space

    A flat float32 `Box` in [0, 1], or with `observation="dict"` a `Dict` of the same fields:

    | field | values | when | meaning |
    |---|---|---|---|
    | `observation` | O | always | the symbol, one-hot |
    | `last_reward` | 1 | `feedback` is not `"none"` | 1 after the right try, else 0; first 0 |
    | `last_action` | A | `feedback="last-action+reward"` | one-hot; first all 0 |
    | `clock` | p | `clock=p` | number of the visit modulo p, one-hot |

    ## Rewards

    0 for the right allocation, minus `delta` for a wrong one.

    ## Starting State

    The first visit of task 0 (`order="fixed"`), or of a drawn task. All that an episode draws is
    fixed by its seed at the reset.

    ## Episode End

    `terminated` after C M visits. A policy may never get there: the registered environment
    truncates an episode after 10,000 steps (`max_episode_steps` of `gym.make` and
    `gym.make_vec`; for no limit -1 in the former and None in the latter). The last observation,
    after the end, is all zeros.

    ## Information

    Flat, on every step and with the same keys at a reset (where none has been made yet): `visit`,
    `cycle`, `task`, `is_return`, `tries` (steps of the visit so far), `correct`, `projected`
    (never), `oracle_reward` (0), `regret` (cost of all wrong tries so far), `split`, `instance`,
    `action_mask`.

    ## Arguments

    | argument | default | meaning |
    |---|---|---|
    | `split` | `"train"` | set of instances: `"train"` or `"test"` |
    | `instance` | 0 | number in the set, 0 to 999; None draws one for every episode |
    | `num_tasks` | 10 | M |
    | `num_allocations` | None | A; None for M |
    | `cycles` | 5 | C |
    | `delta` | 1.0 | Delta_switch, the cost of a wrong try |
    | `obs` | `"blind"` | or `"classes:n"`, `"channel:q"`, `"full"`, or O(o given m) as M rows |
    | `redraw` | False | draw the symbol again at every try, instead of once for each visit |
    | `order` | `"fixed"` | or `"reshuffled"` in every cycle, or `"iid"` |
    | `feedback` | `"none"` | or `"last-reward"`, `"last-action+reward"` |
    | `clock` | 0 | period of the observed clock; 0 for none |
    | `observation` | `"flat"` | or `"dict"` |

    The vector environment also takes `autoreset_mode`: `"next_step"` (default), `"same_step"` or
    `"disabled"`.

    ## Instances and Splits

    An instance says which allocation is right for which task (and which tasks look alike, with
    `"classes:n"`). Completed by the unused allocations it is a permutation: even ones are in the
    train set, odd ones in the test set, so that the two share none. With one task there is one
    instance in both.

    ## Oracle and Baselines

    The oracle never tries a wrong allocation. `nsr_gym.regret.solve_recovery` gives the exact
    optimum among memoryless policies with its certificate, `best-memoryless` plays it.
    `elimination` remembers within a visit: (M-1)/2 wrong tries. `history-aware` also remembers
    across visits: M(M-1)/4 wrong tries in the first cycle on average, none later.
    `nsr-gym regret NSR/UntilRecovered-v0` shows where each lies.

    ## Cost

    A table look-up: millions of steps a second through `gym.make_vec` (`make bench`).

    ## Version History

    - v0: first version.
    """

    config_class = RecoveryConfig
    engine_class = AllocationEngine


class UntilRecoveredVectorEnv(ExactVectorEnv):
    """`UntilRecoveredEnv`, n episodes side by side in arrays."""

    single_class = UntilRecoveredEnv
