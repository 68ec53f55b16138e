//! A reverse tunnel: bridge, agents, a multiplexed link that splices.
