"""NSR/MixedDigits: every episode draws what kind of episode it is."""

from __future__ import annotations

from nsr_gym.envs.digits import DigitsEnv, DigitsVectorEnv, Recipe
from nsr_gym.envs.mixed import MixedConfig

RECIPE = Recipe(tasks="mixed", config=MixedConfig)


class MixedDigitsEnv(DigitsEnv):
    """Episodes of five kinds: a policy has to find out where it is.

    ## Description

    Each episode draws, and does not say what it drew:

    | drawn | from |
    |---|---|
    | family | `"cyclic"`, `"capped"`, `"aliased"`, `"budget"`, `"related"`: tasks, bank as there |
    | M | 4 to 12 |
    | order | `"cyclic"`, `"reshuffled"` or `"markov"` |
    | room | capped: entries for a third of the tasks to all but one; else 8 entries for 5 tasks |
    | | budget: 8,500 bytes a task too |
    | noise | sigma of `embedding_noise`, from 0 to 0.2, the same in the whole episode |

    The noise makes similarity unreliable and not useless; trial losses stay as they are. Among
    ten tasks of the train split, without noise and at 0.2, the most similar entry is the task's own
    in 100 and 95 of 100 cases (permutations), 95 and 60 (rotations); the best threshold errs in
    1 and 13, 20 and 42 of 100.

    A perfect policy does in each episode what a perfect policy of its family does, and weighs
    similarity against trial losses by how far they agree.

    ## Action Space

    As in `CyclicDigitsEnv`: recall, rank and reserve.

    ## Observation Space

    As in `CyclicDigitsEnv`, with places for 12 entries; nothing says which family it is.

    ## Rewards

    As in `CyclicDigitsEnv`: accuracy on the visited task at the end of the visit
    (`reward="post_task"`) or over its learning steps (`"online"`).

    ## Starting State

    An empty bank; everything is drawn from the pool of the split and fixed by the seed.

    ## Episode End

    `terminated` after the last of the V = M C visits; never `truncated` by the environment.

    ## Arguments

    Those of `CyclicDigitsEnv`, where they are described, without `tasks`, `schedule`, `capacity`
    and `capacity_bytes`, with `view_size=12`, and these:

    | argument | default | meaning |
    |---|---|---|
    | `families` | all five | names of families to draw from |
    | `num_tasks` | [4, 12] | M: a number, or the lowest and the highest |
    | `cycles` | 6 | C |
    | `schedules` | cyclic, reshuffled, markov | names of schedules to draw from |
    | `markov_noise` | None | in Markov episodes, probability of leaving the cycle (None: 0.3) |
    | `embedding_noise` | [0.0, 0.2] | sigma: a number, or the lowest and the highest |

    ## Instances and Splits

    The pools of all four families of tasks one after another, 186 tasks for each split;
    `info["family"]` names what the episode drew. A family with fewer tasks than M is refused.
    `NSR/MixedDigitsRecorded-v0` is the same with `dynamics="recorded"`.

    ## Oracle and Baselines

    There is no rule for all of it: `trial-loss` is best where similarity misleads, a rule that
    pins where the bank is small, and neither knows which rank a task is worth.

    ## Cost

    As `CyclicDigitsEnv`; episodes have 24 to 72 visits.

    ## Version History

    - v0: first version.
    """

    recipe = RECIPE


class MixedDigitsVectorEnv(DigitsVectorEnv):
    """`MixedDigitsEnv`, n episodes side by side in one batched computation."""

    recipe = RECIPE
