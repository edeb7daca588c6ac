"""The TaskKnowledgeBank, its retention rules, stores and files."""

from nsr_gym.bank.arrays import Recall, Reserved
from nsr_gym.bank.bank import TaskKnowledgeBank
from nsr_gym.bank.files import load_bank, save_bank
from nsr_gym.bank.kinds import BANKS, make_store
from nsr_gym.bank.per_entry import PerEntryFactors
from nsr_gym.bank.retention import RETENTION_RULES
from nsr_gym.bank.store import CountedFactors, FactorStore

__all__ = [
    "BANKS",
    "RETENTION_RULES",
    "CountedFactors",
    "FactorStore",
    "PerEntryFactors",
    "Recall",
    "Reserved",
    "TaskKnowledgeBank",
    "load_bank",
    "make_store",
    "save_bank",
]
