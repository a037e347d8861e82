//! The in-process tiers behind accessors: what requests and the running code keep, and what they never do.

mod batching;
mod building;
mod counts;
mod failing;
mod limits;
mod processes;
mod sharing;
mod stage;
mod warming;
mod ways;
mod without;
mod writes;
