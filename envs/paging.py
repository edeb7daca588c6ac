"""NSR/Paging: which solutions to hold where not all can be held."""

from __future__ import annotations

from nsr_gym.envs.tabular.config import PagingConfig
from nsr_gym.envs.tabular.faces import ExactEnv, ExactVectorEnv
from nsr_gym.envs.tabular.paging import PagingEngine


class PagingEnv(ExactEnv):
    """Recurring tasks and fewer places than tasks: what to hold decides what has to be relearned.

    ## Description

    Reading B of the regret theorem of Neural Subspace Reallocation (arXiv 2606.30067): M tasks
    come back C times. k active slots and K entries of a Bank hold c = k + K solutions. A visit that
    starts from the task's own solution is a hit and costs nothing; a miss is relearned for
    Delta_switch. Whatever a policy knows, it misses at least M + (C-1)(M-c) of the C M visits,
    since what it holds between two cycles was held for c tasks at most; pinning any c tasks
    attains that. Without a Bank (c = 1) this is (C-1)(M-1)Delta_switch more than a policy
    pays that holds everything: (C-1)/C of T(M-1)Delta_switch with T = C.

    ## Action Space

    `MultiDiscrete([P + 1, P, R + 1])` for P = (k + K) R places:

    | component | value | meaning |
    |---|---|---|
    | recall | 0 | start afresh |
    | | p + 1 | start from the solution in place p; places below k R are slots, others the Bank |
    | place | p | where the result goes; what lay there is lost |
    | rank | 0 | discard the result |
    | | r | store it at rank r; R (1 by default) is a whole solution |

    Every member may be sent. An empty place is not recalled; a rank beyond the units that are free
    (those of the chosen place included) is cut to them; both are reported as
    `info["projected"]`.

    ## Observation Space

    A flat float32 `Box` in [0, 1], or with `observation="dict"` a `Dict` of the same fields:

    | field | values | meaning |
    |---|---|---|
    | `similarity` | P | 1 where the place holds the visited task's solution, else 0, plus noise |
    | `stored_rank` | P | rank over R; 0 where the place is empty |
    | `age` | P | visits since the place was started from or stored to, over V |
    | `stored_age` | P | visits since its solution was first stored, over V |
    | `uses` | P | visits that started from it, over V |
    | `occupancy` | 1 | units of rank in use over those there are |
    | `visits_left` | 1 | share of the visits that is left |

    ## Rewards

    Minus the cost of the visit. From nothing it costs delta; from the task's own solution at
    rank r `residual[r]` of that; from another task's solution it saves a share `transfer`
    (times 1 - `residual[r]`). Starting from an entry of the Bank costs `recall_error` on top.

    ## Starting State

    Nothing is held. All that an episode draws is fixed by its seed at the reset.

    ## Episode End

    `terminated` after C M visits; never `truncated` by the environment. The last observation,
    after the end, is all zeros.

    ## Information

    Flat, on every step and with the same keys at a reset (where none has been made yet): `visit`,
    `cycle`, `task`, `is_return`, `hit` (started from the task's own solution), `projected`,
    `oracle_reward` (of a policy that holds everything it has seen, without error), `regret` (sum
    of the oracle's rewards less sum of rewards), `entries`, `split`, `instance`, `action_mask`.

    ## Arguments

    | argument | default | meaning |
    |---|---|---|
    | `split` | `"train"` | set of instances: `"train"` or `"test"` |
    | `instance` | 0 | number in the set, 0 to 999; None draws one for every episode |
    | `num_tasks` | 10 | M |
    | `cycles` | 10 | C |
    | `slots` | 1 | k |
    | `bank` | 0 | K; None for M |
    | `delta` | 1.0 | Delta_switch |
    | `costs` | `"equal"` | every task costs delta; `"random"`: delta to twice delta |
    | `forced` | False | whether the result has to be stored (rank 0 is projected to 1) |
    | `recall_error` | 0.0 | eps, the cost of starting from an entry of the Bank |
    | `residual` | (1, 0) | share of delta left to pay at rank 0, ..., R: falls from 1 to 0; |
    | | | more than two only without `forced` and `recall_error` |
    | `transfer` | 0.0 | what another task's solution saves, a number in [0, 1) or M rows |
    | `similarity_noise` | 0.0 | half-width of the uniform noise on similarities |
    | `order` | `"fixed"` | or `"reshuffled"` in every cycle, or `"iid"` |
    | `observation` | `"flat"` | or `"dict"` |

    The vector environment also takes `autoreset_mode`: `"next_step"` (default), `"same_step"` or
    `"disabled"`.

    ## Instances and Splits

    With `costs="random"` an instance is the tasks' costs; the sets are drawn independently. With
    equal costs all instances of both splits are the same.

    ## Oracle and Baselines

    `oracle_reward` is that of an unbounded Bank without error. `nsr_gym.regret.solve_paging` gives
    the exact optimum of a capacity with its certificate, `best-memoryless` plays it; `pin`, `lru`,
    `fifo`, `lfu` and `uniform-random` differ in what they evict; `history-aware` has a Bank for all
    tasks. `nsr-gym regret NSR/Paging-v0` shows where each lies.

    ## Cost

    A table look-up: millions of steps a second through `gym.make_vec` (`make bench`).

    ## Version History

    - v0: first version.
    """

    config_class = PagingConfig
    engine_class = PagingEngine


class PagingVectorEnv(ExactVectorEnv):
    """`PagingEnv`, n episodes side by side in arrays."""

    single_class = PagingEnv
