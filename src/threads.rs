//! The compute team.
