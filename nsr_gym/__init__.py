"""nsr-gym: continual-learning episodes as Gymnasium environments.

Importing the package registers the environments; torch is loaded only when one is made.
"""

from nsr_gym.registration import register_environments
from nsr_gym.registry import agent_spec, agent_specs, make_agent, register_agent

__version__ = "0.1.0"

__all__ = ["__version__", "agent_spec", "agent_specs", "make_agent", "register_agent"]

register_environments()
