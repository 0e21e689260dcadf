"""Which places of a model can grow: ``trace`` gives a ``Plan`` of sites, with the reason for every layer refused."""

from plantops.graph.groups import Group
from plantops.graph.plan import Channelwise, Consumer, Output, Plan, Site
from plantops.graph.trace import check_plain, trace

__all__ = ["Channelwise", "Consumer", "Group", "Output", "Plan", "Site", "check_plain", "trace"]
