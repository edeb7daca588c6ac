"""Adapters out of a bank and into one: files of Hugging Face PEFT, fused and split layers."""

from nsr_gym.exchange.entry_file import EntryRecord, SiteRecord
from nsr_gym.exchange.fused import Fused, fuse, split_fused
from nsr_gym.exchange.peft_export import export_entry
from nsr_gym.exchange.peft_import import ImportedAdapter, import_adapter
from nsr_gym.exchange.peft_layers import adapter_layers
from nsr_gym.exchange.peft_reserve import bank_for, import_entry
from nsr_gym.exchange.verify import Verified, verify_bank, verify_folder

__all__ = [
    "EntryRecord",
    "Fused",
    "ImportedAdapter",
    "SiteRecord",
    "Verified",
    "adapter_layers",
    "bank_for",
    "export_entry",
    "fuse",
    "import_adapter",
    "import_entry",
    "split_fused",
    "verify_bank",
    "verify_folder",
]
