"""NSR/CyclicDigits: recurring tasks on real handwritten digits."""

from __future__ import annotations

from nsr_gym.envs.digits import DigitsEnv, DigitsVectorEnv, Recipe

RECIPE = Recipe(tasks="permutation", tasks_argument=True)


class CyclicDigitsEnv(DigitsEnv):
    """Recurring tasks on real handwritten digits, learned by real adapters on a frozen backbone.

    ## Description

    An episode is a stream of visits to M tasks that come back C times. Every task shows the
    same 8x8 digits through a transformation of its own (a pixel permutation by default). At
    each visit the policy decides from which entry of the TaskKnowledgeBank the adapter is
    warm-started, which rank it is granted, and what becomes of the result; then the adapter
    is trained for L learning steps of u updates on a frozen 64-128-128-64 perceptron with a
    frozen 10-way head. After Neural Subspace Reallocation (arXiv 2606.30067).

    ## Action Space

    `MultiDiscrete([S + 1, Q, 3])`, with S = `view_size` and Q = the number of `ranks`:

    | component | value | meaning |
    |---|---|---|
    | recall | 0 | start from fresh directions |
    | | s | warm-start from the s-th most similar entry |
    | rank | q | grant `ranks[q]`; the result is stored at that rank |
    | reserve | 0 | discard the result (without a bank: revert the adapter) |
    | | 1 | update the recalled entry, add after a fresh start (without a bank: keep) |
    | | 2 | add a new entry (without a bank: keep) |

    Every member may be sent; what cannot be honoured is projected to the nearest legal action
    and reported as `info["projected"]`. `action_masks()` tells beforehand.

    ## Observation Space

    A flat float32 `Box` in [0, 1], or with `observation="dict"` a `Dict` of the same fields:

    | field | values | access | meaning |
    |---|---|---|---|
    | `similarity` | S | bank | cosine to the entry's task embedding; the view is sorted by it |
    | `stored_rank` | S | bank | rank over R; 0 where there is no entry |
    | `accuracy` | S | bank | accuracy when reserved |
    | `age` | S | bank | visits since, over V |
    | `recalls` | S | bank | times recalled, over V |
    | `trial_loss` | S | bank | loss of a trial load, x / (x + log 10) |
    | `occupancy` | 1 | bank | entries over capacity |
    | `budget_left` | 1 | bank | share of the byte budget that is left |
    | `visits_left` | 1 | bank | share of the visits that is left |
    | `bare_loss` | 1 | all | loss of the bare backbone, scaled as above |
    | `adapter_empty` | 1 | memoryless | whether the active adapter is empty |
    | `active_loss` | 1 | memoryless | loss of the active adapter, scaled as above |
    | `route_backbone` | 1 | bank | the router's score for the backbone alone (other routers) |
    | `energy` | Q | bank | `observe_signals`: energy of the first gradient kept at each rank |
    | `novelty` | 1 | bank | `observe_signals`: share of it outside what the bank holds |
    | `free_capacity` | 1 | bank | `observe_signals`: room left for directions |

    `access` sets what a policy may use. `"bank"`: everything. `"memoryless"`: one active adapter
    of total rank R survives a switch; the granted rank is re-initialised for the newcomer
    (empty directions first, then the oldest), the rest stays and is frozen. `"visit"`: not
    even that. `observe_task_id=True` adds `same_task` (S values) and `task` (1 value) and puts a
    task's own entries first in the view: an ablation for the oracle.

    ## Rewards

    Accuracy on the visited task's 200 test images at the end of the visit
    (`reward="post_task"`), or its mean over the learning steps (`"online"`), minus `rank_cost` for
    every granted rank. `info` carries both.

    ## Starting State

    An empty memory; the M tasks are drawn from the pool of the split without replacement. All
    that an episode draws is fixed by its seed at the reset: stream, support images, minibatches
    and fresh directions do not depend on the actions or on episodes beside it.

    ## Episode End

    `terminated` after the last of the V = M C visits; never `truncated` by the environment.

    ## Information

    Flat, on every step and with the same keys at a reset (where no visit has been made yet):
    `visit`, `cycle`, `task`, `task_name`, `is_return`, `recall`, `rank`, `reserve`, `projected`,
    `accuracy_before`, `accuracy_after`, `curve` (L + 1 accuracies), `reward_post_task`,
    `reward_online`, `recovery_steps` (first learning step at 0.95 of what the previous visit of
    the task ended with; -1 without one, -2 if never), `shortfall`, `entries`, `bytes`, `split`,
    `family` (in an environment that draws one, else empty), `stream` (hash of the explicit
    stream), `action_mask`.

    ## Arguments

    | argument | default | meaning |
    |---|---|---|
    | `tasks` | `"permutation"` | family: `"permutation"`, `"rotation"`, `"labels"`, `"partial"` |
    | `dynamics` | `"live"` | or `"recorded"`: outcomes looked up, see below |
    | `split` | `"train"` | pool of tasks: `"train"` or `"test"` |
    | `num_tasks` | 10 | M |
    | `cycles` | 6 | C |
    | `schedule` | `"cyclic"` | or `"reshuffled"`, `"markov"`, `"iid"`, `"once"` (with `cycles=1`) |
    | `markov_noise` | None | probability of leaving the cycle (None: 0.3) |
    | `access` | `"bank"` | or `"memoryless"`, `"visit"` |
    | `view_size` | 8 | S |
    | `ranks` | (1, 2, 4, 8) | ranks that can be granted; the largest is R |
    | `capacity` | 16 | entries of the bank, None: no limit |
    | `capacity_bytes` | None | bytes of the bank, None: no limit |
    | `embedding_noise` | 0.0 | sigma: e becomes e + sigma g / sqrt(d), normalised, g normal |
    | `retention` | `"lru"` | or `"fifo"`, `"lfu"`, `"oldest-accuracy"`, `"pin"`, `"importance"` |
    | `energy` | None | store at the lowest rank keeping this share of the energy |
    | `reward` | `"post_task"` | or `"online"` |
    | `rank_cost` | 0.0 | taken from the reward for every granted rank |
    | `observation` | `"flat"` | or `"dict"` |
    | `observe_task_id` | False | tell the task (an ablation) |
    | `support_size` | 128 | images that embed a task and measure trial loads |
    | `learning_steps` | 15 | L |
    | `updates` | 3 | u, optimiser updates of a learning step |
    | `batch_size` | 32 | images of an update |
    | `learning_rate` | 0.01 | of Adam |
    | `distillation` | 0.1 | weight of the KL divergence to the recalled model |
    | `temperature` | 2.0 | of the distillation |
    | `head` | `"frozen"` | or `"trained"`: a head for each entry, kept with it |
    | `init_gain` | 2.0 | size of fresh directions: standard deviation times sqrt(d_in) |
    | `learner`, `learner_options` | `"lora"`, {} | how a visit trains, see `docs/systems.md` |
    | `modifiers` | {} | in front of the learner: name -> options, or a list of names |
    | `bank`, `bank_options` | `"per_task"`, {} | how results are stored |
    | `router`, `router_options` | `"cosine"`, {} | what the view is sorted by |
    | `router_features` | None | `"lower"`, `"final"` or `"layers"`: what routers see |
    | `warm_start` | `"entry"` | or `"mixture"`: start from the router's blend of entries |
    | `observe_signals` | False | show what the first gradient says |
    | `device` | `"cpu"` | or a CUDA device |

    The vector environment also takes `autoreset_mode`: `"next_step"` (default), `"same_step"` or
    `"disabled"`.

    `NSR/CyclicDigitsRecorded-v0` is the same with `dynamics="recorded"`: what a visit does is
    drawn from live visits that were recorded for the same visited task, the same start and the
    same granted rank, thousands of times as fast and without torch. Streams, bank, observations
    and rewards are those of this environment; `access="memoryless"` needs live dynamics.

    ## Instances and Splits

    Pools of 50 tasks (36 rotations) for each split; the pools of train and test share no task.
    The images behind all tasks are 700 for training and 200 for testing, disjoint from the 897
    that the backbone was pretrained on. A stream is its explicit lists; `info["stream"]` is
    their hash.

    ## Oracle and Baselines

    `oracle` recalls a task's own entry and knows which that is. `similarity` and `trial-loss` find
    it by themselves. `pin-one` is the best policy without a bank in reading B of the regret
    theorem. See `nsr-gym agents` for all, and the README for their measured results.

    ## Cost

    A visit is 45 updates of 32 images, 16 accuracies on 200 images and up to 8 trial loads on
    128: about 0.5 GFLOP. Episodes side by side share the products: `gym.make_vec` with many
    episodes is the fast way (`make bench` measures it).

    ## Version History

    - v0: first version.
    """

    recipe = RECIPE


class CyclicDigitsVectorEnv(DigitsVectorEnv):
    """`CyclicDigitsEnv`, n episodes side by side in one batched computation."""

    recipe = RECIPE
